"""What is promised of every strategy, by `fedkd.testing.check_strategy`: ours, Flower's, and the one of `fedkd new`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedkd import InputError, RunError, testing
from fedkd.cli import app
from fedkd.config import Config
from fedkd.registry import names

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.usefixtures("cluster")]

CONVNET = {"model": {"name": "convnet", "channels": [4]}}
FTG = {"iterations": 1, "batch_size": 8, "noise": 4, "generator_width": 2, "student_steps": 1}
SSL = {"width": 8, "probe_epochs": 1}
VIRTUAL = {"ipc": 1, "initial_steps": 1, "real_batch": 4}
PUBLIC = {"subset_size": 10}

SMALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # by strategy: what keeps it fast, in config and options
    "comet": ({}, PUBLIC),
    "dsfl": ({}, PUBLIC),
    "knfu": ({}, PUBLIC),
    "fedmd": ({}, {**PUBLIC, "public_epochs": 1, "private_epochs": 1}),
    "ktpfl": ({}, PUBLIC),
    "feddf": ({}, {"steps": 4, "check_every": 2}),
    "fedftg": ({}, FTG),
    "weight_ema": ({}, {"base": {"name": "scaffold"}}),
    "fedgen": ({}, {"generator_steps": 2, "noise": 4, "hidden": 8}),
    "fedlgd": (CONVNET, {**VIRTUAL, "server_ipc": 1, "local_steps": 1, "global_steps": 1, "gap": 1}),
    "fedavg_virtual": (CONVNET, VIRTUAL),
    "vhl": (CONVNET, {"noise_per_class": 2, "generator_width": 4}),
    "fedx": (CONVNET, {"base": {"name": "simclr", **SSL}}),
    "byol": (CONVNET, SSL),
    "fedu": (CONVNET, SSL),
    "moco": (CONVNET, {**SSL, "queue": 16}),
    "protocl": (CONVNET, {**SSL, "queue": 16, "clusters": [2]}),
    "simclr": (CONVNET, SSL),
    "flwr.serverapp.strategy:FedAdam": ({}, {}),
}


ALL = [*names("strategies"), "flwr.serverapp.strategy:FedAdam"]


@pytest.mark.parametrize("name", ALL)
def test_a_strategy_keeps_all_promises(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "WORKERS", 1)  # half the time; the slow test below has two
    changes, hyper_parameters = SMALL.get(name, ({}, {}))
    testing.check_strategy(name, changes, **hyper_parameters)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_two_workers_give_the_same_bytes_too(name: str, tmp_path: Path) -> None:
    changes, hyper_parameters = SMALL.get(name, ({}, {}))
    strategy = {"name": name, **hyper_parameters}
    testing.same_bytes_on_ray(testing.tiny_config({**changes, "strategy": strategy}), tmp_path)


def test_what_fedkd_new_writes_keeps_all_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["new", "strategy", "FedMine"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["check", "fed_mine.py:FedMine", "--set", "strategy.pull=0.5"])
    assert result.exit_code == 0, result.output
    assert result.output.count("ok: ") == 8
    assert CliRunner().invoke(app, ["new", "strategy", "FedMine"]).exit_code == 2  # it is there already
    assert CliRunner().invoke(app, ["new", "strategy", "fed-mine"]).exit_code == 2


def broken(folder: Path, body: str, head: str = "") -> str:
    file = folder / "broken.py"
    file.write_text(
        "from dataclasses import dataclass, field\nfrom typing import ClassVar\nimport os, torch\n"
        "from fedkd import Client, GlobalModelClient, Payload\nfrom fedkd.strategies.fedavg import FedAvg\n"
        f"{head}\n@dataclass(kw_only=True)\nclass Broken(FedAvg):\n{body}\n"
    )
    return f"{file}:Broken"


@pytest.mark.parametrize(
    ("promise", "body", "head"),
    [
        (
            testing.same_bytes_on_ray,
            "    client: ClassVar[type[Client]] = C",
            "class C(GlobalModelClient):\n    def fit(self, request):\n        reply = super().fit(request)\n"
            "        reply.numbers['loss'] = float(os.getpid())\n        return reply",
        ),
        (
            testing.same_bytes_after_resume,
            "    def run_round(self, federation):\n        super().run_round(federation)\n"
            "        seen.append(1)\n        federation.log('seen', len(seen))",
            "seen = []",
        ),
        (
            testing.missing_node,
            "    def run_round(self, federation):\n"
            "        assert len(federation.ask('fit', Payload(weights=self.weights))) == 4",
            "",
        ),
        (
            testing.nan_reply,
            "    total: dict = field(default_factory=dict, init=False)\n    def run_round(self, federation):\n"
            "        super().run_round(federation)\n        self.total['x'] = torch.full((1,), float('nan'))",
            "",
        ),
        (
            testing.node_with_one_sample,
            "    client: ClassVar[type[Client]] = C",
            "class C(GlobalModelClient):\n    def fit(self, request):\n        assert len(self.data.labels) > 1\n"
            "        return super().fit(request)",
        ),
        (
            testing.state_comes_back,
            "    def run_round(self, federation):\n        super().run_round(federation)\n"
            "        self.rounds = federation.number",
            "",
        ),
        (
            testing.bytes_are_counted,
            "    def run_round(self, federation):\n        super().run_round(federation)\n"
            "        federation.record.bytes['up']['weights'] = 0",
            "",
        ),
        (testing.unequal_models, "    equal_models: ClassVar[bool] = False", ""),
    ],
)
def test_a_broken_promise_is_found(
    tmp_path: Path, promise: Callable[[Config, Path], None], body: str, head: str
) -> None:
    config = testing.tiny_config({"strategy": broken(tmp_path, body, head)})
    with pytest.raises((AssertionError, InputError, RunError, RuntimeError)):
        promise(config, tmp_path)


def test_the_fixture_is_the_function(check_strategy: Callable[..., None]) -> None:
    assert check_strategy is testing.check_strategy


def test_all_broken_promises_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "PROMISES", (testing.state_comes_back, testing.unequal_models, testing.missing_node))
    name = broken(tmp_path, "    equal_models: ClassVar[bool] = False\n    def prepare(self, federation): self.x = 1")
    with pytest.raises(AssertionError, match=r"All state is declared.*Round 0 set Broken.x[\s\S]*Unequal models"):
        testing.check_strategy(name)
