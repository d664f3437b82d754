"""The best round of a run, and early stopping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import lines

from fedkd import InputError
from fedkd.config import Config, StopConfig
from fedkd.runs.choosing import BestRound, EarlyStop
from fedkd.runs.run import resume, run

Make = Callable[..., Config]
LOCAL = {"strategy": "local", "rounds": 6, "evaluate.every": 1}


def line(number: int, value: float, metric: str = "personal/accuracy") -> dict[str, Any]:
    return {"round": number, "metrics": {metric: value}}


@pytest.mark.parametrize(
    ("metric", "values", "change", "best", "number", "waited"),
    [
        ("personal/accuracy", [0.1, 0.5, 0.5, 0.4], 0.0, 0.5, 1, 2),
        ("personal/accuracy", [0.1, 0.5, 0.55, 0.61], 0.1, 0.61, 3, 0),
        ("global/loss", [2.0, 1.0, 1.5], 0.0, 1.0, 1, 1),
        ("global/loss", [float("nan"), 1.0, float("nan")], 0.0, 1.0, 1, 1),
    ],
)
def test_the_best_round_is_the_first_with_the_best_value(
    metric: str, values: list[float], change: float, best: float, number: int, waited: int
) -> None:
    found = BestRound("checkpoint.best", metric, change)
    for i, value in enumerate(values):
        found.note(line(i, value, metric))
    assert (found.value, found.round, found.waited) == (best, number, waited)


@pytest.mark.parametrize(
    ("measured", "metric"),
    [
        (["global/accuracy", "personal/accuracy", "personal/loss"], "personal/accuracy"),
        (["personal/macro_f1", "personal_validation/macro_f1"], "personal_validation/macro_f1"),
        (["global/mae", "global/mse"], "global/mae"),
        (["knn/accuracy", "probe/accuracy", "drift/projection_angle"], "probe/accuracy"),
        (["aggregated/accuracy"], "aggregated/accuracy"),
    ],
)
def test_auto_is_the_main_metric_of_what_is_measured(measured: list[str], metric: str) -> None:
    found = BestRound("checkpoint.best", "auto")
    assert not found.note({"round": 0, "metrics": {}})
    assert found.note({"round": 1, "metrics": dict.fromkeys(measured, 0.5)})
    assert (found.metric, found.round) == (metric, 1)


def test_rounds_without_measurement_do_not_count_as_without_improvement() -> None:
    stop = EarlyStop(StopConfig(metric="personal/accuracy", patience=2), [line(0, 0.5)])
    for number, metrics in ((1, {}), (2, {"personal/accuracy": 0.4}), (3, {})):
        stop.note({"round": number, "metrics": metrics})
        assert stop.reached is None
    stop.note(line(4, 0.3))
    assert stop.reached == {"metric": "personal/accuracy", "best_round": 0, "best": 0.5}


def test_a_run_stops_early_keeps_its_best_round_and_a_resumed_one_is_the_same(tiny: Make, tmp_path: Path) -> None:
    changes = {
        **LOCAL, "train": {"optimizer": {"name": "sgd", "lr": 20.0}},  # so that it does not learn
        "stop": {"metric": "personal/accuracy", "patience": 2}, "checkpoint": {"best": "personal/accuracy"},
    }  # fmt: skip
    summary = run(tiny(changes), tmp_path / "run")
    done = lines(tmp_path / "run")
    values = [one["metrics"]["personal/accuracy"] for one in done]
    best = values.index(max(values))
    assert summary["status"] == "completed"
    assert summary["stopped_early"] == {"metric": "personal/accuracy", "best_round": best, "best": max(values)}
    assert len(done) - 1 == best + 2 < 6
    assert summary["best_round"] == {"metric": "personal/accuracy", "round": best, "value": max(values)}
    assert max(path.name for path in (tmp_path / "run/checkpoints/best").iterdir()) == f"round-{best:06d}"
    assert max(path.name for path in (tmp_path / "run/checkpoints").glob("round-*")) == f"round-{best + 2:06d}"
    again = resume(tmp_path / "run")
    assert (again["rounds"], again["stopped_early"]) == (summary["rounds"], summary["stopped_early"])


def test_a_run_ends_as_soon_as_a_metric_is_where_it_should_be() -> None:
    stop = EarlyStop(StopConfig(metric="personal/accuracy", target=0.6), [line(0, 0.5)])
    for number in range(1, 9):  # no improvement ends it
        stop.note(line(number, 0.4))
        assert stop.reached is None
    stop.note(line(9, 0.6))
    assert stop.reached == {"metric": "personal/accuracy", "best_round": 9, "best": 0.6, "target": 0.6}
    loss = EarlyStop(StopConfig(metric="global/loss", target=0.6, patience=2), [])
    for number, value in enumerate((0.9, 0.7, 0.6)):
        assert loss.reached is None
        loss.note({"round": number, "metrics": {"global/loss": value}})
    assert loss.reached is not None
    assert StopConfig(metric="global/loss").limit == 5


def test_a_metric_that_a_run_does_not_measure_ends_it_before_round_1(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stop.metric = 'global/accuracy': this run does not measure it; it measures"):
        run(tiny({**LOCAL, "stop": {"metric": "global/accuracy"}}), tmp_path / "run")
    assert [one["round"] for one in lines(tmp_path / "run")] == [0]


def test_an_interrupted_run_finds_the_same_best_round(tiny: Make, tmp_path: Path) -> None:
    changes = {**LOCAL, "checkpoint": {"best": "personal/accuracy", "every": 2}}
    whole = run(tiny(changes), tmp_path / "whole")

    def interrupt(record: Any, environment: Any) -> None:
        if record.number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny(changes), tmp_path / "run", interrupt)
    summary = resume(tmp_path / "run")
    assert summary["best_round"] == whole["best_round"]
    number = f"round-{whole['best_round']['round']:06d}"
    for name in ("checkpoint.json", "server.safetensors"):
        both = [(tmp_path / run / "checkpoints/best" / number / name).read_bytes() for run in ("whole", "run")]
        assert both[0] == both[1]


def test_a_run_goes_on_past_its_end_as_if_it_had_been_longer(tiny: Make, tmp_path: Path) -> None:
    run(tiny({**LOCAL, "rounds": 4}), tmp_path / "whole")
    run(tiny({**LOCAL, "rounds": 2}), tmp_path / "run")
    assert resume(tmp_path / "run", overrides=["rounds=4"])["rounds"] == 4
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert (tmp_path / "run/config.toml").read_text() == (tmp_path / "whole/config.toml").read_text()


def test_a_run_that_goes_on_refuses_other_data_and_fewer_rounds(tiny: Make, tmp_path: Path) -> None:
    run(tiny({**LOCAL, "rounds": 2}), tmp_path / "run")
    config = (tmp_path / "run/config.toml").read_bytes()
    with pytest.raises(InputError, match=r"seed was \d+, is 7. A run that goes on may change rounds, evaluate"):
        resume(tmp_path / "run", overrides=["seed=7"])
    with pytest.raises(InputError, match="rounds = 1: the run in .* has done 2 already"):
        resume(tmp_path / "run", overrides=["rounds=1"])
    with pytest.raises(InputError, match="stop.metric = 'global/nope': this run does not measure it"):
        resume(tmp_path / "run", overrides=["rounds=3", "stop.metric=global/nope"])
    assert (tmp_path / "run/config.toml").read_bytes() == config
