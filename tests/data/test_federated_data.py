"""A federation's shares of a pool of images, also where it has a million nodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Make, lines
from helpers.federations import sites_config
from hypothesis import given
from hypothesis import strategies as st

from fedkd.config import Config
from fedkd.data.federated_data import Ragged
from fedkd.data.federation import federate
from fedkd.data.writing import write_sets
from fedkd.errors import InputError
from fedkd.learning.batches import Preprocess
from fedkd.runs.run import run
from fedkd.streams import numpy_stream


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


NOISE = {"data.noise": 0.3, "data.node_validation": 0.25, "data.validation": {"size": 20}}


def test_noise_rises_linearly_from_the_first_node_to_the_last(tiny: Make) -> None:
    data, clean = (federate(tiny({**NOISE, "data.noise": noise}).data, 0) for noise in (0.3, 0.0))
    for part in ("train", "test", "validation"):
        for node in range(6):
            found, plain = (getattr(one, f"{part}_of")(node) for one in (data, clean))
            normal = numpy_stream(0, 0, node, f"noise-{part}").standard_normal(plain.inputs.shape, dtype=np.float32)
            assert found.inputs.dtype == np.float32
            np.testing.assert_allclose(found.inputs, plain.inputs + 255 * 0.3 * node / 5 * normal, atol=1e-4)
            assert np.array_equal(found.labels, plain.labels)
            assert found.rows is None  # a GPU must not take the images of the whole set in their place
            again = getattr(data, f"{part}_of")(node)
            assert np.array_equal(again.inputs, found.inputs)
    assert data.train_of(5).inputs.min() < 0  # not clipped
    for whole in ("train", "test", "validation"):
        assert np.array_equal(getattr(data, whole).inputs, getattr(clean, whole).inputs)
    assert clean.train_of(1).rows is not None
    assert data.fingerprint != clean.fingerprint


def test_noise_is_of_pixels_from_0_to_1_whatever_the_normalisation(tiny: Make) -> None:
    pixels = {"data.mean": [0.2], "data.deviation": [0.5], "data.node_test": 200}
    data, clean = (federate(tiny({**pixels, "data.noise": noise}).data, 0) for noise in (0.1, 0.0))
    preprocess = Preprocess(data.codec, "none", torch.device("cpu"))
    for node in range(6):
        added = preprocess.of(data.test_of(node)) - preprocess.of(clean.test_of(node))
        assert float(added.std()) == pytest.approx(0.1 * node / 5 / 0.5, rel=0.05, abs=1e-6)


def test_runs_with_noise_agree_on_all_engines(tiny: Make, tmp_path: Path) -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    for name, changes in {
        "clean": {},
        "inline": {"data.noise": 0.5},
        "vectorised": {"data.noise": 0.5, "engine": {"name": "vectorised", "clients_per_step": 3}},
    }.items():
        run(tiny(changes), tmp_path / name)
        found[name] = lines(tmp_path / name)
    last = {name: one[-1]["metrics"]["personal/loss"] for name, one in found.items()}
    assert last["inline"] == pytest.approx(last["vectorised"], rel=1e-3)
    assert last["inline"] != pytest.approx(last["clean"], rel=1e-3)


def test_noise_that_has_no_place_is_refused(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.noise = 0.3: .* the strategy pools images, which have none; remove"):
        run(tiny({"data.noise": 0.3, "strategy": "central"}), tmp_path / "central")
    with pytest.raises(
        InputError, match=r"data.noise: images with noise are beyond the range of pixels; write the sets"
    ):
        write_sets(federate(tiny({"data.noise": 0.3}).data, 0), tmp_path / "sets")
    with pytest.raises(InputError, match=r"noise is for a simulation: sites have images of their own; remove noise"):
        sites_config({"data.noise": 0.3})
    with pytest.raises(InputError, match=r"data.noise = -0.1: .*greater than or equal to 0"):
        tiny({"data.noise": -0.1})
    (tmp_path / "t.csv").write_text("a,label\n" + "".join(f"{row},{row % 2}\n" for row in range(40)))
    table = {"name": None, "file": str(tmp_path / "t.csv"), "label": "label", "noise": 0.1}
    with pytest.raises(InputError, match=r"data.noise = 0.1 is for images; the samples are rows"):
        federate(tiny({f"data.{key}": value for key, value in table.items()}).data, 0)
