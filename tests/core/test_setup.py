"""What cannot run is refused before a run begins."""

from __future__ import annotations

import contextlib
from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers import HOME, Make

from fedkd import InputError
from fedkd.config import parse_config, read_config
from fedkd.core.setup import make_setup
from fedkd.data.federated_data import FederatedData
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


@pytest.mark.parametrize(
    ("batch", "fewest", "one_is_enough", "what"),
    [
        (1, 9, False, "train.batch_size = 1: mlp has batch norm of vectors.*set train.batch_size = 2 or more"),
        (1, 1, False, "train.batch_size = 1: mlp has batch norm of vectors.*set train.batch_size = 2 or more"),
        (2, 1, False, "data.partition: a node has one image: mlp has .*set data.partition.minimum = 2 or more"),
        (2, 2, False, None),
        (1, 1, True, None),
    ],
)
def test_batch_norm_of_vectors_needs_two_images_in_a_batch_and_on_a_node(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, batch: int, fewest: int, one_is_enough: bool, what: str | None
) -> None:
    setup = make_setup(tiny({"train.batch_size": batch}))
    monkeypatch.setattr("fedkd.core.setup.takes_one_sample", lambda model, shape: one_is_enough)
    monkeypatch.setattr(FederatedData, "fewest_images", lambda self: fewest)
    with pytest.raises(InputError, match=what) if what else contextlib.nullcontext():
        setup.check()


def test_as_many_nodes_and_replies_as_there_are_can_be_asked_for(tiny: Make) -> None:
    for changes in ({"cohort": 6, "min_replies": 6}, {"min_replies": 6}, {"cohort": 1, "min_replies": 1}):
        make_setup(tiny(changes)).check()
    with pytest.raises(InputError, match="min_replies = 7: a round asks only 6 nodes"):
        make_setup(tiny({"min_replies": 7})).check()
    make_setup(tiny({"model": {"names": ["mlp", "mlp"]}})).check()  # equal, though named twice


def test_images_of_sites_cannot_be_pooled(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, sites, pooled in (("central", False, 1), ("fedavg", False, 0), ("fedavg", True, 0), ("central", True, 0)):
        setup = make_setup(tiny({"strategy": name}))
        together = Mock()
        monkeypatch.setattr(FederatedData, "pooled", together)
        data = setup.environment.config.data.model_copy(update={"sites": object() if sites else None})
        setup.environment.config = setup.environment.config.model_copy(update={"data": data})
        refused = pytest.raises(InputError, match="data.sites: central needs the sites' images")
        with refused if name == "central" and sites else contextlib.nullcontext():
            setup.check()
        assert together.call_count == pooled


def test_a_setup_is_on_the_cpu_by_default_and_has_all_options(tiny: Make) -> None:
    setup = make_setup(tiny({"strategy": {"name": "fedprox", "mu": 0.5}}))
    assert setup.environment.device.type == "cpu"
    assert setup.environment.config.strategy.options == {
        "weighting": "examples", "partial": "keep", "mu": 0.5, "official_quirks": False,
    }  # fmt: skip
