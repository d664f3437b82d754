"""Distribution matching of many clients in one step: one forward pass of real and of virtual images for all classes.

Each client has its own network, images and draws. The mean embedding of each class is the mean of its rows, so no
layer of the network may mix the images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..config import Group
from ..learning.batches import Preprocess
from ..learning.stacked_models import Path, StackedModel, has_norm, refusing_loops, stacked
from .distillers import DM, draw_seed, shared_classes
from .siamese import siamese_augment
from .virtual_images import RealImages, Virtual

_ROWS = 256  # real images of a client that are embedded together
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Matching:
    """Steps of distribution matching of one client: its virtual images, which they change, and its real images.

    `stream_of(number)`, `network_of(number)`: the stream and the random network of each step, from 0; without
    `network_of` the network of all steps is `model`. `model` has the architecture of these networks.
    """

    model: nn.Module
    distiller: DM
    virtual: Virtual
    real: RealImages
    steps: int
    stream_of: Callable[[int], torch.Generator]
    network_of: Callable[[int], nn.Module] | None = None

    @property
    def preprocess(self) -> Preprocess:
        """Return the preprocessing of the real images."""
        return self.real.preprocess

    def alone(self) -> list[float]:
        """Take the steps of one client, class by class; return their losses."""
        losses = []
        for number in range(self.steps):
            network = self.model if self.network_of is None else self.network_of(number)
            losses.append(self.distiller.iterate(self.virtual, self.real, network, self.stream_of(number)))
        return losses


def why_matched_alone(matching: Matching) -> str | None:
    """Return why a client's classes can only be matched one at a time, or None."""
    if type(matching.distiller).iterate is not DM.iterate:
        return f"{type(matching.distiller).__name__} has an iteration of its own"
    form = matching.virtual.form
    if form is not None and form.kind != "image":
        return f"virtual samples of kind {form.kind} are matched class by class"
    if has_norm(matching.model):
        return "in distribution matching, batch norm uses one class of one side at a time"
    if not shared_classes(matching.virtual, matching.real):
        return "it has no real images of the classes of its virtual images"
    return None


def matching_key(matching: Matching) -> Hashable:
    """Return what clients must have in common to be matched in one step."""
    images = matching.virtual.images
    return id(matching.model), repr(matching.distiller), matching.network_of is None, images.shape[1:], images.dtype


def match_stacked(matchings: Sequence[Matching], states: Sequence[State], path: Path) -> list[list[float]]:
    """Take the steps of clients with one `matching_key`; return the losses of each. Their virtual images change.

    `states`: the parameters and buffers of their models. Raises NotStacked, and OutOfMemoryError. After an error
    nothing is changed.
    """
    virtuals = [replace(one.virtual, more=dict(one.virtual.more)) for one in matchings]
    works = [replace(one, virtual=virtual) for one, virtual in zip(matchings, virtuals, strict=True)]
    model = StackedModel(matchings[0].model, path)
    losses: list[list[float]] = [[] for _ in works]
    for number in range(max(one.steps for one in works)):
        live = [i for i, one in enumerate(works) if one.steps > number]
        with refusing_loops() if number == 0 else nullcontext():
            found = _step([works[i] for i in live], [states[i] for i in live], number, model)
        for i, loss in zip(live, found, strict=True):
            losses[i].append(loss)
    for one, virtual in zip(matchings, virtuals, strict=True):
        one.virtual.images, one.virtual.more = virtual.images, virtual.more
    return losses


def _step(works: Sequence[Matching], states: Sequence[State], number: int, model: StackedModel) -> list[float]:
    """Take one step of each client; return the losses before it."""
    networks = [
        s if w.network_of is None else w.network_of(number).state_dict() for w, s in zip(works, states, strict=True)
    ]
    device = works[0].virtual.images.device
    tensors = {name: stacked([network[name].to(device) for network in networks]) for name in networks[0]}
    leaves = [one.virtual.images.detach().requires_grad_() for one in works]
    real, virtual = zip(
        *(_sides(w, leaf, w.stream_of(number)) for w, leaf in zip(works, leaves, strict=True)), strict=True
    )
    with torch.no_grad():
        wanted = _means(model, tensors, real)
    apart = (wanted - _means(model, tensors, virtual)).pow(2).sum(2)  # a class that a client lacks adds 0
    gradients = torch.autograd.grad(apart.sum(), leaves)
    for work, gradient in zip(works, gradients, strict=True):
        work.distiller.step(work.virtual, gradient)
    return [sum(of_classes) for of_classes in apart.detach().tolist()]


class _Side(NamedTuple):
    """Augmented images of all classes of a client, one class after another, and how many each has."""

    images: Tensor
    counts: list[int]


def _sides(work: Matching, leaf: Tensor, stream: torch.Generator) -> tuple[_Side, _Side]:
    """Return a client's real and virtual images of a step, with the draws of `DM.iterate`."""
    real, virtual = [], []
    groups = cast(list[Group], work.distiller.augment)  # of images: see `why_matched_alone`
    for label, chosen in shared_classes(work.virtual, work.real):
        drawn, seed = work.real.draw(label, work.distiller.real_batch, stream), draw_seed(stream)
        real.append(siamese_augment(drawn, seed, groups))
        virtual.append(siamese_augment(leaf[chosen], seed, groups))
    return _Side(torch.cat(real), [*map(len, real)]), _Side(torch.cat(virtual), [*map(len, virtual)])


def _means(model: StackedModel, tensors: State, sides: Sequence[_Side]) -> Tensor:
    """Return the mean features of each class of each client, K x classes x D; zeros of classes that it lacks."""
    widest = max(len(side.images) for side in sides)
    images = torch.stack([torch.cat([x, x[-1:].expand(widest - len(x), *x.shape[1:])]) for x, _ in sides])
    shares = torch.zeros(len(sides), max(len(side.counts) for side in sides), widest, dtype=images.dtype)
    for share, (_, counts) in zip(shares, sides, strict=True):
        start = 0
        for place, count in enumerate(counts):
            share[place, start : start + count] = 1 / count
            start += count
    parts = [
        share @ model.outputs(tensors, batch, rows=None, training=True, features=True)["features"]
        for batch, share in zip(images.split(_ROWS, 1), shares.to(images.device).split(_ROWS, 2), strict=True)
    ]
    return torch.stack(parts).sum(0)
