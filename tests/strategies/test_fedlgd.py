"""FedLGD: losses, the schedule, and whole runs by the pseudo-code."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from flwr.app import RecordDict
from helpers import HOME, Make, lines
from helpers.distillation import det
from helpers.virtual_images import LGD, NET, noise, server, virtual_of
from torch import Tensor
from torch.nn import functional as F

from fedkd import ArraySpec, Environment, Payload, RunError
from fedkd.config import Config
from fedkd.core.round import Reply
from fedkd.core.setup import make_setup
from fedkd.data.spec import Form
from fedkd.distillation.distillers import DM, FGM, IDM
from fedkd.distillation.virtual_images import RealImages, Virtual, class_statistics, normal_images
from fedkd.learning.losses import supervised_contrast
from fedkd.messages.arrays import Tensors
from fedkd.models.build import build
from fedkd.runs.run import run
from fedkd.strategies.fedlgd import FedLGD, anchored_loss, average_statistics, kernel_discrepancy
from fedkd.strategies.supcon_only import contrasted_loss
from fedkd.streams import default_stream, torch_stream


def test_the_kernel_discrepancy_by_loops() -> None:
    x, y = det((3, 4), 0.7, 0.1, torch.float64), det((5, 4), 0.3, 0.9, torch.float64)
    rows = [*x, *y]
    band = sum(float((a - b).pow(2).sum()) for a in rows for b in rows) / (64 - 8) / 4

    def kernel(a: Tensor, b: Tensor) -> float:
        return sum(math.exp(-float((a - b).pow(2).sum()) / (band * 2**i)) for i in range(5))

    def mean(one: Tensor, other: Tensor) -> float:
        return sum(kernel(a, b) for a in one for b in other) / (len(one) * len(other))

    expected = mean(x, x) + mean(y, y) - mean(x, y) - mean(y, x)
    assert float(kernel_discrepancy(x, y)) == pytest.approx(expected, rel=1e-12)
    assert float(kernel_discrepancy(x, x)) == pytest.approx(0, abs=1e-12)


@pytest.fixture(autouse=True)
def _modules_may_draw() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


# Losses


def test_the_regularised_loss_is_the_sum_of_its_parts() -> None:
    model = build("convnet", {"channels": [8, 8]}, Form("image", (1, 8, 8)), 3)
    images, labels = noise(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    anchors = Virtual(noise(6, 1, 8, 8, seed=1), torch.tensor([0, 0, 1, 1, 2, 2]))
    f, g = model.features(images), model.features(anchors.images)
    cross = F.cross_entropy(model(images), labels)
    contrast = supervised_contrast(torch.cat([f, g]), torch.cat([labels, anchors.labels]), 0.07)
    found = anchored_loss(anchors, 3.0, 0.07, "supcon")(model, images, labels)
    torch.testing.assert_close(found, cross + 3 * contrast)
    found = anchored_loss(anchors, 3.0, 0.07, "mmd")(model, images, labels)
    torch.testing.assert_close(found, cross + 3 * kernel_discrepancy(f, g))
    found = contrasted_loss(2.0, 0.07)(model, images, labels)
    torch.testing.assert_close(found, cross + 2 * supervised_contrast(f, labels, 0.07))


def test_gradients_of_the_regulariser_go_through_both_sides() -> None:
    model = build("convnet", {"channels": [8, 8]}, Form("image", (1, 8, 8)), 2)
    anchors = Virtual(noise(4, 1, 8, 8).requires_grad_(), torch.tensor([0, 0, 1, 1]))
    anchored_loss(anchors, 1.0, 0.07, "supcon")(model, noise(4, 1, 8, 8, seed=1), torch.tensor([0, 1, 0, 1])).backward()
    assert float(anchors.images.grad.abs().sum()) > 0


def test_statistics_are_averaged_evenly_over_those_that_have_the_class() -> None:
    means = torch.tensor([[[1.0], [2.0], [0.0]], [[3.0], [0.0], [0.0]]])
    held = torch.tensor([[True, True, False], [True, False, False]])
    mean, deviation, exists = average_statistics(means, 2 * means, held)
    assert mean.flatten().tolist() == [2.0, 2.0, 0.0]
    assert deviation.flatten().tolist() == [4.0, 4.0, 0.0]
    assert exists.tolist() == [True, True, False]


def replay(config: Config, variant: str) -> tuple[Tensors, Tensor, dict[int, Tensor]]:
    """Return model, global and local images after a run, by loops that follow the specification's pseudo-code."""
    setup = make_setup(config)
    environment = setup.environment
    data, model, seed = environment.data, environment.model(0), config.seed
    shape, count = data.image_shape, data.clients
    method = setup.strategy
    real = {i: RealImages(data.train_of(i), environment.preprocess) for i in range(count)}
    tables = [class_statistics(real[i].data, environment.preprocess, 10) for i in range(count)]
    local = {
        i: Virtual(*normal_images(*tables[i], method.ipc, shape[1:], torch_stream(seed, 0, i, "begin/first-images")))
        for i in range(count)
    }
    held = torch.stack([t[2] for t in tables])
    mean = [torch.stack([torch.stack([t[k][c] for t in tables if t[2][c]]).mean(0) for c in range(10)]) for k in (0, 1)]
    first = torch_stream(seed, 0, "server", "first-images")
    anchors = Virtual(*normal_images(mean[0], mean[1], held.any(0), method.server_ipc, shape[1:], first))
    for i in range(count):
        for step in range(method.initial_steps):
            with default_stream(torch_stream(seed, 0, i, f"distil/network-{step}")):
                network = environment.new_model(0)
            stream = torch_stream(seed, 0, i, f"distil/step-{step}")
            DM(real_batch=method.real_batch).iterate(local[i], real[i], network, stream)
    theta = environment.initial_weights()
    for t in range(config.rounds):
        chosen = t % method.gap == 0 and t <= method.gap * method.times
        results = []
        for i in range(count):
            model.load_state_dict(theta)
            if chosen and t > 0:
                local[i].more = {}
                for step in range(method.local_steps):
                    stream = torch_stream(seed, t + 1, i, f"fit/refine-{step}")
                    IDM(real_batch=method.real_batch).iterate(local[i], real[i], model, stream)
            images, labels = local[i].images, local[i].labels
            if not (chosen and variant == "figure"):
                images, labels = torch.cat([images, anchors.images]), torch.cat([labels, anchors.labels])
            order = torch_stream(seed, t + 1, i, "fit/local-training")
            for batch in torch.randperm(len(labels), generator=order).split(config.train.batch_size):
                model.zero_grad()
                loss = F.cross_entropy(model(images[batch]), labels[batch])
                if not chosen:
                    features = torch.cat([model.features(images[batch]), model.features(anchors.images)])
                    both = torch.cat([labels[batch], anchors.labels])
                    loss = loss + method.lambda_con * supervised_contrast(features, both)
                loss.backward()
                with torch.no_grad():
                    for p in model.parameters():
                        p -= config.train.optimizer.lr * p.grad
            results.append({n: p.detach().clone() for n, p in model.state_dict().items()})
        after = {n: torch.stack([r[n] for r in results]).mean(0) for n in theta}
        if chosen:
            model.load_state_dict(theta)
            target = [(theta[n] - after[n]) / config.train.optimizer.lr for n, _ in model.named_parameters()]
            anchors.more = {}
            for _ in range(method.global_steps):
                FGM().iterate(anchors, target, model, torch.Generator())
        theta = after
    return theta, anchors.images, {i: v.images for i, v in local.items()}


