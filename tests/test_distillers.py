"""Distillers: the published values on fixed inputs, second formulas, gradients, and what each does to a small set."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.config import GROUPS
from fedkd.data.images import Images
from fedkd.distillation.distillers import DC, DM, DSA, FGM, IDM
from fedkd.distillation.matching import gradient_distance, gradient_of, mean_embedding_loss
from fedkd.distillation.siamese import siamese_augment
from fedkd.distillation.virtual_images import RealImages, Virtual, class_statistics, normal_images, real_images
from fedkd.learning.batches import Preprocess
from fedkd.learning.losses import supervised_contrast
from fedkd.models.build import build
from fedkd.strategies.fedlgd import kernel_discrepancy
from fedkd.streams import torch_stream


@pytest.fixture(autouse=True)
def _modules_may_draw() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


def det(shape: tuple[int, ...], a: float, b: float, dtype: torch.dtype = torch.float32) -> Tensor:
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(a * i + b).view(shape).to(dtype)


def small_net(classes: int = 4, norm: str = "instance", side: int = 16) -> nn.Module:
    model = build("convnet", {"channels": [8, 8], "norm": norm}, (3, side, side), classes)
    with torch.no_grad():
        for k, (name, parameter) in enumerate(model.named_parameters()):
            parameter.copy_(0.1 * det(tuple(parameter.shape), 0.05, k))
            if parameter.dim() == 1 and name.endswith("weight"):
                parameter.add_(1)
    return model


class _Plain:
    """Preprocess that leaves float images as they are and scales uint8 ones to 0..1."""

    device = torch.device("cpu")

    def __call__(self, images: np.ndarray, generator: torch.Generator | None = None) -> Tensor:
        batch = torch.from_numpy(images)
        return batch if batch.is_floating_point() else batch.float() / 255


PLAIN: Preprocess = _Plain()  # type: ignore[assignment]


def stream(name: str = "test") -> torch.Generator:
    return torch_stream(0, 0, "server", name)


def truth_of(counts: list[int], side: int = 16, seed: int = 0) -> RealImages:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    images = rng.integers(0, 256, (len(labels), 3, side, side)).astype(np.uint8)
    images[..., 0] = (labels * 60)[:, None, None]
    return RealImages(Images(images, labels.astype(np.int64)), PLAIN)


# The published values


def test_the_distance_of_gradients_is_the_published_one() -> None:
    for shape, value in [((4, 3, 2, 2), 3.5134149), ((4, 3, 5), 3.9449968), ((4, 6), 3.4972339), ((7,), 0.0)]:
        found = gradient_distance([det(shape, 0.7, 0.3)], [det(shape, 0.4, 1.1)])
        assert float(found) == pytest.approx(value, abs=2e-6)


def test_the_supervised_contrast_is_the_published_one() -> None:
    first = det((6, 16), 0.37, 0.1).requires_grad_()
    second = det((8, 16), 0.53, 0.9).requires_grad_()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 1, 2, 2, 3, 3])
    loss = supervised_contrast(torch.cat([first, second]), labels)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(15.928421, abs=2e-5)
    assert float(first.grad.norm()) == pytest.approx(0.61876148, rel=1e-5)
    assert float(second.grad.norm()) == pytest.approx(1.1977801, rel=1e-5)
    alone = torch.tensor([0, 1, 2, 4, 5, 6, *range(10, 18)])
    assert float(supervised_contrast(torch.cat([first, second]).detach(), alone)) == 0


AUGMENTED = {  # of the authors' DiffAugment with seed 7: sum, sum of squares, y[1, 2, 10, 11]
    "color": (853.37032, 5686.1678, 0.60690349),
    "crop": (63.595879, 2706.8927, 0.9952901),
    "cutout": (209.88834, 3012.0674, 0.3920784),
    "flip": (162.39549, 3563.9402, 0.3920784),
    "scale": (140.91622, 3043.8193, 0.46060199),
    "rotate": (151.17773, 3376.4327, 0.42243677),
}


@pytest.mark.parametrize("group", GROUPS)
def test_each_augmentation_is_the_published_one(group: str) -> None:
    images = det((3, 3, 28, 28), 0.011, 0.4)
    changed = siamese_augment(images, 7, [group])
    total, squares, pixel = AUGMENTED[group]
    assert float(changed.sum()) == pytest.approx(total, abs=2e-3)
    assert float(changed.pow(2).sum()) == pytest.approx(squares, rel=1e-5)
    assert float(changed[1, 2, 10, 11]) == pytest.approx(pixel, abs=1e-5)


def test_the_groups_are_drawn_as_published() -> None:
    images = det((2, 3, 16, 16), 0.011, 0.4)
    drawn = ["cutout", "crop", "color", "scale", "scale", "rotate", "cutout", "flip", "flip", "scale", "rotate", "flip"]
    for seed, group in enumerate(drawn):
        mixed = siamese_augment(images, seed, GROUPS)
        assert torch.equal(mixed, siamese_augment(images, seed, [group]))


def test_the_network_is_the_published_one() -> None:
    model, images = small_net().requires_grad_(False), det((2, 3, 16, 16), 0.013, 0.2)
    features = model.features(images)
    assert float(features.sum()) == pytest.approx(114.71273, rel=1e-5)
    assert float(features.norm()) == pytest.approx(10.039572, rel=1e-5)
    wanted = torch.tensor([0.17599353, 0.18679632, 0.19546054, 0.20181583])
    torch.testing.assert_close(model(images)[0], wanted, rtol=1e-5, atol=1e-6)


def test_the_loss_of_mean_embeddings_is_the_published_one() -> None:
    model = small_net().requires_grad_(False)
    virtual = det((12, 3, 16, 16), 0.017, 0.5)
    for label, value in enumerate([17.843374, 7.3710532, 15.468515, 14.521656]):
        real = det((5, 3, 16, 16), 0.019, 0.1 * label)
        loss = mean_embedding_loss(model.features(real), model.features(virtual[3 * label : 3 * label + 3]))
        assert float(loss) == pytest.approx(value, rel=1e-5)


def twelve() -> Images:
    images = torch.stack([det((3, 8, 8), 0.05, 0.2 * i) + i % 3 for i in range(12)])
    return Images(images.numpy(), np.arange(12) % 3)


def test_the_statistics_are_the_true_ones_of_each_class() -> None:
    means, deviations, held = class_statistics(twelve(), PLAIN, 4)
    torch.testing.assert_close(means[2], torch.tensor([2.1297832, 1.8981795, 2.0735106]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(deviations[2], torch.tensor([0.69678295, 0.7015186, 0.70512664]), rtol=1e-5, atol=1e-6)
    assert held.tolist() == [True, True, True, False]
    assert not means[3].any()


def test_the_first_images_are_drawn_as_published() -> None:
    """The authors' statistics, which divide by the number of all images, give their images."""
    data, generator = twelve(), torch.Generator().manual_seed(0)
    found = []
    for part in (data, data.take(np.arange(9))):
        pixels = torch.from_numpy(part.images)
        sums = torch.stack([pixels[part.labels == c].sum((0, 2, 3)) for c in range(3)]) / (len(pixels) * 64)
        squares = torch.stack([pixels[part.labels == c].pow(2).sum((0, 2, 3)) for c in range(3)]) / (len(pixels) * 64)
        found.append((sums, (squares - sums**2).sqrt()))
    torch.testing.assert_close(found[0][0][2], torch.tensor([0.70992774, 0.63272649, 0.69117022]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0][1][2], torch.tensor([1.081587, 0.98220593, 1.0588517]), rtol=1e-5, atol=1e-6)
    held = torch.ones(3, dtype=torch.bool)
    mean = tuple((one + other) / 2 for one, other in zip(*found, strict=True))
    for (m, s), ipc, total in [(found[0], 5, 1003.5779), (found[1], 5, 1037.4194), (mean, 4, 839.94434)]:
        images, labels = normal_images(m, s, held, ipc, (8, 8), generator)
        assert float(images.sum()) == pytest.approx(total, abs=1e-2)
        assert labels.tolist() == [0] * ipc + [1] * ipc + [2] * ipc


