"""A trained model, ready for use: its module, its classes, and how samples are encoded for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import NamedTable, SetsConfig
from ..data.codec import Codec
from ..data.encoder import Encoder
from ..data.spec import Task
from ..errors import InputError
from .new_samples import new_samples

_BATCH = 500


@dataclass(frozen=True)
class About:
    """What a file says of its model.

    `architecture`: its name and options; `padded`: whether series or texts may be shorter than the model gets them.
    `features`: whether its output are features, not logits. `data`: how the run's samples were read. `card`: where the
    model comes from (see `cards`).
    """

    architecture: NamedTable
    padded: bool = False
    features: bool = False
    data: SetsConfig = field(default_factory=SetsConfig)
    card: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """What a model says of N samples.

    `labels`: of each sample its class; the labels that it has; or its targets, in their units. `probabilities`: N x
    classes, or of several labels N x labels; of targets None. `values`: of targets, N x targets, else None. `notes`:
    what was done to samples that are not as the model takes them.
    """

    classes: tuple[str, ...]
    labels: list[Any]
    probabilities: np.ndarray | None
    values: np.ndarray | None
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


class TrainedModel(nn.Module):
    """A trained model in eval mode. `predict` takes raw samples; a call takes encoded ones and returns logits, B x C.

    `module`: the model itself; `classes`: the names of its outputs; `codec`: how samples are encoded.
    """

    def __init__(self, module: nn.Module, codec: Codec, classes: tuple[str, ...], about: About) -> None:
        super().__init__()
        self.module = module
        self.codec, self.classes, self.about = codec, classes, about
        self.eval()

    @property
    def task(self) -> Task:
        """Return what it predicts: one class, several labels, or targets."""
        return self.codec.spec.task

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Return how raw samples become what the module takes.

        Images: size (height, width), channels, largest (the raw value that becomes 1), then (x - mean) / standard
        deviation of each channel.
        """
        spec, codec = self.codec.spec, self.codec
        about: dict[str, Any] = {"kind": spec.kind, "shape": list(spec.shape), "input": list(codec.form.shape)}
        if spec.kind == "image":
            about |= {"channels": spec.shape[0], "size": list(spec.shape[1:]), "largest": spec.largest}
        if spec.columns:
            about["columns"] = [column.name for column in spec.columns]
        return about | {"mean": codec.mean.tolist(), "standard_deviation": codec.deviation.tolist()}

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the module's output for encoded samples: logits, B x C, or features, B x D."""
        output: Tensor = self.module(inputs)
        return output

    def encoded(self, raw: np.ndarray) -> Tensor:
        """Return raw samples, as the data's `DataSpec` says, as the module takes them."""
        device = next((one.device for one in self.module.parameters()), torch.device("cpu"))
        return Encoder(self.codec, device)(torch.tensor(raw, device=device))

    @torch.no_grad()
    def outputs(self, raw: np.ndarray) -> Tensor:
        """Return the output for raw samples, as the data's `DataSpec` says, N x C, on the CPU."""
        self.eval()
        parts = [self(self.encoded(raw[first : first + _BATCH])).cpu() for first in range(0, len(raw), _BATCH)]
        return torch.cat(parts) if parts else torch.empty(0, len(self.classes))

    def predict(self, samples: Any) -> Predictions:
        """Return the predictions for samples: files, folders, arrays, rows of a data frame, or texts.

        Images: paths, or arrays N x H x W [x C] or N x C x H x W. Rows: a data frame, or a CSV or Parquet file. Texts:
        a list of them, or paths of text files. Series and others: arrays, N x ..., or .npy files. Raises InputError,
        which names the file or column, for what is not as the model takes it.
        """
        found = new_samples(samples, self.codec.spec, self.about.data)
        return self.of_outputs(self.outputs(found.inputs), found.notes)

    def of_outputs(self, outputs: Tensor, notes: tuple[str, ...] = ()) -> Predictions:
        """Return the predictions of outputs, N x C. Raises InputError for an encoder, which predicts nothing."""
        if self.about.features:
            raise InputError(
                "this model is an encoder, which was trained without labels: its output are features, not classes. "
                "Call the model, and train a classifier on them."
            )
        if self.task == "regression":
            values = self.codec.predictions(outputs.numpy())
            return Predictions(self.classes, values.tolist(), None, values, notes)
        logits = outputs.double()
        if self.task == "multilabel":
            shares = torch.sigmoid(logits).numpy()
            chosen = [[name for name, share in zip(self.classes, row, strict=True) if share > 0.5] for row in shares]
            return Predictions(self.classes, chosen, shares, None, notes)
        shares = torch.softmax(logits, 1).numpy()
        return Predictions(self.classes, [self.classes[i] for i in shares.argmax(1)], shares, None, notes)
