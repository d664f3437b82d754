"""What a site counts of its requests, in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import Make
from helpers.federations import failures, partitioned, start

from fedkd.deployment.site_requests import Requests, count_request, read_requests
from fedkd.files import NotWritten


def count(path: Path, request: str, *, failed: bool = False, up: dict[str, int] | None = None) -> None:
    count_request(path, request, failed=failed, seconds=1.5, down={"weights": 10}, up=up or {}, now=7.0)


def test_counts_add_up(tmp_path: Path) -> None:
    path = tmp_path / "requests.json"
    assert read_requests(path) == Requests()
    count(path, "fit", up={"weights": 10, "numbers": 8})
    count(path, "fit", failed=True)
    count(path, "digest", up={"weights": 1})
    assert read_requests(path) == Requests(
        answered={"fit": 1, "digest": 1},
        failed={"fit": 1},
        seconds={"fit": 3.0, "digest": 1.5},
        down={"weights": 30},
        up={"weights": 11, "numbers": 8},
        last=7.0,
    )


@pytest.mark.parametrize("content", ["", "{", '{"answered": {"fit": -1}}', '{"more": 1}', "[" * 10**5, "\x00"])
def test_a_damaged_file_counts_from_0(tmp_path: Path, content: str) -> None:
    path = tmp_path / "requests.json"
    path.write_text(content)
    count(path, "fit")
    assert read_requests(path).answered == {"fit": 1}


def test_a_disk_that_is_full_disturbs_no_request(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FEDKD_METRICS", "9464")

    def full(path: Path, content: bytes) -> None:
        raise NotWritten(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr("fedkd.deployment.site_requests.write", full)
    config = tiny({"rounds": 1})
    grid = partitioned(config)
    grid.sites[5] = {"partition-id": 1, "state": str(tmp_path / "state")}
    grid.contexts[5] = grid._fresh(5)
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == []
    assert "The metrics of this site are behind: " in caplog.text
