"""FedFTG over each base: whole rounds by the published algorithm, and what a run shows."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import HOME, Make, lines, server_state
from helpers.bases import BASES, SMALL
from helpers.hand import Hand, setting
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import ArraySpec, Environment, Payload, Round, RunError
from fedkd.config import read_config
from fedkd.core.round import Reply
from fedkd.distillation.generators import ImageGenerator
from fedkd.runs.run import run
from fedkd.strategies.fedftg import FedFTG, _step, stratified_labels
from fedkd.streams import default_stream, numpy_stream, torch_stream


def by_hand(
    student: nn.Module,
    generator: nn.Module,
    models: list[dict[str, Tensor]],
    counts: Tensor,
    y: Tensor,
    z: Tensor,
    decay: float,
    weight_decay: float,
) -> None:
    """Fine-tune as the published code does: nothing is cached, nothing shared with ours but the generator's network."""
    alpha = counts.double() / (counts.double().sum(0) + 1e-6)  # K x C
    by_student = torch.optim.SGD(student.parameters(), lr=0.05 * decay, weight_decay=weight_decay)
    by_generator = torch.optim.Adam(generator.parameters(), lr=0.01 * decay)
    teacher = copy.deepcopy(student).eval()
    for labels, noise in zip(y, z, strict=True):
        student.eval()
        generator.train()
        for k, weights in enumerate(models):
            teacher.load_state_dict(weights)
            x, a = generator(noise, labels), alpha[k][labels]
            t, flat = teacher(x), x.flatten(1)
            hard = -(a * (student(x) - t.detach()).abs().mean(1)).mean()
            apart = (flat[:, None] - flat[None]).abs().mean(2) * (noise[:, None] - noise[None]).pow(2).mean(2)
            loss = hard + F.cross_entropy(t, labels) * a.mean() + torch.exp(-apart.mean()) / len(models)
            by_generator.zero_grad()
            loss.backward()
            by_generator.step()
        student.train()
        generator.eval()
        for _ in range(5):
            with torch.no_grad():
                x, q = generator(noise, labels), 0.0
                for k, weights in enumerate(models):
                    teacher.load_state_dict(weights)
                    q = q + alpha[k][labels][:, None] * torch.softmax(teacher(x), 1)
            by_student.zero_grad()
            (-(q * F.log_softmax(student(x), 1)).sum(1).mean() / 10).backward()
            by_student.step()


REPLAYED: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "fedprox": {"name": "fedprox", "mu": 0.2},
    "fedprox, official": {"name": "fedprox", "mu": 0.2, "official_quirks": True},
    "feddyn": {"name": "feddyn", "alpha": 0.3},
    "scaffold": {"name": "scaffold"},
    "scaffold, official": {"name": "scaffold", "official_quirks": True},
    "moon": {"name": "moon", "mu": 2.0},
}


