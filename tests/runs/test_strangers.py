"""Run folders of strangers, shown and gone on with: links, pipes, odd tables, another run's checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import Make, checkpoint_bytes, lines
from helpers.runs_by_hand import Write

from fedkd.errors import InputError
from fedkd.runs.results import find_runs, read_run
from fedkd.runs.run import resume, run


@pytest.fixture(scope="module")
def whole(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two rounds with a checkpoint of each."""
    path = tmp_path_factory.mktemp("strangers") / "run"
    run(tiny({"checkpoint": {"every": 1, "keep": 2}}), path)
    return path


def copied(whole: Path, to: Path, rounds: int = 3) -> Path:
    shutil.copytree(whole, to)
    config = to / "config.toml"
    config.write_text(config.read_text().replace("rounds = 2", f"rounds = {rounds}"))
    return to


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "config.toml", "partition.json", "origin.json"])
def test_what_a_link_out_of_a_run_means_is_neither_shown_nor_read(write: Write, tmp_path: Path, name: str) -> None:
    good, bad = write("good", 0, [0.5]), write("bad", 1, [0.5])
    (bad / name).unlink(missing_ok=True)
    (tmp_path / "private").write_text('{"status": "secret"}\n')
    (bad / name).symlink_to(tmp_path / "private")
    runs, problems = find_runs([good.parent])
    if name in ("partition.json", "origin.json"):  # the run is whole without it
        assert runs[0].path == bad
        assert not (runs[0].partition() if name == "partition.json" else runs[0].origin)
        assert f"{bad / name} is left out: it is a link to a place outside of" in problems[0]
    else:
        assert [found.path for found in runs] == [good]
        assert f"{bad}: its files cannot be read" in problems[0]
        assert "a place outside of" in problems[0]
    with pytest.raises(InputError, match=f"{name} is a link to a place outside of the run folder"):
        resume(bad)


def test_a_folder_within_a_run_that_leads_to_other_runs_is_not_followed(write: Write, tmp_path: Path) -> None:
    private = write("private", 3, [0.5])
    shutil.move(private, tmp_path / "private")
    good = write("good", 0, [0.5])
    (good / "more").symlink_to(tmp_path / "private")
    assert [found.path for found in find_runs([good.parent])[0]] == [good]


@pytest.mark.parametrize("name", ["checkpoints", "figures/x", "checkpoints/round-000002/nodes/5.safetensors", ".x"])
def test_a_run_that_goes_on_writes_through_no_link(whole: Path, tmp_path: Path, name: str) -> None:
    path = copied(whole, tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    if (path / name).is_dir():
        shutil.rmtree(path / name)
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"{name} is a link to a place outside of the run folder"):
        resume(path)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_pipe_in_place_of_a_file_is_named(write: Write) -> None:
    bad = write("bad", 0, [0.5])
    for name in ("metrics.jsonl", "summary.json"):
        content = (bad / name).read_bytes()
        (bad / name).unlink()
        os.mkfifo(bad / name)
        with pytest.raises(InputError, match="its files cannot be read: it is not a regular file"):
            read_run(bad)
        with pytest.raises(InputError, match="it is not a regular file"):
            resume(bad)
        (bad / name).unlink()
        (bad / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda line: line["metrics"].update({"global/accuracy": "0.5"}), "metrics.global/accuracy is '0.5'"),
        (lambda line: line.update(seconds=3.0), "seconds is 3.0"),
        (lambda line: line["bytes"].update(aside={}), "bytes.aside is {}"),
        (lambda line: line["metrics"].update({"global/accuracy": 10**30}), "too large"),
        (lambda line: line["nodes"].update(x={"one": 0.5}), "nodes.x is {'one': 0.5}"),
        (lambda line: line.update(round=7), "has round 7 instead of round 1, in line 2"),
        (lambda line: line["seconds"].update(round=-86400.0), "seconds.round is -86400.0"),
        (lambda line: line["metrics"].update({"\x1b[2J": 0.5}), "metrics"),
    ],
)
def test_a_wrong_line_is_refused_when_a_run_goes_on(whole: Path, tmp_path: Path, change: Any, named: str) -> None:
    path = copied(whole, tmp_path / "run")
    kept = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    change(kept[1])
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    begun: list[int] = []
    with pytest.raises(InputError) as refused:
        resume(path, lambda record, environment: begun.append(record.number))
    assert not begun
    assert "metrics.jsonl is whole up to round 0" in str(refused.value)
    assert "line 2" in str(refused.value)
    assert named in str(refused.value)
    assert str(refused.value).isprintable()


def test_the_checkpoint_of_another_run_is_refused_by_name(tiny: Make, whole: Path, tmp_path: Path) -> None:
    for changes, named in [
        ({"seed": 5}, "its seed is 5, not 0"),
        ({"strategy": {"name": "local"}}, "its method is local, not fedavg"),
        ({"model.hidden": [8]}, "its model are others"),
        ({"data.partition.alpha": 0.1}, "its data are others"),
    ]:
        other = tmp_path / f"other-{named[:8]}"
        run(tiny({**changes, "checkpoint": {"every": 1}}), other)
        path = copied(whole, tmp_path / f"run-{named[:12]}")
        shutil.rmtree(path / "checkpoints/round-000002")
        shutil.copytree(other / "checkpoints/round-000002", path / "checkpoints/round-000002")
        with pytest.raises(InputError, match="round-000002 is of another run: ") as refused:
            resume(path)
        assert named in str(refused.value)


def test_copies_beside_checkpoints_are_left_alone(whole: Path, tmp_path: Path) -> None:
    path = copied(whole, tmp_path / "run")
    home = path / "checkpoints"
    strays = ["round-000002.bak", "round-old", "round-", "round-00000x", "round-000009 (copy)", "round-2"]
    for name in strays:
        shutil.copytree(home / "round-000002", home / name)
    (home / "round-000007").write_text("a file")
    (home / "round-000002/nodes/3.safetensors~").write_text("an editor's")
    resume(path)
    found = {entry.name for entry in home.iterdir()}
    assert found == {*strays, "round-000007", "round-000002", "round-000003"}


def test_a_damaged_newer_checkpoint_costs_no_good_one(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"checkpoint": {"every": 1, "keep": 1}, "rounds": 3})
    run(config, tmp_path / "whole")
    run(config.model_copy(update={"rounds": 2}), tmp_path / "run")
    path = copied(tmp_path / "run", tmp_path / "on")
    shutil.copytree(path / "checkpoints/round-000002", path / "checkpoints/round-000009")
    reported: list[str] = []
    resume(path, on_event=reported.append)
    assert "round-000009 is damaged: it is that of round 2" in reported[0]
    assert (path / "checkpoints/round-000003/checkpoint.json").is_file()
    assert not (path / "checkpoints/round-000009").exists()
    assert lines(path) == lines(tmp_path / "whole")
    assert checkpoint_bytes(path) == checkpoint_bytes(tmp_path / "whole")


def test_what_is_read_back_otherwise_than_written_costs_no_older_checkpoint(
    tiny: Make, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedkd.runs import checkpoints

    path = copied(whole, tmp_path / "run")
    put_new = checkpoints.put_new
    monkeypatch.setattr(checkpoints, "put_new", lambda path, content: put_new(path, content[:-1] + b"?"))
    with pytest.raises(checkpoints.RunError, match="round-000003 cannot be written"):
        resume(path)
    assert {entry.name for entry in (path / "checkpoints").iterdir()} == {"round-000001", "round-000002"}
