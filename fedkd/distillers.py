"""Dataset distillation: virtual images that stand for a source of truth, and the methods that make them.

A distiller changes a `Virtual` set one iteration at a time, so that whoever runs it can show progress, keep checkpoints
and draw on streams of its own. What it is matched with, the truth, is real images (`RealImages`) or a gradient; a list
of weights is the third kind that there is, for matching trajectories.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .batches import Preprocess
from .config import GROUPS, Group
from .datasets import Images
from .payload import Tensors, parts_of, under
from .siamese import siamese_augment
from .training import Optimizer

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Distance = Literal["rows", "squares", "cosine"]
_ROUNDING = 1e-6  # of the authors' code, in the denominator of the distance
_VELOCITY = "velocity"


@dataclass
class Virtual:
    """Virtual images, N x C x H x W, normalised and never clamped, and their labels, N (or N x classes: soft ones).

    `more`: what else a distiller learns or keeps from one iteration to the next, such as the velocity of the pixels.
    """

    images: Tensor
    labels: Tensor
    more: Tensors = field(default_factory=dict)

    def tensors(self) -> Tensors:
        """Return all of it as named tensors on the CPU."""
        more = {name: tensor.cpu() for name, tensor in self.more.items()}
        return {"images": self.images.cpu(), "labels": self.labels.cpu(), **under("more", more)}

    def rest(self) -> None:
        """Let the pixels start from rest: drop their velocity."""
        self.more.pop(_VELOCITY, None)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Virtual:
        """Return the set in named tensors, as `tensors` returned them."""
        here = {name: tensor.to(device) for name, tensor in tensors.items()}
        more = {name: tensor for name, tensor in here.items() if "/" in name}
        return cls(here["images"], here["labels"], parts_of(more).get("more", {}))

    def as_data(self) -> Images:
        """Return images (float32, which training takes as normalised) and labels as data to train on."""
        return Images(self.images.cpu().numpy(), self.labels.cpu().numpy())


class RealImages:
    """A source of truth: real labelled images, drawn class by class, on the device of training."""

    def __init__(self, data: Images, preprocess: Preprocess) -> None:
        self.data = data
        self.preprocess = preprocess
        self.members = {int(label): np.flatnonzero(data.labels == label) for label in np.unique(data.labels)}

    def draw(self, label: int, count: int, stream: torch.Generator) -> Tensor:
        """Return `count` normalised images of a class without replacement, or all where it has fewer."""
        members = self.members[label]
        chosen = members[torch.randperm(len(members), generator=stream)[:count].numpy()]
        return self.preprocess(self.data.images[chosen])


Truth = RealImages | Sequence[Tensor]  # the second: a gradient, a tensor a parameter of the network


# How virtual images start


def class_statistics(data: Images, preprocess: Preprocess, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and deviation of the normalised pixels, classes x channels, and which classes there are, classes.

    True statistics of each class, as the paper says (FedLGD's code divides by the number of all images). Rows of
    classes without images are 0.
    """
    channels = data.images.shape[1]
    means, deviations = torch.zeros(classes, channels), torch.zeros(classes, channels)
    held = torch.zeros(classes, dtype=torch.bool)
    for label in np.unique(data.labels):
        pixels = preprocess(data.images[data.labels == label]).double()
        means[label] = pixels.mean((0, 2, 3)).float().cpu()
        deviations[label] = pixels.var((0, 2, 3), correction=0).sqrt().float().cpu()
        held[label] = True
    return means, deviations, held


