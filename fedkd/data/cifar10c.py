"""CIFAR-10-C: CIFAR-10's test images under one of 19 corruptions at five severities, computed when needed."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import InputError, unknown
from ..streams import numpy_stream
from .corruptions import CORRUPTIONS, NAMES, frost
from .samples import KEY, PIXEL_MAX, Dataset, Samples


def cifar10c(corruption: str, clean: Dataset, cache: Path, root: Path) -> Dataset:
    """Return CIFAR-10's 10,000 test images under one corruption at each severity: 45,000 to train, 5,000 to test.

    For each severity, the first nine tenths are for training and the rest is for the test, as in DESA's code, which is
    from the same lab as FedLGD's. The result is stored in `cache`, if this is writable. The images do not depend on
    the seed.
    """
    if corruption not in NAMES:
        raise unknown(KEY, f"cifar10c:{corruption}", [f"cifar10c:{name}" for name in NAMES])
    path, mark = cache / f"{corruption}.npz", _fingerprint(clean.test.inputs)
    images = _stored(path, mark)
    if images is None:
        images = np.stack([corrupted(corruption, clean.test.inputs, s, root) for s in range(1, 6)])
        _store(path, images, mark)
    labels, cut = clean.test.labels, len(clean.test.labels) * 9 // 10

    def part(chosen: slice) -> Samples:
        return Samples(np.concatenate(list(images[:, chosen])), np.tile(labels[chosen], len(images)))

    return Dataset(part(slice(None, cut)), part(slice(cut, None)), clean.classes, clean.mean, clean.deviation)


def corrupted(corruption: str, images: np.ndarray, severity: int, root: Path) -> np.ndarray:
    """Return uint8 images, N x 3 x 32 x 32, under a corruption at a severity. Its stream depends only on these two."""
    rng = numpy_stream(0, severity, "server", f"cifar10c/{corruption}")
    pixels = images.transpose(0, 2, 3, 1).astype(np.float32) / PIXEL_MAX
    if corruption == "frost":
        changed = frost(pixels, severity, rng, _frost_photographs(root))
    else:
        changed = CORRUPTIONS[corruption](pixels, severity, rng)
    return np.ascontiguousarray((np.clip(changed, 0, 1) * PIXEL_MAX).astype(np.uint8).transpose(0, 3, 1, 2))


def _fingerprint(images: np.ndarray) -> np.ndarray:
    digest = hashlib.blake2b(np.ascontiguousarray(images).tobytes(), digest_size=16).digest()
    return np.frombuffer(digest, np.uint8)


def _stored(path: Path, mark: np.ndarray) -> np.ndarray | None:
    """Return the images in a file, or None if it is damaged or was made from clean images with another `mark`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if np.array_equal(archive["clean"], mark):
                images: np.ndarray = archive["images"]
                return images
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        pass
    return None


def _store(path: Path, images: np.ndarray, mark: np.ndarray) -> None:
    partial = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, images=images, clean=mark)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)


def _frost_photographs(root: Path) -> list[np.ndarray]:
    """Return the first five of the authors' photographs at one fifth of their size, 0..1."""
    spec = importlib.util.find_spec("imagecorruptions")
    installed = (spec.submodule_search_locations or []) if spec else []
    homes = [root / "frost", *(Path(place) / "frost" for place in installed)]
    names = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
    for home in homes:
        if all((home / name).is_file() for name in names):
            return [_fifth(home / name) for name in names]
    raise InputError(
        f"{KEY} = 'cifar10c:frost': the authors' photographs of frost ({', '.join(names)}) are neither in {homes[0]} "
        "nor installed; install them with: pip install --no-deps imagecorruptions"
    )


def _fifth(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / PIXEL_MAX
    small = torch.nn.functional.interpolate(pixels, scale_factor=0.2, mode="bilinear", recompute_scale_factor=True)
    return small[0].permute(1, 2, 0).numpy()
