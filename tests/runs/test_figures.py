"""Partitions are described in words."""

from __future__ import annotations

from collections.abc import Callable

from fedkd.config import Config
from fedkd.runs.figures import partition_name


def test_a_partition_within_domains_is_told_in_words(tiny: Callable[..., Config]) -> None:
    within = {"scheme": "dirichlet", "alpha": 0.5}
    config = tiny({"data.partition": {"scheme": "domains", "per_domain": 3, "within": within}})
    assert partition_name(config) == "domains (per_domain 3, within dirichlet (alpha 0.5))"
    assert partition_name(tiny({"data.partition": {"scheme": "domains"}})) == "domains"
