"""Distillers: their steps by second formulas, and what each does to a small set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from helpers import has_defaults
from helpers.distillation import det, small_net, stream, truth_of
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.distillation.distillers import DC, DM, DSA, FGM, IDM, draw_seed, loops_of, shared_classes, train_epoch
from fedkd.distillation.matching import gradient_distance, gradient_of, mean_embedding_loss
from fedkd.distillation.virtual_images import RealImages, Virtual


@pytest.fixture(autouse=True)
def _modules_may_draw() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


# The published values


def test_the_network_is_the_published_one() -> None:
    model, images = small_net().requires_grad_(False), det((2, 3, 16, 16), 0.013, 0.2)
    features = model.features(images)
    assert float(features.sum()) == pytest.approx(114.71273, rel=1e-5)
    assert float(features.norm()) == pytest.approx(10.039572, rel=1e-5)
    wanted = torch.tensor([0.17599353, 0.18679632, 0.19546054, 0.20181583])
    torch.testing.assert_close(model(images)[0], wanted, rtol=1e-5, atol=1e-6)


# The distillers


def test_a_step_is_sgd_with_momentum_and_goes_on_after_a_restart() -> None:
    distiller = DM(lr=0.3, momentum=0.5)
    pixels = nn.Parameter(det((2, 1, 2, 2), 0.5, 0.1))
    optimizer = torch.optim.SGD([pixels], lr=0.3, momentum=0.5)
    virtual = Virtual(pixels.detach().clone(), torch.tensor([0, 1]))
    for number in range(4):
        gradient = det((2, 1, 2, 2), 0.9, number)
        pixels.grad = gradient.clone()
        optimizer.step()
        distiller.step(virtual, gradient)
        virtual = Virtual.of({n: t.clone() for n, t in virtual.tensors().items()}, torch.device("cpu"))
    torch.testing.assert_close(virtual.images, pixels.detach())
    assert set(virtual.tensors()) == {"images", "labels", "more/velocity"}


def test_dm_takes_the_gradient_of_the_sum_over_classes() -> None:
    truth, model = truth_of([5, 4, 6, 3]), small_net()
    start = det((8, 3, 16, 16), 0.017, 0.5)
    virtual = Virtual(start.clone(), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    value = DM(lr=1.0, augment=[]).iterate(virtual, truth, model, stream())
    images = start.clone().requires_grad_()
    losses = []
    for label in range(4):
        real = model.features(truth.preprocess(truth.data.inputs[truth.data.labels == label]))
        losses.append(mean_embedding_loss(real, model.features(images[2 * label : 2 * label + 2])))
    total = torch.stack(losses).sum()
    total.backward()
    assert value == pytest.approx(float(total.detach()), rel=1e-5)
    torch.testing.assert_close(virtual.images, start - images.grad, rtol=1e-4, atol=1e-6)
    same = Virtual(start.clone(), virtual.labels)
    IDM(augment=[]).iterate(same, truth, model, stream())
    assert torch.equal(same.images, virtual.images)


def test_dm_augments_real_and_virtual_alike() -> None:
    """Virtual images that are the real ones are where DM wants them, whatever the augmentation."""
    truth, model = truth_of([3, 3]), small_net(2)
    virtual = Virtual(truth.preprocess(truth.data.inputs), torch.from_numpy(truth.data.labels))
    before = virtual.images.clone()
    for number in range(8):
        assert DM().iterate(virtual, truth, model, stream(str(number))) == pytest.approx(0, abs=1e-2)
    torch.testing.assert_close(virtual.images, before, rtol=0, atol=0.1)


def test_each_step_draws_another_augmentation() -> None:
    truth, model = truth_of([5, 5]), small_net(2)
    found = set()
    for number in range(6):
        virtual = Virtual(det((2, 3, 16, 16), 0.017, 0.5), torch.tensor([0, 1]))
        found.add(DM().iterate(virtual, truth, model, stream(str(number))))
    assert len({round(value, 3) for value in found}) > 3


def test_fgm_takes_the_gradient_of_the_distance() -> None:
    model, labels = small_net(), torch.tensor([0, 1, 2, 3])
    wanted = gradient_of(model, det((9, 3, 16, 16), 0.031, 0.2), torch.arange(9) % 4)
    start = det((4, 3, 16, 16), 0.017, 0.5)
    virtual = Virtual(start.clone(), labels)
    value = FGM(lr=0.2).iterate(virtual, wanted, model, stream())
    images = start.clone().requires_grad_()
    found = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()), create_graph=True)
    loss = gradient_distance(found, wanted)
    (gradient,) = torch.autograd.grad(loss, images)
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(virtual.images, start - 0.2 * gradient, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_dc_steps_on_each_class_and_trains_between() -> None:
    truth = truth_of([4, 5, 6])
    model, reference = small_net(3), small_net(3)
    start = det((3, 3, 16, 16), 0.017, 0.5)
    virtual = Virtual(start.clone(), torch.tensor([0, 1, 2]))
    DC(lr=0.1, outer=2, inner=1).iterate(virtual, truth, model, stream())

    images, velocity = start.clone(), torch.zeros_like(start)
    for outer in range(2):
        leaf = images.clone().requires_grad_()
        losses = []
        for label in range(3):
            real = truth.preprocess(truth.data.inputs[truth.data.labels == label])
            wanted = gradient_of(reference, real, torch.full((len(real),), label))
            found = gradient_of(reference, leaf[label : label + 1], torch.tensor([label]), differentiable=True)
            losses.append(gradient_distance(found, wanted))
        (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), leaf)
        velocity = 0.5 * velocity + gradient
        images = images - 0.1 * velocity
        if outer == 0:
            for parameter, g in zip(
                reference.parameters(), gradient_of(reference, images, virtual.labels), strict=True
            ):
                parameter.data -= 0.01 * g
    torch.testing.assert_close(virtual.images, images, rtol=1e-3, atol=1e-5)
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_loops_of_dc_are_the_authors() -> None:
    """`get_loops` of their code."""
    found = {ipc: loops_of(ipc) for ipc in (1, 2, 3, 7, 10, 20, 30, 40, 50, 250, 500, 501)}
    assert found == {
        1: (1, 1), 2: (2, 250), 3: (3, 166), 7: (7, 71), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15),
        50: (50, 10), 250: (250, 2), 500: (500, 1), 501: (501, 1),
    }  # fmt: skip


def test_the_defaults_are_those_of_the_authors_code() -> None:
    """DM, DC, DSA: Zhao, Mopuri and Bilen; IDM and FGM: FedLGD's code."""
    pixels, every = {"lr": 1.0, "momentum": 0.5}, ["color", "crop", "cutout", "flip", "scale", "rotate"]
    has_defaults(DM(), {**pixels, "real_batch": 256, "augment": every, "fresh_networks": True, "truth": "images"})
    has_defaults(IDM(), {**pixels, "real_batch": 256, "augment": every, "fresh_networks": False, "truth": "images"})
    network = {"outer": None, "inner": None, "network_lr": 0.01, "train_batch": 256, "distance": "rows"}
    matching = {"lr": 0.1, "momentum": 0.5, "real_batch": 256, **network, "fresh_networks": True, "truth": "images"}
    has_defaults(DC(), {**matching, "augment": []})
    has_defaults(DSA(), {**matching, "augment": every})
    has_defaults(FGM(), {**pixels, "distance": "rows", "fresh_networks": False, "truth": "gradient"})


