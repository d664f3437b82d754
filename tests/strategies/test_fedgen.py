"""FedGen: its losses by loops, its teachers, and whole rounds by the algorithm."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from helpers import Make, lines, server_state
from helpers.hand import Hand, setting
from torch import Tensor
from torch.nn import functional as F

from fedkd import Environment, Payload
from fedkd.config import NamedTable
from fedkd.core.round import Round
from fedkd.core.wrapper import make_strategy
from fedkd.distillation.generators import FeatureGenerator
from fedkd.runs.run import run
from fedkd.strategies.fedgen import FedGen, FedGenClient, generative_loss, generator_loss
from fedkd.streams import default_stream, torch_stream


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
    x, y = environment.preprocess(data.inputs), torch.from_numpy(data.labels)
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
                targets = head(frozen(torch.randn(len(y), 3, generator=stream).double(), y)).softmax(1).detach()
                kept = (targets * (targets.log() - hand.model(x).log_softmax(1))).sum(1).mean()
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


def test_the_published_quirks_of_fedgens_generator_loss_are_a_product_of_two_means() -> None:
    logits = torch.randn(3, 4, 5, generator=torch_stream(0, 0, 0, "x"), dtype=torch.float64)
    labels, weights = torch.tensor([0, 4, 2, 2]), torch.rand(4, 3, generator=torch_stream(0, 0, 0, "w")).double()
    outputs, noise = torch.ones(4, 6).double(), torch.rand(4, 2, generator=torch_stream(2, 0, 0, "x")).double()
    right = 1.0  # e^0: equal outputs have no diversity
    for k in range(3):
        losses = -torch.log_softmax(logits[k], 1)[torch.arange(4), labels]  # B
        right += float((losses[None, :] * weights[:, k : k + 1]).mean())  # B x B, as (B, 1) times (B)
    assert float(generator_loss(logits, labels, weights, outputs, noise, 1.0, product=True)) == pytest.approx(right)


def test_fedgens_published_loss_has_uniform_noise_and_uniform_labels(tiny: Make) -> None:
    environment = Environment(tiny())
    seen: list[Tensor] = []

    class Looking(FeatureGenerator):
        def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
            seen.append(noise)
            return super().forward(noise, labels)

    with default_stream(torch_stream(0, 0, 0, "g")):
        generator = Looking(4, 10, 8, 16).eval().requires_grad_(False)
    data = environment.data.train_of(0)
    stream = torch_stream(0, 0, 0, "generated")
    loss = generative_loss(generator, torch.ones(10), stream, alpha=1.0, beta=1.0, size=500, uniform_noise=True)
    loss(environment.model(0), environment.preprocess(data.inputs), torch.from_numpy(data.labels))
    assert len(seen) == 2
    for noise in seen:
        assert float(noise.min()) >= 0
        assert float(noise.max()) <= 1
    assert set(loss.drawn(torch.from_numpy(data.labels))["sampled"].tolist()) == set(range(10))


def test_fedgens_published_counts_start_at_1_and_are_of_the_rounds_batches(tiny: Make, tmp_path: Path) -> None:
    train = {"steps": 7, "batch_size": 8, "drop_last": True, "continue_epoch": True}  # more than its 24 images
    quirks = {"name": "fedgen", "official_quirks": True, "generator_steps": 2, "generated_batch_size": 8}
    config = tiny({"strategy": quirks, "train": train, "cohort": 2, "rounds": 1})
    run(config, tmp_path / "run")
    environment = Environment(config)
    strategy = make_strategy(config.strategy)[0]
    tables = []
    for node in lines(tmp_path / "run")[1]["cohort"]:
        client = FedGenClient(environment, [strategy], node, RecordDict(), 1, "fit", False)
        reply = client.fit(Payload(weights=environment.initial_weights()))
        assert client.positions is not None
        passed = torch.bincount(client.labels[client.positions], minlength=10)
        assert int(passed.sum()) == 56
        assert torch.equal(reply.statistics["label_counts"], (passed + 1).int())
        tables.append(passed + 1)
    qualified = torch.stack(tables).max(0).values > 1
    found = lines(tmp_path / "run")[1]["log"]["label_distribution"]
    assert found == pytest.approx((qualified / qualified.sum()).tolist())


def test_fedgens_published_weights_do_not_fall_below_a_floor() -> None:
    published = cast(FedGen, make_strategy(NamedTable(name="fedgen", official_quirks=True))[0])
    assert published.factors(1) == (10.0, 10.0)
    assert published.factors(2) == pytest.approx((9.8, 9.8))
    assert published.factors(1000) == (1e-4, 1e-4)
    corrected = cast(FedGen, make_strategy(NamedTable(name="fedgen"))[0])
    assert corrected.factors(1000)[0] == pytest.approx(10 * 0.98**999)
