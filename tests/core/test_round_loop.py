"""The round loop: metrics over nodes, when they are taken, and the progress of long work on the server."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from unittest.mock import Mock

import pytest
import torch
from helpers import Make, lines
from helpers.bases import SMALL

from fedkd import Architecture, Client, GlobalModelClient, Payload, Round, RunError, Tensors
from fedkd.core.record import Record
from fedkd.core.round_loop import (
    _drop_metrics_of_the_server,
    _first_cohort,
    _prepare_missing,
    _prepares_nodes,
    each_round,
    run_rounds,
)
from fedkd.core.setup import make_setup
from fedkd.core.undo import Recorder
from fedkd.errors import TooFewReplies
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
        for _ in each_round(setup, engine, on_step=lambda *step: reported.append(step)):
            pass
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


# The parts


@dataclass(kw_only=True)
class Staged(FedAvg):
    """A method whose intermediate model has a scope of its own, which nothing measures."""

    client: ClassVar[type[Client]] = Boasting

    def stages(self) -> dict[str, tuple[Architecture, Tensors]]:
        return {"own": (0, {})}

    def measure(self, federation: Round) -> dict[str, float]:
        return {}


def test_the_scope_of_an_intermediate_model_is_the_servers_before_it_is_measured(tiny: Make) -> None:
    setup = make_setup(tiny({"rounds": 1}))
    setup.strategy.__class__ = Staged
    with make_engine(setup) as engine, pytest.raises(RunError, match="'own/gain' may only be reported by the server"):
        run_rounds(setup, engine)


def test_metrics_of_a_scope_that_the_server_has_measured_since_are_dropped() -> None:
    record = Record(1, [1, 2])
    record.nodes = {"own/gain": {2: 0.1, 1: 0.2}, "personal/accuracy": {1: 0.5}}
    _drop_metrics_of_the_server(record, {"own", "global"})
    assert record.nodes == {"personal/accuracy": {1: 0.5}}
    reason = "metric 'own/gain' may only be reported by the server"
    assert record.failures == [{"node": node, "action": "report", "reason": reason} for node in (1, 2)]


def test_a_simulated_round_whose_model_is_not_finite_stands(tiny: Make) -> None:
    setup, records = make_setup(tiny({"rounds": 1, "evaluate.every": 9, "cohort": 6})), []
    setup.strategy.__class__ = Broken
    with make_engine(setup) as engine:
        run_rounds(setup, engine, on_round=records.append)
    assert [(record.events, record.failures) for record in records] == [([], [])] * 2
    assert setup.strategy.weights is not None
    assert all(tensor.isnan().all() for tensor in setup.strategy.weights.values())


@dataclass(kw_only=True)
class Broken(FedAvg):
    def run_round(self, federation: Round) -> None:
        self.weights = {name: tensor * math.nan for name, tensor in (self.weights or {}).items()}

    def measure(self, federation: Round) -> dict[str, float]:
        return {}

    def evaluation(self, federation: Round) -> dict[int, Payload]:
        return {}


def test_rounds_begin_and_end_where_they_shall(tiny: Make) -> None:
    setup = make_setup(tiny({"rounds": 5, "evaluate.every": 99}))
    setup.strategy.__class__ = Broken
    begun = {"w": torch.ones(1)}
    setup.strategy.weights = dict(begun)
    with make_engine(setup) as engine:
        assert [record.number for record in each_round(setup, engine, first_round=2)] == [2, 3, 4, 5]
        assert setup.strategy.weights.keys() == begun.keys()  # a resumed run keeps its model
        assert [record.number for record in each_round(setup, engine)] == [0, 1, 2, 3, 4, 5]


def test_a_method_without_a_global_model_gets_none(tiny: Make) -> None:
    setup = make_setup(tiny({"strategy": "local", "rounds": 1}))
    with make_engine(setup) as engine:
        run_rounds(setup, engine)
    assert setup.strategy.weights is None


def test_the_seconds_of_a_round_and_of_its_evaluation_are_apart(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 15.0])  # at the start, after the method, after the evaluation
    monkeypatch.setattr("fedkd.core.round_loop.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    setup, records = make_setup(tiny().model_copy(update={"rounds": 0})), []
    with make_engine(setup) as engine:
        run_rounds(setup, engine, on_round=records.append)
    assert records[0].seconds == {"round": 2.0, "evaluation": 3.0}


@dataclass(kw_only=True)
class Preparing(FedAvg):
    """Asks the nodes to prepare; `bad` fail, and with `lost`, too few answer."""

    bad: set[int] = field(default_factory=set, init=False)
    lost: bool = field(default=False, init=False)
    asked: list[list[int]] = field(default_factory=list, init=False)

    def prepare_nodes(self, federation: Round) -> None:
        self.asked.append(federation.cohort)
        for node in sorted(self.bad & set(federation.cohort)):
            federation.record.failures.append({"node": node, "action": "begin", "reason": f"why{node}"})
        if self.lost:
            raise TooFewReplies("too few")


def prepared(
    tiny: Make, number: int, done: set[int], bad: set[int], least: int = 1, lost: bool = False
) -> tuple[Preparing, Round]:
    method = Preparing()
    method.prepared, method.bad, method.lost = done, bad, lost
    environment = make_setup(tiny({"min_replies": least})).environment
    federation = Round(environment, Mock(), number, range(6), list(range(5)), [], [])
    federation.record.failures.append({"node": 0, "action": "earlier", "reason": "other"})
    _prepare_missing(method, federation)
    return method, federation


def test_nodes_that_miss_the_preparation_are_asked_and_leave_the_cohort_if_they_fail(tiny: Make) -> None:
    method, federation = prepared(tiny, 3, {0, 1, 2}, {4}, least=4)
    assert (method.asked, method.prepared, federation.cohort) == ([[3, 4]], {0, 1, 2, 3}, [0, 1, 2, 3])
    method, federation = prepared(tiny, 3, set(range(5)), set(), least=5)
    assert (method.asked, federation.cohort) == ([], [0, 1, 2, 3, 4])
    method, federation = prepared(tiny, 3, {0, 1}, set(), lost=True)
    assert (method.prepared, federation.cohort) == ({0, 1}, [0, 1])


def test_in_round_0_the_cohort_stays_and_too_few_replies_end_the_run(tiny: Make) -> None:
    method, federation = prepared(tiny, 0, set(), {1, 4}, least=5)
    assert (method.asked, method.prepared) == ([[0, 1, 2, 3, 4]], {0, 2, 3})
    assert federation.cohort == [0, 1, 2, 3, 4]
    with pytest.raises(TooFewReplies, match="too few"):
        prepared(tiny, 0, set(), set(), lost=True)
    prepared(tiny, 1, {0}, set(), lost=True)


def test_three_reasons_are_named_where_too_few_are_prepared(tiny: Make) -> None:
    reasons = "; ".join(f"node {node}, 'begin': why{node}" for node in (1, 2, 3))
    with pytest.raises(
        TooFewReplies, match=f"^Round 2: 1 nodes of the cohort are prepared, min_replies is 2. {reasons}$"
    ):
        prepared(tiny, 2, set(), {1, 2, 3, 4}, least=2)
