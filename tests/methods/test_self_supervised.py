"""What self-supervised methods share: encoders, no labels, weights of the cohort, fine-tuning, clips."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import Make, has_defaults, lines, server_state
from helpers.self_supervised import ALONE, SELF_SUPERVISED, SSL, client_of

from fedkd import Batch, InputError, Payload, nt_xent
from fedkd.core.round import Round
from fedkd.core.setup import make_setup
from fedkd.learning.batches import shuffled
from fedkd.learning.probes import mean_angle
from fedkd.learning.views import view
from fedkd.methods.self_supervised import Encoder, SelfSupervised, feature_map, move_towards, whole_batches
from fedkd.runs.run import run
from fedkd.strategies.simclr import SimCLR
from fedkd.streams import torch_stream

# The client


@pytest.mark.parametrize("case", SELF_SUPERVISED)
def test_labels_never_reach_training(tiny: Make, case: str) -> None:
    results = []
    for labelled in (True, False):
        client, setup = client_of(tiny({**SSL, "strategy": SELF_SUPERVISED[case]}))
        if not labelled:
            client.data.labels[:] = 0
        request = Payload(weights=setup.strategy.initial_weights(setup.environment))
        results.append(client.fit(request).weights)
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


def test_partial_participation_weighs_by_images_of_the_cohort_alone(tiny: Make, tmp_path: Path) -> None:
    """The published code indexes its weights by position and does not renormalise them."""
    partition = {"scheme": "dirichlet", "clients": 6, "alpha": 0.5, "minimum": 10}
    config = tiny(
        {**SSL, "strategy": SELF_SUPERVISED["fedx over simclr"], "cohort": 2, "rounds": 1, "data.partition": partition}
    )
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


# Probes


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


def test_the_pooled_start_is_simclr_at_temperature_0_1_with_the_first_rounds_rate(tiny: Make) -> None:
    train = {**SSL["train"], "lr_decay": 0.5, "clip": 0.3}
    setup = make_setup(tiny({**SSL, "train": train, "strategy": {**ALONE["simclr"], "pooled_steps": 2}}))
    method, environment = setup.strategy, setup.environment
    assert isinstance(method, SelfSupervised)
    method.weights = method.initial_weights(environment)
    encoder = copy.deepcopy(method.encoder(environment)).train()
    encoder.load_state_dict(method.weights)
    method.prepare(Round(environment, Mock(), 0, range(6), list(range(6)), [], []))
    images = environment.data.train.take(environment.data.pooled()).inputs
    views, order = (torch_stream(0, 0, "server", name) for name in ("pooled-views", "pooled-shuffle"))
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.03, momentum=0.9)
    for chosen in torch.randperm(len(images), generator=order)[:16].numpy().reshape(2, 8):
        both = torch.cat([view(images[chosen], environment.preprocess, views) for _ in range(2)])
        optimizer.zero_grad()
        nt_xent(*encoder(both).chunk(2), 0.1).backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 0.3)
        optimizer.step()
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(method.weights[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_two_images_are_enough_for_a_batch_and_for_a_node(tiny: Make) -> None:
    def check(batch: int, images: int) -> None:
        changes = {**SSL, "train": {**SSL["train"], "batch_size": batch}, "data.partition.size": images}
        make_setup(tiny({**changes, "strategy": ALONE["simclr"]})).check()

    check(2, 2)
    for batch, images, message in ((1, 2, "train.batch_size = 1"), (2, 1, "has only one image")):
        with pytest.raises(InputError, match=message):
            check(batch, images)


def test_the_defaults_are_those_of_the_published_code() -> None:
    """Sections 3.3 and 4 of FedX's specification."""
    has_defaults(SimCLR(), {"width": 256, "aug": "auto", "probe_epochs": 100, "pooled_steps": 0, "semi_epochs": 0})


