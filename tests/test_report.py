"""The page of runs in a real browser: it needs no network, is read on a phone, in the dark, by keyboard and aloud."""

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import merged
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config import Config, parse_config
from fedkd.errors import InputError
from fedkd.reports.charts import legend
from fedkd.reports.watch import listen, make_app, version_of
from fedkd.runs.run import run

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
pytestmark = pytest.mark.xdist_group("browser")

EXCHANGE: dict[str, Any] = {"data.public": {"size": 60, "labelled": True}, "rounds": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of real runs: two strategies with two seeds, and one that shows generated images."""
    from conftest import TINY

    home = tmp_path_factory.mktemp("sweep")
    for name in ("knfu", "fedmd"):
        for seed in range(2):
            config = merged(TINY, {**EXCHANGE, "strategy": {"name": name}, "seed": seed})
            run(parse_config(config), home / f"{name}-{seed}")
    fedftg = {"name": "fedftg", "iterations": 1, "student_steps": 1}
    run(parse_config(merged(TINY, {**EXCHANGE, "strategy": fedftg})), home / "fedftg-0")
    run(parse_config(merged(TINY, {**EXCHANGE, "data.partition.alpha": 0.1})), home / "fedavg-0")
    return home


@pytest.fixture(scope="module")
def page_file(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    result = CliRunner().invoke(app, ["report", str(runs), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert str(out) in result.stdout
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Return a function that opens an address, and fails the test for errors on the page and requests elsewhere."""
    contexts, wrong = [], []

    def go(address: str, **settings: Any) -> Any:
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        allowed = ("data:", address.rsplit("/", 1)[0])
        page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith(allowed) else None)
        page.on(
            "console", lambda m: wrong.append(m.text) if m.type == "error" and "Failed to load" not in m.text else None
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        return page

    yield go
    for context in contexts:
        context.close()
    assert wrong == []


def test_the_page_is_whole_by_itself_and_escapes_what_it_shows(page_file: Path, runs: Path) -> None:
    text = page_file.read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert "data:image/png;base64," in text  # generated images
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for part in ("Who holds what", "Who hears whom", "Images over rounds", "Teachers of the server", "Configs"):
        assert f">{part}</h" in text, part
    again = CliRunner().invoke(app, ["report", str(runs), "-o", str(page_file.parent / "again.html")])
    assert again.exit_code == 0
    assert (page_file.parent / "again.html").read_text() == text


def test_names_from_folders_cannot_become_markup(runs: Path, tmp_path: Path) -> None:
    evil = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(runs / "fedmd-0", evil)
    config = (evil / "config.toml").read_text()
    (evil / "config.toml").write_text(config.replace('name = "fedmd"', 'name = "a.py:<script>alert(1)</script>"'))
    out = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(evil), "-o", str(out)]).exit_code == 0
    assert "<img src=x" not in out.read_text()
    assert "<script>alert" not in out.read_text()


def test_what_diverged_or_was_cut_off_spares_the_page(runs: Path, tmp_path: Path) -> None:
    home = tmp_path / "$runs$"
    for seed in range(2):
        shutil.copytree(runs / f"fedmd-{seed}", home / f"fedmd-{seed}")
    shutil.copytree(runs / "fedftg-0", home / "fedftg-0")
    lines = (home / "fedmd-1" / "metrics.jsonl").read_text()
    (home / "fedmd-1" / "metrics.jsonl").write_text(re.sub(r'"personal/loss": [0-9.]+', '"personal/loss": NaN', lines))
    picture = max((home / "fedftg-0" / "figures").glob("*/round-*.png"))
    picture.write_bytes(picture.read_bytes()[:80])
    config = home / "fedftg-0" / "config.toml"
    config.write_text(config.read_text().replace('name = "fedftg"', r'name = "a.py:A$\\frac$"'))
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(home), "-o", str(out)])
    assert result.exit_code == 0, result.output
    text = out.read_text()
    assert "personal/loss ends as nan" in text
    assert f"{picture.name}: cannot be shown" in text
    assert "A$" in text


def test_options_in_which_runs_of_one_strategy_differ_are_bold(runs: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        shutil.copytree(runs / "fedmd-0", tmp_path / "all" / f"fedmd-{number}")
    config = tmp_path / "all" / "fedmd-2" / "config.toml"
    config.write_text(config.read_text().replace("temperature = 1.0", "temperature = 2.0"))
    shutil.copytree(runs / "fedavg-0", tmp_path / "all" / "fedavg")
    out = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(tmp_path / "all"), "-o", str(out)]).exit_code == 0
    configs = out.read_text().split('<h2 id="configs">')[1]
    assert re.findall("<strong>(.*?)</strong>", configs) == ["temperature 1", "temperature 2"]
    assert '<th scope="row">data.partition.alpha</th><td>0.1 · 0.5</td>' in configs
    assert '<th scope="row">fedavg</th><td>none</td>' in configs


def test_nodes_stand_best_strategy_first(page_file: Path) -> None:
    text = page_file.read_text()
    for metric, best in (("personal/accuracy", max), ("personal/loss", min)):
        told = re.findall(f">{metric} of each node</title><desc[^>]*>(.*?)</desc>", text)
        rows = [[float(mean) for mean in re.findall(r"mean (\d+\.?\d*)", one)] for one in told]
        assert max(map(len, rows)) == 3
        assert all(means == sorted(means, reverse=best is max) for means in rows), metric


