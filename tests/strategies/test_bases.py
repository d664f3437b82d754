"""FedDyn, SCAFFOLD, MOON, FedNova, FedGen, weight EMA and FedFTG over each base: whole rounds by formulas of their own,
state that survives, replies in any order, runs that are interrupted.
"""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import halves_are_the_whole, lines, server_state
from loopback import Loopback
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import Environment, InputError, RunError
from fedkd.config import Config, NamedTable, read_config
from fedkd.core.round import Round
from fedkd.core.round_loop import run_rounds
from fedkd.core.setup import make_setup
from fedkd.core.wrapper import make_strategy
from fedkd.deployment.serve import serve
from fedkd.distillation.generators import FeatureGenerator, ImageGenerator
from fedkd.learning.batches import batches
from fedkd.runs.checkpoints import latest, load_server
from fedkd.runs.run import make_engine, run
from fedkd.strategies.fedftg import stratified_labels
from fedkd.strategies.fedgen import generative_loss, generator_loss
from fedkd.strategies.fednova import normaliser
from fedkd.streams import default_stream, numpy_stream, torch_stream

Make = Callable[..., Config]
Extra = Callable[[Tensor, Tensor], Tensor | float]  # of images and labels, to the loss
FLOWER = "flwr.serverapp.strategy:"
SMALL = {"iterations": 3, "batch_size": 20, "noise": 8, "generator_width": 4, "generator_lr": 0.01, "student_lr": 0.05}
UNEQUAL = {"scheme": "dirichlet", "clients": 6, "alpha": 0.5, "minimum": 10}
BASES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.1},
    "feddyn": {"alpha": 0.05},
    "scaffold": {},
    "moon": {},
    "fednova": {},
    f"{FLOWER}FedAvgM": {"server_momentum": 0.5},
    f"{FLOWER}FedAdam": {"eta": 0.03},
}
RUNS: dict[str, dict[str, Any]] = {
    **{name: {"name": name, **BASES[name]} for name in ("feddyn", "scaffold", "moon", "fednova")},
    "fedgen": {"name": "fedgen", "generator_steps": 10, "alpha": 1.0, "beta": 1.0},
    **{f"{name}, official": {"name": name, "official_quirks": True} for name in ("fedprox", "feddyn", "scaffold")},
    **{f"fedftg over {name}": {"name": "fedftg", **SMALL, "base": {"name": name, **o}} for name, o in BASES.items()},
    "fedftg over scaffold, official": {
        "name": "fedftg", **SMALL, "base": {"name": "scaffold", "official_quirks": True},
    },
    "ema over fedavg": {"name": "weight_ema", "decay": 0.5},
    "ema over fedftg": {"name": "weight_ema", "decay": 0.5, "base": {"name": "fedftg", **SMALL}},
}  # fmt: skip
CONVNET = {"name": "convnet", "channels": [8], "norm": "batch", "pooling": "max"}


@pytest.mark.parametrize("case", RUNS)
def test_a_method_learns_and_goes_on_after_an_interruption_as_if_there_had_been_none(
    tiny: Make, tmp_path: Path, case: str
) -> None:
    changes = {
        "strategy": RUNS[case], "data.partition": {**UNEQUAL, "alpha": 1.0}, "cohort": 4, "rounds": 6,
        "train": {"epochs": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}, "lr_decay": 0.9},
        "checkpoint": {"every": 1}, "model": CONVNET, "data.train_per_class": 60,
    }  # fmt: skip
    summary = run(tiny(changes), tmp_path / "whole")
    assert summary["failures"] == 0
    whole = lines(tmp_path / "whole")
    assert whole[-1]["metrics"]["global/accuracy"] > whole[0]["metrics"]["global/accuracy"] + 0.2
    halves_are_the_whole(tiny(changes), tmp_path / "whole", tmp_path / "halves")


# Whole rounds by second formulas


def gradient(
    model: torch.nn.Module, x: Tensor, y: Tensor, extra: Callable[[Tensor, Tensor], Tensor | float]
) -> dict[str, np.ndarray]:
    model.zero_grad()
    (F.nll_loss(F.log_softmax(model(x.double()), 1), y) + extra(x.double(), y)).backward()
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}


