"""The contract between the halves of a strategy, as a method's author meets it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import PLUGINS, lines

from fedkd import Client, Environment, InputError, Payload, RunError
from fedkd.config import Config
from fedkd.core.client import actions
from fedkd.core.setup import make_setup
from fedkd.runs.run import run

Make = Callable[..., Config]
COUNT = {"name": f"{PLUGINS / 'ask.py'}:Count"}


def test_actions_are_the_methods_that_take_a_request() -> None:
    class Mine(Client):
        def extract(self, request: Payload) -> Payload:
            return request

        def _hidden(self, request: Payload) -> Payload:
            return request

        def helper(self, request: Payload, more: int) -> None: ...

    assert actions(Mine) == ["evaluate", "extract"]


def test_payloads_reach_their_nodes_and_state_lasts(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"strategy": COUNT, "rounds": 3, "cohort": 4, "evaluate.every": 9}), tmp_path / "run")
    asked = dict.fromkeys(range(6), 0)
    for line in lines(tmp_path / "run")[1:]:
        assert line["cohort"] == sorted(line["cohort"])
        assert len(line["cohort"]) == 4
        for node in line["cohort"]:
            asked[node] += 1
            assert line["log"][f"sent-{node}"] == 10 * node
        assert line["log"]["counts"] == [[node, asked[node]] for node in line["cohort"]]  # in node order
    assert len({tuple(line["cohort"]) for line in lines(tmp_path / "run")[1:]}) > 1  # drawn anew each round


def test_every_node_and_round_has_draws_of_its_own_which_a_second_run_repeats(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"strategy": COUNT, "evaluate.every": 9})
    for name in ("one", "two"):
        run(config, tmp_path / name)
    assert lines(tmp_path / "one") == lines(tmp_path / "two")
    draws = [v[0] for line in lines(tmp_path / "one") for k, v in line["log"].items() if k.startswith("draws")]
    assert len({tuple(draw) for draw in draws}) == len(draws) == 12
    dropped = [v[1] for line in lines(tmp_path / "one") for k, v in line["log"].items() if k.startswith("draws")]
    assert len({tuple(d) for d in dropped}) > 6
    servers = [tuple(line["log"]["server"]) for line in lines(tmp_path / "one")[1:]]
    assert len(set(servers)) == 2
    run(tiny({"strategy": COUNT, "evaluate.every": 9, "seed": 1}), tmp_path / "three")
    assert lines(tmp_path / "one")[1]["log"]["server"] != lines(tmp_path / "three")[1]["log"]["server"]


def test_replies_that_are_not_read_at_once_or_at_all_still_count(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"strategy": {**COUNT, "unread": True}, "evaluate.every": 9}), tmp_path / "run")
    counts = [line["log"]["counts"] for line in lines(tmp_path / "run")[1:]]
    assert counts == [[[node, 1] for node in range(6)], [[node, 3] for node in range(6)]]


MISBEHAVE = {"name": f"{PLUGINS / 'misbehave.py'}:Misbehave"}


def test_bad_clients_are_named_failures_and_the_run_goes_on(tiny: Make, tmp_path: Path) -> None:
    summary = run(tiny({"strategy": MISBEHAVE, "payload_limit": 100_000}), tmp_path / "run")
    assert summary["status"] == "completed"
    assert summary["failures"] == 5
    first, second = lines(tmp_path / "run")[1:]
    reasons = {failure["node"]: failure["reason"] for failure in first["failures"]}
    assert {failure["action"] for failure in first["failures"]} == {"fit"}
    assert reasons[1].startswith("ValueError: the disk is full (misbehave.py:")
    assert "has values that are not finite" in reasons[2]
    assert "has shape (3,), asked for was" in reasons[3]
    assert "weights without 'features.1.weight'" in reasons[4]
    assert "bytes is over the limit of 100000" in reasons[5]
    assert second["failures"] == []
    assert set(first["nodes"]["personal_after_fit/accuracy"]) == {"0"}  # a failed node reports nothing


def test_a_round_with_too_few_good_replies_ends_the_run_by_name(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"strategy": MISBEHAVE, "payload_limit": 100_000, "min_replies": 2})
    with pytest.raises(
        RunError, match=r"Round 1, request 'fit': 1 of 6 replies are good, min_replies is 2. node 1: Val"
    ):
        run(config, tmp_path / "run")
    summary = (tmp_path / "run" / "summary.json").read_text()
    assert '"status": "failed"' in summary
    assert "1 of 6 replies" in summary


def test_what_a_failed_request_did_to_the_state_is_lost(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"strategy": MISBEHAVE, "payload_limit": 100_000}), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").rglob("nodes/*"))


def test_the_ledger_counts_what_is_sent_by_direction_and_kind(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 3, "cohort": 4})
    run(config, tmp_path / "run")
    weights = Environment(config).initial_weights()
    one_model = sum(t.numel() * 4 + 128 + len(name) for name, t in weights.items())
    for line in lines(tmp_path / "run")[1:]:
        numbers = 4 * (8 + len("examples") + 8 + len("loss"))
        assert line["bytes"] == {
            "up": {"weights": 4 * one_model, "numbers": numbers},
            "down": {"weights": 4 * one_model},
        }
        assert line["evaluation_bytes"] == {"up": {}, "down": {"weights": 6 * one_model}}


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cohort": 7}, "cohort = 7: the federation has 6 clients"),
        ({"cohort": 3, "min_replies": 4}, "min_replies = 4: a round asks 3 nodes"),
        ({"model": {"names": ["mlp", "cnn"]}}, r"model.names = \[mlp, cnn\]: fedavg needs equal models"),
        ({"model": {"name": "lenet5"}}, "cannot be built for images of 1x8x8"),
        ({"model": {"names": ["mlp", "clm"]}, "strategy.name": "local"}, "model.names.1: unknown 'clm'"),
        ({"strategy.name": "fedmd"}, "fedmd needs a public set: set data.public"),
        (
            {"strategy": {"name": "knfu", "subset_size": 500}, "data.public": {"size": 300}},
            "subset_size = 500: data.public.size is 300",
        ),
        (
            {"strategy": {"name": "fedmd"}, "data.public": {"size": 300}},
            "public_epochs = 10: the public set has no labels",
        ),
        ({"strategy.name": "comet"}, "comet needs a public set: set data.public"),
        (
            {"strategy": {"name": "knfu", "public_cross_entropy": 1.0}, "data.public": {"size": 300}},
            "public_cross_entropy = 1.0: the public set has no labels",
        ),
        ({"strategy.name": "feddf"}, "feddf needs a public set"),
        (
            {"strategy": {"name": "feddf", "drop_worst": True}, "data.public": {"size": 300}},
            "drop_worst = true: .*set data.validation",
        ),
        (
            {"strategy.name": "fedproto", "model": {"names": ["mlp", "cnn"]}},
            "fedproto needs features of one width, and they have mlp 200, cnn 512",
        ),
        ({"strategy": {"name": "fml", "meme": {"name": "lenet5"}}}, "strategy = 'lenet5' cannot be built"),
        ({"strategy": {"name": "knfu", "betta": 1.0}, "data.public": {"size": 9}}, "did you mean 'beta'"),
        ({"strategy.name": "feddistill_fl", "model": {"names": ["mlp", "cnn"]}}, "feddistill_fl needs equal models"),
        ({"data.validation": {"size": 5000}}, "data.validation.size = 5000: there are only"),
        (
            {"data.partition": {"scheme": "groups", "clients": 3, "groups": 4, "alpha": 1.0, "size": 9}},
            "groups = 4: there are 3 clients",
        ),
        (
            {"strategy": {"name": "flwr.serverapp.strategy:FedAvg", "fraction_train": 0.5}},
            "strategy.fraction_train: .* set cohort instead",
        ),
        ({"strategy": {"name": "flwr.serverapp.strategy:FedAvg"}, "cohort": 1}, "min_train_nodes = 2: .*for ever"),
        ({"engine": {"name": "rya"}}, "engine.name: unknown 'rya'; did you mean 'ray'"),
        ({"engine": {"name": "inline", "workers": 2}}, "engine.workers: unknown key 'workers'"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    tiny: Make, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(tiny(changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_environment_moves_to_another_device_with_models_and_batches(tiny: Make) -> None:
    setup = make_setup(tiny())
    setup.check()
    environment = setup.environment
    assert environment.model(0).classifier.weight.device.type == "cpu"  # type: ignore[union-attr]
    assert environment.preprocess(environment.data.test.images[:2]).device.type == "cpu"
    environment.use_device("meta")
    assert environment.model(0).classifier.weight.device.type == "meta"  # type: ignore[union-attr]
    assert environment.preprocess(environment.data.test.images[:2]).device.type == "meta"
