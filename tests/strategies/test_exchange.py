"""DS-FL, COMET, KT-pFL, FedDF, FD, FedDistill, FedProto, FML, FedNTD: losses and server steps by second formulas, the
errors of published code that must not come back, and a run of each over three architectures, interrupted and whole.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import halves_are_the_whole, lines, server_state
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedkd import Environment, Payload
from fedkd.config import Config
from fedkd.learning.losses import kl_divergence, kl_from_probabilities
from fedkd.messages.arrays import tensors_of
from fedkd.methods.class_means import ClassMeans, mean_over_nodes
from fedkd.methods.label_logits import label_logits_loss
from fedkd.models.zoo import mlp
from fedkd.runs.checkpoints import latest, load_nodes
from fedkd.runs.run import run
from fedkd.strategies.comet import cluster_targets
from fedkd.strategies.dsfl import enhanced_entropy_reduction, entropy_reduction
from fedkd.strategies.fd import leave_one_out
from fedkd.strategies.feddf import ensemble_targets
from fedkd.strategies.fedntd import not_true
from fedkd.strategies.fedproto import nearest_prototype, prototype_distance
from fedkd.strategies.fml import FML, mutual_loss
from fedkd.strategies.ktpfl import update_coefficients
from fedkd.streams import torch_stream

Make = Callable[..., Config]


class Given(nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch_stream(seed, 0, 0, "x"), dtype=torch.float64)


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def test_kl_from_probabilities_by_loops_and_with_a_certain_teacher() -> None:
    z, t = normal(6, 5), torch.softmax(normal(6, 5, seed=1), 1)
    right = sum(kl(b, softmax(a, 3.0)) for a, b in zip(z.tolist(), t.tolist(), strict=True)) / 6
    assert kl_from_probabilities(z, t, 3.0).item() == pytest.approx(right, rel=1e-12)
    certain = torch.eye(5, dtype=torch.float64)
    right = -sum(math.log(softmax(row)[i]) for i, row in enumerate(z[:5].tolist())) / 5
    assert kl_from_probabilities(z[:5], certain).item() == pytest.approx(right, rel=1e-12)
    teacher = normal(6, 5, seed=2)
    tempered = kl_from_probabilities(z, torch.softmax(teacher / 3.0, 1), 3.0)
    torch.testing.assert_close(9 * tempered, kl_divergence(z, teacher, 3.0))  # the factor T^2 is the caller's


# DS-FL


def test_entropy_reduction_sharpens_probabilities_up_to_its_ceiling() -> None:
    p = torch.softmax(normal(6, 5), 1)
    for row, sharp in zip(p.tolist(), entropy_reduction(p).tolist(), strict=True):
        assert sharp == pytest.approx(softmax(row, 0.1), rel=1e-12)
    for classes, ceiling in ((10, 0.9996), (100, 0.9955)):
        onehot = torch.eye(classes)[:1]
        assert entropy_reduction(onehot).max().item() == pytest.approx(ceiling, abs=5e-5)
    flat = entropy_reduction(p, 1.0)
    assert (flat.amax(1) / flat.amin(1)).max() <= math.e
    torch.testing.assert_close(enhanced_entropy_reduction(p, 1.0), p)
    assert torch.isfinite(enhanced_entropy_reduction(torch.full((1, 100), 0.01), 200.0)).all()
    right = p**2.5 / (p**2.5).sum(1, keepdim=True)
    torch.testing.assert_close(enhanced_entropy_reduction(p, 2.5), right)


# COMET


def test_clusters_a_sample_and_a_client() -> None:
    q = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8]])
    knowledge = torch.stack([q, q[[0, 2, 1, 3]]], dim=1)  # clients x 2 samples x classes: other pairs on each sample
    told = cluster_targets(knowledge, 2, "sample", 0)
    high, low = torch.tensor([0.85, 0.15]), torch.tensor([0.15, 0.85])
    torch.testing.assert_close(told[:, 0], torch.stack([high, high, low, low]))
    torch.testing.assert_close(told[:, 1], torch.stack([high, low, high, low]))
    same = torch.stack([q, q], dim=1)
    torch.testing.assert_close(cluster_targets(same, 2, "client", 0)[:, 1], torch.stack([high, high, low, low]))
    torch.testing.assert_close(cluster_targets(same, 1, "sample", 0)[0], q.mean(0).expand(2, 2))  # FedMD's mean
    torch.testing.assert_close(cluster_targets(same, 9, "client", 0), same)  # more clusters than clients
    alike = same[:1].expand(4, -1, -1)
    torch.testing.assert_close(cluster_targets(alike, 3, "sample", 0), alike)


# KT-pFL


def test_coefficients_follow_the_published_update() -> None:
    """The values that the authors' code gives on these outputs: the own coefficient drifts up."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        q = torch.softmax(torch.randn(4, 6, 5) * 2, -1)
    once = update_coefficients(torch.full((4, 4), 0.25), q, 0.7)
    twice = update_coefficients(once, q, 0.7)
    assert once[0, 0].item() == pytest.approx(0.2757, abs=5e-5)
    assert twice[0, 0].item() == pytest.approx(0.4134, abs=5e-5)
    torch.testing.assert_close(twice.sum(1), torch.ones(4, dtype=torch.float64))


