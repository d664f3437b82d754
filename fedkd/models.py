"""Architectures. Each has `features(x)` and a linear `classifier`; its output is `classifier(features(x))`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import InputError, unknown
from .registry import find, names, options

Shape = tuple[int, int, int]  # channels, height, width
Width = Annotated[int, Field(ge=1)]
ConvNorm = Literal["none", "batch", "instance"]


class Classifier(nn.Module):
    """A feature extractor and a linear classifier on top of it."""

    def __init__(self, features: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, B x C, of images, B x channels x height x width."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def build(name: str, table: dict[str, Any], shape: Shape, classes: int, key: str = "model.name") -> nn.Module:
    """Return a new model for images of this shape; `table` holds the builder's options.

    `name`: an entry point, `torchvision:<name>`, or `path.py:function`. Raises InputError for an unknown name, wrong
    options, a model without `features` and `classifier`, or one that cannot take images of this size.
    """
    if name.startswith("torchvision:"):
        builder: Callable[..., Any] = _torchvision(name.removeprefix("torchvision:"), key)
    else:
        builder = find("models", name, key)
    table = dict(table)
    projection = _projection(table.pop("projection", None), key.rsplit(".", 1)[0])
    chosen = options(builder, table, key.rsplit(".", 1)[0])
    try:
        model = builder(shape, classes, **chosen)
        if projection is not None:
            _need_parts(model, name, key)
            if not isinstance(model.classifier, nn.Linear):
                raise InputError(f"{key} = {name!r}: a projection head needs a classifier that is one linear layer.")
            model = _Projected(model, projection, classes)
        model, logits = _tried(model, shape)
    except (RuntimeError, ValueError, TypeError) as error:
        size = "x".join(map(str, shape))
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{key} = {name!r} cannot be built for images of {size} and {classes} classes: {reason}"
        ) from error
    _need_parts(model, name, key)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, classes):
        raise InputError(f"{key} = {name!r}: for 2 images the model must return logits of shape (2, {classes}).")
    built: nn.Module = model
    return built


def _tried(model: nn.Module, shape: Shape) -> tuple[nn.Module, Any]:
    """Return a model with its weights in channels-last order, and its logits of two black images.

    Convolutions are fastest in that order. A model that cannot do with it, because it views images as vectors without
    `flatten` or `reshape`, keeps torch's usual one.
    """
    with torch.no_grad():
        try:
            faster = copy.deepcopy(model).to(memory_format=torch.channels_last)
            logits = faster.train()(torch.zeros(2, *shape))
            return model.to(memory_format=torch.channels_last), logits
        except RuntimeError:
            return model, copy.deepcopy(model).train()(torch.zeros(2, *shape))


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights and buffers into a model, as `load_state_dict` does, which raises where they do not fit."""
    own = model.state_dict()
    if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
        model.load_state_dict(weights)  # says what does not fit
    with torch.no_grad():
        torch._foreach_copy_(list(own.values()), [weights[name] for name in own])


def _need_parts(model: Any, name: str, key: str) -> None:
    if not callable(getattr(model, "features", None)) or not isinstance(getattr(model, "classifier", None), nn.Module):
        raise InputError(
            f"{key} = {name!r}: the model needs `features` (a module or method) and `classifier` (a module)."
        )


def _projection(width: Any, key: str) -> int | None:
    if width is not None and (not isinstance(width, int) or isinstance(width, bool) or width < 1):
        raise InputError(f"{key}.projection = {width!r}: should be the width of a projection head, 1 or more.")
    return width


