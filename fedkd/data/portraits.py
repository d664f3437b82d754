"""Small pictures of samples: lines for series, values for rows, words for texts; images are shown as they are."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from .spec import PAD, DataSpec

_SIZE = 168, 132  # pixels: width, height
_LINE = 12  # pixels of a line of text
_INK = [(31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207), (90, 90, 90)]


def portraits(spec: DataSpec, raw: np.ndarray) -> np.ndarray:
    """Return a picture of each raw sample, uint8, N x channels x height x width.

    Images of other types than uint8 are scaled from their smallest to their largest value; of arrays, the values are
    drawn as a line.
    """
    if spec.kind == "image":
        return raw if raw.dtype == np.uint8 else np.stack([_grey(one) for one in raw])
    draw = {"table": _row, "series": _lines, "tokens": _words, "array": _lines}[spec.kind]
    pictures = []
    for one in raw:
        picture = Image.new("RGB", _SIZE, "white")
        draw(ImageDraw.Draw(picture), spec, one)
        pictures.append(np.asarray(picture).transpose(2, 0, 1))
    return np.stack(pictures)


def _grey(image: np.ndarray) -> np.ndarray:
    low, high = float(image.min()), float(image.max())
    scaled = (image.astype(np.float64) - low) / (high - low if high > low else 1.0)
    return (255 * scaled).round().astype(np.uint8)


def _lines(canvas: ImageDraw.ImageDraw, spec: DataSpec, sample: np.ndarray) -> None:
    channels = sample.reshape(spec.shape[0], -1) if spec.kind == "series" else sample.reshape(1, -1)
    wide, high = _SIZE
    for number, channel in enumerate(channels):
        known = channel[np.isfinite(channel)]
        if not len(known):
            continue
        low, span = float(known.min()), float(np.ptp(known)) or 1.0
        points = [
            (4 + (wide - 8) * step / max(len(channel) - 1, 1), high - 4 - (high - 8) * (float(value) - low) / span)
            for step, value in enumerate(channel)
            if np.isfinite(value)
        ]
        canvas.line(points * (2 if len(points) == 1 else 1), fill=_INK[number % len(_INK)], width=1)


def _row(canvas: ImageDraw.ImageDraw, spec: DataSpec, sample: np.ndarray) -> None:
    cells = zip(spec.columns, sample.tolist(), strict=True)
    _write(canvas, [f"{column.name}: {value_of(column.categories, value)}" for column, value in cells])


def value_of(categories: tuple[str, ...] | None, value: float) -> str:
    """Return a cell of a raw row as text."""
    if value != value:
        return "-"
    return f"{value:.3g}" if categories is None else categories[int(value)]


def _words(canvas: ImageDraw.ImageDraw, spec: DataSpec, sample: np.ndarray) -> None:
    text, lines = " ".join(spec.words[token] for token in sample if token != PAD), [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > _SIZE[0] // 7:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    _write(canvas, lines)


def _write(canvas: ImageDraw.ImageDraw, lines: list[str]) -> None:
    most = (_SIZE[1] - 4) // _LINE
    shown = lines if len(lines) <= most else [*lines[: most - 1], f"... {len(lines) - most + 1} more"]
    for number, line in enumerate(shown):
        plain = line.encode("latin-1", "replace").decode("latin-1")  # the font knows no other letters
        canvas.text((4, 2 + _LINE * number), plain[:40], fill="black")
