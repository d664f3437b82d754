"""The outputs of many models of one architecture in one call: their tensors are stacked, one row for each client.

Two paths with one result. `vmap` takes nearly every model as it is. `folded` replaces the layers of a copy: images of
all clients are the channels of one image, B x (K C) x H x W; a convolution has K times the groups, a linear layer is a
batched product. It needs as many kernels as one client, and knows fewer layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..data.spec import Form
from ..models.freezing import frozen_names
from ..models.zoo import PadChannels
from ..streams import default_stream
from .training import features_of, full

Path = Literal["vmap", "folded"]
Stack = Mapping[str, Tensor]  # tensors by name, with a first dimension for the clients
StackedOutputs = dict[str, Tensor]  # `logits`, K x B x C, and if they are wanted, `features`, K x B x D
_ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Identity,
)  # fmt: skip
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class NotStacked(Exception):
    """These clients cannot be trained in one step; the message says why."""


@contextmanager
def refusing_loops() -> Iterator[None]:
    """Raise NotStacked where vmap would compute clients one after another, and for all else that it refuses."""
    functorch: Any = torch._C._functorch  # no public name turns the fallback off
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise NotStacked(str(error).splitlines()[0]) from error
    finally:
        functorch._set_vmap_fallback_enabled(before)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors as the rows of one, in torch's usual memory order, which vmap needs for some layers."""
    return torch.stack([tensor.contiguous() for tensor in tensors])


@dataclass
class _Now:
    """What the layers of a copy read during one call. `rows`: 1 for a real row, 0 for one that fills a batch, K x B."""

    tensors: Stack = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)  # of tied tensors: the name that the stack has
    rows: Tensor | None = None
    training: bool = True
    count: int = 1

    def get(self, name: str) -> Tensor | None:
        """Return the stacked tensor of a layer's part, if it has one."""
        return self.tensors.get(self.aliases.get(name, name))