def test_fine_tuning_follows_the_published_protocol(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 4 of FedX's specification: SGD with momentum 0.9, 0.001 for the encoder, 0.3 for the classifier, 128."""
    setup = make_setup(tiny({**SSL, "strategy": {**ALONE["simclr"], "semi_epochs": 3}}))
    method, environment = setup.strategy, setup.environment
    assert isinstance(method, SelfSupervised)
    method.weights = method.initial_weights(environment)
    federation = Round(environment, Mock(), 1, [0], [0], [], [])
    sgd, batches = Mock(side_effect=torch.optim.SGD), Mock(side_effect=shuffled)
    monkeypatch.setattr(torch.optim, "SGD", sgd)
    monkeypatch.setattr("fedkd.methods.self_supervised.shuffled", batches)
    known = environment.data.train
    counts = np.bincount(known.labels)
    for percent in (1, 10):
        batches.reset_mock()
        assert method._fine_tune(federation, known, percent) is not None
        assert [call.args[:2] for call in batches.call_args_list] == [
            (int((counts * percent // 100).clip(1).sum()), 128)
        ] * 3
    rates = [group["lr"] for group in sgd.call_args.args[0]]  # torch fills in the common rate
    assert (rates, sgd.call_args.kwargs) == ([0.001, 0.3], {"lr": 0.001, "momentum": 0.9})
    assert method._fine_tune(federation, known.take(np.arange(1)), 10) is None


@pytest.mark.parametrize(("count", "shown"), [(2, 2), (499, 499), (500, 500), (501, 500), (900, 500)])
def test_a_map_of_features_has_500_images_at_most(count: int, shown: int) -> None:
    found = feature_map(torch.arange(3.0 * count).view(count, 3).sin(), np.arange(count))
    assert len(found["labels"]) == len(found["points"]) == shown
    assert (found["labels"][0], found["labels"][-1]) == (0, count - 1)


@pytest.mark.parametrize(("count", "size", "sizes"), [(10, 4, [4, 4]), (8, 4, [4, 4]), (3, 4, [3]), (4, 4, [4])])
def test_whole_batches_leave_out_what_does_not_fill_one(count: int, size: int, sizes: list[int]) -> None:
    endless = whole_batches(count, size, torch_stream(0, 0, 0, "x"))
    for _ in range(3):
        seen = [next(endless) for _ in sizes]
        assert [len(batch) for batch in seen] == sizes
        assert len(set(np.concatenate(seen).tolist())) == sum(sizes)


def test_a_target_network_moves_by_its_momentum() -> None:
    with torch.random.fork_rng():
        target, source = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    wanted = [
        0.75 * a.detach() + 0.25 * b.detach() for a, b in zip(target.parameters(), source.parameters(), strict=True)
    ]
    move_towards(target, source, 0.75)
    torch.testing.assert_close([p.detach() for p in target.parameters()], wanted)


@pytest.mark.parametrize("count", [1, 2])
def test_a_map_of_features_needs_two_test_images(tiny: Make, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    setup = make_setup(tiny({**SSL, "strategy": {**ALONE["simclr"], "probe_epochs": 1}}))
    method, data = setup.strategy, setup.environment.data
    method.weights = method.initial_weights(setup.environment)
    monkeypatch.setattr(setup.environment, "data", dataclasses.replace(data, test=data.test.take(np.arange(count))))
    federation = Round(setup.environment, Mock(), 1, [0], [0], [], [])
    assert method.measure(federation).keys() == {"probe/accuracy", "knn/accuracy"}
    assert ("feature_map" in federation.record.log) == (count == 2)


def test_real_sites_need_images_of_the_servers_own(tiny: Make) -> None:
    def check(validation: object, labels: int, pooled: int = 0) -> None:
        data = SimpleNamespace(validation=validation, test=SimpleNamespace(labels=[0] * labels))
        SimCLR(pooled_steps=pooled)._check_sites("simclr", data)  # type: ignore[arg-type]

    check("images", 1)
    for validation, labels in ((None, 1), ("images", 0), (None, 0)):
        with pytest.raises(InputError, match="data.sites: simclr measures features"):
            check(validation, labels)
    with pytest.raises(InputError, match="strategy.pooled_steps = 3: the server does not have"):
        check("images", 1, pooled=3)


def test_fine_tuning_needs_two_images(tiny: Make) -> None:
    setup = make_setup(tiny({**SSL, "strategy": {**ALONE["simclr"], "semi_epochs": 1}}))
    method, environment = setup.strategy, setup.environment
    assert isinstance(method, SelfSupervised)
    method.weights = method.initial_weights(environment)
    federation = Round(environment, Mock(), 1, [0], [0], [], [])
    train = environment.data.train
    two = train.take(np.array([int(np.flatnonzero(train.labels == label)[0]) for label in (0, 1)]))
    assert method._fine_tune(federation, two, 1) is not None
    assert method._fine_tune(federation, two.take(np.array([0])), 1) is None


@pytest.mark.parametrize(("epochs", "steps", "batch", "done"), [
    (2, None, 8, [0, 3]), (2, None, 10, [0, 2]), (2, None, 24, [0, 1]), (2, None, 99, [0, 1]), (9, 4, 8, [0, 3]),
])  # fmt: skip
def test_epochs_begin_after_as_many_whole_batches_as_there_are(
    tiny: Make, epochs: int, steps: int | None, batch: int, done: list[int]
) -> None:
    train = {**SSL["train"], "epochs": epochs, "batch_size": batch, **({"steps": steps} if steps else {})}
    client, setup = client_of(tiny({**SSL, "train": train, "strategy": ALONE["protocl"]}))
    begun: list[int] = []
    trained: list[int] = []
    clusterings, loss = client._clusterings, client.loss()

    def noted(networks: Any, batch: Batch, kept: Any) -> torch.Tensor:
        trained.append(len(batch["first"]))
        return loss(networks, batch, kept)

    client._clusterings = lambda: begun.append(len(trained)) or clusterings()
    client.loss = lambda: noted
    client.fit(Payload(weights=setup.strategy.initial_weights(setup.environment)))
    whole = 24 // min(batch, 24)
    assert trained == [min(batch, 24)] * (steps or epochs * whole)
    assert begun == done


def test_drift_is_measured_of_the_model_that_a_measured_node_has_trained(tiny: Make) -> None:
    client, setup = client_of(tiny({**SSL, "strategy": ALONE["simclr"]}))
    client.measured = True
    start = setup.strategy.initial_weights(setup.environment)
    trained = client.fit(Payload(weights=start)).weights
    client.action = "evaluate"
    client.evaluate(Payload(weights=trained))
    assert client.metrics == {
        "drift/feature_angle": pytest.approx(0, abs=1e-3),
        "drift/projection_angle": pytest.approx(0, abs=1e-3),
    }
    client.metrics.clear()
    client.evaluate(Payload(weights=start))  # a second time there is no model of this round
    assert client.metrics == {}
    client.keep("local", trained)
    client.evaluate(Payload(weights=start))
    features, projections = (
        mean_angle(a, b)
        for a, b in zip(
            *(client.method.embeddings(setup.environment, w, setup.environment.data.test) for w in (trained, start)),
            strict=True,
        )
    )
    assert client.metrics == {"drift/feature_angle": features, "drift/projection_angle": projections}
    assert features > 1


def test_a_site_without_the_global_test_images_reports_no_drift(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    client, setup = client_of(tiny({**SSL, "strategy": ALONE["simclr"]}))
    client.measured, client.action = True, "evaluate"
    weights = setup.strategy.initial_weights(setup.environment)
    client.keep("local", weights)
    data = setup.environment.data
    monkeypatch.setattr(setup.environment, "data", dataclasses.replace(data, test=data.test.take(np.arange(0))))
    client.evaluate(Payload(weights=weights))
    assert (client.metrics, client.recall("local")) == ({}, None)


@pytest.mark.parametrize("validation", [False, True])
def test_the_probes_train_on_the_servers_images_or_else_on_all(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, validation: bool
) -> None:
    changes = {**SSL, "strategy": {**ALONE["simclr"], "semi_epochs": 2, "probe_epochs": 7}}
    changes |= {"data.validation": {"size": 50}} if validation else {"data.validation": None}
    setup = make_setup(tiny(changes))
    method, data = setup.strategy, setup.environment.data
    assert isinstance(method, SelfSupervised)
    method.weights = method.initial_weights(setup.environment)
    probe, knn, tuned = Mock(return_value=0.25), Mock(return_value=0.5), Mock(side_effect=[0.75, None])
    monkeypatch.setattr("fedkd.methods.self_supervised.linear_probe", probe)
    monkeypatch.setattr("fedkd.methods.self_supervised.nearest_neighbours", knn)
    monkeypatch.setattr(SelfSupervised, "_fine_tune", lambda self, federation, known, percent: tuned(known, percent))
    federation = Round(setup.environment, Mock(), 1, [0], [0], [], [])
    assert method.measure(federation) == {"probe/accuracy": 0.25, "knn/accuracy": 0.5, "semi_1/accuracy": 0.75}
    known = data.validation if validation else data.train
    assert known is not None
    features, labels, test_features, test_labels, classes = probe.call_args.args[:5]
    assert (len(features), len(test_features), classes) == (len(known.labels), len(data.test.labels), 10)
    assert (labels.tolist(), test_labels.tolist()) == (known.labels.tolist(), data.test.labels.tolist())
    assert features.shape[1] == method.encoder(setup.environment).feature_width
    assert probe.call_args.kwargs == {"epochs": 7}
    assert [call.args[1] for call in tuned.call_args_list] == [1, 10]
    assert tuned.call_args.args[0] is known
    assert len(federation.record.log["feature_map"]["points"]) == min(500, len(data.test.labels))


def test_a_map_of_features_has_four_decimals() -> None:
    line = torch.linspace(-1, 1, 3)[:, None] * torch.tensor([[1 / 3, 0.0]])
    assert sorted(point[0] for point in feature_map(line, np.arange(3))["points"]) == [-0.3333, 0.0, 0.3333]


def test_an_encoder_does_not_classify_and_its_heads_are_no_option() -> None:
    assert not SelfSupervised.classifies
    assert "predictors" not in {field.name for field in dataclasses.fields(SelfSupervised) if field.init}
