"""A federation's shares of a pool of images, also where it has a million nodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.config import Config
from fedkd.data.federated_data import Ragged
from fedkd.data.federation import federate
from fedkd.errors import InputError
from fedkd.runs.run import run


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=6))
def test_ragged_rows_are_what_they_were(rows: list) -> None:
    ragged = Ragged.of([np.array(row, np.int64) for row in rows])
    assert [ragged[i].tolist() for i in range(len(ragged))] == rows
    with pytest.raises(IndexError):
        ragged[len(rows)]


def test_a_million_nodes_share_images_and_a_run_asks_few(tiny: Callable[..., Config], tmp_path: Path) -> None:
    partition = {"scheme": "drawn", "clients": 1_000_000, "alpha": 0.5, "size": 16}
    changes = {"data.partition": partition, "cohort": 3}
    config = tiny(changes)
    run(config, tmp_path / "run")
    found = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [len(line["cohort"]) for line in found] == [0, 3, 3]
    assert max(node for line in found for node in line["cohort"]) > 10_000
    assert len(found[2]["nodes"]["personal/accuracy"]) == 100  # measured, where the config does not say how many
    data = federate(config.data, config.seed)
    assert len(data.train_of(999_999).labels) == 16
    assert set(data.test_of(5).labels) <= set(data.train_of(5).labels)
    with pytest.raises(InputError, match="nodes share images, but the strategy pools"):
        run(tiny({**changes, "strategy": "central"}), tmp_path / "central")
