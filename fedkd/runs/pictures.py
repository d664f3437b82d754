"""Pictures of a run: the virtual images of a distillation, and the rows of images over rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..data.samples import PIXEL_MAX
from .run_folder import read_strip, rows_of_images
from .styles import Drawing, Style


def virtual(
    images: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    title: str,
    style: Style,
    *,
    rows: int = 10,
    wide: bool = False,
) -> Drawing:
    """Draw virtual images (uint8, N x C x H x W), one column per class, at most `rows` of each.

    `wide`: pictures of other samples, with texts or lines; a third as many rows.
    """
    held = np.unique(labels)
    tiles = [images[labels == label][:rows] for label in held]
    if wide:
        tiles = [tile[: rows // 3] for tile in tiles]
    deep = max(len(tile) for tile in tiles)
    across, down = (1.85, 1.5) if wide else (0.62, 0.62)
    width = max(across * len(held) + 0.3, 3.5)
    scale = min(1.0, style.widest / width)
    figure = Figure(figsize=(scale * width, scale * down * deep + 0.7), layout="constrained")
    longest = max(len(classes[label]) for label in held) * 0.62 * style.small / 72
    upright = longest > scale * across  # names beside each other would overlap
    grid = figure.subplots(deep, len(held), squeeze=False)
    for column, (label, tile) in enumerate(zip(held, tiles, strict=True)):
        for row in range(deep):
            axes = grid[row][column]
            axes.axis("off")
            if row < len(tile):
                shown = tile[row].transpose(1, 2, 0)
                axes.imshow(shown if len(tile[row]) == 3 else shown[:, :, 0], cmap="gray", vmin=0, vmax=PIXEL_MAX)
        grid[0][column].set_title(classes[label], fontsize=style.small, rotation=90 if upright else 0)
    figure.suptitle(title)
    return Drawing(figure)


def over_rounds(folder: Path, title: str, style: Style, *, rows: int = 8, unit: str = "round") -> Drawing | None:
    """Draw the rows of images in a run's folder, a row for each round, at most `rows`, with the first and the last.

    None for an empty folder.
    """
    files = rows_of_images(folder)
    if not files:
        return None
    chosen = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, min(rows, len(files))).round().astype(int))]
    strips = [(file, read_strip(file, folder.parent)) for file in chosen]
    columns = max(len(strip.captions) for _, strip in strips)
    label = 6 * style.small / 72  # the width of a row's name, in inches
    tile = 0.75 if style.titled else (style.width - label) / columns
    size = (tile * columns + label, tile * len(strips) + 2.6 * style.small / 72 + (0.4 if style.titled else 0))
    figure = Figure(figsize=(max(size[0], 4.5), max(size[1], 1.9)) if style.titled else size)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0))
    grid = figure.subplots(len(strips), columns, squeeze=False)
    for row, (file, strip) in enumerate(strips):
        captions, tiles = strip.captions, np.split(strip.pixels, len(strip.captions), axis=1)
        for column, axes in enumerate(grid[row]):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if column < len(captions):
                if row == 0:
                    axes.set_title(captions[column], fontsize=style.small)
                axes.imshow(tiles[column], cmap="gray", vmin=0, vmax=PIXEL_MAX, interpolation="nearest")
        name = f"{unit} {int(file.stem.removeprefix('round-'))}"
        grid[row][0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=style.small)
    if style.titled:
        figure.suptitle(title)
    return Drawing(figure)
