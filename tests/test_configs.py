"""The configs of the project: each is valid, and each strategy has some."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import HOME

from fedkd.config import read_config, read_distill_config
from fedkd.core.wrapper import make_strategy
from fedkd.data.federation import federate
from fedkd.data.spec import Form
from fedkd.models.build import build
from fedkd.registry import find, names, options

CONFIGS = sorted((HOME / "configs").glob("*/*.toml"))


OF_KINDS = ("table", "series", "text", "float-image")  # the folders of configs for other samples than uint8 images
DISTILLATIONS = [path for path in CONFIGS if path.parent.name == "distill"]


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if p not in DISTILLATIONS], ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_every_config_of_the_project_is_valid(path: Path) -> None:
    config = read_config(path)
    strategy, _ = make_strategy(config.strategy)
    assert strategy is not None
    folder = path.parent.name
    of_kind = "knfu" if path.stem == "quick" else path.stem.split("-")[0]
    named = {"leaderboard": "fedavg", **dict.fromkeys(OF_KINDS, of_kind)}
    assert config.strategy.name == named.get(folder, folder) or folder == "flower"
    if (partition := config.data.partition) is not None:
        options(find("partitions", partition.scheme, "x"), partition.model_extra or {}, "x")
    options(find("engines", config.engine.name, "x"), config.engine.options, "x")
    form, classes = Form("image", (3, 32, 32)), 10
    if folder == "leaderboard":  # two of its sets do not come with fedkd
        form = {"rodents": Form("table", (6,), (6, 3)), "spoken_digits": Form("series", (21, 40))}.get(path.stem, form)
    if folder in OF_KINDS:
        data = federate(config.data, 0)
        form, classes = data.form, len(data.classes)
    with torch.random.fork_rng():
        for spec in config.model.architectures:
            build(spec.name, spec.options, form, classes)


@pytest.mark.parametrize("path", DISTILLATIONS, ids=lambda p: p.stem)
def test_every_distillation_of_the_project_is_valid(path: Path) -> None:
    config = read_distill_config(path)
    options(find("distillers", config.distiller.name, "x"), config.distiller.options, "x")
    with torch.random.fork_rng():
        (spec,) = config.model.architectures
        build(spec.name, spec.options, Form("image", (3, 32, 32)), 10)


@pytest.mark.parametrize("name", names("strategies"))
def test_every_strategy_has_a_page_and_configs(name: str) -> None:
    home = HOME
    page = {"feddistill_fl": "feddistill"}.get(name, name)
    assert f'`strategy.name = "{name}"`' in (home / "docs" / "methods" / f"{page}.md").read_text()
    assert f"| [`{name}`]({page}.md) |" in (home / "docs" / "methods" / "index.md").read_text()
    assert (home / "configs" / name / "quick.toml").is_file()