def normal_images(
    means: Tensor, deviations: Tensor, held: Tensor, ipc: int, size: tuple[int, int], stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return `ipc` images a held class of pixels ~ N(mean, deviation) of class and channel, and their labels, in order.

    `means`, `deviations`: classes x channels; `held`: classes.
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


def real_images(truth: RealImages, ipc: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return `ipc` random real images a class, and their labels, in order; a class with fewer repeats its own."""
    chosen = []
    for members in truth.members.values():
        rounds = -(-ipc // len(members))
        order = torch.cat([torch.randperm(len(members), generator=stream) for _ in range(rounds)])
        chosen.append(members[order[:ipc].numpy()])
    index = np.concatenate(chosen)
    return truth.preprocess(truth.data.images[index]), torch.from_numpy(truth.data.labels[index])


# What is matched


def mean_embedding_loss(real: Tensor, virtual: Tensor) -> Tensor:
    """Return sum_d (mean_b psi(x_b)_d - mean_j psi(x~_j)_d)^2 of features, B x D and J x D (Zhao and Bilen, 2023, DM).

    The real features get no gradient.
    """
    return (real.detach().mean(0) - virtual.mean(0)).pow(2).sum()


def gradient_distance(virtual: Sequence[Tensor], truth: Sequence[Tensor], kind: Distance = "rows") -> Tensor:
    """Return how far two gradients are apart, a tensor a parameter each (Zhao et al., 2021, DC).

    `rows`: sum over tensors and rows r (outputs) of 1 - <g_r, G_r> / (||g_r|| ||G_r|| + 1e-6); tensors of one dimension
    (biases, scales of norms) add nothing. `squares`: sum of squared differences; `cosine`: 1 - cosine; both over all
    tensors at once. The truth gets no gradient.
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


def gradient_of(network: nn.Module, images: Tensor, labels: Tensor, *, differentiable: bool = False) -> list[Tensor]:
    """Return the gradient of the mean cross-entropy, a tensor a parameter that trains; labels N, or N x classes."""
    loss = F.cross_entropy(network(images), labels)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(loss, trained, create_graph=differentiable, materialize_grads=True))


# The distillers


@dataclass(kw_only=True)
class Distiller:
    """Changes virtual images so that they match a truth: SGD on the pixels, `lr` and `momentum`.

    A subclass is a keyword-only dataclass and writes `iterate`; its fields are the keys of `[distiller]` in a config.
    `fresh_networks`: whether each iteration wants a network with new random weights; else it wants a model that someone
    trains, and the velocity starts anew with each state of it.
    """

    truth: ClassVar[Literal["images", "gradient"]] = "images"
    fresh_networks: ClassVar[bool] = True
    lr: Rate = 1.0
    momentum: Momentum = 0.5

    @abstractmethod
    def iterate(self, virtual: Virtual, truth: Any, network: nn.Module, stream: torch.Generator) -> float:
        """Change the virtual set by one iteration; return the loss before its (last) step."""

    def step(self, virtual: Virtual, gradient: Tensor) -> None:
        """Move the pixels: v <- momentum v + g, x <- x - lr v."""
        velocity = virtual.more.get(_VELOCITY)
        velocity = gradient if velocity is None else velocity.mul(self.momentum).add_(gradient)
        virtual.more[_VELOCITY] = velocity
        virtual.images = virtual.images - self.lr * velocity


def _by_class(virtual: Virtual, truth: RealImages) -> list[tuple[int, Tensor]]:
    """Return the classes that both have, each with the positions of its virtual images."""
    labels = virtual.labels if virtual.labels.dim() == 1 else virtual.labels.argmax(1)
    both = [label for label in labels.unique().tolist() if label in truth.members]
    return [(label, torch.nonzero(labels == label).flatten()) for label in both]


def _seed(stream: torch.Generator) -> int:
    return int(torch.randint(2**31, (1,), generator=stream))


@dataclass(kw_only=True)
class DM(Distiller):
    """DM: distribution matching (Zhao and Bilen, WACV 2023, arXiv:2110.04181), one step an iteration.

    sum over classes of `mean_embedding_loss` of features under a random network, of at most `real_batch` real images
    and all virtual ones, changed alike by one group of `augment` a class (without flip for digits, say the authors).
    Classes that one side lacks are skipped. Batch norm sees a class of one side at a time: take instance norm.
    """

    real_batch: Count = 256
    augment: list[Group] = field(default_factory=lambda: list(GROUPS))

    def iterate(self, virtual: Virtual, truth: Any, network: nn.Module, stream: torch.Generator) -> float:
        """Take one step on the pixels."""
        network.train()
        embed = cast(Callable[[Tensor], Tensor], network.features)
        gradient = torch.zeros_like(virtual.images)
        total = 0.0
        for label, chosen in _by_class(virtual, truth):
            real, seed = truth.draw(label, self.real_batch, stream), _seed(stream)
            with torch.no_grad():
                wanted = embed(siamese_augment(real, seed, self.augment))
            images = virtual.images[chosen].detach().requires_grad_()
            loss = mean_embedding_loss(wanted, embed(siamese_augment(images, seed, self.augment)))
            (gradient[chosen],) = torch.autograd.grad(loss, images)
            total += float(loss.detach())
        self.step(virtual, gradient)
        return total


@dataclass(kw_only=True)
class IDM(DM):
    """IDM: iterative distribution matching of FedLGD: DM's loss under the model that is being trained, not random ones.

    Huang et al., TMLR, arXiv:2303.02278.
    """

    fresh_networks: ClassVar[bool] = False


_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}  # of the authors' code


