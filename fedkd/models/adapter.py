"""Finds the head of any model: its last linear layer. What comes before it gives the features.

Search: `model.head` of the config; the model's own `features` and `classifier`, if they agree with its output; timm's
`reset_classifier`; the names of transformers; the last linear layer that a batch passes. What is found is checked on a
batch: head(features(x)) must be the model's output.
"""

from __future__ import annotations

import traceback
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.spec import Form
from ..errors import InputError, described, some
from .masks import WithMask, WithoutMask
from .projection import Projected
from .sources import ThreeChannels, Transformer
from .zoo import Classifier

_NAMES = ("classifier", "score", "classification_head")  # of heads, in transformers


class Adapted(nn.Module):
    """A model whose head was found.

    `body`: what the names of its tensors begin with, but for those of the head; `heads`: the paths in the model of the
    head, or of several in whose place there is one.
    """

    def __init__(self, features: nn.Module, classifier: nn.Module, body: str, *heads: str) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier
        self.body, self.heads = f"features.{body}", heads

    @property
    def head(self) -> str:
        """Return the path of the head, or the paths of several."""
        return " and ".join(self.heads)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits, B x C."""
        found = self.features(inputs)
        if not isinstance(found, Tensor):
            raise TypeError(f"it returns a {type(found).__name__} in train mode; turn its other outputs off")
        logits: Tensor = self.classifier(found)
        return logits


class _Reached(Exception):
    """The output of the module at which a model is cut."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


