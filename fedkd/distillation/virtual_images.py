"""Virtual images, the real images that they match, and the initial virtual images.

Virtual samples of other kinds are kept and drawn alike; `virtual_kinds` says in what they differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..data.samples import Samples
from ..data.spec import Form
from ..learning.batches import Preprocess
from ..messages.arrays import Tensors, on_cpu, split_off, under
from .virtual_kinds import as_virtual, drawn_of_class, model_inputs, moments, statistics_width

VELOCITY = "velocity"


@dataclass
class Virtual:
    """Virtual images, N x C x H x W, normalised and never clamped, and their labels, N (or N x classes: soft ones).

    `more`: other tensors that a distiller keeps between iterations, such as the velocity of the pixels. `form`: of
    encoded real samples; None: images. Rows have logits in place of the code of each category: N x (numbers + all
    codes); series and arrays have the shape of real ones.
    """

    images: Tensor
    labels: Tensor
    more: Tensors = field(default_factory=dict)
    form: Form | None = None

    def inputs(self) -> Tensor:
        """Return the samples as models take them."""
        return model_inputs(self.images, self.form)

    def tensors(self) -> Tensors:
        """Return the whole set as named tensors on the CPU."""
        return on_cpu({"images": self.images, "labels": self.labels, **under("more", self.more)})

    def rest(self) -> None:
        """Reset the velocity of the pixels to 0."""
        self.more.pop(VELOCITY, None)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], device: torch.device, form: Form | None = None) -> Virtual:
        """Return the set from named tensors, as `tensors` returned them."""
        here, more = split_off("more", {name: tensor.to(device) for name, tensor in tensors.items()})
        return cls(here["images"], here["labels"], more, form)

    def as_data(self) -> Samples:
        """Return images and labels as training data."""
        return Samples(self.inputs().cpu().numpy(), self.labels.cpu().numpy(), encoded=True)


class RealImages:
    """A truth for distillers: real labelled images, drawn class by class, on the device of training."""

    def __init__(self, data: Samples, preprocess: Preprocess) -> None:
        self.data = data
        self.preprocess = preprocess
        self.members = {int(label): np.flatnonzero(data.labels == label) for label in np.unique(data.labels)}

    def draw(self, label: int, count: int, stream: torch.Generator) -> Tensor:
        """Return `count` normalised images of a class without replacement, or all if it has fewer."""
        members = self.members[label]
        chosen = members[torch.randperm(len(members), generator=stream)[:count].numpy()]
        return self.preprocess(self.data.inputs[chosen])


Truth = RealImages | Sequence[Tensor]  # the second: a gradient, one tensor for each parameter of the network

# Initial virtual images


def class_statistics(
    data: Samples, preprocess: Preprocess, classes: int, form: Form | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and deviation of the normalised pixels, classes x channels, and which classes have images, classes.

    These are the true statistics of each class, as in the paper (FedLGD's code divides by the number of all images).
    Rows of classes without images are 0. Samples of another `form`: classes x `statistics_width`, see `moments`.
    """
    columns = data.inputs.shape[1] if form is None else statistics_width(form)
    means, deviations = torch.zeros(classes, columns), torch.zeros(classes, columns)
    held = torch.zeros(classes, dtype=torch.bool)
    for label in np.unique(data.labels):
        mean, deviation = moments(preprocess(data.inputs[data.labels == label]).double(), form)
        means[label], deviations[label] = mean.float().cpu(), deviation.float().cpu()
        held[label] = True
    return means, deviations, held


def normal_images(
    means: Tensor, deviations: Tensor, held: Tensor, ipc: int, size: tuple[int, int], stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return `ipc` images for each class in `held`, and their labels, ordered by class. Pixels ~ N(mean, deviation) of
    class and channel.

    `means`, `deviations`: classes x channels; `held`: which classes get images, classes.
    """
    labels = torch.arange(len(held))[held]
    drawn = [
        torch.cat(
            [
                torch.normal(float(mean), float(deviation), (ipc, 1, *size), generator=stream)
                for mean, deviation in zip(means[label], deviations[label], strict=True)
            ],
            dim=1,
        )
        for label in labels.tolist()
    ]
    return torch.cat(drawn), labels.repeat_interleave(ipc)


def normal_samples(
    means: Tensor, deviations: Tensor, held: Tensor, ipc: int, form: Form, stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return virtual samples of a form as `normal_images` returns images.

    `means`, `deviations`: classes x `statistics_width`. Rows: numbers ~ N(mean, deviation) of class and column, codes
    by the class's shares. Series: of full length, values ~ N(mean, deviation) of class and channel. Arrays: of class
    and value.
    """
    if form.kind == "image":
        return normal_images(means, deviations, held, ipc, (form.shape[1], form.shape[2]), stream)
    labels = torch.arange(len(held))[held]
    drawn = [drawn_of_class(means[label], deviations[label], ipc, form, stream) for label in labels.tolist()]
    return torch.cat(drawn), labels.repeat_interleave(ipc)


def real_images(
    truth: RealImages, ipc: int, stream: torch.Generator, form: Form | None = None
) -> tuple[Tensor, Tensor]:
    """Return `ipc` random real images per class, and their labels, in order; a class with fewer repeats them.

    Of another `form`: as virtual samples, see `as_virtual`.
    """
    chosen = []
    for members in truth.members.values():
        rounds = -(-ipc // len(members))
        order = torch.cat([torch.randperm(len(members), generator=stream) for _ in range(rounds)])
        chosen.append(members[order[:ipc].numpy()])
    index = np.concatenate(chosen)
    return as_virtual(truth.preprocess(truth.data.inputs[index]), form), torch.from_numpy(truth.data.labels[index])