# Second formulas


def test_the_supervised_contrast_by_loops() -> None:
    z = F.normalize(det((9, 5), 0.31, 0.2, torch.float64), dim=1)
    labels = [0, 1, 0, 2, 1, 0, 3, 2, 1]
    total = 0.0
    for i in range(9):
        positives = [p for p in range(9) if p != i and labels[p] == labels[i]]
        below = sum(math.exp(float(z[i] @ z[a]) / 0.5) for a in range(9) if a != i)
        terms = [float(z[i] @ z[p]) / 0.5 - math.log(below) for p in positives]
        total -= sum(terms) / max(1, len(terms)) / 9
    found = supervised_contrast(3 * z, torch.tensor(labels), 0.5)
    assert float(found) == pytest.approx(total, rel=1e-12)


def test_the_kernel_discrepancy_by_loops() -> None:
    x, y = det((3, 4), 0.7, 0.1, torch.float64), det((5, 4), 0.3, 0.9, torch.float64)
    rows = [*x, *y]
    band = sum(float((a - b).pow(2).sum()) for a in rows for b in rows) / (64 - 8) / 4

    def kernel(a: Tensor, b: Tensor) -> float:
        return sum(math.exp(-float((a - b).pow(2).sum()) / (band * 2**i)) for i in range(5))

    def mean(one: Tensor, other: Tensor) -> float:
        return sum(kernel(a, b) for a in one for b in other) / (len(one) * len(other))

    expected = mean(x, x) + mean(y, y) - mean(x, y) - mean(y, x)
    assert float(kernel_discrepancy(x, y)) == pytest.approx(expected, rel=1e-12)
    assert float(kernel_discrepancy(x, x)) == pytest.approx(0, abs=1e-12)


