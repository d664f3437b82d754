"""VHL: all clients have the same labelled noise images, and align the features of their own images with theirs.

Tang, Zhang, Shi, He, Han, Chu: Virtual Homogeneity Learning: Defending against Data Heterogeneity in Federated
Learning, ICML 2022, arXiv:2206.02465; and the authors' code, whose settings are the defaults here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import (
    ANY_KIND,
    PIXEL_MAX,
    Client,
    Count,
    Environment,
    Form,
    GlobalModelClient,
    InputError,
    Kind,
    Loss,
    NotNegative,
    Payload,
    Positive,
    Preprocess,
    Round,
    Samples,
    Tensors,
    as_codes,
    ask_cached,
    copied,
    default_stream,
    expected_model,
    generator_of,
    one_hot,
    split_off,
    supervised_contrast,
    under,
)

from .fedavg import FedAvg

_NOISE = "noise"  # the name of the shared images in a node's state
_HEAD = "noise_classifier"
_SHOWN = 20
_SERIES_WIDTH = 64  # of the generator of series, as in FedFTG


class VHLClient(GlobalModelClient):
    """Trains on its own images together with a batch of the shared noise images."""

    def fit(self, request: Payload) -> Payload:
        """Train the received weights, and with `labels` = "extra" the noise classifier; return both."""
        method: VHL = self.strategy
        weights, kept_head = split_off(_HEAD, request.weights)
        self.load_model(weights)
        if request.images:
            self.keep(_NOISE, {**request.images, **request.indices})
        kept = self.recall(_NOISE)
        if kept is None:
            raise ValueError("this node has no noise images")
        head: nn.Module | None = None
        if method.labels == "extra":
            head = method.new_head(self.model).to(self.environment.device)
            head.load_state_dict(kept_head)
        form, images = self.environment.data.form, kept["images"]
        if form.kind == "table" and self.data.encoded:  # virtual rows have categories as probabilities
            images = one_hot(images, form)
        noise = Samples(images.numpy(), kept["labels"].numpy(), encoded=form.kind != "image")
        loss = virtual_homogeneity_loss(noise, self.environment.preprocess, head, self.stream("noise-batches"), method)
        value = self.train(self.data, self.labels, purpose="local-training", loss=loss, beside=head)
        self.measure("personal_after_fit")
        trained_weights = self.weights() | ({} if head is None else under(_HEAD, copied(head.state_dict())))
        return Payload(weights=trained_weights, numbers={"examples": len(self.data.labels), "loss": value})


def virtual_homogeneity_loss(
    noise: Samples, preprocess: Preprocess, head: nn.Module | None, stream: torch.Generator, method: VHL
) -> Loss:
    """Return CE(x, y) + alpha CE(n, y_n) + align L_con(x and n, n's features detached) + noise_align L_con(n).

    n: `noise_batch_size` random noise images, or all if there are fewer. With a `head`, noise has its own classes: the
    logits of both are those of the data's classes followed by those of the head. In both cases L_con matches classes by
    number (Tang et al.; the code: `proxy_align_loss`).
    """
    size = min(method.noise_batch_size, len(noise.labels))

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        drawn = noise.take(torch.randperm(len(noise.labels), generator=stream)[:size].numpy())
        features = cast(Callable[[Tensor], Tensor], model.features)(torch.cat([images, preprocess.of(drawn)]))
        logits = cast(nn.Module, model.classifier)(features)
        wanted, shift = torch.from_numpy(drawn.labels).to(labels.device), 0
        if head is not None:
            shift = logits.shape[1]
            logits = torch.cat([logits, head(features)], dim=1)
        own, others = features[: len(images)], features[len(images) :]
        value = F.cross_entropy(logits[: len(images)], labels)
        value = value + method.alpha * F.cross_entropy(logits[len(images) :], wanted + shift)
        both = torch.cat([own, others.detach()])
        value = value + method.align * supervised_contrast(both, torch.cat([labels, wanted]), method.temperature)
        return value + method.noise_align * supervised_contrast(others, wanted, method.temperature)

    return loss


@dataclass(kw_only=True)
class VHL(FedAvg):
    """VHL (Tang et al., ICML 2022): FedAvg with virtual homogeneous data.

    Before round 1 the server draws `noise_per_class` images of each class from an untrained StyleGAN-v2 generator
    (`StyleGenerator`, width `generator_width`) and sends them to each node once: z ~ N(m_y, `z_deviation`^2), the mean
    of each class m_y ~ N(0, `z_mean`^2), as 8-bit pixels. Local training: `virtual_homogeneity_loss`.

    Values: the authors' run script (their images: 5,000 per class). `labels`: "extra": noise has its own classes, which
    are not part of the measured model (in the code they are, and a real image may be classified as noise); "shared",
    the code's "patch": noise has the classes of real images. Deviations: the code's noise inputs of the generator have
    weight 0 and are left out; images have a power of two as their side and are resized; no JPEG compression.

    Rows, series and arrays (no published form): from FedFTG's generator of the kind, untrained, with the same z; then
    `standardised`; categories are the likeliest ones. They are sent encoded, as float32.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND - {"tokens"}
    why_not: ClassVar[Mapping[Kind, str]] = {"tokens": "random token ids are no text"}
    client: ClassVar[type[Client]] = VHLClient
    noise_per_class: Count = 5000
    noise_batch_size: Count = 128
    alpha: NotNegative = 1.0
    align: NotNegative = 1.0
    noise_align: NotNegative = 0.1
    temperature: Positive = 0.07
    labels: Literal["extra", "shared"] = "extra"
    z_mean: Positive = 0.3
    z_deviation: Positive = 0.3
    style: Count = 64
    generator_width: Count = 512
    noise: Tensors = field(default_factory=dict, init=False)
    head: Tensors = field(default_factory=dict, init=False)
    cached: set[int] = field(default_factory=set, init=False)  # nodes that have the noise images

    def new_head(self, model: nn.Module) -> nn.Linear:
        """Return a noise classifier for a model; draws from torch's default stream."""
        classifier = cast(nn.Linear, model.classifier)
        return nn.Linear(classifier.in_features, classifier.out_features)

    def check(self, environment: Environment) -> None:
        """Raise InputError for models to which no noise classifier can be added, and for images unlike the noise."""
        super().check(environment)
        spec = environment.data.spec
        if spec.kind == "image" and (spec.largest != PIXEL_MAX or spec.shape[0] not in (1, 3)):
            values = "floats" if spec.largest is None else f"values of 0 to {spec.largest:g}"
            raise InputError(
                f"strategy.name = {environment.config.strategy.name!r}: its noise images have 8 bits and 1 or 3 "
                f"channels, as in the paper; the data are {spec.describe()}, {values}."
            )
        if self.labels == "extra" and not isinstance(environment.model(0).classifier, nn.Linear):
            raise InputError('strategy.labels = "extra" needs a model whose classifier is one linear layer.')

    def prepare(self, federation: Round) -> None:
        """Draw the noise images, and make the noise classifier."""
        environment = federation.environment
        form, classes = environment.data.form, len(environment.data.classes)
        labels = torch.arange(classes).repeat_interleave(self.noise_per_class)
        with default_stream(federation.stream("noise-images")), torch.no_grad():
            images = self._images(federation) if form.kind == "image" else self._samples(environment, labels)
        self.noise = {"images": images, "labels": labels}
        if self.labels == "extra":
            with default_stream(federation.stream("noise-classifier")):
                self.head = copied(self.new_head(environment.model(0)).state_dict())
        first = self.noise["images"][:: self.noise_per_class][:_SHOWN]
        raw = first.numpy() if form.kind == "image" else environment.preprocess.pixels(first.to(environment.device))
        federation.show("noise", raw, list(environment.data.classes[:_SHOWN]))

    def _images(self, federation: Round) -> Tensor:
        """Return the noise images, uint8, class by class."""
        environment = federation.environment
        classes, (channels, height, width) = len(environment.data.classes), environment.data.image_shape
        side = 2 ** max(2, math.ceil(math.log2(max(height, width))))
        generator = StyleGenerator(side, self.style, self.generator_width).to(environment.device)
        means = self.z_mean * torch.randn(classes, self.style)
        rows = []
        for mean in federation.track("noise images", list(means)):
            z = mean + self.z_deviation * torch.randn(self.noise_per_class, self.style)
            for part in z.to(environment.device).split(100):
                images = F.interpolate(generator(part), (height, width), mode="bilinear", antialias=True)
                images = images if channels == 3 else images.mean(1, keepdim=True)
                rows.append(images.clamp(0, 1).mul(PIXEL_MAX).round().byte().cpu())
        return torch.cat(rows)

    def _samples(self, environment: Environment, labels: Tensor) -> Tensor:
        """Return noise of another kind, encoded, from an untrained generator with the same z as of images."""
        form, classes = environment.data.form, len(environment.data.classes)
        generator = generator_of(form, self.style, classes, _SERIES_WIDTH).eval()
        means = self.z_mean * torch.randn(classes, self.style)
        z = means[labels] + self.z_deviation * torch.randn(len(labels), self.style)
        made = [generator(*part) for part in zip(z.split(100), labels.split(100), strict=True)]
        return standardised(as_codes(torch.cat(made), form), form)

    def run_round(self, federation: Round) -> None:
        """Send the model, and the noise images to nodes that lack them; average the trained models."""
        assert self.weights is not None
        sent = self.weights | under(_HEAD, self.head)
        without = Payload(weights=sent)
        images, labels = {"images": self.noise["images"]}, {"labels": self.noise["labels"]}
        complete = Payload(weights=sent, images=images, indices=labels)
        expect = expected_model(sent)
        merge = self.mean(federation.config.train)
        merged, self.cached = ask_cached(federation, "fit", without, complete, expect, self.cached, merge)
        self.weights, self.head = split_off(_HEAD, merged.weights)
        federation.log("train_loss", merged.numbers["loss"])


def standardised(noise: Tensor, form: Form) -> Tensor:
    """Return encoded noise with mean 0 and deviation 1, as real samples: over all of it, for each number of a row, each
    channel of a series, each value of an array; codes of categories and masks stay.
    """
    free = {"table": form.numbers, "series": form.shape[0] - 1}.get(form.kind, form.shape[0])
    values = noise[:, :free]
    axes = (0, 2) if form.kind == "series" else (0,)
    mean, deviation = values.mean(axes, keepdim=True), values.std(axes, correction=0, keepdim=True)
    scaled = (values - mean) / torch.where(deviation > 0, deviation, 1)
    return torch.cat([scaled, noise[:, free:]], dim=1)


class StyleGenerator(nn.Module):
    """StyleGAN-v2's generator (Karras et al., CVPR 2020, arXiv:1912.04958), untrained.

    `side`: 4, 8, 16 ...; `width`: channels of every map (512, as in the paper up to 32 pixels). One mapping layer, as
    in VHL's code; skip connections to RGB; modulated and demodulated convolutions; blur [1, 3, 3, 1].
    """

    def __init__(self, side: int, style: int, width: int) -> None:
        super().__init__()
        self.mapping = nn.Parameter(torch.randn(style, style))
        self.start = nn.Parameter(torch.randn(1, width, 4, 4))
        doublings = int(math.log2(side)) - 2
        self.convolutions = nn.ModuleList(_Modulated(style, width, width, 3) for _ in range(1 + 2 * doublings))
        self.to_rgb = nn.ModuleList(_Modulated(style, width, 3, 1) for _ in range(1 + doublings))

    def forward(self, z: Tensor) -> Tensor:
        """Return images, B x 3 x side x side, from z, B x style; most values are near 0."""
        z = z * torch.rsqrt(z.pow(2).mean(1, keepdim=True) + 1e-8)
        style = math.sqrt(2) * F.leaky_relu(F.linear(z, self.mapping / math.sqrt(z.shape[1])), 0.2)
        x = self._activated(0, self.start.expand(len(z), -1, -1, -1), style)
        rgb: Tensor = self.to_rgb[0](x, style)
        for level in range(1, len(self.to_rgb)):
            x = self._activated(2 * level - 1, x, style, up=True)
            x = self._activated(2 * level, x, style)
            rgb = _doubled(rgb) + self.to_rgb[level](x, style)
        return rgb

    def _activated(self, number: int, x: Tensor, style: Tensor, up: bool = False) -> Tensor:
        return math.sqrt(2) * F.leaky_relu(self.convolutions[number](x, style, up), 0.2)


class _Modulated(nn.Module):
    """A convolution whose input channels are scaled by a style; it is demodulated with kernel 3, not with kernel 1."""

    def __init__(self, style: int, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.modulation = nn.Parameter(torch.randn(inputs, style))

    def forward(self, x: Tensor, style: Tensor, up: bool = False) -> Tensor:
        """Return the maps, twice as large with `up`."""
        weight = self.weight / math.sqrt(self.weight[0].numel())
        scale = 1 + F.linear(style, self.modulation / math.sqrt(style.shape[1]))
        x = x * scale[:, :, None, None]
        if up:
            x = _blurred(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), (1, 1), 4)
        else:
            x = F.conv2d(x, weight, padding=weight.shape[2] // 2)
        if weight.shape[2] == 3:
            power = torch.einsum("oikl,bi->bo", weight.pow(2), scale.pow(2))
            x = x * torch.rsqrt(power + 1e-8)[:, :, None, None]
        return x


def _blurred(x: Tensor, pad: tuple[int, int], gain: float) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device) / 8
    kernel = (gain * taps[:, None] * taps[None]).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, (*pad, *pad)), kernel, groups=x.shape[1])


def _doubled(x: Tensor) -> Tensor:
    spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    spread[:, :, ::2, ::2] = x
    return _blurred(spread, (2, 1), 4)
