"""Distillation on public images."""

from __future__ import annotations

import torch
from helpers import Make

from fedkd import Environment
from fedkd.models.zoo import mlp
from fedkd.streams import torch_stream


def test_models_of_the_digest_are_not_augmented(tiny: Make) -> None:
    """Targets belong to the images as they stand: a crop would teach the answer to another image."""
    from fedkd.learning.batches import batches

    environment = Environment(tiny({"data.augment": "crop_flip"}))
    data = environment.data.train_of(0)
    labels = torch.from_numpy(data.labels)
    order = torch_stream(0, 0, 0, "order")
    seen = torch.cat([x for x, _ in batches(data, labels, 8, environment.preprocess, order, False)])
    plain = environment.preprocess(data.images)
    torch.testing.assert_close(seen.sort(0).values, plain.sort(0).values)
    state = torch.get_rng_state()
    assert mlp((1, 8, 8), 10)(plain).shape == (len(labels), 10)
    torch.set_rng_state(state)
