"""Metrics of a federation for Prometheus: at the server those of its newest run, at a site those of its requests.

They are read from files: `metrics.jsonl` of a run folder, `requests.json` of a site's state.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError, reason_of
from ..files import read
from ..runs.forms import MOST_BYTES, Line, Summary, read_form, read_lines
from .roster import ROSTER, Roster
from .site_requests import REQUESTS, read_requests

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_ADDRESS = re.compile(r"(?:(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):)?([0-9]{1,5})")
_LOOPBACK = "127.0.0.1"
_METRICS, _SUMMARY = "metrics.jsonl", "summary.json"  # `runs.run_folder` would import torch


def serve_metrics(address: str, collect: Callable[[], Iterable[Metric]]) -> None:
    """Serve metrics at http://<address>/metrics from a thread of this process.

    `address`: `port`, which is served on the loopback only, or `host:port`. Raises InputError for another form, for an
    address that is in use, and without the library prometheus-client.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found[2]) < 2**16:
        raise InputError(f"FEDKD_METRICS = {address!r}: give a port, such as 9464, or host:port, such as 0.0.0.0:9464.")
    try:
        from prometheus_client import CollectorRegistry, start_http_server
        from prometheus_client.registry import Collector
    except ImportError:
        raise InputError(f"FEDKD_METRICS = {address!r}: install fedkd[metrics], which has prometheus-client.") from None

    class Files(Collector):
        def collect(self) -> Iterable[Metric]:
            return collect()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Files())
    try:
        start_http_server(int(found[2]), (found[1] or _LOOPBACK).strip("[]"), registry)
    except OSError as error:
        raise InputError(f"FEDKD_METRICS = {address!r}: this address cannot be used: {reason_of(error)}.") from error


def newest_run(runs: Path) -> Path | None:
    """Return the run folder in a folder of runs whose metrics have changed last; None if there is none."""
    found = [(path.stat().st_mtime_ns, path.parent) for path in runs.glob(f"*/{_METRICS}") if path.is_file()]
    return max(found)[1] if found else None


def metrics_of_run(runs: Path) -> Iterator[Metric]:
    """Yield the metrics of the newest run in a folder of runs; none if its files cannot be read at this moment."""
    try:
        if (folder := newest_run(runs)) is None:
            return
        about = (folder / _METRICS).stat()
        lines = _lines_of(folder / _METRICS, about.st_mtime_ns, about.st_size)
        rounds = tomllib.loads(read(folder / "config.toml", MOST_BYTES).decode())["rounds"]
        names = {number: name for name, number in Roster.read(folder / ROSTER).numbers.items()}
        ended = read_form(folder / _SUMMARY, Summary, folder)["status"] if (folder / _SUMMARY).is_file() else None
    except (OSError, ValueError, KeyError, InputError):
        return
    last = lines[-1:]
    parts = ("round", "evaluation")
    failures = Counter(
        (names.get(one.get("node"), str(one.get("node"))), str(one.get("action")))
        for line in lines
        for one in line["failures"]
    )
    sizes: Counter[tuple[str, str]] = Counter()
    for ledger in (line[key] for line in lines for key in ("bytes", "evaluation_bytes")):
        for direction, kinds in ledger.items():
            sizes.update({(direction, kind): size for kind, size in kinds.items()})
    run = folder.name
    yield _metric("gauge", "fedkd_rounds", "Rounds that the run shall have.", (), {(): rounds}, run)
    finished = {(): last[0]["round"]} if last else {}
    yield _metric("gauge", "fedkd_round", "The last finished round; 0 is the preparation.", (), finished, run)
    status = {} if ended is None else {(ended,): 1}
    yield _metric("gauge", "fedkd_run_ended", "1 if the run has ended.", ("status",), status, run)
    yield _metric(
        "gauge",
        "fedkd_round_seconds",
        "Seconds of the last finished round, by part.",
        ("part",),
        {(part,): line["seconds"][part] for line in last for part in parts},
        run,
    )
    yield _metric(
        "counter",
        "fedkd_seconds",
        "Seconds of all rounds, by part.",
        ("part",),
        {(part,): sum(line["seconds"][part] for line in lines) for part in parts},
        run,
    )
    yield _metric("counter", "fedkd_failures", "Failures, by node and request.", ("node", "request"), failures, run)
    yield _metric("counter", "fedkd_bytes", "Bytes to (down) and from (up) sites.", ("direction", "kind"), sizes, run)


@functools.lru_cache(maxsize=1)
def _lines_of(path: Path, changed: int, size: int) -> list[dict[str, Any]]:
    """Return the lines of a run. `changed`, `size`: of the file, which is read again only if one of them is another."""
    return read_lines(path, Line)[0]


def metrics_of_site(state: Path) -> Iterator[Metric]:
    """Yield the metrics of the requests that a site has got. `state`: its state folder."""
    found = read_requests(state / REQUESTS)
    outcomes = {(request, "answered"): count for request, count in found.answered.items()}
    outcomes |= {(request, "failed"): count for request, count in found.failed.items()}
    seconds = {(request,): count for request, count in found.seconds.items()}
    sizes = {("down", kind): size for kind, size in found.down.items()}
    sizes |= {("up", kind): size for kind, size in found.up.items()}
    yield _metric("counter", "fedkd_site_requests", "Requests of the server.", ("request", "outcome"), outcomes)
    yield _metric("counter", "fedkd_site_seconds", "Seconds of work, by request.", ("request",), seconds)
    yield _metric("counter", "fedkd_site_bytes", "Bytes to (up) and from (down) it.", ("direction", "kind"), sizes)
    last = {} if found.last is None else {(): found.last}
    yield _metric("gauge", "fedkd_site_last_request_timestamp_seconds", "Time of the last one.", (), last)


def _metric(
    kind: Literal["gauge", "counter"],
    name: str,
    about: str,
    labels: tuple[str, ...],
    samples: Mapping[Any, float],
    run: str | None = None,
) -> Metric:
    """Return a metric. `samples`: values by the tuple of their labels' values. `run`: the value of a label `run`."""
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    family = (GaugeMetricFamily if kind == "gauge" else CounterMetricFamily)(
        name, about, labels=labels if run is None else ("run", *labels)
    )
    for values, value in sorted(samples.items()):
        family.add_metric(values if run is None else (run, *values), value)
    return family
