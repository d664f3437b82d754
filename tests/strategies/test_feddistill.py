"""FedDistill as published: the history of a node, counts that start at 1, rows of zeros that count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict
from helpers import Make, lines, server_state
from helpers.formulas import normal

from fedkd import Environment, Payload
from fedkd.core.wrapper import make_strategy
from fedkd.methods.class_means import ClassMeans
from fedkd.runs.run import run
from fedkd.strategies.feddistill import FedDistillClient


def test_sums_go_on_from_what_was_added_before() -> None:
    one, other = normal(4, 3, seed=1), normal(5, 3, seed=2)
    first = ClassMeans(3, torch.zeros(3, 3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    first.add(one, torch.tensor([0, 0, 2, 2]))
    assert first.sums is not None
    second = ClassMeans(3, first.sums, first.counts)
    second.add(other, torch.tensor([0, 0, 0, 0, 0]))
    found = second.payload("logits")
    torch.testing.assert_close(found.logits["means"][0], ((one[:2].sum(0) + other.sum(0)) / 8).float())
    torch.testing.assert_close(found.logits["means"][1], torch.zeros(3))
    assert found.statistics["present"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("quirks", [False, True])
def test_a_nodes_table_is_of_its_whole_history_only_in_the_published_form(tiny: Make, quirks: bool) -> None:
    """One step of all images a round: logits before the step are those of the model that the round begins with."""
    config = tiny({"strategy": {"name": "feddistill", "official_quirks": quirks}, "train.batch_size": 24})
    environment, state = Environment(config), RecordDict()
    strategy = make_strategy(config.strategy)[0]
    before, tables = [], []
    for number in (1, 2):
        client = FedDistillClient(environment, [strategy], 0, state, number, "fit", False)
        with torch.no_grad():
            before.append(client.model.train()(environment.preprocess(client.data.inputs)).double())
        tables.append(client.fit(Payload()).logits["means"])
    mine = client.labels == client.labels[0]
    for number, table in enumerate(tables):
        counted = before[: number + 1] if quirks else before[number : number + 1]
        total = sum(one[mine].sum(0) for one in counted)
        right = total / (len(counted) * int(mine.sum()) + quirks)
        torch.testing.assert_close(table[client.labels[0]], right.float(), rtol=1e-4, atol=1e-5)


def test_as_published_a_label_that_a_node_lacks_counts_as_zeros(tiny: Make, tmp_path: Path) -> None:
    partition = {"scheme": "classes_per_client", "clients": 4, "classes": 5}
    for quirks in (False, True):
        strategy = {"name": "feddistill_fl", "official_quirks": quirks}
        run(tiny({"strategy": strategy, "data.partition": partition, "rounds": 1}), tmp_path / str(quirks))
    plain, published = (server_state(tmp_path / name)["tables"][-1][0] for name in ("False", "True"))
    counts = Environment(tiny({"data.partition": partition})).data.label_counts()
    owners = (counts > 0).sum(0)
    assert set(owners) == {2}
    assert lines(tmp_path / "True")[1]["cohort"] == [0, 1, 2, 3]
    shrunk = plain * 2 / 4  # two of the four rows are zeros; each other row is shrunk by n / (n + 1)
    assert (published.abs() <= shrunk.abs() + 0.5).all()
    ratio = (published / plain).median()
    assert 0.49 < float(ratio) < 0.5


def test_a_published_run_can_be_resumed(tiny: Make, tmp_path: Path) -> None:
    from helpers import halves_are_the_whole

    config = tiny({"strategy": {"name": "feddistill", "official_quirks": True}, "rounds": 6, "cohort": 3})
    run(config, tmp_path / "whole")
    halves_are_the_whole(config, tmp_path / "whole", tmp_path / "halves")
