"""Weights from a file, frozen parts and LoRA: what changes, what is sent, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
import transformers
from helpers import Make, checkpoint_bytes, lines, server_state
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.core.environment import Environment
from fedkd.data.spec import Form
from fedkd.errors import InputError
from fedkd.models.build import build, fill
from fedkd.models.freezing import frozen_names
from fedkd.runs.run import run
from fedkd.streams import default_stream, torch_stream

IMAGES = Form("image", (1, 8, 8))
TOKENS = Form("tokens", (24,), vocabulary=90)
LORA = {"name": "lora", "r": 4, "alpha": 8, "targets": ["query", "value"]}


@pytest.fixture(autouse=True)
def _stream() -> object:
    with default_stream(torch_stream(0, 0, "server", "test")):
        yield


@pytest.fixture
def bert(tmp_path: Path) -> str:
    table = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    table |= {"intermediate_size": 64, "vocab_size": 500, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(table))
    return f"transformers:{tmp_path}"


def _step(model: nn.Module, batch: Tensor, count: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.train()
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(model(batch), torch.arange(len(batch)) % 2).backward()
        optimizer.step()


def _batch(form: Form, count: int = 6) -> Tensor:
    return form.drawn(count, torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("train", "parts"),
    [("head", {"classifier"}), (["layer4", "fc"], {"classifier", "layer4"}), (["bn1"], {"classifier", "bn1"})],
)
def test_only_the_named_parts_are_trained_and_in_the_state(train: Any, parts: set[str]) -> None:
    model = build("timm:test_resnet", {"train": train}, IMAGES, 7)
    state = model.state_dict()
    assert {name.removeprefix("features.").split(".")[0] for name in state} == parts
    assert {name for name, _ in model.named_parameters()} <= state.keys()
    assert all(parameter.requires_grad for parameter in model.parameters())
    tensors = dict(model.named_buffers())
    before = {name: tensors[name].clone() for name in frozen_names(model)}
    own = {name: tensor.clone() for name, tensor in state.items()}
    _step(model, _batch(IMAGES))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, own[name])}
    assert changed == own.keys()  # also the statistics of batch norm that is trained
    fill(model, own)
    model.load_state_dict(own)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    again = copy.deepcopy(model)
    _step(again, _batch(IMAGES))
    assert not torch.equal(again.classifier.weight, model.classifier.weight)


def test_batch_norm_of_frozen_parts_stays_as_it_is() -> None:
    model = build("timm:test_resnet", {"train": "head"}, IMAGES, 7)
    batch = _batch(IMAGES)
    assert torch.equal(model.eval()(batch), model.train()(batch))


def test_the_line_says_what_is_trained() -> None:
    model = build("timm:test_resnet", {"train": "head"}, Form("image", (1, 32, 32)), 7)
    assert str(model.fedkd_about).endswith("679 of 373,079 parameters are trained, batch norm")


def test_models_of_the_zoo_can_be_frozen_too() -> None:
    for name in ("mlp", "convnet"):
        model = build(name, {"train": "head"}, IMAGES, 3)
        assert model.state_dict().keys() == {"classifier.weight", "classifier.bias"}
    assert len(build("mlp", {"train": ["features.3"], "hidden": [5, 4]}, IMAGES, 3).state_dict()) == 4
    projected = build("mlp", {"train": "head", "projection": 6, "hidden": [5]}, IMAGES, 3)
    assert {name.rsplit(".", 1)[0] for name in projected.state_dict()} == {"head.0", "head.2", "classifier"}


def test_modules_that_are_not_there_are_refused() -> None:
    lora = LORA | {"targets": ["layer1.0.conv1"]}
    with pytest.raises(InputError, match="model.train: the model has no module 'layer5'; it has conv1, bn1, layer1"):
        build("timm:test_resnet", {"train": ["layer5"]}, IMAGES, 7)
    with pytest.raises(InputError, match="model.adapter.save: the model has no module 'pool'"):
        build("timm:test_resnet", {"adapter": lora | {"save": ["pool"]}}, IMAGES, 7)
    with pytest.raises(InputError, match=r"model.adapter.targets = \['querry'\]: .* The ends .*: .*conv1"):
        build("timm:test_resnet", {"adapter": LORA | {"targets": ["querry"]}}, IMAGES, 7)
    with pytest.raises(InputError, match="model.train: with model.adapter, its `save`"):
        build("timm:test_resnet", {"adapter": lora, "train": "head"}, IMAGES, 7)
    with pytest.raises(InputError, match="model.adapter.rank: unknown key 'rank'"):
        build("timm:test_resnet", {"adapter": lora | {"rank": 3}}, IMAGES, 7)


def test_lora_sends_the_adapters_and_the_head(bert: str) -> None:
    model = build(bert, {"adapter": LORA}, TOKENS, 7)
    state = model.state_dict()
    assert len(state) == 10
    assert sum(tensor.numel() for tensor in state.values()) == 1255
    assert "1,255 of" in str(model.fedkd_about)
    before = model.eval()(_batch(TOKENS)).detach()
    _step(model, _batch(TOKENS))
    assert not torch.allclose(model.eval()(_batch(TOKENS)), before)


def test_lora_is_what_peft_computes(bert: str) -> None:
    model = build(bert, {"adapter": LORA}, TOKENS, 7)
    _step(model, _batch(TOKENS))
    plain = build(bert, {}, TOKENS, 7)
    inner = copy.deepcopy(plain.features.model)
    inner.classifier = copy.deepcopy(plain.classifier)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"])
    theirs = peft.get_peft_model(inner, config)
    tensors = {name: tensor for name, tensor in model.named_buffers() if name in frozen_names(model)}
    tensors |= {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}
    found = {name.replace("features.model.", "base_model.model."): tensor for name, tensor in tensors.items()}
    for name, tensor in model.classifier.state_dict().items():
        found[f"base_model.model.classifier.modules_to_save.default.{name}"] = tensor
    missing, surplus = theirs.load_state_dict(found, strict=False)
    assert all(name.endswith("_ids") for name in surplus)  # constants that are in no state
    assert all("original_module" in name for name in missing)
    tokens = _batch(TOKENS)
    tokens[0, 5:] = 0
    wanted = theirs.eval()(input_ids=tokens, attention_mask=(tokens != 0).long()).logits
    assert torch.allclose(model.eval()(tokens), wanted, atol=1e-6)


def test_lora_may_train_only_b_and_save_modules(bert: str) -> None:
    state = build(bert, {"adapter": LORA | {"freeze_a": True}}, TOKENS, 7).state_dict()
    assert {name.split(".")[-3] for name in state if "lora" in name} == {"lora_B"}
    state = build(bert, {"adapter": LORA | {"save": ["bert.pooler"]}}, TOKENS, 7).state_dict()
    assert "features.model.bert.pooler.dense.weight" in state


def test_lora_on_convolutions_leaves_batch_norm_alone() -> None:
    model = build("timm:test_resnet", {"adapter": LORA | {"targets": ["layer4.0.conv1"]}}, IMAGES, 7)
    assert {name.split(".")[-3] for name in model.state_dict() if "lora" in name} == {"lora_A", "lora_B"}
    assert not any("running" in name for name in model.state_dict())
    batch = _batch(IMAGES)
    assert torch.equal(model.eval()(batch), model.train()(batch))


# Weights from a file


def _saved(state: dict[str, Tensor], path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("file", ["body.safetensors", "body.pt"])
def test_the_body_has_the_weights_of_the_file_and_the_head_may_differ(tmp_path: Path, file: str) -> None:
    source, batch = timm.create_model("test_resnet", num_classes=1000, in_chans=1), _batch(IMAGES)
    model = build("timm:test_resnet", {"weights": _saved(source.state_dict(), tmp_path / file)}, IMAGES, 7)
    source.reset_classifier(0)
    assert torch.allclose(model.eval().features(batch), source.eval()(batch), atol=1e-6)
    same = timm.create_model("test_resnet", num_classes=7, in_chans=1)
    model = build("timm:test_resnet", {"weights": _saved(same.state_dict(), tmp_path / file)}, IMAGES, 7)
    assert torch.allclose(model.eval()(batch), same.eval()(batch), atol=1e-6)  # with its head


@pytest.mark.parametrize("channels", [1, 5])
def test_a_first_convolution_for_three_channels_is_spread_over_others(tmp_path: Path, channels: int) -> None:
    source = timm.create_model("test_resnet", num_classes=7)
    path = _saved(source.state_dict(), tmp_path / "body.pt")
    model = build("timm:test_resnet", {"weights": path}, Form("image", (channels, 8, 8)), 7)
    grey = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images = grey.expand(-1, channels, -1, -1)
    assert torch.allclose(model.eval()(images), source.eval()(grey.expand(-1, 3, -1, -1)), atol=1e-4)


def test_weights_of_a_transformer_may_have_another_head(bert: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(str(tmp_path))
    source = transformers.AutoModelForMaskedLM.from_config(config)  # with cls.predictions, and without a pooler
    state = {name: tensor for name, tensor in source.state_dict().items() if "decoder" not in name}
    pooler = build(bert, {}, TOKENS, 7).features.model.bert.pooler.state_dict()
    path = _saved(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="missing in the file: bert.pooler.dense.weight, bert.pooler.dense.bias"):
        build(bert, {"weights": path}, TOKENS, 7)
    state |= {f"bert.pooler.{name}": tensor for name, tensor in pooler.items()}
    model = build(bert, {"weights": _saved(state, tmp_path / "model.safetensors")}, TOKENS, 7)
    words = model.features.model.bert.embeddings.word_embeddings.weight
    assert torch.equal(words, state["bert.embeddings.word_embeddings.weight"])


def test_fedkds_own_files_fit(tmp_path: Path) -> None:
    model = build("resnet8", {}, IMAGES, 7)
    again = build("resnet8", {"weights": _saved(model.state_dict(), tmp_path / "own.pt")}, IMAGES, 7)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    other = build("resnet8", {"weights": str(tmp_path / "own.pt")}, IMAGES, 3)
    assert torch.equal(other.features[0].weight, model.features[0].weight)


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=7, in_chans=1).state_dict()
    wrong = {name: tensor for name, tensor in state.items() if not name.startswith("layer1")}
    wrong["extra.weight"], wrong["bn1.weight"] = torch.ones(2), torch.ones(3)
    wrong |= {f"more.{place}": torch.ones(1) for place in range(7)}
    with pytest.raises(InputError) as refused:
        build("timm:test_resnet", {"weights": _saved(wrong, tmp_path / "wrong.pt")}, IMAGES, 7)
    text = str(refused.value)
    assert "missing in the file: layer1.0.conv1.weight, " in text
    assert "not in the model: extra.weight, more.0, more.1, more.2, more.3, ... (8)" in text
    assert "another shape: bn1.weight (3 in the file, " in text


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")  # a pickle with code
    for name, message in {
        "text.pt": "cannot be read", "text.safetensors": "cannot be read", "epoch.pt": "has no tensors by name",
        "module.pt": "cannot be read", "none.pt": "there is no such file; nothing is downloaded",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=f"model.weights = .*{message}"):
            build("timm:test_resnet", {"weights": str(tmp_path / name)}, IMAGES, 7)


# In a federation


def test_frozen_tensors_are_the_same_in_each_process_and_for_each_node(tiny: Make) -> None:
    config = tiny({"model": {"name": "timm:test_resnet", "train": ["layer4"]}})
    first = Environment(config).model(0)
    with default_stream(torch_stream(5, 5, 3, "elsewhere")):
        second = Environment(config).new_model(0)
    mine, its = dict(first.named_buffers()), dict(second.named_buffers())
    assert len(frozen_names(first)) > 20
    assert all(torch.equal(mine[name], its[name]) for name in frozen_names(first))
    assert not torch.equal(first.classifier.weight, second.classifier.weight)
    another = Environment(config.model_copy(update={"seed": 1})).model(0)
    assert not torch.equal(dict(another.named_buffers())["features.conv1.0.weight"], mine["features.conv1.0.weight"])


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "feddyn", "fednova", "fedprox", "FedAdam"])
def test_methods_work_on_what_is_trained(tiny: Make, tmp_path: Path, strategy: str) -> None:
    name = f"flwr.serverapp.strategy:{strategy}" if strategy[0] == "F" else strategy
    model = {"name": "timm:test_resnet", "train": ["layer4.0.bn1"]}
    summary = run(tiny({"model": model, "strategy": {"name": name}, "rounds": 1}), tmp_path / "run")
    assert summary["failures"] == 0
    state = server_state(tmp_path / "run")
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"classifier.weight", "classifier.bias"} | {f"features.layer4.0.bn1.{part}" for part in parts}
    assert state["weights"].keys() == names
    if strategy == "scaffold":
        assert state["control"].keys() == {name for name in names if name.endswith(("weight", "bias"))}


def test_the_vectorised_engine_takes_frozen_models_one_by_one_and_says_so(tiny: Make, tmp_path: Path) -> None:
    model = {"name": "timm:test_resnet", "train": "head"}
    for name in ("inline", "vectorised"):
        run(tiny({"model": model, "engine": {"name": name}, "rounds": 1}), tmp_path / name)
    one, other = lines(tmp_path / "inline"), lines(tmp_path / "vectorised")
    assert [line["metrics"] for line in one] == [line["metrics"] for line in other]
    events = [event["event"] for line in other for event in line["events"]]
    assert any("one at a time: parts of the model are frozen" in event for event in events)
    ours, theirs = (checkpoint_bytes(tmp_path / name) for name in ("inline", "vectorised"))
    tensors = [path for path in ours if "safetensors" in path]
    assert tensors
    assert all(theirs[path] == ours[path] for path in tensors)