# The whole method, replayed


@pytest.mark.parametrize("variant", ["figure", "code"])
def test_a_run_is_the_pseudo_code(tiny: Make, tmp_path: Path, variant: str) -> None:
    partition = {"scheme": "iid", "clients": 3}
    changes = {"model": NET, "strategy": {**LGD, "selected": variant}, "rounds": 4, "data.partition": partition}
    config = tiny({**changes, "train.optimizer.lr": 0.02})
    run(config, tmp_path / "run")
    weights, anchors, local = replay(config, variant)
    found = server(tmp_path / "run")
    torch.testing.assert_close(found["anchors"]["images"], anchors, atol=2e-3, rtol=1e-3)
    for node, images in local.items():
        torch.testing.assert_close(virtual_of(tmp_path / "run")[node]["images"], images, atol=2e-3, rtol=1e-3)
    for name, tensor in weights.items():
        torch.testing.assert_close(found["weights"][name], tensor, atol=1e-4, rtol=1e-3)


def test_the_schedule_is_the_papers(tiny: Make, tmp_path: Path) -> None:
    changes = {"model": NET, "rounds": 8, "strategy": {**LGD, "gap": 2, "times": 2, "initial_steps": 0}}
    run(tiny(changes), tmp_path / "run")
    found = lines(tmp_path / "run")
    assert [line["round"] for line in found if "gradient_distance" in line["log"]] == [1, 3, 5]
    sent = {line["round"]: line["bytes"]["down"].get("images", 0) for line in found}
    assert [number for number, size in sent.items() if size] == [1, 2, 4, 6]  # new after 0, 1, 3 and 5
    assert found[0]["bytes"]["up"].keys() == {"statistics"}


