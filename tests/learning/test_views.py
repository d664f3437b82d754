"""Views: shifted, mirrored and strongly changed images, each by draws of its own."""

from __future__ import annotations

import contextlib
from typing import Any
from unittest.mock import Mock

import kornia.augmentation
import numpy as np
import pytest
import torch
from helpers import Make
from helpers.codecs import pixel_codec
from torch import nn
from torch.nn import functional as F

from fedkd import Environment
from fedkd.learning.batches import Preprocess
from fedkd.learning.views import view, views_of
from fedkd.streams import default_stream, torch_stream


def prepare(*shape: int) -> Preprocess:
    return Preprocess(pixel_codec(0.5, 0.5, shape), "none", torch.device("cpu"))  # type: ignore[arg-type]


# The client


def test_views_are_shifted_and_mirrored_images_each_of_its_own(tiny: Make) -> None:
    environment = Environment(tiny({}))
    images = environment.data.train.inputs[:60]
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


# Probes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("aug", "name"), [("simclr", "digits"), ("official", "svhn")])
def test_strong_views_follow_their_stream_and_differ_between_images(
    tiny: Make, aug: str, name: str, channels: int
) -> None:
    environment = Environment(tiny({"data.channels": channels, "data.size": 16}))
    images = np.repeat(environment.data.train.inputs[:1], 12, axis=0)  # one image, twelve times
    make, _ = views_of(aug, [name], environment.preprocess, images)  # type: ignore[arg-type]
    first, again = (make(images, torch_stream(0, 0, 0, "a")) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (12, channels, 16, 16)
    assert torch.isfinite(first).all()
    assert len({tuple(x.flatten().tolist()) for x in first}) == 12
    stream = torch_stream(0, 0, 0, "a")
    make(images, stream)
    assert not torch.equal(make(images, stream), first)  # the stream goes on


@pytest.mark.parametrize(("kind", "channels", "steps"), [
    ("simclr", 3, [("RandomResizedCrop", ((16, 16),), {"scale": (0.2, 1.0), "ratio": (3 / 4, 4 / 3)}),
                   ("RandomHorizontalFlip", (), {"p": 0.5}),
                   ("ColorJitter", (0.8, 0.8, 0.8, 0.2), {"p": 0.8}), ("RandomGrayscale", (), {"p": 0.2})]),
    ("simclr", 1, [("RandomResizedCrop", ((16, 16),), {"scale": (0.2, 1.0), "ratio": (3 / 4, 4 / 3)}),
                   ("RandomHorizontalFlip", (), {"p": 0.5}), ("ColorJitter", (0.8, 0.8, 0.0, 0.0), {"p": 0.8})]),
    ("official", 3, [("RandomCrop", ((16, 16),), {"padding": 2}),
                     ("ColorJitter", (0.4, 0.4, 0.4, 0.4), {"p": 1.0}), ("RandomRotation", (15.0,), {"p": 1.0})]),
    ("fine_tuning", 3, [("RandomResizedCrop", ((16, 16),), {"scale": (0.64, 1.0), "ratio": (1.0, 1.0)}),
                        ("RandomHorizontalFlip", (), {"p": 0.5})]),
])  # fmt: skip
def test_strong_views_have_the_published_strengths(
    monkeypatch: pytest.MonkeyPatch, kind: str, channels: int, steps: list[Any]
) -> None:
    """`simclr`, `fine_tuning`: FedU2's and SSD's code; `official` for SVHN: FedX's code."""
    made: dict[int, Any] = {}
    for name in {name for name, *_ in steps}:

        def step(*args: Any, name: str = name, **more: Any) -> nn.Module:
            module = nn.Identity()
            made[id(module)] = (module, (name, args, more))
            return module

        monkeypatch.setattr(kornia.augmentation, name, step)
    sequence: list[nn.Module] = []
    monkeypatch.setattr(nn, "Sequential", lambda *modules: sequence.extend(modules))
    views_of(kind, ["svhn"], prepare(channels, 16, 16), np.zeros(0))  # type: ignore[arg-type]
    assert [made[id(module)][1] for module in sequence] == steps


@pytest.mark.parametrize(("height", "pad"), [(8, 1), (15, 1), (16, 2), (24, 3)])
def test_the_shift_is_an_eighth_of_the_height_and_at_least_one_pixel(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, height: int, pad: int
) -> None:
    crop = Mock(return_value=nn.Identity())
    monkeypatch.setattr(kornia.augmentation, "RandomCrop", crop)
    views_of("official", ["svhn"], prepare(3, height, 40), np.zeros(0))
    crop.assert_called_once_with((height, 40), padding=pad)
    environment = Environment(tiny())
    image = np.arange(height * 40, dtype=np.uint8).reshape(1, 1, height, 40) % 251
    padded = F.pad(environment.preprocess(image), (pad, pad, pad, pad), mode="reflect")[0, 0]
    cuts = {
        tuple(cut.flatten().tolist())
        for row in range(2 * pad + 1)
        for column in range(2 * pad + 1)
        for whole in [padded[row : row + height, column : column + 40]]
        for cut in (whole, whole.flip(1))
    }
    shown = view(np.repeat(image, 40, 0), environment.preprocess, torch_stream(0, 0, 0, "a"))
    found = {tuple(one.flatten().tolist()) for one in shown}
    assert found <= cuts
    assert len(found) > 10


def test_each_batch_of_strong_views_has_a_seed_of_62_bits(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def note(generator: torch.Generator) -> contextlib.AbstractContextManager[None]:
        seeds.append(generator.initial_seed())
        return default_stream(generator)

    monkeypatch.setattr("fedkd.learning.views.default_stream", note)
    environment, stream = Environment(tiny()), torch_stream(0, 0, 0, "a")
    make, _ = views_of("fine_tuning", ["digits"], environment.preprocess, environment.data.train.inputs)
    for _ in range(30):
        make(environment.data.train.inputs[:1], stream)
    assert len(set(seeds)) == 30
    assert 2**60 < max(seeds) < 2**62
