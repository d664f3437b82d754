"""Four domains of 16 x 16 digits, drawn with PIL's font: the sets `glyphs0` to `glyphs3` of configs/fedlgd/glyphs.toml.

python benchmarks/glyphs.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def glyph(digit: int, rng: np.random.Generator) -> np.ndarray:
    """Return a digit of PIL's font, 0..1, 16 x 16, turned and moved a little."""
    picture = Image.new("L", (32, 32))
    ImageDraw.Draw(picture).text((16, 16), str(digit), 255, ImageFont.load_default(size=26), anchor="mm")
    turned = picture.rotate(rng.uniform(-20, 20), translate=(int(rng.integers(-4, 5)), int(rng.integers(-4, 5))))
    return np.asarray(turned.resize((16, 16), Image.Resampling.BILINEAR)) / 255


def domain(kind: int, ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the glyph as a domain shows it: white on black, dark on light, over colours, as a difference."""
    mask, rough = ink[..., None], rng.random((16, 16, 3))
    if kind == 0:
        return np.repeat(mask, 3, 2)
    if kind == 1:
        return 0.85 - 0.7 * mask + 0.1 * (rough - 0.5)
    slope = np.linspace(0, 1, 16)[:, None, None] * rng.random(3) + rng.random(3) * 0.3
    return slope * (1 - mask) + rng.random(3) * mask if kind == 2 else np.abs(0.5 * (slope + 0.4 * rough) - mask)


def write_sets(root: Path, seed: int) -> list[str]:
    """Write four sets, 500 training and 300 test images each; return their names."""
    rng = np.random.default_rng(seed)
    for kind in range(4):
        x_train, y_train = _draw(kind, 500, rng)
        x_test, y_test = _draw(kind, 300, rng)
        np.savez(root / f"glyphs{kind}.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return [f"glyphs{kind}" for kind in range(4)]


def _draw(kind: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % 10
    images = np.stack([domain(kind, glyph(int(label), rng), rng) for label in labels])
    return (images.clip(0, 1) * 255).astype(np.uint8), labels


if __name__ == "__main__":
    write_sets(Path(sys.argv[1]), seed=0)
