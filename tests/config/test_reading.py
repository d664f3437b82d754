"""Run files: every wrong key is named, with the nearest valid one; what is resolved can be read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers import TINY, merged

from fedkd.config import Config, parse_config, read_config, to_table
from fedkd.core.setup import make_setup
from fedkd.errors import InputError, unknown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sede": 1}, r"sede: unknown key 'sede'; did you mean 'seed'\?"),
        ({"strategis": {}}, "strategis: unknown key 'strategis'; did you mean 'strategies'"),
        ({"data.nam": "x"}, "data.nam: unknown key 'nam'; did you mean 'name'"),
        ({"data.public": {"siez": 3, "size": 3}}, "data.public.siez: unknown key 'siez'; did you mean 'size'"),
        ({"rounds": "5"}, "rounds = '5': .*integer"),
        ({"rounds": 0}, "rounds = 0: .*greater than or equal to 1"),
        ({"seed": -1}, "seed = -1"),
        ({"train.optimizer": {"name": "sgd", "lr": 0}}, "train.optimizer.lr = 0: .*greater than 0"),
        ({"evaluate.fraction": 1.5}, "evaluate.fraction = 1.5"),
        ({"data.names": ["digits"]}, "set either name .* names .* or sites"),
        ({"model.names": ["mlp", "cnn"]}, "set either name .* or names"),
        ({"strategy": None}, "strategy: is missing"),
        ({"data.partition": None}, "data = .* partition is missing"),
        ({"data.channels": 2}, "data.channels = 2"),
    ],
)
def test_wrong_configs_are_refused_by_key(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_config(merged(TINY, changes))


def test_what_was_typed_is_never_proposed() -> None:
    with pytest.raises(InputError) as refused:
        parse_config(merged(TINY, {"train.seed": 1}))  # another table has it
    text = str(refused.value)
    assert "train.seed: unknown key 'seed'" in text
    assert "did you mean 'seed'" not in text
    assert "did you mean" not in str(unknown("key", "lr", ["lr", "name"]))


def test_overrides_change_one_key(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(TINY))
    config = read_config(
        path, ["strategy=fedprox", "strategy.mu=0.5", "rounds=7", "data.partition.alpha=0.1", "model=cnn"]
    )
    assert (config.strategy.name, config.strategy.options) == ("fedprox", {"mu": 0.5})
    assert config.rounds == 7
    assert config.data.partition.model_extra == {"clients": 6, "alpha": 0.1, "size": 24}
    assert config.model.architectures[0].name == "cnn"
    for wrong in ("rounds", "=3", "a..b=1", "rounds.x=1"):
        with pytest.raises(InputError, match="--set"):
            read_config(path, [wrong])


TABLES = {
    "strategy": {"name": "fedprox", "mu": 0.3},
    "strategies": {"fedmd": {"private_epochs": 3, "digest": "kl"}, "fedftg": {"base": {"name": "fedprox", "mu": 0.7}}},
}


@pytest.mark.parametrize(
    ("overrides", "strategy"),
    [
        ([], {"name": "fedprox", "mu": 0.3}),
        (["strategy=fedprox"], {"name": "fedprox", "mu": 0.3}),
        (["strategy=fedmd"], {"name": "fedmd", "private_epochs": 3, "digest": "kl"}),
        (["strategy.name=fedmd"], {"name": "fedmd", "private_epochs": 3, "digest": "kl"}),
        (["strategy={name='fedmd',digest='mae'}"], {"name": "fedmd", "private_epochs": 3, "digest": "mae"}),
        (["strategy.digest=mae", "strategy=fedmd"], {"name": "fedmd", "private_epochs": 3, "digest": "mae"}),
        (
            ["strategies.fedmd.private_epochs=4", "strategy=fedmd"],
            {"name": "fedmd", "private_epochs": 4, "digest": "kl"},
        ),
        (["strategy=fedftg", "strategy.base.mu=0.1"], {"name": "fedftg", "base": {"name": "fedprox", "mu": 0.1}}),
        (["strategy=local"], {"name": "local"}),
        (["strategy={name='fedprox',mu=0.5}"], {"name": "fedprox", "mu": 0.5}),
    ],
)
def test_the_chosen_strategy_has_the_options_of_its_table(
    tmp_path: Path, overrides: list[str], strategy: dict[str, Any]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(merged(TINY, TABLES)))
    table = to_table(read_config(path, overrides))
    assert table["strategy"] == strategy
    assert "strategies" not in table


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"fedmdd": {}}, r"strategies: unknown 'fedmdd'; did you mean 'fedmd'\?"),
        ({"fedmd": {"digst": "kl"}}, r"strategies.fedmd.digst: unknown key 'digst'; did you mean 'digest'\?"),
        ({"fedmd": {"private_epochs": -1}}, r"strategies.fedmd.private_epochs = -1: .*greater than or equal to 0"),
        ({"fedmd": 3}, r"strategies.fedmd = 3: write a table of the options of fedmd"),
        ("fedmd", r"strategies = 'fedmd': write a table for each strategy, such as \[strategies.fedmd\]"),
    ],
)
def test_options_of_strategies_that_are_not_chosen_are_checked_too(tables: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_config({**TINY, "strategies": tables})


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("rounds = = 3")
    with pytest.raises(InputError, match="not a TOML file"):
        read_config(tmp_path / "bad.toml")
    with pytest.raises(InputError, match="There is no config"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "strategy", ["fedavg", "fedprox", "fedmd", "local", "central", "flwr.serverapp.strategy:FedAdam"]
)
def test_the_resolved_config_is_complete_and_reads_back(tiny: Callable[..., Config], strategy: str) -> None:
    resolved = make_setup(tiny({"strategy": {"name": strategy}, "data.public": {"size": 100}})).environment.config
    table = to_table(resolved)
    assert parse_config(table) == resolved
    assert table["train"]["epochs"] == 1
    if strategy == "fedprox":
        mean = {"weighting": "examples", "partial": "keep"}
        assert table["strategy"] == {"name": "fedprox", "mu": 0.01, "official_quirks": False, **mean}
