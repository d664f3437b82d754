"""Many clients in one step are clients alone: each loss, model, optimiser, size, to float64 accuracy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedkd import Payload
from fedkd.config import Adam, Sgd
from fedkd.data.images import Images
from fedkd.learning.batches import Preprocess
from fedkd.learning.stacked_models import Path
from fedkd.learning.stacked_training import key_of, train_stacked, why_alone
from fedkd.learning.training import LocalTraining, ModelLoss, train_alone
from fedkd.methods.relay import distillation_kl
from fedkd.models.build import build
from fedkd.strategies.feddyn import dynamic_loss
from fedkd.strategies.fedmd import digest_loss
from fedkd.strategies.fedntd import not_true_distillation
from fedkd.strategies.fedproto import prototype_loss
from fedkd.strategies.fedprox import proximal_loss
from fedkd.strategies.knfu import fused_loss
from fedkd.strategies.moon import contrastive_loss
from fedkd.strategies.scaffold import corrected_loss
from fedkd.streams import default_stream, torch_stream

SGD = Sgd(name="sgd", lr=0.05, momentum=0.9, weight_decay=5e-4)
ADAMW = Adam(name="adamw", lr=1e-3, weight_decay=1e-2)
SIZES = (40, 26, 33, 12)  # batches of 16, the last ones of other sizes; client 3 has less than one batch
CLASSES = 10


class _Set:
    mean, deviation = (0.3,), (0.4,)


class Exact(Preprocess):
    """Batches in float64."""

    def __init__(self, augment: str) -> None:
        super().__init__(_Set(), augment, torch.device("cpu"))  # type: ignore[arg-type]
        self.mean, self.deviation = self.mean.double(), self.deviation.double()

    def scaled(self, images: Tensor) -> Tensor:
        return self.normalise(images.double().div_(255))


def model_of(name: str, side: int = 12, **options: Any) -> nn.Module:
    with default_stream(torch_stream(0, 0, 0, "model")):
        return build(name, options, (1, side, side), CLASSES).double()


def clients(
    model: nn.Module, *, sizes: tuple[int, ...] = SIZES, augment: str = "none", wanted: str = "labels", side: int = 12,
    loss: Callable[[int, nn.Module], Any] | None = None, **changes: Any,
) -> list[LocalTraining]:  # fmt: skip
    """Return the local training of each client, with streams at their beginning."""
    draw, made = np.random.default_rng(0), []
    for k, size in enumerate(sizes):
        data = Images(draw.integers(0, 256, (size, 1, side, side), dtype=np.uint8), draw.integers(0, CLASSES, size))
        targets = torch.from_numpy(data.labels)
        if wanted != "labels":
            targets = torch.softmax(torch.from_numpy(draw.normal(size=(size, CLASSES))), 1)
        if wanted == "both":
            targets = torch.cat([targets, torch.from_numpy(data.labels).double()[:, None]], 1)
        given = {"epochs": 2, "batch_size": 16, "optimizer": SGD} | changes
        if loss is not None:
            given["loss"] = loss(k, model)
        order = torch_stream(0, 1, k, "order")
        made.append(LocalTraining(model, data, targets, preprocess=Exact(augment), order=order, **given))
    return made


def apart(make: Callable[[], list[LocalTraining]], path: Path) -> float:
    """Return the largest difference, of a parameter, a buffer or a mean loss, between stacked and alone."""
    trainings = make()
    model, alone = trainings[0].model, []
    start = copy.deepcopy(model.state_dict())
    for local in trainings:
        model.load_state_dict(start)
        alone.append((train_alone(local), copy.deepcopy(model.state_dict())))
    model.load_state_dict(start)
    again = make()
    assert [why_alone(local) for local in again] == [None] * len(again)
    assert len({key_of(local) for local in again}) == 1
    worst = 0.0
    for stacked, (value, weights) in zip(train_stacked(again, [start] * len(again), path), alone, strict=True):
        assert {n: (t.shape, t.dtype) for n, t in stacked.weights.items()} == {
            n: (t.shape, t.dtype) for n, t in weights.items()
        }
        worst = max(worst, abs(stacked.loss - value))
        worst = max(
            [worst, *(float((stacked.weights[n].double() - t.double()).abs().max()) for n, t in weights.items())]
        )
    for one, other in zip(trainings, again, strict=True):
        assert torch.equal(one.order.get_state(), other.order.get_state())
    return worst


PATHS: tuple[Path, ...] = ("vmap", "folded")
MODELS: dict[str, tuple[nn.Module, int]] = {}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"hidden": [12]}),
        ("lenet5", {}),
        ("convnet", {"channels": [6, 6]}),
        ("convnet", {"channels": [6], "norm": "batch", "pooling": "max"}),
        ("cnn", {"channels": [4], "hidden": 8, "projection": 6}),
        ("resnet8", {"norm": "group"}),
        ("resnet8", {"norm": "batch"}),
    ],
)
@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_clients_in_one_step_are_clients_alone(name: str, options: dict, optimizer: Any, path: Path) -> None:
    model = model_of(name, **options)
    clip = 1.0 if optimizer is SGD else None
    make = partial(clients, model, augment="crop_flip", optimizer=optimizer, clip=clip)
    assert apart(make, path) < 1e-8 if optimizer is ADAMW else 1e-12


def _drawn(model: nn.Module, k: int, scale: float) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(k)
    return {n: torch.randn(p.shape, generator=stream, dtype=p.dtype) * scale for n, p in model.named_parameters()}


def _frozen(model: nn.Module, k: int) -> nn.Module:
    other = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        for p, change in zip(other.parameters(), _drawn(model, k, 0.05).values(), strict=True):
            p.add_(change)
    return other


def _prototypes(k: int, model: nn.Module) -> ModelLoss:
    width = model.classifier.in_features  # type: ignore[union-attr]
    points = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    present = torch.arange(CLASSES) % 3 > 0
    return prototype_loss(Payload(prototypes={"global": points}, statistics={"present": present}), 1.0)


NOT_TRUE = partial(not_true_distillation, beta=1.0, temperature=2.0)
LOSSES: dict[str, tuple[str, Callable[[int, nn.Module], Any]]] = {
    "fedprox": ("labels", lambda k, m: proximal_loss(_drawn(m, k, 1.0), 0.1)),
    "scaffold": ("labels", lambda k, m: corrected_loss(_drawn(m, k, 0.01))),
    "feddyn": ("labels", lambda k, m: dynamic_loss(_drawn(m, k, 0.1), _drawn(m, k + 9, 0.01), 0.1 + k)),
    "feddyn, official": (
        "labels", lambda k, m: dynamic_loss(_drawn(m, k, 0.1), _drawn(m, k + 9, 0.01), 0.1, linear_only=True),
    ),
    "moon": ("labels", lambda k, m: contrastive_loss(_frozen(m, k), _frozen(m, k + 9), 1.0, 0.5)),
    "moon, first round": ("labels", lambda k, m: contrastive_loss(_frozen(m, k), None, 1.0, 0.5)),
    "fedntd": (
        "labels",
        lambda k, m: ModelLoss(NOT_TRUE, frozen={"teacher": _frozen(m, k)}),
    ),
    "fedproto": ("labels", _prototypes),
    "fedmd": ("soft", lambda k, m: digest_loss("mae", 1.0)),
    "fedmd, kl": ("soft", lambda k, m: digest_loss("kl", 2.0)),
    "dsfl": ("soft", lambda k, m: distillation_kl),
    "knfu": ("both", lambda k, m: fused_loss(3.0, 0.5, "prob")),
}  # fmt: skip


@pytest.mark.parametrize(("name", "path"), [("mlp", "vmap"), ("convnet", "folded")])
@pytest.mark.parametrize("case", LOSSES)
def test_each_methods_loss_is_the_same_in_one_step(case: str, name: str, path: Path) -> None:
    wanted, loss = LOSSES[case]
    options = {"channels": [6], "norm": "batch"} if name == "convnet" else {"hidden": [12]}
    model = model_of(name, **options)
    assert apart(partial(clients, model, loss=loss, wanted=wanted, clip=1.0), path) < 1e-12
