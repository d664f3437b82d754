"""Values of specs/distillers-and-losses.md, section B, its set S1; and what holds for any logits."""

from __future__ import annotations

import pytest
import torch
from helpers.distillation import det
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedkd.learning.kd_losses import DIST, DKD, KD, NKD, Jeffreys, KDLoss, LumiNet, decoupled, perception, without

STUDENT, TEACHER = 3 * det((4, 5), 0.7, 0.1, torch.float64), 3 * det((4, 5), 0.9, 0.4, torch.float64)
LABELS = torch.tensor([0, 2, 4, 1])
ALL = (KD(), Jeffreys(), DKD(), DIST(), NKD(), LumiNet())


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (KD(temperature=4.0), 3.861986869),
        (Jeffreys(temperature=4.0), 7.876379190),
        (DKD(temperature=4.0, alpha=1.0, beta=0.0), 1.549195113),
        (DKD(temperature=4.0, alpha=0.0, beta=1.0), 3.235917505),
        (DKD(temperature=4.0, alpha=1.0, beta=8.0), 27.436535149),
        (DIST(beta=1.0, gamma=0.0), 1.079128322),
        (DIST(beta=0.0, gamma=1.0), 1.141900723),
        (NKD(gamma=0.0), 1.534826300),
        (NKD(gamma=1.5, temperature=1.0), 5.160771259),
        (NKD(gamma=1.5, temperature=4.0), 36.802292707),
        (LumiNet(temperature=4.0, alpha=1.0), 0.065736977),
        (LumiNet(temperature=4.0, alpha=2.0), 0.262947909),
        (LumiNet(temperature=4.0, alpha=33.0), 71.587568163),
    ],
)
def test_the_values_of_the_spec(loss: KDLoss, value: float) -> None:
    assert float(loss(STUDENT, TEACHER, LABELS)) == pytest.approx(value, abs=2e-8)


def test_dist_has_the_epsilon_of_the_authors_code() -> None:
    assert float(DIST()(STUDENT, TEACHER)) == pytest.approx(2.221029035, abs=1e-9)


def test_the_perception_of_the_spec() -> None:
    expected = [0.405796310, 1.102418631, 1.127030822, 0.146089802, -0.833611507]
    assert perception(TEACHER)[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_kd_is_the_sum_of_its_decoupled_parts() -> None:
    target, others = decoupled(STUDENT / 4, TEACHER / 4, LABELS)
    p_y = (TEACHER / 4).softmax(1).gather(1, LABELS[:, None])[:, 0]
    assert float(16 * (target + (1 - p_y) * others).mean()) == pytest.approx(float(KD()(STUDENT, TEACHER)), abs=1e-12)


def test_without_leaves_out_the_own_class() -> None:
    assert without(torch.arange(6.0).reshape(2, 3), torch.tensor([0, 2])).tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_jeffreys_is_the_same_if_teacher_and_student_change_places() -> None:
    loss = Jeffreys()
    assert float(loss(STUDENT, TEACHER)) == pytest.approx(float(loss(TEACHER, STUDENT)), abs=1e-12)
    assert float(Jeffreys(forward_weight=1.0)(STUDENT, TEACHER)) == pytest.approx(2 * 3.861986869, abs=1e-8)


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4))
@settings(max_examples=20, deadline=None)
def test_only_losses_that_need_logits_see_a_constant_of_a_sample(loss: KDLoss, added: list[float]) -> None:
    shift = torch.tensor(added, dtype=torch.float64)[:, None]
    before, after = float(loss(STUDENT, TEACHER, LABELS)), float(loss(STUDENT, TEACHER + shift, LABELS))
    if not loss.needs_logits:
        assert after == pytest.approx(before, abs=1e-9)
    elif shift.std() > 0.5:
        assert abs(after - before) > 1e-6


def test_luminet_does_not_see_the_scale_of_a_class() -> None:
    scale, shift = torch.tensor([2.0, 1.0, 3.0, 0.5, 1.5]), torch.tensor([1.0, -2.0, 0.0, 3.0, 0.3])
    moved = TEACHER * scale + shift
    assert float(LumiNet()(STUDENT, moved)) == pytest.approx(float(LumiNet()(STUDENT, TEACHER)), abs=1e-4)


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("size", [60.0, 1e-9])
def test_values_and_gradients_are_finite_at_extreme_logits(loss: KDLoss, size: float) -> None:
    student = (size * (1 - 2 * torch.eye(5)[:4])).requires_grad_()
    teacher = (size * (2 * torch.eye(5)[:4] - 1)).requires_grad_()
    value = loss(student, teacher, LABELS)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert teacher.grad is None


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
def test_equal_rows_are_no_error(loss: KDLoss) -> None:
    student = torch.zeros(3, 4, requires_grad=True)
    loss(student, torch.ones(3, 4), torch.tensor([0, 1, 2])).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_weights_labels_and_warm_up() -> None:
    ce = float(torch.nn.functional.cross_entropy(STUDENT, LABELS))
    mixed = KD(kd_weight=0.9, ce_weight=0.1)
    assert mixed.reads_labels
    assert float(mixed(STUDENT, TEACHER, LABELS)) == pytest.approx(0.9 * 3.861986869 + 0.1 * ce, abs=1e-8)
    assert not DKD(labels="teacher").reads_labels
    by_teacher: Tensor = DKD()(STUDENT, TEACHER, TEACHER.argmax(1))
    assert float(DKD(labels="teacher")(STUDENT, TEACHER)) == pytest.approx(float(by_teacher), abs=1e-12)
    assert [DKD(warmup=4).in_round(n).kd_weight for n in (1, 4, 9)] == [0.25, 1.0, 1.0]
    assert LumiNet().in_round(1).kd_weight == 1.0