def has_norm(model: nn.Module) -> bool:
    """Return whether a model has batch norm, which needs two images in a batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def why_not_stacked(model: nn.Module) -> str | None:
    """Return why models of this architecture cannot be stacked, or None."""
    if frozen_names(model):
        return "parts of the model are frozen"
    for module in model.modules():
        if isinstance(module, _RANDOM) and cast(Any, module).p:
            return f"{type(module).__name__} draws for each client from its own stream"
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, _NORMS):
            return f"{type(module).__name__} is not known"
        if isinstance(module, _NORMS) and (module.momentum is None or not module.track_running_stats):
            return f"{type(module).__name__} without a fixed momentum or without running statistics"
    return None


def why_not_folded(model: nn.Module) -> str | None:
    """Return which layer the folded path does not know, or None."""
    if frozen_names(model):
        return "parts of it are frozen"
    for name, module in model.named_modules():
        known = isinstance(module, (*_ELEMENTWISE, *_POOLS, *_NORMS, nn.GroupNorm, nn.Linear, PadChannels))
        known |= isinstance(module, nn.Conv2d) and module.padding_mode == "zeros"
        known |= isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
        leaf = not list(module.children())
        if not known and (leaf or list(module.parameters(recurse=False)) or list(module.buffers(recurse=False))):
            return f"{name or 'the model'} is a {type(module).__name__}"
        if isinstance(module, nn.MaxPool2d | nn.AdaptiveMaxPool2d) and module.return_indices:
            return f"{name} returns indices"
    return None


@torch.no_grad()
def why_unsound(model: nn.Module, form: Form, path: Path) -> str | None:
    """Return why a path does not give what two copies of a model give alone, in train mode, or None.

    Compared are outputs and buffers; one batch is filled. A model's own `forward` may mix channels or the images of a
    batch, or replace its buffers. `form`: of samples.
    """
    some = next(model.parameters())
    images = form.drawn(8, torch.Generator().manual_seed(0)).unflatten(0, (2, 4))
    if form.kind in ("image", "array"):
        images[1, 3] = 10 * images[1, 3] + 5  # the row that fills
    images = images.to(some) if images.is_floating_point() else images.to(some.device)
    real = torch.tensor([[True] * 4, [True] * 3 + [False]], device=some.device)
    states = [{n: t / k if t.is_floating_point() else t.clone() for n, t in model.state_dict().items()} for k in (1, 2)]
    tensors = {name: stacked([state[name] for state in states]) for name in states[0]}
    with default_stream(torch.Generator().manual_seed(0)):
        try:
            with refusing_loops():
                found = StackedModel(model, path).outputs(tensors, images, rows=real, training=True, features=True)
        except NotStacked as error:
            return str(error)
        for client, state in enumerate(states):
            alone = copy.deepcopy(model).train()
            alone.load_state_dict(state)
            wanted = _both(alone, images[client][real[client]], features=True)
            if not all(_near(found[name][client][real[client]], one) for name, one in wanted.items()):
                return _UNSOUND + "outputs"
            if not all(_near(tensors[name][client], one) for name, one in alone.state_dict().items()):
                return _UNSOUND + "buffers"
    return None


_UNSOUND = "its model mixes channels or images of a batch, or keeps more than its buffers: in one step it has other "


def _near(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), 1e-3, 1e-3)


class StackedModel:
    """Computes the outputs of many models of one architecture."""

    def __init__(self, model: nn.Module, path: Path) -> None:
        """Take the architecture of a model. Its weights do not matter, and it is not changed."""
        self._now = _Now()
        self._copy = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        self._whole = _Both(self._copy)
        self._path = path
        first: dict[int, str] = {}
        for name, tensor in self._copy.named_parameters(remove_duplicate=False):
            self._now.aliases[name] = first.setdefault(id(tensor), name)
        for name, module in self._copy.named_modules():
            if path == "vmap" and isinstance(module, _NORMS):
                module.forward = partial(_norm, self._now, module)  # type: ignore[method-assign]
            elif path == "folded":
                self._fold(name, module)
        if path == "folded":
            self._copy.to("meta")

    def outputs(
        self, tensors: Stack, images: Tensor, *, rows: Tensor | None, training: bool, features: bool
    ) -> StackedOutputs:
        """Return the outputs of K models, of parameters and buffers by name, for images, K x B x channels x H x W.

        In training, buffers are changed in place. `rows` as in `train_stacked`; None if all rows are real.
        """
        self._copy.train(training)
        now = self._now
        now.rows, now.training, now.count = rows, training, len(images)
        if self._path == "folded":
            now.tensors = tensors
            folded = images.transpose(0, 1).flatten(1, 2).contiguous()
            return {name: _unfolded(x, now.count) for name, x in _both(self._copy, folded, features).items()}

        def one(own: Stack, batch: Tensor, real: Stack) -> StackedOutputs:
            now.rows = real["rows"][None] if real else None
            wrapped = {f"model.{name}": tensor for name, tensor in own.items()}
            found: StackedOutputs = functional_call(self._whole, wrapped, (batch, features), strict=True)
            now.rows = None  # a tensor of vmap must not outlive it
            return found

        stacked: Callable[..., StackedOutputs] = torch.vmap(one)
        return stacked(dict(tensors), images, {} if rows is None else {"rows": rows})

    def _fold(self, name: str, module: nn.Module) -> None:
        now = self._now
        forms: list[tuple[Any, Callable[..., Tensor]]] = [
            (nn.Conv2d, _folded_conv), (nn.Linear, _folded_linear), (_NORMS, _folded_norm),
            (nn.GroupNorm, _folded_group_norm), (nn.Flatten, _folded_flatten), (PadChannels, _folded_pad),
        ]  # fmt: skip
        for kind, form in forms:
            if isinstance(module, kind):
                module.forward = partial(form, now, name + "." if name else "", module)


class _Both(nn.Module):
    """A model as a function of images and of whether features are wanted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, features: bool) -> StackedOutputs:
        """Return logits, and features."""
        return _both(self.model, images, features)


def _both(model: nn.Module, images: Tensor, features: bool) -> StackedOutputs:
    if not features:
        return {"logits": model(images)}
    found = features_of(model, images)
    return {"logits": cast(nn.Module, model.classifier)(found), "features": found}


# Layers of a copy. A folded one has K clients in the channels of its input, or, after Flatten, K x B x D


def _unfolded(x: Tensor, count: int) -> Tensor:
    """Return vectors as K x B x D, also from B x (K D)."""
    return x if x.dim() == 3 else x.reshape(len(x), count, -1).transpose(0, 1)


