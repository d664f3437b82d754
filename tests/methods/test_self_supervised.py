"""What self-supervised methods share: encoders, no labels, weights of the cohort, fine-tuning, clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Make, lines, server_state
from helpers.self_supervised import ALONE, SELF_SUPERVISED, SSL, client_of

from fedkd import Payload
from fedkd.methods.self_supervised import Encoder, feature_map
from fedkd.runs.run import run

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
