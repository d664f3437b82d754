"""VHL: its loss by parts, its generator, and what is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import Make, lines
from helpers.virtual_images import NET, noise, server
from torch import nn
from torch.nn import functional as F

from fedkd import Environment, Payload, uniform_mean
from fedkd.config import parse_config
from fedkd.data.samples import Samples
from fedkd.data.spec import Form
from fedkd.learning.losses import supervised_contrast
from fedkd.models.build import build
from fedkd.runs.run import run
from fedkd.strategies.vhl import VHL, StyleGenerator, _doubled, _Modulated, virtual_homogeneity_loss


@pytest.fixture(autouse=True)
def _modules_may_draw() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("labels", ["extra", "shared"])
def test_the_loss_of_vhl_by_its_parts(tiny: Make, labels: str) -> None:
    method = VHL(labels=labels, noise_batch_size=100, alpha=0.7, align=2.0, noise_align=0.3)  # type: ignore[arg-type]
    model = build("convnet", {"channels": [8, 8]}, Form("image", (1, 8, 8)), 3)
    head = method.new_head(model) if labels == "extra" else None
    images, wanted = noise(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    virtual, given = noise(6, 1, 8, 8, seed=1), torch.tensor([0, 0, 1, 1, 2, 2])
    shared = Samples(virtual.numpy(), given.numpy(), encoded=True)
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


def test_vhl_averages_as_fedavg_does() -> None:
    method, federation = VHL(weighting="uniform"), Mock(cohort=[0], record=Mock(failures=[]))
    method.weights, method.noise = {}, {"images": torch.zeros(1), "labels": torch.zeros(1)}
    federation.ask.return_value = Payload(numbers={"loss": 1.0})
    method.run_round(federation)
    assert federation.ask.call_args.kwargs["merge"] is uniform_mean


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
    assert bool(state["head"]) == (labels == "extra")
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


@pytest.mark.parametrize(("name", "model"), [("heart", "table_mlp"), ("spoken_digits", "inception_small")])
def test_noise_of_other_kinds_is_standardised_and_of_the_form(name: str, model: str, tmp_path: Path) -> None:
    config = parse_config(
        {
            "rounds": 1,
            "data": {"name": name, "partition": {"scheme": "natural"}},
            "model": {"name": model},
            "train": {"optimizer": {"name": "sgd", "lr": 0.05}, "steps": 1, "batch_size": 8},
            "strategy": {"name": "vhl", "noise_per_class": 30, "noise_batch_size": 8},
        }
    )
    run(config, tmp_path / "run")
    shared, form = server(tmp_path / "run")["noise"], Environment(config).data.form
    images, labels = shared["images"], shared["labels"]
    assert (images.dtype, images.shape[1:]) == (torch.float32, form.shape)
    if form.kind == "table":
        values, codes = images[:, : form.numbers], images[:, form.numbers :]
        for column, card in zip(codes.T, form.cards, strict=True):
            assert set(column.tolist()) <= set(range(card))
        assert any(len(column.unique()) > 1 for column in codes.T)
    else:
        assert torch.equal(images[:, -1], torch.ones_like(images[:, -1]))
        values = images[:, :-1].transpose(1, 2).flatten(0, 1)
    width = values.shape[1]
    torch.testing.assert_close(values.mean(0), torch.zeros(width), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(0, correction=0), torch.ones(width), atol=1e-3, rtol=0)
    of_class = [images[labels == label].flatten(1).mean(0) for label in labels.unique()]
    by_chance = images[labels == 0].flatten(1)[::2].mean(0) - images[labels == 0].flatten(1)[1::2].mean(0)
    assert float((of_class[0] - of_class[1]).norm()) > 1.5 * float(by_chance.norm())
