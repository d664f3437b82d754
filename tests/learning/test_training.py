"""The training loop: the closed form of a step, steps and epochs, clips, peers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers.linear import PLAIN, images, model
from torch import nn

from fedkd.config import Adam, Sgd, TrainConfig
from fedkd.learning.optimizers import make_optimizer
from fedkd.learning.training import (
    ModelLoss,
    Outputs,
    _scale,
    balanced_weights,
    chances_of,
    cross_entropy,
    label_weights,
    several_labels_loss,
    train,
    train_as,
    weighted_label_loss,
)
from fedkd.streams import torch_stream


@pytest.fixture(autouse=True)
def _restore_streams() -> object:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)  # nn.Linear above draws from it before it is overwritten


def test_one_epoch_of_sgd_is_the_closed_form_of_softmax_regression() -> None:
    data, net = images(6), model()
    weight, bias = (p.detach().double().numpy().copy() for p in net[1].parameters())
    order = torch.randperm(6, generator=torch_stream(0, 0, 0, "order")).numpy()
    for batch in (order[:4], order[4:]):
        x = (data.inputs[batch].reshape(len(batch), -1) / 255 - 0.25) / 0.5
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


@pytest.mark.parametrize(("norm", "factor"), [(0.1, 1.0), (0.4, 1.0), (1.0, 0.5), (5.0, 0.1)])
def test_a_clip_shortens_long_gradients_and_never_lengthens_short_ones(norm: float, factor: float) -> None:
    scale = _scale([torch.tensor([0.6 * norm, 0.0]), None, torch.tensor([0.8 * norm])], 0.5)
    assert float(scale) == pytest.approx(factor, rel=1e-4)


def test_no_epochs_change_nothing_and_steps_need_images() -> None:
    net, data = model(), images(4)
    common = {"batch_size": 4, "preprocess": PLAIN, "optimizer": make_optimizer(net, Sgd(name="sgd", lr=0.1))}
    before = net[1].weight.detach().clone()
    assert train(net, data, torch.arange(4) % 3, epochs=0, order=torch_stream(0, 0, 0, "o"), **common) == 0.0
    assert torch.equal(net[1].weight, before)
    none = data.take(np.arange(0))
    with pytest.raises(ValueError, match="3 steps of training need images"):
        train(net, none, torch.arange(0), epochs=1, steps=3, order=torch_stream(0, 0, 0, "o"), **common)


def test_the_returned_loss_is_of_the_last_epoch_or_of_all_steps() -> None:
    values = iter(range(1, 100))

    def counted(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return net(x).sum() * 0 + next(values)

    net, data = model(), images(8)
    common = {"batch_size": 4, "preprocess": PLAIN, "optimizer": make_optimizer(net, Sgd(name="sgd", lr=0.1))}
    common |= {"loss": counted, "order": torch_stream(0, 0, 0, "o")}
    assert train(net, data, torch.arange(8) % 3, epochs=2, **common) == 3.5  # of 3 and 4
    assert train(net, data, torch.arange(8) % 3, epochs=1, steps=5, **common) == 7.0  # of 5 ... 9


def test_a_clip_divides_by_a_millionth_more_than_the_norm() -> None:
    """As `clip_grad_norm_` of torch."""
    assert float(_scale([torch.tensor([1e-6])], 1e-6)) == pytest.approx(0.5, rel=1e-5)


class Half(nn.Module):
    """Has a parameter that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used.expand(len(x), 3)


@pytest.mark.parametrize("clip", [None, 9.0])
def test_a_parameter_that_is_not_used_stays_as_it_is(clip: float | None) -> None:
    net, data = Half(), images(6)
    train(
        net, data, torch.zeros(6, dtype=torch.int64), epochs=1, batch_size=6, preprocess=PLAIN, clip=clip,
        order=torch_stream(0, 0, 0, "o"), optimizer=make_optimizer(net, Sgd(name="sgd", lr=1.0, weight_decay=0.5)),
    )  # fmt: skip
    assert net.unused.tolist() == [1, 1]
    torch.testing.assert_close(net.used.detach(), torch.tensor([2 / 3, -1 / 3, -1 / 3]))