def _folded_conv(now: _Now, name: str, layer: nn.Conv2d, x: Tensor) -> Tensor:
    weight, bias = cast(Tensor, now.get(name + "weight")), now.get(name + "bias")
    flat = None if bias is None else bias.flatten()
    groups = now.count * layer.groups
    return F.conv2d(x, weight.flatten(0, 1), flat, layer.stride, layer.padding, layer.dilation, groups)


def _folded_linear(now: _Now, name: str, layer: nn.Linear, x: Tensor) -> Tensor:
    weight, bias = cast(Tensor, now.get(name + "weight")).transpose(1, 2), now.get(name + "bias")
    vectors = _unfolded(x, now.count)
    return vectors @ weight if bias is None else torch.baddbmm(bias[:, None], vectors, weight)


def _folded_flatten(now: _Now, name: str, layer: nn.Flatten, x: Tensor) -> Tensor:
    return x if x.dim() == 3 else x.reshape(len(x), now.count, -1).transpose(0, 1)


def _folded_pad(now: _Now, name: str, layer: PadChannels, x: Tensor) -> Tensor:
    wide = x.reshape(len(x), now.count, -1, *x.shape[2:])
    return F.pad(wide, (0, 0, 0, 0, layer.before, layer.after)).flatten(1, 2)


def _folded_group_norm(now: _Now, name: str, layer: nn.GroupNorm, x: Tensor) -> Tensor:
    flat = [None if one is None else one.flatten() for one in (now.get(name + "weight"), now.get(name + "bias"))]
    wide = x.transpose(0, 1).flatten(1) if x.dim() == 3 else x
    normed = F.group_norm(wide, now.count * layer.num_groups, flat[0], flat[1], layer.eps)
    return _unfolded(normed, now.count) if x.dim() == 3 else normed


def _folded_norm(now: _Now, name: str, layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    own = {part: tensor for part in _PARTS if (tensor := now.get(name + part)) is not None}
    vectors = x.dim() == 3
    wide = x.transpose(0, 1).flatten(1) if vectors else x
    if now.training:
        own["num_batches_tracked"].add_(1)
    if now.training and now.rows is not None:
        parted = wide.reshape(len(wide), now.count, -1, wide[0, 0].numel()).permute(1, 0, 2, 3)
        normed = _masked(parted, now.rows, own, layer).permute(1, 0, 2, 3).reshape(wide.shape)
    else:
        flat = {part: own[part].flatten() if part in own else None for part in _PARTS[:4]}  # of statistics, views
        mean, variance = flat["running_mean"], flat["running_var"]
        normed = F.batch_norm(
            wide, mean, variance, flat["weight"], flat["bias"], now.training, cast(float, layer.momentum), layer.eps
        )
    return _unfolded(normed, now.count) if vectors else normed


_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _norm(now: _Now, layer: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch norm of one client, under `vmap`."""
    if now.training:
        cast(Tensor, layer.num_batches_tracked).add_(1)
    if not now.training or now.rows is None:
        return F.batch_norm(
            x, layer.running_mean, layer.running_var, layer.weight, layer.bias, now.training,
            cast(float, layer.momentum), layer.eps,
        )  # fmt: skip
    own = {part: cast(Tensor, getattr(layer, part))[None] for part in _PARTS[:4] if getattr(layer, part) is not None}
    return _masked(x.flatten(2)[None] if x.dim() > 2 else x[None, ..., None], now.rows, own, layer).view(x.shape)


def _masked(x: Tensor, rows: Tensor, own: Mapping[str, Tensor], layer: nn.BatchNorm1d | nn.BatchNorm2d) -> Tensor:
    """Return batch norm over the real rows; x: K x B x C x pixels; rows: K x B, 1 for a real one, 0 for the others."""
    x = full(x)
    real = rows[:, :, None, None].to(x.dtype)
    values = real.sum((1, 2, 3), keepdim=True) * x.shape[3]
    mean = (x * real).sum((1, 3), keepdim=True) / values
    centred = x - mean
    variance = (centred.square() * real).sum((1, 3), keepdim=True) / values
    with torch.no_grad():
        momentum, unbiased = cast(float, layer.momentum), variance * values / (values - 1)
        for part, found in (("running_mean", mean), ("running_var", unbiased)):
            own[part].mul_(1 - momentum).add_(found[:, 0, :, 0] * momentum)
    normed = centred * (variance + layer.eps).rsqrt()
    if "weight" in own:
        normed = normed * own["weight"][:, None, :, None] + own["bias"][:, None, :, None]
    return normed
