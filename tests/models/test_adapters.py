"""The head of any model: where it is found, that it gives the model's output, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedkd.data.spec import Form
from fedkd.errors import InputError
from fedkd.models.build import build
from fedkd.streams import default_stream, torch_stream

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = {
    "bert": SMALL, "albert": SMALL | {"embedding_size": 16}, "roberta": SMALL,
    "electra": SMALL | {"embedding_size": 16},
    "llama": SMALL, "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 2, "eos_token_id": 2},
}  # fmt: skip
TOKENS = Form("tokens", (24,), vocabulary=90)


@pytest.fixture(autouse=True)
def _stream() -> object:
    with default_stream(torch_stream(0, 0, "server", "test")):
        yield


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a config.json and returns the name of its model."""

    def write(kind: str, **more: Any) -> str:
        sizes = {"vocab_size": 100, "max_position_embeddings": 64} if kind in TEXT else {}
        (tmp_path / kind).mkdir()
        table = {"model_type": kind, **sizes, **TEXT.get(kind, {}), **more}
        (tmp_path / kind / "config.json").write_text(json.dumps(table))
        return f"transformers:{tmp_path / kind}"

    return write


@pytest.fixture
def of_file(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that writes a file with `build`, and returns the name of its model."""

    def write(code: str) -> str:
        (tmp_path / "mine.py").write_text(
            f"import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n{code}"
        )
        return f"{tmp_path / 'mine.py'}:build"

    return write


def _images(channels: int, pixels: int) -> Form:
    return Form("image", (channels, pixels, pixels))


def _holds(model: nn.Module, form: Form, width: int, classes: int = 7) -> None:
    """Check that features are vectors of a width, and that the classifier gives the model's output from them."""
    model.eval()
    batch = form.drawn(3, torch.Generator().manual_seed(5))
    features = model.features(batch)
    assert features.shape == (3, width)
    assert isinstance(model.classifier, nn.Linear)
    assert (model.classifier.in_features, model.classifier.out_features) == (width, classes)
    assert torch.allclose(model.classifier(features), model(batch), atol=1e-6)


def _line(model: nn.Module) -> str:
    return str(model.fedkd_about).split(": ", 1)[1]


TIMM = [("test_resnet", 8, {}, "fc", 96), ("test_vit", 32, {}, "head", 64)]
SLOW_TIMM = [
    ("resnet18", 32, {}, "fc", 512), ("vit_tiny_patch16_224", 32, {"patch_size": 8}, "head", 192),
    ("ghostnet_050", 32, {}, "classifier", 1280), ("mobilenetv3_small_050", 32, {}, "classifier", 1024),
    ("efficientvit_b0", 32, {}, "head.classifier.4", 1280), ("dla34", 64, {}, "fc", 512),
    ("deit_tiny_distilled_patch16_224", 32, {}, "head and head_dist", 192),
    ("levit_128s", 32, {}, "head.linear and head_dist.linear", 384), ("convnext_atto", 64, {}, "head.fc", 320),
    ("vgg11", 64, {}, "head.fc", 4096), ("nfnet_l0", 64, {}, "head.fc", 2304), ("regnetx_002", 64, {}, "head.fc", 368),
    ("xception41", 64, {}, "head.fc", 2048), ("mobilevit_xxs", 64, {}, "head.fc", 320),
    ("efficientnet_b0", 64, {}, "classifier", 1280), ("densenet121", 64, {}, "classifier", 1024),
    ("hrnet_w18_small", 64, {}, "classifier", 2048), ("dpn48b", 64, {}, "classifier", 832),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "pixels", "options", "head", "width"),
    [*TIMM, *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW_TIMM)],
    ids=[row[0] for row in [*TIMM, *SLOW_TIMM]],
)
def test_a_model_of_timm(name: str, pixels: int, options: dict, head: str, width: int) -> None:
    form = _images(1, pixels)
    model = build(f"timm:{name}", {"options": options} if options else {}, form, 7)
    _holds(model, form, width)
    assert f"head {head} ({width} -> 7), features {width} wide" in _line(model)


