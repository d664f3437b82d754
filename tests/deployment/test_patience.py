"""Without a `timeout`, the time for replies follows what replies have taken; a line names the awaited sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from helpers import Make
from helpers.federations import events, failures, partitioned, start
from helpers.loopback import Clock, Loopback

from fedkd.deployment.patience import FIRST_LIMIT, LEAST_LIMIT, MOST_LIMIT, TIMES_LONGEST, time_limit, waiting_line


def test_the_limit_is_some_times_the_longest_time_within_bounds() -> None:
    assert time_limit([]) == FIRST_LIMIT
    assert time_limit([0.2]) == time_limit([LEAST_LIMIT / TIMES_LONGEST]) == LEAST_LIMIT
    assert time_limit([1000.0]) == 1000 * TIMES_LONGEST
    assert time_limit([10.0**6]) == MOST_LIMIT


def test_half_of_the_sites_or_fewer_cannot_stretch_the_limit() -> None:
    assert time_limit([1000.0, 40_000.0]) == time_limit([1000.0, 40_000.0, 900.0]) == 1000 * TIMES_LONGEST


def test_a_line_names_few_sites() -> None:
    assert waiting_line("3", "fit", ["site-2"], 62.3) == "round 3, 'fit': waiting for site-2 (62 s)"
    assert waiting_line("3", "fit", ["a", "b", "c"], 9) == "round 3, 'fit': waiting for a, b and c (9 s)"
    names = [f"s{n}" for n in range(8)]
    assert waiting_line("3", "fit", names[:6], 9).endswith("s0, s1, s2, s3, s4 and 1 other (9 s)")
    assert waiting_line("3", "fit", names, 9).endswith("s0, s1, s2, s3, s4 and 3 others (9 s)")


def slow(grid: Loopback, clock: Clock, seconds: dict[tuple[int, str], float]) -> None:
    """Let replies to `fit` come late: seconds by node and round."""
    until: dict[str, float] = {}

    def held(message: Message, node_config: dict[str, Any]) -> bool:
        key = (node_config["partition-id"], message.metadata.group_id)
        if message.metadata.message_type != "train.fit" or key not in seconds:
            return False
        return clock.now < until.setdefault(message.metadata.message_id, clock.now + seconds[key])

    grid.held = held


def times_to_live(grid: Loopback) -> dict[str, float]:
    """Return the time to live of the requests `fit`, by round."""
    return {m.metadata.group_id: m.metadata.ttl for m in grid.sent if m.metadata.message_type == "train.fit"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("fedkd.deployment.sites.time", clock)
    return clock


def test_a_reply_that_never_comes_holds_its_round_for_the_limit(tiny: Make, tmp_path: Path, clock: Clock) -> None:
    config = tiny({"rounds": 2, "evaluate.every": 9, "cohort": 6})
    grid = partitioned(config)
    slow(grid, clock, {(3, "2"): 1e9})
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run")[0] == "2 3 fit: no reply within 600 s, and the config sets no timeout"
    assert times_to_live(grid) == {"1": 3 * FIRST_LIMIT, "2": 3 * LEAST_LIMIT}


def test_the_first_request_gets_longer(tiny: Make, tmp_path: Path, clock: Clock) -> None:
    config = tiny({"rounds": 1, "evaluate.every": 9})
    grid = partitioned(config)
    slow(grid, clock, {(n, "1"): FIRST_LIMIT - 1 for n in range(6)} | {(3, "1"): FIRST_LIMIT + 1})
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == ["1 3 fit: no reply within 3600 s, and the config sets no timeout"]


def test_the_limit_grows_with_slow_replies_also_with_late_ones(tiny: Make, tmp_path: Path, clock: Clock) -> None:
    config = tiny({"rounds": 4, "evaluate.every": 9})
    grid = partitioned(config)
    slow(grid, clock, {(node, "1"): 200.0 for node in range(4)} | {(node, "2"): 1200.0 for node in range(4)})
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run")[0] == "2 0 fit: no reply within 1000 s, and the config sets no timeout"
    assert any("late reply to 'fit' of round 2, dropped" in event for event in events(tmp_path / "run"))
    limits = {number: ttl / 3 for number, ttl in times_to_live(grid).items()}
    assert limits["1"] == FIRST_LIMIT
    assert limits["2"] == pytest.approx(1000, abs=3)
    assert limits["4"] == pytest.approx(6000, abs=5)


def test_a_configs_timeout_is_the_limit(tiny: Make, tmp_path: Path, clock: Clock) -> None:
    config = tiny({"rounds": 1, "timeout": 50.0, "evaluate.every": 9})
    grid = partitioned(config)
    slow(grid, clock, {(3, "1"): 51.0})
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == ["1 3 fit: no reply within 50 s"]


def test_the_awaited_sites_are_named_after_a_minute_and_then_rarely(tiny: Make, tmp_path: Path, clock: Clock) -> None:
    config = tiny({"rounds": 1, "evaluate.every": 9})
    grid = partitioned(config)
    slow(grid, clock, {(2, "1"): 59.0, (3, "1"): 100.0, (5, "1"): 700.0})
    heard: list[str] = []
    start(config, grid, tmp_path / "run", on_event=heard.append)
    waiting = [line for line in heard if "waiting" in line]
    assert waiting == [
        "round 1, 'fit': waiting for partition-3 and partition-5 (60 s)",
        "round 1, 'fit': waiting for partition-5 (660 s)",
    ]
