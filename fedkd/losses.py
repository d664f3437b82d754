"""Losses that more than one method uses."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T^2 KL(softmax(z_t / T) || softmax(z_s / T)), the mean over the batch (Hinton et al., 2015, section 2).

    Both arguments: logits, B x C. T^2 keeps the size of the gradients independent of T. The teacher gets no gradient.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
