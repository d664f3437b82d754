"""The shared loops: losses against second formulas, augmentation, prediction in order."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedkd.config import Adam, Sgd
from fedkd.data.images import Images
from fedkd.learning.batches import Preprocess, batches, crop_flip
from fedkd.learning.evaluation import evaluate, predict
from fedkd.learning.losses import kl_divergence
from fedkd.learning.optimizers import make_optimizer
from fedkd.learning.training import cross_entropy, train
from fedkd.streams import torch_stream


class _Data:
    mean, deviation = (0.25,), (0.5,)


PLAIN = Preprocess(_Data(), "none", torch.device("cpu"))  # type: ignore[arg-type]


def images(count: int = 10, size: int = 4) -> Images:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 1, size, size)).astype(np.uint8)
    return Images(pixels, rng.integers(0, 3, count))


def model() -> nn.Module:
    linear = nn.Linear(16, 3)
    generator = torch_stream(0, 0, 0, "model")
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return nn.Sequential(nn.Flatten(), linear)


@pytest.fixture(autouse=True)
def _restore_streams() -> object:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)  # nn.Linear above draws from it before it is overwritten


def test_kl_divergence_is_the_sum_over_classes_by_loops() -> None:
    student, teacher = torch.randn(2, 5, 4, generator=torch_stream(0, 0, 0, "x"), dtype=torch.float64) * 2
    for temperature in (1.0, 4.0):
        total = 0.0
        for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
            p = [math.exp(z / temperature) for z in z_t]
            q = [math.exp(z / temperature) for z in z_s]
            p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
            total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        assert kl_divergence(student, teacher, temperature).item() == pytest.approx(
            temperature**2 * total / 5, rel=1e-12
        )
    assert kl_divergence(teacher, teacher).item() == pytest.approx(0, abs=1e-15)


def test_kl_divergence_gives_the_teacher_no_gradient() -> None:
    student, teacher = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    kl_divergence(student, teacher * torch.arange(3)).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_one_epoch_of_sgd_is_the_closed_form_of_softmax_regression() -> None:
    data, net = images(6), model()
    weight, bias = (p.detach().double().numpy().copy() for p in net[1].parameters())
    order = torch.randperm(6, generator=torch_stream(0, 0, 0, "order")).numpy()
    for batch in (order[:4], order[4:]):
        x = (data.images[batch].reshape(len(batch), -1) / 255 - 0.25) / 0.5
        z = x @ weight.T + bias
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        gradient = (p - np.eye(3)[data.labels[batch]]) / len(batch)
        weight, bias = weight - 0.1 * gradient.T @ x, bias - 0.1 * gradient.sum(0)
    optimizer = make_optimizer(net, Sgd(name="sgd", lr=0.1))
    labels = torch.from_numpy(data.labels)
    order_stream = torch_stream(0, 0, 0, "order")
    train(net, data, labels, epochs=1, batch_size=4, optimizer=optimizer, preprocess=PLAIN, order=order_stream)
    np.testing.assert_allclose(net[1].weight.detach().numpy(), weight, atol=1e-6)
    np.testing.assert_allclose(net[1].bias.detach().numpy(), bias, atol=1e-6)


def test_optimisers_are_the_named_ones() -> None:
    ours, theirs = model(), model()
    theirs.load_state_dict(ours.state_dict())
    pair = (
        make_optimizer(ours, Sgd(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.2)),
        torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.2, foreach=True),
    )
    for step in range(4):
        for net, optimizer in zip((ours, theirs), pair, strict=True):
            optimizer.zero_grad()
            moved = net.parameters() if step != 2 else [net[1].weight]  # in one step the bias has no gradient
            sum((parameter + 1).square().sum() for parameter in moved).backward()
            optimizer.step()
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert type(make_optimizer(model(), Adam(name="adam"))) is torch.optim.Adam
    assert type(make_optimizer(model(), Adam(name="adamw", weight_decay=0.1))) is torch.optim.AdamW


def test_predictions_keep_the_order_and_evaluation_counts_right() -> None:
    data, net = images(1203), model()
    logits = predict(net, data, PLAIN)
    x = torch.from_numpy((data.images.reshape(1203, -1) / 255 - 0.25) / 0.5).float()
    torch.testing.assert_close(logits, net[1](x).detach())
    scores = evaluate(net, data, PLAIN)
    assert scores["accuracy"] == (logits.argmax(1).numpy() == data.labels).sum() / 1203
    right = -torch.log_softmax(logits.double(), 1)[torch.arange(1203), torch.from_numpy(data.labels)].mean().item()
    assert scores["loss"] == pytest.approx(right, rel=1e-12)


def test_batches_shuffle_images_and_targets_together() -> None:
    data = images(10)
    seen = []
    for batch, targets in batches(data, torch.arange(10), 4, PLAIN, torch_stream(0, 0, 0, "x")):
        for image, position in zip(batch, targets.tolist(), strict=True):
            expected = (data.images[position].astype(np.float32) / 255 - 0.25) / 0.5
            np.testing.assert_allclose(image.numpy(), expected, atol=1e-6)
            seen.append(position)
    assert sorted(seen) == list(range(10))
    assert seen != list(range(10))


def test_crop_flip_shifts_and_mirrors_each_image_by_itself() -> None:
    size, pad = 16, 2
    one = torch.arange(1, size * size + 1, dtype=torch.int32).view(1, 1, size, size)
    out = crop_flip(one.repeat(64, 1, 1, 1), torch_stream(0, 0, 0, "x"))
    padded = torch.nn.functional.pad(one[0, 0], (pad, pad, pad, pad))
    valid = {}
    for row in range(2 * pad + 1):
        for column in range(2 * pad + 1):
            window = padded[row : row + size, column : column + size]
            valid[tuple(window.flatten().tolist())] = (row, column, False)
            valid[tuple(window.flip(1).flatten().tolist())] = (row, column, True)
    found = [valid[tuple(image.flatten().tolist())] for image in out]
    assert len(set(found)) > 20
    assert {mirrored for *_, mirrored in found} == {True, False}


def test_augmentation_is_for_training_only() -> None:
    class Coloured:
        mean, deviation = (0.0,), (1.0,)

    augmenting = Preprocess(Coloured(), "crop_flip", torch.device("cpu"))  # type: ignore[arg-type]
    data = images(8, 16)
    still = torch.cat([x for x, _ in batches(data, torch.arange(8), 8, augmenting)])
    torch.testing.assert_close(still, torch.from_numpy(data.images) / 255)
    moved, order = next(iter(batches(data, torch.arange(8), 8, augmenting, torch_stream(0, 0, 0, "x"))))
    assert not torch.allclose(moved, still[order])


def test_steps_restart_epochs_and_stop_in_the_middle_of_one() -> None:
    sizes: list[int] = []

    def loss(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        sizes.append(len(y))
        return torch.nn.functional.cross_entropy(net(x), y)

    net, data = model(), images(10)
    common = {"batch_size": 4, "preprocess": PLAIN, "loss": loss}
    sgd = make_optimizer(net, Sgd(name="sgd", lr=0.1))
    labels = torch.from_numpy(data.labels)
    train(net, data, labels, epochs=1, steps=5, optimizer=sgd, order=torch_stream(0, 0, 0, "o"), **common)
    assert sizes == [4, 4, 2, 4, 4]
    sizes.clear()
    train(net, data, labels, epochs=9, steps=2, optimizer=sgd, order=torch_stream(0, 0, 0, "o"), **common)
    assert sizes == [4, 4]
    two, whole = model(), model()
    for net, how in ((two, {"epochs": 1, "steps": 6}), (whole, {"epochs": 2})):
        sgd = make_optimizer(net, Sgd(name="sgd", lr=0.1))
        train(net, data, labels, optimizer=sgd, order=torch_stream(0, 0, 0, "o"), **how, **common)
    assert all(torch.equal(a, b) for a, b in zip(two.parameters(), whole.parameters(), strict=True))


def test_a_clip_bounds_the_gradient_but_not_the_weight_decay() -> None:
    data = images(6)
    labels = torch.from_numpy(data.labels)

    def steep(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 100 * torch.nn.functional.cross_entropy(net(x), y)

    for decay in (0.0, 0.5):
        net = model()
        before = [p.detach().clone() for p in net.parameters()]
        sgd = make_optimizer(net, Sgd(name="sgd", lr=1.0, weight_decay=decay))
        train(
            net, data, labels, epochs=1, batch_size=6, optimizer=sgd, preprocess=PLAIN,
            order=torch_stream(0, 0, 0, "o"), clip=0.01, loss=steep,
        )  # fmt: skip
        moved = [p.detach() - (1 - decay) * b for p, b in zip(net.parameters(), before, strict=True)]
        assert torch.cat([m.flatten() for m in moved]).norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("settings", [Sgd(name="sgd", lr=1.0, momentum=0.9), Adam(name="adam", lr=0.1)])
def test_peers_train_as_if_each_had_an_optimiser_and_a_clip_of_its_own(settings: Sgd | Adam) -> None:
    data, how = images(12), dict[str, Any](epochs=2, batch_size=4, preprocess=PLAIN, clip=0.01)
    labels = torch.from_numpy(data.labels)

    alone, first, second = model(), model(), model()
    order = partial(torch_stream, 0, 0, 0, "o")
    train(alone, data, labels, optimizer=make_optimizer(alone, settings), order=order(), **how)
    both = make_optimizer(first, settings, second)
    train(
        nn.ModuleList([first, second]), data, labels, optimizer=both, order=order(), **how,
        loss=lambda pair, x, y: cross_entropy(pair[0], x, y) + 100 * cross_entropy(pair[1], x, y),
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), first.parameters(), strict=True))


def test_batches_do_not_depend_on_how_many_are_prepared_together(monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(50)

    def passed(most: int | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(batches(data, torch.arange(50), 8, PLAIN, torch_stream(0, 0, 0, "x"), most=most))

    together = passed()
    monkeypatch.setattr("fedkd.learning.batches._VALUES", 2 * 8 * 64)
    apart = passed()
    assert [len(x) for x, _ in together] == [8] * 6 + [2]
    for (x, y), (other, wanted) in zip(together, apart, strict=True):
        assert torch.equal(x, other)
        assert torch.equal(y, wanted)
    assert [y.tolist() for _, y in passed(3)] == [y.tolist() for _, y in together[:3]]


class Twice(nn.Module):
    """Adds two parameters: autograd may hand out one tensor as the gradient of both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3] + self.a + self.b


def test_a_gradient_that_two_parameters_share_is_clipped_once() -> None:
    net, data = Twice(), images(6)
    order = torch_stream(0, 0, 0, "o")
    train(
        net, data, torch.zeros(6, dtype=torch.int64), epochs=1, batch_size=6, preprocess=PLAIN, order=order, clip=0.5,
        optimizer=make_optimizer(net, Sgd(name="sgd", lr=1.0)),
        loss=lambda model, images, targets: (10 * model(images)).sum(),
    )  # fmt: skip
    assert torch.equal(net.a, net.b)
    assert torch.cat([net.a, net.b]).norm().item() == pytest.approx(0.5, rel=1e-4)
