"""FedX over SimCLR: the published losses, what the teacher and batch norm see, no labels, probes, drift."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import halves_are_the_whole, lines, server_state
from flwr.app import RecordDict
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import Environment, InputError, Payload
from fedkd.config import Config, read_config
from fedkd.core.setup import Setup, make_setup
from fedkd.learning.losses import nt_xent
from fedkd.learning.probes import linear_probe, mean_angle, nearest_neighbours
from fedkd.learning.views import view, views_of
from fedkd.methods.self_supervised import Encoder, SelfSupervised, feature_map, whole_batches
from fedkd.runs.run import run
from fedkd.strategies.byol import prediction_loss
from fedkd.strategies.fedx import FedX, FedXClient, relational_loss
from fedkd.strategies.moco import queue_loss
from fedkd.strategies.protocl import cluster, prototype_loss
from fedkd.strategies.simclr import SimCLRClient
from fedkd.streams import torch_stream

Make = Callable[..., Config]
CONVNET = {"name": "convnet", "channels": [8, 16], "norm": "batch", "pooling": "max"}
SSL: dict[str, Any] = {
    "model": CONVNET,
    "train": {"epochs": 2, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.03, "momentum": 0.9}},
    "data.validation": {"size": 200},
}
SMALL = {"width": 16, "probe_epochs": 10}
ALONE: dict[str, dict[str, Any]] = {
    "simclr": {"name": "simclr", **SMALL},
    "moco": {"name": "moco", "queue": 64, **SMALL},
    "protocl": {"name": "protocl", "queue": 64, "clusters": [3, 5], **SMALL},
    "byol": {"name": "byol", "momentum": 0.9, **SMALL},
    "fedu": {"name": "fedu", "momentum": 0.9, "threshold": 0.2, **SMALL},
}
BASES = ALONE | {f"fedx over {name}": {"name": "fedx", "base": base} for name, base in ALONE.items()}


def published() -> tuple[Tensor, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x1, x2, xa = torch.randn(8, 16), torch.randn(8, 16), torch.randn(8, 16)
    assert x1[0, :3].tolist() == pytest.approx([-1.12583983, -1.15236020, -0.25057858])
    return x1, x2, xa


def grid(count: int, width: int, phase: float) -> Tensor:
    return torch.sin(0.7 * torch.arange(count * width, dtype=torch.float64) + phase).view(count, width).float()


# Section 7 of the specification


def test_nt_xent_has_the_published_values() -> None:
    x1, x2, _ = published()
    for temperature, value in ((0.1, 3.7535135746), (0.5, 2.5931913853), (1.0, 2.6231031418)):
        assert float(nt_xent(x1, x2, temperature)) == pytest.approx(value, abs=1e-5)
        assert float(nt_xent(x2, x1, temperature)) == pytest.approx(value, abs=1e-5)
    assert float(nt_xent(grid(6, 10, 0), grid(6, 10, 0.3), 0.1)) == pytest.approx(0.5602279305, abs=1e-5)
    a, b = x1.clone().requires_grad_(), x2.clone().requires_grad_()
    g1, g2 = torch.autograd.grad(nt_xent(a, b, 0.1), (a, b))
    assert (float(g1.norm()), float(g2.norm())) == pytest.approx((0.9013597965, 1.2754358053), abs=1e-5)
    assert g1[0, :3].tolist() == pytest.approx([0.07121573, -0.01844397, 0.09539239], abs=1e-5)


def test_the_relational_loss_has_the_published_values() -> None:
    x1, x2, xa = published()
    for t, t2, value in (
        (0.1, 0.1, 0.6543921232), (0.5, 0.5, 0.0388188660), (1.0, 1.0, 0.0099979732),
        (0.1, 0.01, 1.0129737854), (0.1, 0.05, 0.7488437295),
    ):  # fmt: skip
        assert float(relational_loss(x1, x2, xa, t, t2)) == pytest.approx(value, abs=1e-5)
    for t, value in ((0.1, 0.2623350168), (0.5, 0.0361572901), (1.0, 0.0098145520)):
        assert float(relational_loss(x1, x2, xa, t, t, "jsd")) == pytest.approx(value, abs=1e-5)
    assert float(relational_loss(x1, x1, xa, 0.1, 0.1)) == pytest.approx(0, abs=1e-6)
    given = (grid(6, 10, 0), grid(6, 10, 0.3), grid(5, 10, 1.1), 0.1, 0.1)
    assert float(relational_loss(*given)) == pytest.approx(0.0869862735, abs=1e-5)
    assert float(relational_loss(*given, "jsd")) == pytest.approx(0.0744188251, abs=1e-5)
    parts = [x.clone().requires_grad_() for x in (x1, x2, xa)]
    g1, g2, ga = torch.autograd.grad(relational_loss(*parts, 0.1, 0.1), parts)
    norms = (float(g1.norm()), float(g2.norm()), float(ga.norm()))
    assert norms == pytest.approx((0.2262863815, 0.2384200394, 0.3075131178), abs=1e-5)
    assert g1[0, :3].tolist() == pytest.approx([0.00667983, 0.01331380, 0.00619681], abs=1e-5)
    assert ga[0, :3].tolist() == pytest.approx([-0.00570178, 0.02046371, -0.02398644], abs=1e-5)


def test_the_losses_are_their_formulas_by_loops() -> None:
    x1, x2, xa = (x.double()[:5, :6] for x in published())

    def cosine(a: Tensor, b: Tensor) -> float:
        return float((a * b).sum() / (a.norm() * b.norm()))

    z, total = [*x1, *x2], 0.0
    for a in range(10):
        others = sum(math.exp(cosine(z[a], z[k]) / 0.3) for k in range(10) if k != a)
        total -= (cosine(z[a], z[(a + 5) % 10]) / 0.3 - math.log(others)) / 10
    assert float(nt_xent(x1, x2, 0.3)) == pytest.approx(total, rel=1e-9)

    def relation(row: Tensor, t: float) -> list[float]:
        powers = [math.exp(cosine(row, anchor) / t) for anchor in xa]
        return [p / sum(powers) for p in powers]

    for divergence in ("code", "jsd"):
        total = 0.0
        for a, b in zip(x1, x2, strict=True):
            m = [(u + v) / 2 for u, v in zip(relation(a, 0.2), relation(b, 0.2), strict=True)]
            for row in (a, b):
                pairs = list(zip(m, relation(row, 0.3), strict=True))
                total += (
                    sum((u * math.log(u / v) if divergence == "code" else v * math.log(v / u)) for u, v in pairs) / 10
                )
        found = relational_loss(x1, x2, xa, 0.3, 0.2, divergence)  # type: ignore[arg-type]
        assert float(found) == pytest.approx(total, rel=1e-9)


# The client


def client_of(config: Config, node: int = 0) -> tuple[Any, Setup]:
    setup = make_setup(config)
    layers = setup.strategy.layers()
    return setup.strategy.client_class()(setup.environment, layers, node, RecordDict(), 1, "fit", False), setup


def test_the_objective_is_its_four_terms_with_one_forward_and_a_frozen_teacher(tiny: Make) -> None:
    weights = {"global_contrastive": 0.5, "local_relational": 2.0, "global_relational": 3.0}
    temperatures = {"temperature": 0.2, "local_target_temperature": 0.3, "global_target_temperature": 0.4}
    config = tiny({**SSL, "strategy": {**BASES["fedx over simclr"], **weights, **temperatures}})
    client, setup = client_of(config)
    base = setup.strategy.layers()[-1]
    assert isinstance(base, SelfSupervised)
    encoder = base.encoder(setup.environment)
    encoder.load_state_dict(setup.strategy.initial_weights(setup.environment))
    client.views, client.make_views = torch_stream(0, 0, 0, "views"), client.method.views(setup.environment)
    client.begin(encoder)
    encoder.train()
    images = client.data.images
    first, second = client.view(images[:8]), client.view(images[:8])
    twin, before = copy.deepcopy(encoder), client.views.get_state()
    value = client.loss(encoder, first, second)

    client.views.set_state(before)
    shuffled = torch.randperm(len(images), generator=client.stream("unrelated"))
    random = client.view(images[shuffled[:8].numpy()])
    teacher = copy.deepcopy(twin).eval()
    p1, p2, pr = twin(torch.cat([first, second, random])).chunk(3)  # batch norm over 3B
    q1, q2 = (twin.predictors["relation"](p) for p in (p1, p2))
    with torch.no_grad():
        g2, gr = teacher(second), teacher(random)  # eval: each image by itself
    right = (
        nt_xent(p1, p2, 0.1)
        + 0.5 * nt_xent(q1, g2, 0.2)
        + 2.0 * relational_loss(p1, p2, pr, 0.2, 0.3)
        + 3.0 * relational_loss(q1, q2, gr, 0.2, 0.4)
    )
    torch.testing.assert_close(value, right, rtol=1e-5, atol=1e-6)
    for (name, a), b in zip(encoder.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)  # running statistics of one pass over 3B images
    value.backward()
    assert all(p.grad is None and not p.requires_grad for p in client.teacher.parameters())
    start = setup.strategy.initial_weights(setup.environment)
    assert all(torch.equal(t, start[n]) for n, t in client.teacher.state_dict().items())


def test_unrelated_batches_have_an_order_of_their_own_and_go_on_over_epochs(tiny: Make) -> None:
    client, _ = client_of(tiny({**SSL, "strategy": BASES["fedx over simclr"]}))
    assert isinstance(client, FedXClient)
    assert isinstance(client, SimCLRClient)
    endless, seen = whole_batches(24, 8, client.stream("unrelated")), []
    for _ in range(7):  # 24 images in batches of 8: more than two passes
        seen.append(next(endless))
    main = next(whole_batches(24, 8, client.stream("shuffle")))
    assert not np.array_equal(main, seen[0])
    assert len(next(whole_batches(5, 8, client.stream("shuffle")))) == 5
    assert not np.array_equal(np.concatenate(seen[:3]), np.concatenate(seen[3:6]))
    assert np.array_equal(np.sort(np.concatenate(seen[:3])), np.arange(24))


def test_views_are_shifted_and_mirrored_images_each_of_its_own(tiny: Make) -> None:
    environment = Environment(tiny({}))
    images = environment.data.train.images[:60]
    plain = environment.preprocess(images)
    first = view(images, environment.preprocess, torch_stream(0, 0, 0, "a"))
    padded = F.pad(plain, (1, 1, 1, 1), mode="reflect")
    shifts = set()
    for image, shown in zip(padded, first, strict=True):
        cuts = {(r, c, flip): image[:, r : r + 8, c : c + 8] for r in range(3) for c in range(3) for flip in (0, 1)}
        found = [key for key, cut in cuts.items() if torch.equal(shown, cut.flip(2) if key[2] else cut)]
        assert found
        shifts.add(found[0])
    assert len(shifts) > 12  # of 18
    again = view(images, environment.preprocess, torch_stream(0, 0, 0, "a"))
    assert torch.equal(first, again)
    assert not torch.equal(first, view(images, environment.preprocess, torch_stream(0, 0, 0, "b")))


@pytest.mark.parametrize("case", BASES)
def test_labels_never_reach_training(tiny: Make, case: str) -> None:
    results = []
    for labelled in (True, False):
        client, setup = client_of(tiny({**SSL, "strategy": BASES[case]}))
        if not labelled:
            client.data.labels[:] = 0
        request = Payload(weights=setup.strategy.initial_weights(setup.environment))
        results.append(client.fit(request).weights)
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


@pytest.mark.parametrize("case", BASES)
def test_features_get_better_and_an_interrupted_run_ends_like_a_whole_one(
    tiny: Make, tmp_path: Path, case: str
) -> None:
    config = tiny({
        **SSL, "strategy": BASES[case], "cohort": 4, "rounds": 6, "checkpoint": {"every": 1}, "data.partition.size": 60,
    })  # fmt: skip
    summary = run(config, tmp_path / "whole")
    assert summary["failures"] == 0
    first, last = (lines(tmp_path / "whole")[n] for n in (0, 6))
    if "moco" not in case and "protocl" not in case:  # whose queue fills with harder keys
        assert last["log"]["train_loss"] < lines(tmp_path / "whole")[1]["log"]["train_loss"]
    assert last["metrics"]["knn/accuracy"] > 0.6
    assert last["metrics"]["probe/accuracy"] > first["metrics"]["probe/accuracy"]
    assert set(last["metrics"]) == {
        "probe/accuracy", "knn/accuracy", "drift/feature_angle", "drift/projection_angle",
    }  # fmt: skip
    assert 0 < last["metrics"]["drift/projection_angle"] < 90
    assert set(last["bytes"]["up"]) == {"weights", "numbers"}
    halves_are_the_whole(config, tmp_path / "whole", tmp_path / "halves")


def test_partial_participation_weighs_by_images_of_the_cohort_alone(tiny: Make, tmp_path: Path) -> None:
    """The published code indexes its weights by position and does not renormalise them."""
    partition = {"scheme": "dirichlet", "clients": 6, "alpha": 0.5, "minimum": 10}
    config = tiny({**SSL, "strategy": BASES["fedx over simclr"], "cohort": 2, "rounds": 1, "data.partition": partition})
    run(config, tmp_path / "run")
    models, sizes = [], []
    for node in lines(tmp_path / "run")[1]["cohort"]:
        client, setup = client_of(config, node)
        client.measured = False
        reply = client.fit(Payload(weights=setup.strategy.initial_weights(setup.environment)))
        models.append(reply.weights)
        sizes.append(len(client.data.labels))
    assert sizes[0] != sizes[1]
    state = server_state(tmp_path / "run")
    for name, tensor in models[0].items():
        if tensor.is_floating_point():
            right = sum(n * m[name].double() for n, m in zip(sizes, models, strict=True)) / sum(sizes)
            torch.testing.assert_close(state["base"]["weights"][name].double(), right, atol=2e-5, rtol=1e-4)


def test_what_fedx_cannot_go_over_is_refused(tiny: Make) -> None:
    def refuse(strategy: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            make_setup(tiny({**SSL, "strategy": strategy})).check()

    refuse({"name": "fedx", "base": "fedavg"}, "strategy.base.name = 'fedavg': fedx goes over a self-supervised base")
    refuse({"name": "fedftg", "base": "simclr"}, "strategy.base.name = 'simclr': fedftg goes over a method")
    refuse({"name": "weight_ema", "base": "fedx"}, "strategy.base.name = 'fedx': weight_ema goes over a method")
    refuse({"name": "protocl", "alpha": 0.5}, "strategy.alpha = 0.5")
    with pytest.raises(InputError, match="train.batch_size = 1"):
        make_setup(tiny({"strategy": {"name": "simclr"}, "train.batch_size": 1})).check()
    with pytest.raises(InputError, match="data.partition: node 0 holds one image"):
        make_setup(tiny({"strategy": {"name": "fedx"}, "data.partition.size": 1})).check()
    refuse({"name": "fedx", "divergence": "kl"}, "strategy.divergence = 'kl'")
    assert FedX().base.name == "simclr"


def test_the_losses_of_moco_and_byol_by_loops() -> None:
    x1, x2, xa = (F.normalize(x.double(), dim=1) for x in published())
    total = 0.0
    for q, k in zip(x1, x2, strict=True):
        logits = [float(q @ k) / 0.2, *(float(q @ old) / 0.2 for old in xa)]
        total -= (logits[0] - math.log(sum(math.exp(z) for z in logits))) / 8
    assert float(queue_loss(x1, x2, xa, 0.2)) == pytest.approx(total, rel=1e-9)
    total = sum(float(((a / a.norm() - b / b.norm()) ** 2).sum()) for a, b in zip(x1, 3 * x2, strict=True)) / 8
    assert float(prediction_loss(x1, 3 * x2)) == pytest.approx(total, rel=1e-9)  # |q - z|^2 = 2 - 2 cos


def test_prototypes_and_their_concentrations_by_loops() -> None:
    features = F.normalize(torch.randn(40, 5, generator=torch_stream(0, 0, 0, "z"), dtype=torch.float64), dim=1)
    found = cluster(features, 4, 0.1, 10.0, 0)
    phi = []
    for c in range(4):
        members = [z for z, of in zip(features, found.of_image.tolist(), strict=True) if of == c]
        centre = sum(members) / len(members)
        torch.testing.assert_close(found.centroids[c], centre / centre.norm())
        phi.append(sum(float((z - centre).norm()) for z in members) / (len(members) * math.log(len(members) + 10)))
    cut = np.clip(phi, np.percentile(phi, 10), np.percentile(phi, 90))
    right = [0.1 * p / cut.mean() for p in cut]
    assert found.concentrations.tolist() == pytest.approx(right, rel=1e-9)
    chosen, total = torch.tensor([3, 17, 39]), 0.0
    for row in chosen.tolist():
        logits = [float(features[row] @ found.centroids[c]) / right[c] for c in range(4)]
        total -= (logits[int(found.of_image[row])] - math.log(sum(math.exp(z) for z in logits))) / 3
    assert float(prototype_loss(features[chosen], found, chosen)) == pytest.approx(total, rel=1e-9)
    again = cluster(features, 4, 0.1, 10.0, 0)
    assert torch.equal(again.of_image, found.of_image)
    everyone = cluster(features[:6], 6, 0.1, 10.0, 0)  # a cluster an image: no spread at all
    assert everyone.concentrations.tolist() == pytest.approx([0.1] * 6)
    twins = torch.cat([features[:20], features[:1]])  # a cluster of two images that are alike has no spread
    assert float(cluster(twins, 15, 0.1, 10.0, 0).concentrations.min()) > 1e-5


def started(tiny: Make, strategy: dict[str, Any]) -> tuple[Any, Encoder, tuple[Tensor, Tensor]]:
    client, setup = client_of(tiny({**SSL, "strategy": strategy}))
    base = setup.strategy.layers()[-1]
    assert isinstance(base, SelfSupervised)
    encoder = base.encoder(setup.environment)
    encoder.load_state_dict(setup.strategy.initial_weights(setup.environment))
    client.views, client.make_views = torch_stream(0, 0, 0, "views"), client.method.views(setup.environment)
    client.begin(encoder)
    encoder.train()
    return client, encoder, (client.view(client.data.images[:8]), client.view(client.data.images[8:16]))


def test_mocos_queue_is_first_in_first_out_and_its_keys_lag(tiny: Make) -> None:
    client, encoder, views = started(tiny, {**ALONE["moco"], "queue": 20, "momentum": 0.75})
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1)
    old, before = client.queue.clone(), [p.clone() for p in client.keys.parameters()]
    client.loss(encoder, *views)
    for key, start, now in zip(client.keys.parameters(), before, encoder.parameters(), strict=True):
        torch.testing.assert_close(key, 0.75 * start + 0.25 * now.detach())
    assert client.queue.shape == (20, 16)
    assert torch.equal(client.queue[16:], old[:4])
    torch.testing.assert_close(client.queue.norm(dim=1), torch.ones(20))


def test_byols_target_lags_and_stays_on_its_node(tiny: Make) -> None:
    client, encoder, _ = started(tiny, ALONE["byol"])
    start = copy.deepcopy(client.target.state_dict())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    client.after_step(encoder)
    for name, parameter in client.target.named_parameters():
        torch.testing.assert_close(parameter, start[name] + 0.1)
    client.end(encoder)
    client.begin(encoder)
    torch.testing.assert_close(client.target.projector[0].weight, start["projector.0.weight"] + 0.1)
    assert not torch.equal(encoder.projector[0].weight, client.target.projector[0].weight)


@pytest.mark.parametrize(("moved", "own"), [(0.05, False), (5.0, True)])
def test_fedu_keeps_its_predictor_where_the_encoder_moved_far(tiny: Make, moved: float, own: bool) -> None:
    client, encoder, _ = started(tiny, ALONE["fedu"])
    with torch.no_grad():
        encoder.predictors["online"][0].weight.fill_(7.0)
        for weight in (p for p in encoder.backbone.parameters() if p.dim() == 4):
            weight[0, 0, 0, 0] += moved  # each convolution by a norm of `moved`; the mean is compared with 0.2
    client.end(encoder)
    fresh = copy.deepcopy(encoder)
    with torch.no_grad():
        fresh.predictors["online"][0].weight.fill_(1.0)
    client.begin(fresh)
    assert float(fresh.predictors["online"][0].weight[0, 0].detach()) == (7.0 if own else 1.0)


# Probes


def test_the_linear_probe_is_the_published_protocol() -> None:
    stream = torch_stream(0, 0, 0, "features")
    features, labels = torch.randn(150, 5, generator=stream), torch.arange(150) % 3
    features[:, 0] += 3 * (labels == 1)
    features[:, 1] += 3 * (labels == 2)
    found = linear_probe(features, labels, features, labels, 3, torch_stream(0, 0, 0, "probe"), epochs=3)
    order = torch_stream(0, 0, 0, "probe")
    with torch.random.fork_rng():
        torch.set_rng_state(order.get_state())
        linear = nn.Linear(5, 3)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in (weight, bias)]
    step = 0
    for _ in range(3):
        for chosen in torch.randperm(150, generator=order).split(64):
            p = torch.softmax(features[chosen] @ weight.T + bias, 1) - F.one_hot(labels[chosen], 3)
            step += 1
            for parameter, g, moment in zip(
                (weight, bias), (p.T @ features[chosen] / len(chosen), p.mean(0)), moments, strict=True
            ):
                g = g + 1e-6 * parameter
                moment[0] = 0.9 * moment[0] + 0.1 * g
                moment[1] = 0.999 * moment[1] + 0.001 * g**2
                rate = 1e-3 / (1 - 0.9**step)
                parameter -= rate * moment[0] / ((moment[1] / (1 - 0.999**step)).sqrt() + 1e-8)
    right = ((features @ weight.T + bias).argmax(1) == labels).double().mean()
    assert found == pytest.approx(float(right), abs=1 / 150)


def test_nearest_neighbours_vote_by_cosine() -> None:
    stream = torch_stream(0, 0, 0, "features")
    bank, labels = torch.randn(30, 4, generator=stream).double(), torch.arange(30) % 3
    test, wanted = torch.randn(20, 4, generator=stream).double(), torch.arange(20) % 3
    right = 0
    for row, label in zip(test, wanted.tolist(), strict=True):
        cosines = sorted(
            ((float(row @ b / (row.norm() * b.norm())), int(y)) for b, y in zip(bank, labels, strict=True)),
            reverse=True,
        )[:7]
        votes = [sum(math.exp(c / 0.1) for c, y in cosines if y == k) for k in range(3)]
        right += votes.index(max(votes)) == label
    assert nearest_neighbours(bank, labels, test, wanted, 3, neighbours=7) == pytest.approx(right / 20)
    assert nearest_neighbours(bank, labels, bank, labels, 3, neighbours=1) == 1.0


def test_the_angle_is_in_degrees() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 2.0]])
    b = torch.tensor([[0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])
    assert mean_angle(a, b) == pytest.approx((90 + 180 + 0) / 3, abs=1e-4)


def test_an_encoder_has_no_classifier_and_the_published_sizes() -> None:
    with torch.random.fork_rng():
        from fedkd.models.zoo import mlp

        encoder = Encoder(mlp((1, 8, 8), 10, hidden=[512]), 256, ("relation",))
    sizes = [sum(p.numel() for p in part.parameters()) for part in (encoder.projector, encoder.predictors)]
    assert sizes == [197_120, 131_584]
    assert not [name for name in encoder.state_dict() if "classifier" in name]
    images = torch.zeros(3, 1, 8, 8)
    assert encoder.features(images).shape == (3, 512)
    assert encoder(images).shape == (3, 256)


def test_a_pooled_start_is_the_same_for_base_and_fedx_and_no_labels_are_read(tiny: Make, tmp_path: Path) -> None:
    found = []
    for case in ("simclr", "fedx over simclr"):
        base = {**ALONE["simclr"], "pooled_steps": 5}
        strategy = base if case == "simclr" else {"name": "fedx", "base": base}
        run(tiny({**SSL, "strategy": strategy, "rounds": 1}), tmp_path / case)
        found.append(lines(tmp_path / case)[0]["metrics"])
    run(tiny({**SSL, "strategy": ALONE["simclr"], "rounds": 1}), tmp_path / "none")
    assert found[0] == found[1]
    assert found[0] != lines(tmp_path / "none")[0]["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_on_mnist_local_projections_stay_nearer_to_the_global_ones(mnist_root: Path, tmp_path: Path, seed: int) -> None:
    """The specification's experiment: a lower angle, and no collapse. It claims no gain of accuracy."""
    path = Path(__file__).resolve().parents[2] / "configs" / "fedx" / "mnist-drift.toml"
    found = {}
    for name, changes in (("fedx", []), ("base", ['strategy={ name = "simclr", width = 32, pooled_steps = 400 }'])):
        run(read_config(path, [f"data.root={mnist_root}", f"seed={seed}", *changes]), tmp_path / name)
        found[name] = [line["metrics"] for line in lines(tmp_path / name)[1:]]
    angles = {name: np.mean([m["drift/projection_angle"] for m in rounds]) for name, rounds in found.items()}
    assert angles["fedx"] <= 0.9 * angles["base"]
    assert abs(found["fedx"][-1]["probe/accuracy"] - found["base"][-1]["probe/accuracy"]) < 0.04


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("aug", "name"), [("simclr", "digits"), ("official", "svhn")])
def test_strong_views_follow_their_stream_and_differ_between_images(
    tiny: Make, aug: str, name: str, channels: int
) -> None:
    environment = Environment(tiny({"data.channels": channels, "data.size": 16}))
    images = np.repeat(environment.data.train.images[:1], 12, axis=0)  # one image, twelve times
    make = views_of(aug, [name], (channels, 16, 16), environment.preprocess)  # type: ignore[arg-type]
    first, again = (make(images, torch_stream(0, 0, 0, "a")) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (12, channels, 16, 16)
    assert torch.isfinite(first).all()
    assert len({tuple(x.flatten().tolist()) for x in first}) == 12
    stream = torch_stream(0, 0, 0, "a")
    make(images, stream)
    assert not torch.equal(make(images, stream), first)  # the stream goes on


def test_semi_supervised_fine_tuning_and_the_map_of_features(tiny: Make, tmp_path: Path) -> None:
    changes = {**SSL, "data.validation": {"size": 400}, "rounds": 1}
    run(tiny({**changes, "strategy": {**ALONE["simclr"], "semi_epochs": 40}}), tmp_path / "run")
    metrics = lines(tmp_path / "run")[1]["metrics"]
    assert metrics["semi_10/accuracy"] > metrics["semi_1/accuracy"] > 0.1
    assert metrics["semi_10/accuracy"] > 0.5
    log = lines(tmp_path / "run")[1]["log"]["feature_map"]
    assert len(log["points"]) == len(log["labels"]) == 355
    assert (tmp_path / "run" / "figures" / "features.png").stat().st_size > 5000
    line = torch.linspace(-1, 1, 30)[:, None] * torch.tensor([[3.0, 4.0, 0.0]])
    points = np.array(feature_map(line, np.zeros(30, int))["points"])
    assert np.abs(points[:, 0]).max() == pytest.approx(5, abs=1e-3)
    assert np.abs(points[:, 1]).max() < 1e-6


def test_the_clip_of_local_training_is_heeded(tiny: Make) -> None:
    moved = []
    for clip in (None, 1e-6):
        config = tiny(
            {**SSL, "strategy": ALONE["simclr"], **({"train": {**SSL["train"], "clip": clip}} if clip else {})}
        )
        client, setup = client_of(config)
        start = setup.strategy.initial_weights(setup.environment)
        after = client.fit(Payload(weights=start)).weights
        moved.append(float((after["projector.0.weight"] - start["projector.0.weight"]).norm()))
    assert moved[1] < 1e-4 < moved[0]
