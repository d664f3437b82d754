"""The vectorised engine: the inline engine's results up to rounding, and what it cannot stack runs one by one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Make, checkpoint_bytes, lines, server_state
from helpers.bases import SMALL
from helpers.self_supervised import SELF_SUPERVISED, SSL
from helpers.virtual_images import LGD
from helpers.virtual_images import NET as LGD_NET

from fedkd.config import read_config
from fedkd.errors import InputError
from fedkd.learning.stacked_graphs import StepGraphs
from fedkd.learning.stacked_training import train_stacked
from fedkd.runs.run import resume, run
from fedkd.simulations import kinds, stacking

VECTORISED = {"name": "vectorised", "clients_per_step": 3}
NET = {"name": "convnet", "channels": [6], "norm": "batch"}
BASE: dict[str, Any] = {"model": NET, "rounds": 2, "cohort": 5, "data.partition": {
    "scheme": "dirichlet", "clients": 6, "alpha": 1.0, "minimum": 10}, "data.train_per_class": 20}  # fmt: skip
PUBLIC = {"data.public": {"size": 30}}
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {}, "fedprox": {}, "moon": {}, "scaffold": {}, "feddyn": {}, "fednova": {}, "fedntd": {}, "fedproto": {},
    "fedmd": {**PUBLIC, "strategy.private_epochs": 1}, "dsfl": PUBLIC, "knfu": PUBLIC,
    "fedgen": {"strategy": {"name": "fedgen", "generator_steps": 5, "generated_batch_size": 6}},
    "fedftg": {"strategy": {"name": "fedftg", **SMALL}},
}  # fmt: skip


def _changes(method: str) -> dict[str, Any]:
    return BASE | {"strategy": {"name": method}} | METHODS[method]


def _apart(one: Path, other: Path) -> float:
    """Return the largest difference of a metric in a line of two runs' metrics.jsonl."""
    worst = 0.0
    for first, second in zip(lines(one), lines(other), strict=True):
        assert first["metrics"].keys() == second["metrics"].keys()
        assert first["failures"] == second["failures"] == []
        assert first["bytes"] == second["bytes"]
        worst = max([worst, *(abs(v - second["metrics"][k]) for k, v in first["metrics"].items() if "loss" in k)])
    return worst


