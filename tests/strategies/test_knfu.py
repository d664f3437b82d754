"""KnFu: the specification's worked example, neighbours and their weights, and hidden groups on real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from helpers import Make, lines
from helpers.fusion import soft, weights_of
from torch import Tensor

from fedkd import Environment, Payload
from fedkd.config import Limits
from fedkd.core.record import Record
from fedkd.core.round_loop import run_rounds
from fedkd.core.setup import make_setup
from fedkd.errors import InputError
from fedkd.learning.losses import kl_from_probabilities
from fedkd.methods.knowledge_fusion import fuse
from fedkd.runs.run import make_engine, run
from fedkd.strategies.knfu import KnFuClient, distances, estimated_priors, neighbour_weights


def seeded() -> tuple[Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.randn(4, 6, 5) * 2, torch.randn(6, 5)


def test_the_worked_example() -> None:
    logits, student = seeded()
    q = torch.softmax(logits, -1)
    priors = estimated_priors(q)
    np.testing.assert_allclose(priors[0], [0.14149274, 0.03198858, 0.03153089, 0.39530745, 0.39968038], atol=1e-7)
    np.testing.assert_allclose(priors[3], [0.18319115, 0.25129855, 0.19661368, 0.18216902, 0.1867277], atol=1e-7)
    kl = distances(priors)
    right = [
        [0, 0.44627863, 0.87408799, 0.45022637], [0.44802529, 0, 0.81320542, 0.28544718],
        [0.844666, 0.64289343, 0, 0.31079507], [0.64193004, 0.32484025, 0.37104118, 0],
    ]  # fmt: skip
    np.testing.assert_allclose(kl, right, atol=1e-6)
    weights = neighbour_weights(kl)
    right = [
        [0.97773325, 0.01127345, 0.00015635, 0.01083708], [0.01059711, 0.9352693, 0.00027494, 0.05385864],
        [0.00020508, 0.00154242, 0.95554686, 0.04270573], [0.00153042, 0.03646819, 0.02297556, 0.93902582],
    ]  # fmt: skip
    np.testing.assert_allclose(weights, right, atol=1e-6)
    fused = fuse(weights, q)
    np.testing.assert_allclose(fused[0, 0], [0.024235, 0.01915017, 0.08966363, 0.06347169, 0.80347973], atol=1e-6)
    assert kl_from_probabilities(student, fused[0]).item() == pytest.approx(1.06634796, abs=1e-6)


def test_the_functions_have_the_defaults_of_the_specification() -> None:
    """Fact K6 (beta = 10 in all experiments) and the proposed reading in section 1.3 of the specification."""
    apart = torch.tensor([[0.0, 0.3], [0.2, 0.0]])
    own = 1 / (1 + np.exp([-3.0, -2.0]))  # softmax over (0, -10 d)
    np.testing.assert_allclose(neighbour_weights(apart).diagonal(), own, rtol=1e-6)
    every = neighbour_weights(apart, function="threshold")
    torch.testing.assert_close(every, neighbour_weights(apart))  # the default threshold of 0 keeps all senders
    assert estimated_priors(torch.tensor([[[1.0, 0.0]]]))[0, 1].item() == pytest.approx(1e-8, rel=1e-6)


def test_a_threshold_keeps_the_weights_that_reach_it() -> None:
    apart = torch.log(torch.tensor([[1.0, 2.0, 5.0], [1.0, 1.0, 1.0], [1.0, 4.0, 4.0]], dtype=torch.float64))
    edge = float(neighbour_weights(apart, 1.0)[0, 1])  # 5/17; the others 10/17, 2/17; three times 1/3; 2/3, 1/6, 1/6
    kept = neighbour_weights(apart, 1.0, function="threshold", threshold=edge)
    np.testing.assert_allclose(kept, [[2 / 3, 1 / 3, 0], [1 / 3] * 3, [1, 0, 0]], atol=1e-9)
    above = neighbour_weights(apart, 1.0, function="threshold", threshold=edge + 1e-12)
    assert above[0].tolist() == [1.0, 0.0, 0.0]


def test_topk_keeps_k_of_each_row_and_all_without_a_k() -> None:
    apart = torch.tensor([[0.0, 0.1, 0.3, 0.2]]).repeat(4, 1)
    for k, kept in ((1, 1), (3, 3), (4, 4), (9, 4), (None, 4)):
        weights = neighbour_weights(apart, function="topk", k=k)
        assert ((weights > 0).sum(1) == kept).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("space", ["prob", "logit"])
def test_fine_tuning_takes_the_temperature_and_the_public_labels_by_their_weights(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    strategy = {"name": "knfu", "fuse_space": space, "temperature": 3.0, "public_cross_entropy": 0.5}
    setup = make_setup(tiny({"data.public": {"size": 8, "labelled": True}, "strategy": strategy}))
    client = KnFuClient(setup.environment, setup.strategy.layers(), 0, RecordDict(), 1, "finetune", False)
    given = torch.linspace(-1, 1, 80).view(8, 10)
    targets = torch.softmax(given, 1)
    seen: list[tuple[Tensor, Any]] = []
    monkeypatch.setattr(client, "distil", lambda images, wanted, loss: seen.append((wanted, loss)))
    client.finetune(Payload(logits={"targets": given if space == "logit" else targets}))
    (wanted, loss) = seen[0]
    logits = torch.linspace(2, -3, 80).view(8, 10) ** 2
    labels = torch.from_numpy(client.public.labels)
    logs = torch.log_softmax(logits.double() / 3, 1)
    right = 9 * (targets.double() * (targets.double().log() - logs)).sum(1).mean()
    right -= 0.5 * torch.log_softmax(logits.double(), 1)[torch.arange(8), labels].mean()
    assert float(loss(lambda batch: batch, logits, wanted)) == pytest.approx(float(right), rel=1e-5)


def test_public_cross_entropy_needs_public_labels(tiny: Make) -> None:
    def check(labelled: bool, weight: float) -> None:
        strategy = {"name": "knfu", "public_cross_entropy": weight}
        make_setup(tiny({"data.public": {"size": 60, "labelled": labelled}, "strategy": strategy})).check()

    check(True, 0.5)
    check(False, 0.0)
    with pytest.raises(InputError, match=r"strategy\.public_cross_entropy = 0\.5: the public set has no labels"):
        check(False, 0.5)


def test_distances_by_loops_in_every_direction() -> None:
    priors = estimated_priors(soft(3))

    def kl(p: list[float], q: list[float]) -> float:
        return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))

    rows = priors.tolist()
    for n, p in enumerate(rows):
        for m, q in enumerate(rows):
            middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
            right = {
                "kl_receiver_sender": kl(p, q),
                "kl_sender_receiver": kl(q, p),
                "jeffreys": (kl(p, q) + kl(q, p)) / 2,
                "js": (kl(p, middle) + kl(q, middle)) / 2,
            }
            for name, value in right.items():
                assert distances(priors, name)[n, m].item() == pytest.approx(value, abs=1e-12)  # type: ignore[arg-type]


def test_clients_that_know_the_same_count_the_same() -> None:
    q = soft(2)
    q[3] = q[1]
    weights = weights_of(q)
    torch.testing.assert_close(weights[:, 3], weights[:, 1])
    same = q[:1].expand(5, -1, -1)
    torch.testing.assert_close(weights_of(same, 7.0), torch.full((5, 5), 0.2, dtype=torch.float64))


def test_disjoint_hard_priors_stay_finite_and_an_unbalanced_transfer_set_does_too() -> None:
    q = torch.zeros(2, 3, 4)
    q[0, :, 0] = q[1, :, 3] = 1.0
    priors = estimated_priors(q, "hard", 1e-3)
    torch.testing.assert_close(priors.sum(1), torch.ones(2, dtype=torch.float64))
    assert torch.isfinite(distances(priors)).all()
    one_class = soft(0)[:, :1].expand(-1, 12, -1)
    assert torch.isfinite(weights_of(one_class)).all()


def test_nearest_neighbours_need_a_number(tiny: Make) -> None:
    with pytest.raises(InputError, match=r"weight_function = 'topk': set strategy\.k"):
        make_setup(tiny({"data.public": {"size": 60}, "strategy": {"name": "knfu", "weight_function": "topk"}})).check()


def test_hard_neighbours() -> None:
    d = torch.tensor([[0.0, 0.1, 0.3], [0.1, 0.0, 0.2], [0.3, 0.2, 0.0]])
    soft_weights = neighbour_weights(d, 5.0)
    top = neighbour_weights(d, 5.0, function="topk", k=2)
    assert (top > 0).tolist() == [[True, True, False], [True, True, False], [False, True, True]]
    assert (top[0, 0] / top[0, 1]).item() == pytest.approx((soft_weights[0, 0] / soft_weights[0, 1]).item())
    cut = neighbour_weights(d, 5.0, function="threshold", threshold=0.3)
    assert (cut > 0).tolist() == (soft_weights >= 0.3).tolist()
    lonely = neighbour_weights(d, 5.0, function="threshold", threshold=1.0)
    torch.testing.assert_close(lonely, torch.eye(3, dtype=torch.float64))
    without = neighbour_weights(d, 5.0, include_self=False)
    assert without.diagonal().tolist() == [0, 0, 0]
    for weights in (top, cut, without):
        torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=torch.float64))
    assert neighbour_weights(torch.zeros(1, 1), include_self=False).tolist() == [[1.0]]


def groups(root: Path, **strategy: object) -> dict:
    return {
        "data": {
            "name": "mnist", "root": str(root), "public": {"size": 300},
            "partition": {"scheme": "groups", "clients": 6, "groups": 3, "alpha": 0.2, "size": 40},
        },
        "model": {"names": [
            {"name": "mlp", "hidden": [64]}, {"name": "mlp", "hidden": [128, 64]},
            {"name": "cnn", "channels": [8, 16], "hidden": 64},
        ]},
        "train": {"epochs": 8, "batch_size": 32, "optimizer": {"name": "adam", "lr": 0.001}},
        "strategy": {"name": "knfu", "distil_epochs": 2, **strategy},
    }  # fmt: skip


def test_hidden_groups_find_each_other_over_three_architectures(tiny: Make, tmp_path: Path, mnist_root: Path) -> None:
    summary = run(tiny(groups(mnist_root)), tmp_path / "run")
    assert summary["failures"] == 0
    log = lines(tmp_path / "run")[-1]["log"]
    assert (tmp_path / "run" / "figures" / "weights.png").is_file()
    weights = np.array(log["weights"])
    own = [weights[n, 2 * (n // 2) : 2 * (n // 2) + 2].sum() for n in range(6)]
    assert np.mean(own) > 0.95
    assert log["nodes"] == list(range(6))
    assert log["self_weight"] == pytest.approx(weights.diagonal().mean(), abs=1e-5)
    assert 1 < log["effective_neighbours"] <= 2.2
    assert 0 < log["prior_distance"] < 0.8
    final = summary["final"]
    assert final["personal/accuracy"] > 0.6
    assert final["personal/accuracy"] == final["personal_after_distillation/accuracy"]
    assert final["personal_after_fit/accuracy"] != final["personal/accuracy"]


@pytest.mark.parametrize("space", ["prob", "logit"])
def test_every_node_gets_what_its_row_of_the_matrix_says(tiny: Make, tmp_path: Path, space: str) -> None:
    changes = {"data.public": {"size": 40, "labelled": True}, "rounds": 1}
    strategy = {"name": "knfu", "beta": 3.0, "fuse_space": space, "public_cross_entropy": 0.5}
    setup = make_setup(tiny({**changes, "strategy": strategy}))
    sent: dict[int, Tensor] = {}
    reported: dict[int, Tensor] = {}

    class Watching(type(setup.strategy)):  # type: ignore[misc]
        def run_round(self, federation: object) -> None:
            ask = federation.ask  # type: ignore[attr-defined]

            def watch(action: str, payload: object = None, **more: object) -> object:
                if action == "finetune":
                    sent.update({n: p.logits["targets"] for n, p in payload.items()})  # type: ignore[attr-defined]
                    return ask(action, payload, **more)
                replies = list(ask(action, payload, **more))
                reported.update({node: reply.logits["knowledge"] for node, reply in replies})
                return replies

            federation.ask = watch  # type: ignore[attr-defined]
            super().run_round(federation)

    setup.strategy.__class__ = Watching
    records: list[Record] = []
    with make_engine(setup) as engine:
        run_rounds(setup, engine, on_round=records.append)
    q = {n: torch.softmax(k.double(), 1) if space == "logit" else k.double() for n, k in reported.items()}
    epd = {n: p.mean(0) for n, p in q.items()}
    for n in range(6):
        scores = [np.exp(-3.0 * float((epd[n] * (epd[n] / epd[m]).log()).sum())) for m in range(6)]
        right = sum(s / sum(scores) * reported[m].double() for m, s in enumerate(scores))
        torch.testing.assert_close(sent[n].double(), right, atol=1e-5, rtol=1e-4)
    known = setup.environment.data.priors
    assert known is not None
    off = [float(abs(epd[n].numpy() - known[n]).sum()) for n in range(6)]
    assert records[1].log["prior_distance"] == pytest.approx(sum(off) / 6, abs=1e-6)


def test_a_node_with_another_transfer_set_is_a_named_failure(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"data.public": {"size": 40}, "strategy": {"name": "knfu"}, "rounds": 1})
    fingerprint = Environment(config).public_fingerprint
    assert Environment(config).public_fingerprint == fingerprint
    other = Environment(tiny({"data.public": {"size": 40}, "strategy": {"name": "knfu"}, "seed": 1}))
    assert other.public_fingerprint != fingerprint
    from fedkd.errors import PayloadError
    from fedkd.messages.arrival import receive
    from fedkd.messages.payload import Expected, Payload

    reported = Payload(numbers={"transfer_set": float(other.public_fingerprint)}).to_records()
    wanted = Expected(numbers={"transfer_set": (float(fingerprint), float(fingerprint))})
    with pytest.raises(PayloadError, match="number 'transfer_set' is"):
        receive(reported, wanted, Limits(10**6, {}))


def test_knowledge_that_is_no_probability_is_its_nodes_failure() -> None:
    from fedkd.errors import PayloadError
    from fedkd.messages.arrival import receive
    from fedkd.messages.payload import ArraySpec, Expected, Payload

    wanted = Expected(logits={"knowledge": ArraySpec((2, 2), probabilities=True)})
    good = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    receive(Payload(logits={"knowledge": good}).to_records(), wanted, Limits(10**6, {}))
    for bad, message in (
        (torch.tensor([[-0.5, 1.5], [1.0, 0.0]]), "outside 0.0 to 1.0"),
        (torch.tensor([[0.0, 0.0], [1.0, 0.0]]), "rows that do not sum to 1"),
        (torch.tensor([[torch.nan, 0.0], [1.0, 0.0]]), "not finite"),
    ):
        with pytest.raises(PayloadError, match=message):
            receive(Payload(logits={"knowledge": bad}).to_records(), wanted, Limits(10**6, {}))


def test_in_logit_space_the_extraction_temperature_counts_once(tiny: Make, tmp_path: Path) -> None:
    """One node that hears itself alone: both spaces have one target, softmax(z / T)."""
    for space in ("prob", "logit"):
        strategy = {"name": "knfu", "fuse_space": space, "beta": 1e6, "extraction_temperature": 4.0, "temperature": 4.0}
        run(tiny({"strategy": strategy, "data.public": {"size": 40}, "rounds": 1}), tmp_path / space)
    found = [lines(tmp_path / space)[1]["metrics"]["personal/loss"] for space in ("prob", "logit")]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_hard_priors_count_the_most_likely_classes() -> None:
    q = torch.tensor([
        [[0.6, 0.2, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]],
        [[0.2, 0.5, 0.2, 0.1], [0.1, 0.6, 0.2, 0.1], [0.1, 0.9, 0.0, 0.0]],
    ])  # fmt: skip
    counts = torch.tensor([[2.0, 0, 0, 1], [0, 3, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(estimated_priors(q, "hard", 0.25), (counts / 3 + 0.25) / 2)
    soft_ones = torch.tensor([1.1, 0.6, 0.4, 0.9], dtype=torch.float64) / 3
    torch.testing.assert_close(estimated_priors(q, "soft", 0.25)[0], (soft_ones + 0.25) / 2, rtol=1e-6, atol=0)
