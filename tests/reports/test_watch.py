"""`fedkd watch`: the loopback only, and a page that follows its run."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.browser import needs_browser

from fedkd.config import Config
from fedkd.errors import InputError
from fedkd.reports.watch import listen, make_app, version_of
from fedkd.runs.run import run

pytestmark = pytest.mark.xdist_group("browser")


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


@needs_browser
def test_what_is_scrolled_open_or_focused_stays_so(served: tuple[Path, str], visit: Callable[..., Any]) -> None:
    folder, address = served
    page = visit(address, viewport={"width": 500, "height": 700})
    table = page.locator(".wide:visible").first
    table.evaluate("e => { e.scrollLeft = 120; }")
    page.locator("pre").first.evaluate("e => { e.parentElement.open = true; e.scrollLeft = 7; }")
    page.evaluate("window.scrollTo(0, 200)")
    select = page.locator("select.metric").first
    select.focus()
    page.keyboard.press("Alt+ArrowDown")  # opens it; it closes if it leaves the page
    select.evaluate("e => { window.opened = e; window.toggled = document.querySelector('details'); }")
    place = select.evaluate("e => e.getBoundingClientRect().top")
    first = page.locator("figure svg:visible").first.evaluate("e => e.outerHTML")
    (folder / "later.jsonl").rename(folder / "metrics.jsonl")
    (folder / "later.json").rename(folder / "summary.json")
    page.get_by_text("completed: round 2 of 2").wait_for(timeout=30_000)
    assert page.locator("figure svg:visible").first.evaluate("e => e.outerHTML") != first  # the rest is new
    assert page.evaluate("window.opened === document.querySelector('select.metric') && opened.isConnected")
    assert page.evaluate("document.activeElement === window.opened")
    assert page.evaluate("window.toggled.isConnected && window.toggled.open")
    assert table.evaluate("e => e.scrollLeft") == 120
    assert select.evaluate("e => e.getBoundingClientRect().top") == pytest.approx(place, abs=2)  # on the screen
    page.keyboard.press("Escape")
    table.focus()
    page.locator("th button:visible").first.click()  # what the reader does later works on the renewed page
    assert page.locator("th[aria-sort]:visible").count() == 1