def test_each_step_seeds_its_augmentation_with_31_bits() -> None:
    order = stream()
    seeds = [draw_seed(order) for _ in range(200)]
    assert len(set(seeds)) == 200
    assert 2**30 < max(seeds) < 2**31


def test_the_network_trains_on_batches_whose_images_change_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, list[str], dict[str, Any]]] = []

    def unchanged(images: Tensor, seed: int, groups: list[str], **how: Any) -> Tensor:
        seen.append((len(images), seed, groups, how))
        return images

    monkeypatch.setattr("fedkd.distillation.distillers.siamese_augment", unchanged)
    virtual = Virtual(det((5, 3, 16, 16), 0.017, 0.5), torch.tensor([0, 1, 2, 3, 0]))
    model, reference = small_net(), small_net()
    train_epoch(model, virtual, torch.optim.SGD(model.parameters(), lr=0.1), 3, ["crop"], stream())
    assert [(count, groups, how) for count, _, groups, how in seen] == [
        (3, ["crop"], {"siamese": False}),
        (2, ["crop"], {"siamese": False}),
    ]
    assert seen[0][1] != seen[1][1]
    for chosen in torch.randperm(5, generator=stream()).split(3):
        gradients = gradient_of(reference, virtual.images[chosen], virtual.labels[chosen])
        for parameter, gradient in zip(reference.parameters(), gradients, strict=True):
            parameter.data -= 0.1 * gradient
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_batch_norm_is_frozen_on_sixteen_real_images_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []
    draw = RealImages.draw

    def note(self: RealImages, label: int, count: int, order: torch.Generator) -> Tensor:
        drawn.append((label, count))
        return draw(self, label, count, order)

    monkeypatch.setattr(RealImages, "draw", note)
    virtual = Virtual(det((2, 3, 16, 16), 0.017, 0.5), torch.tensor([0, 1]))
    DC(outer=1).iterate(virtual, truth_of([20, 20]), small_net(2, norm="batch"), stream())
    assert drawn == [(0, 16), (1, 16), (0, 256), (1, 256)]


