"""Losses of knowledge distillation: of a student's logits towards a teacher's, on the same samples.

Each is a class with its options, which `strategy.loss` of methods that distil from logits names. z_s, z_t: logits of
student and teacher, B x C; p = softmax(z_t / T), q = softmax(z_s / T); y: the class of a sample. All are means over the
batch. The teacher gets no gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import NotNegative, Positive, Probability, Whole
from .losses import kl_divergence

_TINY = 1e-5  # LumiNet's, added to a column's variance
_EPSILON = 1e-8  # DIST's, added to a product of norms


@dataclass(frozen=True, kw_only=True)
class KDLoss(ABC):
    """What all losses share: kd_weight L(z_s, z_t) + ce_weight CE(z_s, y). A subclass writes `distance`.

    labels: the classes y of cross-entropy and of losses that need them: `given`, those of the samples, or `teacher`,
    the teacher's most likely classes. warmup: the first rounds, in which kd_weight grows to its value. `needs_labels`:
    whether `distance` reads y; `needs_logits`: whether it differs for logits and logarithms of probabilities;
    `compares`: whether it compares samples, so that it needs two of them.
    """

    needs_labels: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    kd_weight: NotNegative = 1.0
    ce_weight: NotNegative = 0.0
    labels: Literal["given", "teacher"] = "given"
    warmup: Whole = 0

    @property
    def reads_labels(self) -> bool:
        """Return whether the loss reads given labels."""
        return self.labels == "given" and (self.needs_labels or self.ce_weight > 0)

    def in_round(self, number: int) -> Self:
        """Return the loss with the kd_weight of a round."""
        if not self.warmup:
            return self
        return replace(self, kd_weight=self.kd_weight * min(1.0, number / self.warmup), warmup=0)

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the loss of logits, B x C each; `labels`: classes, B, if they are to be read."""
        teacher = teacher.detach()
        if self.labels == "teacher":
            labels = teacher.argmax(1)
        value = self.kd_weight * self.distance(student, teacher, student.new_empty(0) if labels is None else labels)
        if not self.ce_weight:
            return value
        assert labels is not None, "a loss with ce_weight reads labels"
        return value + self.ce_weight * F.cross_entropy(student, labels)

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the loss without weights and cross-entropy."""


@dataclass(frozen=True, kw_only=True)
class KD(KDLoss):
    """T^2 KL(p || q) (Hinton, Vinyals, Dean, 2015, arXiv:1503.02531, section 2)."""

    temperature: Positive = 4.0

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return T^2 KL(p || q)."""
        return kl_divergence(student, teacher, self.temperature)


