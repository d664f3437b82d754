"""Makes a model from its name and options, and tries it on images of the run's shape."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import InputError, described, on_one_line
from ..registry import find, options
from .adapter import torchvision_builder
from .zoo import Shape

_SIZES = (16, 32, 64, 128, 224, 299)  # pixels per side that are tried for a model that cannot take the run's images


_DTYPES = (torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
           torch.bool)  # fmt: skip


def build(name: str, table: dict[str, Any], shape: Shape, classes: int, key: str = "model.name") -> nn.Module:
    """Return a new model for images of this shape; `table`: the builder's options.

    `name`: an entry point, `torchvision:<name>`, or `path.py:function`. Raises InputError for an unknown name, wrong
    options, a model without `features` and `classifier`, or one that cannot take images of this size.
    """
    if name.startswith("torchvision:"):
        builder: Callable[..., Any] = torchvision_builder(name.removeprefix("torchvision:"), key)
    else:
        builder = find("models", name, key)
    table = dict(table)
    projection = _projection(table.pop("projection", None), key.removesuffix(".name"))
    chosen = options(builder, table, key.removesuffix(".name"))
    try:
        model = builder(shape, classes, **chosen)
        if not isinstance(model, nn.Module):
            raise InputError(f"{key} = {name!r} returns {type(model).__name__}, not a torch.nn.Module.")
        if projection is not None:
            _need_parts(model, name, key)
            if not isinstance(model.classifier, nn.Linear):
                raise InputError(f"{key} = {name!r}: a projection head needs a classifier that is one linear layer.")
            model = _Projected(model, projection, classes)
        model, logits = _tried(model, shape)
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever the builder or the model raises, also sys.exit
        known = isinstance(error, RuntimeError | ValueError | TypeError | AssertionError) and str(error)
        reason = on_one_line(str(error).splitlines()[0], 300) if known else described(error)
        size = _size_that_fits(lambda larger: builder(larger, classes, **chosen), shape) if known else None
        if size is not None:
            reason = f"it takes images of {shape[0]}x{size}x{size}; set data.size = {size} (the model says: {reason})"
        images = "x".join(map(str, shape))
        raise InputError(
            f"{key} = {name!r} cannot be built for images of {images} and {classes} classes: {reason}"
        ) from error
    _need_parts(model, name, key)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, classes):
        raise InputError(f"{key} = {name!r}: for 2 images the model must return logits of shape (2, {classes}).")
    built: nn.Module = model
    if not any(parameter.requires_grad for parameter in built.parameters()):
        raise InputError(f"{key} = {name!r}: the model has no parameter that can be trained: all are frozen.")
    for tensor_name, tensor in built.state_dict().items():
        if tensor.dtype not in _DTYPES:
            valid = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            raise InputError(
                f"{key} = {name!r}: {tensor_name} is {tensor.dtype}, which cannot be sent; valid: {valid}."
            )
    name_once(built)
    return built


def name_once(model: nn.Module) -> None:
    """Let `state_dict()` have one name for a tensor that a model uses under several (tied weights): the first one.

    A server that changes some tensors, such as FedDyn's, would otherwise change it under one name, and the other name
    would bring back the old values when a node loads the model.
    """
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        original = first.setdefault(id(tensor), name)
        if original != name:
            aliases[name] = original
    if not aliases:
        return

    def drop(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
        for alias in aliases:
            state.pop(prefix + alias, None)

    def restore(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        for alias, original in aliases.items():
            if prefix + original in state:
                state.setdefault(prefix + alias, state[prefix + original])

    model.register_state_dict_post_hook(drop)
    model.register_load_state_dict_pre_hook(restore)


def _tried(model: nn.Module, shape: Shape) -> tuple[nn.Module, Any]:
    """Return a model with its weights in channels-last order, and its logits for two black images.

    Convolutions are fastest in this order. A model that cannot use it, because it views images as vectors without
    `flatten` or `reshape`, keeps torch's usual order.
    """
    with torch.no_grad():
        try:
            faster = copy.deepcopy(model).to(memory_format=torch.channels_last)
            logits = faster.train()(torch.zeros(2, *shape))
            return model.to(memory_format=torch.channels_last), logits
        except RuntimeError:
            return model, copy.deepcopy(model).train()(torch.zeros(2, *shape))


def takes_one_image(model: nn.Module, shape: Shape) -> bool:
    """Return whether a model can be trained on a batch of one image; batch norm of vectors cannot."""
    trial = copy.deepcopy(model).train()
    device = next(trial.parameters()).device
    try:
        with torch.no_grad():
            trial(torch.zeros(1, *shape, device=device))
    except ValueError:  # batch norm: expected more than 1 value per channel
        return False
    return True


def _size_that_fits(make: Callable[[Shape], nn.Module], shape: Shape) -> int | None:
    """Return a number of pixels per side that a model can take, larger than the given; None if none is found.

    For a model that takes all sizes from one on, it is the smallest. Models are made on torch's meta device, which has
    shapes and no values.
    """

    def fits(size: int) -> bool:
        larger = (shape[0], size, size)
        try:
            with torch.device("meta"), torch.no_grad():
                make(larger).train()(torch.zeros(2, *larger))
        except Exception:  # whatever the model says, this size does not help
            return False
        return True

    below = max(shape[1:])
    for size in _SIZES:
        if size > below and fits(size):
            while size - below > 1:
                middle = (below + size) // 2
                below, size = (below, middle) if fits(middle) else (middle, size)
            return size
        below = max(below, size)
    return None


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights and buffers into a model, as `load_state_dict` does. Raises RuntimeError if they do not fit."""
    own = model.state_dict()
    if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
        model.load_state_dict(weights)  # its error message names what does not fit
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
