"""The page of published tables is what the results of the runs say."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from helpers import HOME


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(HOME / "benchmarks")
    import published

    return published


def test_the_page_has_all_tables_as_their_rows_are(published: ModuleType) -> None:
    text = (HOME / "docs" / "published.md").read_text()
    assert published.page(text) == text, "run python benchmarks/published.py"


def test_a_kept_table_is_written_with_its_figures(
    published: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {"numbers": {"0": [90.3], "1": [90.7]}, "seconds": {"0": 1800, "1": 1800}}
    setting = {"setting": "mlp-iid", "value": 90.5, "spread": 0.25, **numbers}
    row = {"row": "mlp-iid", "ours": "mlp-iid", "settings": [setting], "agrees": True}
    about = {"hardware": {"machine": "x", "cpus": 2}, "versions": {"torch": "2"}, "date": "2026-12-01", "quick": False}
    (tmp_path / "result.json").write_text(json.dumps({"table": "readme-ashwinrj", "rows": [row], **about}))
    monkeypatch.setattr(published, "ROWS", tmp_path / "rows")
    published.keep(tmp_path)
    result = json.loads((tmp_path / "rows" / "readme-ashwinrj.json").read_text())
    found = published.section("readme-ashwinrj", result)
    assert "| MLP, IID | 88.38 | 91.15 | 90.50 ± 0.25 (2 of 3 seeds) | -0.65 | yes |" in found
    assert "| CNN, IID | 97.28 |  | not run |  |  |" in found
    assert "2 runs, 1.0 hours of one core" in found
    (tmp_path / "result.json").write_text(json.dumps({"table": "readme-ashwinrj", "rows": [], **about, "quick": True}))
    with pytest.raises(SystemExit, match="a short trial is not kept"):
        published.keep(tmp_path)
