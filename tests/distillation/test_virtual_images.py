"""Virtual images before distillation: the statistics of classes, the first images, real ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.distillation import PLAIN, det, stream, truth_of

from fedkd.data.samples import Samples
from fedkd.distillation.virtual_images import Virtual, class_statistics, normal_images, real_images


def twelve() -> Samples:
    images = torch.stack([det((3, 8, 8), 0.05, 0.2 * i) + i % 3 for i in range(12)])
    return Samples(images.numpy(), np.arange(12) % 3)


# The published values


def test_the_statistics_are_the_true_ones_of_each_class() -> None:
    means, deviations, held = class_statistics(twelve(), PLAIN, 4)
    torch.testing.assert_close(means[2], torch.tensor([2.1297832, 1.8981795, 2.0735106]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(deviations[2], torch.tensor([0.69678295, 0.7015186, 0.70512664]), rtol=1e-5, atol=1e-6)
    assert held.tolist() == [True, True, True, False]
    assert not means[3].any()


def test_the_first_images_are_drawn_as_published() -> None:
    """The authors' statistics, which divide by the number of all images, give their images."""
    data, generator = twelve(), torch.Generator().manual_seed(0)
    found = []
    for part in (data, data.take(np.arange(9))):
        pixels = torch.from_numpy(part.inputs)
        sums = torch.stack([pixels[part.labels == c].sum((0, 2, 3)) for c in range(3)]) / (len(pixels) * 64)
        squares = torch.stack([pixels[part.labels == c].pow(2).sum((0, 2, 3)) for c in range(3)]) / (len(pixels) * 64)
        found.append((sums, (squares - sums**2).sqrt()))
    torch.testing.assert_close(found[0][0][2], torch.tensor([0.70992774, 0.63272649, 0.69117022]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0][1][2], torch.tensor([1.081587, 0.98220593, 1.0588517]), rtol=1e-5, atol=1e-6)
    held = torch.ones(3, dtype=torch.bool)
    mean = tuple((one + other) / 2 for one, other in zip(*found, strict=True))
    for (m, s), ipc, total in [(found[0], 5, 1003.5779), (found[1], 5, 1037.4194), (mean, 4, 839.94434)]:
        images, labels = normal_images(m, s, held, ipc, (8, 8), generator)
        assert float(images.sum()) == pytest.approx(total, abs=1e-2)
        assert labels.tolist() == [0] * ipc + [1] * ipc + [2] * ipc


# The distillers


def test_real_images_repeat_where_a_class_has_fewer() -> None:
    truth = truth_of([3, 10])
    images, labels = real_images(truth, 7, stream())
    assert labels.tolist() == [0] * 7 + [1] * 7
    of_first = images[:7].flatten(1)
    assert len(torch.unique(of_first, dim=0)) == 3
    assert len(torch.unique(images[7:].flatten(1), dim=0)) == 7


def test_real_images_are_drawn_from_the_stream_class_by_class() -> None:
    truth, order = truth_of([3, 10]), stream()
    images, _ = real_images(truth, 7, stream())
    first = torch.cat([torch.randperm(3, generator=order) for _ in range(3)])[:7]  # 3 + 3 + 3 are enough for 7
    second = 3 + torch.randperm(10, generator=order)[:7]
    assert torch.equal(images, truth.preprocess(truth.data.inputs[torch.cat([first, second]).numpy()]))


def test_a_class_gives_as_many_images_as_asked_or_as_it_has() -> None:
    truth = truth_of([3, 10])
    for label, count, given in ((0, 2, 2), (0, 3, 3), (0, 9, 3), (1, 9, 9)):
        found = truth.draw(label, count, stream()).flatten(1)
        own = truth.preprocess(truth.data.inputs[truth.data.labels == label]).flatten(1)
        assert len(torch.unique(found, dim=0)) == given == len(found)
        assert all(any(torch.equal(image, one) for one in own) for image in found)


def test_virtual_images_are_training_data_that_is_normalised_already() -> None:
    virtual = Virtual(det((2, 3, 8, 8), 0.3, 0.1), torch.tensor([1, 0]), {"velocity": torch.ones(2)})
    data = virtual.as_data()
    assert data.encoded
    assert data.labels.tolist() == [1, 0]
    assert torch.equal(torch.from_numpy(data.inputs), virtual.images)
    again = Virtual.of(virtual.tensors(), torch.device("cpu"))
    assert again.more.keys() == {"velocity"}
    again.rest()
    again.rest()  # also where there is no velocity
    assert again.more == {}
