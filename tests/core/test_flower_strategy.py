"""Flower's own strategies from a config, with the generic client."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg as FlowerAvg
from helpers import Make, checkpoint_bytes, lines, server_state

from fedkd import InputError, RunError, Strategy
from fedkd.core.flower_strategy import FlowerStrategy, _arrays_of, is_flower_strategy
from fedkd.core.round_loop import run_rounds
from fedkd.core.setup import make_setup
from fedkd.runs.run import make_engine, resume, run

FLOWER = "flwr.serverapp.strategy:"


def values(kept: list | dict) -> list:
    return list(kept.values()) if isinstance(kept, dict) else kept


def test_flowers_fedavg_is_our_fedavg(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"cohort": 4}), tmp_path / "ours")
    run(tiny({"cohort": 4, "strategy": {"name": f"{FLOWER}FedAvg"}}), tmp_path / "flowers")
    ours, theirs = (server_state(tmp_path / name) for name in ("ours", "flowers"))
    for name, tensor in ours["weights"].items():
        torch.testing.assert_close(theirs["weights"][name], tensor, atol=1e-6, rtol=1e-5)
    for a, b in zip(lines(tmp_path / "ours"), lines(tmp_path / "flowers"), strict=True):
        assert a["cohort"] == b["cohort"]
        assert a["metrics"].keys() == b["metrics"].keys()
        assert a["bytes"]["up"].get("weights") == b["bytes"]["up"].get("weights")


def test_krum_takes_one_clients_model(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"rounds": 1, "strategy": {"name": f"{FLOWER}Krum", "num_malicious_nodes": 1}}), tmp_path / "krum")
    run(tiny({"rounds": 1, "strategy": {"name": f"{FLOWER}FedAvg"}}), tmp_path / "mean")
    krum, mean = (server_state(tmp_path / name)["weights"] for name in ("krum", "mean"))
    assert not all(torch.allclose(krum[name], mean[name]) for name in krum)
    assert lines(tmp_path / "krum")[-1]["failures"] == []


@pytest.mark.parametrize(
    ("name", "options"),
    [("FedAdam", {"eta": 0.02, "beta_1": 0.9, "beta_2": 0.99}), ("FedAvgM", {"server_momentum": 0.9})],
)
def test_moments_survive_a_restart(tiny: Make, tmp_path: Path, name: str, options: dict) -> None:
    strategy = {"name": f"{FLOWER}{name}", **options}
    changes = {"strategy": strategy, "rounds": 5, "checkpoint": {"every": 3, "keep": 9}}
    run(tiny(changes), tmp_path / "whole")
    run(tiny(changes), tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "round-000005")
    resume(tmp_path / "cut")
    assert checkpoint_bytes(tmp_path / "cut") == checkpoint_bytes(tmp_path / "whole")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    state = server_state(tmp_path / "whole")
    assert any(np.abs(array).sum() > 0 for kept in state["kept"].values() for array in values(kept))


def test_batch_norms_counters_stay_integers(tiny: Make, tmp_path: Path) -> None:
    strategy = {"name": f"{FLOWER}FedAvg"}
    run(tiny({"strategy": strategy, "model": {"name": "resnet8"}, "rounds": 1}), tmp_path / "run")
    state = server_state(tmp_path / "run")["weights"]
    counters = {key: value for key, value in state.items() if key.endswith("num_batches_tracked")}
    assert counters
    assert {value.dtype for value in counters.values()} == {torch.int64}
    assert {value.item() for value in counters.values()} == {3}


def test_a_strategy_of_flowers_is_none_of_ours() -> None:
    class Both(FlowerAvg, Strategy):  # type: ignore[misc]
        pass

    found = [is_flower_strategy(one) for one in (FlowerAvg, Both, Strategy, int, FlowerAvg(), 3)]
    assert found == [True, False, False, False, False, False]


def strategy_of(**base: object) -> FlowerStrategy:
    return FlowerStrategy(base=cast(FlowerAvg, SimpleNamespace(**base)), name="Mine")


@pytest.mark.parametrize("cohort", [None, 3])
def test_options_that_fit_the_cohort_are_taken(tiny: Make, cohort: int | None) -> None:
    environment, most = make_setup(tiny({"cohort": cohort} if cohort else {})).environment, cohort or 6
    strategy_of().check(environment)
    strategy_of(fraction_train=1.0, min_train_nodes=most, min_available_nodes=most).check(environment)
    for option in ("min_train_nodes", "min_available_nodes"):
        reason = f"^strategy.{option} = {most + 1}: Mine would never start, a round has {most} nodes"
        with pytest.raises(InputError, match=reason):
            strategy_of(**{option: most + 1}).check(environment)
    with pytest.raises(InputError, match="^strategy.fraction_train: fedkd samples the nodes"):
        strategy_of(fraction_train=0.5).check(environment)


def test_it_averages_equal_models_and_what_it_keeps_is_no_option() -> None:
    assert (FlowerStrategy.equal_models, FlowerStrategy.global_model) == (True, True)
    about = {one.name: one.init for one in dataclasses.fields(FlowerStrategy)}
    assert {name for name, init in about.items() if init} == {"base", "name", "key"}


def test_what_flowers_strategies_keep_are_lists_and_dicts_of_arrays() -> None:
    held = {"a": [np.ones(2), np.float64(1)], "b": {"x": np.zeros(1)}}
    other = {"c": [], "d": {}, "e": [1.0], "f": [np.ones(1), 1.0], "g": 3, "h": "text", "i": None}
    assert _arrays_of(cast(FlowerAvg, SimpleNamespace(**held, **other))) == held


def test_the_statistics_of_batch_norm_are_means_and_take_no_step_of_the_server(tiny: Make) -> None:
    model = {"name": "convnet", "channels": [4], "norm": "batch"}
    found: list[dict[str, torch.Tensor]] = []
    for strategy in ("fedavg", {"name": f"{FLOWER}FedAdam", "eta": 0.5}):
        setup = make_setup(tiny({"model": model, "strategy": strategy, "rounds": 1, "evaluate.every": 9}))
        with make_engine(setup) as engine:
            run_rounds(setup, engine)
        assert setup.strategy.weights is not None
        found.append(setup.strategy.weights)
    mean, stepped = found
    assert mean.keys() == stepped.keys()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(stepped[f"features.1.{name}"], mean[f"features.1.{name}"])
    assert not torch.allclose(stepped["classifier.weight"], mean["classifier.weight"])


def test_a_strategy_without_a_model_or_with_an_error_ends_the_run_by_name(tiny: Make) -> None:
    setup = make_setup(tiny({"strategy": f"{FLOWER}FedAvg", "rounds": 1}))
    strategy = setup.strategy
    assert isinstance(strategy, FlowerStrategy)
    for aggregate, reason in (
        (Mock(return_value=(None, None)), "FedAvg returned no model for 6 replies"),
        (Mock(side_effect=KeyError("x")), "FedAvg raised KeyError: 'x'; fedkd gives it one model"),
    ):
        strategy.base.aggregate_train = aggregate  # type: ignore[method-assign]
        with make_engine(setup) as engine, pytest.raises(RunError, match=f"^Round 1: .*{reason}"):
            run_rounds(setup, engine)
