"""The 19 corruptions of CIFAR-10-C.

Hendrycks, Dietterich: Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019,
arXiv:1903.12261. Constants and steps are those of the code that made the published set. That code used the global
generator and other libraries, so pixels differ from the published set, but statistics do not. Each function takes float
images, N x 32 x 32 x 3, 0..1, a severity 1..5 and a generator, and returns images that must still be clipped to 0..1.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]

# Noise


def gaussian_noise(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Add normal noise."""
    return x + rng.normal(scale=(0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1], size=x.shape)


def shot_noise(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Add photon noise (Poisson noise)."""
    rate = (500, 250, 100, 75, 50)[severity - 1]
    return rng.poisson(x * rate) / rate


def impulse_noise(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Set random values to 0 or 1 (salt-and-pepper noise), both with the same probability."""
    amount = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    hit, salt = rng.random(x.shape) < amount, rng.random(x.shape) < 0.5
    return np.where(hit, salt.astype(x.dtype), x)


def speckle_noise(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Add normal noise in proportion to the value."""
    return x + x * rng.normal(scale=(0.06, 0.1, 0.12, 0.16, 0.2)[severity - 1], size=x.shape)


# Blur


def gaussian_blur(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Blur with a Gaussian kernel."""
    return _smooth(x, (0.4, 0.6, 0.7, 0.8, 1)[severity - 1])


def glass_blur(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Move pixels randomly in their neighbourhood, between two blurs.

    The published code intends to swap two pixels. It swaps views of one array, so it copies the second over the first.
    """
    sigma, reach, times = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))[severity - 1]
    x = np.floor(np.clip(_smooth(x, sigma), 0, 1) * 255) / 255
    every, (height, width) = np.arange(len(x)), x.shape[1:3]
    for _ in range(times):
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                right, down = rng.integers(-reach, reach, (2, len(x)))
                x[:, row, column] = x[every, row + down, column + right]
    return _smooth(x, sigma)


def defocus_blur(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Blur with a slightly blurred disk as the kernel."""
    radius, alias = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1]
    steps = np.arange(-8, 9)
    disk = (steps[:, None] ** 2 + steps[None] ** 2 <= radius**2).astype(np.float64)
    side = np.exp(-(np.arange(-1, 2) ** 2) / (2 * alias**2))
    kernel = ndimage.correlate(disk / disk.sum(), np.outer(side, side) / side.sum() ** 2, mode="mirror")
    return ndimage.correlate(x, kernel[None, :, :, None].astype(x.dtype), mode="mirror")


def motion_blur(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Blur along a direction of up to 45 degrees from the horizontal."""
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[severity - 1]
    return _moved(x, radius, sigma, rng.uniform(-45, 45, len(x)))


def zoom_blur(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the mean of each image and its enlargements."""
    factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[severity - 1], 0.01)
    return (x + sum(_enlarged(x, factor) for factor in factors)) / (len(factors) + 1)


# Weather


def snow(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Whiten the image and add flakes that are blurred in one direction and in the opposite direction."""
    mean, deviation, zoom, least, radius, sigma, kept = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[severity - 1]
    flakes = _enlarged(rng.normal(mean, deviation, (*x.shape[:3], 1)), zoom)
    flakes = np.floor(np.clip(np.where(flakes < least, 0, flakes), 0, 1) * 255) / 255
    flakes = np.round(_moved(flakes, radius, sigma, rng.uniform(-135, -45, len(x))) * 255) / 255
    grey = (x @ np.array([0.299, 0.587, 0.114]))[..., None]
    whitened = kept * x + (1 - kept) * np.maximum(x, grey * 1.5 + 0.5)
    return whitened + flakes + flakes[:, ::-1, ::-1]


def frost(x: np.ndarray, severity: int, rng: np.random.Generator, photographs: list[np.ndarray]) -> np.ndarray:
    """Add a part of one of the first five photographs of frost to each image."""
    kept, laid = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity - 1]
    out = np.empty_like(x)
    for i, image in enumerate(x):
        photograph = photographs[rng.integers(len(photographs))]
        top, left = (rng.integers(0, photograph.shape[axis] - image.shape[axis]) for axis in (0, 1))
        out[i] = kept * image + laid * photograph[top : top + image.shape[0], left : left + image.shape[1]]
    return out


def fog(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Add fractal clouds."""
    amount, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[severity - 1]
    height, width = x.shape[1:3]
    clouds = _plasma(len(x), 2 ** int(np.ceil(np.log2(max(height, width)))), decay, rng)[:, :height, :width, None]
    most = x.max((1, 2, 3), keepdims=True)
    return (x + amount * clouds) * most / (most + amount)


def spatter(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Add drops of water (severities 1 to 3) or mud (4 and 5)."""
    mean, deviation, sigma, least, strength, mud = (
        (0.62, 0.1, 0.7, 0.7, 0.5, False),
        (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
    )[severity - 1]
    liquid = ndimage.gaussian_filter(rng.normal(mean, deviation, x.shape[:3]), (0, sigma, sigma), mode="nearest")
    liquid = np.where(liquid < least, 0, liquid)
    if mud:
        cover = ndimage.gaussian_filter((liquid > least).astype(np.float64), (0, strength, strength), mode="nearest")
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return x * (1 - cover) + cover * np.array([63, 42, 20]) / 255
    layers = np.floor(np.clip(liquid, 0, 1) * 255)
    wet = np.stack([_water(layer, edges) for layer, edges in zip(layers, _edges(layers), strict=True)])
    most = wet.max((1, 2), keepdims=True)
    wet = strength * np.divide(wet, most, out=np.zeros_like(wet), where=most > 0)
    return x + wet[..., None] * np.array([175, 238, 238]) / 255


def _edges(layers: np.ndarray) -> np.ndarray:
    """Return where layers of 0..255, N x H x W, have edges, found with Canny's thresholds 50 and 150."""
    from kornia.filters import canny

    found = [
        canny(part[:, None].float() / 255, 50 / 255, 150 / 255, kernel_size=(1, 1))[1][:, 0] > 0
        for part in torch.from_numpy(layers).split(1000)
    ]
    return torch.cat(found).numpy()


def _water(liquid: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the brightness of the drops of a layer, 0..255: away from their edges, with light from the top left."""
    distance = ndimage.distance_transform_edt(~edges) if edges.any() else np.full(edges.shape, 20.0)
    distance = np.minimum(distance, 20)
    distance = _equalised(np.floor(ndimage.uniform_filter(distance, 3, mode="mirror")).astype(np.uint8))
    kernel = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    relief = ndimage.correlate(distance.astype(np.float64), kernel, mode="mirror")
    return liquid * ndimage.uniform_filter(np.clip(relief, 0, 255), 3, mode="mirror")


def _equalised(values: np.ndarray) -> np.ndarray:
    """Return uint8 values with a uniform histogram; the smallest value is 0."""
    counts = np.bincount(values.ravel(), minlength=256).cumsum()
    first = counts[values.min()]
    if first == values.size:
        return values
    return np.round((counts - first).clip(0) * 255 / (values.size - first)).astype(np.uint8)[values]


# Digital


def brightness(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Increase the value (HSV) of each colour."""
    return _in_hsv(x, 2, 1.0, (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1])


def saturate(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Decrease or increase the saturation (HSV) of each colour."""
    return _in_hsv(x, 1, *((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1])


def contrast(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Move all values towards the mean of their channel."""
    means = x.mean((1, 2), keepdims=True)
    return (x - means) * (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1] + means


def elastic_transform(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Transform the image by moving three points, and then move each pixel by a smooth field."""
    side = min(x.shape[1:3])
    table = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
    strength, sigma, reach = (side * share for share in table[severity - 1])
    height, width = x.shape[1:3]
    center, third = np.array([height // 2, width // 2]), side // 3
    points = np.array([center + third, [center[0] + third, center[1] - third], center - third], np.float64)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    out = np.empty_like(x)
    for i, image in enumerate(x):
        moved = points + rng.uniform(-reach, reach, points.shape)
        back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)  # from the new position to the old one
        across, down = (columns * back[0, k] + rows * back[1, k] + back[2, k] for k in (0, 1))
        dx, dy = (
            strength * ndimage.gaussian_filter(rng.uniform(-1, 1, (height, width)), sigma, mode="reflect", truncate=3)
            for _ in range(2)
        )
        for channel in range(3):
            turned = ndimage.map_coordinates(image[..., channel], [down, across], order=1, mode="mirror")
            out[i, ..., channel] = ndimage.map_coordinates(turned, [rows + dy, columns + dx], order=1, mode="reflect")
    return out


def pixelate(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Reduce the image and enlarge it again, with box filters."""
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]

    def change(picture: Image.Image) -> Image.Image:
        width, height = picture.size
        small = picture.resize((int(width * share), int(height * share)), Image.Resampling.BOX)
        return small.resize((width, height), Image.Resampling.BOX)

    return _each(x, change)


def jpeg_compression(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Compress the image as JPEG and decompress it."""
    quality = (80, 65, 58, 50, 40)[severity - 1]

    def change(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each(x, change)


# Helpers of several corruptions


def _smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


def _each(x: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    pixels = np.round(x * 255).astype(np.uint8)
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels]) / np.float32(255)


def _in_hsv(x: np.ndarray, channel: int, factor: float, added: float) -> np.ndarray:
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

    colours = rgb_to_hsv(x)
    colours[..., channel] = np.clip(colours[..., channel] * factor + added, 0, 1)
    changed: np.ndarray = hsv_to_rgb(colours)
    return changed


def _enlarged(x: np.ndarray, factor: float) -> np.ndarray:
    """Return the middle of the images, linearly enlarged by a factor of 1 or more."""
    side = x.shape[1]
    kept = int(np.ceil(side / factor))
    top = (side - kept) // 2
    size = round(kept * factor)
    at = np.arange(size) * ((kept - 1) / (size - 1))
    low = np.minimum(at.astype(np.int64), kept - 2)
    matrix = np.zeros((size, kept), x.dtype)
    matrix[np.arange(size), low] = 1 - (at - low)
    matrix[np.arange(size), low + 1] += at - low
    trim = (size - side) // 2
    matrix = matrix[trim : trim + side]
    part = x[:, top : top + kept, top : top + kept]
    return np.einsum("nabc,ia,jb->nijc", part, matrix, matrix, optimize=True)


def _moved(x: np.ndarray, radius: int, sigma: float, degrees: np.ndarray) -> np.ndarray:
    """Return each image blurred to one side along its direction, as in ImageMagick's motion blur."""
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    angle, (count, height, width) = np.deg2rad(degrees), x.shape[:3]
    index, rows, columns = np.ogrid[:count, :height, :width]
    out = np.zeros_like(x)
    for step, weight in enumerate(weights):
        steps = (step * np.cos(angle), step * np.sin(angle))
        right, down = (np.ceil(far - 0.5).astype(np.int64)[:, None, None] for far in steps)
        out += weight * x[index, np.clip(rows + down, 0, height - 1), np.clip(columns + right, 0, width - 1)]
    return out


def _plasma(count: int, side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Return height maps, N x side x side, 0..1, from the diamond-square algorithm; `side`: a power of two."""
    maps = np.zeros((count, side, side))
    step, wibble = side, 100.0

    def mean(total: np.ndarray) -> np.ndarray:
        return total / 4 + wibble * rng.uniform(-wibble, wibble, total.shape)

    while step >= 2:
        half = step // 2
        corners = maps[:, ::step, ::step]
        total = corners + np.roll(corners, -1, 1)
        maps[:, half::step, half::step] = mean(total + np.roll(total, -1, 2))
        middles = maps[:, half::step, half::step]
        left_right = corners + np.roll(corners, -1, 2)
        maps[:, ::step, half::step] = mean(middles + np.roll(middles, 1, 1) + left_right)
        up_down = corners + np.roll(corners, -1, 1)
        maps[:, half::step, ::step] = mean(middles + np.roll(middles, 1, 2) + up_down)
        step, wibble = half, wibble / decay
    maps -= maps.min((1, 2), keepdims=True)
    return maps / maps.max((1, 2), keepdims=True)


CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow,
        fog, brightness, contrast, elastic_transform, pixelate, jpeg_compression,
        speckle_noise, gaussian_blur, spatter, saturate,
    )
}  # fmt: skip

NAMES = (*CORRUPTIONS, "frost")  # frost also needs photographs
