"""FedMD: the consensus, the digest and their order against a second formula; unequal models; the evaluation points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Make, checkpoint_bytes, lines
from helpers.formulas import Given

from fedkd import Environment
from fedkd.config import Config
from fedkd.core.round_loop import run_rounds
from fedkd.core.setup import make_setup
from fedkd.learning.evaluation import evaluate
from fedkd.messages.arrays import tensors_of
from fedkd.runs.checkpoints import latest, load_nodes
from fedkd.runs.run import make_engine, run
from fedkd.strategies.fedmd import digest_loss
from fedkd.streams import torch_stream

PUBLIC = {"data.public": {"size": 60, "labelled": True}}


FEDMD = {"name": "fedmd", "subset_size": 40, "distil_batch_size": 16, "public_epochs": 0, "private_epochs": 0}


def test_the_digest_is_the_mean_absolute_error_over_samples_and_classes() -> None:
    z, target = torch.randn(2, 6, 5, generator=torch_stream(0, 0, 0, "x"), dtype=torch.float64)
    model = Given(z)
    value = digest_loss("mae", 1.0)(model, torch.zeros(6), target)
    right = sum(abs(z[i, c].item() - target[i, c].item()) for i in range(6) for c in range(5)) / 30
    assert value.item() == pytest.approx(right, rel=1e-12)
    value.backward()
    torch.testing.assert_close(model.logits.grad, torch.sign(z - target) / 30)


def test_the_kl_digest_pulls_towards_the_consensus_and_not_away() -> None:
    """A public re-implementation minimises -KLDiv(probabilities, teacher), which pushes the student away."""
    z, target = torch.randn(2, 6, 5, generator=torch_stream(0, 0, 0, "x"))
    model, loss = Given(z.clone()), digest_loss("kl", 2.0)
    first = loss(model, torch.zeros(6), target)
    first.backward()
    with torch.no_grad():
        model.logits -= 0.5 * model.logits.grad
    assert loss(model, torch.zeros(6), target) < first
    p, q = torch.softmax(target / 2, 1), torch.softmax(z / 2, 1)
    assert first.item() == pytest.approx((4 * (p * (p / q).log()).sum(1).mean()).item(), rel=1e-5)


def by_hand(config: Config, node: int) -> dict[str, np.ndarray]:
    """Return a node's model after one round of mlp models, by the paper's steps in float64, SGD and MAE."""
    environment = Environment(config)
    public = environment.data.public
    assert public is not None
    order = torch.randperm(60, generator=torch_stream(config.seed, 1, "server", "transfer-subset"))[:40].numpy()
    x_public = environment.preprocess(public.inputs[order]).double()
    models = [environment.new_model(0).double() for _ in range(environment.data.clients)]
    for i, model in enumerate(models):
        model.load_state_dict(environment.initial_weights(0, i))
    consensus = torch.stack([model(x_public).detach() for model in models]).mean(0)
    model, rate = models[node], config.train.optimizer.lr

    def descend(x: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
        model.zero_grad()
        loss(model(x)).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= rate * parameter.grad

    batches = torch.randperm(40, generator=torch_stream(config.seed, 1, node, "digest/distillation")).split(16)
    for batch in batches:
        descend(x_public[batch], lambda z, batch=batch: (z - consensus[batch]).abs().mean())
    data = environment.data.train_of(node)
    x = environment.preprocess(data.inputs).double()
    batches = torch.randperm(len(x), generator=torch_stream(config.seed, 1, node, "digest/local-training")).split(8)
    for batch in batches:
        labels = torch.from_numpy(data.labels)[batch]
        descend(x[batch], lambda z, labels=labels: -z.log_softmax(1)[torch.arange(len(z)), labels].mean())
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def test_a_round_is_the_papers_communicate_aggregate_digest_revisit(tiny: Make, tmp_path: Path) -> None:
    config = tiny({**PUBLIC, "strategy": FEDMD, "rounds": 1})
    run(config, tmp_path / "run")
    states = dict(load_nodes(latest(tmp_path / "run" / "checkpoints")[1]))
    state = torch.get_rng_state()
    for node in (0, 4):
        right = by_hand(config, node)
        for name, tensor in tensors_of(states[node]["model"]).items():  # type: ignore[arg-type]
            np.testing.assert_allclose(tensor.numpy(), right[name], atol=2e-5)
    torch.set_rng_state(state)  # new models draw from it before they are filled


def test_each_round_digests_another_subset_that_all_nodes_share(tiny: Make, tmp_path: Path) -> None:
    """A public framework keeps digesting the first batches that it ever drew."""
    config = tiny({**PUBLIC, "strategy": {**FEDMD, "subset_size": 10}, "rounds": 3, "evaluate.every": 9})
    setup = make_setup(config)
    seen = []

    class Watching(type(setup.strategy)):  # type: ignore[misc]
        def run_round(self, federation: object) -> None:
            ask = federation.ask  # type: ignore[attr-defined]

            def watch(action: str, payload: object = None, **more: object) -> object:
                if action in ("communicate", "digest"):
                    seen.append((action, payload.indices["subset"].tolist()))  # type: ignore[attr-defined]
                return ask(action, payload, **more)

            federation.ask = watch  # type: ignore[attr-defined]
            super().run_round(federation)

    setup.strategy.__class__ = Watching
    with make_engine(setup) as engine:
        run_rounds(setup, engine)
    subsets = [tuple(sorted(indices)) for action, indices in seen if action == "communicate"]
    assert [a for a, _ in seen] == ["communicate", "digest"] * 3
    assert [indices for action, indices in seen if action == "digest"] == [i for a, i in seen if a == "communicate"]
    assert len(set(subsets)) == 3


@pytest.mark.parametrize("digest", ["mae", "kl"])
def test_unequal_models_learn_from_each_other_on_real_digits(
    tiny: Make, tmp_path: Path, mnist_root: Path, digest: str
) -> None:
    changes = {
        "data.name": "usps", "data.root": str(mnist_root), "data.public": {"size": 200}, "rounds": 3,
        "data.partition": {"scheme": "client_dirichlet", "clients": 6, "alpha": 0.5, "size": 60},
        "model": {"names": ["lenet5", "mlp", "cnn"]},
        "train.optimizer": {"name": "adam"}, "train.batch_size": 32, "evaluate.every": 3,
        "strategy": {**FEDMD, "digest": digest, "subset_size": None, "private_epochs": 25, "distil_epochs": 2},
    }  # fmt: skip
    summary = run(tiny(changes), tmp_path / "run")
    assert summary["failures"] == 0
    start, end = lines(tmp_path / "run")[0]["metrics"], summary["final"]
    assert end["personal_global_test/accuracy"] > start["personal_global_test/accuracy"] + 0.02
    assert end["personal/accuracy"] == end["personal_after_fit/accuracy"]  # the revisit ends the round
    assert end["personal_after_distillation/accuracy"] != end["personal/accuracy"]
    per_round = 6 * (200 * 10 * 4 + 128 + len("knowledge"))
    assert summary["bytes"]["up"] == {"logits": 3 * per_round, "numbers": 3 * 6 * (8 + len("transfer_set"))}


def test_pretraining_uses_public_labels_and_only_if_asked(tiny: Make, tmp_path: Path) -> None:
    strategy = {**FEDMD, "public_epochs": 30, "private_epochs": 0}
    config = tiny({**PUBLIC, "data.public": {"size": 300, "labelled": True}, "strategy": strategy, "rounds": 1})
    run(config, tmp_path / "run")
    accuracy = lines(tmp_path / "run")[0]["metrics"]["personal_global_test/accuracy"]
    assert accuracy > 0.75
    environment = Environment(config)
    model = environment.model(0)
    model.load_state_dict(environment.initial_weights(0, 0))
    assert evaluate(model, environment.data.test, environment.preprocess)["accuracy"] < 0.4


def test_without_public_labels_the_default_pretraining_is_on_private_images_only(
    tiny: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes: dict[str, Any] = {
        "data.public": {"size": 60},
        "rounds": 1,
        "strategy": {"name": "fedmd", "private_epochs": 1},
    }
    run(tiny(changes), tmp_path / "default")
    (line,) = [record.message for record in caplog.records]
    assert line == (
        "fedmd: no pre-training on the public set, because it has no labels; "
        "data.public.labelled = true gives it labels."
    )
    begin, end = lines(tmp_path / "default")
    assert begin["log"] == {"skipped": line}
    assert "skipped" not in end["log"]
    asked = {**changes, "strategy": {**changes["strategy"], "public_epochs": 0}}
    run(tiny(asked), tmp_path / "asked")
    assert len(caplog.records) == 1
    assert [one["metrics"] for one in lines(tmp_path / "asked")] == [begin["metrics"], end["metrics"]]


def test_with_public_labels_the_default_is_ten_epochs_on_them(tiny: Make, tmp_path: Path) -> None:
    public = {"data.public": {"size": 60, "labelled": True}, "rounds": 1}
    for name, more in (("default", {}), ("ten", {"public_epochs": 10})):
        run(tiny({**public, "strategy": {"name": "fedmd", "private_epochs": 1, **more}}), tmp_path / name)
    assert lines(tmp_path / "default") == lines(tmp_path / "ten")
    default, ten = (checkpoint_bytes(tmp_path / name) for name in ("default", "ten"))
    assert default.pop("checkpoint.json") != ten.pop("checkpoint.json")  # it names the options of its run
    assert default == ten
