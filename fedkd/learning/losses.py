"""Losses that more than one method uses."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.spec import Task

Metric = Literal["l1", "l2", "cosine"]


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T^2 KL(softmax(z_t / T) || softmax(z_s / T)), the mean over the batch (Hinton et al., 2015, section 2).

    Both arguments: logits, B x C. T^2 makes the size of the gradients independent of T. The teacher gets no gradient.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return temperature**2 * ((teacher.exp() * (teacher - student)).sum() / len(student))


def kl_from_probabilities(student_logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(t || softmax(z_s / T)), the mean over the batch, for targets t that are probabilities already.

    Both arguments B x C. No factor T^2: methods differ in it, so the caller multiplies. A target of 0 adds 0. The
    targets get no gradient.
    """
    student, wanted = F.log_softmax(student_logits / temperature, dim=1), targets.detach()
    return (torch.xlogy(wanted, wanted) - wanted * student).sum() / len(student)


def soft(outputs: Tensor, task: Task, temperature: float = 1.0) -> Tensor:
    """Return a teacher's outputs, ... x C, as targets: softmax(z / T); of several labels sigmoid(z / T).

    Outputs for targets are targets as they are.
    """
    if task == "regression":
        return outputs
    return (torch.sigmoid if task == "multilabel" else partial(torch.softmax, dim=-1))(outputs / temperature)


def normalised(probabilities: Tensor) -> Tensor:
    """Return rows scaled to sum to 1, in float64: for received probabilities, which are rounded, or sums of them."""
    rows = probabilities.double()
    return rows / rows.sum(-1, keepdim=True)


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy of each row in nats, with 0 log 0 = 0."""
    return torch.special.entr(probabilities).sum(-1)


def diversity_loss(outputs: Tensor, noise: Tensor, metric: Metric = "l1") -> Tensor:
    """Return exp(-mean_ij d(x_i, x_j) mean_m (z_im - z_jm)^2), in (0, 1]: low if distant noise gives distant outputs.

    From FedFTG (Zhang et al., 2022) and FedGen (Zhu et al., 2021), after Mao et al., 2019. `outputs` x: B x ...,
    `noise` z: B x M; the mean includes pairs i = j. d is the mean absolute (`l1`) or squared (`l2`) difference over all
    entries, or 1 - cosine.
    """
    x = outputs.flatten(1)
    if metric == "l1":
        distance = torch.cdist(x, x, p=1) / x.shape[1]
    elif metric == "l2":
        distance = (x[:, None] - x[None]).pow(2).mean(2)
    else:
        distance = 1 - F.cosine_similarity(x[:, None], x[None], dim=2)
    apart = (noise[:, None] - noise[None]).pow(2).mean(2)
    return torch.exp(-(distance * apart).mean())


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return NT-Xent of two views, the mean over 2B anchors (Chen et al., 2020; FedX's code: `nt_xent`).

    -(z_a . z_p / tau - log sum_{k != a} exp(z_a . z_k / tau)), z = rows of both, B x D, scaled to length 1; p is the
    anchor's other view. Symmetric in its arguments; gradients go through both.
    """
    z = F.normalize(torch.cat([first, second]), dim=1)
    count = len(z)
    similarity = (z @ z.T / temperature).masked_fill(torch.eye(count, dtype=torch.bool, device=z.device), -torch.inf)
    partner = torch.arange(count, device=z.device).roll(count // 2)
    return F.cross_entropy(similarity, partner)


def supervised_contrast(features: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Return SupCon, the mean over all N anchors (Khosla et al., 2020, L_out; its code with both temperatures equal).

    -1/max(1, |P(i)|) sum_{p in P(i)} (z_i . z_p / tau - log sum_{a != i} exp(z_i . z_a / tau)), z = rows of `features`,
    N x D, scaled to length 1; P(i): the others of the same label. An anchor without positives adds 0.
    """
    if len(features) < 2:
        return features.sum() * 0
    z = F.normalize(features, dim=1)
    similarity = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_shares = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    positives = (labels[:, None] == labels[None]) & ~itself
    return -((log_shares * positives).sum(1) / positives.sum(1).clamp(min=1)).mean()