@pytest.mark.parametrize("case", REPLAYED)
def test_three_rounds_of_fedftg_over_each_base_are_the_published_algorithm(
    tiny: Make, tmp_path: Path, case: str
) -> None:
    base = REPLAYED[case]
    config = setting(tiny, {"name": "fedftg", **SMALL, "base": base})
    run(config, tmp_path / "run")
    hand, name, official = Hand(config), base["name"], base.get("official_quirks", False)
    data, sizes = hand.data, [len(hand.data.train_of(k).labels) for k in range(6)]
    with default_stream(torch_stream(0, 0, "server", "initial-generator")):
        generator = ImageGenerator(8, 10, (1, 8, 8), width=4).double()
    start = copy.deepcopy(generator.state_dict())
    w = hand.start()
    kept = [{n: np.zeros_like(v) for n, v in w.items()} for _ in range(6)]  # h_k or c_k
    c, last, anchor = {n: np.zeros_like(v) for n, v in w.items()}, {}, dict(w)
    for number in (1, 2, 3):
        cohort, models, decay = hand.cohort(number, tmp_path / "run"), {}, 0.8 ** (number - 1)
        delta = {n: 0.0 for n in w}
        for k in cohort:
            share = sizes[k] * 6 / sum(sizes) if official else 1.0

            def move(n: str, g: np.ndarray, v: np.ndarray, k: int = k, s: float = share, w: Any = w, c: Any = c) -> Any:
                if name == "fedprox":
                    return g + 0.2 * (v if official else v - w[n])
                if name == "feddyn":
                    return g + 0.3 * (v - w[n] + kept[k][n])
                return g + c[n] / s - kept[k][n] if name == "scaffold" else g

            def contrast(x: Tensor, y: Tensor, k: int = k, w: Any = w) -> Tensor | float:
                if name != "moon" or k not in last:
                    return 0.0
                sims = []
                for weights in (w, last[k]):
                    frozen = copy.deepcopy(hand.model)
                    frozen.load_state_dict({n: torch.from_numpy(v) for n, v in weights.items()})
                    a, b = hand.model.features(x), frozen.features(x).detach()
                    sims.append((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)) / 0.5)
                return -2.0 * torch.log(sims[0].exp() / (sims[0].exp() + sims[1].exp())).mean()

            theta, steps = hand.train(number, k, w, move, contrast)
            if name == "feddyn":
                kept[k] = {n: kept[k][n] + theta[n] - w[n] for n in w}
            if name == "scaffold":
                rate = 0.1 if official else 0.1 * decay
                new = {n: kept[k][n] - c[n] + ((anchor if official else w)[n] - theta[n]) / (steps * rate) for n in w}
                delta = {n: delta[n] + share * (new[n] - kept[k][n]) for n in w}
                kept[k] = new
            models[k] = last[k] = theta
        weigh = [sizes[k] if name in ("fedavg", "fedprox", "moon") else 1 for k in cohort]
        w = {n: sum(a * models[k][n] for a, k in zip(weigh, cohort, strict=True)) / sum(weigh) for n in w}
        c = {n: c[n] + delta[n] / 6 for n in w}
        if name == "feddyn":
            w = {n: w[n] + sum(h[n] for h in kept) / 6 for n in w}
        anchor = dict(w)
        counts = torch.from_numpy(data.label_counts()[cohort])
        labels = stratified_labels(counts.sum(0).tolist(), 60, numpy_stream(0, number, "server", "labels").shuffle)
        noise = torch.randn(3, 20, 8, generator=torch_stream(0, number, "server", "noise")).double()
        student = copy.deepcopy(hand.model)
        student.load_state_dict({n: torch.from_numpy(v) for n, v in w.items()})
        teachers = [{n: torch.from_numpy(v) for n, v in models[k].items()} for k in cohort]
        by_hand(student, generator, teachers, counts, torch.from_numpy(labels).view(3, 20), noise, decay, 1e-3)
        w = {n: t.numpy().copy() for n, t in student.state_dict().items()}
    state = server_state(tmp_path / "run")
    for n, value in c.items() if name == "scaffold" else ():
        np.testing.assert_allclose(state["base"]["control"][n].numpy(), value, atol=1e-4, err_msg=n)
    for n, value in w.items():
        np.testing.assert_allclose(state["base"]["weights"][n].numpy(), value, atol=3e-4, err_msg=n)
    ours, right = state["generator"], generator.state_dict()
    for n in ("from_noise.weight", "from_label.weight", "layers.6.weight", "layers.9.weight"):
        off = (ours[n].double() - right[n]).norm() / (right[n] - start[n]).norm()
        assert off < 0.15, n  # Adam turns float32's rounding into steps; another order of teachers is off by far more


def test_labels_may_be_drawn_independently(tiny: Make, tmp_path: Path) -> None:
    finals = []
    for labels in ("independent", "stratified"):
        run(setting(tiny, {"name": "fedftg", **SMALL, "labels": labels}, rounds=1), tmp_path / labels)
        finals.append(lines(tmp_path / labels)[1]["metrics"]["global/loss"])
    assert finals[0] != finals[1]


