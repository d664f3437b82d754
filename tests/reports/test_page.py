"""The page of runs in a real browser: it is read on a phone, in the dark, by keyboard and aloud."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from helpers.browser import needs_browser

pytestmark = pytest.mark.xdist_group("browser")


@needs_browser
def test_pictures_and_tables_can_be_read_aloud(page_file: Path, visit: Callable[..., Any]) -> None:
    page = visit(page_file.as_uri())
    charts = page.locator("svg.chart")
    assert charts.count() > 10
    for i in range(charts.count()):
        named = charts.nth(i).evaluate(
            "e => [e.getAttribute('role'), ...e.getAttribute('aria-labelledby').split(' ')"
            ".map(id => document.getElementById(id).textContent.length)]"
        )
        assert named[0] == "img"
        assert min(named[1:]) > 5
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("html[lang=en]").count() == 1
    assert page.locator("th:not([scope])").count() == 0


@needs_browser
def test_the_keyboard_sorts_filters_and_chooses(page_file: Path, visit: Callable[..., Any]) -> None:
    page = visit(page_file.as_uri())
    group = page.locator("section.group").filter(has_text="alpha = 0.5").first
    shown = group.locator("table.sortable:visible")
    assert shown.count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"

    def column(number: int) -> list[str]:
        return shown.locator("tbody tr:visible").evaluate_all(f"rows => rows.map(r => r.cells[{number}].textContent)")

    names = column(0)
    assert {"knfu", "fedmd", "fedftg"} == set(names)

    def means() -> list[float]:
        return [fmean(map(float, text.split(", "))) for text in column(2)]  # of two seeds, or of one

    shown.locator("thead button").nth(2).focus()
    page.keyboard.press("Enter")
    values = means()
    assert values == sorted(values, reverse=True)
    assert shown.locator("th[aria-sort=descending]").count() == 1
    page.keyboard.press("Enter")
    assert means() == sorted(values)
    group.locator("input.filter").focus()
    page.keyboard.type("KN")
    assert column(0) == ["knfu"]
    group.locator("select.metric").select_option("global/accuracy")
    assert group.locator("table.sortable:visible").get_attribute("aria-label") == "global/accuracy"
    group.locator("select.metric").select_option("personal/accuracy")
    number = group.locator("input.toggle").nth(0).get_attribute("value")
    line = group.locator(f".of-metric:visible .series-{number}").first
    assert line.evaluate("e => getComputedStyle(e).display") != "none"
    group.locator("input.toggle").nth(0).focus()
    page.keyboard.press("Space")
    assert line.evaluate("e => getComputedStyle(e).display") == "none"
    boxes = group.locator("input.toggle")
    for button, checked in (("None", False), ("All", True)):
        group.get_by_role("button", name=button, exact=True).focus()
        page.keyboard.press("Enter")
        assert boxes.evaluate_all("all => all.map(box => box.checked)") == [checked] * 3
        assert (line.evaluate("e => getComputedStyle(e).display") != "none") == checked


@needs_browser
def test_what_is_pointed_at_stands_out(page_file: Path, visit: Callable[..., Any]) -> None:
    page = visit(page_file.as_uri(), reduced_motion="reduce")
    group = page.locator("section.group").filter(has_text="alpha = 0.5").first
    curves = group.locator(".of-metric:visible svg.chart").first

    def faint() -> set[str]:
        return set(
            curves.locator("[class^=series-]").evaluate_all(
                "all => all.filter(e => getComputedStyle(e).opacity < 0.5)"
                ".map(e => e.getAttribute('class').slice(0, 8))"
            )
        )

    everything = {"series-0", "series-1", "series-2"}
    assert faint() == set()
    group.locator("input.toggle").nth(1).focus()
    assert faint() == everything - {"series-1"}
    group.locator("table.sortable:visible tbody tr").nth(2).hover()
    assert faint() == everything - {"series-2"}
    curves.locator("g.series-0 use").last.hover()  # a measured point
    assert faint() == everything - {"series-0"}
    page.locator("h1").hover()
    assert faint() == set()
    box = group.locator("input.toggle").nth(1)
    box.focus()
    page.keyboard.press("Space")  # what is pointed at is hidden: the others stay as they are
    assert faint() == set()
    page.keyboard.press("Space")
    assert faint() == everything - {"series-1"}
    page.emulate_media(media="print")
    assert faint() == set()


@needs_browser
def test_rows_and_curves_belong_to_the_name_in_the_legend(page_file: Path, visit: Callable[..., Any]) -> None:
    page = visit(page_file.as_uri())
    found = page.evaluate(
        """() => Array.from(document.querySelectorAll("section.group")).flatMap(group => {
            const names = Array.from(group.querySelectorAll(".legend li"), li => li.textContent.trim());
            return names.length < 2 ? [] : [
                ...Array.from(group.querySelectorAll("tr[data-series]"),
                    row => [names[row.dataset.series], row.cells[0].textContent.trim()]),
                ...Array.from(group.querySelectorAll("g[class^=series-]"),
                    part => [names[part.getAttribute("class").slice(7)], part.querySelector("title").textContent])];
        })"""
    )
    assert len(found) > 50
    assert all(name == shown for name, shown in found)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways_by_day_and_night(
    page_file: Path, visit: Callable[..., Any], scheme: str, tmp_path: Path
) -> None:
    page = visit(page_file.as_uri(), viewport={"width": 360, "height": 780}, color_scheme=scheme, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("summary").first.evaluate("e => e.textContent = '/a/' + 'long-name,of=a,sweep,'.repeat(5)")
    page.locator(".words th[scope=row]").last.evaluate("e => e.textContent = 'Strategy'.repeat(6)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    size = page.locator("svg.chart:visible text").first.evaluate("e => e.getBoundingClientRect().height")
    assert size >= 8  # of letters, in pixels
    colours = page.evaluate(
        """() => {
            const style = getComputedStyle(document.documentElement);
            const series = Array.from({length: 8}, (_, i) => `--series-${i}`);
            return ["--paper", "--raised", "--ink", "--soft", "--accent", ...series]
                .map(name => style.getPropertyValue(name).trim());
        }"""
    )
    paper, raised, *inks = map(_luminance, colours)
    assert (paper > 0.5) == (scheme == "light")
    for number, ink in enumerate(inks):
        least = 4.5 if number < 3 else 3.0  # WCAG: text, and graphics
        for ground in (paper, raised):
            assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= least, colours[number + 2]
    chart = page.locator("svg.chart:visible text").first.evaluate("e => getComputedStyle(e).fill")
    assert chart == page.evaluate("getComputedStyle(document.body).color")


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
