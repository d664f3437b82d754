"""FedLGD, its baselines on virtual images, SupCon alone and VHL: formulas, schedules, replays, and odd nodes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import checkpoint_bytes, halves_are_the_whole, lines, server_state
from flwr.app import RecordDict
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import Environment, InputError, Payload, RunError
from fedkd.config import Config
from fedkd.core.setup import make_setup
from fedkd.data.federated_data import FederatedData
from fedkd.data.images import Images
from fedkd.distillation.distillers import DM, FGM, IDM
from fedkd.distillation.virtual_images import RealImages, Virtual, class_statistics, normal_images
from fedkd.learning.losses import supervised_contrast
from fedkd.messages.arrays import Tensors, tensors_of
from fedkd.methods.virtual_images import VirtualImagesClient
from fedkd.models.build import build
from fedkd.runs.checkpoints import latest, load_node, load_nodes
from fedkd.runs.run import run
from fedkd.strategies.fedlgd import anchored_loss, average_statistics, kernel_discrepancy
from fedkd.strategies.supcon_only import contrasted_loss
from fedkd.strategies.vhl import VHL, StyleGenerator, _doubled, _Modulated, virtual_homogeneity_loss
from fedkd.streams import default_stream, torch_stream

Make = Callable[..., Config]
NET = {"name": "convnet", "channels": [8, 8]}
QUICK = {"ipc": 2, "initial_steps": 2, "real_batch": 8}
LGD = {**QUICK, "name": "fedlgd", "server_ipc": 1, "local_steps": 2, "global_steps": 2, "gap": 2, "times": 1}


@pytest.fixture(autouse=True)
def _modules_may_draw() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def server(folder: Path) -> dict[str, Tensors]:
    return server_state(folder)


def virtual_of(folder: Path) -> dict[int, Tensors]:
    states = load_nodes(latest(folder / "checkpoints")[1])
    return {node: tensors_of(state["virtual"]) for node, state in states}  # type: ignore[arg-type]


# Losses


def test_the_regularised_loss_is_the_sum_of_its_parts() -> None:
    model = build("convnet", {"channels": [8, 8]}, (1, 8, 8), 3)
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
    model = build("convnet", {"channels": [8, 8]}, (1, 8, 8), 2)
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


# The whole method, replayed


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


RUNS = {
    "fedlgd": {"cohort": 4, "strategy": {**LGD, "show_local": True}},
    "fedavg_virtual over vhl": {
        "strategy": {
            **QUICK,
            "name": "fedavg_virtual",
            "base": {"name": "vhl", "noise_per_class": 2, "generator_width": 8},
        },
        "cohort": 4,
    },
    "fedavg_virtual over scaffold": {"strategy": {**QUICK, "name": "fedavg_virtual", "base": {"name": "scaffold"}}},
}


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS.keys())
def test_interrupted_is_the_whole(tiny: Make, tmp_path: Path, changes: dict) -> None:
    config = tiny({"model": NET, "rounds": 6, **changes})
    run(config, tmp_path / "whole")
    halves_are_the_whole(config, tmp_path / "whole", tmp_path / "halves")
    assert all(line["failures"] == [] for line in lines(tmp_path / "whole"))


def test_pictures_of_global_images_are_kept_and_of_local_ones_where_asked(tiny: Make, tmp_path: Path) -> None:
    for name, shown in [("with", True), ("without", False)]:
        run(tiny({"model": NET, "strategy": {**LGD, "show_local": shown}}), tmp_path / name)
    assert (tmp_path / "with" / "figures" / "global-virtual.png").is_file()
    assert (tmp_path / "with" / "figures" / "local-0.png").is_file()
    assert not (tmp_path / "without" / "figures" / "local-0.png").exists()
    assert "images" not in lines(tmp_path / "without")[1]["bytes"]["up"]


# Odd nodes


@pytest.mark.parametrize("initial", ["normal", "real"])
@pytest.mark.parametrize("strategy", ["fedlgd", "fedavg_virtual"])
def test_empty_classes_and_fewer_images_than_ipc(tiny: Make, tmp_path: Path, strategy: str, initial: str) -> None:
    partition = {"scheme": "client_dirichlet", "clients": 4, "alpha": 0.1, "size": 9}
    method = {**LGD, "name": strategy} if strategy == "fedlgd" else {**QUICK, "name": strategy}
    config = tiny({"model": NET, "data.partition": partition, "strategy": {**method, "initial": initial, "ipc": 5}})
    run(config, tmp_path / "run")
    counts = Environment(config).data.label_counts()
    assert (counts == 0).any()
    assert ((counts > 0) & (counts < 5)).any()
    for node, kept in virtual_of(tmp_path / "run").items():
        held = np.flatnonzero(counts[node])
        assert kept["labels"].tolist() == np.repeat(held, 5).tolist()
        assert kept["images"].isfinite().all()
    assert all(line["failures"] == [] for line in lines(tmp_path / "run"))
    if strategy == "fedlgd":
        everywhere = np.flatnonzero(counts.sum(0))
        assert server(tmp_path / "run")["anchors"]["labels"].tolist() == everywhere.tolist()


def test_a_node_without_images_makes_them(tiny: Make) -> None:
    setup = make_setup(tiny({"model": NET, "strategy": LGD}))
    client = setup.strategy.client_class()(setup.environment, setup.strategy.layers(), 2, RecordDict(), 1, "fit", False)
    assert isinstance(client, VirtualImagesClient)
    assert len(client.data.labels) > 0
    assert client._steps_done() == LGD["initial_steps"]
    assert torch.equal(client.recall("virtual")["images"], torch.from_numpy(client.data.images))


@pytest.mark.parametrize("strategy", ["fedlgd", "fedavg_virtual"])
def test_augmentation_that_would_pass_virtual_images_by_is_refused(tiny: Make, strategy: str) -> None:
    with pytest.raises(InputError, match="data.augment"):
        make_setup(tiny({"strategy": {"name": strategy}, "data.augment": "crop_flip"})).check()


def test_methods_with_images_of_their_own_are_no_base(tiny: Make) -> None:
    with pytest.raises(InputError, match="run it alone"):
        make_setup(tiny({"strategy": {"name": "fedavg_virtual", "base": {"name": "fedlgd"}}})).check()


WRAPPED = {
    "an average over fedlgd": {"name": "weight_ema", "base": LGD},
    "virtual images below fedftg's generator": {
        **QUICK,
        "name": "fedavg_virtual",
        "base": {"name": "fedftg", "iterations": 1, "generator_width": 4},
    },
    "virtual images for moon": {**QUICK, "name": "fedavg_virtual", "base": {"name": "moon"}},
    "virtual images for feddyn": {**QUICK, "name": "fedavg_virtual", "base": {"name": "feddyn"}},
    "virtual images for fedgen": {**QUICK, "name": "fedavg_virtual", "base": {"name": "fedgen"}},
    "virtual images for fednova": {**QUICK, "name": "fedavg_virtual", "base": {"name": "fednova"}},
    "virtual images for flower's FedAdam": {
        **QUICK,
        "name": "fedavg_virtual",
        "base": {"name": "flwr.serverapp.strategy:FedAdam"},
    },
}


@pytest.mark.parametrize("strategy", WRAPPED.values(), ids=WRAPPED.keys())
def test_it_goes_below_and_above_other_methods(
    tiny: Make, tmp_path: Path, strategy: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = FederatedData.train_of
    monkeypatch.setattr(FederatedData, "train_of", lambda self, node: (read.append(node), original(self, node))[1])
    summary = run(tiny({"model": NET, "strategy": strategy, "cohort": 4}), tmp_path / "run")
    assert summary["failures"] == 0
    assert np.isfinite(summary["final"]["global/loss"])
    if strategy["name"] == "fedavg_virtual":  # to begin and to distil; never in a round, whatever the base
        assert sorted(read) == sorted([*range(6)] * 2)


def test_a_picture_that_fails_ends_no_run(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: VirtualImagesClient, request: Payload) -> Payload:
        raise RuntimeError("no picture today")

    monkeypatch.setattr(VirtualImagesClient, "reveal", fail)
    summary = run(tiny({"model": NET, "strategy": {**LGD, "show_local": True}}), tmp_path / "run")
    assert summary["status"] == "completed"
    assert "no picture today" in lines(tmp_path / "run")[1]["failures"][0]["reason"]


@pytest.mark.parametrize("strategy", [LGD, {**QUICK, "name": "fedavg_virtual"}], ids=["fedlgd", "fedavg_virtual"])
def test_a_node_that_misses_the_distillation_makes_up_for_it(
    tiny: Make, tmp_path: Path, strategy: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    distil = VirtualImagesClient.distil

    def fail(self: VirtualImagesClient, request: Payload) -> Payload:
        if self.node == 0:
            raise RuntimeError("out of power")
        return distil(self, request)

    monkeypatch.setattr(VirtualImagesClient, "distil", fail)
    run(tiny({"model": NET, "strategy": strategy}), tmp_path / "run")
    first, *others = lines(tmp_path / "run")
    assert {failure["node"] for failure in first["failures"]} == {0}
    assert all(line["failures"] == [] for line in others)
    path = latest(tmp_path / "run/checkpoints")[1] / "nodes/0.safetensors"
    assert int(load_node(path).array_records["initial-steps"]["done"].numpy()) == 2


def test_a_chunk_that_was_missed_is_made_up_for(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedkd.methods.virtual_images._CHUNK", 1)
    config = tiny({"model": NET, "rounds": 1, "strategy": {**QUICK, "name": "fedavg_virtual"}})
    run(config, tmp_path / "whole")
    distil = VirtualImagesClient.distil

    def fail(self: VirtualImagesClient, request: Payload) -> Payload:
        if self.node == 0 and request.numbers["end"] == 1:
            raise RuntimeError("away for a moment")
        return distil(self, request)

    monkeypatch.setattr(VirtualImagesClient, "distil", fail)
    run(config, tmp_path / "missed")
    assert torch.equal(virtual_of(tmp_path / "missed")[0]["images"], virtual_of(tmp_path / "whole")[0]["images"])


def test_refining_leaves_the_statistics_of_batch_norm_alone(tiny: Make, tmp_path: Path) -> None:
    found = {}
    for steps in (0, 5):
        strategy = {**LGD, "local_steps": steps, "pixel_lr": 1e-12, "global_steps": 0, "gap": 1}
        config = tiny({"model": {**NET, "norm": "batch"}, "rounds": 3, "strategy": strategy})
        run(config, tmp_path / str(steps))
        found[steps] = server(tmp_path / str(steps))["weights"]
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[5][name], tensor, atol=1e-4, rtol=1e-3)


def test_a_last_batch_of_one_image_is_no_trouble(tiny: Make, tmp_path: Path) -> None:
    partition = {"scheme": "client_dirichlet", "clients": 3, "alpha": 9.0, "size": 17}
    for name in ("supcon_only", "vhl"):
        extra = {"noise_per_class": 1, "noise_batch_size": 1, "generator_width": 4} if name == "vhl" else {}
        config = tiny({"model": NET, "data.partition": partition, "strategy": {"name": name, **extra}})
        assert run(config, tmp_path / name)["failures"] == 0
    alone = torch.ones(1, 4, requires_grad=True)
    supervised_contrast(alone, torch.tensor([1])).backward()
    assert alone.grad is not None
    assert not alone.grad.any()


def test_global_images_that_diverge_end_the_run_with_a_reason(tiny: Make, tmp_path: Path) -> None:
    strategy = {**LGD, "initial_steps": 0, "pixel_lr": 1e38, "global_steps": 5, "distance": "squares"}
    with pytest.raises(RunError, match="lower strategy.pixel_lr"):
        run(tiny({"model": NET, "strategy": strategy}), tmp_path / "run")


# The baselines on virtual images


def test_a_base_trains_on_the_kept_images_alone(tiny: Make, tmp_path: Path) -> None:
    strategy = {**QUICK, "name": "fedavg_virtual", "initial": "real", "initial_steps": 0}
    config = tiny({"strategy": strategy, "rounds": 1, "train.optimizer.lr": 0.05})
    run(config, tmp_path / "run")
    environment = Environment(config)
    start, model = environment.initial_weights(), environment.model(0)
    total, images = {n: torch.zeros_like(t) for n, t in start.items()}, 0
    for node, kept in virtual_of(tmp_path / "run").items():
        real = environment.preprocess(environment.data.train_of(node).images).flatten(1)
        assert all(bool((real - image.flatten()).abs().sum(1).min() == 0) for image in kept["images"])
        model.load_state_dict(start)
        order = torch_stream(0, 1, node, "fit/local-training")
        for batch in torch.randperm(len(kept["labels"]), generator=order).split(config.train.batch_size):
            loss = F.cross_entropy(model(kept["images"][batch]), kept["labels"][batch])
            for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
                p.data -= 0.05 * g
        for n, t in model.state_dict().items():
            total[n] += len(kept["labels"]) * t
        images += len(kept["labels"])
    for name, tensor in server(tmp_path / "run")["base"]["weights"].items():
        torch.testing.assert_close(tensor, total[name] / images, atol=1e-5, rtol=1e-4)


def test_the_baselines_start_from_the_images_of_fedlgd(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"model": NET, "rounds": 1, "strategy": LGD}), tmp_path / "lgd")
    run(tiny({"model": NET, "rounds": 1, "strategy": {**QUICK, "name": "fedavg_virtual"}}), tmp_path / "avg")
    for node, kept in virtual_of(tmp_path / "avg").items():
        assert torch.equal(kept["images"], virtual_of(tmp_path / "lgd")[node]["images"])


def test_supcon_without_its_term_is_fedavg(tiny: Make, tmp_path: Path) -> None:
    for name, strategy in [
        ("avg", {"name": "fedavg"}),
        ("none", {"name": "supcon_only", "lambda_con": 0.0}),
        ("some", {"name": "supcon_only"}),
    ]:
        run(tiny({"strategy": strategy, "model": NET}), tmp_path / name)
    assert checkpoint_bytes(tmp_path / "avg") == checkpoint_bytes(tmp_path / "none")
    assert checkpoint_bytes(tmp_path / "avg") != checkpoint_bytes(tmp_path / "some")


# VHL


@pytest.mark.parametrize("labels", ["extra", "shared"])
def test_the_loss_of_vhl_by_its_parts(tiny: Make, labels: str) -> None:
    method = VHL(labels=labels, noise_batch_size=100, alpha=0.7, align=2.0, noise_align=0.3)  # type: ignore[arg-type]
    model = build("convnet", {"channels": [8, 8]}, (1, 8, 8), 3)
    head = method.new_head(model) if labels == "extra" else None
    images, wanted = noise(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    virtual, given = noise(6, 1, 8, 8, seed=1), torch.tensor([0, 0, 1, 1, 2, 2])
    shared = Images(virtual.numpy(), given.numpy())
    preprocess = Environment(tiny()).preprocess
    found = virtual_homogeneity_loss(shared, preprocess, head, torch.Generator(), method)(model, images, wanted)
    f, g = model.features(images), model.features(virtual)
    rows = [nn.Linear.forward(model.classifier, x) for x in (f, g)]
    if head is not None:
        rows = [torch.cat([row, head(x)], 1) for row, x in zip(rows, (f, g), strict=True)]
    expected = F.cross_entropy(rows[0], wanted) + 0.7 * F.cross_entropy(rows[1], given + (3 if head else 0))
    expected = expected + 2 * supervised_contrast(torch.cat([f, g.detach()]), torch.cat([wanted, given]), 0.07)
    expected = expected + 0.3 * supervised_contrast(g, given, 0.07)
    torch.testing.assert_close(found, expected)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("labels", ["extra", "shared"])
def test_vhl_sends_its_noise_once_and_measures_the_plain_model(tiny: Make, tmp_path: Path, labels: str) -> None:
    strategy = {"name": "vhl", "noise_per_class": 3, "generator_width": 8, "labels": labels}
    run(tiny({"strategy": strategy, "model": NET, "rounds": 4, "cohort": 3}), tmp_path / "run")
    seen: set[int] = set()
    sizes = []
    for line in lines(tmp_path / "run")[1:]:
        new = set(line["cohort"]) - seen
        seen |= new
        sizes.append((line["bytes"]["down"].get("images", 0), len(new)))
    assert len({size / count for size, count in sizes if count}) == 1
    assert all(size == 0 for size, count in sizes if count == 0)
    state = server(tmp_path / "run")
    assert set(state["weights"]) == set(Environment(tiny({"model": NET})).initial_weights())
    assert ("head" in state) == (labels == "extra")
    assert state["noise"]["images"].dtype == torch.uint8
    assert state["noise"]["labels"].tolist() == np.repeat(np.arange(10), 3).tolist()
    rows = state["noise"]["images"].float().view(10, 3, -1)
    within, between = rows.std(1).mean(), rows.mean(1).std(0).mean()
    assert within > 1
    assert between > 1
    first, last = (lines(tmp_path / "run")[i]["metrics"]["global/accuracy"] for i in (0, -1))
    assert last > first + 0.05
    assert (tmp_path / "run" / "figures" / "noise.png").is_file()


def test_the_modulated_convolution_by_weights_of_each_image() -> None:
    layer = _Modulated(5, 4, 6, 3)
    x, style = noise(2, 4, 8, 8), noise(2, 5, seed=1)
    scale = 1 + style @ layer.modulation.T / 5**0.5
    for b in range(2):
        weight = layer.weight / 36**0.5 * scale[b][None, :, None, None]
        weight = weight / (weight.pow(2).sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        torch.testing.assert_close(layer(x, style)[b], F.conv2d(x[b : b + 1], weight, padding=1)[0])
        large = F.conv_transpose2d(x[b : b + 1], weight.transpose(0, 1), stride=2)
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        kernel = (4 * taps[:, None] * taps / 64).expand(6, 1, 4, 4)
        expected = F.conv2d(F.pad(large, (1, 1, 1, 1)), kernel, groups=6)
        torch.testing.assert_close(layer(x, style, up=True)[b], expected[0])
    flat = _doubled(torch.full((1, 2, 6, 6), 0.7))
    assert flat.shape == (1, 2, 12, 12)
    torch.testing.assert_close(flat[:, :, 2:-2, 2:-2], torch.full((1, 2, 8, 8), 0.7))


@pytest.mark.parametrize("side", [4, 8, 32])
def test_the_generator_makes_images_of_its_size(side: int) -> None:
    images = StyleGenerator(side, 16, 8)(noise(3, 16)).detach()
    assert images.shape == (3, 3, side, side)
    assert float((images[0] - images[1]).abs().mean()) > 0.01


# A small federation of four domains (the specification's section 8)


def glyph(digit: int, rng: np.random.Generator) -> np.ndarray:
    """Return a digit of PIL's font, 0..1, 16 x 16, turned and moved a little."""
    picture = Image.new("L", (32, 32))
    ImageDraw.Draw(picture).text((16, 16), str(digit), 255, ImageFont.load_default(size=26), anchor="mm")
    turned = picture.rotate(rng.uniform(-20, 20), translate=(int(rng.integers(-4, 5)), int(rng.integers(-4, 5))))
    return np.asarray(turned.resize((16, 16), Image.Resampling.BILINEAR)) / 255