class Hand:
    """Local training in float64 by explicit steps; `move(name, gradient, weights)` is a step's direction."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.environment = Environment(config)
        self.model = self.environment.model(0).double()
        self.data = self.environment.data

    def start(self) -> dict[str, np.ndarray]:
        return {name: tensor.double().numpy() for name, tensor in self.environment.initial_weights().items()}

    def cohort(self, number: int, folder: Path) -> list[int]:
        return lines(folder)[number]["cohort"]

    def train(
        self,
        number: int,
        node: int,
        weights: dict[str, np.ndarray],
        move: Callable[..., np.ndarray],
        extra: Extra = lambda x, y: 0.0,
    ) -> tuple[dict[str, np.ndarray], int]:
        settings = self.config.train
        weights, data = {name: value.copy() for name, value in weights.items()}, self.data.train_of(node)
        order = torch_stream(self.config.seed, number, node, "fit/local-training")
        rate, steps = settings.optimizer.lr * settings.lr_decay ** (number - 1), 0
        while True:
            labels = torch.from_numpy(data.labels)
            for x, y in batches(data, labels, settings.batch_size, self.environment.preprocess, order):
                self.model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
                for name, g in gradient(self.model, x, y, extra).items():
                    weights[name] -= rate * move(name, g, weights[name])
                steps += 1
                if settings.steps == steps:
                    return weights, steps
            if settings.steps is None and steps == settings.epochs * math.ceil(len(data.labels) / settings.batch_size):
                return weights, steps


def setting(tiny: Make, strategy: dict[str, Any], **changes: Any) -> Config:
    train = {"epochs": 2, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.1}, "lr_decay": 0.8}
    return tiny({"strategy": strategy, "data.partition": UNEQUAL, "train": train, "rounds": 3, "cohort": 3,
                 "data.train_per_class": 40, "checkpoint": {"every": 1, "keep": 9}, **changes})  # fmt: skip


def close(folder: Path, right: dict[str, np.ndarray], part: str = "weights") -> None:
    found = server_state(folder)[part]
    for name, value in right.items():
        np.testing.assert_allclose(found[name].numpy(), value, atol=3e-5, err_msg=name)


@pytest.mark.parametrize("official", [False, True])
def test_three_rounds_of_feddyn_are_the_papers_formulas(tiny: Make, tmp_path: Path, official: bool) -> None:
    """By the paper's own variables: lambda_k = grad L_k, h; not by the sums of moves that our code keeps."""
    config = setting(tiny, {"name": "feddyn", "alpha": 0.3, "official_quirks": official})
    run(config, tmp_path / "run")
    hand = Hand(config)
    w, nodes = hand.start(), range(6)
    sizes = [len(hand.data.train_of(k).labels) for k in nodes]
    alphas = [0.3 / (n * 6 / sum(sizes) if official else 1.0) for n in sizes]
    slopes = [{name: np.zeros_like(v) for name, v in w.items()} for _ in nodes]
    moves = {name: np.zeros_like(v) for name, v in w.items()}  # sum over all clients and rounds of theta_k - w
    for number in (1, 2, 3):
        cohort, models = hand.cohort(number, tmp_path / "run"), []
        for k in cohort:
            a, slope = alphas[k], slopes[k]
            theta, _ = hand.train(number, k, w, lambda n, g, v, a=a, s=slope, w=w: g - s[n] + a * (v - w[n]))
            slopes[k] = {n: slope[n] - a * (theta[n] - w[n]) for n in w}
            models.append(theta)
        moves = {n: moves[n] + sum(theta[n] - w[n] for theta in models) for n in w}
        w = {n: sum(theta[n] for theta in models) / len(models) + moves[n] / 6 for n in w}
    close(tmp_path / "run", w)


