"""Styles of figures: lines that differ, also in grey; files that are the same everywhere; tables for spreadsheets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from fedkd.runs.styles import STYLES, cells, content_of, in_style, legend, line_of, markers_at

PAPER, SLIDES = STYLES["paper"], STYLES["slides"]


def drawn(names: Sequence[str] = ("FedAvg", r"$\frac$ & co")) -> Figure:
    figure = Figure(figsize=(PAPER.width, 2), layout="constrained")
    axes = figure.subplots()
    lines = [axes.plot([0, 1], [number, 1], **line_of(number))[0] for number in range(len(names))]
    legend(figure, list(zip(names, lines, strict=True)), PAPER)
    return figure


def test_series_have_lines_of_their_own_also_in_grey() -> None:
    looks = [line_of(number) for number in range(280)]
    assert len({tuple(map(str, look.values())) for look in looks}) == 280
    assert len({(look["marker"], str(look["linestyle"])) for look in looks[:40]}) == 40
    for one, other in pairwise(looks):
        assert all(one[key] != other[key] for key in ("color", "marker", "linestyle"))


def test_a_column_of_a_paper_has_letters_of_six_points_or_more() -> None:
    assert (PAPER.width, min(PAPER.tiny, PAPER.small, PAPER.font)) == (3.5, 6)
    assert SLIDES.width > 2 * PAPER.width
    assert SLIDES.font / SLIDES.width * 3.5 < PAPER.font  # on a screen, seen from far
    assert min(SLIDES.tiny, SLIDES.small) >= 12


def test_a_pdf_has_its_fonts_within_it_and_no_date() -> None:
    with in_style(PAPER):
        first, again = (content_of(drawn(), "pdf") for _ in range(2))
    assert first == again
    assert b"/FontFile2" in first  # TrueType
    assert b"/Type3" not in first
    assert not re.search(rb"CreationDate|Producer|Creator", first)
    width = re.search(rb"/MediaBox \[ 0 0 (\S+) ", first)
    assert width is not None
    assert float(width[1]) == 3.5 * 72


def test_an_svg_needs_no_font_and_has_no_date() -> None:
    with in_style(PAPER):
        first, again = (content_of(drawn(), "svg").decode() for _ in range(2))
    assert first == again
    assert "<text" not in first
    assert "date" not in first.lower().split("<defs>")[0]


def test_markers_of_long_curves_are_few_and_at_different_places() -> None:
    assert markers_at(3, 5) == (0, 1)
    assert [markers_at(number, 90) for number in range(4)] == [(0, 11), (3, 11), (7, 11), (0, 11)]


def test_a_legend_has_as_many_columns_as_its_names_leave_room_for() -> None:
    def columns(names: Sequence[str]) -> int:
        with in_style(PAPER):
            return int(drawn(names).legends[0]._ncols)

    assert columns(["FedAvg", "KnFu", "FedMD"]) == 3
    assert columns(["FedAvg with much to say about itself", "KnFu"]) == 1


@pytest.mark.parametrize("names", [["FedAvg"], [f"strategy {number}" for number in range(30)]])
def test_a_figure_grows_with_its_legend_and_keeps_its_axes(names: list[str]) -> None:
    with in_style(PAPER):
        figure = drawn(names)
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        axes = figure.axes[0].get_window_extent()
    assert box.y0 >= 0
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert axes.height > 0.3 * 2 * figure.dpi


@pytest.mark.parametrize(("room", "shown"), [((2.0, 0.5), 4), ((0.4, 0.5), 0), ((2.0, 0.15), 0)])
def test_cells_have_texts_only_where_they_fit(room: tuple[float, float], shown: int) -> None:
    figure = Figure()
    axes = figure.subplots()
    cells(axes, np.array([[0.0, 1.0], [0.5, 0.7]]), [["0.00", "1.00"], ["0.50", "0.70"]], room, PAPER)
    assert [text.get_text() for text in axes.texts] == ["0.00", "1.00", "0.50", "0.70"][:shown]
    assert [text.get_color() == "white" for text in axes.texts] == [False, True, False, True][:shown]
