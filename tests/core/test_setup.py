"""What cannot run is refused before a run begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import HOME, Make

from fedkd import InputError
from fedkd.config import parse_config, read_config
from fedkd.core.setup import make_setup
from fedkd.registry import names
from fedkd.runs.run import run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cohort": 7}, "cohort = 7: the federation has only 6 nodes"),
        ({"cohort": 3, "min_replies": 4}, "min_replies = 4: a round asks only 3 nodes"),
        ({"model": {"names": ["mlp", "cnn"]}}, r"model.names = \[mlp, cnn\]: fedavg needs equal models"),
        ({"model": {"name": "lenet5"}}, "cannot be built for images of 1x8x8"),
        ({"model": {"names": ["mlp", "clm"]}, "strategy.name": "local"}, "model.names.1: unknown 'clm'"),
        ({"strategy.name": "fedmd"}, "fedmd needs a public set: set data.public"),
        (
            {"strategy": {"name": "knfu", "subset_size": 500}, "data.public": {"size": 300}},
            "subset_size = 500: data.public.size is only 300",
        ),
        (
            {"strategy": {"name": "fedmd", "public_epochs": 10}, "data.public": {"size": 300}},
            "public_epochs = 10: the public set has no labels",
        ),
        ({"strategy.name": "comet"}, "comet needs a public set: set data.public"),
        (
            {"strategy": {"name": "knfu", "public_cross_entropy": 1.0}, "data.public": {"size": 300}},
            "public_cross_entropy = 1.0: the public set has no labels",
        ),
        ({"strategy.name": "feddf"}, "feddf needs a public set"),
        (
            {"strategy": {"name": "feddf", "drop_worst": True}, "data.public": {"size": 300}},
            "drop_worst = true: .*set data.validation",
        ),
        (
            {"strategy.name": "fedproto", "model": {"names": ["mlp", "cnn"]}},
            "fedproto needs features of one width, but they have mlp 200, cnn 512",
        ),
        ({"strategy": {"name": "fml", "meme": {"name": "lenet5"}}}, "strategy = 'lenet5' cannot be built"),
        ({"strategy": {"name": "knfu", "betta": 1.0}, "data.public": {"size": 9}}, "did you mean 'beta'"),
        ({"strategy.name": "feddistill_fl", "model": {"names": ["mlp", "cnn"]}}, "feddistill_fl needs equal models"),
        ({"data.validation": {"size": 5000}}, "data.validation.size = 5000: there are only"),
        (
            {"data.partition": {"scheme": "groups", "clients": 3, "groups": 4, "alpha": 1.0, "size": 9}},
            "groups = 4: there are only 3 clients",
        ),
        (
            {"strategy": {"name": "flwr.serverapp.strategy:FedAvg", "fraction_train": 0.5}},
            "strategy.fraction_train: .* set cohort instead",
        ),
        ({"strategy": {"name": "flwr.serverapp.strategy:FedAvg"}, "cohort": 1}, "min_train_nodes = 2: .*never start"),
        ({"engine": {"name": "rya"}}, "engine.name: unknown 'rya'; did you mean 'ray'"),
        ({"engine": {"name": "inline", "workers": 2}}, "engine.workers: unknown key 'workers'"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    tiny: Make, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(tiny(changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", names("strategies"))
def test_the_defaults_of_each_strategy_run_with_the_defaults_of_all_else(name: str) -> None:
    """`fedkd sweep --vary strategy=...` over a plain config with an unlabelled public set."""
    partition = {"scheme": "dirichlet", "clients": 6, "alpha": 0.5}
    plain = {"data": {"name": "digits", "partition": partition, "public": {"size": 300}}, "model": "cnn"}
    make_setup(parse_config({**plain, "strategy": name})).check()


def test_all_strategies_of_different_models_run_on_the_quick_config() -> None:
    """FedProto is left out: it needs features of one width."""
    for name in ("comet", "dsfl", "fd", "feddf", "feddistill", "fedmd", "fml", "knfu", "ktpfl", "local"):
        make_setup(read_config(HOME / "configs/knfu/quick.toml", [f"strategy={name}"])).check()
