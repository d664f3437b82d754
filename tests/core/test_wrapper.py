"""Strategies by name: wrong options and bases are refused by key."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from helpers import Make
from helpers.bases import FLOWER

from fedkd import Environment, NamedTable, Round, Strategy, Wrapper
from fedkd.config import Config
from fedkd.core.setup import make_setup
from fedkd.core.wrapper import make_strategy
from fedkd.errors import InputError
from fedkd.strategies.central import Central
from fedkd.strategies.fedavg import FedAvg


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
    assert config.strategy.options["base"] == {
        "name": "fedprox", "weighting": "examples", "partial": "keep", "mu": 0.01, "official_quirks": False,
    }  # fmt: skip


def test_options_that_are_not_set_are_not_written(tiny: Make) -> None:
    strategy, table = make_strategy(tiny({"strategy": {"name": "knfu", "beta": 2.0}}).strategy)
    assert strategy.k is None  # type: ignore[attr-defined]
    assert "k" not in table.options
    assert (table.options["beta"], table.options["include_self"]) == (2.0, True)
    table = make_strategy(tiny({"strategy": f"{FLOWER}FedAdam"}).strategy)[1]
    assert table.options == {}


def test_a_strategy_of_flowers_knows_its_key(tiny: Make) -> None:
    table = tiny({"strategy": f"{FLOWER}FedAdam"}).strategy
    assert [make_strategy(table, *key)[0].key for key in ((), ("strategy.base",))] == [  # type: ignore[attr-defined]
        "strategy",
        "strategy.base",
    ]


def test_only_the_key_of_an_error_is_changed(tiny: Make) -> None:
    deep = {"name": "weight_ema", "base": {"name": "fedftg", "base": {"name": "strategy.base"}}}
    with pytest.raises(InputError, match=r"^strategy\.base\.base\.name: unknown 'strategy\.base'"):
        make_strategy(tiny({"strategy": deep}).strategy)


class Base(FedAvg):
    def measure(self, federation: Round) -> dict[str, float]:
        return {"own/gain": 1.0}


class Outer(Wrapper):
    def __init__(self, inner: Strategy) -> None:
        self.inner = inner

    def global_models(self) -> Any:
        return [(0, {})]


class Inner(Outer):
    """Another wrapper, which measures nothing of its own."""


class Measuring(Outer):
    def measure(self, federation: Round) -> dict[str, float]:
        return {"mine/gain": 2.0}


def test_the_metrics_are_the_bases_own_or_those_of_the_models() -> None:
    data = SimpleNamespace(test=SimpleNamespace(labels=[0]))
    environment = SimpleNamespace(data=data, score=lambda *_: {"loss": 3}, on_global_test=True)
    federation = cast(Round, SimpleNamespace(environment=environment))
    found = [
        Wrapper.measure(method, federation)
        for method in (
            Outer(Base()), Outer(Inner(Base())), Outer(FedAvg()), Outer(Inner(FedAvg())), Outer(Measuring(FedAvg())),
        )
    ]  # fmt: skip
    own, models = {"own/gain": 1.0}, {"global/loss": 3.0}
    assert found == [own, own, models, models, {"mine/gain": 2.0}]


def test_a_base_on_the_server_needs_the_images_of_the_sites() -> None:
    def check(inner: Strategy, sites: object) -> None:
        config = SimpleNamespace(data=SimpleNamespace(sites=sites), strategy=SimpleNamespace(name="outer"))
        method = Outer(inner)
        method.base = NamedTable(name="mine")
        method.check(cast(Environment, SimpleNamespace(config=config)))

    for sites in (None, "sites"):
        check(FedAvg(), sites)
    with pytest.raises(InputError, match="strategy.base.name = 'mine': the base of outer must be a method"):
        check(Central(), None)
    with pytest.raises(InputError, match="data.sites: mine needs the sites' images, which the server lacks"):
        check(Central(), "sites")
    with pytest.raises(InputError, match=r"^strategy\.base\.name: one Outer wraps another"):
        check(Outer(FedAvg()), None)


def test_a_wrapper_averages_equal_models_and_its_base_is_no_option() -> None:
    about = {field.name: (field.init, field.repr) for field in dataclasses.fields(Wrapper)}
    assert about["base"] == (True, True)
    assert about["inner"] == (False, False)
    assert (Wrapper.equal_models, Wrapper.global_model, Wrapper.classifies) == (True, True, True)
