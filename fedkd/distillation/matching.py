"""Matching losses: mean embeddings and gradients of real and virtual images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.spec import Form

Distance = Literal["rows", "squares", "cosine"]
_ROUNDING = 1e-6  # added to the denominator of the distance, as in the authors' code

# What is matched


def mean_embedding_loss(real: Tensor, virtual: Tensor) -> Tensor:
    """Return sum_d (mean_b psi(x_b)_d - mean_j psi(x~_j)_d)^2 of features, B x D and J x D (Zhao and Bilen, 2023, DM).

    The real features get no gradient.
    """
    return (real.detach().mean(0) - virtual.mean(0)).pow(2).sum()


def gradient_distance(virtual: Sequence[Tensor], truth: Sequence[Tensor], kind: Distance = "rows") -> Tensor:
    """Return the distance of two gradients, each with one tensor per parameter (Zhao et al., 2021, DC).

    `rows`: sum over tensors and rows r (outputs) of 1 - <g_r, G_r> / (||g_r|| ||G_r|| + 1e-6); tensors of one dimension
    (biases, scales of norms) add 0. `squares`: sum of squared differences; `cosine`: 1 - cosine; both over all tensors
    together. The truth gets no gradient.
    """
    if kind != "rows":
        left, right = (torch.cat([g.flatten() for g in side]) for side in (virtual, truth))
        if kind == "squares":
            return (left - right.detach()).pow(2).sum()
        return 1 - left @ right.detach() / (left.norm() * right.detach().norm() + _ROUNDING)
    total = torch.zeros((), dtype=virtual[0].dtype, device=virtual[0].device)
    for one, other in zip(virtual, truth, strict=True):
        if one.dim() > 1:
            g, wanted = one.flatten(1), other.detach().flatten(1)
            total = total + (1 - (g * wanted).sum(1) / (g.norm(dim=1) * wanted.norm(dim=1) + _ROUNDING)).sum()
    return total


def matched_parameters(network: nn.Module, form: Form | None = None) -> dict[str, Tensor]:
    """Return the trainable parameters whose gradients FedLGD's server compares, by name.

    Of models of tables, all but the embeddings of categories: a row of such a table has a gradient only if the node has
    the category.
    """
    left_out: set[int] = set()
    if form is not None and form.kind == "table":
        left_out = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    return {name: one for name, one in network.named_parameters() if one.requires_grad and id(one) not in left_out}


def gradient_of(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    differentiable: bool = False,
    parameters: Iterable[Tensor] | None = None,
) -> list[Tensor]:
    """Return the gradient of the mean cross-entropy, one tensor per trainable parameter; labels N, or N x classes.

    `parameters`: those that are wanted, in their order.
    """
    loss = F.cross_entropy(network(images), labels)
    wanted = network.parameters() if parameters is None else parameters
    trained = [parameter for parameter in wanted if parameter.requires_grad]
    return list(torch.autograd.grad(loss, trained, create_graph=differentiable, materialize_grads=True))
