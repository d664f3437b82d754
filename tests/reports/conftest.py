"""Real runs, the page of them, and a browser to see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, merged
from helpers.browser import CHROMIUM, FLAGS
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config import parse_config
from fedkd.runs.run import run

EXCHANGE: dict[str, Any] = {"data.public": {"size": 60, "labelled": True}, "rounds": 3}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of real runs: two strategies with two seeds, and one that shows generated images."""
    home = tmp_path_factory.mktemp("sweep")
    for name in ("knfu", "fedmd"):
        for seed in range(2):
            config = merged(TINY, {**EXCHANGE, "strategy": {"name": name}, "seed": seed})
            run(parse_config(config), home / f"{name}-{seed}")
    fedftg = {"name": "fedftg", "iterations": 1, "student_steps": 1}
    run(parse_config(merged(TINY, {**EXCHANGE, "strategy": fedftg})), home / "fedftg-0")
    run(parse_config(merged(TINY, {**EXCHANGE, "data.partition.alpha": 0.1})), home / "fedavg-0")
    return home


@pytest.fixture(scope="session")
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