@pytest.mark.parametrize("official", [False, True])
def test_three_rounds_of_scaffold_are_the_papers_formulas(tiny: Make, tmp_path: Path, official: bool) -> None:
    strategy = {"name": "scaffold", "official_quirks": official, "server_lr": 1.0 if official else 0.7}
    config = setting(tiny, strategy)
    if official:
        config = config.model_copy(update={"train": config.train.model_copy(update={"steps": 7})})
    run(config, tmp_path / "run")
    hand = Hand(config)
    w, nodes = hand.start(), range(6)
    sizes = [len(hand.data.train_of(k).labels) for k in nodes]
    c = {n: np.zeros_like(v) for n, v in w.items()}
    own = [{n: np.zeros_like(v) for n, v in w.items()} for _ in nodes]
    for number in (1, 2, 3):
        cohort, models, delta = hand.cohort(number, tmp_path / "run"), [], {n: 0.0 for n in w}
        decayed = config.train.optimizer.lr * config.train.lr_decay ** (number - 1)
        for k in cohort:
            share = sizes[k] * 6 / sum(sizes) if official else 1.0
            theta, steps = hand.train(number, k, w, lambda n, g, v, k=k, s=share, c=c: g - own[k][n] + c[n] / s)
            assert not official or steps == 7
            rate = config.train.optimizer.lr if official else decayed
            new = {n: own[k][n] - c[n] + (w[n] - theta[n]) / (steps * rate) for n in w}
            delta = {n: delta[n] + share * (new[n] - own[k][n]) for n in w}
            own[k] = new
            models.append(theta)
        c = {n: c[n] + delta[n] / 6 for n in w}
        w = {n: w[n] + strategy["server_lr"] * (sum(t[n] for t in models) / len(models) - w[n]) for n in w}
    close(tmp_path / "run", w)
    close(tmp_path / "run", c, "control")


def test_scaffolds_official_anchor_is_the_aggregated_model(tiny: Make, tmp_path: Path) -> None:
    """Under FedFTG the two differ: the clients start from the fine-tuned model."""
    strategy = {"name": "fedftg", **SMALL, "base": {"name": "scaffold", "official_quirks": True}}
    run(setting(tiny, strategy, rounds=1), tmp_path / "run")
    base = server_state(tmp_path / "run")["base"]
    assert base["aggregated"].keys() == base["control"].keys()
    assert any(not torch.equal(base["aggregated"][n], base["weights"][n]) for n in base["control"])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_three_rounds_of_fednova_are_the_papers_formulas(tiny: Make, tmp_path: Path, momentum: float) -> None:
    config = setting(tiny, {"name": "fednova"})
    optimizer = config.train.optimizer.model_copy(update={"lr": 0.05, "momentum": momentum})
    config = config.model_copy(update={"train": config.train.model_copy(update={"optimizer": optimizer})})
    run(config, tmp_path / "run")
    hand = Hand(config)
    w = hand.start()
    for number in (1, 2, 3):
        cohort = hand.cohort(number, tmp_path / "run")
        sizes = [len(hand.data.train_of(k).labels) for k in cohort]
        total, tau, step = sum(sizes), 0.0, {n: 0.0 for n in w}
        rate = config.train.optimizer.lr * config.train.lr_decay ** (number - 1)
        for k, size in zip(cohort, sizes, strict=True):
            velocity = {n: np.zeros_like(v) for n, v in w.items()}
            gradients: list[dict[str, np.ndarray]] = [{}]

            def move(n: str, g: np.ndarray, v: np.ndarray, velocity: Any = velocity, gradients: Any = gradients) -> Any:
                if n in gradients[-1]:
                    gradients.append({})
                gradients[-1][n] = g
                velocity[n] = momentum * velocity[n] + g
                return velocity[n]

            _, steps = hand.train(number, k, w, move)
            a = [sum(momentum**i for i in range(steps - j)) for j in range(steps)]  # a gradient's weight in the sum
            assert normaliser(steps, momentum) == pytest.approx(sum(a))
            direction = {n: sum(x * g[n] for x, g in zip(a, gradients, strict=True)) / sum(a) for n in w}
            step = {n: step[n] + size / total * direction[n] for n in w}
            tau += size / total * sum(a)
        w = {n: w[n] - tau * rate * step[n] for n in w}
    found = server_state(tmp_path / "run")["weights"]
    for name, value in w.items():
        np.testing.assert_allclose(found[name].numpy(), value, atol=3e-5)


