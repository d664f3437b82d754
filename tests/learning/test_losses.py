"""Losses against second formulas by loops and published values."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from helpers.distillation import det
from helpers.formulas import kl, normal, softmax
from helpers.self_supervised import grid, published
from torch.nn import functional as F

from fedkd.learning.losses import (
    diversity_loss,
    entropy,
    kl_divergence,
    kl_from_probabilities,
    normalised,
    nt_xent,
    supervised_contrast,
)
from fedkd.streams import torch_stream


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


def test_kl_from_probabilities_by_loops_and_with_a_certain_teacher() -> None:
    z, t = normal(6, 5), torch.softmax(normal(6, 5, seed=1), 1)
    right = sum(kl(b, softmax(a, 3.0)) for a, b in zip(z.tolist(), t.tolist(), strict=True)) / 6
    assert kl_from_probabilities(z, t, 3.0).item() == pytest.approx(right, rel=1e-12)
    certain = torch.eye(5, dtype=torch.float64)
    right = -sum(math.log(softmax(row)[i]) for i, row in enumerate(z[:5].tolist())) / 5
    assert kl_from_probabilities(z[:5], certain).item() == pytest.approx(right, rel=1e-12)
    teacher = normal(6, 5, seed=2)
    tempered = kl_from_probabilities(z, torch.softmax(teacher / 3.0, 1), 3.0)
    torch.testing.assert_close(9 * tempered, kl_divergence(z, teacher, 3.0))  # the factor T^2 is the caller's


# The published values


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


def test_nt_xent_has_the_published_values() -> None:
    x1, x2, _ = published()
    for temperature, value in ((0.1, 3.7535135746), (0.5, 2.5931913853), (1.0, 2.6231031418)):
        assert float(nt_xent(x1, x2, temperature)) == pytest.approx(value, abs=1e-5)
        assert float(nt_xent(x2, x1, temperature)) == pytest.approx(value, abs=1e-5)
    assert float(nt_xent(grid(6, 10, 0), grid(6, 10, 0.3), 0.1)) == pytest.approx(0.5602279305, abs=1e-5)
    a, b = x1.clone().requires_grad_(), x2.clone().requires_grad_()
    g1, g2 = torch.autograd.grad(nt_xent(a, b, 0.1), (a, b))
    assert (float(g1.norm()), float(g2.norm())) == pytest.approx((0.9013597965, 1.2754358053), abs=1e-5)
    assert g1[0, :3].tolist() == pytest.approx([0.07121573, -0.01844397, 0.09539239], abs=1e-5)


def test_the_default_temperatures_are_the_papers() -> None:
    """Hinton et al. for T = 1; Khosla et al. and the specification of FedLGD, section 2.3, for 0.07."""
    first, second = normal(4, 6), normal(4, 6, seed=1)
    labels = torch.tensor([0, 1, 0, 1])
    assert torch.equal(kl_divergence(first, second), kl_divergence(first, second, 1.0))
    probabilities = torch.softmax(second, 1)
    assert torch.equal(kl_from_probabilities(first, probabilities), kl_from_probabilities(first, probabilities, 1.0))
    assert torch.equal(supervised_contrast(first, labels), supervised_contrast(first, labels, 0.07))
    assert torch.equal(diversity_loss(first, second), diversity_loss(first, second, "l1"))


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine"])
def test_the_diversity_loss_by_loops(metric: Literal["l1", "l2", "cosine"]) -> None:
    x, z = normal(4, 3, 2), normal(4, 5, seed=1)
    rows, total = [row.flatten() for row in x], 0.0
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            distance = {
                "l1": sum(abs(p - q) for p, q in zip(a, b, strict=True)) / 6,
                "l2": sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / 6,
                "cosine": 1 - sum(p * q for p, q in zip(a, b, strict=True)) / (a.norm() * b.norm()),
            }[metric]
            total += float(distance) * float(sum((p - q) ** 2 for p, q in zip(z[i], z[j], strict=True))) / 5 / 16
    assert float(diversity_loss(x, z, metric)) == pytest.approx(math.exp(-total), rel=1e-9)


def test_the_contrast_of_one_image_is_0_with_gradients_of_0_and_that_of_three_is_not() -> None:
    one = torch.ones(1, 4, requires_grad=True)
    loss = supervised_contrast(one, torch.tensor([1]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert one.grad is not None
    assert not one.grad.any()
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)  # cosines 0, 0 and -1
    first = math.log(2)  # both others are equally near
    other = math.log(1 + math.exp(-1)) - (0 - 1) / 2  # of log(e^0 + e^-1), the mean of the cosines 0 and -1
    found = supervised_contrast(z, torch.tensor([3, 3, 3]), 1.0)
    assert float(found) == pytest.approx((first + 2 * other) / 3, rel=1e-12)
    for labels in ([0, 0], [0, 1]):
        assert float(supervised_contrast(z[:2], torch.tensor(labels), 1.0)) == pytest.approx(0, abs=1e-12)


def test_rows_are_scaled_to_sum_1_in_float64_and_have_an_entropy() -> None:
    rows = torch.tensor([[[1.0, 3.0], [2.0, 0.0]], [[0.5, 0.5], [0.0, 5.0]]])
    scaled = normalised(rows)
    assert scaled.dtype == torch.float64
    assert scaled.tolist() == [[[0.25, 0.75], [1.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]]]
    right = [[-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), 0.0], [math.log(2), 0.0]]
    torch.testing.assert_close(entropy(scaled), torch.tensor(right, dtype=torch.float64))