def test_the_line_on_a_model_has_its_head_width_size_and_norm() -> None:
    model = build("timm:resnet18", {}, _images(1, 32), 7)
    wanted = "timm:resnet18: head fc (512 -> 7), features 512 wide, 11,173,831 parameters, batch norm"
    assert model.fedkd_about == wanted
    assert (
        _line(build("mlp", {"hidden": [9]}, _images(1, 4), 3)) == "classifier (9 -> 3), features 9 wide, 183 parameters"
    )


@pytest.mark.parametrize(("source", "option"), [("timm", "pretrained"), ("timm", "checkpoint_path"),
                                                ("transformers", "trust_remote_code")])  # fmt: skip
def test_options_that_load_weights_or_code_are_refused(written: Callable[..., str], source: str, option: str) -> None:
    name, form = ("timm:resnet18", _images(1, 32)) if source == "timm" else (written("bert"), TOKENS)
    with pytest.raises(InputError, match=rf"model.options: {option} cannot be set: nothing is downloaded"):
        build(name, {"options": {option: True}}, form, 7)


@pytest.mark.slow
def test_a_vision_transformer_of_timm_gets_the_images_size_and_channels() -> None:
    model = build("timm:vit_tiny_patch16_224", {"options": {"patch_size": 4}}, _images(5, 32), 7)
    assert sum(p.numel() for p in model.parameters()) == 5_368_327


TORCHVISION = [
    ("resnet18", 1, 32, "fc", 512), ("resnet18", 5, 32, "fc", 512), ("alexnet", 3, 64, "classifier.6", 4096),
]  # fmt: skip
SLOW_TORCHVISION = [
    ("googlenet", 1, 64, "fc", 1024), ("mobilenet_v3_small", 3, 32, "classifier.3", 1024),
    ("inception_v3", 3, 96, "fc", 2048), ("convnext_tiny", 3, 32, "classifier.2", 768), ("swin_t", 2, 32, "head", 768),
    ("efficientnet_b0", 4, 32, "classifier.1", 1280), ("vit_b_32", 3, 224, "heads.head", 768),
    ("maxvit_t", 3, 224, "classifier.5", 512),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "channels", "pixels", "head", "width"),
    [*TORCHVISION, *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW_TORCHVISION)],
    ids=[f"{row[0]}-{row[1]}" for row in [*TORCHVISION, *SLOW_TORCHVISION]],
)
def test_a_model_of_torchvision(name: str, channels: int, pixels: int, head: str, width: int) -> None:
    form = _images(channels, pixels)
    model = build(f"torchvision:{name}", {}, form, 7)
    _holds(model, form, width)
    assert f"head {head} ({width} -> 7)" in _line(model)


