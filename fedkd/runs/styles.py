"""Styles of figures: for a paper, for slides, for a run folder; and the files of a figure and its numbers."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import as_csv, write_output

StyleName = Literal["paper", "slides"]
INK = "#333333"
# Okabe and Ito (2008), safe for colour blindness, without their yellow, which white paper hides. The counts of colours,
# markers and dashes have no common factor, so that 280 series have lines of their own, 40 of them also in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
# lengths of line and gap, in widths of the line; none: a solid line
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (10, 3))


class Style(NamedTuple):
    """How a figure is drawn: width and largest height in inches; fonts, lines and markers in points; dots per inch."""

    width: float
    widest: float  # of a figure that has many columns
    tallest: float
    font: float  # of titles and axes
    small: float  # of ticks and legends
    tiny: float  # of the cells of a matrix
    line: float
    marker: float
    dpi: int
    titled: bool = False  # a paper has captions, a slide its own title


STYLES: dict[StyleName, Style] = {
    "paper": Style(3.5, 3.5, 5.0, 8, 7, 6, 1.2, 3.5, 300),  # one column
    "slides": Style(10, 10, 5.6, 20, 16, 12, 3, 9, 144),
}
SCREEN = Style(7.2, 13, 10, 10, 8.5, 7, 1.5, 3.5, 144, titled=True)  # the run folder's


@dataclass(frozen=True)
class Drawing:
    """A figure and the numbers that it shows, as a table; none for pictures."""

    figure: Figure
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = field(default_factory=list)


@contextlib.contextmanager
def in_style(style: Style) -> Iterator[None]:
    """Draw and write in a style within the `with` block."""
    settings: Any = {
        "text.parse_math": False,  # names may contain a $
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so it is the same everywhere
        "font.size": style.font,
        "axes.titlesize": style.font,
        "axes.labelsize": style.font,
        "xtick.labelsize": style.small,
        "ytick.labelsize": style.small,
        "legend.fontsize": style.small,
        "legend.title_fontsize": style.small,
        "figure.titlesize": style.font,
        "lines.linewidth": style.line,
        "lines.markersize": style.marker,
        "axes.linewidth": 0.5 * style.line,
        "grid.linewidth": 0.4 * style.line,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "savefig.dpi": style.dpi,
        "pdf.fonttype": 42,  # whole fonts are embedded; publishers refuse type 3
        "svg.fonttype": "path",  # the same everywhere, without any font
        "svg.hashsalt": "fedkd",
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # names in scripts that the font lacks
        yield


def line_of(number: int) -> dict[str, Any]:
    """Return the colour, the marker and the dashes of a series: arguments of `Axes.plot`."""
    dash = DASHES[number % len(DASHES)]
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": (0, dash) if dash else "-",
    }


def markers_at(number: int, points: int) -> tuple[int, int]:
    """Return the first point with a marker and the step to the next: about eight, at other places than neighbours."""
    step = max(1, points // 8)
    return number * step // 3 % step, step


def legend(figure: Figure, entries: Sequence[tuple[str, Artist]], style: Style, title: str | None = None) -> None:
    """Put a legend under the axes, in as many columns as the names leave room for.

    The figure grows with its rows up to the largest height; then the axes shrink, to half of their height.
    """
    letters = style.width * 72 / (0.62 * style.small)  # of a line of text
    columns = max(1, min(len(entries), int(letters // (max(len(name) for name, _ in entries) + 8))))
    width, height = figure.get_size_inches()
    more = (-(-len(entries) // columns) + (title is not None)) * 1.5 * style.small / 72
    figure.set_size_inches(width, max(0.5 * height + more, min(height + more, style.tallest)))
    figure.legend(
        [artist for _, artist in entries], [name for name, _ in entries], loc="outside lower center", ncols=columns,
        frameon=False, title=title, handlelength=3.2, columnspacing=1.2,
    )  # fmt: skip


def cells(
    axes: Axes, shades: np.ndarray, texts: Sequence[Sequence[str]], room: tuple[float, float], style: Style
) -> None:
    """Write the texts of a matrix's cells, whose shades are from 0 to 1, if they fit.

    `room`: the width and height of the matrix in inches.
    """
    height, width = shades.shape
    longest = max((len(text) for row in texts for text in row), default=0)
    if longest * 0.68 * style.tiny / 72 > room[0] / width or 1.25 * style.tiny / 72 > room[1] / height:
        return
    for (row, column), shade in np.ndenumerate(shades):
        colour = "white" if shade > 0.6 else INK
        axes.text(column, row, texts[row][column], ha="center", va="center", fontsize=style.tiny, color=colour)


def content_of(figure: Figure, ending: str) -> bytes:
    """Return a figure as a file: equal figures have equal bytes. Call it in the style in which it was drawn."""
    nameless = {"png": ["Software"], "pdf": ["CreationDate", "Creator", "Producer"], "svg": ["Date", "Creator"]}
    content = io.BytesIO()
    figure.savefig(content, format=ending, metadata=dict.fromkeys(nameless.get(ending, ())) or None)
    return content.getvalue()


def write_drawing(drawing: Drawing, home: Path, name: str) -> list[Path]:
    """Write a drawing as PDF, SVG and PNG, and its numbers as CSV; return the paths. Call it in its style."""
    paths = []
    for ending in ("pdf", "svg", "png"):
        paths.append(home / f"{name}.{ending}")
        write_output(paths[-1], content_of(drawing.figure, ending))
    if drawing.rows:
        paths.append(home / f"{name}.csv")
        write_output(paths[-1], as_csv(drawing.header, drawing.rows).encode())
    return paths
