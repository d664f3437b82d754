"""Checkpoints: whole or not at all, checked before they are used, the one before where the newest is damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from flwr.app import RecordDict
from helpers import Make, checkpoint_bytes, lines, server_state

from fedkd import files
from fedkd.config import CheckpointConfig
from fedkd.core.state import pack
from fedkd.deployment.site_state import Version, keep_state, request_name
from fedkd.errors import InputError
from fedkd.messages.arrays import array_record
from fedkd.runs import figures
from fedkd.runs.checkpoints import _save, latest, load_nodes, load_server, save
from fedkd.runs.results import read_run
from fedkd.runs.run import resume, run

OWNER = {"method": "a test", "seed": 0}


def saved(folder: Path, count: int, keep: int = 9) -> list[Path]:
    folder.mkdir(exist_ok=True)
    state = RecordDict({"model": array_record({"w": torch.ones(2)})})
    return [
        save(folder, n, pack({"w": torch.full((3,), n)}, "a test"), [(7, state)], keep, OWNER) for n in range(count)
    ]


def test_the_newest_stay_and_hold_what_was_saved(tmp_path: Path) -> None:
    saved(tmp_path, 5, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000003", "round-000004"]
    number, path = latest(tmp_path)
    assert number == 4
    assert server_state(path)["w"].tolist() == [4, 4, 4]
    ((node, state),) = load_nodes(path)
    assert (node, state.array_records["model"]["w"].numpy().tolist()) == (7, [1, 1])


@pytest.mark.parametrize("file", ["server.safetensors", "nodes/7.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("how", ["cut", "gone", "one bit"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path: Path, file: str, how: str) -> None:
    paths = saved(tmp_path, 3)
    broken = paths[2] / file
    if how == "gone":
        broken.unlink()
    else:
        content = bytearray(broken.read_bytes())
        content[-3] ^= 1
        broken.write_bytes(content if how == "one bit" else content[:-3])
    reported: list[str] = []
    assert latest(tmp_path, reported.append) == (1, paths[1])
    assert len(reported) == 1
    assert reported[0].startswith(f"The checkpoint {paths[2]} is damaged: ")


def test_a_run_goes_on_from_before_a_checkpoint_with_an_odd_file(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "draw", lambda environment, folder: [])
    run(tiny({"strategy": {"name": "scaffold"}, "checkpoint": {"every": 1}}), tmp_path / "whole")
    for number, name in enumerate(
        ("server.safetensors", "nodes/1.safetensors", "checkpoint.json", "nodes/2.safetensors")
    ):
        out = shutil.copytree(tmp_path / "whole", tmp_path / f"run-{number}")
        path = out / "checkpoints/round-000002" / name
        path.unlink()
        path.mkdir() if number == 3 else os.mkfifo(path)
        reported: list[str] = []
        resume(out, on_event=reported.append)
        assert f"The checkpoint {path.parents[len(Path(name).parents) - 1]} is damaged: " in reported[0]
        assert "it is not a regular file. The one before it is used." in reported[0]
        assert lines(out) == lines(tmp_path / "whole")
        assert checkpoint_bytes(out) == checkpoint_bytes(tmp_path / "whole")


def test_a_power_cut_finds_whole_files_under_their_names(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What gets its name, or is followed by something that gets deleted, is on the disk by then."""
    safe: set[int] = set()  # numbers of files and folders that are on the disk as they are
    renamed: list[str] = []
    replace, rmtree, put = os.replace, shutil.rmtree, files.put

    def put_unsafely(file: BinaryIO, content: bytes) -> None:
        put(file, content)
        safe.discard(os.fstat(file.fileno()).st_ino)

    def replace_if_safe(old: Path, new: Path) -> None:
        for path in (old, *old.rglob("*")):
            assert path.stat().st_ino in safe, path
        replace(old, new)
        renamed.append(new.name)
        safe.discard(new.parent.stat().st_ino)

    def rmtree_if_safe(path: Path, **more: Any) -> None:
        if path.is_dir():
            assert path.parent.stat().st_ino in safe, path
        rmtree(path, **more)

    def fsync(handle: int) -> None:
        safe.add(os.fstat(handle).st_ino)

    monkeypatch.setattr(files, "put", put_unsafely)
    monkeypatch.setattr(os, "replace", replace_if_safe)
    monkeypatch.setattr(shutil, "rmtree", rmtree_if_safe)
    monkeypatch.setattr(os, "fsync", fsync)
    run(tiny({"checkpoint": {"every": 1, "keep": 1}, "strategy": {"name": "scaffold"}}), tmp_path / "run")
    assert {"config.toml", "metrics.jsonl", "summary.json", "round-000000", "round-000001", "round-000002"} <= {
        *renamed
    }
    assert (tmp_path / "run/metrics.jsonl").stat().st_ino in safe
    state = RecordDict({"model": array_record({"w": torch.ones(2)})})
    keep_state(tmp_path / "site", Version(request_name(1, 1), state), CheckpointConfig(), 0)
    assert renamed[-1] == "round-000001-000001.safetensors"
    assert (tmp_path / "site").stat().st_ino in safe