def test_the_coefficients_step_by_its_closed_form() -> None:
    q, c, rho = torch.softmax(normal(3, 4, 5), -1), torch.softmax(normal(3, 3, seed=1), 1), 0.7
    found = update_coefficients(c, q, rho)
    for n in range(3):
        rest = q[n] - sum(c[n, m] * q[m] for m in range(3))
        gradient = [-2 * float((rest * q[m]).mean()) + 2 * rho / 3 * (float(c[n, m]) - 1 / 3) for m in range(3)]
        size, step = sum(map(abs, gradient)) / 3, 1.0
        for _ in range(5):
            if size > 0.01:
                size, step = size / 5, step / 5
            if size < 0.01:
                size, step = size * 5, step * 5
        right = softmax([5 * (float(c[n, m]) - step * gradient[m]) for m in range(3)])
        assert found[n].tolist() == pytest.approx(right, rel=1e-9)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(update_coefficients(c[order][:, order], q[order], rho), found[order][:, order])
    kl_rows = update_coefficients(c, q, rho, "kl")
    torch.testing.assert_close(kl_rows.sum(1), torch.ones(3, dtype=torch.float64))
    assert not torch.allclose(kl_rows, found)


# FedDF


def test_the_ensembles_of_feddf() -> None:
    z = normal(3, 4, 5)
    rows = z.tolist()
    for i in range(4):
        mean = [sum(rows[k][i][c] for k in range(3)) / 3 for c in range(5)]
        assert ensemble_targets(z, "avg_logits", 2.0)[i].tolist() == pytest.approx(softmax(mean, 2.0), rel=1e-5)
        for kind, temperature in (("avg_probs", 1.0), ("avg_losses", 2.0)):
            each = [softmax(rows[k][i], temperature) for k in range(3)]
            right = [sum(p[c] for p in each) / 3 for c in range(5)]
            assert ensemble_targets(z, kind, 2.0)[i].tolist() == pytest.approx(right, rel=1e-5)  # type: ignore[arg-type]


def test_avg_losses_has_the_gradient_of_the_mean_of_the_losses() -> None:
    z, student = normal(3, 4, 5), normal(4, 5, seed=1).requires_grad_()
    losses = [kl_from_probabilities(student, torch.softmax(z[k] / 2, 1), 2.0) for k in range(3)]
    (right,) = torch.autograd.grad(torch.stack(losses).mean(), student)
    one = kl_from_probabilities(student, ensemble_targets(z, "avg_losses", 2.0).double(), 2.0)
    (found,) = torch.autograd.grad(one, student)
    torch.testing.assert_close(found, right, atol=1e-7, rtol=1e-5)


