"""Methods whose nodes train on their own virtual images: how the images are made, and how they are kept.

All baselines of FedLGD (Huang et al., TMLR, arXiv:2303.02278) train on these: the initial virtual images of each
client, distilled before round 1 by distribution matching (Zhao and Bilen, WACV 2023, arXiv:2110.04181) and never
refined. Rows, series and arrays are distilled alike; see `virtual_kinds`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ..config import GROUPS, AnyGroup, Count, Positive, Whole
from ..core.client import Client
from ..core.environment import Environment
from ..core.round import Round
from ..data.samples import PIXEL_MAX, Samples
from ..data.spec import ANY_KIND, Kind
from ..distillation.distillers import DM
from ..distillation.sample_generators import as_codes, takes_probabilities
from ..distillation.siamese_kinds import groups_of
from ..distillation.stacked_matching import Matching
from ..distillation.virtual_images import RealImages, Virtual, class_statistics, normal_samples, real_images
from ..errors import InputError, RunError
from ..messages.payload import LOSS, ArraySpec, Expected, Payload
from ..streams import default_stream

_VIRTUAL = "virtual"  # the name of the images in a node's state

_STEPS = "initial-steps"  # the name of their number of finished initial steps

_CHUNK = 100  # steps of the initial distillation in one request

_SHOWN = 20  # the largest number of classes in a figure

VIRTUAL_KINDS: frozenset[Kind] = ANY_KIND - {"tokens"}
NO_GRADIENT: Mapping[Kind, str] = {"tokens": "token ids have no gradient"}


@dataclass(kw_only=True)
class VirtualImages:
    """The common part of methods on virtual images: how each client's images are made before round 1.

    `ipc`: images per class; classes of which the client has no images are skipped. The images start from pixels
    ~ N(mean, deviation) of the client's own class and channel (`normal`), or from random real images (`real`; a class
    with fewer real images repeats them). Then they take `initial_steps` steps of DM, each under a new random network of
    the run's architecture (the paper's code: 10,000 steps, always under its ConvNet). 0 steps and `real`: random real
    images, the control. `real_batch`, `pixel_lr`, `pixel_momentum`, `augment`: of DM; the default of `augment` is all
    groups of the samples' kind. Of rows and arrays, means and deviations are of each column or value; see
    `normal_samples`.

    `show_local`: show the images of the cohort's first node in the run's figures; for this, they are sent to the
    server.
    """

    ipc: Count = 10
    initial: Literal["normal", "real"] = "normal"
    initial_steps: Whole = 10_000
    real_batch: Count = 256
    pixel_lr: Positive = 1.0
    pixel_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    augment: list[AnyGroup] = field(default_factory=lambda: list(GROUPS))
    show_local: bool = False

    def check_images(self, environment: Environment) -> None:
        """Raise InputError for `data.augment`, which virtual images do not use, for groups of `augment` of another
        kind, and for a model that cannot take virtual rows.
        """
        form = environment.data.form
        groups_of(form.kind, self.augment)
        for number, architecture in enumerate(environment.config.model.architectures):
            if not takes_probabilities(environment.model(number), form):
                raise InputError(
                    f"model.name = {architecture.name!r}: virtual rows have categories as probabilities, which this "
                    "model cannot take; set table_mlp."
                )
        if environment.config.data.augment != "none":
            raise InputError(
                f"data.augment = {environment.config.data.augment!r}: training on virtual images uses no augmentation; "
                'set "none" (the augmentation of the distillation is strategy.augment).'
            )

    def most_images(self, images: int, environment: Environment) -> int:
        """Return the number of virtual images, on which a node trains, if it is larger than `images`."""
        return max(images, self.ipc * len(environment.data.classes))

    def distil(self, federation: Round, nodes: list[int]) -> None:
        """Ask the nodes that have first images to distil them, with some steps per request to show the progress."""
        starts = range(0, self.initial_steps, _CHUNK)
        for first in federation.track("initial distillation", starts):
            steps = Payload(numbers={"end": min(first + _CHUNK, self.initial_steps)})
            expect = Expected(numbers={"loss": LOSS})
            replies = federation.ask("distil", dict.fromkeys(nodes, steps), expect=expect)
            losses = [reply.numbers["loss"] for _, reply in replies]
        if starts:
            federation.log("distillation_loss", sum(losses) / len(losses))

    def show_images(self, federation: Round) -> None:
        """Show the images of the cohort's first node in the figures, if `show_local` is set and this round measured."""
        if self.show_local and federation.due:
            node = federation.cohort[0]
            environment = federation.environment
            form, pixels = environment.data.form, sends_pixels(environment)
            expect = Expected(
                images={"virtual": ArraySpec((None, *form.shape), torch.uint8 if pixels else torch.float32)},
                indices={"labels": ArraySpec((None,), torch.int64, between=(0, len(environment.data.classes) - 1))},
            )
            with contextlib.suppress(RunError):  # a missing figure does not end a run; the failure is recorded
                for _, reply in federation.ask("reveal", {node: Payload()}, expect=expect):
                    images, labels = reply.images["virtual"], reply.indices["labels"]
                    raw = images.numpy() if pixels else environment.preprocess.pixels(images.to(environment.device))
                    show_by_class(federation, f"local-{node}", raw, labels.numpy())