class _Cut(nn.Module):
    """A model up to one of its modules, whose output it returns; what comes behind it does not run."""

    def __init__(self, model: nn.Module, path: str) -> None:
        super().__init__()
        self.model, self.path = model, path

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features, B x D."""

        def stop(module: nn.Module, given: Any, output: Tensor) -> None:
            raise _Reached(output)

        hook = self.model.get_submodule(self.path).register_forward_hook(stop)
        try:
            self.model(inputs)
        except _Reached as reached:
            return reached.output
        finally:
            hook.remove()
        raise ValueError(f"samples do not pass the module {self.path!r}")


class _Inner(NamedTuple):
    """The user's or library's model within what makes it a function of one tensor, and its prefix there."""

    prefix: str
    model: nn.Module


def _inner_of(trunk: nn.Module) -> _Inner:
    if isinstance(trunk, Transformer | WithMask | WithoutMask):
        return _Inner("model.", trunk.model)
    if isinstance(trunk, nn.Sequential) and len(trunk) == 2 and isinstance(trunk[0], ThreeChannels | nn.Identity):
        return _Inner("1.", trunk[1])
    return _Inner("", trunk)


@torch.no_grad()
def adapt(
    trunk: nn.Module, form: Form, classes: int, key: str, head: str | None = None, features: str | None = None
) -> nn.Module:
    """Return a model with `features(x)`, B x D, and `classifier`, a linear layer, of any model.

    `head`, `features`: the paths of the head, and of the module whose output are the features. Raises InputError if the
    head is not found, or does not give the model's output from the features.
    """
    if type(trunk).forward is Classifier.forward and head is None:
        return trunk
    trunk.eval()
    batch = form.drawn(2, torch.Generator().manual_seed(0))
    inner = _inner_of(trunk)
    if head is None and features is None:
        if _agrees(trunk, batch):
            return trunk
        if hasattr(inner.model, "reset_classifier") and hasattr(inner.model, "pretrained_cfg"):
            return _without_classifier(trunk, batch, classes, key)
        if not any(isinstance(module, nn.Linear) for module in inner.model.modules()):
            raise InputError(f"{key}: its last layer is not linear, so it has no features before a linear classifier.")
    logits = trunk(batch)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(batch):
        raise InputError(
            f"{key}: for 2 samples the model must return logits of shape (2, {classes}); {_said(logits)}. Let its "
            "forward return the logits alone."
        )
    if head is None:
        head = _named_head(inner.model) if isinstance(trunk, Transformer) else None
        head = _last_linear(trunk, inner, batch, logits, key) if head is None else head
    layer = _layer_at(inner.model, head, key)
    place = (inner.prefix + head).strip(".")
    _refuse_tied(trunk, layer, key, head)
    if place:
        trunk.set_submodule(place, nn.Identity())
    else:
        trunk = nn.Identity()
    body = inner.prefix
    if features is not None:
        _module_at(inner.model, features, f"{key}, features")
        trunk, body = _Cut(trunk, inner.prefix + features), f"model.{body}"
    try:
        found = trunk(batch)
    except Exception as error:
        raise InputError(
            f"{key}: without the head {head!r} the model fails: {described(error)}. If there is no second head, set "
            "model.features to the path of the module whose output are the features."
        ) from error
    if not isinstance(found, Tensor) or tuple(found.shape) != (len(batch), layer.in_features):
        raise InputError(
            f"{key}: the features before the head {head!r} must be of shape (2, {layer.in_features}); {_said(found)}. "
            "Set model.features to the path of the module whose output are the features."
        )
    if not torch.allclose(layer(found), logits, rtol=1e-5, atol=1e-6):
        raise InputError(
            f"{key}: the head {head!r} does not give the model's output from its features: the model has another layer "
            "behind it, or a second head. Set model.head, and if needed model.features, to paths of its modules."
        )
    if layer.out_features != classes:
        layer = nn.Linear(layer.in_features, classes, layer.bias is not None)
    return Adapted(trunk, layer, body, head)


def _agrees(model: nn.Module, batch: Tensor) -> bool:
    """Return whether a model has `features` and `classifier`, and they give its output."""
    features, classifier = getattr(model, "features", None), getattr(model, "classifier", None)
    if not callable(features) or not isinstance(classifier, nn.Module):
        return False
    try:
        found = features(batch)
        return found.dim() == 2 and torch.allclose(classifier(found), model(batch), rtol=1e-5, atol=1e-6)
    except Exception:  # these names mean something else in this model
        return False


def _without_classifier(trunk: nn.Module, batch: Tensor, classes: int, key: str) -> nn.Module:
    """Return a model of timm with an own head: after `reset_classifier(0)` its output are the features."""
    inner = _inner_of(trunk)
    model: Any = inner.model
    logits = trunk(batch)
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        raise InputError(f"{key}: for 2 samples the model must return logits of shape (2, {classes}); {_said(logits)}.")
    model.reset_classifier(0)
    found = trunk(batch)
    if not isinstance(found, Tensor) or found.dim() != 2:
        raise InputError(f"{key}: without a classifier the model's output must be of shape (2, D); {_said(found)}.")
    names = model.pretrained_cfg.get("classifier") or "head"
    heads = [names] if isinstance(names, str) else names
    return Adapted(trunk, nn.Linear(found.shape[1], classes), inner.prefix, *heads)


def _named_head(model: nn.Module) -> str | None:
    """Return the path of the last linear layer of what transformers calls the head."""
    for name in _NAMES:
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            paths = [path for path, layer in part.named_modules() if isinstance(layer, nn.Linear)]
            if paths:
                return f"{name}.{paths[-1]}".removesuffix(".")
    return None


def _last_linear(trunk: nn.Module, inner: _Inner, batch: Tensor, logits: Tensor, key: str) -> str:
    """Return the path of the last linear layer that a batch passes, if its output are the logits."""
    called: list[tuple[str, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, path=path: called.append((path, output)))
        for path, layer in inner.model.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        trunk(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for path, output in reversed(called):
        if output.shape == logits.shape and torch.allclose(output, logits, rtol=1e-5, atol=1e-6):
            return path
    likely = [name for name, one in called if one.shape == logits.shape]
    found = f"; layers of this shape: {some(likely, 5)}" if likely else ""
    raise InputError(
        f"{key}: no head was found: no linear layer gives the model's output, {tuple(logits.shape)}{found}. Set "
        "model.head to the path of the one linear layer that gives the logits, or let the model return the logits."
    )


def _module_at(model: nn.Module, path: str, key: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        have = some([name for name, _ in model.named_children()], 20)
        raise InputError(
            f"{key} = {path!r}: the model has no such module; it has {have}, and what is in them."
        ) from error


def _layer_at(model: nn.Module, path: str, key: str) -> nn.Linear:
    where = f"{key}, head"
    layer = _module_at(model, path, where)
    if not isinstance(layer, nn.Linear):
        linear = [name for name, one in model.named_modules() if isinstance(one, nn.Linear)]
        raise InputError(
            f"{where} = {path!r} is a {type(layer).__name__}; a head is one linear layer. The model's last ones: "
            f"{some(linear[::-1], 5) or 'none'}."
        )
    return layer


def _refuse_tied(trunk: nn.Module, layer: nn.Linear, key: str, head: str) -> None:
    uses = [name for name, one in trunk.named_parameters(remove_duplicate=False) if one is layer.weight]
    if len(uses) > 1:
        raise InputError(
            f"{key}: the head {head!r} shares its weights: {some(uses, 5)} are one tensor. A head needs its own; untie "
            "them, such as by tie_word_embeddings = false."
        )


def _said(output: object) -> str:
    if isinstance(output, Tensor):
        return f"it returns {tuple(output.shape)}"
    return f"it returns a {type(output).__name__}"


def own_names(model: nn.Module) -> dict[str, str]:
    """Return for each tensor of a built model, by its name, the name that it has in the user's or library's model."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: own_path(model, name) for name, _ in tensors}


