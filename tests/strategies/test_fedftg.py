"""FedFTG over each base: whole rounds by the published algorithm, and what a run shows."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import HOME, Make, lines, server_state
from helpers.bases import BASES, SMALL
from helpers.hand import Hand, setting
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import Environment, RunError
from fedkd.config import read_config
from fedkd.distillation.generators import ImageGenerator
from fedkd.runs.run import run
from fedkd.strategies.fedftg import stratified_labels
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
