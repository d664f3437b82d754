"""FedX over other methods: the published losses, what its teacher sees, its batches, drift."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import HOME, Make, lines
from helpers.self_supervised import ALONE, SELF_SUPERVISED, SSL, client_of, grid, published, started
from torch import Tensor

from fedkd import InputError
from fedkd.config import read_config
from fedkd.core.setup import make_setup
from fedkd.learning.losses import nt_xent
from fedkd.methods.self_supervised import whole_batches
from fedkd.runs.run import run
from fedkd.strategies.fedx import FedX, FedXClient, relational_loss
from fedkd.strategies.simclr import SimCLRClient

# Section 7 of the specification


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


def test_the_default_divergence_is_that_of_the_authors_code() -> None:
    x1, x2, xa = published()
    assert relational_loss(x1, x2, xa, 0.1, 0.1) == relational_loss(x1, x2, xa, 0.1, 0.1, "code")


# The client


def test_the_objective_is_its_four_terms_with_one_forward_and_a_frozen_teacher(tiny: Make) -> None:
    weights = {"global_contrastive": 0.5, "local_relational": 2.0, "global_relational": 3.0}
    temperatures = {"temperature": 0.2, "local_target_temperature": 0.3, "global_target_temperature": 0.4}
    strategy = {**SELF_SUPERVISED["fedx over simclr"], **weights, **temperatures}
    client, encoder, batch = started(tiny, strategy)
    images, order = client.data.inputs, torch.randperm(24, generator=client.stream("shuffle"))[:8]
    twin, views = copy.deepcopy(encoder), client.stream("views")
    value = client.loss()(client.networks, batch, client.kept)

    shuffled = torch.randperm(len(images), generator=client.stream("unrelated"))
    chosen = (order, order, shuffled[:8])
    first, second, random = (client.make_views[0](images[c.numpy()], views) for c in chosen)
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
    assert all(p.grad is None and not p.requires_grad for p in client.networks["teacher"].parameters())
    start = client.strategy.initial_weights(client.environment)
    assert all(torch.equal(t, start[n]) for n, t in client.networks["teacher"].state_dict().items())


def test_unrelated_batches_have_an_order_of_their_own_and_go_on_over_epochs(tiny: Make) -> None:
    client, _ = client_of(tiny({**SSL, "strategy": SELF_SUPERVISED["fedx over simclr"]}))
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


def test_what_fedx_cannot_go_over_is_refused(tiny: Make) -> None:
    def refuse(strategy: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            make_setup(tiny({**SSL, "strategy": strategy})).check()

    refuse({"name": "fedx", "base": "fedavg"}, "strategy.base.name = 'fedavg': fedx needs a self-supervised base")
    refuse({"name": "fedftg", "base": "simclr"}, "strategy.base.name = 'simclr': the base of fedftg must be a method")
    refuse(
        {"name": "weight_ema", "base": "fedx"}, "strategy.base.name = 'fedx': the base of weight_ema must be a method"
    )
    refuse({"name": "protocl", "alpha": 0.5}, "strategy.alpha = 0.5")
    with pytest.raises(InputError, match="train.batch_size = 1"):
        make_setup(tiny({"strategy": {"name": "simclr"}, "train.batch_size": 1})).check()
    with pytest.raises(InputError, match="data.partition: node 0 has only one image"):
        make_setup(tiny({"strategy": {"name": "fedx"}, "data.partition.size": 1})).check()
    refuse({"name": "fedx", "divergence": "kl"}, "strategy.divergence = 'kl'")
    assert FedX().base.name == "simclr"


# Probes


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
    path = HOME / "configs" / "fedx" / "mnist-drift.toml"
    found = {}
    for name, changes in (("fedx", []), ("base", ['strategy={ name = "simclr", width = 32, pooled_steps = 400 }'])):
        run(read_config(path, [f"data.root={mnist_root}", f"seed={seed}", *changes]), tmp_path / name)
        found[name] = [line["metrics"] for line in lines(tmp_path / name)[1:]]
    angles = {name: np.mean([m["drift/projection_angle"] for m in rounds]) for name, rounds in found.items()}
    assert angles["fedx"] <= 0.9 * angles["base"]
    assert abs(found["fedx"][-1]["probe/accuracy"] - found["base"][-1]["probe/accuracy"]) < 0.04
