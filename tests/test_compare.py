"""Comparing runs: statistics by second formulas, refusals, costs to a target, tables, on folders written by hand."""

import csv
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from conftest import TINY, merged
from scipy import stats
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config import parse_config, to_table
from fedkd.errors import InputError
from fedkd.reports.compare import compare, estimate, holm, paired_p, split
from fedkd.reports.tables import table, to_csv, to_latex, to_markdown
from fedkd.runs.results import arms_of, completed, find_runs, read_run, worst_decile

Write = Callable[..., Path]


def a_line(number: int, metrics: dict[str, float], nodes: dict[str, dict[str, float]], up: int) -> dict[str, Any]:
    return {
        "round": number, "phase": "round", "cohort": [0, 1], "metrics": metrics, "spread": {}, "nodes": nodes,
        "bytes": {"up": {"logits": up}, "down": {"weights": 1_000_000}}, "evaluation_bytes": {"up": {}, "down": {}},
        "failures": [{"node": 0}] if number == 2 else [], "events": [], "log": {},
        "seconds": {"round": 2.0, "evaluation": 9.0},
    }  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a run folder: accuracies of rounds 1, 2, ... of two nodes that are 0.2 apart."""

    def make(
        name: str, seed: int, accuracies: list[float], changes: dict[str, Any] | None = None, **summary: Any
    ) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = parse_config(merged(TINY, {"seed": seed, "rounds": len(accuracies), **(changes or {})}))
        (folder / "config.toml").write_text(tomli_w.dumps(to_table(config)))
        lines = [a_line(0, {}, {}, 0)]
        for number, value in enumerate(accuracies, 1):
            nodes = {"personal/accuracy": {"0": value - 0.1, "1": value + 0.1}}
            lines.append(a_line(number, {"personal/accuracy": value}, nodes, 500_000))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        about = {"status": "completed", "versions": {"fedkd": "0.1.0"}, "data": f"print of {seed}", **summary}
        (folder / "summary.json").write_text(json.dumps(about))
        return folder

    return make


def three_seeds(write: Write) -> Path:
    for seed, (low, high) in enumerate([(0.5, 0.6), (0.55, 0.67), (0.6, 0.66)]):
        write(f"fedavg-{seed}", seed, [0.3, low])
        write(f"local-{seed}", seed, [high, high - 0.05], {"strategy": {"name": "local"}})
    return write("fedavg-9", 9, [0.3, 0.9]).parent


def test_estimates_are_those_of_scipy() -> None:
    values = [0.61, 0.64, 0.7, 0.58]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert found == pytest.approx((sum(values) / 4, stats.tstd(values), low, high, 4))
    one = estimate([0.5])
    assert (one.mean, one.seeds) == (0.5, 1)
    assert all(map(math.isnan, one[1:4]))


def test_p_is_that_of_the_paired_t_test() -> None:
    mine, theirs = [0.61, 0.64, 0.7, 0.58], [0.6, 0.6, 0.63, 0.59]
    p = paired_p([a - b for a, b in zip(mine, theirs, strict=True)])
    assert p == pytest.approx(stats.ttest_rel(mine, theirs).pvalue)
    assert paired_p([0.5, 0.5]) is None  # without spread there is no test
    assert paired_p([0.5]) is None


def test_holm_adjusts_by_rank_and_never_downwards() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_the_worst_decile_is_a_tenth_and_one_node_at_least() -> None:
    assert worst_decile([0.5, 0.1, 0.9], "personal/accuracy") == 0.1
    assert worst_decile([i / 100 for i in range(30, 0, -1)], "personal/accuracy") == pytest.approx(0.02)
    assert worst_decile(range(20), "personal/loss") == 18.5
    assert math.isnan(worst_decile([0.1, math.nan], "personal/loss"))


def test_values_that_are_not_finite_are_told_and_spare_the_others(write: Write) -> None:
    folder = three_seeds(write)
    diverged = folder / "local-1" / "metrics.jsonl"
    diverged.write_text(diverged.read_text().replace('{"personal/accuracy": 0.62', '{"personal/accuracy": NaN'))
    for seed in range(3):
        write(f"prox-{seed}", seed, [0.3, 0.7 + seed / 50], {"strategy": {"name": "fedprox"}})
    found = compare(find_runs([folder])[0])
    assert f"{folder / 'local-1'}: personal/accuracy ends as nan, and so there is no mean of local." in found.problems
    fedavg, local, prox = found.rows
    assert math.isnan(local.final.mean)
    assert local.best.mean == pytest.approx((0.6 + 0.67 + 0.66) / 3)  # of what was finite
    assert local.paired is not None
    assert local.paired.p is None
    assert prox.paired is not None
    assert prox.paired.p == pytest.approx(stats.ttest_1samp([0.2, 0.17, 0.14], 0).pvalue)  # one test, not two
    assert fedavg.final.mean == pytest.approx(0.6375)
    for text in (to_markdown([found]), to_latex([found]), to_csv([found])):
        assert "nan" not in text.lower()


def test_rows_hold_means_differences_costs_and_fairness(write: Write) -> None:
    runs, problems = find_runs([three_seeds(write)])
    assert problems == []
    found = compare(runs, target=0.5)
    assert found.metric == "personal/accuracy"
    fedavg, local = found.rows
    assert (fedavg.arm.name, local.arm.name) == ("fedavg", "local")
    assert [run.seed for run in fedavg.arm.runs] == [0, 1, 2, 9]
    assert fedavg.paired is None
    assert fedavg.final.mean == pytest.approx((0.5 + 0.55 + 0.6 + 0.9) / 4)
    assert local.best.mean == pytest.approx((0.6 + 0.67 + 0.66) / 3)
    assert local.paired is not None  # on the three seeds that both have
    assert local.paired.difference[:2] == (pytest.approx((0.05 + 0.07 + 0.01) / 3), pytest.approx(0.0305505, rel=1e-5))
    assert (local.paired.difference.seeds, local.paired.wins) == (3, 3)
    assert local.paired.p == pytest.approx(stats.ttest_1samp([0.05, 0.07, 0.01], 0).pvalue)
    assert local.worst_decile == pytest.approx(local.final.mean - 0.1)
    assert local.spread == pytest.approx(0.1)
    # 1 MB down in each of rounds 0 to 2, half a megabyte up in rounds 1 and 2; evaluation does not count
    assert fedavg.reached == (2.0, pytest.approx(4.0), 6.0, 4)
    assert local.reached == (1.0, pytest.approx(2.5), 4.0, 3)
    assert (local.megabytes, local.seconds, local.failures) == (pytest.approx(4.0), 6.0, 3)


def test_a_target_that_some_runs_miss_counts_those_that_reach_it(write: Write) -> None:
    found = compare(find_runs([three_seeds(write)])[0], target=0.66)
    assert found.rows[1].reached is not None
    assert (found.rows[1].reached.rounds, found.rows[1].reached.runs) == (1.0, 2)
    header, rows = table(found)
    assert rows[0][header.index("reached")] == "1 of 4"
    nobody = table(compare(find_runs([three_seeds_again(found)])[0], target=0.99))
    assert nobody[1][0][nobody[0].index("rounds to it")] == "–"


def three_seeds_again(found: Any) -> Path:
    return Path(found.rows[0].arm.runs[0].path).parent


def test_a_loss_is_better_when_it_is_less(write: Write) -> None:
    for name, values in (("fedavg", [0.9, 0.4]), ("local", [0.5, 0.6])):
        for seed in range(2):
            folder = write(f"{name}-{seed}", seed, values, {"strategy": {"name": name}})
            text = (folder / "metrics.jsonl").read_text().replace("personal/accuracy", "global/loss")
            (folder / "metrics.jsonl").write_text(text)
    found = compare(find_runs([folder.parent])[0], target=0.5)
    assert found.rows[1].paired is not None
    assert found.rows[1].paired.wins == 0
    assert [row.best.mean for row in found.rows] == [0.4, 0.5]
    assert found.rows[0].reached is not None
    assert found.rows[0].reached.rounds == 2.0


def test_arms_are_named_by_what_tells_them_apart(write: Write) -> None:
    for mu in (0.1, 1.0):
        write(f"p{mu}", 0, [0.5], {"strategy": {"name": "fedprox", "mu": mu}})
    folder = write("a", 0, [0.5]).parent
    write("twice", 0, [0.5])
    arms, problems = arms_of(find_runs([folder])[0])
    assert sorted(arm.name for arm in arms) == ["fedavg", "fedprox (mu 0.1)", "fedprox (mu 1)"]
    assert problems == [f"{folder / 'twice'}: the same run as {folder / 'a'}; left out."]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data.partition.alpha": 0.1}, "data.partition.alpha is 0.5 or 0.1"),
        ({"data.name": "mnist"}, "data.name is 'digits' or 'mnist'"),
        ({"train.batch_size": 4}, "train.batch_size is 8 or 4"),
        ({"model.hidden": [8]}, "model.hidden is [16] or [8]"),
        ({"data.public": {"size": 20}}, "data.public.size is unset or 20"),
        ({"cohort": 3}, "cohort is unset or 3"),
    ],
)
def test_unlike_runs_are_refused_by_the_key(write: Write, changes: dict[str, Any], named: str) -> None:
    write("a", 0, [0.5, 0.6])
    folder = write("b", 0, [0.6, 0.7], {"strategy": {"name": "local"}, **changes}).parent
    runs, _ = find_runs([folder])
    with pytest.raises(InputError) as refused:
        split(runs, [], [])
    assert named in str(refused.value)
    key = named.split(" ")[0].removesuffix(".size")
    assert list(split(runs, [], [key])) == [""]
    assert len(split(runs, [key], [])) == 2
    with pytest.raises(InputError, match="--by no.key: no run has such a key"):
        split(runs, ["no.key"], [])


def test_other_rounds_are_refused_and_another_engine_or_seed_is_not(write: Write) -> None:
    write("a", 0, [0.5, 0.6])
    folder = write("b", 1, [0.6, 0.7], {"engine": {"name": "ray"}, "checkpoint": {"every": 1}}).parent
    assert list(split(find_runs([folder])[0], [], [])) == [""]
    write("c", 0, [0.6])
    with pytest.raises(InputError, match="rounds is 2 or 1"):
        split(find_runs([folder])[0], [], [])


def test_equal_configs_on_other_images_are_refused(write: Write) -> None:
    first = write("a", 0, [0.5])
    other = write("b", 0, [0.6], {"strategy": {"name": "local"}}, data="other images")
    with pytest.raises(InputError) as refused:
        split(find_runs([first.parent])[0], [], [])
    assert str(first) in str(refused.value)
    assert str(other) in str(refused.value)


def test_metrics_that_are_missing_are_told_and_the_rest_works(write: Write) -> None:
    folder = three_seeds(write)
    lacking = folder / "local-0" / "metrics.jsonl"
    lacking.write_text(lacking.read_text().replace("personal/accuracy", "global/accuracy"))
    runs, _ = find_runs([folder])
    found = compare(runs, metric="personal/accuracy")
    assert found.problems == [f"{folder / 'local-0'}: has no personal/accuracy; left out."]
    assert [run.seed for run in found.rows[1].arm.runs] == [1, 2]
    with pytest.raises(InputError, match="unknown 'personal/acuracy'; did you mean 'personal/accuracy'?"):
        compare(runs, metric="personal/acuracy")
    for line in ("local-1", "local-2"):
        path = folder / line / "metrics.jsonl"
        path.write_text(path.read_text().replace("personal/accuracy", "global/accuracy"))
    with pytest.raises(
        InputError, match="no metric that all runs have.*fedavg: personal/accuracy; local: global/accur"
    ):
        compare(find_runs([folder])[0])
    with pytest.raises(InputError, match="--baseline 'fedmd': no arm is that; valid: 'fedavg', 'local'"):
        compare(runs, baseline="fedmd")


def test_partial_foreign_and_old_folders_are_told_and_the_rest_works(write: Write, tmp_path: Path) -> None:
    folder = three_seeds(write)
    (write("going-on", 20, [0.1]) / "summary.json").unlink()
    write("stopped", 21, [0.1], status="interrupted")
    (write("distillation", 22, [0.1]) / "config.toml").write_text("distiller = 'dm'\n")
    old = write("old", 23, [0.1], versions={"fedkd": "0.0.1"}) / "metrics.jsonl"
    old.write_text('{"round": 1, "metrics": {}}\n')
    (write("empty", 24, [0.1]) / "metrics.jsonl").write_text("")
    (write("broken", 25, [0.1]) / "config.toml").write_text("seed = \n")
    runs, problems = find_runs([folder])
    runs, others = completed(runs)
    assert len(runs) == 7
    told = "\n".join(problems + others)
    for name, why in [
        ("going-on", "unfinished after round 1 of 1; left out"),
        ("stopped", "interrupted after round 1 of 1; left out"),
        ("distillation", "that is a distillation"),
        ("old", "not a run of this version of fedkd (it says 0.0.1): without cohort, without nodes"),
        ("empty", "completed, but its metrics.jsonl holds no round; lines were lost"),
        ("broken", "its files cannot be read"),
    ]:
        assert f"{folder / name}: {why}" in told
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
        (lambda lines: [*lines[:3], lines[2], lines[3]], "metrics.jsonl has round 2 in the place of round 3"),
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


def test_tables_say_the_same_in_all_forms(write: Write) -> None:
    found = compare(find_runs([three_seeds(write)])[0], target=0.5)
    header, rows = table(found)
    assert rows[1][:6] == ["local", "3", "59.3 ± 3.8", "49.9 to 68.7", "64.3 ± 3.8", "+4.3 ± 3.1"]
    markdown = to_markdown([found])
    assert "| local | 3 | 59.3 ± 3.8 |" in markdown
    assert len({line.count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1
    latex = to_latex([found])
    assert r"local & 3 & 59.3 $\pm$ 3.8" in latex
    assert r"\textbf{63.7 $\pm$ 18.0}" in latex  # the best mean
    assert latex.count("&") == (len(header) - 1) * (len(rows) + 1)
    (first, second) = csv.DictReader(io.StringIO(to_csv([found])))
    assert float(second["final_mean"]) == pytest.approx((0.55 + 0.62 + 0.61) / 3)
    assert (second["seeds"], first["p"], second["gains"]) == ("0 1 2", "", "3")


def test_classes_of_one_name_in_two_files_are_two_arms(write: Write) -> None:
    for name in ("a", "b"):
        folder = write(name, 0, [0.5], {"strategy": {"name": f"{name}/m.py:Mine"}}).parent
    arms, _ = arms_of(find_runs([folder])[0])
    assert [arm.name for arm in arms] == ["a/m.py:Mine", "b/m.py:Mine"]


def test_an_angle_is_better_when_it_is_less(write: Write) -> None:
    for name, values in (("fedavg", [20.5, 15.0]), ("local", [20.5, 11.0])):
        folder = write(name, 0, values, {"strategy": {"name": name}})
        text = (folder / "metrics.jsonl").read_text().replace("personal/accuracy", "drift/projection_angle")
        (folder / "metrics.jsonl").write_text(text)
    found = compare(find_runs([folder.parent])[0])
    assert found.rows[1].paired is not None
    assert (found.rows[1].paired.wins, found.rows[1].best.mean) == (1, 11.0)


def test_a_narrow_terminal_gets_the_table_in_parts(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from fedkd.cli import _print_comparison

    found = compare(find_runs([three_seeds(write)])[0], target=0.5)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    _print_comparison(*table(found), "caption")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("local") == 3
    assert all(cell in shown for row in table(found)[1] for cell in row)


def test_latex_escapes_names(write: Write) -> None:
    folder = write("a", 0, [0.5], {"strategy": {"name": "my_file.py:Fed_{50%}"}}).parent
    assert r"Fed\_\{50\%\} & 1" in to_latex([compare(find_runs([folder])[0])])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "file"], "--out file: that folder cannot be made: File exists"),
        (["--out", "file/deeper"], "--out file/deeper: that folder cannot be made: Not a directory"),
        (["--out", "full"], "--out full: compare.md cannot be written: Is a directory"),
        (["--target", "nan"], "--target nan: give a number"),
        (["--metric", "no", "--out", "unmade"], "--metric: unknown 'no'"),
    ],
)
def test_outputs_that_cannot_be_written_and_targets_that_are_none_are_refused(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    folder = three_seeds(write)
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("full", "compare.md").mkdir(parents=True)
    refused = CliRunner().invoke(app, ["compare", str(folder), *words])
    assert (refused.exit_code, message in refused.stderr) == (2, True), refused.output
    assert not Path("unmade").exists()


def test_the_command_prints_and_writes(write: Write, tmp_path: Path) -> None:
    folder = three_seeds(write)
    out = tmp_path / "tables"
    result = CliRunner().invoke(app, ["compare", str(folder), "--target", "0.5", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "+4.3 ± 3.1" in result.stdout
    assert {path.name for path in out.iterdir()} == {"compare.md", "compare.tex", "compare.csv"}
    write("b", 0, [0.6, 0.7], {"data.partition.alpha": 0.1})
    refused = CliRunner().invoke(app, ["compare", str(folder)])
    assert (refused.exit_code, "--by data.partition" in refused.stderr) == (2, True)
    lacking = write("c", 0, [0.6, 0.7], {"data.partition.alpha": 0.2}) / "metrics.jsonl"
    lacking.write_text(lacking.read_text().replace("personal/accuracy", "global/accuracy"))
    words = ["--by", "data.partition.alpha", "--metric", "personal/accuracy"]
    some = CliRunner().invoke(app, ["compare", str(folder), *words])
    assert some.exit_code == 0, some.output
    assert "data.partition.alpha = 0.2: --metric: unknown 'personal/accuracy'" in some.stderr
    both = CliRunner().invoke(app, ["compare", str(folder), "--by", "data.partition.alpha"])
    assert both.exit_code == 0, both.output
    assert "data.partition.alpha = 0.5" in both.stdout
    assert "data.partition.alpha = 0.1" in both.stdout
