"""Reading runs: arms by what tells them apart, and damaged, foreign and unfinished folders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from helpers.runs_by_hand import Write, three_seeds

from fedkd.errors import InputError
from fedkd.runs.results import arms_of, completed, find_runs, read_run, worst_decile


def test_the_worst_decile_is_a_tenth_and_one_node_at_least() -> None:
    assert worst_decile([0.5, 0.1, 0.9], "personal/accuracy") == 0.1
    assert worst_decile([i / 100 for i in range(30, 0, -1)], "personal/accuracy") == pytest.approx(0.02)
    assert worst_decile(range(20), "personal/loss") == 18.5
    assert math.isnan(worst_decile([0.1, math.nan], "personal/loss"))


def test_arms_are_named_by_what_tells_them_apart(write: Write) -> None:
    for mu in (0.1, 1.0):
        write(f"p{mu}", 0, [0.5], {"strategy": {"name": "fedprox", "mu": mu}})
    folder = write("a", 0, [0.5]).parent
    write("twice", 0, [0.5])
    arms, problems = arms_of(find_runs([folder])[0])
    assert sorted(arm.name for arm in arms) == ["fedavg", "fedprox (mu 0.1)", "fedprox (mu 1)"]
    assert problems == [f"{folder / 'twice'}: the same run as {folder / 'a'}; left out."]


def test_partial_foreign_and_old_folders_are_told_and_the_rest_works(write: Write, tmp_path: Path) -> None:
    folder = three_seeds(write)
    (write("going-on", 20, [0.1]) / "summary.json").unlink()
    write("stopped", 21, [0.1], summary={"status": "interrupted"})
    (write("distillation", 22, [0.1]) / "config.toml").write_text("distiller = 'dm'\n")
    old = write("old", 23, [0.1], summary={"versions": {"fedkd": "0.0.1"}}) / "metrics.jsonl"
    old.write_text('{"round": 1, "metrics": {}}\n')
    (write("empty", 24, [0.1]) / "metrics.jsonl").write_text("")
    (write("broken", 25, [0.1]) / "config.toml").write_text("seed = \n")
    runs, problems = find_runs([folder])
    runs, others = completed(runs)
    assert len(runs) == 7
    reported = "\n".join(problems + others)
    for name, why in [
        ("going-on", "unfinished after round 1 of 1; left out"),
        ("stopped", "interrupted after round 1 of 1; left out"),
        ("distillation", "this is a distillation"),
        ("old", "line 1 of metrics.jsonl has another form: without cohort, without spread, without nodes"),
        ("empty", "completed, but its metrics.jsonl has no round; lines were lost"),
        ("broken", "its files cannot be read: "),
    ]:
        assert f"{folder / name}: {why}" in reported
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="There is no run to show.*there is no run in it"):
        find_runs([tmp_path / "nothing"])
    with pytest.raises(InputError, match="there is no such folder"):
        find_runs([tmp_path / "nowhere"])
    runs, problems = find_runs([tmp_path / "nowhere", folder])
    assert (len(runs), problems[0]) == (9, f"{tmp_path / 'nowhere'}: there is no such folder.")
    with pytest.raises(InputError, match="its config.toml is missing"):
        read_run(tmp_path / "nothing")


def test_a_line_that_a_crash_cut_off_is_passed_over(write: Write) -> None:
    path = write("a", 0, [0.5, 0.6])
    (path / "summary.json").unlink()
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(text[:-30])
    assert read_run(path).reached == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[:2], "completed, but its metrics.jsonl ends with round 1 of 3; lines were lost"),
        (lambda lines: [lines[0], lines[1][:9], *lines[2:]], "line 2 of metrics.jsonl is damaged"),
        (lambda lines: [*lines[:3], lines[2], lines[3]], "metrics.jsonl has round 2 instead of round 3"),
        (lambda lines: [lines[0].replace('"metrics": {}', '"metrics": null'), *lines[1:]], "metrics is None"),
        (lambda lines: [*lines[:3], lines[3].replace(": 0.8}", ': "0.8"}')], "metrics.personal/accuracy is '0.8'"),
    ],
)
def test_runs_that_have_lost_lines_are_left_out_by_name(write: Write, damage: Any, message: str) -> None:
    good, bad = write("good", 0, [0.5, 0.6, 0.7]), write("bad", 1, [0.5, 0.6, 0.8])
    kept = damage((bad / "metrics.jsonl").read_text().splitlines())
    (bad / "metrics.jsonl").write_text("".join(line + "\n" for line in kept))
    runs, problems = find_runs([good.parent])
    assert [run.path for run in runs] == [good]
    assert problems[0].startswith(f"{bad}: ")
    assert message in problems[0]


def test_links_to_runs_are_followed_and_loops_are_not(write: Write, tmp_path: Path) -> None:
    run = write("a", 0, [0.5])
    links = tmp_path / "links"
    links.mkdir()
    (links / "b").symlink_to(run)
    for name in ("loop", "another"):  # two, for 2^40 paths to whoever follows them
        (links / name).symlink_to(links)
    runs, problems = find_runs([links])
    assert ([run.path for run in runs], problems) == ([links / "b"], [])


def test_classes_of_one_name_in_two_files_are_two_arms(write: Write) -> None:
    for name in ("a", "b"):
        folder = write(name, 0, [0.5], {"strategy": {"name": f"{name}/m.py:Mine"}}).parent
    arms, _ = arms_of(find_runs([folder])[0])
    assert [arm.name for arm in arms] == ["a/m.py:Mine", "b/m.py:Mine"]
