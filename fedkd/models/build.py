"""Makes a model from its name and options, and tries it on samples of the run's form."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..data.spec import ANY_KIND, Form
from ..errors import InputError, described, on_one_line
from ..registry import find, options
from .adapter import about, adapt, failing_layer, own_path
from .freezing import Lora, Train, train_only
from .masks import lacks_mask, of_one_tensor
from .pretrained import load_weights
from .projection import Projected
from .sources import builder_of

_SIZES = (16, 32, 64, 128, 224, 299)  # pixels per side that are tried for a model that cannot take the run's images
_KNOWN = (RuntimeError, ValueError, TypeError, AssertionError, IndexError)  # their texts are for users
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
           torch.bool)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `[model]` that all models take, beside those of their builder. Paths are of modules."""

    head: str | None = None
    features: str | None = None
    ignore_mask: bool = False
    weights: str | None = None
    train: Train = "all"
    adapter: Lora | None = None
    projection: int | None = None


def build(
    name: str, table: dict[str, Any], form: Form, classes: int, key: str = "model.name", *, padded: bool = True
) -> nn.Module:
    """Return a new model for samples of this form; `table`: the builder's options, and those of all models.

    `name`: an entry point, `torchvision:<name>`, `timm:<name>`, `transformers:<folder or config.json>`, or
    `path.py:function`. A builder is called with the form, or with the shape of a sample if its first parameter is named
    `shape`: for a series without its mask, unless it is marked as one for series. `padded`: whether series or
    texts may be shorter than the form says. The attribute
    `fedkd_about` is a line on what was found. Raises InputError for an unknown name,
    wrong options, a model whose head is not found, or one that cannot take such samples.
    """
    prefix = key.removesuffix(".name")
    builder = builder_of(name, key) or find("models", name, key)
    chosen, common = _options(builder, dict(table), prefix)
    served = getattr(builder, "kinds", ANY_KIND)
    if form.kind not in served:
        raise InputError(
            f"{key} = {name!r} takes {', '.join(sorted(served))}, but the samples are of kind {form.kind!r}."
        )
    by_shape = next(iter(inspect.signature(builder).parameters), "shape") == "shape"
    marked = hasattr(builder, "kinds")

    def make(form: Form) -> Any:
        if not by_shape:
            return builder(form, classes, **chosen)
        masked = form.kind == "series" and not marked
        return builder((form.shape[0] - 1, *form.shape[1:]) if masked else form.shape, classes, **chosen)

    said = f"{key} = {name!r}"
    try:
        model = make(form)
        if not isinstance(model, nn.Module):
            raise InputError(f"{said} returns {type(model).__name__}, not a torch.nn.Module.")
        knows_form = marked or not by_shape
        ignores = padded and lacks_mask(model, form, knows_form=knows_form)
        may_ignore = common.ignore_mask or not padded
        model = of_one_tensor(model, form, knows_form=knows_form, may_ignore=may_ignore, key=said)
        model = adapt(model, form, classes, said, common.head, common.features)
        if common.weights is not None:
            load_weights(model, common.weights, f"{prefix}.weights")
        if common.projection is not None:
            if not isinstance(model.classifier, nn.Linear):
                raise InputError(f"{said}: a projection head needs a classifier that is one linear layer.")
            model = Projected(model, common.projection, classes)
        train_only(model, common.train, common.adapter, prefix)
        line = f"{name}: {about(model)}" + (", no mask: it reads padding as zeros" if ignores else "")
        model, logits = _tried(model, form)
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever the builder or the model raises, also sys.exit
        known = isinstance(error, _KNOWN) and str(error)
        reason, layer = _reason(error), failing_layer(error)
        where = f", in layer {layer!r}" if layer else ""
        size = _size_that_fits(make, form) if known and form.kind == "image" else None
        if size is not None:
            fits = f"{form.shape[0]}x{size}x{size}"
            reason = f"it takes images of {fits}; set data.size = {size} (the model says: {reason}{where})"
        elif layer:
            reason = f"layer {layer!r} fails: {reason}"
        samples = f"{'images' if form.kind == 'image' else form.kind} of {'x'.join(map(str, form.shape))}"
        raise InputError(f"{said} cannot be built for {samples} and {classes} classes: {reason}") from error
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, classes):
        of_training = f"; in train mode it returns a {type(logits).__name__}; turn its other outputs off"
        more = "" if isinstance(logits, Tensor) else of_training
        raise InputError(f"{said}: for 2 samples the model must return logits of shape (2, {classes}){more}.")
    built: nn.Module = model
    if not any(parameter.requires_grad for parameter in built.parameters()):
        raise InputError(f"{said}: the model has no parameter that can be trained: all are frozen.")
    for tensor_name, tensor in built.state_dict().items():
        if tensor.dtype not in _DTYPES:
            valid = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            raise InputError(
                f"{said}: {own_path(built, tensor_name)} is {tensor.dtype}, which cannot be sent; valid: {valid}. "
                "Register a buffer that never changes with persistent=False."
            )
    name_once(built)
    built.fedkd_about = line  # type: ignore[assignment]
    return built


