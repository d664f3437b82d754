"""Distillers: their steps by second formulas, and what each does to a small set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers.distillation import det, small_net, stream, truth_of
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.distillation.distillers import DC, DM, DSA, FGM, IDM
from fedkd.distillation.matching import gradient_distance, gradient_of, mean_embedding_loss
from fedkd.distillation.virtual_images import Virtual


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
        real = model.features(truth.preprocess(truth.data.images[truth.data.labels == label]))
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
    virtual = Virtual(truth.preprocess(truth.data.images), torch.from_numpy(truth.data.labels))
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
            real = truth.preprocess(truth.data.images[truth.data.labels == label])
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


def test_dc_has_the_authors_loops() -> None:
    steps = []

    class Counting(DC):
        def step(self, virtual: Virtual, gradient: Tensor) -> None:
            steps.append(1)

    for ipc, outer in [(1, 1), (10, 10), (7, 7)]:
        steps.clear()
        virtual = Virtual(torch.zeros(2 * ipc, 3, 16, 16), torch.arange(2).repeat_interleave(ipc))
        Counting(inner=1).iterate(virtual, truth_of([8, 8]), small_net(2), stream())
        assert len(steps) == outer


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
        model.requires_grad_(True), truth.preprocess(truth.data.images), torch.from_numpy(truth.data.labels)
    )
    target = Virtual(det((4, 3, 16, 16), 0.017, 0.5), torch.tensor([0, 0, 1, 1]))
    values = [FGM(lr=0.1).iterate(target, wanted, model, stream()) for _ in range(30)]
    assert values[-1] < 0.85 * values[0]