def domain(kind: int, ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the glyph as a domain shows it: white on black, dark on light, over colours, as a difference."""
    mask, rough = ink[..., None], rng.random((16, 16, 3))
    if kind == 0:
        return np.repeat(mask, 3, 2)
    if kind == 1:
        return 0.85 - 0.7 * mask + 0.1 * (rough - 0.5)
    slope = np.linspace(0, 1, 16)[:, None, None] * rng.random(3) + rng.random(3) * 0.3
    return slope * (1 - mask) + rng.random(3) * mask if kind == 2 else np.abs(0.5 * (slope + 0.4 * rough) - mask)


def write_domains(root: Path, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    for kind in range(4):
        arrays = {}
        for part, count in (("train", 500), ("test", 300)):
            labels = np.arange(count) % 10
            images = np.stack([domain(kind, glyph(int(label), rng), rng) for label in labels])
            arrays |= {f"x_{part}": (images.clip(0, 1) * 255).astype(np.uint8), f"y_{part}": labels}
        np.savez(root / f"domain{kind}.npz", **arrays)
    return [f"domain{kind}" for kind in range(4)]


@pytest.mark.slow
def test_fedlgd_beats_training_on_the_initial_virtual_images(tiny: Make, tmp_path: Path) -> None:
    """Equal steps; the specification's claim: more than three points, the mean over three seeds."""
    gains = []
    for seed in range(3):
        root = tmp_path / f"sets{seed}"
        root.mkdir()
        names = write_domains(root, seed)
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
