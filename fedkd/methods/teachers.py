"""Many frozen models of one architecture on the same batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..messages.arrays import Tensors


class Teachers:
    """K models of one architecture, frozen and in eval mode. Gradients pass through them to the images.

    On a GPU all K run in one batched call (`torch.func.vmap` over stacked weights). On a CPU they run in a loop: there
    the batched call is not faster and needs a copy of all weights. Both give the same results.
    """

    def __init__(self, model: nn.Module, weights: Sequence[Tensors], *, batched: bool | None = None) -> None:
        """Take an object of the architecture, which is not changed, and each teacher's weights."""
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        device = next(self.model.parameters()).device
        self.batched = device.type == "cuda" if batched is None else batched
        self.weights = [{name: tensor.to(device) for name, tensor in w.items()} for w in weights]
        if self.batched:
            stacked = {name: torch.stack([w[name] for w in self.weights]) for name in weights[0]}
            self.weights = [{name: tensor[k] for name, tensor in stacked.items()} for k in range(len(weights))]
            self._stacked = stacked

    def __len__(self) -> int:
        return len(self.weights)

    def one(self, number: int, inputs: Tensor) -> Tensor:
        """Return one teacher's outputs."""
        outputs: Tensor = functional_call(self.model, self.weights[number], (inputs,))
        return outputs

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return all teachers' outputs on the same inputs, K x B x C."""
        if not self.batched:
            return torch.stack([self.one(number, inputs) for number in range(len(self))])
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # torch's fast attention has no gradient in a batched call
        try:
            outputs: Tensor = vmap(lambda weights: functional_call(self.model, weights, (inputs,)))(self._stacked)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        return outputs