def test_many_strategies_have_lines_of_their_own() -> None:
    assert len({legend(number) for number in range(40)}) == 40


def test_failed_runs_do_not_enter_means(runs: Path, tmp_path: Path) -> None:
    for seed in range(2):
        shutil.copytree(runs / f"fedmd-{seed}", tmp_path / "all" / f"fedmd-{seed}")
    summary = tmp_path / "all" / "fedmd-1" / "summary.json"
    summary.write_text(summary.read_text().replace('"completed"', '"failed"'))
    out = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(tmp_path / "all"), "-o", str(out)]).exit_code == 0
    assert "fedmd-1: failed after round 3 of 3; left out." in out.read_text()
    assert ">2</td>" not in out.read_text().split("<tbody>")[1].split("</tbody>")[0]  # seeds


def test_other_images_under_equal_configs_are_told(runs: Path, tmp_path: Path) -> None:
    for name in ("fedmd-0", "knfu-0"):
        shutil.copytree(runs / name, tmp_path / "all" / name)
    summary = tmp_path / "all" / "knfu-0" / "summary.json"
    summary.write_text(re.sub(r'"data": "[0-9a-f]+"', '"data": "other"', summary.read_text()))
    out = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(tmp_path / "all"), "-o", str(out)]).exit_code == 0
    assert "trained on other images or another partition" in out.read_text()


def test_bad_folders_are_told_and_the_rest_is_shown(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "fedmd-0", tmp_path / "all" / "going-on")
    (tmp_path / "all" / "going-on" / "summary.json").unlink()
    shutil.copytree(runs / "fedmd-1", tmp_path / "all" / "broken")
    (tmp_path / "all" / "broken" / "summary.json").write_text("{")
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(tmp_path / "all"), "-o", str(out)])
    assert result.exit_code == 0
    assert "broken: its files cannot be read" in result.stderr
    for shown in (out.read_text(), result.stderr):
        assert "going-on: unfinished after round 3 of 3; shown as far as it is." in shown
    (tmp_path / "none").mkdir()
    for arguments in (["none"], ["nowhere"], ["all", "-o", str(tmp_path)], ["all", "-o", str(out / "x.html")]):
        words = [str(tmp_path / arguments[0]), *arguments[1:]] + (["-o", str(out)] if len(arguments) == 1 else [])
        refused = CliRunner().invoke(app, ["report", *words])
        assert (refused.exit_code, "Traceback" in refused.output) == (2, False)


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
    shown.locator("thead button").nth(2).focus()
    page.keyboard.press("Enter")
    values = [float(text.split(" ")[0]) for text in column(2)]
    assert values == sorted(values, reverse=True)
    assert shown.locator("th[aria-sort=descending]").count() == 1
    page.keyboard.press("Enter")
    assert [float(text.split(" ")[0]) for text in column(2)] == sorted(values)
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


@pytest.fixture
def served(tiny: Callable[..., Config], tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve the page of a run that has ended one of two rounds."""
    import uvicorn

    folder = tmp_path / "run"
    run(tiny(), folder)
    whole = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(whole[:2]))
    (folder / "summary.json").rename(folder / "later.json")
    (folder / "later.jsonl").write_text("".join(whole))
    listening = listen(0)
    server = uvicorn.Server(uvicorn.Config(make_app(folder), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield folder, f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join()


def test_watch_serves_the_loopback_only(served: tuple[Path, str]) -> None:
    folder, address = served
    answer = httpx.get(address)
    assert answer.status_code == 200
    assert "unfinished: round 1 of 2" in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert httpx.get(address, headers={"Host": "attacker.example"}).status_code == 400
    assert httpx.get(address + "version").text == version_of(folder)
    assert httpx.get(address + "docs").status_code == 404
    port = int(address.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(InputError, match=f"--port {port}: cannot be listened on"):
        listen(port)
    pages: list[str] = []
    (folder / "later.jsonl").rename(folder / "metrics.jsonl")
    asked = [threading.Thread(target=lambda: pages.append(httpx.get(address, timeout=60).text)) for _ in range(4)]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join()
    assert len(set(pages)) == 1  # drawn once, and whole
    assert "unfinished: round 2 of 2" in pages[0]
    shutil.rmtree(folder)
    assert httpx.get(address).status_code == 503
    with pytest.raises(InputError, match="there is no run"):
        make_app(folder)


@needs_browser
def test_the_watched_page_follows_the_run(served: tuple[Path, str], visit: Callable[..., Any]) -> None:
    folder, address = served
    page = visit(address)
    assert "round 1 of 2" in page.locator("#progress").inner_text()
    page.locator("select.metric").first.select_option("global/loss")
    page.locator("details").first.locator("summary").click()
    folder.rename(folder.parent / "away")
    page.get_by_text("There is no answer").wait_for(timeout=30_000)
    (folder.parent / "away").rename(folder)
    (folder / "later.jsonl").rename(folder / "metrics.jsonl")
    (folder / "later.json").rename(folder / "summary.json")
    page.get_by_text("completed: round 2 of 2").wait_for(timeout=30_000)
    assert page.locator("select.metric").first.input_value() == "global/loss"  # what was chosen stays
    assert page.locator("details[open]").count() == 1


def test_partitions_are_kept_for_the_page(runs: Path) -> None:
    kept = json.loads((runs / "knfu-0" / "partition.json").read_text())
    assert [sum(row) for row in kept["counts"]] == [24] * 6
    assert len(kept["classes"]) == 10