def _options(builder: Any, table: dict[str, Any], prefix: str) -> tuple[dict[str, Any], Options]:
    """Return the builder's options, and those of all models. An option that both have is the builder's."""
    own = inspect.signature(builder).parameters if callable(builder) else {}
    known = [field.name for field in fields(Options) if field.name not in own]
    common = {name: table.pop(name) for name in known if name in table}
    width = common.get("projection")
    if width is not None and (not isinstance(width, int) or isinstance(width, bool) or width < 1):
        raise InputError(f"{prefix}.projection = {width!r}: should be the width of a projection head, 1 or more.")
    chosen = options(builder, table, prefix, known)
    return chosen, Options(**options(Options, common, prefix))


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


def _tried(model: nn.Module, form: Form) -> tuple[nn.Module, Any]:
    """Return a model with its weights in channels-last order if it is for images, and its logits for two samples.

    Convolutions are fastest in this order. A model that cannot use it, because it views images as vectors without
    `flatten` or `reshape`, keeps torch's usual order.
    """
    with torch.no_grad():
        if form.kind == "image":
            try:
                faster = copy.deepcopy(model).to(memory_format=torch.channels_last)
                logits = faster.train()(form.example(2))
                return model.to(memory_format=torch.channels_last), logits
            except RuntimeError:
                pass
        return model, copy.deepcopy(model).train()(form.example(2))


def refuse_short(model: nn.Module, form: Form, shortest: int, key: str) -> None:
    """Raise InputError if a model cannot be trained on series or texts of `shortest` steps or tokens: a layer fails, or
    gives values that are not finite. Draws from torch's default stream.
    """
    trial = copy.deepcopy(model).train()
    batch = form.shortened(form.drawn(2, torch.Generator().manual_seed(0)), shortest)
    batch = batch.to(next(trial.parameters()).device)
    odd: list[str] = []

    def look(path: str) -> Callable[..., None]:
        def after(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                odd.append(path)

        return after

    for path, module in trial.named_modules():
        module.register_forward_hook(look(path))
    what = f"{shortest} steps" if form.kind == "series" else f"{shortest} tokens"
    said = f"{key} cannot take the shortest {'series' if form.kind == 'series' else 'text'} of the data, of {what}: "
    fix = "; leave out what is so short, or use a model with smaller kernels, or fewer pools"
    try:
        with torch.no_grad():
            finite = bool(trial(batch).isfinite().all())
    except Exception as error:  # whatever a layer raises
        layer = failing_layer(error)
        raise InputError(f"{said}{f'layer {layer!r} fails: ' if layer else ''}{_reason(error)}{fix}.") from error
    if not finite:
        layer = own_path(trial, odd[0])
        raise InputError(f"{said}the output of {f'layer {layer!r}' if layer else 'the model'} is not finite{fix}.")


def fresh_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the running statistics with which the batch norm of a model starts: means 0, variances 1, counts 0."""
    fresh = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            assert module.num_batches_tracked is not None
            prefix = f"{path}." if path else ""
            fresh[f"{prefix}running_mean"] = torch.zeros_like(module.running_mean)
            fresh[f"{prefix}running_var"] = torch.ones_like(module.running_var)
            fresh[f"{prefix}num_batches_tracked"] = torch.zeros_like(module.num_batches_tracked)
    return fresh


def _reason(error: BaseException) -> str:
    known = isinstance(error, _KNOWN) and str(error)
    return on_one_line(str(error).splitlines()[0], 300) if known else described(error)


def takes_one_sample(model: nn.Module, form: Form) -> bool:
    """Return whether a model can be trained on a batch of one sample; batch norm of vectors cannot."""
    trial = copy.deepcopy(model).train()
    device = next(trial.parameters()).device
    try:
        with torch.no_grad():
            trial(form.example(1).to(device))
    except ValueError:  # batch norm: expected more than 1 value per channel
        return False
    return True


def _size_that_fits(make: Callable[[Form], nn.Module], form: Form) -> int | None:
    """Return a number of pixels per side that a model can take, larger than the given; None if none is found.

    For a model that takes all sizes from one on, it is the smallest. Models are made on torch's meta device, which has
    shapes and no values.
    """

    def fits(size: int) -> bool:
        larger = form._replace(shape=(form.shape[0], size, size))
        try:
            with torch.device("meta"), torch.no_grad():
                make(larger).train()(torch.zeros(2, *larger.shape))
        except Exception:  # whatever the model says, this size does not help
            return False
        return True

    below = max(form.shape[1:])
    for size in _SIZES:
        if size > below and fits(size):
            while size - below > 1:
                middle = (below + size) // 2
                below, size = (below, middle) if fits(middle) else (middle, size)
            return size
        below = max(below, size)
    return None


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights and buffers into a model, as `load_state_dict` does. Raises RuntimeError if they do not fit.

    Without any running statistics of batch norm among the weights, those of the model become fresh: 0 and 1.
    """
    own = model.state_dict()
    if own.keys() != weights.keys() and not (fresh := fresh_statistics(model)).keys() & weights.keys():
        weights = {**weights, **fresh}
    if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
        model.load_state_dict(weights)  # its error message names what does not fit
    with torch.no_grad():
        torch._foreach_copy_(list(own.values()), [weights[name] for name in own])
