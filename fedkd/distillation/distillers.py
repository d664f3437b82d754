"""Dataset distillers: methods that change virtual images so that they match a truth.

A distiller changes a `Virtual` set one iteration at a time, so that its caller can show progress, keep checkpoints and
use its own streams. The truth is real images (`RealImages`) or a gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import GROUPS, AnyGroup, Count, Group, Positive
from ..learning.batches import shuffled
from ..learning.optimizers import Optimizer
from .dc_augmentation import dc_augment
from .matching import Distance, gradient_distance, gradient_of, matched_parameters, mean_embedding_loss
from .siamese import siamese_augment
from .siamese_kinds import siamese_change
from .virtual_images import VELOCITY, RealImages, Virtual
from .virtual_kinds import free_part, model_inputs, real_inputs

Momentum = Annotated[float, Field(ge=0, lt=1)]

# The distillers


@dataclass(kw_only=True)
class Distiller:
    """Changes virtual images so that they match a truth: SGD on the pixels, `lr` and `momentum`.

    A subclass is a keyword-only dataclass and implements `iterate`; its fields are the keys of `[distiller]` in a
    config. `fresh_networks`: whether each iteration needs a network with new random weights. Otherwise it uses a model
    that the caller trains, and the velocity is reset whenever the model changes.
    """

    truth: ClassVar[Literal["images", "gradient"]] = "images"
    fresh_networks: ClassVar[bool] = True
    lr: Positive = 1.0
    momentum: Momentum = 0.5

    @abstractmethod
    def iterate(self, virtual: Virtual, truth: Any, network: nn.Module, stream: torch.Generator) -> float:
        """Change the virtual set by one iteration; return the loss before its (last) step."""

    def step(self, virtual: Virtual, gradient: Tensor) -> None:
        """Change the pixels: v <- momentum v + g, x <- x - lr v. What is not free, such as a mask, stays as it is."""
        gradient = free_part(gradient, virtual.images, virtual.form)
        velocity = virtual.more.get(VELOCITY)
        velocity = gradient if velocity is None else velocity.mul(self.momentum).add_(gradient)
        virtual.more[VELOCITY] = velocity
        virtual.images = virtual.images - self.lr * velocity


def shared_classes(virtual: Virtual, truth: RealImages) -> list[tuple[int, Tensor]]:
    """Return the classes that both have, each with the positions of its virtual images."""
    labels = virtual.labels if virtual.labels.dim() == 1 else virtual.labels.argmax(1)
    both = [label for label in labels.unique().tolist() if label in truth.members]
    return [(label, torch.nonzero(labels == label).flatten()) for label in both]


def draw_seed(stream: torch.Generator) -> int:
    """Draw a seed of `siamese_augment`."""
    return int(torch.randint(2**31, (1,), generator=stream))


@dataclass(kw_only=True)
class DM(Distiller):
    """DM: distribution matching (Zhao and Bilen, WACV 2023, arXiv:2110.04181), one step per iteration.

    The loss is the sum over classes of `mean_embedding_loss` of features under a random network, of at most
    `real_batch` real images and all virtual images. For each class, both are changed equally by one group of `augment`
    (the authors: without flip for digits). Classes that one side lacks are skipped. Batch norm would use one class of
    one side at a time: use instance norm. `augment` of samples of another kind: see `groups_of`.
    """

    real_batch: Count = 256
    augment: list[AnyGroup] = field(default_factory=lambda: list(GROUPS))

    def iterate(self, virtual: Virtual, truth: Any, network: nn.Module, stream: torch.Generator) -> float:
        """Take one step on the pixels."""
        network.train()
        embed = cast(Callable[[Tensor], Tensor], network.features)
        gradient = torch.zeros_like(virtual.images)
        total, form = 0.0, virtual.form
        for label, chosen in shared_classes(virtual, truth):
            real, seed = real_inputs(truth.draw(label, self.real_batch, stream), form), draw_seed(stream)
            with torch.no_grad():
                wanted = embed(siamese_change(real, seed, self.augment, form, real))
            images = virtual.images[chosen].detach().requires_grad_()
            changed = siamese_change(model_inputs(images, form), seed, self.augment, form, real)
            loss = mean_embedding_loss(wanted, embed(changed))
            (gradient[chosen],) = torch.autograd.grad(loss, images)
            total += float(loss.detach())
        self.step(virtual, gradient)
        return total


@dataclass(kw_only=True)
class IDM(DM):
    """IDM: iterative distribution matching of FedLGD: DM's loss under the trained model, not under random networks.

    Huang et al., TMLR, arXiv:2303.02278.
    """

    fresh_networks: ClassVar[bool] = False


_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}  # as in the authors' code


def loops_of(ipc: int) -> tuple[int, int]:
    """Return DC's numbers of outer and inner loops for a number of images per class."""
    return _LOOPS.get(ipc, (ipc, max(1, 500 // ipc)))


@dataclass(kw_only=True)
class DC(Distiller):
    """DC: gradient matching (Zhao, Mopuri, Bilen, ICLR 2021, arXiv:2006.05929).

    An iteration takes a new network and repeats `outer` times: a step on the pixels, with the sum over classes of the
    distance between the gradients of virtual and of at most `real_batch` real images; then `inner` epochs of training
    the network on the virtual images (not after the last step). `outer` and `inner` are by default the authors' values
    for 1, 10, 20 ... 50 images per class, otherwise (ipc, 500 / ipc). Batch norm is frozen after one pass over 16 real
    images per class.
    """

    lr: Positive = 0.1
    real_batch: Count = 256
    outer: Count | None = None
    inner: Count | None = None
    network_lr: Positive = 0.01
    train_batch: Count = 256
    distance: Distance = "rows"
    augment: list[AnyGroup] = field(default_factory=list)

    def iterate(self, virtual: Virtual, truth: Any, network: nn.Module, stream: torch.Generator) -> float:
        """Take `outer` steps on the pixels, and train the network between them."""
        network.train()
        classes = shared_classes(virtual, truth)
        ipc = max(len(chosen) for _, chosen in classes)
        outer, inner = loops_of(ipc)
        outer, inner = self.outer or outer, self.inner or inner
        optimizer, form = torch.optim.SGD(network.parameters(), lr=self.network_lr), virtual.form
        matched = list(matched_parameters(network, form).values())
        for number in range(outer):
            _freeze_batch_norm(network, truth, stream)
            gradient = torch.zeros_like(virtual.images)
            total = 0.0
            for label, chosen in classes:
                real, seed = real_inputs(truth.draw(label, self.real_batch, stream), form), draw_seed(stream)
                targets = torch.full((len(real),), label, device=real.device)
                changed_real = siamese_change(real, seed, self.augment, form, real)
                wanted = gradient_of(network, changed_real, targets, parameters=matched)
                images = virtual.images[chosen].detach().requires_grad_()
                changed = siamese_change(model_inputs(images, form), seed, self.augment, form, real)
                labels = virtual.labels[chosen]
                found = gradient_of(network, changed, labels, differentiable=True, parameters=matched)
                loss = gradient_distance(found, wanted, self.distance)
                (gradient[chosen],) = torch.autograd.grad(loss, images)  # class by class: only one graph in memory
                total += float(loss.detach())
            self.step(virtual, gradient)
            if number < outer - 1:
                network.train()
                for _ in range(inner):
                    train_epoch(network, virtual, optimizer, self.train_batch, self.augment, stream)
        return total


@dataclass(kw_only=True)
class DSA(DC):
    """DSA: DC with the same differentiable augmentation of real and virtual images (Zhao and Bilen, ICML 2021,
    arXiv:2102.08259). Between the steps, the network also trains on augmented virtual images.
    """

    augment: list[AnyGroup] = field(default_factory=lambda: list(GROUPS))


@dataclass(kw_only=True)
class FGM(Distiller):
    """FGM: federated gradient matching of FedLGD (Huang et al., TMLR, arXiv:2303.02278): the truth is a given gradient.

    One gradient of all virtual images together, not class by class; no augmentation; the network is not trained and in
    eval mode. The gradients are those of `matched_parameters`. `rows` does not depend on the scale of the truth, so
    learning rate and number of local steps have no effect on it.
    """

    truth: ClassVar[Literal["images", "gradient"]] = "gradient"
    fresh_networks: ClassVar[bool] = False
    distance: Distance = "rows"

    def iterate(self, virtual: Virtual, truth: Any, network: nn.Module, stream: torch.Generator) -> float:
        """Take one step on the pixels."""
        network.eval()
        images = virtual.images.detach().requires_grad_()
        found = gradient_of(
            network,
            model_inputs(images, virtual.form),
            virtual.labels,
            differentiable=True,
            parameters=matched_parameters(network, virtual.form).values(),
        )
        loss = gradient_distance(found, truth, self.distance)
        (gradient,) = torch.autograd.grad(loss, images)
        self.step(virtual, gradient)
        return float(loss.detach())


def train_epoch(
    network: nn.Module,
    virtual: Virtual,
    optimizer: Optimizer,
    batch_size: int,
    augment: Sequence[AnyGroup] | Literal["dc"],
    stream: torch.Generator,
) -> None:
    """Train a network for one epoch on virtual samples. Each batch is changed by one group of `augment`, images with
    separate parameters for each, others all alike. "dc", for images: see `dc_augment`.
    """
    form = virtual.form
    for positions in shuffled(len(virtual.labels), batch_size, stream):
        chosen = positions.to(virtual.images.device)
        seed = draw_seed(stream)
        if augment == "dc":
            images = dc_augment(virtual.images[chosen].detach(), torch.Generator().manual_seed(seed))
        elif form is None or form.kind == "image":
            images = siamese_augment(virtual.images[chosen], seed, cast(Sequence[Group], augment), siamese=False)
        else:
            inputs = model_inputs(virtual.images[chosen], form)
            images = siamese_change(inputs, seed, augment, form, inputs)
        optimizer.zero_grad()
        F.cross_entropy(network(images), virtual.labels[chosen]).backward()
        optimizer.step()


def _freeze_batch_norm(network: nn.Module, truth: RealImages, stream: torch.Generator, count: int = 16) -> None:
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    if norms:
        with torch.no_grad():
            network.train()(torch.cat([truth.draw(label, count, stream) for label in truth.members]))
        for norm in norms:
            norm.eval()