def test_images_are_augmented_in_training_unless_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("fedkd.learning.training.batches", lambda *given, **more: asked.append(given[5]) or [])
    net, data = model(), images(4)
    how = dict[str, Any](epochs=1, batch_size=4, preprocess=PLAIN, order=torch_stream(0, 0, 0, "o"))
    how |= {"optimizer": make_optimizer(net, Sgd(name="sgd", lr=0.1))}
    train(net, data, torch.arange(4), **how)
    train(net, data, torch.arange(4), augment=False, **how)
    assert asked == [True, False]


def test_training_as_the_config_says_takes_its_optimiser_unless_one_is_given() -> None:
    settings = TrainConfig(epochs=1, batch_size=6, optimizer=Sgd(name="sgd", lr=0.1))
    data, nets = images(6), [model() for _ in range(3)]
    common = {"preprocess": PLAIN}
    train_as(settings, nets[0], data, order=torch_stream(0, 0, 0, "o"), **common)
    slow = make_optimizer(nets[1], Sgd(name="sgd", lr=0.05))
    train_as(settings, nets[1], data, order=torch_stream(0, 0, 0, "o"), optimizer=slow, **common)
    moved = [net[1].weight.detach() - nets[2][1].weight.detach() for net in nets[:2]]
    torch.testing.assert_close(moved[0], 2 * moved[1])
    assert moved[0].abs().sum() > 0


def wave(shape: tuple[int, ...], f: float, p: float, a: float = 1.0) -> torch.Tensor:
    return a * torch.sin(f * torch.arange(int(np.prod(shape)), dtype=torch.float64) + p).reshape(shape)


def outputs(logits: torch.Tensor) -> Outputs:
    return Outputs(logits, logits, lambda features: features)


def test_balanced_weights_are_the_papers_and_their_mean_is_1() -> None:
    labels = np.array([0, 1, 2, 2, 0, 1, 4, 4, 0, 2])
    weights = balanced_weights(labels, 5)
    torch.testing.assert_close(weights, torch.tensor([0.83333333, 1.25, 0.83333333, 0, 1.25]))
    assert float(weights[labels].mean()) == pytest.approx(1)


def test_a_class_weighs_its_weight() -> None:
    labels, logits = torch.tensor([0, 1, 1, 2]), wave((4, 3), 0.7, 0.6, 2)
    weights = torch.tensor([2.0, 0.5, 0.0], dtype=torch.float64)
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    found = weighted_label_loss(outputs(logits), labels, {"class_weights": weights}, {})
    assert float(found) == pytest.approx(float((2 * each[0] + 0.5 * each[1] + 0.5 * each[2]) / 4), rel=1e-12)


def test_several_labels_are_the_mean_over_all_cells() -> None:
    targets = (wave((6, 3), 1.1, 0.3) > 0).double()
    found = several_labels_loss(outputs(wave((6, 3), 0.7, 0.6, 2)), targets, {}, {})
    assert float(found) == pytest.approx(0.92880558, abs=1e-8)


def test_balanced_sampling_draws_all_classes_alike() -> None:
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    chances = chances_of(TrainConfig(sampling="balanced"), labels, 4)
    assert chances is not None
    sums = [float(chances[labels == label].sum()) for label in range(3)]
    assert sums == pytest.approx([1000 / 3] * 3, rel=1e-5)
    assert chances_of(TrainConfig(), labels, 4) is None
    assert label_weights(TrainConfig(), labels, 4, torch.device("cpu")) == {}


def test_an_epoch_of_balanced_samples_has_as_many_as_the_node() -> None:
    seen: list[torch.Tensor] = []

    def loss(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(y)
        return cross_entropy(net, x, y)

    data = images(200)
    labels = np.where(np.arange(200) < 190, 0, 1)
    data = data._replace(labels=labels)
    settings = TrainConfig(epochs=2, batch_size=32, sampling="balanced")
    chances = chances_of(settings, labels, 3)
    train_as(settings, model(), data, preprocess=PLAIN, order=torch_stream(0, 0, 0, "o"), loss=loss, chances=chances)
    drawn = torch.cat(seen)
    assert len(drawn) == 400
    assert 160 < int((drawn == 1).sum()) < 240


def test_the_default_loss_and_the_one_of_labels_are_the_same() -> None:
    net, data = model(), images(6)
    x, y = PLAIN.of(data), torch.from_numpy(data.labels)
    assert torch.equal(ModelLoss()(net, x, y), cross_entropy(net, x, y))