def test_local_images_change_in_selected_rounds_alone(tiny: Make, tmp_path: Path) -> None:
    images = {}
    for rounds in (2, 3, 6):
        run(tiny({"model": NET, "rounds": rounds, "strategy": LGD}), tmp_path / str(rounds))
        images[rounds] = virtual_of(tmp_path / str(rounds))[0]["images"]
        assert set(virtual_of(tmp_path / str(rounds))[0]) == {"images", "labels"}
    assert not torch.equal(images[2], images[3])
    assert torch.equal(images[3], images[6])


def test_late_nodes_get_the_newest_images_once(tiny: Make, tmp_path: Path) -> None:
    changes = {"model": NET, "rounds": 6, "cohort": 2, "strategy": {**LGD, "times": 0, "initial_steps": 0}}
    run(tiny(changes), tmp_path / "run")
    seen: set[int] = set()
    one = None
    for line in lines(tmp_path / "run")[2:]:
        new = [node for node in line["cohort"] if node not in seen]
        size = line["bytes"]["down"].get("images", 0)
        one = one or size // len(new)
        assert size == one * len(new)
        seen |= set(line["cohort"])
        assert line["failures"] == []
    assert len(seen) > 2


# Odd nodes


def test_refining_leaves_the_statistics_of_batch_norm_alone(tiny: Make, tmp_path: Path) -> None:
    found = {}
    for steps in (0, 5):
        strategy = {**LGD, "local_steps": steps, "pixel_lr": 1e-12, "global_steps": 0, "gap": 1}
        config = tiny({"model": {**NET, "norm": "batch"}, "rounds": 3, "strategy": strategy})
        run(config, tmp_path / str(steps))
        found[steps] = server(tmp_path / str(steps))["weights"]
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[5][name], tensor, atol=1e-4, rtol=1e-3)


def test_global_images_that_diverge_end_the_run_with_a_reason(tiny: Make, tmp_path: Path) -> None:
    strategy = {**LGD, "initial_steps": 0, "pixel_lr": 1e38, "global_steps": 5, "distance": "squares"}
    with pytest.raises(RunError, match="lower strategy.pixel_lr"):
        run(tiny({"model": NET, "strategy": strategy}), tmp_path / "run")


# A small federation of four domains (the specification's section 8)


