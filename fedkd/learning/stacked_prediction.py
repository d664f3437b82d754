"""Logits or features of many models of one architecture, each on its own images, in one call a batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from .batches import batches
from .evaluation import Prediction
from .stacked_models import Path, StackedModel, refusing_loops, stacked

_BATCH = 100  # images of each client


def prediction_key(asked: Prediction) -> Hashable:
    """Return what clients must have in common to be asked in one call."""
    return id(asked.model), asked.features, asked.data.encoded, asked.data.inputs.shape[1:]


@torch.no_grad()
def predict_stacked(asked: Sequence[Prediction], states: Sequence[Mapping[str, Tensor]], path: Path) -> list[Tensor]:
    """Return what is asked of each model, on the CPU, in eval mode; all with one `prediction_key`.

    `states`: the models' parameters and buffers. Raises NotStacked if the model cannot be computed for many clients.
    """
    first = asked[0]
    name = "features" if first.features else "logits"
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i].data.labels))
    tensors = {n: stacked([states[i][n].to(first.preprocess.device) for i in order]) for n in states[0]}
    parts = [batches(asked[i].data, torch.zeros(len(asked[i].data.labels), 0), _BATCH, first.preprocess) for i in order]
    stack, found = StackedModel(first.model, path), [[torch.empty(0)] for _ in order]
    while images := [batch[0] for part in parts if (batch := next(part, None)) is not None]:
        count, widest = len(images), max(map(len, images))
        padded = torch.stack([torch.cat([x, x[-1:].expand(widest - len(x), *x.shape[1:])]) for x in images])
        few = {n: tensor[:count] for n, tensor in tensors.items()}
        with refusing_loops():
            outputs = stack.outputs(few, padded, rows=None, training=False, features=first.features)[name].cpu()
        for place, (one, x) in enumerate(zip(outputs, images, strict=True)):
            found[place].append(one[: len(x)])
    joined = [torch.cat(part[1:]) if len(part) > 1 else part[0] for part in found]
    return [joined[order.index(i)] for i in range(len(order))]