def test_where_none_is_whole_each_is_named(tmp_path: Path) -> None:
    for path in saved(tmp_path, 2):
        (path / "server.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"no complete checkpoint.*round-000001 is damaged.*round-000000 is damaged"):
        latest(tmp_path)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_to_the_same_end(tiny: Make, tmp_path: Path) -> None:
    changes = {"strategy": {"name": "scaffold"}, "cohort": 4, "checkpoint": {"every": 2}}
    run(tiny({**changes, "rounds": 6}), tmp_path / "whole")
    run(tiny({**changes, "rounds": 4}), tmp_path / "half")
    (tmp_path / "half/checkpoints/round-000004/server.safetensors").write_bytes(b"nonsense")
    config = tmp_path / "half/config.toml"
    config.write_text(config.read_text().replace("rounds = 4", "rounds = 6"))
    reported: list[str] = []
    resume(tmp_path / "half", on_event=reported.append)
    assert "round-000004 is damaged" in reported[0]
    assert lines(tmp_path / "half") == lines(tmp_path / "whole")
    assert checkpoint_bytes(tmp_path / "half") == checkpoint_bytes(tmp_path / "whole")


def test_a_failure_keeps_the_last_whole_round(tiny: Make, tmp_path: Path) -> None:
    file = tmp_path / "fail.py"
    file.write_text(
        "from fedkd.strategies.fedavg import FedAvg\n"
        "class Fail(FedAvg):\n"
        "    def run_round(self, federation):\n"
        "        super().run_round(federation)\n"
        "        if federation.number == 3:\n"
        "            raise ValueError('in round 3, when the weights are new')\n"
    )
    changes = {"rounds": 3, "checkpoint": {"every": 50}}
    with pytest.raises(ValueError, match="in round 3"):
        run(tiny({**changes, "strategy": f"{file}:Fail"}), tmp_path / "failed")
    run(tiny({**changes, "rounds": 2}), tmp_path / "whole")
    number, path = latest(tmp_path / "failed/checkpoints")
    assert number == 2
    assert torch.equal(
        server_state(path)["weights"]["classifier.weight"],
        server_state(tmp_path / "whole")["weights"]["classifier.weight"],
    )


def test_a_run_that_goes_on_has_no_summary_of_what_it_was(tiny: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(tiny(), out)
    (out / "config.toml").write_text((out / "config.toml").read_text().replace("rounds = 2", "rounds = 4"))
    seen: list[str] = []
    resume(out, lambda record, environment: seen.append(read_run(out).status))
    assert seen == ["unfinished", "unfinished"]
    assert read_run(out).status == "completed"


def test_a_checkpoint_of_an_earlier_version_is_refused_by_name(tiny: Make, tmp_path: Path) -> None:
    """Earlier versions wrote tensors alone; which fields they were is not in the file."""
    run(tiny(), tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "round-000002"
    tensors = load_server(newest).tensors
    about = json.loads((newest / "checkpoint.json").read_text())
    about["files"]["server.safetensors"] = _save(newest / "server.safetensors", tensors, {})
    (newest / "checkpoint.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="round-000002 was written by an earlier version of fedkd.*in a new folder"):
        resume(tmp_path / "run")
