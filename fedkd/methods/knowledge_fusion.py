"""Fuses knowledge with an N x N matrix of weights, one row for each receiver."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.round import Round
from ..learning.losses import entropy


def fuse(weights: Tensor, knowledge: Tensor) -> Tensor:
    """Return sum_m W_nm Q_m for each receiver n: N x P x C of knowledge N x P x C, summed in float64, as float32."""
    return torch.einsum("nm,mpc->npc", weights.double(), knowledge.double()).float()


def effective_neighbours(weights: Tensor) -> Tensor:
    """Return exp(H(W_n)) of each row: 1 if the node uses one sender only, N if it uses all senders equally."""
    return entropy(weights.double()).exp()


def log_weights(federation: Round, nodes: list[int], weights: Tensor) -> None:
    """Log the nodes, the matrix, the mean weight of the own knowledge and the mean effective number of neighbours."""
    federation.log("nodes", nodes)
    federation.log("weights", [[round(w, 6) for w in row] for row in weights.tolist()])
    federation.log("self_weight", float(weights.diagonal().mean()))
    federation.log("effective_neighbours", float(effective_neighbours(weights).mean()))
