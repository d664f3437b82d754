"""Strategies by name: wrong options and bases are refused by key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from helpers import Make
from helpers.bases import FLOWER

from fedkd.config import Config
from fedkd.core.setup import make_setup
from fedkd.core.wrapper import make_strategy
from fedkd.errors import InputError


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"name": "fedagv"}, "strategy.name: unknown 'fedagv'; did you mean 'fedavg'"),
        ({"name": "fedprox", "nu": 0.1}, "strategy.nu: unknown key 'nu'; did you mean 'mu'"),
        ({"name": "fedprox", "mu": -1.0}, "strategy.mu = -1.0: .*greater than or equal to 0"),
        ({"name": "fedmd", "digest": "mea"}, "strategy.digest = 'mea': .*'mae' or 'kl'"),
        ({"name": "flwr.serverapp.strategy:FedAdm"}, "has no 'FedAdm'"),
        ({"name": "flwr.serverapp.strategy:FedAdam", "etta": 1.0}, "did you mean 'eta'"),
        ({"name": "no.such.module:X"}, "cannot import 'no.such.module'"),
        ({"name": "no_such_file.py:X"}, "there is no file .*no_such_file.py"),
        ({"name": "fedkd.messages.payload:Payload"}, "is not a Strategy"),
    ],
)
def test_wrong_strategies_are_refused_by_key(tiny: Callable[..., Config], strategy: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_strategy(tiny({"strategy": strategy}).strategy)


def test_wrong_bases_and_options_are_refused_by_name(tiny: Make) -> None:
    def refuse(strategy: dict[str, Any], message: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=message):
            make_setup(tiny({"strategy": strategy, **changes})).check()

    refuse(
        {"name": "fedftg", "base": {"name": "scafold"}},
        r"strategy.base.name: unknown 'scafold'; did you mean 'scaffold'",
    )
    refuse({"name": "fedftg", "base": {"name": "fedprox", "nu": 1.0}}, "strategy.base.nu: unknown key 'nu'")
    for name in ("knfu", "central", "local", "fedproto", "dsfl", "feddf"):
        changes = {"data.public": {"size": 60}}
        refuse(
            {"name": "fedftg", "base": name},
            rf"strategy.base.name = '{name}': the base of fedftg must be a method",
            **changes,
        )
    refuse({"name": "fedftg", "batch_size": 1}, "strategy.batch_size = 1")
    refuse({"name": "weight_ema", "decay": 1.0}, "strategy.decay = 1.0")
    refuse({"name": "fedftg", "base": {"name": "fedftg"}}, "strategy.base.name: one FedFTG wraps another")
    refuse({"name": "weight_ema", "base": {"name": "weight_ema"}}, "one WeightEMA wraps another")
    refuse({"name": "fedftg", "base": {"name": "weight_ema"}}, "swap the two")
    deep = {"name": "weight_ema", "base": {"name": "fedftg", "base": {"name": "fedporx"}}}
    refuse(deep, "strategy.base.base.name: unknown 'fedporx'; did you mean 'fedprox'")
    refuse(
        {"name": "fedftg", "base": {"name": f"{FLOWER}FedAvg", "fraction_train": 0.5}}, "strategy.base.fraction_train"
    )
    adamw = {"train.optimizer": {"name": "adamw"}}
    for name in ("fedprox", "feddyn"):
        refuse({"name": name, "official_quirks": True}, "strategy.official_quirks", **adamw)
    adam = {"train.optimizer": {"name": "adam"}}
    refuse({"name": "scaffold"}, "train.optimizer: scaffold", **adam)
    refuse({"name": "fedftg", "base": "scaffold"}, "train.optimizer: scaffold", **adam)
    refuse({"name": "fednova"}, "train.optimizer: fednova", **adam)
    config = make_setup(tiny({"strategy": {"name": "fedftg", "base": "fedprox"}})).environment.config
    assert config.strategy.options["base"] == {"name": "fedprox", "mu": 0.01, "official_quirks": False}
