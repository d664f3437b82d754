"""The site of the documentation: every page and every public name is on it, and no link of it is broken."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import HOME

import fedkd


def pages_in(nav: Any) -> Iterator[str]:
    """Yield the pages in a navigation of mkdocs."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav if isinstance(nav, list) else nav.values():
            yield from pages_in(part)


def test_the_api_page_has_each_public_name_once() -> None:
    named = re.findall(r"^::: fedkd\.(\w+)$", (HOME / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(fedkd.__all__)


def test_every_page_is_in_the_navigation_once() -> None:
    nav = yaml.safe_load((HOME / "mkdocs.yml").read_text())["nav"]
    beside = ["index.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"]  # the home is README.md
    pages = [path.relative_to(HOME / "docs").as_posix() for path in HOME.glob("docs/**/*.md")]
    assert sorted(pages_in(nav)) == sorted([*pages, *beside])


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=HOME, capture_output=True, text=True, check=False, timeout=540)
    assert done.returncode == 0, done.stderr
    texts = {
        path.relative_to(tmp_path / "site").as_posix(): path.read_text() for path in tmp_path.glob("site/**/*.html")
    }
    assert all(f'id="fedkd.{name}"' in texts["api.html"] for name in fedkd.__all__)
    assert "Run a federation to its end; return the run." in texts["api.html"]
    assert 'href="configs.html"' in texts["index.html"]
    assert 'href="../files/strategies/fedx.py"' in texts["methods/fedx.html"]
    assert (tmp_path / "site/files/strategies/fedx.py").read_text() == (HOME / "strategies/fedx.py").read_text()
    loaded = (
        r"<(?:script|img|iframe)\b[^>]*\bsrc=\"?(\w+:)?//|<link\b[^>]*\brel=\"?stylesheet\"?[^>]*\bhref=\"?(\w+:)?//"
    )
    assert [name for name, text in texts.items() if re.search(loaded, text)] == []
