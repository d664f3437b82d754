"""The evaluation at a run's end: equal to what the rounds measured; what has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, lines, merged
from PIL import Image

from fedkd.config import Config, parse_config
from fedkd.core.environment import Environment
from fedkd.core.wrapper import make_strategy
from fedkd.runs.evaluation import keep_evaluation
from fedkd.runs.figures import redraw
from fedkd.runs.results import left_out, read_run
from fedkd.runs.run import resume, run
from fedkd.runs.run_folder import RunFolder

Tiny = Callable[..., Config]


def evaluated(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "evaluation.json").read_text())["models"])


def test_the_global_model_has_the_scores_that_the_last_round_measured(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny(), tmp_path / "run")
    found = evaluated(tmp_path / "run")
    assert set(found) == {"global"}  # nodes of fedavg keep no model
    assert found["global"]["accuracy"] == lines(tmp_path / "run")[-1]["metrics"]["global/accuracy"]
    assert found["global"]["samples"] == sum(map(sum, found["global"]["confusion"])) > 100
    assert read_run(tmp_path / "run").evaluation() == {
        "classes": list(map(str, range(10))),
        "models": found,
    }


@pytest.mark.parametrize("strategy", ["knfu", "local"])
def test_the_models_of_nodes_are_scored_together_on_their_own_images(tmp_path: Path, strategy: str) -> None:
    config = merged(TINY, {"data.public": {"size": 60, "labelled": True}, "strategy": {"name": strategy}})
    run(parse_config(config), tmp_path / "run")
    found = evaluated(tmp_path / "run")
    assert set(found) == {"personal"}
    assert (found["personal"]["nodes"], found["personal"]["samples"]) == (6, 120)  # 20 each
    accuracy = lines(tmp_path / "run")[-1]["metrics"]["personal/accuracy"]
    assert found["personal"]["accuracy"] == pytest.approx(accuracy, abs=1e-12)


def test_several_global_models_each_have_scores(tmp_path: Path) -> None:
    config = {"strategy": {"name": "feddf", "steps": 2}, "data.public": {"size": 60}, "rounds": 1}
    models = {"model": {"names": [{"name": "mlp", "hidden": [16]}, {"name": "mlp", "hidden": [8]}]}}
    run(parse_config({**merged(TINY, config), **models}), tmp_path / "run")
    metrics, found = lines(tmp_path / "run")[-1]["metrics"], evaluated(tmp_path / "run")
    assert {"global_0", "global_1"} <= set(found)
    for name in ("global_0", "global_1"):
        assert found[name]["accuracy"] == metrics[f"{name}/accuracy"]


def test_what_is_no_classifier_has_no_scores(tmp_path: Path) -> None:
    run(parse_config(merged(TINY, {"strategy": {"name": "simclr"}, "rounds": 1})), tmp_path / "run")
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert read_run(tmp_path / "run").evaluation() is None
    assert left_out(tmp_path / "run") == []


def test_a_model_that_diverged_is_named_and_spares_the_run(tiny: Tiny, tmp_path: Path) -> None:
    environment = Environment(tiny())
    strategy, _ = make_strategy(environment.config.strategy)
    strategy.weights = {name: torch.full_like(one, torch.nan) for name, one in environment.initial_weights().items()}
    (problem,) = keep_evaluation(strategy, environment, [], RunFolder(tmp_path))
    assert problem.startswith("global: no scores in evaluation.json: the logits of ")
    assert not (tmp_path / "evaluation.json").exists()
    strategy.weights = {"wrong": torch.ones(1)}
    (problem,) = keep_evaluation(strategy, environment, [], RunFolder(tmp_path))
    assert problem.startswith("evaluation.json lacks scores: ")


def test_a_run_that_goes_on_has_the_same_evaluation(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny(), tmp_path / "run")
    whole = (tmp_path / "run" / "evaluation.json").read_bytes()
    path = tmp_path / "run" / "checkpoints" / "round-000002"
    assert path.is_dir()
    folder = RunFolder(tmp_path / "run")
    folder.rewind(2)
    assert not (tmp_path / "run" / "evaluation.json").exists()
    resume(tmp_path / "run")
    assert (tmp_path / "run" / "evaluation.json").read_bytes() == whole


def test_confusion_and_calibration_are_drawn_with_their_numbers(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny(), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {"curves.png", "partition.png"}
    redraw(tmp_path / "run", tmp_path / "out", "paper")
    one = evaluated(tmp_path / "run")["global"]
    rows = [line.split(",") for line in (tmp_path / "out" / "confusion-global.csv").read_text().splitlines()]
    assert rows[0] == ["panel", "row", "column", "value"]
    assert [int(row[3]) for row in rows[1:]] == [count for row in one["confusion"] for count in row]
    rows = [line.split(",") for line in (tmp_path / "out" / "calibration.csv").read_text().splitlines()]
    assert rows[0] == ["model", "bin", "samples", "confidence", "accuracy"]
    assert [int(row[2]) for row in rows[1:]] == [entry["samples"] for entry in one["calibration"]]
    assert Image.open(tmp_path / "out" / "calibration.png").width == 1050


def test_a_damaged_evaluation_is_left_out_and_named(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny(), tmp_path / "run")
    path = tmp_path / "run" / "evaluation.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "classes": kept["classes"][1:]}))
    assert read_run(tmp_path / "run").evaluation() is None
    path.write_text(json.dumps({**kept, "models": {"global": {"accuracy": "0.5"}}}))
    assert read_run(tmp_path / "run").evaluation() is None
    (line,) = left_out(tmp_path / "run")
    assert "evaluation.json is left out: " in line