@pytest.mark.parametrize("changes", [{"student_lr": 1e38}, {"generator_lr": 1e30}], ids=str)
def test_a_server_that_diverges_says_so_itself(tiny: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="Round 1: fine-tuning on the server has diverged; lower strategy.student_lr"):
        run(setting(tiny, {"name": "fedftg", **SMALL, **changes}), tmp_path / "run")


@pytest.mark.parametrize("base", BASES)
def test_fedftg_fine_tunes_exactly_the_model_of_its_base(tiny: Make, tmp_path: Path, base: str) -> None:
    inner = {"name": base, **BASES[base]}
    run(setting(tiny, inner, rounds=2), tmp_path / "base")
    run(setting(tiny, {"name": "fedftg", **SMALL, "base": inner}, rounds=2), tmp_path / "ftg")
    alone, both = lines(tmp_path / "base"), lines(tmp_path / "ftg")
    for name in ("accuracy", "loss"):
        assert both[1]["metrics"][f"aggregated/{name}"] == alone[1]["metrics"][f"global/{name}"]
    assert both[2]["metrics"]["aggregated/loss"] != alone[2]["metrics"]["global/loss"]
    assert both[1]["metrics"]["global/loss"] != both[1]["metrics"]["aggregated/loss"]
    assert both[1]["cohort"] == alone[1]["cohort"]
    counts = 3 * (10 * 4 + 128 + len("label_counts"))  # the label histograms of three nodes, and nothing else more
    assert both[1]["bytes"]["up"] == {**alone[1]["bytes"]["up"], "statistics": counts}
    assert both[1]["bytes"]["down"] == alone[1]["bytes"]["down"]
    log, histogram = both[1]["log"], Environment(setting(tiny, inner)).data.label_counts()[both[1]["cohort"]]
    np.testing.assert_allclose(log["label_distribution"], histogram.sum(0) / histogram.sum(), rtol=1e-6)
    np.testing.assert_allclose(np.array(log["ensemble_weights"]), (histogram / (histogram.sum(0) + 1e-6)).T, rtol=1e-6)


def test_a_run_of_fedftg_shows_its_images_and_its_ensemble(tiny: Make, tmp_path: Path) -> None:
    strategy = {"name": "fedftg", **SMALL}
    run(setting(tiny, strategy, rounds=5, **{"evaluate": {"every": 2}}), tmp_path / "run")
    figures = tmp_path / "run" / "figures"
    assert [p.name for p in sorted((figures / "generated").iterdir())] == [f"round-{n:06d}.png" for n in (2, 4, 5)]
    with Image.open(figures / "generated" / "round-000004.png") as strip:
        assert strip.size == (80, 8)
        assert json.loads(strip.info["captions"]) == list("0123456789")
        assert len(np.unique(np.asarray(strip))) > 10
    assert (figures / "generated.png").stat().st_size > 5000
    assert (figures / "ensemble.png").stat().st_size > 5000


@pytest.mark.slow
def test_on_mnist_the_first_round_gains_from_fine_tuning(mnist_root: Path, tmp_path: Path) -> None:
    """The specification's experiment: at least 4 points in the mean. Of ten seeds: single gains are -14 to +33 points.

    Its other claim, a gain of the mean over three rounds on every seed, does not hold here: docs/methods/fedftg.md.
    """
    path = HOME / "configs" / "fedftg" / "mnist-8px.toml"
    gains = []
    for seed in range(10):
        config = read_config(path, [f"data.root={mnist_root}", "rounds=1", f"seed={seed}"])
        run(config, tmp_path / str(seed))
        metrics = lines(tmp_path / str(seed))[1]["metrics"]
        gains.append(metrics["global/accuracy"] - metrics["aggregated/accuracy"])
    assert np.mean(gains) >= 0.04