@pytest.mark.slow
def test_fedlgd_beats_training_on_the_initial_virtual_images(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal steps; the specification's claim: more than three points, the mean over three seeds."""
    monkeypatch.syspath_prepend(HOME / "benchmarks")
    from glyphs import write_sets

    gains = []
    for seed in range(3):
        root = tmp_path / f"sets{seed}"
        root.mkdir()
        names = write_sets(root, seed)
        images = {"ipc": 5, "initial_steps": 100}
        lgd = {"server_ipc": 2, "gap": 5, "times": 3, "local_steps": 15, "global_steps": 80}
        accuracy = {}
        for name, strategy in [
            ("virtual", {"name": "fedavg_virtual", **images}),
            ("fedlgd", {"name": "fedlgd", **images, **lgd}),
        ]:
            data = {"name": None, "names": names, "root": str(root), "partition": {"scheme": "domains"}}
            config = tiny(
                {
                    "seed": seed,
                    "rounds": 30,
                    **{f"data.{key}": value for key, value in data.items()},
                    "data.node_test": 300,
                    "model": {"name": "convnet", "channels": [16, 16]},
                    "train.steps": 8,
                    "train.batch_size": 32,
                    "strategy": strategy,
                    "evaluate.every": 30,
                }
            )
            accuracy[name] = run(config, tmp_path / f"{name}-{seed}")["final"]["personal/accuracy"]
        gains.append(accuracy["fedlgd"] - accuracy["virtual"])
    assert sum(gains) / 3 > 0.03, gains


# The parts


def test_a_new_class_gets_global_images_in_its_place_and_all_nodes_get_them_again() -> None:
    method = FedLGD()
    method.cached = {1, 2}
    method._add_anchors(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2, 2]))
    method._add_anchors(torch.tensor([4.0, 5.0]), torch.tensor([1, 2]))
    assert method.anchors["images"].tolist() == [1, 4, 2, 3, 5]
    assert method.anchors["labels"].tolist() == [0, 1, 2, 2, 2]
    assert method.cached == set()


def nodes_with(classes: dict[int, list[int]]) -> tuple[Mock, dict[str, ArraySpec]]:
    """Return a federation whose nodes have images of these classes: mean 1, deviation 0.5."""
    replies = []
    for node, those in classes.items():
        held = torch.zeros(4, dtype=torch.bool)
        held[those] = True
        table = held.float()[:, None]
        replies.append(Reply(node, Payload(statistics={"means": table, "deviations": table / 2, "held": held})))
    data = SimpleNamespace(classes=list("abcd"), form=Form("image", (1, 4, 4)))
    federation = Mock(environment=SimpleNamespace(data=data), ask=Mock(return_value=replies))
    federation.stream = lambda name: torch_stream(0, 0, "server", name)
    return federation, federation.ask