@dataclass(frozen=True, kw_only=True)
class Jeffreys(KDLoss):
    """2 T^2 (w KL(p || q) + (1 - w) KL(q || p)): with w = 1/2 Jeffreys' divergence (Jeffreys, 1946), times T^2."""

    temperature: Positive = 4.0
    forward_weight: Probability = 0.5

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted sum of both directions; the gradient goes through q only."""
        log_q = F.log_softmax(student / self.temperature, dim=1)
        log_p = F.log_softmax(teacher / self.temperature, dim=1)
        forward = (log_p.exp() * (log_p - log_q)).sum(1).mean()
        backward = (log_q.exp() * (log_q - log_p)).sum(1).mean()
        return 2 * self.temperature**2 * (self.forward_weight * forward + (1 - self.forward_weight) * backward)


@dataclass(frozen=True, kw_only=True)
class DKD(KDLoss):
    """T^2 (alpha TCKD + beta NCKD) (Zhao, Cui, Song, Qiu, Liang, 2022, arXiv:2203.08679).

    TCKD: the divergence of (p_y, 1 - p_y) and (q_y, 1 - q_y); NCKD: that of softmax over the classes other than y. KD
    is TCKD + (1 - p_y) NCKD for each sample.
    """

    needs_labels: ClassVar[bool] = True
    temperature: Positive = 4.0
    alpha: NotNegative = 1.0
    beta: NotNegative = 8.0

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted sum of both parts."""
        target, others = decoupled(student / self.temperature, teacher / self.temperature, labels)
        return self.temperature**2 * (self.alpha * target.mean() + self.beta * others.mean())


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return TCKD and NCKD of each sample, B each, from logits that are divided by T already."""
    log_p, log_q = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)
    at = labels[:, None]
    p_y, q_y = log_p.gather(1, at)[:, 0], log_q.gather(1, at)[:, 0]
    rest_of_teacher, rest_of_student = without(teacher, labels), without(student, labels)
    # the logarithm of 1 - p_y, by sums of exponentials: 1 - p_y itself is 0 where the teacher is sure
    p_rest = rest_of_teacher.logsumexp(1) - teacher.logsumexp(1)
    q_rest = rest_of_student.logsumexp(1) - student.logsumexp(1)
    target = p_y.exp() * (p_y - q_y) + p_rest.exp() * (p_rest - q_rest)
    log_p, log_q = F.log_softmax(rest_of_teacher, dim=1), F.log_softmax(rest_of_student, dim=1)
    return target, (log_p.exp() * (log_p - log_q)).sum(1)


def without(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits of the classes other than each sample's own, B x (C - 1)."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, columns + (columns >= labels[:, None]))


@dataclass(frozen=True, kw_only=True)
class DIST(KDLoss):
    """beta (1 - mean_rows rho) + gamma (1 - mean_columns rho) (Huang, You, Wang, Qian, Xu, 2022, arXiv:2205.10536).

    rho: Pearson's correlation of p and q, over the classes of a sample (rows) or the samples of a class (columns); 0
    where one of them is constant. square: multiply by T^2, as in published settings with T = 4.
    """

    compares: ClassVar[bool] = True
    temperature: Positive = 1.0
    beta: NotNegative = 1.0
    gamma: NotNegative = 1.0
    square: bool = False

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted sum over samples and classes."""
        q, p = (student / self.temperature).softmax(1), (teacher / self.temperature).softmax(1)
        value = self.beta * (1 - _correlation(p, q).mean()) + self.gamma * (1 - _correlation(p.T, q.T).mean())
        return self.temperature**2 * value if self.square else value


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    x, y = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    # the root has no gradient at 0, which a constant row gives
    norms = [(part.square().sum(1) + torch.finfo(part.dtype).tiny).sqrt() for part in (x, y)]
    return (x * y).sum(1) / (norms[0] * norms[1] + _EPSILON)


@dataclass(frozen=True, kw_only=True)
class NKD(KDLoss):
    """-p_y log q_y at T = 1, and gamma T^2 times the cross-entropy of the other classes, normalised, at T.

    Yang, Zeng, Li, Zhang, Yuan, Li: From Knowledge Distillation to Self-Knowledge Distillation, 2023, arXiv:2303.13005.
    The published setting adds the cross-entropy of labels, ce_weight = 1. It is not 0 where z_s = z_t.
    """

    needs_labels: ClassVar[bool] = True
    temperature: Positive = 1.0
    gamma: NotNegative = 1.5

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of both parts."""
        at = labels[:, None]
        target = -(teacher.softmax(1).gather(1, at) * F.log_softmax(student, dim=1).gather(1, at)).mean()
        p = (without(teacher, labels) / self.temperature).softmax(1)
        log_q = F.log_softmax(without(student, labels) / self.temperature, dim=1)
        return target - self.gamma * self.temperature**2 * (p * log_q).sum(1).mean()


@dataclass(frozen=True, kw_only=True)
class LumiNet(KDLoss):
    """alpha^2 KL(softmax(P(z_t) / T) || softmax(P(z_s) / T)) (Hossain et al., 2023, arXiv:2310.03669).

    P scales each class to mean 0 and variance 1 over the batch (biased variance + 1e-5), so that the batch size changes
    the loss, and a batch of one class is mostly noise.
    """

    needs_logits: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    temperature: Positive = 0.7
    alpha: Positive = 2.0

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the divergence of what classes perceive."""
        log_q = F.log_softmax(perception(student) / self.temperature, dim=1)
        log_p = F.log_softmax(perception(teacher) / self.temperature, dim=1)
        return self.alpha**2 * (log_p.exp() * (log_p - log_q)).sum(1).mean()


def perception(logits: Tensor) -> Tensor:
    """Return logits with mean 0 and variance 1 in each class over the batch, B x C (LumiNet)."""
    centred = logits - logits.mean(0)
    return centred / (centred.square().mean(0) + _TINY).sqrt()
