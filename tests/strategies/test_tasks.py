"""Which strategies serve several labels and targets, and which follow `[train]`'s options on classes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers import HOME, lines

from fedkd import Client, GlobalModelClient
from fedkd.cli.tables import print_partition
from fedkd.config import parse_config
from fedkd.core.setup import make_setup
from fedkd.data.federation import federate
from fedkd.errors import InputError, RunError
from fedkd.registry import find, names
from fedkd.runs.run import run
from fedkd.strategies.fedavg import FedAvg

MORE: dict[str, dict[str, Any]] = {"dsfl": {"aggregation": "mean"}, "feddf": {"steps": 4, "check_every": 2}}
TASKS = ("multilabel", "regression")


@pytest.fixture(scope="module", params=TASKS)
def table(request: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return `[data]` of a set with labels that depend on its inputs."""
    folder, draw = tmp_path_factory.mktemp("set"), np.random.default_rng(0)
    x = draw.normal(size=(300, 6))
    y = 1000 + 50 * x @ draw.normal(size=(6, 3))
    y = (y > [1000, 1050, 980]).astype(np.int64) if request.param == "multilabel" else y[:, :2]
    arrays = {"x_train": x[:240], "y_train": y[:240], "x_test": x[240:], "y_test": y[240:], "kind": np.array("table")}
    np.savez(folder / "set.npz", **arrays)
    partition = {"scheme": "iid", "clients": 3}
    data = {"file": str(folder / "set.npz"), "task": request.param, "partition": partition, "node_test": 20}
    return {**data, "public": {"size": 30}, "validation": {"size": 30}}


def config_of(data: dict[str, Any], strategy: str, **changes: Any) -> dict[str, Any]:
    sgd = {"name": "sgd", "lr": 0.05}
    return {
        "rounds": 2, "data": data, "model": {"name": "mlp", "hidden": [16]},
        "train": {"optimizer": sgd, "epochs": 2, "batch_size": 16},
        "strategy": {"name": strategy, **MORE.get(strategy, {})}, "evaluate": {"every": 2}, **changes,
    }  # fmt: skip


def test_the_table_of_the_docs_is_what_the_strategies_say() -> None:
    text = (HOME / "docs" / "data.md").read_text()
    found: dict[str, tuple[bool, ...]] = {}
    for row in re.findall(r"^\| (`.*`) \| (yes|no) \| (yes|no) \| (yes|no) \|$", text, re.M):
        found |= dict.fromkeys(re.findall(r"`(\w+)`", row[0]), tuple(said == "yes" for said in row[1:]))
    wanted = {}
    for name in names("strategies"):
        strategy = find("strategies", name, "x")
        wanted[name] = (*(task in strategy.tasks for task in TASKS), strategy.balances)
    assert found == wanted


SERVING = [name for name in names("strategies") if "regression" in find("strategies", name, "x").tasks]


@pytest.mark.parametrize("name", SERVING)
def test_a_run_of_each_task_learns(name: str, table: dict[str, Any], tmp_path: Path) -> None:
    summary = run(parse_config(config_of(table, name)), tmp_path / "run")
    rounds = lines(tmp_path / "run")
    assert (summary["status"], [line["failures"] for line in rounds]) == ("completed", [[]] * 3)
    first, last = rounds[0]["metrics"], rounds[-1]["metrics"]
    assert last["personal/loss"] < first["personal/loss"]
    regression = table["task"] == "regression"
    kept = {"loss", "mse", "mae"} if regression else {"loss", "macro_f1"}
    assert {metric.removeprefix("personal/") for metric in last if metric.startswith("personal/")} == kept
    scopes = {metric.partition("/")[0] for metric in last} - {"personal", "personal_after_fit"}
    for scope in scopes & {"global", "latest"}:
        own = {metric.partition("/")[2] for metric in last if metric.startswith(f"{scope}/")}
        assert own == (kept | {"r2"} if regression else kept)


def test_feddf_keeps_the_best_model_on_one_validation_sample(table: dict[str, Any], tmp_path: Path) -> None:
    """One sample has no r2; the error decides, and smaller is better."""
    run(parse_config(config_of({**table, "validation": {"size": 1}}, "feddf")), tmp_path / "run")
    logs = [line["log"] for line in lines(tmp_path / "run")[1:]]
    name = "validation_mae_0" if table["task"] == "regression" else "validation_macro_f1_0"
    assert all(log[name] >= 0 for log in logs)