def tensors_of(state: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a server's state, also of what it wraps, by name."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    parts = state.items() if isinstance(state, dict) else ()
    return {n: tensor for part, one in parts for n, tensor in tensors_of(one, f"{name}/{part}").items()}


FEW = ("fedavg", "scaffold", "moon", "fedgen", "knfu")  # of each kind of loss; the others are in the slow tests


@pytest.mark.parametrize(
    "method", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_results_are_those_of_one_client_at_a_time_up_to_rounding(tiny: Make, tmp_path: Path, method: str) -> None:
    run(tiny(_changes(method)), tmp_path / "inline")
    run(tiny(_changes(method) | {"engine": VECTORISED}), tmp_path / "stacked")
    most = 2e-2 if method == "fedftg" else 1e-3  # its server's generator makes much of little
    assert _apart(tmp_path / "inline", tmp_path / "stacked") < most
    assert [line["events"] for line in lines(tmp_path / "stacked")] == [[]] * 3  # no client trained alone


VIEWS = {**SSL, "data.train_per_class": 40}
OWN_LOOPS: dict[str, dict[str, Any]] = {
    **{case: {**VIEWS, "strategy": SELF_SUPERVISED[case]} for case in ("simclr", "fedu", "moco", "fedx over simclr")},
    "fedlgd": {"model": LGD_NET, "strategy": {**LGD, "gap": 1, "augment": ["color", "crop", "scale"]}},
    "fedlgd, anchors": {"model": LGD_NET, "strategy": LGD},
    "supcon_only": {"strategy": {"name": "supcon_only"}},
}


QUICK = ("fedx over simclr", "fedlgd", "fedlgd, anchors")  # the others are in the slow tests


@pytest.mark.parametrize("case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in OWN_LOOPS])
def test_own_loops_end_in_the_weights_of_one_client_at_a_time_up_to_rounding(
    tiny: Make, tmp_path: Path, case: str
) -> None:
    """Nodes of 24 images and, with Dirichlet shares, of fewer than a batch."""
    changes = {**BASE, "data.partition": {**BASE["data.partition"], "minimum": 6}, **OWN_LOOPS[case], "rounds": 2}
    changes |= {"train": {"epochs": 1, "batch_size": 12, "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9}}}
    for name, engine in (("inline", {"name": "inline"}), ("stacked", VECTORISED)):
        run(tiny(changes | {"engine": engine}), tmp_path / name)
    inline, stacked = (tensors_of(server_state(tmp_path / name)) for name in ("inline", "stacked"))
    assert inline.keys() == stacked.keys()
    assert 0 < max(float((inline[n].double() - stacked[n].double()).abs().max()) for n in inline) < 1e-3
    for one, other in zip(lines(tmp_path / "inline"), lines(tmp_path / "stacked"), strict=True):
        assert one["metrics"].keys() == other["metrics"].keys()
        assert one["bytes"] == other["bytes"]
        assert other["events"] == other["failures"] == []


def test_protocl_works_one_client_at_a_time_and_says_why(tiny: Make, tmp_path: Path) -> None:
    changes = {**BASE, **VIEWS, "strategy": SELF_SUPERVISED["protocl"], "rounds": 1}
    for name, engine in (("inline", {"name": "inline"}), ("stacked", VECTORISED)):
        run(tiny(changes | {"engine": engine}), tmp_path / name)
    assert checkpoint_bytes(tmp_path / "inline") == checkpoint_bytes(tmp_path / "stacked")
    said = [event["event"] for line in lines(tmp_path / "stacked") for event in line["events"]]
    assert said == [
        "clients work one at a time: before each epoch it clusters what its own key encoder makes of its images"
    ]


def test_a_repeat_and_a_resumed_run_give_the_same_bytes(tiny: Make, tmp_path: Path) -> None:
    changes = _changes("moon") | {"engine": {"name": "vectorised"}, "rounds": 3, "checkpoint": {"every": 1, "keep": 9}}
    run(tiny(changes), tmp_path / "one")
    run(tiny(changes), tmp_path / "two")
    assert checkpoint_bytes(tmp_path / "one") == checkpoint_bytes(tmp_path / "two")
    for kept in sorted((tmp_path / "two" / "checkpoints").iterdir())[-2:]:
        shutil.rmtree(kept)
    resume(tmp_path / "two")
    assert checkpoint_bytes(tmp_path / "one") == checkpoint_bytes(tmp_path / "two")
    assert lines(tmp_path / "one") == lines(tmp_path / "two")
    assert read_config(tmp_path / "one" / "config.toml").engine.options["clients_per_step"] == 5


ODD = """
from dataclasses import dataclass
import torch
from fedkd.strategies.fedavg import FedAvg
from fedkd.core.client import GlobalModelClient

class Client(GlobalModelClient):
    def fit(self, request):
        if self.node == 1 and self.round == 1:
            raise ValueError("before training")
        reply = super().fit(request)
        if self.node == 3 and self.round == 1:
            raise ValueError("after training")
        return reply

@dataclass(kw_only=True)
class Raises(FedAvg):
    client = Client

class Plain(GlobalModelClient):
    def local_loss(self):
        return lambda model, images, labels: torch.nn.functional.cross_entropy(model(images), labels)

@dataclass(kw_only=True)
class Closure(FedAvg):
    client = Plain
"""


def test_a_client_that_raises_fails_alone(tiny: Make, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    changes = _changes("fedavg") | {"strategy": {"name": f"{tmp_path / 'odd.py'}:Raises"}, "cohort": 6}
    for name, engine in (("inline", {"name": "inline"}), ("stacked", VECTORISED)):
        run(tiny(changes | {"engine": engine}), tmp_path / name)
    for one, other in zip(lines(tmp_path / "inline"), lines(tmp_path / "stacked"), strict=True):
        assert one["failures"] == other["failures"]
        assert abs(one["metrics"]["global/loss"] - other["metrics"]["global/loss"]) < 1e-3
    assert [f["node"] for f in lines(tmp_path / "stacked")[1]["failures"]] == [1, 3]


def test_a_loss_that_cannot_be_stacked_trains_one_by_one_and_says_so(tiny: Make, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    changes = _changes("fedavg") | {"strategy": {"name": f"{tmp_path / 'odd.py'}:Closure"}}
    for name, engine in (("inline", {"name": "inline"}), ("stacked", VECTORISED)):
        run(tiny(changes | {"engine": engine}), tmp_path / name)
    assert checkpoint_bytes(tmp_path / "inline") == checkpoint_bytes(tmp_path / "stacked")
    said = [event["event"] for line in lines(tmp_path / "stacked") for event in line["events"]]
    assert said == ["clients work one at a time: its loss is not a ModelLoss"]


STRANGE = """
import copy, sys, torch
from dataclasses import dataclass
from functools import partial
from torch.nn import functional as F
from fedkd import GlobalModelClient, ModelLoss, Payload
from fedkd.strategies.fedavg import FedAvg

class Client(GlobalModelClient):
    def fit(self, request):
        self.load_model(request.weights)
        loss = self.learn()
        return Payload(weights=self.weights(), numbers={"examples": len(self.data.labels), "loss": loss})

def exits(outputs, targets, own, frozen):
    sys.exit(4)

class Exits(Client):
    def learn(self):
        return self.train_locally(ModelLoss(exits)) if self.node in (1, 2) else self.train_locally()

class Draw:
    def __init__(self, node):
        self.node = node
    def __call__(self, targets, stream):
        if self.node == 2:
            raise KeyError("draws")
        return {}

class Draws(Client):
    def learn(self):
        return self.train_locally(ModelLoss(draw=Draw(self.node), stream=self.stream("draws")))

class Short(Client):
    def learn(self):
        return self.train(self.data, self.labels[:-1] if self.node == 1 else self.labels, purpose="own")

class OffGrad(Client):
    def learn(self):
        with torch.set_grad_enabled(self.node != 1):
            return self.train_locally()

class Freezes(Client):
    def learn(self):
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("classifier" in name or self.node % 2 == 0)
        loss = self.train_locally()
        self.model.requires_grad_(True)
        return loss

class Inference(Client):
    def learn(self):
        with torch.inference_mode():
            self.predict(self.data)
        return self.train_locally()

class Autocast(Client):
    def learn(self):
        with torch.autocast("cpu", torch.bfloat16):
            self.predict(self.data)
            return self.train_locally()

class Second(Client):
    def learn(self):
        other = self.environment.kept_object("second", lambda: copy.deepcopy(self.model))
        with torch.no_grad():
            for mine, one in zip(other.parameters(), self.model.parameters()):
                mine.copy_(one * (1 + self.node / 10))
        self.predict(self.data)
        with torch.no_grad():
            for mine, one in zip(other.parameters(), self.model.parameters()):
                one.copy_((one + mine) / 2)
        return self.train_locally()

def weighted(outputs, targets, own, frozen, by):
    return F.cross_entropy(outputs.logits, targets) * by[0]

class Listed(Client):
    def learn(self):
        return self.train_locally(ModelLoss(partial(weighted, by=[0.5])))

def strategy(half):
    name = half.__name__ + "Method"
    return dataclass(kw_only=True)(type(name, (FedAvg,), {"client": half, "__module__": __name__}))

for half in (Exits, Draws, Short, OffGrad, Freezes, Inference, Autocast, Second, Listed):
    globals()[half.__name__ + "Method"] = strategy(half)
"""


@pytest.mark.parametrize(
    ("half", "failing"),
    [
        ("Exits", [1, 2]), ("Draws", [2]), ("Short", [1]), ("OffGrad", [1]), ("Freezes", []), ("Inference", []),
        ("Autocast", []), ("Second", []), ("Listed", []),
    ],
)  # fmt: skip
def test_strange_clients_do_what_they_do_inline(tiny: Make, tmp_path: Path, half: str, failing: list[int]) -> None:
    (tmp_path / "strange.py").write_text(STRANGE)
    strategy = {"name": f"{tmp_path / 'strange.py'}:{half}Method"}
    for name, engine in (("inline", {"name": "inline"}), ("stacked", VECTORISED)):
        run(tiny(BASE | {"strategy": strategy, "cohort": 6, "rounds": 1, "engine": engine}), tmp_path / name)
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")
    for one, other in zip(lines(tmp_path / "inline"), lines(tmp_path / "stacked"), strict=True):
        assert one["failures"] == other["failures"]
        assert one["bytes"] == other["bytes"]
        assert one["metrics"] == pytest.approx(other["metrics"], abs=1e-5)
    assert [f["node"] for f in lines(tmp_path / "stacked")[1]["failures"]] == failing


NETS = """
import torch
from torch import nn
from fedkd import Classifier

class Drops(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x.flatten(1), 0.3, self.training)

class Centres(nn.Module):
    def forward(self, x):
        return x.flatten(1) - x.flatten(1).mean(0)

class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(64))
    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.flatten(1).mean(0).detach()
        return x.flatten(1) - self.mean

class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self
    def forward(self, x):
        return self.norm(x).flatten(1)

class Tracks(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm2d(1, track_running_stats=True)
    def forward(self, x):
        return self.norm(x).flatten(1)

class Layer(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Dropout(0.3))

def build(shape, classes, *, first: str):
    return Classifier(nn.Sequential(globals()[first](), nn.Linear(64, 8), nn.ReLU()), 8, classes)
"""


@pytest.mark.parametrize(
    ("first", "why"),
    [
        ("Drops", "random"), ("Centres", "other outputs"), ("Counts", "other buffers"), ("Keeps", "other outputs"),
        ("Tracks", "other buffers"), ("Layer", "Dropout draws"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_stacked_give_inlines_bytes_and_one_event(
    tiny: Make, tmp_path: Path, first: str, why: str
) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    model = {"name": f"{tmp_path / 'nets.py'}:build", "first": first}
    for name, engine in (("inline", {"name": "inline"}), ("stacked", VECTORISED)):
        run(tiny(BASE | {"model": model, "rounds": 1, "engine": engine}), tmp_path / name)
    assert checkpoint_bytes(tmp_path / "inline") == checkpoint_bytes(tmp_path / "stacked")
    said = [event["event"] for line in lines(tmp_path / "stacked") for event in line["events"]]
    assert [why in text for text in said] == [True]


def test_too_little_memory_halves_the_clients_of_a_step(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def small(trainings: list[Any], starts: list[Any], path: str, *more: Any) -> list[Any]:
        sizes.append(len(trainings))
        if len(trainings) > 2:
            raise torch.OutOfMemoryError("a card with room for two")
        return train_stacked(trainings, starts, path, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(kinds, "train_stacked", small)
    run(
        tiny(_changes("fedavg") | {"cohort": 6, "engine": {"name": "vectorised", "clients_per_step": 6}}),
        tmp_path / "o",
    )
    assert sizes == [6, 3, 2, 2, 2, 2, 2]  # found in round 1, where two train alone; kept in round 2
    said = [event["event"] for line in lines(tmp_path / "o") for event in line["events"]]
    assert said[-1].startswith("out of memory with 3 clients in one step; from now on at most 2")
    run(tiny(_changes("fedavg") | {"cohort": 6}), tmp_path / "inline")
    assert _apart(tmp_path / "inline", tmp_path / "o") < 1e-3


def test_a_card_without_room_for_one_client_matches_class_by_class(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(works: list[Any], states: list[Any], path: str) -> list[Any]:
        raise torch.OutOfMemoryError("a card without room")

    monkeypatch.setattr(kinds, "match_stacked", none)
    changes = {**BASE, **OWN_LOOPS["fedlgd"], "rounds": 1}
    for name, engine in (("inline", {"name": "inline"}), ("stacked", VECTORISED)):
        run(tiny(changes | {"engine": engine}), tmp_path / name)
    assert checkpoint_bytes(tmp_path / "inline") == checkpoint_bytes(tmp_path / "stacked")


def test_graphs_on_a_cpu_change_nothing_and_are_named(tiny: Make, tmp_path: Path) -> None:
    for name, more in (("without", {}), ("with", {"cuda_graphs": True})):
        run(tiny(_changes("fedavg") | {"engine": VECTORISED | more}), tmp_path / name)
    assert checkpoint_bytes(tmp_path / "without") == checkpoint_bytes(tmp_path / "with")
    said = [event["event"] for line in lines(tmp_path / "with") for event in line["events"]]
    assert said == ["engine.cuda_graphs has no effect on a CPU"]


def test_float16_gives_what_it_gives_inline_up_to_its_rounding(tiny: Make, tmp_path: Path) -> None:
    changes = _changes("fedavg") | {"train.precision": "fp16", "rounds": 1}
    run(tiny(changes), tmp_path / "inline")
    run(tiny(changes | {"engine": VECTORISED}), tmp_path / "stacked")
    assert 0 < _apart(tmp_path / "inline", tmp_path / "stacked") < 1e-2
    assert [line["events"] for line in lines(tmp_path / "stacked")] == [[]] * 2


def test_compiled_steps_are_those_of_the_engine_up_to_rounding(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[StepGraphs] = []

    def quick(note: Any, record: Any, backend: str) -> StepGraphs:
        assert (record, backend) == (None, "inductor")
        made.append(StepGraphs(note, record, "eager"))
        return made[-1]

    monkeypatch.setattr(stacking, "StepGraphs", quick)
    run(tiny(_changes("fedavg") | {"engine": VECTORISED}), tmp_path / "without")
    run(tiny(_changes("fedavg") | {"engine": VECTORISED | {"compile": True}}), tmp_path / "with")
    assert len(made) == 1
    assert made[0]._steps
    assert _apart(tmp_path / "without", tmp_path / "with") < 1e-3


def test_a_model_that_cannot_be_folded_is_refused_or_takes_the_other_path(tiny: Make, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "from fedkd import Classifier\n"
        "def build(shape, classes):\n"
        "    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8)), 8, classes)\n"
    )
    changes = _changes("fedavg") | {"model": {"name": f"{tmp_path / 'net.py'}:build"}}
    with pytest.raises(InputError, match=r"engine.path = 'folded': .*features.2 is a LayerNorm"):
        run(tiny(changes | {"engine": {"name": "vectorised", "path": "folded"}}), tmp_path / "refused")
    run(tiny(changes | {"engine": {"name": "vectorised"}}), tmp_path / "stacked")
    run(tiny(changes), tmp_path / "inline")
    assert _apart(tmp_path / "inline", tmp_path / "stacked") < 1e-3


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize(
    ("method", "workers"), [("scaffold", 1), ("scaffold", 2), ("knfu", 2), ("fedx over simclr", 2)]
)
def test_ray_workers_stack_the_same_groups(tiny: Make, tmp_path: Path, method: str, workers: int) -> None:
    """SCAFFOLD's replies are merged, five at a time; KnFu's are not."""
    own = {**BASE, **OWN_LOOPS[method]} if method in OWN_LOOPS else _changes(method)
    changes = own | {"cohort": 6, "checkpoint": {"every": 1}}
    run(tiny(changes | {"engine": VECTORISED}), tmp_path / "one")
    engine = {"name": "ray", "workers": workers, "clients_per_step": 3, "cpus_per_worker": 0.5}
    run(tiny(changes | {"engine": engine}), tmp_path / "ray")
    assert lines(tmp_path / "ray") == lines(tmp_path / "one")
    assert checkpoint_bytes(tmp_path / "ray") == checkpoint_bytes(tmp_path / "one")


def test_a_timeout_with_several_clients_per_step_is_refused(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="clients_per_step with timeout = 5"):
        run(tiny({"timeout": 5.0, "engine": {"name": "ray", "workers": 1, "clients_per_step": 2}}), tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients_per_step": 0}, r"^engine.clients_per_step = 0: input should be .* 1, or input should be 'auto'\.$"),
        (
            {"path": "fold"},
            r"^engine.path = 'fold': input should be 'auto', 'vmap', 'folded' or 'one', or input should be .* list\.$",
        ),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    tiny: Make, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(tiny({"engine": {"name": "vectorised"} | options}), tmp_path / "run")