def test_feddf_keeps_the_best_model_stops_early_and_drops_the_worst(tiny: Make, tmp_path: Path) -> None:
    changes = {
        "data.public": {"size": 200}, "data.validation": {"size": 50}, "rounds": 1, "train.epochs": 3,
        "strategy": {"name": "feddf", "steps": 400, "check_every": 10, "patience": 30, "drop_worst": True},
    }  # fmt: skip
    config = tiny(changes)
    run(config, tmp_path / "run")
    log = lines(tmp_path / "run")[1]["log"]
    assert log["distillation_steps_0"] == min(log["best_step_0"] + 30, 400)
    environment = Environment(config)
    kept = server_state(tmp_path / "run")
    assert environment.data.validation is not None
    score = environment.score(0, kept["models"][0], environment.data.validation)
    assert score["accuracy"] == log["validation_accuracy_0"]
    barely = {**changes, "train.optimizer": {"name": "sgd", "lr": 1e-9}, "seed": 1}  # starts below chance, and stays
    run(tiny(barely), tmp_path / "barely")
    log = lines(tmp_path / "barely")[1]["log"]
    assert log["dropped_teachers"] == 6
    assert "distillation_steps_0" not in log


# FD and FedDistill


def test_each_node_is_taught_by_the_others_and_a_missing_label_counts_for_nothing() -> None:
    """Public frameworks send the plain mean, or average in the zeros of a node without the label."""
    means = {n: normal(3, 3, seed=n) for n in range(3)}
    present = {0: torch.tensor([1, 1, 0]), 1: torch.tensor([1, 0, 0]), 2: torch.tensor([1, 1, 1])}
    found = leave_one_out(means, present)
    torch.testing.assert_close(found[0][0][0], ((means[1][0] + means[2][0]) / 2).float())
    torch.testing.assert_close(found[1][0][1], ((means[0][1] + means[2][1]) / 2).float())
    torch.testing.assert_close(found[0][0][1], means[2][1].float())
    assert found[2][1].tolist() == [True, True, False]  # nobody else has label 2
    assert found[0][1].tolist() == [True, True, True]
    everyone, exists = mean_over_nodes(means, present)
    torch.testing.assert_close(everyone[1], ((means[0][1] + means[2][1]) / 2).float())
    torch.testing.assert_close(everyone[2], means[2][2].float())
    assert exists.all()


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_class_means_start_from_nothing(seed: int) -> None:
    """FedGen's tracker starts its counts at 1, and so shrinks each mean by n / (n + 1)."""
    generator = torch_stream(seed, 0, 0, "m")
    vectors, labels = torch.randn(9, 3, generator=generator), torch.randint(0, 5, (9,), generator=generator)
    means = ClassMeans(5)
    for part in torch.arange(9).split(4):
        means.add(vectors[part], labels[part])
    payload = means.payload("logits", counts=True)
    for label in range(5):
        rows = vectors[labels == label]
        assert payload.statistics["counts"][label] == len(rows)
        right = rows.mean(0) if len(rows) else torch.zeros(3)
        torch.testing.assert_close(payload.logits["means"][label], right)
    assert torch.equal(means.payload("logits").statistics["present"].bool(), payload.statistics["counts"] > 0)


def test_the_label_logits_loss_takes_probabilities_and_skips_what_has_no_row() -> None:
    """Public frameworks use the logits themselves as target probabilities, and get negative losses."""
    z, table, labels = normal(6, 5), normal(5, 5, seed=1), torch.tensor([0, 1, 2, 3, 4, 0])
    request = Payload(logits={"table": table}, statistics={"present": torch.tensor([1, 1, 0, 1, 1])})
    means = ClassMeans(5)
    value = label_logits_loss(request, 0.3, means)(Given(z), torch.zeros(6), labels)
    right = 0.0
    for row, label in zip(z.tolist(), labels.tolist(), strict=True):
        p = softmax(row)
        right -= math.log(p[label])
        if label != 2:
            right -= 0.3 * sum(t * math.log(q) for t, q in zip(softmax(table[label].tolist()), p, strict=True))
    assert value.item() == pytest.approx(right / 6, rel=1e-12)
    torch.testing.assert_close(means.payload("logits").logits["means"][0], ((z[0] + z[5]) / 2).float())
    plain = label_logits_loss(Payload(), 0.3, None)(Given(z), torch.zeros(6), labels)
    torch.testing.assert_close(plain, nn.functional.cross_entropy(z, labels))


# FedProto


