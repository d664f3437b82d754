"""FedLGD: clients train on few virtual images, which they refine with the global model; the server distils anchors.

Huang, Wang, Yang, Li: Federated Learning on Virtual Heterogeneous Data with Local-global Dataset Distillation, TMLR,
arXiv:2303.02278; its pipeline figure, the text of an earlier version, and the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import (
    FGM,
    IDM,
    NO_GRADIENT,
    UNWEIGHTED,
    VIRTUAL_KINDS,
    ArraySpec,
    BatchLoss,
    Client,
    Count,
    Distance,
    Environment,
    Expected,
    GlobalModelClient,
    Kind,
    Loss,
    NotNegative,
    Own,
    Payload,
    Positive,
    Round,
    RunError,
    Samples,
    Strategy,
    Tensors,
    Virtual,
    VirtualImages,
    VirtualImagesClient,
    Whole,
    as_codes,
    ask_cached,
    cross_entropy,
    expected_model,
    groups_of,
    matched_parameters,
    normal_samples,
    show_by_class,
    statistics_width,
    supervised_contrast,
)

Regulariser = Literal["supcon", "mmd"]
_ANCHORS = "anchors"  # the name of the global virtual images in a node's state


class FedLGDClient(VirtualImagesClient, GlobalModelClient):
    """Refines its virtual images in some rounds; trains on them and on the global virtual images."""

    def begin(self, request: Payload) -> Payload:
        """Make the first virtual images; return the node's class statistics."""
        super().begin(request)
        means, deviations, held = self.class_statistics()
        return Payload(statistics={"means": means, "deviations": deviations, "held": held})

    def fit(self, request: Payload) -> Payload:
        """Refine the virtual images if requested; train the received weights on them and on the anchors."""
        method: FedLGD = self.strategy
        self.load_model(request.weights)
        if request.images:
            self.keep(_ANCHORS, {**request.images, **request.indices})
        kept = self.recall(_ANCHORS)
        if kept is None:
            raise ValueError("this node has no global virtual images")
        anchors = Virtual.of(kept, self.environment.device, self.environment.data.form)
        if request.numbers["refine"]:
            self.refine(method)
            self.load_model(request.weights)  # restores the statistics of batch norm
        selected = bool(request.numbers["selected"])
        data = self.data if selected and method.selected == "figure" else _union(self.data, anchors.as_data())
        loss: Loss = cross_entropy
        if not selected:
            loss = anchored_loss(anchors, method.lambda_con, method.temperature, method.regulariser)
        value = self.train(data, torch.from_numpy(data.labels), purpose="local-training", loss=loss)
        self.measure("personal_after_fit")
        return Payload(weights=self.weights(), numbers={"examples": UNWEIGHTED, "loss": value})

    def refine(self, method: FedLGD) -> None:
        """Take `local_steps` steps of IDM under the received model, and store the images."""
        distiller = IDM(
            lr=method.pixel_lr,
            momentum=method.pixel_momentum,
            real_batch=method.real_batch,
            augment=groups_of(self.environment.data.form.kind, method.augment),
        )
        self.virtual.rest()
        self.match(self.model, distiller, "refine", range(method.local_steps))
        self.virtual.rest()
        self.keep_virtual()


def _union(first: Samples, second: Samples) -> Samples:
    images, labels = (np.concatenate(pair) for pair in zip(first[:2], second[:2], strict=True))
    return Samples(images, labels, encoded=True)


def anchored_loss(anchors: Virtual, lambda_con: float, temperature: float, regulariser: Regulariser) -> BatchLoss:
    """Return CE(batch) + lambda L_con over the batch and all anchors; gradients go through the features of both.

    `supcon`: the supervised contrastive loss, the mean over all images of both; `mmd`: the kernel discrepancy of their
    features, without labels (Huang et al.; the text sums over the anchors only).
    """
    of_batch = partial(_anchored, lambda_con=lambda_con, temperature=temperature, regulariser=regulariser)
    return BatchLoss(of_batch, {"images": anchors.inputs(), "labels": anchors.labels})


def _anchored(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    anchors: Own,
    *,
    lambda_con: float,
    temperature: float,
    regulariser: Regulariser,
) -> Tensor:
    both = cast(Callable[[Tensor], Tensor], model.features)(torch.cat([images, anchors["images"]]))
    value = F.cross_entropy(cast(nn.Module, model.classifier)(both[: len(images)]), labels)
    if regulariser == "mmd":
        return value + lambda_con * kernel_discrepancy(both[: len(images)], both[len(images) :])
    return value + lambda_con * supervised_contrast(both, torch.cat([labels, anchors["labels"]]), temperature)


