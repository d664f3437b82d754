"""FedFTG, its bases and the published values: inputs without random numbers, sums compared with published ones."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from helpers.formulas import normal, softmax
from helpers.published import COUNTS, LABELS, checksum, det, gen, net, noise, state
from torch import Tensor, nn

from fedkd.data.samples import Samples
from fedkd.learning.losses import diversity_loss
from fedkd.learning.training import Loss, cross_entropy, train
from fedkd.methods.teachers import Teachers
from fedkd.strategies.feddyn import dynamic_loss
from fedkd.strategies.fedftg import (
    FedFTG,
    classification_loss,
    disagreement_loss,
    ensemble_targets,
    ensemble_weights,
    stratified_labels,
    student_loss,
)
from fedkd.strategies.moon import contrastive_loss
from fedkd.strategies.scaffold import corrected_loss
from fedkd.streams import torch_stream


@pytest.fixture(autouse=True)
def _modules_may_draw() -> Iterable[None]:
    with torch.random.fork_rng():
        yield


# Section 7 of the specification: values of the published code


def test_labels_are_stratified_as_published() -> None:
    labels = stratified_labels([7, 6, 6, 5], 20, np.random.RandomState(0).shuffle)
    assert labels.tolist() == [3, 0, 3, 1, 2, 3, 1, 2, 0, 0, 1, 2, 1, 1, 3, 2, 0, 0, 3, 2]
    assert np.bincount(labels).tolist() == [5, 5, 5, 5]
    assert 1 not in stratified_labels([7, 0, 1], 200, np.random.RandomState(0).shuffle)
    assert len(stratified_labels([1, 0, 0], 7, np.random.RandomState(0).shuffle)) == 7


def test_ensemble_weights_are_shares_of_a_class() -> None:
    alpha = ensemble_weights(COUNTS)
    assert alpha[0].tolist() == pytest.approx([0.857143, 0.142857, 0], abs=1e-6)
    assert alpha[3].tolist() == pytest.approx([0, 0.2, 0.8], abs=1e-6)
    assert ensemble_weights(torch.tensor([[0, 3]]))[0].tolist() == [0]  # a class that nobody has


def test_the_generators_losses_and_gradient_have_the_published_values() -> None:
    generator, student, teacher = gen(), net(0.5), net(2.0)
    teachers = Teachers(student, [net(9.0).state_dict(), teacher.state_dict(), net(8.0).state_dict()])
    weights = ensemble_weights(COUNTS).float()[LABELS]
    student.eval()
    losses = FedFTG().generator_losses(student, generator.train(), teachers, weights, LABELS, noise(0), [1])
    md, cls, dis = (part.detach() for part in losses)
    assert (float(md), float(cls)) == pytest.approx((-0.126245, 0.461986), abs=2e-6)
    total = losses.disagreement + losses.classification + losses.diversity / 3
    assert float(total.detach()) == pytest.approx(0.367220, abs=2e-6)
    assert float(dis) == pytest.approx(0.094438, abs=2e-6)
    gradients = torch.autograd.grad(total, list(generator.parameters()))
    assert checksum(gradients) == pytest.approx((-0.309101, 0.569337, -0.014904), rel=2e-4)
    with torch.no_grad():
        images = gen().train()(noise(0), LABELS)
        s, t = student(images), teacher.eval()(images)
    assert -float(disagreement_loss(s, t, weights[:, 1], "kl")) == pytest.approx(0.009270, abs=1e-6)
    assert float(classification_loss(t, LABELS, weights[:, 1], "per_sample")) == pytest.approx(0.466641, abs=2e-6)


def test_a_whole_server_round_has_the_published_result_in_float64() -> None:
    student, generator = net(0.25, torch.float64), gen(torch.float64)
    teachers = Teachers(student, [net(p, torch.float64).state_dict() for p in (1.0, 2.0, 3.0)])
    labels = stratified_labels(COUNTS.sum(0).tolist(), 80, np.random.RandomState(7).shuffle)
    method = FedFTG(batch_size=8)
    losses = method.refine(
        student,
        generator,
        teachers,
        ensemble_weights(COUNTS),
        torch.from_numpy(labels).view(10, 8),
        torch.stack([noise(e, torch.float64) for e in range(10)]),
    )
    assert checksum(state(student)) == pytest.approx((21.446647, 5.960490, 9.141718), abs=1e-6)
    assert checksum(state(generator)) == pytest.approx((155.458539, 41.329267, 84.287337), abs=1e-6)
    assert set(losses) == {"disagreement_loss", "classification_loss", "diversity_loss", "student_loss"}


def local_data(k: int = 0) -> tuple[Samples, Tensor]:
    labels = (np.arange(12) * (k + 1) + k) % 4
    images = det((12, 3, 8, 8), 0.21 + 0.05 * k, 0.4 * k).float()
    return Samples(images.numpy(), labels), torch.from_numpy(labels)


class AsTheyAre:
    device = torch.device("cpu")

    def at(self, data: Samples, positions: Tensor, generator: object = None) -> Tensor:
        return torch.from_numpy(data.inputs)[positions]


def train_three_steps(loss: Loss, weight_decay: float = 1e-3) -> tuple[float, float, float]:
    model = net(0.3)
    data, labels = local_data()
    train(
        model,
        data,
        labels,
        epochs=1,
        batch_size=12,
        steps=3,
        clip=10.0,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=weight_decay),
        preprocess=AsTheyAre(),  # type: ignore[arg-type]
        order=torch_stream(0, 0, 0, "x"),
        loss=loss,
    )
    return checksum(state(model, counters=True))


def by_parameter(values: Tensor, model: nn.Module) -> dict[str, Tensor]:
    found, at = {}, 0
    for name, parameter in model.named_parameters():
        found[name] = values[at : at + parameter.numel()].view_as(parameter).float()
        at += parameter.numel()
    assert at == len(values)
    return found


def test_local_training_of_the_five_bases_has_the_published_results() -> None:
    start = {name: p.detach().clone() for name, p in net(0.3).named_parameters()}
    assert train_three_steps(cross_entropy) == pytest.approx((18.653440, 5.460751, 6.923386), rel=1e-5)
    drift = by_parameter(det((202,), 0.13, 0, 0.01), net(0.3))
    published = (18.653264, 5.460736, 6.921591)
    quirks = dynamic_loss(start, drift, 0.01, linear_only=True)
    assert train_three_steps(quirks, 1e-3 + 0.01) == pytest.approx(published, rel=1e-5)
    assert train_three_steps(dynamic_loss(start, drift, 0.01)) == pytest.approx(published, rel=1e-5)
    diff = by_parameter(det((202,), 0.17, 0.3, 0.05), net(0.3))
    assert train_three_steps(corrected_loss(diff)) == pytest.approx((18.482975, 5.460890, 6.840950), rel=1e-5)
    contrast = contrastive_loss(net(0.3).eval(), net(1.3).eval(), 0.5, 5.0)
    assert train_three_steps(contrast) == pytest.approx((18.653831, 5.460745, 6.924236), rel=1e-5)


# Second formulas, by loops


def test_the_losses_are_their_formulas_by_loops() -> None:
    student, teacher, weights = normal(6, 4), normal(6, 4, seed=1), torch.rand(6, generator=torch_stream(0, 0, 0, "w"))
    weights = weights.double()
    labels = torch.tensor([0, 1, 2, 3, 3, 1])
    rows = list(zip(weights.tolist(), student.tolist(), teacher.tolist(), labels.tolist(), strict=True))
    l1 = -sum(a * sum(abs(x - y) for x, y in zip(s, t, strict=True)) / 4 for a, s, t, _ in rows) / 6
    kl = (
        -sum(a * sum(p * math.log(p / q) for p, q in zip(softmax(t), softmax(s), strict=True)) for a, s, t, _ in rows)
        / 6
    )
    assert float(disagreement_loss(student, teacher, weights, "l1")) == pytest.approx(l1, rel=1e-12)
    assert float(disagreement_loss(student, teacher, weights, "kl")) == pytest.approx(kl, rel=1e-12)
    entropies = [-math.log(softmax(t)[y]) for _, _, t, y in rows]
    mean = sum(entropies) / 6 * sum(weights.tolist()) / 6
    each = sum(a * e for a, e in zip(weights.tolist(), entropies, strict=True)) / 6
    assert float(classification_loss(teacher, labels, weights, "batch_mean")) == pytest.approx(mean, rel=1e-12)
    assert float(classification_loss(teacher, labels, weights, "per_sample")) == pytest.approx(each, rel=1e-12)
    x, z = normal(5, 2, 3), normal(5, 4, seed=2)
    total = 0.0
    for a, u in zip(x.flatten(1).tolist(), z.tolist(), strict=True):
        for b, v in zip(x.flatten(1).tolist(), z.tolist(), strict=True):
            far = sum((p - q) ** 2 for p, q in zip(u, v, strict=True)) / 4
            total += far * sum(abs(p - q) for p, q in zip(a, b, strict=True)) / 6
    assert float(diversity_loss(x, z)) == pytest.approx(math.exp(-total / 25), rel=1e-12)


def test_targets_and_the_students_loss_by_loops() -> None:
    logits, weights, student = normal(3, 5, 4), torch.softmax(normal(5, 3, seed=1), 1), normal(5, 4, seed=2)
    right = [
        [sum(weights[b, k].item() * softmax(logits[k, b].tolist())[c] for k in range(3)) for c in range(4)]
        for b in range(5)
    ]
    targets = ensemble_targets(logits, weights, "probabilities")
    torch.testing.assert_close(targets, torch.tensor(right, dtype=torch.float64))
    mixed = [softmax([sum(weights[b, k].item() * logits[k, b, c].item() for k in range(3)) for c in range(4)])
             for b in range(5)]  # fmt: skip
    torch.testing.assert_close(ensemble_targets(logits, weights, "logits"), torch.tensor(mixed, dtype=torch.float64))
    cross = -sum(q * math.log(p) for row, s in zip(right, student.tolist(), strict=True)
                 for q, p in zip(row, softmax(s), strict=True)) / 20  # fmt: skip
    assert float(student_loss(student, targets)) == pytest.approx(cross, rel=1e-12)
    z = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(student_loss(z, targets), z)
    kl_gradient = (torch.softmax(student, 1) - targets) / 5  # of KL's mean over the batch
    torch.testing.assert_close(gradient, kl_gradient / 4)


def test_the_gradient_of_the_disagreement_passes_through_the_teacher_only_where_asked() -> None:
    weights = ensemble_weights(COUNTS)[LABELS]
    found = {}
    for through in (False, True):
        student, generator = net(0.5, torch.float64).eval(), gen(torch.float64).train()
        teachers = Teachers(student, [net(2.0, torch.float64).state_dict()])
        method = FedFTG(teacher_gradient=through)
        losses = method.generator_losses(student, generator, teachers, weights, LABELS, noise(0, torch.float64), [0])
        found[through] = checksum(torch.autograd.grad(losses.disagreement, list(generator.parameters())))
        before = noise(0, torch.float64)
        images = gen(torch.float64).train()(before, LABELS).detach().requires_grad_()
        s, t = student(images), teachers.one(0, images)
        loss = disagreement_loss(s, t if through else t.detach(), weights[:, 0], "l1")
        (by_image,) = torch.autograd.grad(loss, images)
        again = gen(torch.float64).train()
        by_chain = torch.autograd.grad(again(before, LABELS), list(again.parameters()), by_image)
        assert found[through] == pytest.approx(checksum(by_chain), rel=1e-9)
    assert found[False] != pytest.approx(found[True], rel=1e-3)


def refined(changes: dict[str, object]) -> list[float]:
    student, generator = net(0.25, torch.float64), gen(torch.float64)
    teachers = Teachers(student, [net(p, torch.float64).state_dict() for p in (1.0, 2.0, 3.0)])
    method = FedFTG(batch_size=8, iterations=2, **changes)  # type: ignore[arg-type]
    labels = torch.stack([LABELS, LABELS.flip(0)])
    method.refine(
        student, generator, teachers, ensemble_weights(COUNTS), labels,
        torch.stack([noise(e, torch.float64) for e in range(2)]),
    )  # fmt: skip
    return [*checksum(state(student)), *checksum(state(generator))]


@pytest.mark.parametrize(
    "changes",
    [
        {"disagreement": "kl"}, {"teacher_gradient": True}, {"classification": "per_sample"}, {"diversity": "l2"},
        {"generator_update": "joint"}, {"ensemble": "logits"}, {"generator_passes": 2}, {"student_steps": 1},
        {"lambda_cls": 0.0}, {"lambda_dis": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_has_an_effect(changes: dict[str, object]) -> None:
    found = refined(changes)
    assert np.isfinite(found).all()
    assert found != pytest.approx(refined({}), rel=1e-6)


def test_a_joint_step_is_one_step_on_the_sum_over_the_teachers() -> None:
    student, generator = net(0.25, torch.float64).eval(), gen(torch.float64).train()
    teachers = Teachers(student, [net(p, torch.float64).state_dict() for p in (1.0, 2.0, 3.0)])
    weights, z = ensemble_weights(COUNTS)[LABELS], noise(0, torch.float64)
    method = FedFTG()
    joint = method.generator_losses(student, generator, teachers, weights, LABELS, z, range(3))
    alone = [method.generator_losses(student, generator, teachers, weights, LABELS, z, [k]) for k in range(3)]
    assert float(joint.disagreement.detach()) == pytest.approx(sum(float(a.disagreement.detach()) for a in alone))
    assert float(joint.classification.detach()) == pytest.approx(sum(float(a.classification.detach()) for a in alone))
    assert float(joint.diversity.detach()) == pytest.approx(float(alone[0].diversity.detach()))


def test_the_weights_divide_by_a_millionth_more_than_the_count() -> None:
    assert ensemble_weights(torch.tensor([[1], [3]]))[0].tolist() == pytest.approx(
        [1 / 4.000001, 3 / 4.000001], rel=1e-12
    )


def test_no_images_give_no_labels() -> None:
    assert len(stratified_labels([0, 0], 5, np.random.RandomState(0).shuffle)) == 0
