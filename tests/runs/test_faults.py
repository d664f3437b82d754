"""A machine that fails at any place of a short run: files that cannot be opened, memory that is short, clocks."""

from __future__ import annotations

import datetime
import errno
import os
import time
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest
import torch
from flwr.app.message import message as flower
from helpers import Make, checkpoint_bytes, lines
from helpers.disk import unopened_at

from fedkd import RunError
from fedkd.core import client_app
from fedkd.core.record import Record
from fedkd.errors import InputError
from fedkd.runs import figures
from fedkd.runs import run as runs
from fedkd.runs.run import resume, run

SHORT: dict[str, Any] = {
    "rounds": 2, "checkpoint": {"every": 2, "keep": 2}, "strategy": {"name": "scaffold"},
    "data.partition": {"scheme": "iid", "clients": 2}, "data.train_per_class": 4, "data.test_per_class": 2,
    "data.node_test": 5, "model.hidden": [4],
}  # fmt: skip
CODES = (errno.EMFILE, errno.ENOMEM, errno.EIO)
DAY = 86_400.0


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw", lambda environment, folder: [])


def end_of(folder: Path) -> Any:
    return lines(folder), checkpoint_bytes(folder)


def longer(folder: Path) -> None:
    """Let a run of two rounds have four."""
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("rounds = 2", "rounds = 4"))


# Files


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_file_that_cannot_be_opened_at_each_place_of_a_run(
    tiny: Make, tmp_path: Path, resumed: bool, step: int
) -> None:
    def prepared(name: str) -> Path:
        if resumed:
            run(tiny(SHORT), tmp_path / name)
            longer(tmp_path / name)
        return tmp_path / name

    def begin(folder: Path) -> None:
        resume(folder) if resumed else run(tiny(SHORT), folder)

    begin(prepared("first"))  # imports what later runs have imported when they begin
    whole = prepared("whole")
    with unopened_at(0, 0, whole) as places:
        begin(whole)
    for kind in ("metrics.jsonl", "origin.json", "server.safetensors", "checkpoint.json", "nodes/1.safetensors"):
        for way in ("'rb'", "'ab'" if kind == "metrics.jsonl" else "'xb'"):
            assert resumed or any(kind in place and way in place for place in places), (kind, way)
    assert not resumed or any("framework" in place for place in places)
    ended = 0
    for number in range(2 + resumed, len(places) + 1, step):
        out, code = prepared(f"out-{number}"), CODES[number % 3]
        said = ""
        with unopened_at(number, code, out) as seen:
            try:
                begin(out)
            except (RunError, InputError) as error:
                said = str(error)
        place = seen[number - 1]
        if said:
            ended += 1
            assert os.strerror(code) in said, place
            assert str(out) in said, place
            assert len(said.splitlines()) == 1
            resume(out) if (out / "config.toml").is_file() else run(tiny(SHORT), out)
        assert end_of(out) == end_of(whole), place
    assert ended > 0.8 * len(range(2 + resumed, len(places) + 1, step))


def test_a_checkpoint_that_is_read_again_later_does_not_stop_a_run_that_has_gone_back(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "run"):
        run(tiny(SHORT), tmp_path / name)
        longer(tmp_path / name)
    resume(tmp_path / "whole")
    with unopened_at(0, 0, tmp_path / "copy") as places:
        (tmp_path / "run").rename(tmp_path / "copy")
        with monkeypatch.context() as patch:
            patch.setattr(runs, "each_round", interrupted)
            with pytest.raises(KeyboardInterrupt):
                resume(tmp_path / "copy")
    number = next(n for n, place in enumerate(places, 1) if "round-000002/nodes/1.safetensors ('rb'" in place)
    reported: list[str] = []
    with monkeypatch.context() as patch, unopened_at(number, errno.EIO, tmp_path / "copy"):
        patch.setattr(runs, "each_round", interrupted)
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "copy", on_event=reported.append)
    assert "round-000002 is damaged: 1.safetensors: Input/output error. The one before it is used." in reported[0]
    assert [line["round"] for line in lines(tmp_path / "copy")] == [0]
    resume(tmp_path / "copy")
    assert end_of(tmp_path / "copy") == end_of(tmp_path / "whole")


def interrupted(*args: Any, **more: Any) -> NoReturn:
    raise KeyboardInterrupt


# Nodes


@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_machine_that_is_short_of_something_at_each_call_of_a_node(tiny: Make, tmp_path: Path, step: int) -> None:
    call = client_app._call

    def ended(name: str, number: int, error: Exception, *, after: bool) -> tuple[Any, list[dict[str, Any]]]:
        """Return the end of a run in which the `number`-th call raises an error, before its work or after it."""
        calls: list[int] = []

        def fails(*args: Any) -> Any:
            calls.append(1)
            if len(calls) != number:
                return call(*args)
            if after:
                call(*args)
            raise error

        with mock.patch.object(client_app, "_call", fails):
            run(tiny(SHORT), tmp_path / name)
        assert len(calls) == 10  # of two nodes: metrics, fit, metrics, fit, metrics
        measured, checkpoint = end_of(tmp_path / name)
        failures = [{**failure, "round": line["round"]} for line in measured for failure in line.pop("failures")]
        return (measured, checkpoint), failures

    for number in range(1, 11, step):
        honest, at = ended(f"honest-{number}", number, ValueError("an error"), after=False)
        assert len(at) == 1
        for error in (
            OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
            MemoryError(),
            torch.OutOfMemoryError("GPU 0 has no memory left,\nnot for one value" * 99),
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        ):
            found, failures = ended(f"{type(error).__name__}-{number}", number, error, after=True)
            assert found == honest, (number, error)
            assert [{**one, "reason": ""} for one in failures] == [{**one, "reason": ""} for one in at]
            for one in failures:
                assert type(error).__name__ in one["reason"]
                assert one["reason"].isprintable()
                assert len(one["reason"]) < 500


# Clocks


@pytest.mark.parametrize("step", [DAY, -DAY])
def test_a_clock_that_is_set_between_two_rounds_changes_nothing(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    run(tiny(SHORT), tmp_path / "whole")
    shift = [0.0]
    seconds, now = time.time, flower.now
    monkeypatch.setattr(time, "time", lambda: seconds() + shift[0])
    monkeypatch.setattr(flower, "now", lambda: now() + datetime.timedelta(seconds=shift[0]))
    for number in range(3):
        out = tmp_path / f"set-{number}"
        shift[0] = 0.0

        def set_clock(record: Record, environment: Any, number: int = number) -> None:
            shift[0] += step * (record.number == number)

        summary = run(tiny(SHORT), out, set_clock)
        assert shift[0] == step
        assert end_of(out) == end_of(tmp_path / "whole")
        assert 0 <= summary["seconds"]["median_round"] <= summary["seconds"]["total"] < DAY
