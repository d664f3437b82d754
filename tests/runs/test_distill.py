"""`fedkd distill`: from a config to virtual images, for every distiller; interrupted as whole; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import HOME
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedkd import InputError, RunError
from fedkd.cli import app
from fedkd.config import DistillConfig
from fedkd.runs.distill import distill, resume
from fedkd.runs.run_folder import alone_in

QUICK = {
    "iterations": 6,
    "ipc": 2,
    "initial": "normal",
    "data": {"name": "digits", "train_per_class": 20},
    "model": {"name": "convnet", "channels": [8, 8]},
    "distiller": {"name": "dm"},
    "network_every": 2,
    "train": {"steps": 3, "optimizer": {"name": "sgd", "lr": 0.01}},
    "evaluate": {"every": 3, "networks": 2, "epochs": 4},
    "checkpoint": {"every": 3},
}


def config(**changes: object) -> DistillConfig:
    return DistillConfig.model_validate({**QUICK, **changes})


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


@pytest.mark.parametrize("name", ["dm", "idm", "dc", "dsa", "fgm"])
def test_interrupted_and_resumed_is_the_whole(tmp_path: Path, name: str) -> None:
    table = {"name": name} | ({"outer": 2, "inner": 1} if name in ("dc", "dsa") else {})
    summary = distill(config(distiller=table), tmp_path / "whole")
    assert summary["status"] == "completed"
    assert [line["iteration"] for line in lines(tmp_path / "whole")] == [0, 3, 6]

    def stop(number: int, metrics: dict) -> None:
        if number == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(config(distiller=table), tmp_path / "halves", stop)
    assert json.loads((tmp_path / "halves" / "summary.json").read_text())["status"] == "interrupted"
    with alone_in(tmp_path / "halves"), pytest.raises(InputError, match="another process uses this folder"):
        resume(tmp_path / "halves")
    resume(tmp_path / "halves")
    assert lines(tmp_path / "halves") == lines(tmp_path / "whole")
    whole, halves = ((tmp_path / n / "virtual.safetensors").read_bytes() for n in ("whole", "halves"))
    assert whole == halves


def test_a_network_with_dropout_draws_from_streams_too(tmp_path: Path) -> None:
    (tmp_path / "dropping.py").write_text(
        "from torch import nn\nfrom fedkd import Classifier\n"
        "def build(shape, classes):\n"
        "    trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5))\n"
        "    return Classifier(trunk, 16, classes)\n"
    )
    changes = {"model": {"name": f"{tmp_path / 'dropping.py'}:build"}, "evaluate": {"networks": 1, "epochs": 2}}
    for name in ("dm", "fgm"):
        for trial in ("one", "two"):
            distill(config(distiller={"name": name}, **changes), tmp_path / f"{name}-{trial}")
        one, two = (tmp_path / f"{name}-{trial}" for trial in ("one", "two"))
        assert (one / "virtual.safetensors").read_bytes() == (two / "virtual.safetensors").read_bytes()
        assert lines(one) == lines(two)


def test_soft_labels_are_kept_and_drawn(tmp_path: Path) -> None:
    (tmp_path / "soft.py").write_text(
        "import torch\nfrom fedkd.distillation.distillers import DM\n"
        "class Soft(DM):\n"
        "    def iterate(self, virtual, truth, network, stream):\n"
        "        if virtual.labels.dim() == 1:\n"
        "            virtual.labels = 0.9 * torch.nn.functional.one_hot(virtual.labels, 10).float() + 0.01\n"
        "        return super().iterate(virtual, truth, network, stream)\n"
    )
    distill(config(distiller={"name": f"{tmp_path / 'soft.py'}:Soft"}), tmp_path / "run")
    assert load_file(tmp_path / "run" / "virtual.safetensors")["labels"].shape == (20, 10)
    assert (tmp_path / "run" / "figures" / "virtual.png").is_file()


def test_dc_s_own_augmentation_is_another_judgement(tmp_path: Path) -> None:
    found = []
    for augment in ("dc", []):
        evaluate = {"every": 3, "networks": 2, "epochs": 4, "augment": augment}
        distill(config(iterations=0, evaluate=evaluate), tmp_path / str(augment))
        found.append(lines(tmp_path / str(augment))[0]["metrics"])
    assert found[0] != found[1]
    again = config(iterations=0, evaluate={"every": 3, "networks": 2, "epochs": 4, "augment": "dc"})
    distill(again, tmp_path / "again")
    assert lines(tmp_path / "again")[0]["metrics"] == found[0]


def test_the_accuracy_of_each_network_is_kept(tmp_path: Path) -> None:
    distill(config(checkpoint={"every": 2}), tmp_path / "run")
    found = lines(tmp_path / "run")
    assert [len(line["networks"].get("test/accuracy", [])) for line in found] == [2, 0, 2, 0, 2]
    for line in found:
        if line["metrics"]:
            each = line["networks"]["test/accuracy"]
            assert line["metrics"] == {"test/accuracy": np.mean(each), "test/deviation": np.std(each)}


def test_the_folder_holds_images_and_pictures(tmp_path: Path) -> None:
    distill(config(), tmp_path / "run")
    tensors = load_file(tmp_path / "run" / "virtual.safetensors")
    assert tensors["images"].shape == (20, 1, 8, 8)
    assert tensors["labels"].tolist() == np.repeat(np.arange(10), 2).tolist()
    for name in ("virtual.png", "progress.png"):
        with Image.open(tmp_path / "run" / "figures" / name) as picture:
            assert picture.width > 300


def test_distilled_images_teach_more_than_random_real_ones(tmp_path: Path) -> None:
    """One image a class: DM against the real images that it starts from, same training."""
    augment = ["crop", "scale", "rotate"]
    settings = {
        "iterations": 150,
        "ipc": 1,
        "initial": "real",
        "data": {"name": "digits"},
        "model": {"name": "convnet", "channels": [16, 16]},
        "distiller": {"name": "dm", "augment": augment},
        "evaluate": {"every": 150, "networks": 2, "epochs": 100, "augment": augment},
    }
    summary = distill(config(**settings), tmp_path / "run")
    assert summary["final"]["test/accuracy"] > summary["initial"]["test/accuracy"] + 0.05


def test_the_command_runs_and_lists(tmp_path: Path) -> None:
    quick = ["--set", "iterations=2", "--set", "evaluate.epochs=2", "--set", "distiller.real_batch=4", "--json"]
    out = str(tmp_path / "run")
    result = CliRunner().invoke(app, ["distill", str(HOME / "configs/distill/quick.toml"), "--out", out, *quick])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["iterations"] == 2
    assert "test accuracy" in result.stdout
    again = CliRunner().invoke(app, ["distill", str(HOME / "configs/distill/quick.toml"), "--out", out])
    assert again.exit_code == 2
    assert "another run" in again.stderr
    assert "fgm" in CliRunner().invoke(app, ["list", "distillers"]).stdout


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"distiller": {"name": "dmm"}}, "distiller.name: unknown 'dmm'"),
        ({"distiller": {"name": "dm", "lr": -1.0}}, "distiller.lr = -1.0"),
        ({"distiller": {"name": "dm", "augment": ["colour"]}}, "distiller.augment.0 = 'colour'"),
        ({"distiller": {"name": "fedkd.models.zoo:lenet5"}}, "is not a Distiller"),
        ({"model": {"names": ["cnn", "mlp"]}}, "one architecture"),
        ({"data": {"name": "nothing"}}, "data.name"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, changes: dict, reported: str) -> None:
    with pytest.raises(InputError, match=reported):
        distill(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_that_diverge_end_the_run_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="lower distiller.lr"):
        distill(config(distiller={"name": "dm", "lr": 1e38, "momentum": 0.9}), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_nothing_to_resume_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no distillation"):
        resume(tmp_path)


TABLE = {"data": {"name": "heart", "train_per_class": 60}, "model": {"name": "table_mlp", "hidden": [16]}}
SERIES = {
    "data": {"name": "spoken_digits", "train_per_class": 12},
    "model": {"name": "inception_small", "filters": 4},
}
FAST = {"evaluate": {"every": 4, "networks": 1, "epochs": 2}, "iterations": 4}


@pytest.mark.parametrize("name", ["dm", "idm", "dc", "dsa", "fgm"])
@pytest.mark.parametrize("kind", ["table", "series"])
def test_rows_and_series_are_distilled_too(tmp_path: Path, kind: str, name: str) -> None:
    table = {"name": name} | ({"outer": 2, "inner": 1} if name in ("dc", "dsa") else {})
    distill(config(**(TABLE if kind == "table" else SERIES), distiller=table, initial="real", **FAST), tmp_path / "run")
    tensors = load_file(tmp_path / "run" / "virtual.safetensors")
    if kind == "table":
        rows = pd.read_csv(tmp_path / "run" / "virtual.csv")
        assert len(rows) == len(tensors["labels"]) == 4
        assert set(rows["sex"]) <= {"male", "female"}
        shares = tensors["images"][:, 6:]  # of the categories, behind six numbers
        assert shares.min() >= 0
        assert torch.allclose(shares.sum(1), torch.tensor(7.0))
    else:
        mask = tensors["images"][:, -1]
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert (tensors["images"][:, :-1] * (1 - mask[:, None]) == 0).all()
    assert (tmp_path / "run" / "figures" / "virtual.png").is_file()


def test_rows_are_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    changes = {**TABLE, "initial": "normal", "distiller": {"name": "idm"}}
    distill(config(**changes), tmp_path / "whole")

    def stop(number: int, metrics: dict) -> None:
        if number == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(config(**changes), tmp_path / "halves", stop)
    resume(tmp_path / "halves")
    for name in ("virtual.safetensors", "virtual.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"data": {"name": "sentences"}, "model": {"name": "text_cnn"}}, "it has texts for classification; token ids"),
        ({**TABLE, "model": {"name": "mlp"}}, "virtual rows have categories as probabilities.* set table_mlp"),
        (
            {**TABLE, "distiller": {"name": "dm", "augment": ["flip"]}},
            r"distiller.augment = \['flip'\]: .* noise",
        ),
        (
            {**TABLE, "evaluate": {"augment": ["flip"]}},
            r"evaluate.augment = \['flip'\]: the samples are",
        ),
        ({**TABLE, "evaluate": {"augment": "dc"}}, "evaluate.augment = 'dc' is for images; .* 'table'"),
    ],
)
def test_what_cannot_be_distilled_is_refused(tmp_path: Path, changes: dict, reported: str) -> None:
    with pytest.raises(InputError, match=reported):
        distill(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_figures_of_a_distillation_are_drawn_again_in_column_width(tmp_path: Path) -> None:
    quick = ["--set", "iterations=2", "--set", "evaluate.epochs=2", "--set", "evaluate.networks=1"]
    words = ["distill", str(HOME / "configs/distill/quick.toml"), "--out", str(tmp_path / "run"), *quick]
    assert CliRunner().invoke(app, words).exit_code == 0
    result = CliRunner().invoke(app, ["figures", str(tmp_path / "run"), "-o", str(tmp_path / "paper")])
    assert result.exit_code == 0, result.output
    names = [f"{name}.{ending}" for name in ("progress", "virtual") for ending in ("pdf", "png", "svg")]
    assert sorted(path.name for path in (tmp_path / "paper").iterdir()) == names
    for name in ("progress", "virtual"):
        assert Image.open(tmp_path / "paper" / f"{name}.png").width <= 3.5 * 300
    again = CliRunner().invoke(app, ["figures", str(tmp_path / "run"), "-o", str(tmp_path / "again")])
    assert again.exit_code == 0
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "paper" / name).read_bytes()