def test_global_images_are_made_of_classes_that_have_none_yet() -> None:
    method = FedLGD(server_ipc=2, initial_steps=0)
    method.cached = {0, 1, 5}
    federation, ask = nodes_with({1: [0], 3: [0, 2]})
    federation.track = lambda what, steps: steps
    method.prepare_nodes(federation)
    assert method.anchors["labels"].tolist() == [0, 0, 2, 2]
    first, specs = method.anchors["images"], ask.call_args.kwargs["expect"].statistics
    assert specs == {
        "means": ArraySpec((4, 1)),
        "deviations": ArraySpec((4, 1), between=(0, math.inf)),
        "held": ArraySpec((4,), torch.bool),
    }
    method.cached = {0, 3, 5}
    again, _ = nodes_with({3: [0, 2]})
    again.track = lambda what, steps: steps
    method.prepare_nodes(again)
    assert torch.equal(method.anchors["images"], first)
    assert method.cached == {0, 5}  # node 3 has none now
    late, _ = nodes_with({4: [1, 2]})
    late.track = lambda what, steps: steps
    method.prepare_nodes(late)
    assert method.anchors["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(method.anchors["images"][[0, 1, 4, 5]], first)
    assert method.cached == set()


def test_a_node_without_global_images_says_so(tiny: Make) -> None:
    setup = make_setup(tiny({"model": NET, "strategy": LGD}))
    client = setup.strategy.client_class()(setup.environment, setup.strategy.layers(), 0, RecordDict(), 1, "fit", False)
    weights = setup.environment.initial_weights()
    with pytest.raises(ValueError, match="this node has no global virtual images"):
        client.fit(Payload(weights=weights, numbers={"selected": 1.0, "refine": 0.0}))


@pytest.mark.parametrize(("number", "selected", "refine"), [
    (1, 1, 0), (2, 0, 0), (3, 0, 0), (4, 1, 1), (7, 1, 1), (10, 0, 0), (13, 0, 0),
])  # fmt: skip
def test_rounds_are_selected_by_gap_and_times(
    monkeypatch: pytest.MonkeyPatch, number: int, selected: int, refine: int
) -> None:
    """gap = 3, times = 2: t = 0, 3 and 6 are the rounds 1, 4 and 7."""
    method = FedLGD(gap=3, times=2)
    method.weights, method.cached = {"w": torch.ones(2)}, {4}
    method.anchors = {"images": torch.zeros(1, 1, 2, 2), "labels": torch.tensor([0])}
    merged = Payload(weights={"w": torch.zeros(2)}, numbers={"loss": 0.5, "examples": 3.0})
    asked, distilled = Mock(return_value=(merged, {4, 5})), Mock()
    monkeypatch.setattr("fedkd.strategies.fedlgd.ask_cached", asked)
    monkeypatch.setattr(method, "_distil", distilled)
    monkeypatch.setattr(method, "_show", Mock())
    monkeypatch.setattr(method, "show_images", Mock())
    method.run_round(Mock(number=number))
    _, action, without, complete, expect, cached = asked.call_args.args
    assert (action, cached, method.cached) == ("fit", {4}, {4, 5})
    assert without.numbers == complete.numbers == {"selected": selected, "refine": refine}
    assert (without.images, complete.images.keys(), complete.indices.keys()) == ({}, {"images"}, {"labels"})
    assert expect.numbers["examples"] == (1.0, 1.0)
    assert distilled.call_count == selected
    if selected:
        assert distilled.call_args.args[1]["w"].tolist() == [1, 1]  # the model of before the round


def test_the_server_matches_the_rounds_step_divided_by_its_rate(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Environment(tiny({"model": NET, "train.optimizer.lr": 0.5, "train.lr_decay": 0.5}))
    before = environment.initial_weights()
    method = FedLGD(global_steps=3, pixel_lr=0.7, pixel_momentum=0.2, distance="cosine")
    method.weights = {name: tensor - 1 for name, tensor in before.items()}
    method.anchors, method.cached = {"images": torch.zeros(1, 1, 8, 8), "labels": torch.tensor([0])}, {3}
    seen: list[tuple[FGM, list[Tensor]]] = []

    def iterate(self: FGM, virtual: Virtual, truth: list[Tensor], network: object, stream: object) -> float:
        seen.append((self, truth))
        virtual.images = virtual.images + 1
        return float(len(seen))

    monkeypatch.setattr(FGM, "iterate", iterate)
    federation = Mock(environment=environment, config=environment.config, number=3)
    federation.track = lambda what, steps: steps
    method._distil(federation, before)
    distiller, target = seen[0]
    assert (distiller.lr, distiller.momentum, distiller.distance) == (0.7, 0.2, "cosine")
    assert all(torch.allclose(tensor, torch.tensor(8.0), rtol=1e-4) for tensor in target)  # 1 / (0.5 * 0.5^2)
    assert len(target) == len(list(environment.model(0).parameters()))
    assert method.anchors["images"].unique().tolist() == [3.0]
    assert method.cached == set()
    federation.log.assert_called_once_with("gradient_distance", [1.0, 3.0])
    quiet = FedLGD(global_steps=0)
    quiet.weights, quiet.anchors, quiet.cached = method.weights, method.anchors, {3}
    quiet._distil(federation, before)
    assert quiet.cached == {3}  # nothing has changed