def federation_of(tiny: Make, replies: dict[int, list[int]], **changes: Any) -> Round:
    federation = Round(Environment(tiny(changes)), Mock(), 2, range(6), sorted(replies), [], [])
    answered = [
        Reply(node, Payload(statistics={"label_counts": torch.tensor(counts, dtype=torch.int32)}))
        for node, counts in replies.items()
    ]
    federation.ask = Mock(return_value=answered)  # type: ignore[method-assign]
    return federation


def test_teachers_are_the_nodes_that_have_labelled_images(tiny: Make) -> None:
    federation = federation_of(tiny, {1: [0] * 10, 2: [3, *[0] * 9], 5: [1] * 10})
    nodes, counts = FedFTG()._label_counts(federation, [1, 2, 5])
    assert nodes == [2, 5]
    assert counts.tolist() == [[3, *[0] * 9], [1] * 10]
    spec = federation.ask.call_args.kwargs["expect"].statistics["label_counts"]  # type: ignore[attr-defined]
    assert spec == ArraySpec((10,), torch.int32, counts=True)
    with pytest.raises(RunError, match="Round 2: no node of the cohort has a labelled image"):
        FedFTG()._label_counts(federation_of(tiny, {1: [0] * 10}), [1])


def test_labels_follow_the_cohorts_distribution(tiny: Make) -> None:
    federation, counts = federation_of(tiny, {}, seed=5), [0, 2, 6, 0]
    stratified = FedFTG(iterations=3, batch_size=8)._labels(federation, counts)
    shuffle = numpy_stream(5, 2, "server", "labels").shuffle
    assert stratified.flatten().tolist() == stratified_labels(counts, 24, shuffle).tolist()
    assert stratified.flatten().bincount(minlength=4).tolist() == [0, 6, 18, 0]
    independent = FedFTG(iterations=3, batch_size=8, labels="independent")._labels(federation, counts)
    drawn = numpy_stream(5, 2, "server", "labels").choice(4, 24, p=[0, 0.25, 0.75, 0])
    assert independent.tolist() == drawn.reshape(3, 8).tolist()


@pytest.mark.parametrize(("classes", "shown"), [(4, 4), (20, 20), (21, 20)])
def test_the_shown_images_are_of_twenty_classes_from_the_same_noise_in_each_round(
    tiny: Make, classes: int, shown: int
) -> None:
    federation = federation_of(tiny, {}, seed=5)
    environment = federation.environment
    environment.data = dataclasses.replace(environment.data, classes=tuple(map(str, range(classes))))
    method = FedFTG(noise=3, generator_width=2)
    with default_stream(torch_stream(0, 0, 0, "x")):
        generator = ImageGenerator(3, classes, (1, 8, 8), width=2)
    noise = torch.randn(shown, 3, generator=torch_stream(5, 0, "server", "shown-noise"))
    right = environment.preprocess.pixels(generator.eval()(noise, torch.arange(shown)).detach())
    assert np.array_equal(method._one_a_class(federation, generator.train()), right)


def test_a_base_whose_clients_return_no_models_gives_no_teachers(tiny: Make) -> None:
    method = FedFTG()
    method.weights = {"w": torch.ones(1)}
    heard = [Reply(0, Payload(weights={"other": torch.ones(1)}))]
    federation = Mock(overheard=lambda: contextlib.nullcontext(heard))
    method.inner.run_round = Mock()  # type: ignore[method-assign]
    with pytest.raises(RunError, match="strategy.base.name = 'fedavg': its clients return no models as teachers"):
        method.run_round(federation)
    assert method.aggregated == method.weights
    assert FedFTG().stages() == {}
    assert method.stages() == {"aggregated": (0, method.weights)}


def test_a_step_leaves_parameters_alone_on_which_the_loss_does_not_depend() -> None:
    used, unused = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    _step(torch.optim.SGD([used, unused], lr=0.5, weight_decay=0.1), used.square().sum())
    assert used.item() == pytest.approx(1 - 0.5 * (2 + 0.1))
    assert unused.item() == 1.0