@pytest.mark.parametrize("name", ["fedavg", "moon", "dsfl", "fedmd", "feddyn"])
def test_engines_agree(name: str, table: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for engine in ({"name": "inline"}, {"name": "vectorised", "clients_per_step": 3}):
        run(parse_config(config_of(table, name, engine=engine)), tmp_path / engine["name"])
        found.append(lines(tmp_path / engine["name"])[-1])
    assert found[0]["metrics"].keys() == found[1]["metrics"].keys()
    assert found[0]["metrics"] == pytest.approx(found[1]["metrics"], rel=2e-3, abs=2e-3)
    assert not any("alone" in event for event in found[1]["events"])


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_ray_gives_the_bytes_of_inline(table: dict[str, Any], tmp_path: Path) -> None:
    for engine in ({"name": "inline"}, {"name": "ray", "workers": 2}):
        run(parse_config(config_of(table, "fedmd", engine=engine)), tmp_path / engine["name"])
    first, second = (
        [{key: value for key, value in line.items() if key != "seconds"} for line in lines(tmp_path / name)]
        for name in ("inline", "ray")
    )
    assert first == second


REFUSED = [name for name in names("strategies") if name not in SERVING]


@pytest.mark.parametrize("name", REFUSED)
def test_other_strategies_refuse_the_task_by_name(name: str, table: dict[str, Any]) -> None:
    strategy = {"fedx": {"base": {"name": "simclr"}}}.get(name, {})
    config = config_of(table, name) | {"strategy": {"name": name, **strategy}}
    with pytest.raises(InputError, match=rf"strategy.name = '{name}' serves classification; data.task is '.*--task"):
        make_setup(parse_config(config)).check()


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"name": "dsfl"}, "strategy.aggregation = 'era' is for classes; data.task is '.*: set 'mean'"),
        ({"name": "fedmd", "digest": "kl"}, "strategy.digest = 'kl' is for classes; .*: set 'mae'"),
        ({"name": "feddf", "drop_worst": True}, "strategy.drop_worst = true: it compares teachers with chance"),
        ({"name": "weight_ema", "base": {"name": "fedntd"}}, "'weight_ema' serves classification"),
    ],
)
def test_options_of_classes_are_refused(strategy: dict[str, Any], message: str, table: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=message):
        make_setup(parse_config(config_of(table, "x") | {"strategy": strategy})).check()


@pytest.mark.parametrize("key", ["class_weights", "sampling"])
def test_classes_are_balanced_only_where_there_are_some(key: str, table: dict[str, Any]) -> None:
    config = config_of(table, "fedavg", train={key: "balanced"})
    with pytest.raises(InputError, match=rf"train.{key} = 'balanced' is for classes; data.task is"):
        make_setup(parse_config(config)).check()


def test_classes_are_balanced_in_one_way() -> None:
    with pytest.raises(InputError, match="class_weights and sampling both balance classes"):
        parse_config(config_of(HEART, "fedavg", train={"class_weights": "balanced", "sampling": "balanced"}))


def test_a_regression_that_diverges_says_so(table: dict[str, Any], tmp_path: Path) -> None:
    train = {"optimizer": {"name": "sgd", "lr": 1e12}, "epochs": 3}
    with pytest.raises(RunError, match="training has diverged"):
        run(parse_config(config_of(table, "local", train=train)), tmp_path / "run")


def test_the_printed_partition_counts_samples_and_not_labels(
    table: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    data = federate(parse_config(config_of(table, "fedavg")).data, 0)
    print_partition(data)
    assert "3 nodes, 180 training rows" in capsys.readouterr().out


HEART = {"name": "heart", "partition": {"scheme": "natural"}}


@pytest.mark.parametrize("name", ["fedntd", "fedproto", "fml", "simclr"])
def test_a_loss_of_its_own_refuses_class_weights(name: str) -> None:
    config = config_of(HEART, name, train={"class_weights": "balanced"}, model={"name": "table_mlp"})
    with pytest.raises(InputError, match=rf"train.class_weights = 'balanced': {name} has a loss of its own"):
        make_setup(parse_config(config)).check()


@pytest.mark.parametrize("key", ["class_weights", "sampling"])
@pytest.mark.parametrize("name", ["fedavg", "moon", "scaffold", "central", "knfu"])
def test_balanced_classes_change_the_training(name: str, key: str, tmp_path: Path) -> None:
    """Few samples of a class: with balance the model predicts it more often, so its recall rises."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(600, 4)), np.arange(600) % 20 == 0
    x[y] += 0.7
    arrays = {"x_train": x[:400], "y_train": y[:400] * 1, "x_test": x[400:], "y_test": y[400:] * 1}
    np.savez(tmp_path / "set.npz", **arrays, kind=np.array("table"))
    data = {"file": str(tmp_path / "set.npz"), "partition": {"scheme": "iid", "clients": 3}, "public": {"size": 20}}
    found = {}
    for value in ({}, {key: "balanced"}):
        config = config_of(data, name)
        config["train"] = {**config["train"], **value}
        run(parse_config(config), tmp_path / f"{bool(value)}")
        found[bool(value)] = lines(tmp_path / f"{bool(value)}")[-1]["metrics"]
    assert found[True]["personal/accuracy"] < found[False]["personal/accuracy"] > 0.93
    assert found[True]["personal/accuracy"] > 0.4


def test_a_client_half_of_its_own_inherits_no_task() -> None:
    class Mine(GlobalModelClient):
        """One with a loss of its own."""

    @dataclass(kw_only=True)
    class FedMine(FedAvg):
        client: ClassVar[type[Client]] = Mine

    @dataclass(kw_only=True)
    class SameClient(FedAvg):
        pass

    assert FedMine.tasks == {"classification"}
    assert not FedMine.balances
    assert SameClient.tasks == FedAvg.tasks
    assert SameClient.balances