def test_the_distance_by_rows_and_its_other_kinds() -> None:
    model = small_net()
    labels = torch.tensor([0, 1, 2, 3])
    first = gradient_of(model, det((4, 3, 16, 16), 0.013, 0.2), labels)
    second = gradient_of(model, det((4, 3, 16, 16), 0.029, 0.7), labels)
    total = 0.0
    for g, wanted in zip(first, second, strict=True):
        if g.dim() > 1:
            for row, other in zip(g.reshape(len(g), -1), wanted.reshape(len(g), -1), strict=True):
                total += 1 - float(row @ other) / (float(row.norm()) * float(other.norm()) + 1e-6)
    assert float(gradient_distance(first, second)) == pytest.approx(total, rel=1e-5)
    squares = sum(float((g - w).pow(2).sum()) for g, w in zip(first, second, strict=True))
    assert float(gradient_distance(first, second, "squares")) == pytest.approx(squares, rel=1e-5)
    flat = [torch.cat([g.flatten() for g in side]) for side in (first, second)]
    assert float(gradient_distance(first, second, "cosine")) == pytest.approx(
        1 - float(F.cosine_similarity(flat[0], flat[1], dim=0)), rel=1e-3
    )


@given(factor=st.floats(0.5, 1000))
@settings(max_examples=10, deadline=None)
def test_the_distance_by_rows_does_not_see_the_scale_of_the_truth(factor: float) -> None:
    g, wanted = det((4, 6), 0.7, 0.3, torch.float64), 100 * det((4, 6), 0.4, 1.1, torch.float64)
    assert float(gradient_distance([g], [factor * wanted])) == pytest.approx(
        float(gradient_distance([g], [wanted])), rel=1e-6
    )


# Gradients


def test_gradients_pass_through_what_is_matched() -> None:
    model = build("convnet", {"channels": [3]}, (2, 4, 4), 3).double()
    for parameter in model.parameters():
        parameter.requires_grad_()
    labels = torch.tensor([0, 1, 2])
    wanted = gradient_of(model, det((3, 2, 4, 4), 0.31, 0.2, torch.float64), labels)
    images = det((3, 2, 4, 4), 0.17, 0.6, torch.float64).requires_grad_()
    for kind in ("rows", "squares", "cosine"):

        def distance(x: Tensor, kind: str = kind) -> Tensor:
            return gradient_distance(gradient_of(model, x, labels, differentiable=True), wanted, kind)  # type: ignore[arg-type]

        assert torch.autograd.gradcheck(distance, images)
    real = model.features(det((5, 2, 4, 4), 0.31, 0.2, torch.float64))
    assert torch.autograd.gradcheck(lambda x: mean_embedding_loss(real, model.features(x)), images)
    features = det((6, 4), 0.4, 0.3, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: supervised_contrast(x, torch.tensor([0, 1, 0, 1, 2, 0])), features)


@pytest.mark.parametrize("group", GROUPS)
def test_gradients_pass_through_each_augmentation(group: str) -> None:
    images = det((2, 3, 6, 6), 0.17, 0.6, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: siamese_augment(x, 5, [group]), images)  # type: ignore[list-item]


@pytest.mark.parametrize("group", GROUPS)
def test_siamese_images_change_alike_and_others_do_not(group: str) -> None:
    images = det((1, 3, 12, 12), 0.17, 0.6).expand(40, -1, -1, -1).contiguous()
    alike = siamese_augment(images, 3, [group])  # type: ignore[list-item]
    torch.testing.assert_close(alike, alike[:1].expand_as(alike))
    own = siamese_augment(images, 3, [group], siamese=False)  # type: ignore[list-item]
    assert own.shape == images.shape
    assert len(torch.unique(own.flatten(1), dim=0)) > 1


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


def test_real_images_repeat_where_a_class_has_fewer() -> None:
    truth = truth_of([3, 10])
    images, labels = real_images(truth, 7, stream())
    assert labels.tolist() == [0] * 7 + [1] * 7
    of_first = images[:7].flatten(1)
    assert len(torch.unique(of_first, dim=0)) == 3
    assert len(torch.unique(images[7:].flatten(1), dim=0)) == 7


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
