"""`fedkd list` prints the names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config import read_config

RUNNER = CliRunner()


def test_list_says_what_each_name_is() -> None:
    for what in ("strategies", "models", "partitions", "distillers", "kd_losses", "engines", "trackers", "datasets"):
        lines = RUNNER.invoke(app, ["list", what]).stdout.splitlines()
        named = [line for line in lines if ":" not in line.split("  ")[0] and not line.startswith("any ")]
        assert all(len(line.split("  ", 1)) == 2 and len(line) < 140 for line in named), named


def test_init_writes_a_study_whose_run_and_method_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RUNNER.invoke(app, ["init", "my-study"]).exit_code == 0
    monkeypatch.chdir(tmp_path / "my-study")
    done = RUNNER.invoke(app, ["run", "config.toml", "--set", "rounds=1", "--out", "run"])
    assert done.exit_code == 0, done.output
    assert json.loads(Path("run/summary.json").read_text())["status"] == "completed"
    for name in ("fedmd", "local"):
        read_config(Path("config.toml"), [f"strategy={name}"])
    readme = Path("README.md").read_text()
    assert readme.startswith("# my-study\n")
    for command in re.findall(r"^\$ fedkd (\w+)", readme, re.MULTILINE):
        assert RUNNER.invoke(app, [command, "--help"]).exit_code == 0


@pytest.mark.parametrize("name", ["my study", "..", "", "full"])
def test_init_refuses_odd_names_and_full_folders(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    refused = RUNNER.invoke(app, ["init", name])
    assert refused.exit_code == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("strategies", {"fedavg", "fedprox", "fedmd", "local", "central"}),
        ("models", {"mlp", "lenet5", "cnn", "resnet8", "resnet20", "torchvision:<name>"}),
        ("datasets", {"digits", "mnist", "fashion_mnist", "emnist", "cifar10", "cifar100", "svhn", "usps"}),
        ("partitions", {"iid", "dirichlet", "client_dirichlet", "shards", "classes_per_client", "quantity", "domains"}),
        ("engines", {"inline", "ray"}),
    ],
)
def test_list_prints_the_names(what: str, names: set[str]) -> None:
    lines = RUNNER.invoke(app, ["list", what]).stdout.splitlines()
    assert names <= {line.split("  ")[0] for line in lines}
