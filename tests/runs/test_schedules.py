"""Learning rates by round and by step, in whole runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import lines

from fedkd import InputError
from fedkd.config import Config, TrainConfig, read_config
from fedkd.core.setup import make_setup
from fedkd.runs.run import run

Make = Callable[..., Config]


def test_a_cosine_by_round_takes_the_length_of_the_run(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"rounds": 4, "train.schedule": {"name": "cosine"}}), tmp_path / "run")
    config = read_config(tmp_path / "run/config.toml")
    rates = [config.train.in_round(t).optimizer.lr / config.train.optimizer.lr for t in range(1, 7)]
    assert rates == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0, 0], abs=1e-12)


def test_lr_decay_and_a_schedule_multiply() -> None:
    train = TrainConfig.model_validate({"lr_decay": 0.5, "schedule": {"name": "step", "every": 1, "factor": 0.1}})
    assert train.decay(3) == pytest.approx(0.25 * 0.01)
    assert train.in_round(3).optimizer.lr == pytest.approx(0.05 * 0.25 * 0.01)


@pytest.mark.parametrize("strategy", ["fedavg", "fml", "simclr", "central"])
def test_a_schedule_by_step_changes_training_and_not_its_batches(strategy: str, tiny: Make, tmp_path: Path) -> None:
    rounds = {"strategy": strategy, "rounds": 1}
    run(tiny(rounds), tmp_path / "plain")
    run(tiny({**rounds, "train.schedule": {"name": "step", "by": "step", "every": 10_000}}), tmp_path / "same")
    run(tiny({**rounds, "train.schedule": {"name": "cosine", "by": "step"}}), tmp_path / "cosine")
    assert lines(tmp_path / "same") == lines(tmp_path / "plain") != lines(tmp_path / "cosine")


@pytest.mark.parametrize("strategy", ["scaffold", "fednova"])
def test_methods_whose_formula_needs_one_rate_refuse_a_schedule_by_step(strategy: str, tiny: Make) -> None:
    with pytest.raises(InputError, match="train.schedule: .* needs one learning rate in a round; set by = 'round'"):
        make_setup(tiny({"strategy": strategy, "train.schedule": {"name": "cosine", "by": "step"}})).check()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"name": "constant"}, "without warmup changes nothing"),
        ({"name": "step"}, "every belongs to name = 'step', which needs it"),
        ({"name": "cosine", "factor": 0.5}, "factor belongs to name = 'step'"),
        ({"name": "cosine", "by": "step", "rounds": 3}, "rounds belongs to by = 'round'"),
        ({"name": "linear"}, "train.schedule.name"),
    ],
)
def test_a_schedule_without_sense_is_refused(schedule: dict[str, Any], message: str, tiny: Make) -> None:
    with pytest.raises(InputError, match=message):
        tiny({"train.schedule": schedule})


def test_wrong_optimisers_are_refused_before_anything_runs(tiny: Make, tmp_path: Path) -> None:
    for optimizer, message in (
        ({"name": "rmspop", "lr": 0.1}, "did you mean 'rmsprop'"),
        ({"name": "rmsprop"}, "train.optimizer"),
        ("adam", "train.optimizer"),
    ):
        with pytest.raises(InputError, match=message):
            run(tiny({"train": {"optimizer": optimizer}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_optimiser_of_torch_trains_one_at_a_time_and_the_same_with_any_engine(tiny: Make, tmp_path: Path) -> None:
    changes = {"rounds": 2, "train": {"optimizer": {"name": "rmsprop", "lr": 0.001}}}
    run(tiny(changes), tmp_path / "inline")
    run(tiny({**changes, "engine": "vectorised"}), tmp_path / "vectorised")
    both = [lines(tmp_path / name) for name in ("inline", "vectorised")]
    assert [line["metrics"] for line in both[0]] == [line["metrics"] for line in both[1]]
    assert any("its optimiser, rmsprop with these options, is torch's own" in str(line["events"]) for line in both[1])
    assert read_config(tmp_path / "inline/config.toml").train.optimizer.name == "rmsprop"