def test_fednova_with_equal_clients_is_fedavg(tiny: Make, tmp_path: Path) -> None:
    for name in ("fednova", "fedavg"):
        run(tiny({"strategy": {"name": name}, "cohort": 3, "model": CONVNET}), tmp_path / name)
    nova, average = (server_state(tmp_path / name)["weights"] for name in ("fednova", "fedavg"))
    for name, tensor in average.items():
        torch.testing.assert_close(nova[name], tensor, atol=1e-5, rtol=1e-5)


def test_moons_first_round_is_fedavg_and_its_contrast_pulls_features_later(tiny: Make, tmp_path: Path) -> None:
    for name, strategy in (("fedavg", {"name": "fedavg"}), ("moon", {"name": "moon", "mu": 5.0})):
        run(tiny({"strategy": strategy, "checkpoint": {"every": 1, "keep": 9}}), tmp_path / name)
    first, second = (
        [server_state(tmp_path / name / "checkpoints" / f"round-{n:06d}")["weights"] for name in ("fedavg", "moon")]
        for n in (1, 2)
    )
    assert all(torch.equal(first[0][n], first[1][n]) for n in first[0])
    assert not all(torch.allclose(second[0][n], second[1][n], atol=1e-4) for n in second[0])


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


@pytest.mark.parametrize("name", ["feddyn", "scaffold", "moon"])
def test_a_training_that_diverges_once_leaves_the_nodes_state_as_it_was(tiny: Make, tmp_path: Path, name: str) -> None:
    plugin = tmp_path / "diverge.py"
    cls, module = {"feddyn": "FedDyn", "scaffold": "Scaffold", "moon": "MOON"}[name], name
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "import torch\n"
        f"from fedkd.strategies.{module} import {cls}, {cls}Client\n"
        f"class Client({cls}Client):\n"
        "    def train_locally(self, *args, **kwargs):\n"
        "        value = super().train_locally(*args, **kwargs)\n"
        "        if self.node == 2 and self.round == 2:\n"
        "            with torch.no_grad():\n"
        "                next(self.model.parameters()).fill_(float('nan'))\n"
        "        return value\n"
        "@dataclass(kw_only=True)\n"
        f"class Diverge({cls}):\n"
        "    client = Client\n"
    )
    run(tiny({"strategy": {"name": f"{plugin}:Diverge"}, "rounds": 3}), tmp_path / "run")
    found = lines(tmp_path / "run")
    assert [[f["node"] for f in line["failures"]] for line in found] == [[], [], [2], []]
    assert "local training has diverged" in found[2]["failures"][0]["reason"]


@pytest.mark.parametrize("changes", [{"student_lr": 1e38}, {"generator_lr": 1e30}], ids=str)
def test_a_server_that_diverges_says_so_itself(tiny: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="Round 1: fine-tuning on the server has diverged; lower strategy.student_lr"):
        run(setting(tiny, {"name": "fedftg", **SMALL, **changes}), tmp_path / "run")


# State and order


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "feddyn", "scaffold", "moon"])
def test_a_round_that_a_node_sits_out_changes_nothing_of_its_state(tiny: Make, tmp_path: Path, name: str) -> None:
    strategy = {"name": "fedftg", **SMALL, "base": {"name": name, **BASES[name]}}
    run(setting(tiny, strategy, rounds=4), tmp_path / "run")
    kept = [
        {p.stem: p.read_bytes() for p in sorted((tmp_path / "run/checkpoints" / f"round-{n:06d}/nodes").glob("*"))}
        for n in range(1, 5)
    ]
    seen: set[int] = set()
    changed = 0
    for number, (before, after) in enumerate(zip([{}, *kept], kept, strict=False), start=1):
        cohort = lines(tmp_path / "run")[number]["cohort"]
        seen |= set(cohort)
        if name in ("feddyn", "scaffold", "moon"):
            assert set(after) == {str(node) for node in seen}
        else:
            assert after == {}
        for node, content in after.items():
            assert (content != before.get(node)) == (int(node) in cohort)
            changed += node in before and content != before[node]
    assert changed or not kept[-1]