@pytest.mark.parametrize(
    ("kind", "head"),
    [("bert", "classifier"), ("distilbert", "classifier"), ("albert", "classifier"), ("roberta", "classifier.out_proj"),
     ("electra", "classifier.out_proj"), ("gpt2", "score"), ("llama", "score")],
)  # fmt: skip
def test_a_model_of_transformers_for_texts(written: Callable[..., str], kind: str, head: str) -> None:
    model = build(written(kind), {}, TOKENS, 7)
    _holds(model, TOKENS, 32)
    assert f"head {head} (32 -> 7)" in _line(model)
    texts = TOKENS.drawn(3, torch.Generator().manual_seed(1))
    texts[0, 12:] = 0
    texts[1, 1:] = 0
    longer = nn.functional.pad(texts, (0, 5))
    assert torch.allclose(model(longer), model(texts), atol=1e-6)
    assert torch.allclose(model(texts[:1, :12]), model(texts)[:1], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "sizes", "head", "width"),
    [("vit", SMALL | {"patch_size": 4}, "classifier", 32),
     ("resnet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, "classifier.1", 16)],
)  # fmt: skip
def test_a_model_of_transformers_for_images(
    written: Callable[..., str], kind: str, sizes: dict, head: str, width: int
) -> None:
    form = _images(2, 8)
    model = build(written(kind, **sizes), {}, form, 7)
    _holds(model, form, width)
    assert f"head {head} ({width} -> 7)" in _line(model)


def test_nothing_is_downloaded(written: Callable[..., str]) -> None:
    build(written("bert"), {}, TOKENS, 2)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(InputError, match="there is no file bert-base-uncased; nothing is downloaded"):
        build("transformers:bert-base-uncased", {}, TOKENS, 2)


@pytest.mark.parametrize(
    ("kind", "length", "message"),
    [
        ("bert", 72, "up to 72 tokens, the model has positions for 64 .* set data.length = 64"),
        ("gpt2", 72, "set data.length = 64"),
        ("roberta", 64, "positions for 56 .max_position_embeddings = 64.; set data.length = 56"),
    ],
)
def test_texts_that_are_too_long_are_refused(written: Callable[..., str], kind: str, length: int, message: str) -> None:
    name = written(kind)
    with pytest.raises(InputError, match=message):
        build(name, {}, TOKENS._replace(shape=(length,)), 2)
    build(name, {}, TOKENS._replace(shape=(56,)), 2)


def test_a_model_of_transformers_that_does_not_fit_the_texts_is_refused(
    written: Callable[..., str], tmp_path: Path
) -> None:
    bert = written("bert")
    with pytest.raises(InputError, match="have 190 words, the model has vocab_size = 100; set model.options"):
        build(bert, {}, TOKENS._replace(vocabulary=190), 2)
    build(bert, {"options": {"vocab_size": 190}}, TOKENS._replace(vocabulary=190), 2)
    with pytest.raises(InputError, match="t5 reads its answer at an end token"):
        build(written("t5", d_model=32, vocab_size=100), {}, TOKENS, 2)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="Unrecognized model"):
        build(f"transformers:{tmp_path}", {}, TOKENS, 2)
    with pytest.raises(InputError, match="takes image, tokens, but the samples are of kind 'series'"):
        build(bert, {}, Form("series", (3, 9)), 2)


PLAIN = """
def build(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, {classes}{more}))
"""


@pytest.mark.parametrize(("classes", "more"), [("classes", ""), ("1000", ""), ("classes", ", bias=False")])
def test_a_plain_module_needs_no_names(of_file: Callable[[str], str], classes: str, more: str) -> None:
    model = build(of_file(PLAIN.format(classes=classes, more=more)), {}, _images(1, 8), 7)
    _holds(model, _images(1, 8), 12)
    assert (model.classifier.bias is None) == bool(more)
    assert "head 3 (12 -> 7)" in _line(model)


def test_own_features_and_classifier_are_taken_if_they_agree(of_file: Callable[[str], str]) -> None:
    code = """
class Mine(nn.Module):
    def __init__(self, classes, twice):
        super().__init__()
        self.features, self.classifier = nn.Flatten(), nn.Sequential(nn.Linear(64, 9), nn.Linear(9, classes))
        self.twice = twice
    def forward(self, x):
        return self.twice * self.classifier(self.features(x))
def build(shape, classes, *, twice: int = 1):
    return Mine(classes, twice)
"""
    name = of_file(code)
    assert type(build(name, {}, _images(1, 8), 7)).__name__ == "Mine"
    with pytest.raises(InputError, match="no head was found: .*; layers of this shape: classifier.1. Set model.head"):
        build(name, {"twice": 2}, _images(1, 8), 7)


BODY = """
class Mine(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body, self.a, self.b = nn.Linear(64, 9), nn.Linear(9, classes), nn.Linear(9, classes)
        self.odd = nn.Linear(9, 3)
        {more}
    def forward(self, x):
        h = F.relu(self.body(x.flatten(1)))
        return {output}
def build(shape, classes):
    return Mine(classes)
"""