def test_the_returned_loss_is_that_of_the_last_step() -> None:
    start, truth = det((2, 3, 16, 16), 0.017, 0.5), truth_of([4, 5])
    virtual = Virtual(start.clone(), torch.tensor([0, 1]))
    first = DC(outer=1).iterate(virtual, truth, small_net(2), stream())
    with_rate = DC(outer=2, inner=1, network_lr=1e-30, lr=1e-30).iterate(
        Virtual(start.clone(), virtual.labels), truth, small_net(2), stream()
    )
    assert with_rate == pytest.approx(first, rel=1e-5)  # nothing has changed, and the two are not added


def test_soft_labels_belong_to_the_class_of_their_largest_share() -> None:
    truth = truth_of([3, 3, 0, 3])
    soft = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1], [0.1, 0.5, 0.4, 0.0], [0.0, 0.1, 0.8, 0.1]])
    hard = torch.tensor([1, 0, 1, 2])
    for labels in (soft, hard):
        found = shared_classes(Virtual(torch.zeros(4, 3, 16, 16), labels), truth)
        assert [(label, chosen.tolist()) for label, chosen in found] == [(0, [1]), (1, [0, 2])]


def test_dc_has_as_many_steps_as_loops_unless_they_are_given() -> None:
    steps = []

    class Counting(DC):
        def step(self, virtual: Virtual, gradient: Tensor) -> None:
            steps.append(1)

    for ipc, given, outer in [(1, None, 1), (10, None, 10), (7, None, 7), (7, 2, 2)]:
        steps.clear()
        virtual = Virtual(torch.zeros(2 * ipc, 3, 16, 16), torch.arange(2).repeat_interleave(ipc))
        Counting(outer=given, inner=1).iterate(virtual, truth_of([8, 8]), small_net(2), stream())
        assert len(steps) == outer


@pytest.mark.parametrize(("given", "epochs"), [(None, 250), (3, 3)])
def test_dc_trains_between_its_steps_as_long_as_its_loops_say(
    monkeypatch: pytest.MonkeyPatch, given: int | None, epochs: int
) -> None:
    trained = Mock()
    monkeypatch.setattr("fedkd.distillation.distillers.train_epoch", trained)
    virtual = Virtual(torch.zeros(4, 3, 16, 16), torch.tensor([0, 0, 1, 1]))
    DC(inner=given).iterate(virtual, truth_of([3, 3]), small_net(2), stream())  # two images per class: two steps
    assert trained.call_count == epochs


def test_batch_norm_is_frozen_at_real_statistics() -> None:
    truth, model = truth_of([20, 20]), small_net(2, norm="batch")
    virtual = Virtual(torch.randn(2, 3, 16, 16), torch.tensor([0, 1]))
    DSA(outer=1).iterate(virtual, truth, model, stream())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(not norm.training and int(norm.num_batches_tracked) == 1 for norm in norms)
    assert virtual.images.isfinite().all()


@pytest.mark.parametrize("distiller", [DM(real_batch=8), DC(outer=2, inner=1), DSA(outer=2, inner=1)])
def test_classes_that_one_side_lacks_are_left_alone(distiller: DM | DC) -> None:
    truth, model = truth_of([3, 0, 1, 5]), small_net()
    start = det((8, 3, 16, 16), 0.017, 0.5)
    virtual = Virtual(start.clone(), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    for number in range(3):
        distiller.iterate(virtual, truth, model, stream(str(number)))
    moved = (virtual.images - start).abs().flatten(1).sum(1) > 0
    assert virtual.images.isfinite().all()
    assert moved.tolist() == [True, True, False, False, True, True, True, True]


def test_matching_gets_closer() -> None:
    """DM under one network, and FGM at one: after some steps the loss is a part of what it was."""
    truth, model = truth_of([12, 12]), small_net(2)
    virtual = Virtual(det((4, 3, 16, 16), 0.017, 0.5), torch.tensor([0, 0, 1, 1]))
    values = [IDM(augment=[], lr=0.05).iterate(virtual, truth, model, stream()) for _ in range(30)]
    assert values[-1] < 0.4 * values[0]
    wanted = gradient_of(
        model.requires_grad_(True), truth.preprocess(truth.data.inputs), torch.from_numpy(truth.data.labels)
    )
    target = Virtual(det((4, 3, 16, 16), 0.017, 0.5), torch.tensor([0, 0, 1, 1]))
    values = [FGM(lr=0.1).iterate(target, wanted, model, stream()) for _ in range(30)]
    assert values[-1] < 0.85 * values[0]