@pytest.mark.parametrize("base", BASES)
def test_the_order_of_replies_changes_nothing(tiny: Make, tmp_path: Path, base: str) -> None:
    config = setting(tiny, {"name": "fedftg", **SMALL, "base": {"name": base, **BASES[base]}})
    run(config, tmp_path / "forwards")
    grid = Loopback(config, {100 - node: {"partition-id": node} for node in range(6)})  # its replies come in reverse
    serve(grid, config, tmp_path / "backwards", resume=False)
    first, second = (load_server(latest(tmp_path / name / "checkpoints")[1]) for name in ("forwards", "backwards"))
    assert first.form == second.form
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert [line["metrics"] for line in lines(tmp_path / "forwards")] == [
        line["metrics"] for line in lines(tmp_path / "backwards")
    ]


# Wrappers


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


def test_weight_ema_is_the_mean_of_the_bases_models_and_does_not_touch_them(tiny: Make, tmp_path: Path) -> None:
    changes = {"rounds": 4, "checkpoint": {"every": 1, "keep": 9}, "model": CONVNET, "cohort": 4}
    run(tiny({**changes, "strategy": {"name": "fedavg"}}), tmp_path / "base")
    run(tiny({**changes, "strategy": {"name": "weight_ema", "decay": 0.6}}), tmp_path / "ema")
    models = [server_state(tmp_path / "base" / "checkpoints" / f"round-{n:06d}")["weights"] for n in range(1, 5)]
    weights = np.array([0.6**3, 0.6**2, 0.6, 1.0])
    state = server_state(tmp_path / "ema")
    for name, tensor in models[-1].items():
        assert torch.equal(state["base"]["weights"][name], tensor)
        if tensor.is_floating_point():
            right = sum(w * m[name].double() for w, m in zip(weights, models, strict=True)) / weights.sum()
            torch.testing.assert_close(state["average"][name].double(), right, atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(state["average"][name], tensor)
    for a, b in zip(lines(tmp_path / "base"), lines(tmp_path / "ema"), strict=True):
        assert a["metrics"]["global/accuracy"] == b["metrics"]["latest/accuracy"]
        assert a["bytes"] == b["bytes"]
    assert (
        lines(tmp_path / "ema")[-1]["metrics"]["global/loss"] != lines(tmp_path / "ema")[-1]["metrics"]["latest/loss"]
    )


def test_one_step_counts_as_one_whatever_the_rounding() -> None:
    """A node that told less was refused as impossible, with momentum 0.99 and others."""
    for momentum in (n / 1000 for n in range(1000)):
        assert 1 <= normaliser(1, momentum) <= 1 + 1e-9


def test_weight_ema_over_fedftg_measures_the_average_and_each_stage_below(tiny: Make, tmp_path: Path) -> None:
    changes = {"rounds": 2, "model": CONVNET}
    fedftg = {"name": "fedftg", **SMALL}
    run(tiny({**changes, "strategy": fedftg}), tmp_path / "base")
    run(tiny({**changes, "strategy": {"name": "weight_ema", "base": fedftg}}), tmp_path / "ema")
    base, ema = (lines(tmp_path / name)[-1]["metrics"] for name in ("base", "ema"))
    assert ema["latest/loss"] == base["global/loss"]
    assert ema["aggregated/loss"] == base["aggregated/loss"]
    assert ema["global/loss"] not in (base["global/loss"], base["aggregated/loss"])


def test_wrong_bases_and_options_are_refused_by_name(tiny: Make) -> None:
    def refuse(strategy: dict[str, Any], message: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=message):
            make_setup(tiny({"strategy": strategy, **changes})).check()

    refuse(
        {"name": "fedftg", "base": {"name": "scafold"}},
        r"strategy.base.name: unknown 'scafold'; did you mean 'scaffold'",
    )
    refuse({"name": "fedftg", "base": {"name": "fedprox", "nu": 1.0}}, "strategy.base.nu: unknown key 'nu'")
    for name in ("knfu", "central", "local", "fedproto", "dsfl", "feddf"):
        changes = {"data.public": {"size": 60}}
        refuse(
            {"name": "fedftg", "base": name}, rf"strategy.base.name = '{name}': fedftg goes over a method", **changes
        )
    refuse({"name": "fedftg", "batch_size": 1}, "strategy.batch_size = 1")
    refuse({"name": "weight_ema", "decay": 1.0}, "strategy.decay = 1.0")
    refuse({"name": "fedftg", "base": {"name": "fedftg"}}, "strategy.base.name: one FedFTG stands below another")
    refuse({"name": "weight_ema", "base": {"name": "weight_ema"}}, "one WeightEMA stands below another")
    refuse({"name": "fedftg", "base": {"name": "weight_ema"}}, "turn the two round")
    deep = {"name": "weight_ema", "base": {"name": "fedftg", "base": {"name": "fedporx"}}}
    refuse(deep, "strategy.base.base.name: unknown 'fedporx'; did you mean 'fedprox'")
    refuse(
        {"name": "fedftg", "base": {"name": f"{FLOWER}FedAvg", "fraction_train": 0.5}}, "strategy.base.fraction_train"
    )
    adamw = {"train.optimizer": {"name": "adamw"}}
    for name in ("fedprox", "feddyn"):
        refuse({"name": name, "official_quirks": True}, "strategy.official_quirks", **adamw)
    adam = {"train.optimizer": {"name": "adam"}}
    refuse({"name": "scaffold"}, "train.optimizer: scaffold", **adam)
    refuse({"name": "fedftg", "base": "scaffold"}, "train.optimizer: scaffold", **adam)
    refuse({"name": "fednova"}, "train.optimizer: fednova", **adam)
    config = make_setup(tiny({"strategy": {"name": "fedftg", "base": "fedprox"}})).environment.config
    assert config.strategy.options["base"] == {"name": "fedprox", "mu": 0.01, "official_quirks": False}


def test_a_base_whose_clients_fail_keeps_the_others_as_teachers(tiny: Make, tmp_path: Path) -> None:
    plugin = tmp_path / "shy.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from fedkd import GlobalModelClient\n"
        "from fedkd.strategies.fedavg import FedAvg\n"
        "class Client(GlobalModelClient):\n"
        "    def fit(self, request):\n"
        "        if self.node == 2:\n"
        "            raise ValueError('no')\n"
        "        return super().fit(request)\n"
        "@dataclass(kw_only=True)\n"
        "class Shy(FedAvg):\n"
        "    client = Client\n"
    )
    run(tiny({"strategy": {"name": "fedftg", **SMALL, "base": f"{plugin}:Shy"}, "rounds": 1}), tmp_path / "run")
    line = lines(tmp_path / "run")[1]
    assert line["log"]["teachers"] == [0, 1, 3, 4, 5]
    assert [f["node"] for f in line["failures"]] == [2]


