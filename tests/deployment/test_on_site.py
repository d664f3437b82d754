"""The site's half: its errors tell no paths, and nobody names a folder outside its state."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from helpers import PLUGINS, Make
from helpers.federations import failures, partitioned, start

from fedkd import Payload, RunError
from fedkd.core.setup import make_setup
from fedkd.deployment.on_site import without_paths
from fedkd.stopping import Stopped


def test_an_error_text_of_a_site_is_shown_on_one_line_and_without_paths(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny({"rounds": 1, "strategy": {"name": f"{PLUGINS / 'misbehave.py'}:Misbehave"}})
    start(config, partitioned(config), tmp_path / "run")
    (first, *_) = failures(tmp_path / "run")
    assert first == "1 1 fit: ValueError: the disk is full (misbehave.py:24)"

    def broken(self: Any, request: Payload) -> Payload:
        raise OSError("cannot read\n/srv/Anna.png\x1b[2J")

    config = tiny({"rounds": 1})
    monkeypatch.setattr("fedkd.core.client.GlobalModelClient.fit", broken)
    with pytest.raises(RunError):
        start(config, partitioned(config), tmp_path / "broken")
    reasons = [event["error"] for event in [json.loads((tmp_path / "broken/summary.json").read_text())]]
    assert "OSError: cannot read <path>" in reasons[0]
    assert "Anna" not in reasons[0]
    assert "\x1b" not in reasons[0]
    assert "/srv/Anna.png" in caplog.text
    text = "ValueError: /srv/ward 3/Anna M 1950.png is 30 x 40; C:\\scans\\b.dcm, rel/d.npz and cell.tiff (x.py:3)"
    assert without_paths(text) == "ValueError: <path> is 30 x 40; <path>, <path> and <path> (x.py:3)"
    for name in (
        "'/srv/scans/Anna Miller 1950.png'",
        '"Anna Miller.dcm"',
        "scan_Miller.dcm",
        "Miller.nii.gz",
        "/srv/a",
    ):
        assert without_paths(f"cannot read {name}, sorry") == "cannot read <path>, sorry"
    assert without_paths("weights 'layers.0.weight' is 3.5 of 1/2") == "weights 'layers.0.weight' is 3.5 of <path>"


@pytest.mark.parametrize("swallowed", [False, True])
def test_sigterm_ends_a_task_and_the_server_gets_the_reason(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swallowed: bool
) -> None:
    config = tiny()
    grid = partitioned(config)

    def ended(self: Any, request: Payload) -> Payload:
        with contextlib.suppress(BaseException if swallowed else ValueError):  # code of a plug-in may swallow anything
            signal.raise_signal(signal.SIGTERM)
        return Payload(numbers={"loss": 0.0, "examples": 1.0})

    monkeypatch.setattr("fedkd.core.client.GlobalModelClient.fit", ended)
    before = signal.getsignal(signal.SIGTERM)
    known = {"federation": "0" * 32, "node": 1, "first_round": 0, "request": "000001-000001", "accepted": ""}
    weights = Payload(weights=make_setup(config).environment.initial_weights()).to_records()
    content = RecordDict({**weights, "round": ConfigRecord({**known, "lost": False})})
    context = grid._fresh(5)
    reply = grid.app(Message(content, 5, "train.fit", group_id="1"), context)
    assert reply.has_error()
    assert (reply.error.reason, len(context.state)) == ("ended at the site by SIGTERM", 0)
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_is_left_to_flower(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = partitioned(tiny())
    monkeypatch.setattr(grid.app, "_answer", lambda message, context: signal.raise_signal(signal.SIGINT))
    taken: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: taken.append(number))
    try:
        with pytest.raises(Stopped):
            grid.app(Message(RecordDict(), 5, "train.fit", group_id="1"), grid._fresh(5))
    finally:
        signal.signal(signal.SIGINT, before)
    assert taken == [signal.SIGINT]


def test_nothing_can_be_named_out_of_a_sites_state_folder(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"strategy": {"name": "moon"}})
    grid = partitioned(config)
    grid.sites[5] = {"partition-id": 1, "state": str(tmp_path / "state")}
    known = {"federation": "0" * 32, "node": 1, "first_round": 0, "request": "000001-000001", "accepted": ""}
    for key, name in (("federation", "../../etc"), ("request", "../../etc")):
        about_round = ConfigRecord({**known, key: name})
        weights = Payload(weights=make_setup(config).environment.initial_weights()).to_records()
        content = RecordDict({**weights, "round": about_round})
        reply = grid.app(Message(content, 5, "train.fit", group_id="1"), grid._fresh(5))
        assert reply.has_error()
        assert "which is no name of one" in reply.error.reason
