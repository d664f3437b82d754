"""Many clients in one step are clients alone: each loss, model, optimiser, size, to float64 accuracy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers.learning import ADAMW, CLASSES, PIXELS, SGD, SIZES, clients, model_of
from torch import Tensor, nn

from fedkd import Payload
from fedkd.data.spec import Form
from fedkd.distillation.generators import FeatureGenerator
from fedkd.learning.batches import Preprocess, batches, shift_mirror
from fedkd.learning.plans import plan_of
from fedkd.learning.stacked_graphs import StepGraphs
from fedkd.learning.stacked_models import NotStacked, Path, why_not_folded, why_not_stacked, why_unsound
from fedkd.learning.stacked_training import Trained, key_of, train_stacked, why_alone
from fedkd.learning.training import (
    LocalTraining,
    ModelLoss,
    cross_entropy,
    label_loss,
    squared_loss,
    train_alone,
    weighted_label_loss,
)
from fedkd.methods.relay import distillation_of
from fedkd.models.build import name_once
from fedkd.strategies.feddyn import dynamic_loss
from fedkd.strategies.fedgen import generative_loss
from fedkd.strategies.fedmd import digest_loss
from fedkd.strategies.fedntd import not_true_distillation
from fedkd.strategies.fedproto import prototype_loss
from fedkd.strategies.fedprox import proximal_loss
from fedkd.strategies.knfu import fused_loss
from fedkd.strategies.moon import contrastive_loss
from fedkd.strategies.scaffold import corrected_loss
from fedkd.streams import default_stream, torch_stream


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
@pytest.mark.parametrize("optimizer", [SGD, pytest.param(ADAMW, marks=pytest.mark.slow)], ids=["sgd", "adamw"])
def test_clients_in_one_step_are_clients_alone(name: str, options: dict, optimizer: Any, path: Path) -> None:
    model = model_of(name, **options)
    clip = 1.0 if optimizer is SGD else None
    make = partial(clients, model, augment="crop_flip", optimizer=optimizer, clip=clip)
    assert apart(make, path) < (1e-8 if optimizer is ADAMW else 1e-12)


def test_clients_in_one_step_have_the_same_reflected_borders() -> None:
    make = partial(clients, model_of("mlp", hidden=[4]), augment="crop_flip_reflect")
    assert apart(make, "vmap") < 1e-12


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


def _generated(k: int, model: nn.Module) -> ModelLoss:
    width = model.classifier.in_features  # type: ignore[union-attr]
    with default_stream(torch_stream(0, 0, 0, "generator")):
        generator = FeatureGenerator(4, CLASSES, 8, width).double().eval().requires_grad_(False)
    shares = torch.full((CLASSES,), 1.0 / CLASSES)
    made = generative_loss(generator, shares, torch_stream(0, 1, k, "generated"), alpha=1.5, beta=0.5, size=7)
    return replace(made, draw=lambda labels, stream: {n: t.double() if t.is_floating_point() else t
                                                      for n, t in made.draw(labels, stream).items()})  # fmt: skip


def _weighted(k: int) -> ModelLoss:
    weights = torch.rand(CLASSES, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    return ModelLoss(weighted_label_loss, own={"class_weights": weights})


NOT_TRUE = partial(not_true_distillation, beta=1.0, temperature=2.0)
LOSSES: dict[str, tuple[str, Callable[[int, nn.Module], Any]]] = {
    "fedprox": ("labels", lambda k, m: proximal_loss(_drawn(m, k, 1.0), 0.1)),
    "scaffold": ("labels", lambda k, m: corrected_loss(_drawn(m, k, 0.01))),
    "feddyn": ("labels", lambda k, m: dynamic_loss(_drawn(m, k, 0.1), _drawn(m, k + 9, 0.01), 0.1)),
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
    "fedgen": ("labels", _generated),
    "fedmd": ("soft", lambda k, m: digest_loss("mae", 1.0)),
    "fedmd, kl": ("soft", lambda k, m: digest_loss("kl", 2.0)),
    "dsfl": ("soft", lambda k, m: distillation_of("classification")),
    "class weights": ("labels", lambda k, m: _weighted(k)),
    "moon, class weights": (
        "labels",
        lambda k, m: replace(
            contrastive_loss(_frozen(m, k), _frozen(m, k + 9), 1.0, 0.5, weighted_label_loss), own=_weighted(k).own
        ),
    ),
    "several labels": ("soft", lambda k, m: distillation_of("multilabel")),
    "targets": ("soft", lambda k, m: distillation_of("regression")),
    "moon, targets": ("soft", lambda k, m: contrastive_loss(_frozen(m, k), _frozen(m, k + 9), 1.0, 0.5, squared_loss)),
    "knfu": ("both", lambda k, m: fused_loss(3.0, 0.5, "prob")),
}  # fmt: skip


@pytest.mark.parametrize(("name", "path"), [("mlp", "vmap"), ("convnet", "folded")])
@pytest.mark.parametrize("case", LOSSES)
def test_each_methods_loss_is_the_same_in_one_step(case: str, name: str, path: Path) -> None:
    wanted, loss = LOSSES[case]
    options = {"channels": [6], "norm": "batch"} if name == "convnet" else {"hidden": [12]}
    model = model_of(name, **options)
    assert apart(partial(clients, model, loss=loss, wanted=wanted, clip=1.0), path) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path"), [("mlp", "vmap"), ("convnet", "folded")])
@pytest.mark.parametrize("case", LOSSES)
def test_each_methods_loss_is_the_same_in_a_step_of_fixed_shapes(case: str, name: str, path: Path) -> None:
    wanted, loss = LOSSES[case]
    model = model_of(name, **({"channels": [6], "norm": "batch"} if name == "convnet" else {"hidden": [12]}))
    starts = [{name: tensor.clone() for name, tensor in model.state_dict().items()}] * len(SIZES)
    ordinary, fixed = (
        train_stacked(clients(model, loss=loss, wanted=wanted, clip=1.0), starts, path, graphs)
        for graphs in (None, StepGraphs(print))
    )
    for one, other in zip(ordinary, fixed, strict=True):
        assert all(torch.allclose(t, other.weights[n], 0, 1e-12) for n, t in one.weights.items())


def test_plans_draw_what_training_draws() -> None:
    """Also where several chunks of images are prepared, each with its augmentation."""
    (local,) = clients(model_of("mlp", side=40, hidden=[4]), sizes=(700,), augment="crop_flip", side=40, epochs=2)
    plan = plan_of(local)
    stream = torch_stream(0, 1, 0, "order")
    seen = [batch for _ in range(2) for batch in batches(local.data, local.targets, 16, local.preprocess, stream)]
    assert plan.sizes == [len(labels) for _, labels in seen]
    assert plan.counted == len(seen) // 2
    assert torch.equal(local.targets[plan.positions], torch.cat([labels for _, labels in seen]))
    assert torch.equal(local.order.get_state(), stream.get_state())
    assert plan.shifts is not None
    assert plan.mirror is not None
    padded = nn.functional.pad(torch.from_numpy(local.data.inputs[plan.positions]), (5, 5, 5, 5))
    again = local.preprocess.scaled(shift_mirror(padded, 5, plan.shifts, plan.mirror))
    assert torch.equal(again, torch.cat([images for images, _ in seen]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "changes",
    [{"steps": 5}, {"epochs": 3}, {"optimizer": SGD.model_copy(update={"momentum": 0.0, "weight_decay": 0.0})}],
)
def test_each_way_to_count_steps(changes: dict, path: Path) -> None:
    assert apart(partial(clients, model_of("mlp", hidden=[12]), **changes), path) < 1e-12


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_each_client_has_its_own_learning_rate(optimizer: Any, path: Path) -> None:
    model = model_of("mlp", hidden=[12])

    def make() -> list[LocalTraining]:
        rates = (optimizer.model_copy(update={"lr": 0.001 * (k + 1)}) for k in range(len(SIZES)))
        return [replace(local, optimizer=rate) for local, rate in zip(clients(model), rates, strict=True)]

    assert apart(make, path) < (1e-8 if optimizer is ADAMW else 1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_unused_frozen_and_tied_parameters_are_left_as_training_leaves_them(path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
            self.classifier = nn.Linear(8, CLASSES)
            self.unused = nn.Linear(3, 3)
            self.features[1].bias.requires_grad_(False)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.features(images))
            return logits

    with default_stream(torch_stream(0, 0, 0, "model")):
        model, tied = Odd().double(), Odd().double()
        tied.features.append(nn.Linear(8, 8).double())
    tied.features[5].weight = tied.features[3].weight
    name_once(tied)
    assert apart(partial(clients, model), path) < 1e-12
    assert apart(partial(clients, tied), path) < 1e-12


@pytest.mark.parametrize("path", PATHS)
def test_what_has_finished_or_diverged_does_not_touch_the_others(path: Path) -> None:
    model = model_of("convnet", channels=[6], norm="batch")
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    broken = {name: tensor * torch.nan if tensor.is_floating_point() else tensor for name, tensor in start.items()}
    good = train_stacked(clients(model), [start] * 4, path)
    bad = train_stacked(clients(model), [start, start, broken, start], path)
    for k in (0, 1, 3):
        assert all(torch.equal(good[k].weights[name], bad[k].weights[name]) for name in start)
    assert not bad[2].weights["classifier.weight"].isfinite().any()
    assert good[3].weights["features.1.num_batches_tracked"] == 2  # one batch in each of its two epochs


def test_what_cannot_be_stacked_is_named_and_leaves_the_streams() -> None:
    model = model_of("mlp", hidden=[12])
    (one, *_) = clients(model)
    assert (
        why_alone(replace(one, loss=lambda model, images, labels: model(images).sum())) == "its loss is not a ModelLoss"
    )
    assert why_alone(replace(one, beside=nn.ReLU())) == "its optimiser trains a second module"
    assert why_alone(replace(one, data=one.data.take(np.arange(0)))) == "it has too few images"
    assert why_not_stacked(nn.Sequential(nn.Dropout(0.1))) == "Dropout draws for each client from its own stream"
    assert why_not_folded(nn.Sequential(nn.LayerNorm(2))) == "0 is a LayerNorm"

    def reads(outputs: Any, targets: Tensor, own: Any, frozen: Any) -> Tensor:
        return outputs.logits.sum() * outputs.logits.sum().item()

    made = clients(model, loss=lambda k, m: ModelLoss(reads))
    before = [local.order.get_state() for local in made]
    with pytest.raises(NotStacked, match="item"):
        train_stacked(made, [model.state_dict()] * 4, "folded")
    assert all(torch.equal(local.order.get_state(), state) for local, state in zip(made, before, strict=True))


def test_a_model_whose_own_forward_mixes_channels_is_not_folded() -> None:
    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.classifier = nn.Linear(4, CLASSES)

        def features(self, images: Tensor) -> Tensor:
            return self.conv(images).cumsum(1).mean((2, 3))

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.features(images))
            return logits

    with default_stream(torch_stream(0, 0, 0, "model")):
        mixes = Mixes()
    assert why_not_folded(mixes) is None
    assert "outputs" in str(why_unsound(mixes, Form("image", (1, 12, 12)), "folded"))
    for path in PATHS:
        assert why_unsound(model_of("resnet8", norm="batch").float(), Form("image", (1, 12, 12)), path) is None


def test_losses_with_other_constants_do_not_share_a_step() -> None:
    model = model_of("mlp", hidden=[12])
    (one, *_) = clients(model)
    keys = [key_of(replace(one, loss=proximal_loss(_drawn(model, 0, 1.0), mu))) for mu in (0.1, 0.1, 0.2)]
    assert keys[0] == keys[1] != keys[2]
    assert key_of(one) == key_of(replace(one, loss=cross_entropy))
    assert key_of(one) != key_of(replace(one, optimizer=ADAMW))
    assert key_of(replace(one, loss=_generated(0, model))) == key_of(replace(one, loss=_generated(1, model)))


def _rounded(norm: str, path: Path, half: torch.dtype, start: dict[str, Tensor], steps: int) -> list[list[Trained]]:
    """Return two clients' trainings: in float32, with 16 bits alone, and with 16 bits in one step."""
    model = model_of("convnet", channels=[6], norm=norm).float()
    plain = Preprocess(PIXELS, "none", torch.device("cpu"))

    def trained(half: torch.dtype | None, stacked: bool) -> list[Trained]:
        made = clients(model, sizes=(16, 12), epochs=steps)
        made = [replace(one, half=half, preprocess=plain) for one in made]
        if stacked:
            return train_stacked(made, [start] * 2, path)
        found = []
        for local in made:
            model.load_state_dict(start)
            found.append(Trained(train_alone(local), copy.deepcopy(model.state_dict())))
        return found

    return [trained(None, False), trained(half, False), trained(half, True)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize(("half", "most"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_16_bits_change_a_step_by_their_rounding_alike_in_one_step(
    norm: str, path: Path, half: torch.dtype, most: float
) -> None:
    """One step: bfloat16 has 8 bits, float16 11. Weights, buffers and losses stay float32."""
    start = {n: t.float() for n, t in model_of("convnet", channels=[6], norm=norm).state_dict().items()}
    start = {n: t.long() if n.endswith("tracked") else t for n, t in start.items()}
    exact, alone, together = _rounded(norm, path, half, start, 1)
    for right, one, other in zip(exact, alone, together, strict=True):
        assert all(one.weights[n].dtype == other.weights[n].dtype == t.dtype for n, t in right.weights.items())
        for found in (one, other):
            worst = max(float((found.weights[n].float() - t.float()).abs().max()) for n, t in right.weights.items())
            assert 0 < worst < most


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_with_float16_a_client_skips_the_steps_whose_gradients_are_not_finite(optimizer: Any, path: Path) -> None:
    """The clients' images are of other sizes: only the one with large ones skips, until its scale has fallen."""
    model = model_of("mlp", hidden=[12]).float()
    plain = Preprocess(PIXELS, "none", torch.device("cpu"))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def make(epochs: int) -> list[LocalTraining]:
        made = clients(model, sizes=(40, 40), epochs=epochs, optimizer=optimizer, clip=1.0, loss=lambda k, m: ModelLoss(
            _times, own={"times": torch.tensor([1.0, 3000.0][k])}))  # fmt: skip
        return [replace(one, half=torch.float16, preprocess=plain) for one in made]

    def recorded(work: Callable[[], None]) -> Callable[[], None]:
        work()
        return work

    graphs = StepGraphs(print, recorded)
    for epochs in (1, 4):
        alone = []
        for local in make(epochs):
            model.load_state_dict(start)
            alone.append(Trained(train_alone(local), copy.deepcopy(model.state_dict())))
        for which in (None, graphs, graphs):
            for k, (one, other) in enumerate(
                zip(alone, train_stacked(make(epochs), [start] * 2, path, which), strict=True)
            ):
                assert one.loss == pytest.approx(other.loss, rel=1e-2)
                for name, tensor in one.weights.items():
                    assert torch.allclose(tensor, other.weights[name], atol=2e-3)
                    skipped = k == 1 and epochs == 1
                    assert torch.equal(tensor, start[name]) == torch.equal(other.weights[name], start[name]) == skipped


def _times(outputs: Any, targets: Tensor, own: Any, frozen: Any) -> Tensor:
    return label_loss(outputs, targets, own, frozen) * own["times"]


def test_plans_draw_samples_by_their_chances_as_training_does() -> None:
    chances = torch.arange(40.0)
    (local,) = clients(model_of("mlp"), sizes=(40,), epochs=3, chances=chances)
    plan, stream = plan_of(local), torch_stream(0, 1, 0, "order")
    seen = [
        batch
        for _ in range(3)
        for batch in batches(local.data, local.targets, 16, local.preprocess, stream, chances=chances)
    ]
    assert torch.equal(local.targets[plan.positions], torch.cat([labels for _, labels in seen]))
    assert 0 not in plan.positions
    assert len(plan.positions) == 120
    assert len(set(plan.positions[:40].tolist())) < 40  # with replacement
