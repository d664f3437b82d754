"""The round loop: metrics over nodes, when they are taken, and the progress of long work on the server."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from helpers import Make, lines
from helpers.bases import SMALL

from fedkd import Client, GlobalModelClient, Payload, Round, RunError
from fedkd.core.round_loop import _first_cohort, _prepares_nodes, run_rounds
from fedkd.core.setup import make_setup
from fedkd.core.undo import Recorder
from fedkd.messages.arrays import copied
from fedkd.runs.run import make_engine, run
from fedkd.strategies.fedavg import FedAvg
from fedkd.strategies.fedftg import FedFTG
from fedkd.strategies.fedlgd import FedLGD


def test_metrics_are_means_over_nodes_with_their_spread(tiny: Make, tmp_path: Path) -> None:
    summary = run(tiny({"evaluate.fraction": 0.5}), tmp_path / "run")
    for line in lines(tmp_path / "run"):
        nodes = line["nodes"]["personal/accuracy"]
        assert len(nodes) == 3
        values = torch.tensor(list(nodes.values()), dtype=torch.float64)
        assert line["metrics"]["personal/accuracy"] == pytest.approx(values.mean().item(), abs=1e-12)
        spread = line["spread"]["personal/accuracy"]
        assert spread["std"] == pytest.approx(values.std(correction=0).item(), abs=1e-12)
        assert (spread["min"], spread["max"]) == (values.min().item(), values.max().item())
        assert {"global/accuracy", "global/loss"} <= set(line["metrics"])
    assert summary["final"] == {**lines(tmp_path / "run")[-1]["metrics"]}


def test_evaluation_happens_every_so_often_and_at_the_end(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"rounds": 5, "evaluate.every": 2}), tmp_path / "run")
    assert [bool(line["metrics"]) for line in lines(tmp_path / "run")] == [True, False, True, False, True, True]


def test_long_work_on_the_server_tells_its_progress(tiny: Make) -> None:
    reported: list[tuple[int, str, int, int]] = []
    setup = make_setup(tiny({"strategy": {"name": "fedftg", **SMALL}}))
    with make_engine(setup) as engine:
        run_rounds(setup, engine, on_step=lambda *step: reported.append(step))
    assert reported == [(n, "server distillation", done, 3) for n in (1, 2) for done in range(4)]


class OfSites(Recorder):
    """A carrier that is no engine, as that of real sites: its rounds can be undone."""

    undone = 0

    def undo(self) -> None:
        self.undone += 1


@dataclass(kw_only=True)
class Spoiled(FedAvg):
    def run_round(self, federation: Round) -> None:
        with federation.overheard() as heard:
            super().run_round(federation)
        if federation.number == 1 and 2 in [node for node, _ in heard]:
            self.weights = {name: tensor * math.nan for name, tensor in (self.weights or {}).items()}


def test_a_round_with_sites_that_one_spoils_is_undone_and_names_it(tiny: Make) -> None:
    setup = make_setup(tiny({}))
    setup.strategy.__class__ = Spoiled
    first, records = setup.environment.initial_weights(), []
    with make_engine(setup) as engine:
        sites = OfSites(engine)
        run_rounds(setup, sites, on_round=lambda record: records.append((record, copied(setup.strategy.weights or {}))))
    assert sites.undone == 1
    (undone, after), (whole, last) = records[1:]
    assert [(failure["node"], failure["action"]) for failure in undone.failures] == [(2, "merge")]
    assert [event["event"].split(":")[0] for event in undone.events] == ["the round is undone"]
    assert all(torch.equal(after[name], first[name]) for name in first)
    assert (whole.failures, whole.events) == ([], [])
    assert not all(torch.equal(last[name], first[name]) for name in first)


class Boasting(GlobalModelClient):
    reports: ClassVar[tuple[str, ...]] = (*GlobalModelClient.reports, "own/gain")

    def fit(self, request: Payload) -> Payload:
        self.report("own/gain", 0.9)
        return super().fit(request)


@dataclass(kw_only=True)
class Boasted(FedAvg):
    client: ClassVar[type[Client]] = Boasting

    def measure(self, federation: Round) -> dict[str, float]:
        return {"own/gain": 0.1}


def test_what_the_server_has_measured_no_node_may_report(tiny: Make) -> None:
    setup = make_setup(tiny({"rounds": 1}))
    setup.strategy.__class__ = Boasted
    with make_engine(setup) as engine, pytest.raises(RunError, match="'own/gain' may only be reported by the server"):
        run_rounds(setup, engine)


def test_the_first_cohort_is_all_nodes_unless_nothing_is_prepared_on_very_many() -> None:
    few, many = range(10_000), range(10_001)
    preparing, over = FedLGD(), FedFTG()  # one prepares its nodes, the other the server
    assert [_prepares_nodes(method) for method in (FedAvg(), preparing, over)] == [False, True, False]
    assert [len(_first_cohort(FedAvg(), nodes)) for nodes in (few, many)] == [10_000, 0]
    assert [len(_first_cohort(method, many)) for method in (preparing, over)] == [10_001, 10_001]
