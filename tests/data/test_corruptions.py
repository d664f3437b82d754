"""The corruptions of CIFAR-10-C: each by a second formula or a property; the same images always."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from fedkd.data import corruptions
from fedkd.data.cifar10c import corrupted
from fedkd.data.corruptions import CORRUPTIONS, NAMES

RNG = np.random.default_rng(0)


def photographs(count: int) -> np.ndarray:
    """Return smooth colourful images, uint8, N x 3 x 32 x 32."""
    rough = RNG.random((count, 3, 32, 32))
    smooth = ndimage.gaussian_filter(rough, (0, 0, 3, 3))
    return (255 * (smooth - smooth.min()) / (smooth.max() - smooth.min())).astype(np.uint8)


IMAGES = photographs(12)


FLOATS = IMAGES.transpose(0, 2, 3, 1).astype(np.float32) / 255


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_there_are_the_nineteen() -> None:
    assert len(NAMES) == 19


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_each_changes_images_and_is_the_same_each_time(name: str) -> None:
    before = IMAGES.copy()
    for severity in (1, 3, 5):
        changed = corrupted(name, IMAGES, severity, Path())
        assert changed.shape == IMAGES.shape
        assert changed.dtype == np.uint8
        assert np.array_equal(changed, corrupted(name, IMAGES, severity, Path()))
        assert 0.1 < np.abs(changed.astype(float) - IMAGES).mean() < 90
    assert np.array_equal(IMAGES, before)


@pytest.mark.parametrize(
    "name",
    [
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "speckle_noise",
        "gaussian_blur",
        "contrast",
        "fog",
        "snow",
        "pixelate",
        "jpeg_compression",
        "brightness",
        "zoom_blur",
        "motion_blur",
    ],
)
def test_it_gets_worse(name: str) -> None:
    far = [np.abs(corrupted(name, IMAGES, s, Path()).astype(float) - IMAGES).mean() for s in range(1, 6)]
    assert far == sorted(far)


def test_noise_has_the_published_size() -> None:
    grey = np.full((200, 32, 32, 3), 0.5, np.float32)
    assert corruptions.gaussian_noise(grey, 3, rng()).std() == pytest.approx(0.08, rel=0.01)
    assert corruptions.speckle_noise(grey, 5, rng()).std() == pytest.approx(0.1, rel=0.01)
    assert corruptions.shot_noise(grey, 5, rng()).std() == pytest.approx((0.5 / 50) ** 0.5, rel=0.01)
    hit = corruptions.impulse_noise(grey, 5, rng())
    assert (hit == 1).mean() == pytest.approx(0.035, rel=0.03)
    assert (hit == 0).mean() == pytest.approx(0.035, rel=0.03)


def test_colours_by_the_standard_library() -> None:
    bright, dull = corruptions.brightness(FLOATS, 4, rng()), corruptions.saturate(FLOATS, 1, rng())
    for i, row, column in [(0, 3, 5), (4, 17, 30), (11, 31, 0)]:
        h, s, v = colorsys.rgb_to_hsv(*map(float, FLOATS[i, row, column]))
        np.testing.assert_allclose(bright[i, row, column], colorsys.hsv_to_rgb(h, s, min(v + 0.2, 1)), atol=1e-5)
        np.testing.assert_allclose(dull[i, row, column], colorsys.hsv_to_rgb(h, 0.3 * s, v), atol=1e-5)


def test_contrast_keeps_each_channels_mean() -> None:
    changed = corruptions.contrast(FLOATS, 5, rng())
    np.testing.assert_allclose(changed.mean((1, 2)), FLOATS.mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(changed.std((1, 2)), 0.15 * FLOATS.std((1, 2)), rtol=1e-3)


def test_enlargements_by_scipy() -> None:
    for factor in (1.0, 1.04, 1.25):
        kept = int(np.ceil(32 / factor))
        top = (32 - kept) // 2
        large = ndimage.zoom(FLOATS[0, top : top + kept, top : top + kept], (factor, factor, 1), order=1)
        trim = (large.shape[0] - 32) // 2
        expected = large[trim : trim + 32, trim : trim + 32]
        np.testing.assert_allclose(corruptions._enlarged(FLOATS[:1], factor)[0], expected, atol=1e-5)


def test_motion_along_the_axes_by_convolution() -> None:
    weights = np.exp(-(np.arange(13) ** 2) / 8)
    weights /= weights.sum()
    along = corruptions._moved(FLOATS[:2], 6, 2, np.array([0.0, 90.0]))
    row = np.pad(FLOATS[0, 7, :, 1], (0, 12), mode="edge")
    np.testing.assert_allclose(along[0, 7, :, 1], np.convolve(row, weights[::-1], mode="valid"), atol=1e-5)
    column = np.pad(FLOATS[1, :, 9, 2], (0, 12), mode="edge")
    np.testing.assert_allclose(along[1, :, 9, 2], np.convolve(column, weights[::-1], mode="valid"), atol=1e-5)


def test_blurs_keep_a_flat_image_and_the_glass_moves_pixels_by_one() -> None:
    flat = np.full((2, 32, 32, 3), 0.4, np.float32)
    for name in ("gaussian_blur", "glass_blur", "defocus_blur", "motion_blur", "zoom_blur", "elastic_transform"):
        np.testing.assert_allclose(CORRUPTIONS[name](flat.copy(), 5, rng()), flat, atol=1 / 255)
    ramp = np.broadcast_to(np.arange(32)[None, :, None, None] / 64, (3, 32, 32, 3)).astype(np.float32)
    moved = corruptions.glass_blur(ramp.copy(), 1, rng())
    steps = np.round((ramp - moved) * 64)[:, 2:31, 2:31]
    assert set(np.unique(steps)) == {0.0, 1.0}  # from above or where it stood: the draw leaves out +1


def test_plasma_is_a_height_map_of_each_image() -> None:
    maps = corruptions._plasma(3, 32, 2, rng())
    assert maps.shape == (3, 32, 32)
    np.testing.assert_allclose(maps.min((1, 2)), 0)
    np.testing.assert_allclose(maps.max((1, 2)), 1)
    assert not np.array_equal(maps[0], maps[1])
