"""A scrape of a metrics endpoint."""

from __future__ import annotations

import urllib.request

Samples = dict[tuple[str, ...], float]


def scrape(port: int, host: str = "127.0.0.1") -> Samples:
    """Return the samples of a real HTTP request by name and values of labels, in the order of the labels' names."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
