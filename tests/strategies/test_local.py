"""Local training: models stay with their nodes."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import Make, lines

from fedkd import Environment
from fedkd.messages.arrays import tensors_of
from fedkd.runs.checkpoints import latest, load_nodes
from fedkd.runs.run import run


def test_local_models_stay_with_their_nodes_and_only_the_cohort_learns(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"strategy": {"name": "local"}, "rounds": 1, "cohort": 2, "model": {"names": ["mlp", "cnn"]}})
    summary = run(config, tmp_path / "run")
    assert summary["bytes"]["down"] == {}
    assert set(summary["bytes"]["up"]) == {"numbers"}
    cohort = lines(tmp_path / "run")[1]["cohort"]
    states = dict(load_nodes(latest(tmp_path / "run" / "checkpoints")[1]))
    assert sorted(states) == cohort
    environment = Environment(config)
    for node, state in states.items():
        kept = tensors_of(state["model"])  # type: ignore[arg-type]
        initial = environment.initial_weights(environment.architecture_of(node), node)
        assert kept.keys() == initial.keys()
        assert not torch.equal(kept["classifier.weight"], initial["classifier.weight"])
    before, after = (line["nodes"]["personal/accuracy"] for line in lines(tmp_path / "run"))
    assert all((before[str(n)] == after[str(n)]) or n in cohort for n in range(6))
    assert all(after[str(n)] > before[str(n)] for n in cohort)
    assert "global/accuracy" not in summary["final"]