class _Projected(nn.Module):
    """A model with a two-layer projection head between features and classifier (Li et al., 2021, MOON)."""

    def __init__(self, model: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        inputs = cast(nn.Linear, model.classifier).in_features
        self.trunk = model
        self.trunk.classifier = nn.Identity()
        self.head = nn.Sequential(nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, width))
        self.classifier = nn.Linear(width, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the projected features, B x width."""
        projected: Tensor = self.head(cast(Callable[[Tensor], Tensor], self.trunk.features)(images))
        return projected

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, B x C."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def mlp(shape: Shape, classes: int, *, hidden: list[Width] = [200, 200]) -> nn.Module:  # noqa: B006
    """Return a perceptron with ReLU; the default is McMahan et al.'s 2NN (2017)."""
    widths = [shape[0] * shape[1] * shape[2], *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return Classifier(nn.Sequential(*layers), widths[-1], classes)


def lenet5(shape: Shape, classes: int) -> nn.Module:
    """Return LeNet-5 (LeCun et al., 1998) with ReLU and max pooling: 61,706 parameters for 28 x 28 x 1."""
    padding = 2 if shape[1] < 32 else 0  # the paper's images are 32 x 32
    trunk = nn.Sequential(
        nn.Conv2d(shape[0], 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
    )  # fmt: skip
    head = [nn.Linear(_width(trunk, shape), 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
    return Classifier(nn.Sequential(*trunk, *head), 84, classes)


def cnn(
    shape: Shape,
    classes: int,
    *,
    channels: list[Width] = [32, 64],  # noqa: B006
    hidden: Width = 512,
) -> nn.Module:
    """Return 5 x 5 convolutions, each with ReLU and 2 x 2 pooling, and a hidden layer; the default is the CNN of
    McMahan et al. (2017).
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([shape[0], *channels]):
        layers += [nn.Conv2d(inputs, outputs, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    trunk = nn.Sequential(*layers, nn.Flatten())
    return Classifier(nn.Sequential(*trunk, nn.Linear(_width(trunk, shape), hidden), nn.ReLU()), hidden, classes)


def convnet(
    shape: Shape,
    classes: int,
    *,
    channels: list[Width] = [128, 128, 128],  # noqa: B006
    norm: ConvNorm = "instance",
    pooling: Literal["average", "max"] = "average",
) -> nn.Module:
    """Return blocks of 3 x 3 convolution, norm, ReLU and 2 x 2 pooling; the default is dataset distillation's ConvNet
    (Zhao et al., 2021).
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([shape[0], *channels]):
        pool = nn.AvgPool2d(2) if pooling == "average" else nn.MaxPool2d(2)
        normed: list[nn.Module] = [] if norm == "none" else [_conv_norm(norm, outputs)]
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), *normed, nn.ReLU(), pool]
    trunk = nn.Sequential(*layers, nn.Flatten())
    return Classifier(trunk, _width(trunk, shape), classes)


def _conv_norm(kind: ConvNorm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(channels, channels)  # a group a channel: instance norm with parameters


def _width(trunk: nn.Module, shape: Shape) -> int:
    with torch.inference_mode():
        return int(copy.deepcopy(trunk).eval()(torch.zeros(1, *shape)).shape[1])


Norm = Literal["batch", "group"]


def resnet8(shape: Shape, classes: int, *, norm: Norm = "batch") -> nn.Module:
    """Return the CIFAR ResNet of depth 8 (He et al., 2016, section 4.2, n = 1)."""
    return _cifar_resnet(shape, classes, 1, norm)


def resnet20(shape: Shape, classes: int, *, norm: Norm = "batch") -> nn.Module:
    """Return the CIFAR ResNet of depth 20 (He et al., 2016, section 4.2, n = 3)."""
    return _cifar_resnet(shape, classes, 3, norm)


def resnet18_cifar(shape: Shape, classes: int, *, norm: Literal["batch", "instance"] = "batch") -> nn.Module:
    """Return ResNet-18 with a 3 x 3 first convolution of stride 1 and no max-pooling: MOON's and FedX's, for CIFAR.

    With instance norm (with parameters) dataset distillation's and FedLGD's, for images of up to 32 pixels.
    """
    from torchvision import models as zoo

    trunk = zoo.resnet18(weights=None, norm_layer=lambda channels: _conv_norm(norm, channels))
    trunk.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
    trunk.maxpool, trunk.fc = nn.Identity(), nn.Identity()
    return Classifier(trunk, 512, classes)


def _norm(kind: Norm, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(8, channels)


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a parameter-free shortcut (option A of the paper)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = _norm(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = _norm(norm, outputs)
        self.stride = stride
        self.extra = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.extra:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return F.relu(out + shortcut)


def _cifar_resnet(shape: Shape, classes: int, blocks: int, norm: Norm) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False), _norm(norm, 16), nn.ReLU()]
    inputs = 16
    for outputs in (16, 32, 64):
        for block in range(blocks):
            layers.append(_Block(inputs, outputs, 2 if block == 0 and outputs > 16 else 1, norm))
            inputs = outputs
    return Classifier(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 64, classes)


def _torchvision(name: str, key: str) -> Callable[..., nn.Module]:
    from torchvision import models as zoo

    valid = zoo.list_models(module=zoo)
    if name not in valid:
        raise unknown(key, f"torchvision:{name}", [f"torchvision:{n}" for n in valid] + names("models"))

    def builder(shape: Shape, classes: int) -> nn.Module:
        trunk = zoo.get_model(name, weights=None)
        path = [p for p, module in trunk.named_modules() if isinstance(module, nn.Linear)]
        if not path:
            raise ValueError("its last layer is not linear, so it has no features under a linear classifier")
        width = trunk.get_submodule(path[-1]).in_features
        assert isinstance(width, int)
        trunk.set_submodule(path[-1], nn.Identity())
        return Classifier(nn.Sequential(_ThreeChannels(), trunk), width, classes)

    return builder


class _ThreeChannels(nn.Module):
    """Grey images as colour images, for models that were made for those."""

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)