def kernel_discrepancy(first: Tensor, second: Tensor, kernels: int = 5) -> Tensor:
    """Return the squared maximum mean discrepancy of features, N x D and M x D, under a sum of Gaussian kernels.

    exp(-||x - y||^2 / (b 2^i)), i = 0 ... `kernels` - 1; b = the mean squared distance of different rows of both,
    divided by 2^(kernels // 2), detached (FedLGD's code: `mmd`). Means over all pairs, also of a row with itself.
    """
    both = torch.cat([first, second])
    lengths, products = both.pow(2).sum(1), both @ both.T  # the differences, n x n x D, would need gigabytes
    squares = (lengths[:, None] + lengths[None] - 2 * products).clamp(min=0)
    count = len(both)
    bandwidth = (squares.detach().sum() / (count**2 - count)).clamp(min=torch.finfo(squares.dtype).tiny)
    bandwidth = bandwidth / 2 ** (kernels // 2)
    values = torch.stack([torch.exp(-squares / (bandwidth * 2**i)) for i in range(kernels)]).sum(0)
    n = len(first)
    return values[:n, :n].mean() + values[n:, n:].mean() - values[:n, n:].mean() - values[n:, :n].mean()


@dataclass(kw_only=True)
class FedLGD(VirtualImages, Strategy):
    """FedLGD (Huang et al., TMLR): local-global dataset distillation; equal models.

    Before round 1: `VirtualImages`, and the global virtual images, `server_ipc` per class, with pixels ~ N(mean,
    deviation) of the clients' class statistics, averaged over the clients that have the class.
    Clients that join later do the same before their first round; classes that only they have get global images then.

    Round t + 1 (the paper counts t from 0), with t in tau = {0, `gap`, 2 `gap`, ..., `times` `gap`}: except for t = 0,
    the cohort first refines its images with `local_steps` of IDM under the received model. It trains with plain
    cross-entropy, only on its own images (`selected` = "figure", the paper's pipeline figure) or on both (`code`, also
    at t = 0, when the global images are noise). Then the server takes `global_steps` of FGM towards
    (theta_t - theta_t+1) / lr under theta_t. In all other rounds clients train on both, with L_con between each batch
    and all global images (`anchored_loss`; `lambda_con`: 1 by default in the code, 10 for digits in its README).
    theta_t+1 is the plain mean.

    Values: the paper's. Both distillers use `pixel_lr` and `pixel_momentum`. `distance`: of FGM. Global images are sent
    to a node if it does not have the newest ones. Deviations: true class statistics (the code divides by the number of
    all images), empty classes are skipped, a client that is sampled late starts from the newest weights (the code: from
    its own last ones), seeds come from streams (the code: from the clock), networks are in eval mode for FGM. With
    batch norm the statistics of batches and anchors mix; the paper uses instance norm.

    Rows, series and arrays too (no published form): class statistics of each column, channel or value; FGM leaves out
    the embeddings of categories.
    """

    kinds: ClassVar[frozenset[Kind]] = VIRTUAL_KINDS
    why_not: ClassVar[Mapping[Kind, str]] = NO_GRADIENT
    client: ClassVar[type[Client]] = FedLGDClient
    equal_models: ClassVar[bool] = True
    global_model: ClassVar[bool] = True
    server_ipc: Count = 10
    gap: Count = 5
    times: Whole = 10
    local_steps: Whole = 100
    global_steps: Whole = 500
    selected: Literal["figure", "code"] = "figure"
    lambda_con: NotNegative = 1.0
    temperature: Positive = 0.07
    regulariser: Regulariser = "supcon"
    distance: Distance = "rows"
    anchors: Tensors = field(default_factory=dict, init=False)  # the global virtual images and their labels
    cached: set[int] = field(default_factory=set, init=False)  # nodes that have the newest ones

    def check(self, environment: Environment) -> None:
        """Raise InputError for what virtual images cannot use."""
        self.check_images(environment)

    def prepare_nodes(self, federation: Round) -> None:
        """Ask nodes to make their images; make global images of classes that no node before has had.

        They start from the class statistics of these nodes. The global images of all other classes stay.
        """
        data = federation.environment.data
        classes, columns = len(data.classes), statistics_width(data.form)
        table = ArraySpec((classes, columns))
        positive = ArraySpec((classes, columns), between=(0, math.inf))
        specs = {"means": table, "deviations": positive, "held": ArraySpec((classes,), torch.bool)}
        nodes, statistics = [], []
        for node, reply in federation.ask("begin", expect=Expected(statistics=specs)):
            nodes.append(node)
            statistics.append([reply.statistics[name] for name in specs])
        mean, deviation, held = average_statistics(*(torch.stack(part) for part in zip(*statistics, strict=True)))
        self.cached = self.cached - set(nodes)
        if self.anchors:
            held[self.anchors["labels"].unique()] = False
        if bool(held.any()):
            stream = federation.stream("first-images")
            images, labels = normal_samples(mean, deviation, held, self.server_ipc, data.form, stream)
            self._add_anchors(images, labels)
        self.distil(federation, nodes)

    def _add_anchors(self, images: Tensor, labels: Tensor) -> None:
        """Add global images of new classes; the order stays that of the classes."""
        if self.anchors:
            images, labels = torch.cat([self.anchors["images"], images]), torch.cat([self.anchors["labels"], labels])
            order = labels.argsort(stable=True)
            images, labels = images[order], labels[order]
        self.anchors, self.cached = {"images": images, "labels": labels}, set()

    def prepare(self, federation: Round) -> None:
        """Show the first images."""
        self._show(federation)
        self.show_images(federation)

    def run_round(self, federation: Round) -> None:
        """Send model and schedule, average the trained models, distil the global images in selected rounds."""
        assert self.weights is not None
        t = federation.number - 1
        selected = t % self.gap == 0 and t <= self.gap * self.times
        numbers = {"selected": float(selected), "refine": float(selected and t > 0)}
        without = Payload(weights=self.weights, numbers=numbers)
        images, labels = {"images": self.anchors["images"]}, {"labels": self.anchors["labels"]}
        complete = Payload(weights=self.weights, images=images, indices=labels, numbers=numbers)
        expect = expected_model(self.weights, unweighted=True)
        merged, self.cached = ask_cached(federation, "fit", without, complete, expect, self.cached)
        before, self.weights = self.weights, merged.weights
        federation.log("train_loss", merged.numbers["loss"])
        if selected:
            self._distil(federation, before)
        self._show(federation)
        self.show_images(federation)

    def _distil(self, federation: Round, before: Tensors) -> None:
        """Change the global images so that their gradient under `before` matches that of the round."""
        assert self.weights is not None
        environment = federation.environment
        network = environment.model(0)
        network.load_state_dict(before)
        lr = federation.config.train.in_round(federation.number).optimizer.lr
        target = [
            ((before[name] - self.weights[name]) / lr).to(environment.device)
            for name in matched_parameters(network, environment.data.form)
        ]
        virtual = Virtual.of(self.anchors, environment.device, environment.data.form)
        distiller = FGM(lr=self.pixel_lr, momentum=self.pixel_momentum, distance=self.distance)
        stream = federation.stream("global-distillation")
        losses = [
            distiller.iterate(virtual, target, network, stream)
            for _ in federation.track("global distillation", range(self.global_steps))
        ]
        if not bool(torch.isfinite(virtual.images).all()):
            raise RunError(
                f"Round {federation.number}: the global virtual images have diverged; lower strategy.pixel_lr = "
                f"{self.pixel_lr}."
            )
        if losses:
            self.anchors = {"images": virtual.images.cpu(), "labels": virtual.labels.cpu()}
            self.cached = set()
            federation.log("gradient_distance", [losses[0], losses[-1]])

    def _show(self, federation: Round) -> None:
        environment = federation.environment
        images = as_codes(self.anchors["images"].to(environment.device), environment.data.form)
        pixels = environment.preprocess.pixels(images)
        show_by_class(federation, "global-virtual", pixels, self.anchors["labels"].numpy())


def average_statistics(means: Tensor, deviations: Tensor, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the class means and deviations, each the plain mean over the clients that have the class, and a mask of
    the classes that any client has.

    `means`, `deviations`: N x classes x `statistics_width`; `held`: N x classes, the classes that each client has.
    Deviations are averaged, not pooled, as in the authors' code.
    """
    shares = held.float() / held.sum(0).clamp(min=1)
    averaged = (torch.einsum("nk,nkc->kc", shares, table) for table in (means, deviations))
    return (*averaged, held.any(0))  # type: ignore[return-value]
