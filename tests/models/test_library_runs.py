"""Federations with models of libraries, without a network: timm on digits, transformers on sentences of three sites."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import HOME, SETS, Make, halves_are_the_whole, lines, server_state
from helpers.docs import blocks
from torch.nn import functional as F
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config import Config, parse_config
from fedkd.data.spec import Form
from fedkd.errors import InputError
from fedkd.models.build import build
from fedkd.runs.run import resume, run
from fedkd.streams import default_stream, torch_stream

LORA = {"name": "lora", "r": 4, "alpha": 8, "targets": ["query", "value"]}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a test has asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def bert(tmp_path: Path) -> str:
    table = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    table |= {"intermediate_size": 64, "vocab_size": 5000, "max_position_embeddings": 64}
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps(table))
    return f"transformers:{tmp_path / 'bert'}"


def _sentences(model: dict[str, Any], **changes: Any) -> Config:
    """Return a config on the sentences of three sites."""
    if not SETS.is_dir():
        pytest.skip("the real sets are not beside the project")
    data = {"file": str(SETS / "sentences.csv"), "label": "label", "text": "text", "node": "site", "length": 16}
    table = {
        "rounds": 2, "data": data | {"partition": {"scheme": "natural"}}, "model": model, "evaluate": {"every": 2},
        "train": {"epochs": 1, "batch_size": 32, "optimizer": {"name": "adamw", "lr": 0.003}},
        "strategy": {"name": "fedavg"},
    }  # fmt: skip
    return parse_config(table | changes)


def test_a_model_of_timm_learns_digits_and_the_run_says_what_it_is(tmp_path: Path) -> None:
    quick = ["--set", "rounds=2", "--set", "evaluate.every=2", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, ["run", str(HOME / "configs/fedavg/timm-digits.toml"), *quick])
    assert result.exit_code == 0, result.output
    line = "timm:test_resnet: head fc (96 -> 10), features 96 wide, 373,370 parameters, batch norm"
    assert line in result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["models"] == [line]
    assert summary["final"]["global/accuracy"] > 0.5


def test_a_model_of_transformers_learns_from_sentences(bert: str, tmp_path: Path) -> None:
    summary = run(_sentences({"name": bert}), tmp_path / "run")
    assert summary["failures"] == 0
    assert summary["final"]["global/accuracy"] > 0.65


def test_a_run_with_lora_sends_the_adapters_and_the_head(bert: str, tmp_path: Path) -> None:
    summary = run(_sentences({"name": bert, "adapter": LORA}, rounds=1), tmp_path / "run")
    weights = server_state(tmp_path / "run")["weights"]
    assert len(weights) == 10
    assert sum(tensor.numel() for tensor in weights.values()) == 1024 + 66
    size = sum(4 * tensor.numel() + 128 + len(name) for name, tensor in weights.items())
    assert summary["bytes"]["up"]["weights"] == summary["bytes"]["down"]["weights"] == 3 * size


def test_a_frozen_model_goes_on_after_a_stop_as_without_it(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"model": {"name": "timm:test_resnet", "train": ["layer4"]}, "rounds": 6, "checkpoint": {"every": 3}})
    run(config, tmp_path / "whole")
    halves_are_the_whole(config, tmp_path / "whole", tmp_path / "halves")


def test_a_run_goes_on_only_with_the_weights_that_it_began_with(tiny: Make, tmp_path: Path) -> None:
    for seed in range(2):
        with default_stream(torch_stream(seed, 0, "server", "test")):
            state = timm.create_model("test_resnet", num_classes=10, in_chans=1).state_dict()
        torch.save(state, tmp_path / f"{seed}.pt")
    (tmp_path / "body.pt").write_bytes((tmp_path / "0.pt").read_bytes())
    model = {"name": "timm:test_resnet", "train": "head", "weights": str(tmp_path / "body.pt")}
    run(tiny({"model": model, "rounds": 1}), tmp_path / "run")
    resolved = tmp_path / "run" / "config.toml"
    resolved.write_text(resolved.read_text().replace("rounds = 1", "rounds = 2"))
    (tmp_path / "body.pt").write_bytes((tmp_path / "1.pt").read_bytes())
    with pytest.raises(InputError, match="changed since the run began: the file .*body.pt"):
        resume(tmp_path / "run")
    (tmp_path / "body.pt").write_bytes((tmp_path / "0.pt").read_bytes())
    resume(tmp_path / "run")
    assert len(lines(tmp_path / "run")) == 3


def test_the_small_models_learn_from_texts_and_tables(tmp_path: Path) -> None:
    summary = run(_sentences({"name": "text_cnn"}, engine={"name": "vectorised"}), tmp_path / "text")
    assert summary["final"]["global/accuracy"] > 0.55
    data = {"file": str(SETS / "heart.csv"), "label": "disease", "node": "hospital", "drop": ["num"]}
    config = _sentences({"name": "table_mlp"}, rounds=5, data=data | {"partition": {"scheme": "natural"}})
    assert run(config, tmp_path / "table")["final"]["global/accuracy"] > 0.65


def test_the_model_of_the_guide_takes_series_with_their_mask(tmp_path: Path) -> None:
    (code,) = blocks("docs/models.md", "python")
    (tmp_path / "recurrent.py").write_text(code)
    form = Form("series", (4, 9))
    with default_stream(torch_stream(0, 0, "server", "test")):
        model = build(f"{tmp_path / 'recurrent.py'}:build", {}, form, 3)
    batch = form.drawn(2, torch.Generator().manual_seed(0))
    batch[0, :, 5:] = 0
    assert torch.allclose(model(F.pad(batch, (0, 4))), model(batch), atol=1e-6)
    assert "head head (32 -> 3)" in str(model.fedkd_about)