# FedGen


def test_fedgens_losses_by_loops() -> None:
    logits = torch.randn(3, 4, 5, generator=torch_stream(0, 0, 0, "x"), dtype=torch.float64)
    labels, weights = torch.tensor([0, 4, 2, 2]), torch.rand(4, 3, generator=torch_stream(0, 0, 0, "w")).double()
    outputs = torch.randn(4, 6, generator=torch_stream(1, 0, 0, "x"), dtype=torch.float64)
    noise = torch.randn(4, 2, generator=torch_stream(2, 0, 0, "x"), dtype=torch.float64)
    right = 0.0
    for k in range(3):
        for b in range(4):
            powers = [math.exp(z) for z in logits[k, b].tolist()]
            right -= weights[b, k].item() * math.log(powers[int(labels[b])] / sum(powers)) / 4
    apart = [
        np.abs(outputs[i] - outputs[j]).mean().item() * ((noise[i] - noise[j]) ** 2).mean().item()
        for i in range(4)
        for j in range(4)
    ]
    right += 0.7 * math.exp(-sum(apart) / 16)
    assert float(generator_loss(logits, labels, weights, outputs, noise, 0.7)) == pytest.approx(right, rel=1e-9)


def test_fedgens_client_loss_is_its_three_terms(tiny: Make) -> None:
    environment = Environment(tiny())
    model = environment.model(0)
    data = environment.data.train_of(0)
    x, y = environment.preprocess(data.images), torch.from_numpy(data.labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = FeatureGenerator(4, 10, 8, 16).eval().requires_grad_(False)
    distribution = torch.tensor([0.5, 0.5] + [0.0] * 8)

    def value(alpha: float, beta: float) -> float:
        stream = torch_stream(0, 0, 0, "generated")
        loss = generative_loss(generator, distribution, stream, alpha=alpha, beta=beta, size=7)
        return float(loss(model, x, y).detach())

    stream = torch_stream(0, 0, 0, "generated")
    drawn = torch.multinomial(distribution, 7, replacement=True, generator=stream)
    assert set(drawn.tolist()) <= {0, 1}
    with torch.no_grad():
        head, logits = model.classifier, model(x)
        taught = F.nll_loss(torch.log_softmax(head(generator(torch.randn(7, 4, generator=stream), drawn)), 1), drawn)
        target = torch.softmax(head(generator(torch.randn(len(y), 4, generator=stream), y)), 1)
        kept = (target * (target.log() - torch.log_softmax(logits, 1))).sum(1).mean()
        plain = F.cross_entropy(logits, y)
    assert value(0, 0) == pytest.approx(float(plain), rel=1e-6)
    assert value(2, 0) == pytest.approx(float(plain + 2 * taught), rel=1e-5)
    assert value(0, 3) == pytest.approx(float(plain + 3 * kept), rel=1e-5)


def test_fedgen_sends_its_generator_from_round_2_and_it_learns(tiny: Make, tmp_path: Path) -> None:
    for steps in (1, 200):
        strategy = {"name": "fedgen", "generator_steps": steps, "generator_lr": 0.01}
        run(tiny({"strategy": strategy}), tmp_path / str(steps))
    found = lines(tmp_path / "200")
    assert set(found[1]["bytes"]["down"]) == {"weights"}
    assert set(found[2]["bytes"]["down"]) == {"weights", "generator", "statistics"}
    assert set(found[1]["bytes"]["up"]) == {"weights", "statistics", "numbers"}
    assert found[1]["log"]["generator_loss"] < lines(tmp_path / "1")[1]["log"]["generator_loss"] / 2


def test_fedgens_teachers_are_the_clients_own_heads(tiny: Make) -> None:
    """A head that is right alone about its own class teaches; the mean head would not."""
    method = make_strategy(NamedTable(name="fedgen", generator_steps=300, generator_lr=0.02, noise=2, hidden=16))[0]
    environment = Environment(tiny({"strategy": {"name": "fedgen"}, "model": {"name": "mlp", "hidden": [2]}}))
    federation = Round(environment, cast(Any, None), 1, [0, 1], [0, 1], [], [])
    with torch.random.fork_rng():
        method.prepare(federation)
    heads = []
    for node in (0, 1):  # node 0 sees class 0 where feature 0 is large, node 1 sees class 1 there
        weight = torch.zeros(10, 2)
        weight[node, 0], weight[1 - node, 0] = 5.0, -5.0
        heads.append({"weight": weight, "bias": torch.zeros(10)})
    counts = torch.zeros(2, 10, dtype=torch.float64)
    counts[0, 0] = counts[1, 1] = 8
    method.distribution = (counts.sum(0) / 16).float()
    with torch.random.fork_rng():
        assert method._train_generator(federation, heads, counts) < 2.5
        generator = method.new_generator(environment)
    generator.load_state_dict(method.generator)
    features = generator.eval()(torch.zeros(2, 2), torch.tensor([0, 1]))
    assert (features[:, 0] > 1).all()  # each label where its own teacher sees it; their mean is 0 everywhere


def test_two_rounds_of_fedgen_follow_the_algorithm(tiny: Make, tmp_path: Path) -> None:
    """Adam lasts over rounds, factors decay, the generated batch counts by its size."""
    strategy = {"name": "fedgen", "generator_steps": 7, "generated_batch_size": 12, "alpha": 3.0, "beta": 2.0,
                "noise": 3, "hidden": 8, "decay": 0.5, "generator_lr": 0.01,
                "generator_lr_decay": 0.25}  # fmt: skip
    config = setting(tiny, strategy, cohort=2)
    run(config, tmp_path / "run")
    hand = Hand(config)
    with default_stream(torch_stream(0, 0, "server", "initial-generator")):
        generator = FeatureGenerator(3, 10, 8, 16)
    adam = torch.optim.Adam(generator.parameters(), lr=0.01, weight_decay=1e-2)
    w, share = hand.start(), None
    for number in (1, 2, 3):
        cohort, models, factor = hand.cohort(number, tmp_path / "run"), [], 0.5 ** (number - 1)
        sizes = [len(hand.data.train_of(k).labels) for k in cohort]
        for k in cohort:
            stream, frozen = torch_stream(0, number, k, "fit/generated"), copy.deepcopy(generator).double().eval()

            def extra(
                x: Tensor, y: Tensor, stream: Any = stream, frozen: Any = frozen, s: Any = share, f: float = factor
            ) -> Any:
                if s is None:
                    return 0.0
                drawn, head = torch.multinomial(s, 12, replacement=True, generator=stream), hand.model.classifier
                taught = F.cross_entropy(head(frozen(torch.randn(12, 3, generator=stream).double(), drawn)), drawn)
                told = head(frozen(torch.randn(len(y), 3, generator=stream).double(), y)).softmax(1).detach()
                kept = (told * (told.log() - hand.model(x).log_softmax(1))).sum(1).mean()
                return 3.0 * f * 12 / 32 * taught + 2.0 * f * kept

            models.append(hand.train(number, k, w, lambda n, g, v: g, extra)[0])
        w = {n: sum(a * m[n] for a, m in zip(sizes, models, strict=True)) / sum(sizes) for n in w}
        counts = torch.from_numpy(hand.data.label_counts()[cohort])
        share = (counts.double().sum(0) / counts.sum()).float()
        alpha = (counts.double() / counts.sum(0).clamp(min=1)).float()
        stream = torch_stream(0, number, "server", "generator")
        generator.train()
        adam.param_groups[0]["lr"] = 0.01 * 0.25 ** (number - 1)
        for _ in range(7):
            y = torch.multinomial(share, 12, replacement=True, generator=stream)
            z = torch.randn(12, 3, generator=stream)
            g = generator(z, y)
            loss = torch.exp(-((g[:, None] - g[None]).abs().mean(2) * (z[:, None] - z[None]).pow(2).mean(2)).mean())
            for m, a in zip(models, alpha, strict=True):
                logits = F.linear(
                    g, *(torch.from_numpy(m[f"classifier.{part}"]).float() for part in ("weight", "bias"))
                )
                loss = loss + (a[y] * F.cross_entropy(logits, y, reduction="none")).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    state = server_state(tmp_path / "run")
    for n, value in w.items():
        np.testing.assert_allclose(state["weights"][n].numpy(), value, atol=1e-4, err_msg=n)
    for n in ("layers.0.weight", "layers.3.weight", "layers.3.bias"):
        np.testing.assert_allclose(
            state["generator"][n].numpy(), generator.state_dict()[n].numpy(), atol=1e-3, err_msg=n
        )


def test_long_work_on_the_server_tells_its_progress(tiny: Make) -> None:
    told: list[tuple[int, str, int, int]] = []
    setup = make_setup(tiny({"strategy": {"name": "fedftg", **SMALL}}))
    with make_engine(setup) as engine:
        run_rounds(setup, engine, on_step=lambda *step: told.append(step))
    assert told == [(n, "server distillation", done, 3) for n in (1, 2) for done in range(4)]


@pytest.mark.slow
def test_on_mnist_the_first_round_gains_from_fine_tuning(mnist_root: Path, tmp_path: Path) -> None:
    """The specification's experiment: at least 4 points in the mean. Of ten seeds: single gains are -14 to +33 points.

    Its other claim, a gain of the mean over three rounds on every seed, does not hold here: docs/methods/fedftg.md.
    """
    path = Path(__file__).resolve().parents[2] / "configs" / "fedftg" / "mnist-8px.toml"
    gains = []
    for seed in range(10):
        config = read_config(path, [f"data.root={mnist_root}", "rounds=1", f"seed={seed}"])
        run(config, tmp_path / str(seed))
        metrics = lines(tmp_path / str(seed))[1]["metrics"]
        gains.append(metrics["global/accuracy"] - metrics["aggregated/accuracy"])
    assert np.mean(gains) >= 0.04