def test_the_nearest_prototype_is_one_that_exists() -> None:
    prototypes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    features = torch.tensor([[0.1, 0.1], [0.8, 0.0], [0.0, 3.0]])
    assert nearest_prototype(features, prototypes, torch.tensor([True, True, True])).tolist() == [0, 1, 2]
    assert nearest_prototype(features, prototypes, torch.tensor([False, True, False])).tolist() == [1, 1, 1]


def test_the_pull_is_a_mean_over_images_and_dimensions_and_skips_what_has_no_prototype() -> None:
    features, prototypes, labels = normal(4, 3), normal(2, 3, seed=1), torch.tensor([0, 1, 1, 0])
    right = sum((features[i, d].item() - prototypes[0, d].item()) ** 2 for i in (0, 3) for d in range(3)) / 12
    value = prototype_distance(features, labels, prototypes, torch.tensor([1, 0]))
    assert value.item() == pytest.approx(right, rel=1e-12)


def test_prototypes_are_weighted_by_images_or_not() -> None:
    means = {0: torch.tensor([[1.0]]), 1: torch.tensor([[5.0]])}
    counts = {0: torch.tensor([3]), 1: torch.tensor([1])}
    assert mean_over_nodes(means, counts)[0].item() == 2.0
    assert mean_over_nodes(means, {n: c > 0 for n, c in counts.items()})[0].item() == 3.0


def test_fedproto_has_an_accuracy_before_the_first_prototypes(tiny: Make, tmp_path: Path) -> None:
    """A public framework reports 0 until the first aggregation."""
    run(tiny({"strategy": {"name": "fedproto"}, "rounds": 2, "train.epochs": 5}), tmp_path / "run")
    metrics = [line["metrics"] for line in lines(tmp_path / "run")]
    assert metrics[0]["personal/accuracy"] == metrics[0]["personal_classifier/accuracy"] > 0
    assert metrics[1]["personal/accuracy"] != metrics[1]["personal_classifier/accuracy"]
    assert metrics[2]["personal/accuracy"] > metrics[0]["personal/accuracy"]


def test_the_pull_to_the_prototypes_draws_features_together(tiny: Make, tmp_path: Path) -> None:
    """The first round has no prototypes, so the weight changes nothing yet; from the second on it does."""
    for weight in (0.0, 5.0):
        strategy = {"name": "fedproto", "prototype_weight": weight}
        run(tiny({"strategy": strategy, "rounds": 2}), tmp_path / str(weight))
    without, pulled = lines(tmp_path / "0.0"), lines(tmp_path / "5.0")
    assert without[1] == pulled[1]
    assert without[2] != pulled[2]


# FML


def test_mutual_losses_are_batch_means_and_teach_without_being_taught() -> None:
    """Public frameworks divide KL by batch x classes, and let the gradient leak into the teacher."""
    private, meme = normal(6, 5).requires_grad_(), normal(6, 5, seed=1).requires_grad_()
    labels, a, b = torch.tensor([0, 1, 2, 3, 4, 0]), 0.3, 0.6
    value = mutual_loss(private, meme, labels, a, b)
    right = 0.0
    for x, y, label in zip(private.tolist(), meme.tolist(), labels.tolist(), strict=True):
        p, q = softmax(x), softmax(y)
        right += -a * math.log(p[label]) + (1 - a) * kl(q, p) - b * math.log(q[label]) + (1 - b) * kl(p, q)
    assert value.item() == pytest.approx(right / 6, rel=1e-12)
    found = torch.autograd.grad(value, (private, meme))
    p, q, onehot = torch.softmax(private, 1), torch.softmax(meme, 1), torch.eye(5, dtype=torch.float64)[labels]
    torch.testing.assert_close(found[0], (a * (p - onehot) + (1 - a) * (p - q)).detach() / 6)
    torch.testing.assert_close(found[1], (b * (q - onehot) + (1 - b) * (q - p)).detach() / 6)
    assert FML().alpha == FML().beta == 0.5  # with 1 and 1 there is no distillation at all


