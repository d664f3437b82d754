"""Models of torchvision, timm and transformers, by name. Nothing is ever downloaded."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.spec import LENGTHS, PAD, Form
from ..errors import InputError, on_one_line, some, unknown
from ..registry import installed, names
from .zoo import serves

Options = dict[str, Any]
SOURCES = ("torchvision", "timm", "transformers")
# options of the libraries that read other files, download, or run code that lies beside a config
_REFUSED = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir",
    "trust_remote_code", "code_revision", "local_files_only",
)  # fmt: skip


def builder_of(name: str, key: str) -> Callable[..., nn.Module] | None:
    """Return the builder of `torchvision:<name>`, `timm:<name>` or `transformers:<folder or file>`; None of others.

    Its models have the classifier of their library. Raises InputError for an unknown name or a missing package.
    """
    source, _, what = name.partition(":")
    if source not in SOURCES:
        return None
    with extra(f"{key} = {name!r}"):
        return {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}[source](what, key)


def extra(what: str) -> AbstractContextManager[None]:
    """Turn an import of a package that is not installed into InputError, which names the extra that has it."""
    return installed(f"{what} (pip install 'fedkd[models]')")


class ThreeChannels(nn.Module):
    """Converts grey images to colour images, for models that need three channels."""

    def forward(self, images: Tensor) -> Tensor:
        """Return images, B x 3 x H x W, of images with 1 or 3 channels."""
        return images.expand(-1, 3, -1, -1)


def _torchvision(name: str, key: str) -> Callable[..., nn.Module]:
    from torchvision import models as zoo

    valid = zoo.list_models(module=zoo)
    if name not in valid:
        raise unknown(key, f"torchvision:{name}", [f"torchvision:{n}" for n in valid] + names("models"))

    @serves("image")
    def build(shape: tuple[int, int, int], classes: int) -> nn.Module:
        trunk = zoo.get_model(name, weights=None, **_OPTIONS.get(name, {}))
        if shape[0] in (1, 3):
            return nn.Sequential(ThreeChannels(), trunk)
        path, first = next((p, m) for p, m in trunk.named_modules() if isinstance(m, nn.Conv2d))
        other = nn.Conv2d(
            shape[0], first.out_channels, first.kernel_size, first.stride, first.padding, first.dilation,  # type: ignore[arg-type]
            bias=first.bias is not None,
        )  # fmt: skip
        trunk.set_submodule(path, other)
        return nn.Sequential(nn.Identity(), trunk)

    return build


# without the auxiliary classifiers of training, which return several outputs
_OPTIONS: dict[str, dict[str, bool]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}


def _timm(name: str, key: str) -> Callable[..., nn.Module]:
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
        hint = f"; did you mean 'timm:{near[0]}'?" if near else "."
        raise InputError(f"{key}: unknown 'timm:{on_one_line(name, 100)}'{hint} `timm.list_models()` has all names.")

    @serves("image")
    def build(shape: tuple[int, int, int], classes: int, *, options: Options = {}) -> nn.Module:  # noqa: B006
        _refuse_options(options, key)
        wanted: Options = {"pretrained": False, "num_classes": classes, "in_chans": shape[0], **options}
        sized: Options = {"img_size": tuple(shape[1:])} if "img_size" not in options else {}
        try:
            found: nn.Module = timm.create_model(name, **wanted, **sized)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            found = timm.create_model(name, **wanted)
        return found

    return build


def _refuse_options(options: Options, key: str) -> None:
    """Raise InputError for options by which a library would load weights or code. A stranger's file may have them."""
    prefix = key.removesuffix(".name")
    if found := [name for name in options if name in _REFUSED]:
        raise InputError(
            f"{prefix}.options: {some(found)} cannot be set: nothing is downloaded, and only {prefix}.weights names a "
            "file of weights."
        )


class Transformer(nn.Module):
    """A classifier of transformers as a function of one tensor: tokens, B x L, or images."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits, B x C. The attention mask of tokens is where they are not 0."""
        if self.kind == "image":
            logits: Tensor = self.model(pixel_values=inputs).logits
        else:
            logits = self.model(input_ids=inputs, attention_mask=(inputs != PAD).long()).logits
        return logits


def _transformers(where: str, key: str) -> Callable[..., nn.Module]:
    path = Path(where).expanduser()
    file = path / "config.json" if path.is_dir() else path
    said = f"{key} = 'transformers:{on_one_line(where, 200)}'"
    if not file.is_file():
        raise InputError(f"{said}: there is no file {on_one_line(str(file), 200)}; nothing is downloaded.")
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
    import transformers

    @serves("tokens", "image")
    def build(form: Form, classes: int, *, options: Options = {}) -> nn.Module:  # noqa: B006
        _refuse_options(options, key)
        try:
            config = transformers.AutoConfig.from_pretrained(
                str(file), local_files_only=True, trust_remote_code=False, **options
            )
        except (ValueError, KeyError, OSError, json.JSONDecodeError) as error:
            raise InputError(f"{said}: {on_one_line(str(error), 300)}") from error
        config.num_labels = classes
        if form.kind == "image":
            config.num_channels = form.shape[0]
            if hasattr(config, "image_size"):
                config.image_size = form.shape[1]
            made = transformers.AutoModelForImageClassification.from_config(config, trust_remote_code=False)
        else:
            _check_texts(config, form, said)
            config.pad_token_id = PAD
            made = transformers.AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
        model = Transformer(made.float(), form.kind)
        if form.kind == "tokens":
            _check_length(model, config, form, said)
        return model

    return build


def _check_texts(config: Any, form: Form, said: str) -> None:
    """Raise InputError for a model that cannot take such texts."""
    if config.is_encoder_decoder:
        raise InputError(
            f"{said}: {config.model_type} reads its answer at an end token, which the texts do not have; take an "
            "encoder, such as bert, or a decoder, such as gpt2."
        )
    if config.vocab_size < form.vocabulary:
        raise InputError(
            f"{said}: the texts have {form.vocabulary} words, the model has vocab_size = {config.vocab_size}; set "
            f"model.options = {{ vocab_size = {form.vocabulary} }} or raise data.min_count."
        )


@torch.no_grad()
def _check_length(model: Transformer, config: Any, form: Form, said: str) -> None:
    """Raise InputError for a model that has positions for shorter texts only."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or form.shape[0] < positions:
        return
    try:
        model.eval()(form.example(1))
    except (RuntimeError, IndexError) as error:
        usable = positions - (PAD + 1 if "roberta" in config.model_type else 0)  # RoBERTa counts from the pad's id on
        usable -= usable % LENGTHS
        raise InputError(
            f"{said}: the texts have up to {form.shape[0]} tokens, the model has positions for {usable} "
            f"(max_position_embeddings = {positions}); set data.length = {usable}."
        ) from error
