"""Charts of the report page: SVG with the colours of the page's style sheet, so that it follows light and dark mode."""

from __future__ import annotations

import hashlib
import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .series import Series

COLOURS = 8  # the series colours of the page's style sheet, --series-0 to --series-7

# dashes of the curves after each COLOURS series: lengths of line and gap, in widths of the curve; none: a solid line
_DASHES = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (10, 3))

# series are drawn in colours that nothing else has; these are then replaced by the style sheet's
_INK, _FAINT = "#010203", "#040506"
_BLUE = "#2f6fd0"  # the colour of heat maps
_STANDINS = {_INK: "var(--ink)", _FAINT: "var(--faint)"} | {
    f"#0a0b{number:02x}": f"var(--series-{number})" for number in range(COLOURS)
}
_STYLE: Any = {
    "text.parse_math": False,  # names may contain a $
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and copied
    "svg.hashsalt": "fedkd",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def curves(series: Sequence[Series], x_label: str, y_label: str, title: str, about: str, *, whole: bool = False) -> str:
    """Return curves as SVG; each is in a group of class `series-<number>`. `whole`: x are whole numbers.

    `title` and `about`: the texts for screen readers.
    """

    def draw(axes: Axes) -> None:
        for one in series:
            colour, dash = _colour(one.number), _dash(one.number)
            if any(low < high for low, high in zip(one.low, one.high, strict=True)):
                band = axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.16, linewidth=0)
                band.set_gid(f"series-{one.number}-band")
            mark = "o" if len(one.x) < 12 else None
            style = (0, dash) if dash else "-"
            (line,) = axes.plot(one.x, one.y, color=colour, linestyle=style, linewidth=1.7, marker=mark, markersize=3)
            line.set_gid(f"series-{one.number}")
        axes.set(xlabel=x_label, ylabel=y_label)
        if whole:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.grid(alpha=0.35, linewidth=0.6)

    names = {one.number: one.name for one in series}
    return _svg((4.3, 3.0), draw, title, about, names)


def heat_map(
    values: np.ndarray,
    x_label: str,
    y_label: str,
    title: str,
    about: str,
    *,
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    texts: Sequence[Sequence[str]] | None = None,
    most: float = 1.0,
) -> str:
    """Return a matrix of values from 0 to `most` as SVG, with the texts of its cells if there is room."""
    values = np.asarray(values, float)
    height, width = values.shape
    size = (float(np.clip(0.34 * width + 1.1, 3.2, 7.5)), float(np.clip(0.24 * height + 0.9, 2.0, 7.5)))

    def draw(axes: Axes) -> None:
        shade = np.empty((height, width, 4))
        shade[...] = matplotlib.colors.to_rgba(_BLUE)
        shade[..., 3] = np.clip(values / most, 0, 1)  # transparency works in light and dark mode
        axes.imshow(shade, interpolation="none", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if texts is not None and texts[row][column]:
                colour = "white" if value > 0.55 * most else _INK
                axes.text(column, row, texts[row][column], ha="center", va="center", fontsize=6.5, color=colour)
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xlabel=x_label, ylabel=y_label)
        for axis, labels, count in ((axes.xaxis, columns, width), (axes.yaxis, rows, height)):
            if labels is not None and count <= 30:
                axis.set_ticks(range(count), labels)
            else:
                axis.set_major_locator(MaxNLocator(integer=True))
        if columns is not None and width <= 30 and max(map(len, columns)) > 3:
            axes.tick_params(axis="x", rotation=90)
        axes.spines[:].set_visible(False)

    return _svg(size, draw, title, about, {})


def strips(rows: Sequence[tuple[int, str, Sequence[float]]], x_label: str, title: str, about: str) -> str:
    """Return a row of dots for each (number, name, values) as SVG: one dot per node, and a bar for their mean."""

    def draw(axes: Axes) -> None:
        for place, (number, _, values) in enumerate(rows):
            offsets = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(1)
            dots = axes.scatter(values, place + offsets, s=16, color=_colour(number), alpha=0.8, linewidths=0)
            dots.set_gid(f"series-{number}")
            (bar,) = axes.plot([np.mean(values)] * 2, [place - 0.34, place + 0.34], color=_INK, linewidth=1.4)
            bar.set_gid(f"series-{number}")
        axes.set(xlabel=x_label, ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [name if len(name) < 30 else f"{name[:27]}..." for _, name, _ in rows])
        axes.grid(axis="x", alpha=0.35, linewidth=0.6)

    height = float(np.clip(0.42 * len(rows) + 0.8, 1.5, 12))
    return _svg((5.2, height), draw, title, about, {number: name for number, name, _ in rows})


def points(xy: np.ndarray, labels: np.ndarray, classes: Sequence[str], title: str, about: str) -> str:
    """Return a two-dimensional map of points as SVG: one colour per class, with its name at its centre."""

    def draw(axes: Axes) -> None:
        for label in np.unique(labels):
            mine = xy[labels == label]
            axes.scatter(mine[:, 0], mine[:, 1], s=6, alpha=0.5, color=_colour(int(label)), linewidths=0)
            x, y = np.median(mine, axis=0)
            axes.text(x, y, classes[label], fontsize=10, weight="bold", ha="center", va="center", color=_INK)
        axes.set(xticks=[], yticks=[], xlabel="first principal component", ylabel="second")

    return _svg((4.3, 3.6), draw, title, about, {})


def legend(number: int) -> str:
    """Return a line like the curve of a series as SVG, for the legend."""
    lengths = " ".join(f"{2.5 * length:g}" for length in _dash(number)) or "none"
    return (
        '<svg class="swatch" width="34" height="8" aria-hidden="true"><line x1="0" y1="4" x2="34" y2="4" '
        f'stroke="var(--series-{number % COLOURS})" stroke-width="2.5" stroke-dasharray="{lengths}"/></svg>'
    )


def _dash(number: int) -> tuple[float, ...]:
    return _DASHES[number // COLOURS % len(_DASHES)]


def _colour(number: int) -> str:
    return f"#0a0b{number % COLOURS:02x}"


def _svg(size: tuple[float, float], draw: Callable[[Axes], None], title: str, about: str, names: dict[int, str]) -> str:
    """Draw a figure; return it as an `svg` element with a title and a description."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes)
        text = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has other fonts
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="series-(\d+)(?:-band)?"', r' class="series-\1"', svg)
    svg = re.sub(r'(<g class="series-(\d+)">)', lambda m: f"{m[1]}<title>{html.escape(names[int(m[2])])}</title>", svg)
    # a page has several figures, so the ids of their parts need different names
    name = "picture-" + hashlib.blake2b(f"{title}{about}{svg}".encode(), digest_size=6).hexdigest()
    svg = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for standin, colour in _STANDINS.items():
        svg = svg.replace(standin, colour)
    head = (
        f'<svg role="img" aria-labelledby="{name}-title {name}-about" '
        rf'viewBox="0 0 {size[0] * 72:g} {size[1] * 72:g}" class="chart" style="max-width:{size[0] * 96:.0f}px" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-about">{html.escape(about)}</desc>'
    )
    return head + svg[svg.index(">") + 1 :].strip()