def test_fml_trains_one_private_model_a_node_and_a_meme_of_its_own_shape(tiny: Make, tmp_path: Path) -> None:
    meme = {"name": "mlp", "hidden": [9]}
    changes = {"model": {"names": [{"name": "mlp", "hidden": [16]}, {"name": "cnn", "channels": [4], "hidden": 8}]}}
    summary = run(tiny({**changes, "strategy": {"name": "fml", "meme": meme}}), tmp_path / "run")
    parameters = 64 * 9 + 9 + 9 * 10 + 10
    names = sum(len(f"{layer}.{kind}") for layer in ("features.1", "classifier") for kind in ("weight", "bias"))
    assert summary["bytes"]["up"]["weights"] == 2 * 6 * (4 * parameters + 4 * 128 + names)
    assert 'name = "mlp"' in (tmp_path / "run" / "config.toml").read_text().split("[strategy.meme]")[1]


def test_fml_clips_each_of_the_two_models_by_itself(tiny: Make, tmp_path: Path) -> None:
    train = {"steps": 1, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 1.0}, "clip": 0.01}
    config = tiny({"strategy": {"name": "fml"}, "train": train, "cohort": 1, "rounds": 1})
    run(config, tmp_path / "run")
    environment = Environment(config)
    checkpoint = latest(tmp_path / "run" / "checkpoints")[1]
    ((node, state),) = load_nodes(checkpoint)
    private, meme = tensors_of(state["model"]), server_state(checkpoint)["weights"]  # type: ignore[arg-type]
    for now, of in ((private, node), (meme, "server")):
        before = environment.initial_weights(0, of)
        moved = torch.cat([(now[name] - before[name]).flatten() for name in before])
        assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


# FedNTD


