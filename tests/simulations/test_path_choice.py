"""The path of a step is the fastest one that is sound, chosen once and recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Make, checkpoint_bytes, lines

from fedkd import Environment
from fedkd.config import read_config
from fedkd.errors import InputError
from fedkd.runs.run import resume, run
from fedkd.simulations import path_choice, vectorised
from fedkd.simulations.path_choice import paths_of_step, times_of

NETS = {"model": {"names": [{"name": "mlp", "hidden": [8]}, {"name": "convnet", "channels": [4], "norm": "batch"}]}}


class _Clock:
    """Does the work once, and says what it is asked to."""

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.done = list(seconds), 0

    def __call__(self, work: Callable[[], Any]) -> float:
        work()
        self.done += 1
        return self.seconds.pop(0)


def test_every_sound_path_is_measured_and_nothing_is_changed(tiny: Make) -> None:
    environment = Environment(tiny(NETS))
    before = {n: t.clone() for n, t in environment.model(1).state_dict().items()}
    stream = torch.get_rng_state()
    assert times_of(environment, 1, 3, _Clock(4.0, 2.0, 1.0)) == {"folded": 4.0, "vmap": 2.0, "one": 3.0}
    assert all(torch.equal(t, before[n]) for n, t in environment.model(1).state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)


def test_a_path_without_room_or_soundness_is_left_out(tiny: Make, tmp_path: Path) -> None:
    def full(work: Callable[[], Any]) -> float:
        if not clock.done:
            clock.done += 1
            raise torch.OutOfMemoryError("no room for the first path")
        return clock(work)

    clock = _Clock(2.0, 1.0)
    assert times_of(Environment(tiny()), 0, 2, full) == {"vmap": 2.0, "one": 2.0}
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "from fedkd import Classifier\n"
        "def build(shape, classes):\n"
        "    return Classifier(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 8)), 8, classes)\n"
    )
    drops = Environment(tiny({"model": {"name": f"{tmp_path / 'net.py'}:build"}}))
    assert times_of(drops, 0, 2, _Clock()) == {}


def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> _Clock:
    """Let the engine measure, as it does on a GPU, with this clock."""
    clock = _Clock(*seconds)

    def chosen(environment: Environment, wanted: Any, clients: int, note: Callable[[str], None]) -> Any:
        device, _ = environment.device, (environment.preprocess, environment.model(0), environment.model(1))
        environment.device = torch.device("cuda")
        try:
            return paths_of_step(environment, wanted, clients, note)
        finally:
            environment.device = device

    monkeypatch.setattr(vectorised, "paths_of_step", chosen)
    monkeypatch.setattr(path_choice, "seconds_of", clock)
    return clock


def test_the_choice_is_recorded_and_a_resumed_run_takes_it(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = NETS | {"strategy": {"name": "local"}, "engine": {"name": "vectorised", "clients_per_step": 6}}
    clock = _as_on_a_gpu(monkeypatch, 2.0, 1.0, 3.0, 5.0, 5.0, 1.0)
    run(tiny(changes), tmp_path / "whole")
    assert clock.done == 6
    engine = read_config(tmp_path / "whole" / "config.toml").engine.options
    assert engine["path"] == ["vmap", "one"]
    said = [event["event"] for line in lines(tmp_path / "whole") for event in line["events"]]
    assert (
        "engine.path = 'vmap' for mlp: milliseconds of a step of all clients: folded 250, vmap 125, one 1.12e+03"
        in said
    )
    assert "clients work one at a time: engine.path = 'one'" in said
    run(tiny(changes | {"rounds": 1, "engine": {"name": "vectorised", **engine}}), tmp_path / "half")
    resolved = tmp_path / "half" / "config.toml"
    resolved.write_text(resolved.read_text().replace("rounds = 1", "rounds = 2"))
    resume(tmp_path / "half")
    assert clock.done == 6
    assert checkpoint_bytes(tmp_path / "half") == checkpoint_bytes(tmp_path / "whole")


def test_on_a_cpu_nothing_is_measured_and_nothing_recorded(tiny: Make, tmp_path: Path) -> None:
    def never(text: str) -> None:
        raise AssertionError(text)

    environment = Environment(tiny(NETS))
    assert paths_of_step(environment, "auto", 3, never) == "auto"
    assert paths_of_step(environment, ["one", "vmap"], 3, never) == ["one", "vmap"]
    with pytest.raises(InputError, match=r"engine.path = \['one'\]: give one path for each of the 2 models"):
        paths_of_step(environment, ["one"], 3, never)
    run(tiny({"engine": {"name": "vectorised"}}), tmp_path / "run")
    assert "path" not in read_config(tmp_path / "run" / "config.toml").engine.options
