"""Batches: shuffled together with their targets, augmented in training only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.codecs import pixel_codec
from helpers.linear import PLAIN, images
from hypothesis import given
from hypothesis import strategies as st

from fedkd.config import TrainConfig, batch_sizes
from fedkd.data.codec import Codec
from fedkd.data.samples import Samples
from fedkd.data.spec import DataSpec
from fedkd.learning.batches import Preprocess, batches, crop_flip, shuffled
from fedkd.streams import torch_stream


def test_batches_shuffle_images_and_targets_together() -> None:
    data = images(10)
    seen = []
    for batch, targets in batches(data, torch.arange(10), 4, PLAIN, torch_stream(0, 0, 0, "x")):
        for image, position in zip(batch, targets.tolist(), strict=True):
            expected = (data.inputs[position].astype(np.float32) / 255 - 0.25) / 0.5
            np.testing.assert_allclose(image.numpy(), expected, atol=1e-6)
            seen.append(position)
    assert sorted(seen) == list(range(10))
    assert seen != list(range(10))


@pytest.mark.parametrize("border", ["constant", "reflect"])
@pytest.mark.parametrize(("height", "width", "pad"), [(16, 16, 2), (16, 8, 2), (8, 16, 1), (23, 5, 2), (4, 4, 1)])
def test_crop_flip_shifts_and_mirrors_each_image_by_itself(height: int, width: int, pad: int, border: str) -> None:
    """The shift is an eighth of the height, and at least one pixel."""
    one = torch.arange(1, height * width + 1, dtype=torch.int32).view(1, 1, height, width)
    out = crop_flip(one.repeat(64, 1, 1, 1), torch_stream(0, 0, 0, "x"), reflect=border == "reflect")
    padded = torch.nn.functional.pad(one[0].double(), (pad, pad, pad, pad), border)[0].int()
    valid = {}
    for row in range(2 * pad + 1):
        for column in range(2 * pad + 1):
            window = padded[row : row + height, column : column + width]
            valid[tuple(window.flatten().tolist())] = (row, column, False)
            valid[tuple(window.flip(1).flatten().tolist())] = (row, column, True)
    found = [valid[tuple(image.flatten().tolist())] for image in out]
    assert len(set(found)) > (12 if pad == 1 else 20)
    assert {mirrored for *_, mirrored in found} == {True, False}
    reach = set(range(2 * pad + 1))
    assert ({row for row, *_ in found}, {column for _, column, _ in found}) == (reach, reach)


def test_the_config_says_which_border() -> None:
    data, found = images(8, 16), []
    for name in ("crop_flip", "crop_flip_reflect"):
        augmenting = Preprocess(pixel_codec(0.0, 1.0), name, torch.device("cpu"))
        found.append(augmenting(data.inputs, torch_stream(0, 0, 0, "x")))
        right = crop_flip(torch.from_numpy(data.inputs), torch_stream(0, 0, 0, "x"), reflect=name != "crop_flip")
        torch.testing.assert_close(found[-1], right / 255)
    assert not torch.allclose(*found)


@pytest.mark.parametrize("augment", ["crop_flip", "crop_flip_reflect"])
def test_augmentation_is_for_training_only(augment: str) -> None:
    augmenting = Preprocess(pixel_codec(0.0, 1.0), augment, torch.device("cpu"))
    data = images(8, 16)
    still = torch.cat([x for x, _ in batches(data, torch.arange(8), 8, augmenting)])
    torch.testing.assert_close(still, torch.from_numpy(data.inputs) / 255)
    moved, order = next(iter(batches(data, torch.arange(8), 8, augmenting, torch_stream(0, 0, 0, "x"))))
    assert not torch.allclose(moved, still[order])


def test_batches_do_not_depend_on_how_many_are_prepared_together(monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(50)

    def passed(most: int | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(batches(data, torch.arange(50), 8, PLAIN, torch_stream(0, 0, 0, "x"), most=most))

    together = passed()
    monkeypatch.setattr("fedkd.learning.batches._VALUES", 2 * 8 * 64)
    apart = passed()
    assert [len(x) for x, _ in together] == [8] * 6 + [2]
    for (x, y), (other, wanted) in zip(together, apart, strict=True):
        assert torch.equal(x, other)
        assert torch.equal(y, wanted)
    assert [y.tolist() for _, y in passed(3)] == [y.tolist() for _, y in together[:3]]


@given(st.integers(1, 200), st.integers(1, 40))
def test_no_batch_has_a_single_image_unless_it_must(count: int, size: int) -> None:
    sizes = batch_sizes(count, size)
    assert sum(sizes) == count
    assert all(one == size for one in sizes[:-1])
    assert sizes[-1] <= size + 1
    assert sizes[-1] > 1 or size == 1 or count == 1
    assert len(sizes) == TrainConfig(batch_size=size).batches(count)
    drawn = list(shuffled(count, size, torch_stream(0, 0, 0, "x")))
    assert [len(one) for one in drawn] == sizes
    assert sorted(torch.cat(drawn).tolist()) == list(range(count))


def test_batches_join_the_image_that_is_left_over() -> None:
    data = images(9)
    found = [len(batch) for batch, _ in batches(data, torch.arange(9), 4, PLAIN, torch_stream(0, 0, 0, "x"))]
    assert found == [4, 5]
    assert [len(batch) for batch, _ in batches(data, torch.arange(9), 4, PLAIN, most=1)] == [4]


@pytest.mark.parametrize(
    ("shape", "size", "sizes"),
    [
        ((2, 64, 32), 8, [256, 8]),  # 4096 values each: 32 batches of 8 are 2**20 values
        ((2, 64, 32), 7, [252, 12]),  # 36 batches of 7, and then 7 and 5
        ((1, 1024, 1025), 2, [2, 2]),  # one batch is more already
    ],
)
def test_about_a_million_values_are_prepared_together(shape: tuple[int, ...], size: int, sizes: list[int]) -> None:
    data = Samples(np.zeros((sum(sizes), *shape), np.uint8), np.zeros(sum(sizes), np.int64))
    prepared: list[int] = []

    class Counting(Preprocess):
        def of(self, data: Samples, generator: torch.Generator | None = None) -> torch.Tensor:
            prepared.append(len(data.labels))
            return torch.zeros(len(data.labels))

    counting = Counting(COLOURED, "none", torch.device("cpu"))
    assert sum(len(batch) for batch, _ in batches(data, torch.zeros(sum(sizes)), size, counting)) == sum(sizes)
    assert prepared == sizes


COLOURED = Codec(
    DataSpec(kind="image", shape=(3, 2, 1), largest=255.0), np.array([0.25, 0.5, 0.0]), np.array([0.5, 0.25, 1.0])
)


def test_each_channel_has_a_mean_and_a_deviation_of_its_own() -> None:
    prepare = Preprocess(COLOURED, "none", torch.device("cpu"))
    images = np.array([0, 255, 51], np.uint8).reshape(1, 3, 1, 1).repeat(2, 2)
    values = prepare(images)
    torch.testing.assert_close(values[0, :, 1, 0], torch.tensor([-0.5, 2.0, 0.2]))
    assert np.array_equal(prepare.pixels(values), images)
    beyond = torch.tensor([-9.0, 9.0, 0.5]).view(1, 3, 1, 1)
    assert prepare.pixels(beyond).flatten().tolist() == [0, 255, 128]
