"""The code and the commands of the documentation run as they stand."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers import HOME, lines
from helpers.docs import NEEDS, PAGES, blocks, commands_of
from helpers.shell import Shell
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config import read_config, read_distill_config
from fedkd.core.wrapper import make_strategy
from fedkd.registry import names

RUN = [
    "README.md",
    "docs/compare.md",
    "docs/data.md",
    "docs/distill.md",
    "docs/models.md",
    "docs/use-a-model.md",
    "docs/write-a-strategy.md",
]
# docs/deploy.md, whose commands need each other, is run by tests/deployment/test_app.py

FEDMEAN = blocks("docs/write-a-strategy.md", "python")[0]  # what the page says to save as fedmean.py


def test_the_strategy_of_the_guide_runs_and_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("docs/write-a-strategy.md", "python")
    assert len(code.splitlines()) <= 60
    (tmp_path / "fedmean.py").write_text(code)
    (command,) = blocks("docs/write-a-strategy.md", "console")
    words = shlex.split(command.removeprefix("$ fedkd "))
    (tmp_path / "configs" / "local").mkdir(parents=True)
    shutil.copy(HOME / "configs/local/quick.toml", tmp_path / "configs/local")
    monkeypatch.chdir(tmp_path)
    quick = ["--set", "rounds=2", "--set", "model=mlp", "--out", "run"]
    result = CliRunner().invoke(app, [*words, *quick])
    assert result.exit_code == 0, result.output
    last = lines(tmp_path / "run")[-1]
    assert last["failures"] == []
    assert set(last["bytes"]["up"]) == {"logits", "statistics"}
    assert last["metrics"]["personal/accuracy"] > 0.8
    refused = CliRunner().invoke(app, [*words, "--set", "strategy.pull=-1.0", "--out", "other"])
    assert refused.exit_code == 2
    assert "strategy.pull = -1.0" in refused.stderr


def test_the_python_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = blocks("docs/python.md", "python")
    scope: dict[str, Any] = {}
    exec(first, scope)
    assert len(scope["model"].predict(scope["images"]).labels) == 32
    exec(second, scope)
    assert scope["state"].metrics["global/accuracy"] > 0.5
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_the_distiller_of_the_guide_runs(tmp_path: Path) -> None:
    (code,) = blocks("docs/distill.md", "python")
    (tmp_path / "mine.py").write_text(code)
    name = f"distiller={{name='{tmp_path / 'mine.py'}:MeanImages', lr=0.1, momentum=0.9}}"
    quick = ["--set", "iterations=40", "--set", "evaluate.epochs=40", "--set", name, "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, ["distill", str(HOME / "configs/distill/quick.toml"), *quick])
    assert result.exit_code == 0, result.output
    final = json.loads((tmp_path / "run" / "summary.json").read_text())["final"]
    assert final["test/accuracy"] > 0.6


def test_what_no_test_runs_says_above_itself_what_it_needs() -> None:
    for page in PAGES:
        for block in commands_of(page):
            assert block.commands, block
            assert set(block.needs) <= NEEDS, block
            assert block.needs or ("Needs" not in block.above and page in [*RUN, "docs/deploy.md"]), block


def test_the_configs_and_overrides_of_all_commands_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(HOME / "configs", tmp_path / "configs")
    (tmp_path / "fedmean.py").write_text(FEDMEAN)
    monkeypatch.chdir(tmp_path)
    read = 0
    for command in (command for page in PAGES for block in commands_of(page) for command in block.commands):
        words = shlex.split(command, comments=True)
        if words[0] != "fedkd" or not (
            paths := [word for word in words if word.endswith(".toml") and not word.startswith("runs/")]
        ):
            continue
        changes = [word for option, word in pairwise(words) if option == "--set"]
        if words[1] == "distill":
            read_distill_config(Path(paths[0]), changes)
        else:
            make_strategy(read_config(Path(paths[0]), changes).strategy)
        read += 1
    assert read > 10


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run_as_they_stand(shell: Shell, page: str) -> None:
    (shell.folder / "fedmean.py").write_text(FEDMEAN)
    for command in (command for block in commands_of(page) if not block.needs for command in block.commands):
        shell.does(command)


@pytest.mark.parametrize("page", PAGES)
def test_pages_link_to_files_that_exist(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (HOME / page).read_text()):
        if "://" not in target:
            assert (HOME / page).parent.joinpath(target).exists(), target


def test_the_readme_opens_with_the_two_commands() -> None:
    text = (HOME / "README.md").read_text()
    assert text.index("make demo") < text.index("make test") < 3000


def test_every_strategy_says_what_it_reveals() -> None:
    table = (HOME / "SECURITY.md").read_text().split("## What each strategy reveals")[1]
    named = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    of_fedx = {"simclr", "moco", "byol", "fedu", "protocl"}  # "and its bases"
    assert set(names("strategies")) - of_fedx <= named
    assert "`fedx` and its bases" in table


def test_the_tests_that_the_security_page_names_exist() -> None:
    for name in re.findall(r"`((?:\w+/)*test_\w+\.py)`", (HOME / "SECURITY.md").read_text()):
        found = HOME / name if name.startswith("tests/") else next((HOME / "tests").rglob(name), HOME / "tests" / name)
        assert found.is_file(), name