def test_not_true_distillation_leaves_the_label_out() -> None:
    z, teacher, labels = normal(4, 5), normal(4, 5, seed=1), torch.tensor([4, 0, 2, 2])
    value = kl_divergence(not_true(z, labels), not_true(teacher, labels), 2.0)
    right = 0.0
    for x, y, label in zip(z.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        del x[label], y[label]
        right += 4 * kl(softmax(y, 2.0), softmax(x, 2.0))
    assert value.item() == pytest.approx(right / 4, rel=1e-12)
    moved = z.clone()
    moved[torch.arange(4), labels] += 3.0
    torch.testing.assert_close(kl_divergence(not_true(moved, labels), not_true(teacher, labels), 2.0), value)


def test_fedntd_without_its_term_is_fedavg_and_with_it_is_not(tiny: Make, tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {
        "avg": {"name": "fedavg"}, "off": {"name": "fedntd", "beta": 0.0}, "on": {"name": "fedntd"}
    }  # fmt: skip
    for name, strategy in runs.items():
        run(tiny({"strategy": strategy, "train.epochs": 2}), tmp_path / name)
    metrics = {name: [line["metrics"]["global/loss"] for line in lines(tmp_path / name)] for name in runs}
    assert metrics["off"] == pytest.approx(metrics["avg"], rel=1e-5)
    assert metrics["on"] != pytest.approx(metrics["avg"], rel=1e-3)


# Every method, over three architectures, with part of the nodes a round

THREE = {
    "names": [
        {"name": "mlp", "hidden": [16]},
        {"name": "cnn", "channels": [4], "hidden": 16},
        {"name": "mlp", "hidden": [24, 16]},
    ]
}
METHODS: dict[str, dict[str, Any]] = {
    "comet": {"subset_size": 40},
    "dsfl": {"subset_size": 40},
    "fd": {},
    "feddf": {"steps": 40},
    "feddistill": {"means_over": "after"},
    "feddistill_fl": {},
    "fedmd": {"subset_size": 40, "public_epochs": 0, "private_epochs": 2},
    "fedntd": {},
    "fedproto": {},
    "fml": {},
    "knfu": {"subset_size": 40},
    "ktpfl": {"subset_size": 40},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_and_goes_on_after_an_interruption_as_if_there_had_been_none(
    tiny: Make, tmp_path: Path, method: str
) -> None:
    changes = {
        "strategy": {"name": method, **METHODS[method]},
        "data.public": {"size": 60}, "data.partition.size": 48, "cohort": 4, "rounds": 6,
        "train": {"epochs": 4, "batch_size": 8, "optimizer": {"name": "adam", "lr": 0.005}},
        "checkpoint": {"every": 1},
    }  # fmt: skip
    if method not in ("feddistill_fl", "fedntd"):
        changes["model"] = THREE
    summary = run(tiny(changes), tmp_path / "whole")
    assert summary["failures"] == 0
    whole = lines(tmp_path / "whole")
    goal = "global/accuracy" if method in ("feddf", "fedntd", "feddistill_fl") else "personal/accuracy"
    assert whole[-1]["metrics"][goal] > whole[0]["metrics"][goal] + 0.2
    halves_are_the_whole(tiny(changes), tmp_path / "whole", tmp_path / "halves")


def test_dsfl_sends_no_targets_in_round_1_and_the_servers_model_learns(tiny: Make, tmp_path: Path) -> None:
    changes = {
        "strategy": {"name": "dsfl", "distil_epochs": 5}, "data.public": {"size": 200}, "rounds": 4,
        "train": {"epochs": 4, "batch_size": 8, "optimizer": {"name": "adam", "lr": 0.005}},
    }  # fmt: skip
    run(tiny(changes), tmp_path / "run")
    found = lines(tmp_path / "run")
    assert "logits" not in found[1]["bytes"]["down"]
    assert found[2]["bytes"]["down"]["logits"] == 6 * (200 * 10 * 4 + 128 + len("targets"))
    assert found[4]["metrics"]["global/accuracy"] > found[0]["metrics"]["global/accuracy"] + 0.2
    for line in found[1:]:
        assert line["log"]["target_entropy"] < line["log"]["mean_entropy"]  # T = 0.1 sharpens
    assert np.isfinite(found[4]["metrics"]["personal_after_distillation/accuracy"])


def test_models_of_the_digest_are_not_augmented(tiny: Make) -> None:
    """Targets belong to the images as they stand: a crop would teach the answer to another image."""
    from fedkd.learning.batches import batches

    environment = Environment(tiny({"data.augment": "crop_flip"}))
    data = environment.data.train_of(0)
    labels = torch.from_numpy(data.labels)
    order = torch_stream(0, 0, 0, "order")
    seen = torch.cat([x for x, _ in batches(data, labels, 8, environment.preprocess, order, False)])
    plain = environment.preprocess(data.images)
    torch.testing.assert_close(seen.sort(0).values, plain.sort(0).values)
    state = torch.get_rng_state()
    assert mlp((1, 8, 8), 10)(plain).shape == (len(labels), 10)
    torch.set_rng_state(state)


def test_coefficients_last_from_round_to_round_and_keep_their_sum(tiny: Make, tmp_path: Path) -> None:
    changes = {"strategy": {"name": "ktpfl"}, "data.public": {"size": 40}, "rounds": 3}
    run(tiny(changes), tmp_path / "all")
    kept = server_state(tmp_path / "all")["coefficients"]
    logged = [np.array(line["log"]["weights"]) for line in lines(tmp_path / "all")[1:]]
    np.testing.assert_allclose(kept, logged[-1], atol=1e-6)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in pairwise(logged))
    run(tiny({**changes, "cohort": 3}), tmp_path / "some")
    kept = server_state(tmp_path / "some")["coefficients"]
    torch.testing.assert_close(kept.sum(1), torch.ones(6, dtype=torch.float64))
    assert (kept != 1 / 6).any()


def test_a_class_that_no_node_of_a_cohort_has_keeps_its_prototype(tiny: Make, tmp_path: Path) -> None:
    partition = {"scheme": "classes_per_client", "clients": 6, "classes": 2}
    run(tiny({"strategy": {"name": "fedproto"}, "data.partition": partition, "cohort": 1, "rounds": 4}), tmp_path / "r")
    state = server_state(tmp_path / "r")
    seen = {node for line in lines(tmp_path / "r")[1:] for node in line["cohort"]}
    assert len(seen) > 1
    held = Environment(tiny({"data.partition": partition})).data.label_counts()[sorted(seen)].sum(0) > 0
    assert state["present"].bool().tolist() == held.tolist()
    assert (state["prototypes"].abs().sum(1) > 0).tolist() == held.tolist()