def own_path(model: nn.Module, name: str) -> str:
    """Return the name that a part of a model as fedkd has built it has in the user's or library's model.

    The model itself has no name; `model` may also be a part that fedkd put around the user's model.
    """
    if isinstance(model, Projected):
        return own_path(model.trunk, name.removeprefix("trunk."))
    if not isinstance(model, Adapted):
        return f"{name}.".removeprefix(_inner_of(model).prefix).removesuffix(".")
    if f"{name}.".startswith(model.body):
        return f"{name}.".removeprefix(model.body).removesuffix(".")
    if name.startswith("classifier."):
        return f"{model.head}.{name.removeprefix('classifier.')}".removeprefix(".")
    return name


def failing_layer(error: BaseException) -> str:
    """Return the path in the user's model of the innermost module that has raised an error; empty for none."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    passed = [one for frame in frames if isinstance(one := frame.f_locals.get("self"), nn.Module)]
    paths = {id(one): path for path, one in passed[0].named_modules()} if passed else {}
    return own_path(passed[0], paths[id(passed[-1])]) if passed and id(passed[-1]) in paths else ""


def about(model: nn.Module) -> str:
    """Return on one line what a model is: its head, features, parameters, batch norm."""
    inner = model.trunk if isinstance(model, Projected) else model
    head = f"head {inner.head or 'itself'} " if isinstance(inner, Adapted) else ""
    layer = model.classifier
    parts = []
    if isinstance(layer, nn.Linear):
        parts += [f"{head or 'classifier '}({layer.in_features} -> {layer.out_features})"]
        parts += [f"features {layer.in_features} wide"]
    if isinstance(inner, Adapted) and len(inner.heads) > 1:
        parts += [f"one head in place of {len(inner.heads)}"]
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    frozen = [one for one in model.buffers() if isinstance(one, nn.Parameter)]  # see `freezing`
    count = sum(one.numel() for one in [*model.parameters(), *frozen])
    parts += [f"{count:,} parameters" if trained == count else f"{trained:,} of {count:,} parameters are trained"]
    if any("running_mean" in module._buffers for module in model.modules()):
        parts += ["batch norm"]
    return ", ".join(parts)