@pytest.mark.parametrize(
    ("output", "table", "message"),
    [
        ("self.a(h) + self.b(h)", {}, "no head was found: .*; layers of this shape: a, b. Set model.head"),
        (
            "self.a(h) + self.b(h)",
            {"head": "a"},
            "without the head 'a' the model fails: .* If there is no second head, set model.features",
        ),
        ("self.a(h).log_softmax(1)", {}, "no head was found"),
        ("self.a(h)", {"head": "c"}, ", head = 'c': the model has no such module; it has body, a, b, odd"),
        ("self.a(h)", {"head": ""}, ", head = '' is a Mine; a head is one linear layer"),
        ("self.a(h)", {"head": "b"}, "'b' must be of shape|'b' does not give the model's output"),
        ("self.a(h)", {"head": "a", "features": "c"}, ", features = 'c': the model has no such module"),
        ("self.a(h).view(-1, self.a.out_features)", {}, "without the head 'a' the model fails: .*set model.features"),
        ("self.a(h)[:1]", {}, "for 2 samples the model must return logits"),
        ("(self.a(h), h)", {}, "must return logits .*; it returns a tuple. Let its forward return the logits alone"),
        (
            "(self.a(h), h) if self.training else self.a(h)",
            {},
            "it returns a tuple in train mode; turn its other outputs off",
        ),
        ("self.a(h).exp()", {"head": "a"}, "'a' does not give the model's output .* Set model.head, and if needed"),
        ("torch.sigmoid(self.body.weight.sum()) * x.mean((1, 2, 3))[:, None]", {}, "no head was found"),
    ],
)
def test_what_is_no_head_is_refused_with_what_to_set(
    of_file: Callable[[str], str], output: str, table: dict, message: str
) -> None:
    name = of_file(BODY.format(output=output, more=""))
    with pytest.raises(InputError, match=message):
        build(name, table, _images(1, 8), 7)


def test_the_head_is_the_last_layer_that_gives_the_output(of_file: Callable[[str], str]) -> None:
    model = build(of_file(BODY.format(output="(self.a(h), self.b(h))[0]", more="")), {}, _images(1, 8), 7)
    _holds(model, _images(1, 8), 9)
    assert "head a (9 -> 7)" in _line(model)


@pytest.mark.parametrize("head", [{}, {"head": "a"}])
def test_features_may_be_the_output_of_a_module(of_file: Callable[[str], str], head: dict) -> None:
    name = of_file(BODY.format(output="self.a(self.body(x.flatten(1))).view(-1, self.a.out_features)", more=""))
    model = build(name, {"features": "body", **head}, _images(1, 8), 7)
    _holds(model, _images(1, 8), 9)
    assert sorted(model.state_dict())[:3] == ["classifier.bias", "classifier.weight", "features.model.b.bias"]
    assert build(name, {"features": "body", "train": "head"}, _images(1, 8), 7).state_dict().keys() == {
        "classifier.bias", "classifier.weight"
    }  # fmt: skip


def test_a_head_that_shares_its_weights_is_refused(of_file: Callable[[str], str]) -> None:
    name = of_file(BODY.format(output="self.a(h)", more="self.b.weight = self.a.weight"))
    with pytest.raises(InputError, match="'a' shares its weights: a.weight, b.weight are one tensor"):
        build(name, {}, _images(1, 8), 7)


def test_a_model_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(InputError, match="squeezenet1_0': its last layer is not linear"):
        build("torchvision:squeezenet1_0", {}, _images(3, 64), 7)


def test_names_of_timm_are_checked_and_sizes_advised() -> None:
    with pytest.raises(InputError, match="unknown 'timm:resnet81'; did you mean 'timm:resnet"):
        build("timm:resnet81", {}, _images(1, 8), 7)
    with pytest.raises(InputError, match="set data.size = 16 .the model says: Input height .8. should be divisible"):
        build("timm:test_vit", {}, _images(1, 8), 7)


