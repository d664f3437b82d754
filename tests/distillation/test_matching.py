"""What distillers match: distances of gradients and of mean embeddings, by published values and second formulas."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers.distillation import det, small_net
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fedkd.data.spec import Form
from fedkd.distillation.matching import gradient_distance, gradient_of, mean_embedding_loss
from fedkd.learning.losses import supervised_contrast
from fedkd.models.build import build


@pytest.fixture(autouse=True)
def _modules_may_draw() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


# The published values


def test_the_distance_of_gradients_is_the_published_one() -> None:
    for shape, value in [((4, 3, 2, 2), 3.5134149), ((4, 3, 5), 3.9449968), ((4, 6), 3.4972339), ((7,), 0.0)]:
        found = gradient_distance([det(shape, 0.7, 0.3)], [det(shape, 0.4, 1.1)])
        assert float(found) == pytest.approx(value, abs=2e-6)


def test_the_loss_of_mean_embeddings_is_the_published_one() -> None:
    model = small_net().requires_grad_(False)
    virtual = det((12, 3, 16, 16), 0.017, 0.5)
    for label, value in enumerate([17.843374, 7.3710532, 15.468515, 14.521656]):
        real = det((5, 3, 16, 16), 0.019, 0.1 * label)
        loss = mean_embedding_loss(model.features(real), model.features(virtual[3 * label : 3 * label + 3]))
        assert float(loss) == pytest.approx(value, rel=1e-5)


# Second formulas


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
    model = build("convnet", {"channels": [3]}, Form("image", (2, 4, 4)), 3).double()
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


@pytest.mark.parametrize("kind", ["rows", "cosine"])
def test_the_denominator_of_the_distance_has_a_millionth_more(kind: str) -> None:
    """As in the authors' code: equal gradients of length 1e-3 are not at distance 0."""
    small = torch.tensor([[1e-3, 0.0]], dtype=torch.float64)
    assert float(gradient_distance([small], [small], kind)) == pytest.approx(0.5)  # type: ignore[arg-type]


def test_a_gradient_can_be_passed_on_where_asked_and_is_zero_where_nothing_is_used() -> None:
    network = torch.nn.Linear(3, 2)
    network.unused = torch.nn.Parameter(torch.ones(4))
    images, labels = det((5, 3), 0.4, 0.1), torch.tensor([0, 1, 1, 0, 1])
    plain, further = gradient_of(network, images, labels), gradient_of(network, images, labels, differentiable=True)
    names = [name for name, _ in network.named_parameters()]
    assert not plain[names.index("unused")].any()
    assert [gradient.requires_grad for gradient in plain] == [False] * 3
    assert further[names.index("weight")].requires_grad
    network.bias.requires_grad_(False)
    assert len(gradient_of(network, images, labels)) == 2