def sends_pixels(environment: Environment) -> bool:
    """Return whether nodes send virtual samples for figures as uint8 pixels, and not encoded, as float32."""
    spec = environment.data.spec
    return spec.kind == "image" and spec.largest == PIXEL_MAX


def show_by_class(federation: Round, name: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Show the first raw sample of each class in the run's figures."""
    classes, first = np.unique(labels, return_index=True)
    names = federation.environment.data.classes
    federation.show(name, pixels[first[:_SHOWN]], [names[label] for label in classes[:_SHOWN]])


class VirtualImagesClient(Client):
    """A client that trains on its own virtual images, which its state contains. `real` are its real images."""

    @property
    def about(self) -> VirtualImages:
        """Return the run's settings of virtual images."""
        return self.layer(VirtualImages)

    @cached_property
    def real(self) -> RealImages:
        """Return the node's real images."""
        return RealImages(self.environment.data.train_of(self.node), self.environment.preprocess)

    @cached_property
    def virtual(self) -> Virtual:
        """Return the node's virtual images. Raises ValueError if it has none, because it did not `begin`."""
        if (kept := self.recall(_VIRTUAL)) is None:
            raise ValueError("this node has no virtual images")
        return Virtual.of(kept, self.environment.device, self.environment.data.form)

    @cached_property
    def data(self) -> Samples:
        """Return the node's virtual images, which it trains on."""
        return self.virtual.as_data()

    def keep_virtual(self) -> None:
        """Store the virtual images in the node's state. Raises ValueError if they have diverged."""
        self._keep_images(self.virtual)

    def _keep_images(self, virtual: Virtual) -> None:
        if not bool(torch.isfinite(virtual.images).all()):
            raise ValueError(f"the virtual images have diverged; lower strategy.pixel_lr = {self.about.pixel_lr}")
        self.keep(_VIRTUAL, virtual.tensors())

    def begin(self, request: Payload) -> Payload:
        """Make the first virtual images from the node's class statistics or real images; return their number.

        A node that has images already keeps them.
        """
        if self.recall(_VIRTUAL) is None:
            self.virtual = self._first_images()
        return Payload(numbers={"examples": len(self.virtual.labels)})

    def _first_images(self) -> Virtual:
        about, stream, form = self.about, self.stream("first-images"), self.environment.data.form
        if about.initial == "real":
            images, labels = real_images(self.real, about.ipc, stream, form)
        else:
            images, labels = normal_samples(*self.class_statistics(), about.ipc, form, stream)
        device = self.environment.device
        virtual = Virtual(images.to(device), labels.to(device), form=form)
        self._keep_images(virtual)
        self._note_steps(0)
        return virtual

    def _steps_done(self) -> int:
        kept = self.recall(_STEPS)
        return 0 if kept is None else int(kept["done"])

    def _note_steps(self, done: int) -> None:
        self.keep(_STEPS, {"done": torch.tensor(done)})

    def class_statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and deviation of the node's pixels for each class and channel, and the classes that it has."""
        data = self.environment.data
        return class_statistics(self.real.data, self.environment.preprocess, len(data.classes), data.form)

    def distil(self, request: Payload) -> Payload:
        """Take the initial steps of distribution matching up to the requested one, also missed ones; return their mean
        loss.
        """
        about, environment, end = self.about, self.environment, int(request.numbers["end"])
        method = DM(
            lr=about.pixel_lr,
            momentum=about.pixel_momentum,
            real_batch=about.real_batch,
            augment=groups_of(environment.data.form.kind, about.augment),
        )
        done, architecture = self._steps_done(), environment.architecture_of(self.node)

        def network_of(number: int) -> nn.Module:
            with default_stream(self.stream(f"network-{done + number}")):
                return environment.new_model(architecture)

        losses = self.match(environment.model(architecture), method, "step", range(done, end), network_of)
        if end >= about.initial_steps:
            self.virtual.rest()
        self.keep_virtual()
        self._note_steps(max(done, end))
        return Payload(numbers={"loss": sum(losses) / max(len(losses), 1)})

    def match(
        self,
        model: nn.Module,
        distiller: DM,
        purpose: str,
        numbers: range,
        network_of: Callable[[int], nn.Module] | None = None,
    ) -> list[float]:
        """Take steps of distribution matching on the virtual images; return their losses.

        `numbers`: of the steps, for the names of their streams, `purpose`-0, ... `network_of(i)`: the network of the
        i-th of them, with the architecture of `model`; without it, `model` itself.
        """

        def stream_of(step: int) -> torch.Generator:
            return self.stream(f"{purpose}-{numbers[step]}")

        work = Matching(model, distiller, self.virtual, self.real, len(numbers), stream_of, network_of)
        losses: list[float] = self.environment.do(work)
        return losses

    def reveal(self, request: Payload) -> Payload:
        """Return the virtual images, as pixels, and their labels, for the figures of the run; see `sends_pixels`."""
        virtual, environment = self.virtual, self.environment
        shown = as_codes(virtual.images, environment.data.form).clone()
        if sends_pixels(environment):
            shown = torch.from_numpy(environment.preprocess.pixels(shown))
        return Payload(images={"virtual": shown.cpu()}, indices={"labels": virtual.labels.cpu()})