@pytest.mark.parametrize("package", ["timm", "transformers", "peft"])
def test_a_missing_package_is_named_with_its_extra(
    written: Callable[..., str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    table = {"adapter": {"name": "lora", "targets": ["0"]}} if package == "peft" else {}
    name = {"timm": "timm:resnet18", "transformers": written("bert"), "peft": "mlp"}[package]
    with pytest.raises(InputError, match=f"fedkd.models.*needs the package '{package}'"):
        build(name, table, TOKENS if package == "transformers" else _images(1, 8), 7)


MASKED = """
class Mine(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.embedding, self.conv = nn.Embedding(90, 6), nn.Conv1d(width, 6, 1)
        self.fc = nn.Linear(6, classes)
    def forward(self, x, {mask}):
        h = self.embedding(x).transpose(1, 2) if x.dim() == 2 else self.conv(x)
        {here}
        return self.fc((h * here[:, None]).sum(2) / here.sum(1, keepdim=True))
def build({first}, classes):
    return Mine({width}, classes)
"""


@pytest.mark.parametrize(
    ("form", "first", "width"),
    [
        (Form("series", (4, 9)), "shape", "shape[0]"),
        (TOKENS, "form", "1"),
        (Form("series", (4, 9)), "form", "form.shape[0] - 1"),
    ],
)
def test_a_model_may_take_a_mask(of_file: Callable[[str], str], form: Form, first: str, width: str) -> None:
    name = of_file(MASKED.format(mask="mask=None", here="here = mask.to(h.dtype)", first=first, width=width))
    model = build(name, {}, form, 7)
    _holds(model, form, 6)
    batch = form.drawn(3, torch.Generator().manual_seed(5))
    batch[0, ..., 4:] = 0
    assert torch.allclose(model(nn.functional.pad(batch, (0, 6))), model(batch), atol=1e-6)


def test_a_model_without_a_mask_must_be_allowed_to_ignore_it(of_file: Callable[[str], str]) -> None:
    form = Form("series", (4, 9))
    name = of_file(MASKED.format(mask="*_", here="here = torch.ones_like(h[:, 0])", first="shape", width="shape[0]"))
    with pytest.raises(InputError, match="forward takes no mask, .* model.ignore_mask = true"):
        build(name, {}, form, 7)
    _holds(build(name, {"ignore_mask": True}, form, 7), form, 6)


def test_an_option_that_a_builder_has_too_is_the_builders(of_file: Callable[[str], str]) -> None:
    code = "def build(shape, classes, *, head: int = 5):\n"
    code += "    return nn.Sequential(nn.Flatten(), nn.Linear(64, head), nn.Linear(head, classes))\n"
    assert build(of_file(code), {"head": 3}, _images(1, 8), 7).classifier.in_features == 3


def test_a_probe_batch_is_of_the_form() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = Form("table", (5,), cards=(3, 1)).drawn(50, generator)
    assert set(rows[:, 3].tolist()) == {0, 1, 2}
    assert not rows[:, 4].any()
    assert bool((Form("series", (3, 4)).drawn(2, generator)[:, -1] == 1).all())
    tokens: Tensor = TOKENS.drawn(9, generator)
    assert 1 <= int(tokens.min()) <= int(tokens.max()) < 90


def test_two_heads_become_one_and_the_line_says_so(tmp_path: Path) -> None:
    import timm

    name, table = "deit_tiny_distilled_patch16_224", {"patch_size": 8, "depth": 1, "embed_dim": 12}
    model = build(f"timm:{name}", {"options": table}, _images(1, 16), 7)
    assert "head head and head_dist (12 -> 7), features 12 wide, one head in place of 2, " in _line(model)
    other = timm.create_model(name, num_classes=9, in_chans=1, img_size=(16, 16), **table)
    torch.save(other.state_dict(), tmp_path / "w.pt")  # both heads in the file are others than the one
    loaded = build(f"timm:{name}", {"options": table, "weights": str(tmp_path / "w.pt")}, _images(1, 16), 7)
    assert torch.equal(loaded.state_dict()["features.dist_token"], other.state_dict()["dist_token"])


def test_a_tensor_that_cannot_be_sent_is_refused_by_its_own_name(of_file: Callable[[str], str]) -> None:
    name = of_file(BODY.format(output="self.a(h)", more="self.register_buffer('w', torch.zeros(2).cfloat())"))
    with pytest.raises(InputError, match=r"': w is torch.complex64, .* that never changes with persistent=False"):
        build(name, {}, _images(1, 8), 7)