@dataclass(kw_only=True)
class DC(Distiller):
    """DC: gradient matching (Zhao, Mopuri, Bilen, ICLR 2021, arXiv:2006.05929).

    An iteration takes a new network and `outer` times: a step on the pixels, on the sum over classes of the distance of
    the gradients of virtual and at most `real_batch` real images; then `inner` epochs of training the network on the
    virtual images (not after the last). `outer` and `inner` are by default the authors' for 1, 10, 20 ... 50 images a
    class, else (ipc, 500 / ipc). Batch norm is frozen after one pass over 16 real images a class.
    """

    lr: Rate = 0.1
    real_batch: Count = 256
    outer: Count | None = None
    inner: Count | None = None
    network_lr: Rate = 0.01
    train_batch: Count = 256
    distance: Distance = "rows"
    augment: list[Group] = field(default_factory=list)

    def iterate(self, virtual: Virtual, truth: Any, network: nn.Module, stream: torch.Generator) -> float:
        """Take `outer` steps on the pixels, and train the network between them."""
        network.train()
        classes = _by_class(virtual, truth)
        ipc = max(len(chosen) for _, chosen in classes)
        outer, inner = _LOOPS.get(ipc, (ipc, max(1, 500 // ipc)))
        outer, inner = self.outer or outer, self.inner or inner
        optimizer = torch.optim.SGD(network.parameters(), lr=self.network_lr)
        total = 0.0
        for number in range(outer):
            _freeze_batch_norm(network, truth, stream)
            gradient = torch.zeros_like(virtual.images)
            total = 0.0
            for label, chosen in classes:
                real, seed = truth.draw(label, self.real_batch, stream), _seed(stream)
                targets = torch.full((len(real),), label, device=real.device)
                wanted = gradient_of(network, siamese_augment(real, seed, self.augment), targets)
                images = virtual.images[chosen].detach().requires_grad_()
                changed = siamese_augment(images, seed, self.augment)
                found = gradient_of(network, changed, virtual.labels[chosen], differentiable=True)
                loss = gradient_distance(found, wanted, self.distance)
                (gradient[chosen],) = torch.autograd.grad(loss, images)  # class by class: one graph at a time
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
    arXiv:2102.08259); the network between the steps trains on augmented virtual images too.
    """

    augment: list[Group] = field(default_factory=lambda: list(GROUPS))


@dataclass(kw_only=True)
class FGM(Distiller):
    """FGM: federated gradient matching of FedLGD (Huang et al., TMLR, arXiv:2303.02278): the truth is a given gradient.

    One gradient of all virtual images at once, not class by class; no augmentation; the network stays as it is, in eval
    mode. `rows` is free of the scale of the truth, so learning rate and number of local steps do not matter to it.
    """

    truth: ClassVar[Literal["images", "gradient"]] = "gradient"
    fresh_networks: ClassVar[bool] = False
    distance: Distance = "rows"

    def iterate(self, virtual: Virtual, truth: Any, network: nn.Module, stream: torch.Generator) -> float:
        """Take one step on the pixels."""
        network.eval()
        images = virtual.images.detach().requires_grad_()
        loss = gradient_distance(
            gradient_of(network, images, virtual.labels, differentiable=True), truth, self.distance
        )
        (gradient,) = torch.autograd.grad(loss, images)
        self.step(virtual, gradient)
        return float(loss.detach())


def train_epoch(
    network: nn.Module,
    virtual: Virtual,
    optimizer: Optimizer,
    batch_size: int,
    augment: Sequence[Group],
    stream: torch.Generator,
) -> None:
    """Train a network for one epoch on virtual images; each batch changed by one group of `augment`, each image with
    parameters of its own.
    """
    for chosen in torch.randperm(len(virtual.labels), generator=stream).to(virtual.images.device).split(batch_size):
        images = siamese_augment(virtual.images[chosen], _seed(stream), augment, siamese=False)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), virtual.labels[chosen]).backward()
        optimizer.step()


def _freeze_batch_norm(network: nn.Module, truth: RealImages, stream: torch.Generator, count: int = 16) -> None:
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    if norms:
        with torch.no_grad():
            network.train()(torch.cat([truth.draw(label, count, stream) for label in truth.members]))
        for norm in norms:
            norm.eval()
