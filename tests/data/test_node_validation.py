"""Each node's validation samples: which they are, that no node trains on them, and that all engines agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import Make, lines, server_state
from helpers.federations import metrics_of, partitioned, start, with_own_data
from helpers.loopback import Loopback

from fedkd.config import DataConfig, parse_config
from fedkd.core.environment import Environment
from fedkd.data.agreement import Agreement, to_json
from fedkd.data.federation import federate
from fedkd.data.node_validation import held_out
from fedkd.data.writing import write_sets
from fedkd.errors import InputError
from fedkd.runs.run import run
from fedkd.streams import numpy_stream

SHARE = {"data.node_validation": 0.25}
NAMES = ("personal_validation/accuracy", "personal_validation/loss")


@pytest.mark.parametrize(
    ("count", "share", "held"), [(0, 0.5, 0), (1, 0.9, 0), (2, 0.01, 1), (2, 0.99, 1), (40, 0.1, 4), (40, 0.99, 39)]
)
def test_a_share_is_held_out_one_at_least_and_never_all(count: int, share: float, held: int) -> None:
    found = held_out(np.zeros(count, np.int64), share, 0, 0)
    assert found.shape == (count,)
    assert int(found.sum()) == held


def test_each_class_gives_its_share_and_each_sample_is_drawn_equally_often() -> None:
    labels = np.array([0] * 40 + [1] * 13 + [2] * 3 + [3])[numpy_stream(0, 0, "server", "test").permutation(57)]
    often = np.zeros(57)
    for node in range(2000):
        found = held_out(labels, 0.2, 7, node)
        often += found
        assert found.sum() == 11
        for label, count in enumerate((40, 13, 3, 1)):
            wanted = count * 11 / 57
            assert int(wanted) <= found[labels == label].sum() <= int(wanted) + 1
    assert np.abs(often / 2000 - 11 / 57).max() < 4.5 * np.sqrt(11 / 57 * 46 / 57 / 2000)
    assert np.array_equal(held_out(labels, 0.2, 7, 3), held_out(labels, 0.2, 7, 3))
    assert not np.array_equal(held_out(labels, 0.2, 8, 3), held_out(labels, 0.2, 7, 3))


def test_the_rest_of_a_nodes_samples_stay_and_its_tests_too(tiny: Make) -> None:
    whole, data = (federate(tiny(one).data, 0) for one in ({}, SHARE))
    assert whole.validation_of(0) is None
    assert data.validation_parts is not None
    for node in range(6):
        both = np.sort(np.concatenate([data.train_parts[node], data.validation_parts[node]]))
        assert np.array_equal(both, whole.train_parts[node])
        assert np.array_equal(data.test_parts[node], whole.test_parts[node])
        held = held_out(whole.train_of(node).labels, 0.25, 0, node)
        found = data.validation_of(node)
        assert found is not None
        assert np.array_equal(found.inputs, whole.train_of(node).inputs[held])
        assert len(found.labels) == 6
    assert data.label_counts().sum() == 6 * 18
    assert data.notes == (
        f"{len(data.train.labels) - 144} of {len(data.train.labels)} training images are with no node",
    )
    assert data.notes == whole.notes
    assert set(data.pooled()).isdisjoint(data.validation_parts.values)


def test_a_scheme_whose_nodes_share_samples_is_refused(tiny: Make) -> None:
    scheme = {"data.partition": {"scheme": "drawn", "clients": 3, "alpha": 1.0, "size": 9}}
    with pytest.raises(InputError, match=r"data.node_validation = 0.25: with data.partition.scheme = 'drawn' nodes"):
        federate(tiny({**SHARE, **scheme}).data, 0)


def rows(folder: Path, part: str = "validation") -> dict[str, Any]:
    """Write 60 rows of three holders, each a number of its own; return `[data]`. Every fifth is for validation."""
    names = [part if i % 5 == 0 else "test" if i % 5 == 1 else "train" for i in range(60)]
    table = {"a": np.arange(60.0), "y": np.arange(60) % 2, "who": np.arange(60) % 3, "part": names}
    table["a"][0] = 1e6  # a validation row, which teaches the codec nothing
    table["c"] = ["only here" if i == 5 else "uv"[i % 2] for i in range(60)]
    pd.DataFrame(table).to_csv(folder / "rows.csv", index=False)
    return {
        "file": str(folder / "rows.csv"), "label": "y", "node": "who", "split": "part",
        "partition": {"scheme": "natural"},
    }  # fmt: skip


@pytest.mark.parametrize("part", ["validation", "VAL"])
def test_a_file_names_the_validation_rows_of_its_holders(tmp_path: Path, part: str) -> None:
    table = rows(tmp_path, part)
    data = federate(DataConfig.model_validate({**table, "public": {"size": 6}}), 0)
    seen = []
    for node in range(3):
        found = data.validation_of(node)
        assert found is not None
        values = np.where(found.inputs[:, 0] == 1e6, 0, found.inputs[:, 0])
        assert sorted(values) == [i for i in range(0, 60, 5) if i % 3 == node]
        assert len(data.test_of(node).labels) == 4
        seen += data.train_of(node).inputs[:, 0].tolist()
    assert data.public is not None
    assert sorted(seen + data.public.inputs[:, 0].tolist()) == [i for i in range(60) if i % 5 > 1]
    training = [i for i in seen if i % 5 > 1]
    assert data.codec.mean[0] == pytest.approx(np.mean(training))
    assert int(data.codec.codes[0].max()) == 2  # u and v
    assert data.label_counts().sum() == 30


def test_validation_rows_need_their_holders(tmp_path: Path) -> None:
    table = rows(tmp_path)
    with pytest.raises(InputError, match=r"data.split = 'part': 12 rows are for .*scheme = 'iid' gives rows to other"):
        federate(DataConfig.model_validate({**table, "partition": {"scheme": "iid", "clients": 3}}), 0)
    with pytest.raises(InputError, match=r"data.node_validation: data.split = 'part' names validation rows already"):
        federate(DataConfig.model_validate({**table, "node_validation": 0.1}), 0)
    with pytest.raises(InputError, match="has the values vali; valid: train, test, validation"):
        federate(DataConfig.model_validate(rows(tmp_path, "vali")), 0)


@pytest.mark.parametrize(
    "changes",
    [{}, {"strategy.name": "local"}, {"strategy.name": "fedproto"}, {"data.partition.size": 1}],
    ids=["fedavg", "local", "fedproto", "one sample"],
)
def test_all_engines_report_the_same(tiny: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    found = {}
    for engine in ("inline", "vectorised"):
        run(tiny({**SHARE, "engine": {"name": engine}, **changes}), tmp_path / engine)
        found[engine] = [{**one["metrics"]} for one in lines(tmp_path / engine)]
    start(tiny({**SHARE, **changes}), partitioned(tiny({**SHARE, **changes})), tmp_path / "sites")
    there = [name in found["inline"][-1] for name in NAMES]
    assert there == [changes.get("data.partition.size") != 1] * 2
    for one, other, site in zip(found["inline"], found["vectorised"], lines(tmp_path / "sites"), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert other[name] == pytest.approx(one[name], abs=1e-4)
        assert site["metrics"] == one


@pytest.mark.xdist_group("ray")
def test_rays_workers_report_the_same(tiny: Make, tmp_path: Path) -> None:
    for name in ("inline", "ray"):
        engine = {"name": name, **({"workers": 1} if name == "ray" else {})}
        run(tiny({**SHARE, "engine": engine}), tmp_path / name)
    inline, workers = ([one["metrics"] for one in lines(tmp_path / name)] for name in ("inline", "ray"))
    assert inline == workers
    assert NAMES[0] in inline[-1]


def test_the_metrics_are_means_over_the_nodes_own_samples(tiny: Make, tmp_path: Path) -> None:
    config = tiny({**SHARE, "rounds": 1, "checkpoint.every": 1})
    run(config, tmp_path / "run")
    environment = Environment(config)
    weights = server_state(tmp_path / "run")["weights"]
    held = [environment.data.validation_of(node) for node in range(6)]
    scores = [environment.score(0, weights, one) for one in held if one is not None]
    last = lines(tmp_path / "run")[-1]["metrics"]
    for name in ("accuracy", "loss"):
        assert last[f"personal_validation/{name}"] == pytest.approx(np.mean([one[name] for one in scores]))


def test_sites_with_files_of_their_own_draw_what_simulated_nodes_have(tiny: Make, tmp_path: Path) -> None:
    config, sites = with_own_data(tiny(), tmp_path / "sets", SHARE)
    start(config, Loopback(config, sites), tmp_path / "sites")
    run(tiny(SHARE), tmp_path / "simulated")
    for mine, theirs in zip(metrics_of(tmp_path / "sites"), metrics_of(tmp_path / "simulated"), strict=True):
        assert {n: v for n, v in theirs["metrics"].items() if "global" not in n} == mine["metrics"]
        assert NAMES[0] in mine["metrics"]


def test_a_sites_file_names_its_validation_rows(tmp_path: Path) -> None:
    table = {"rounds": 1, "model": {"name": "table_mlp"}, "strategy": {"name": "fedavg"}, "data": rows(tmp_path)}
    table |= {"train": {"batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}}}
    data = federate(parse_config(table).data, 0)
    (tmp_path / "spec.json").write_bytes(to_json(Agreement(data.codec, data.classes)))
    paths = write_sets(data, tmp_path / "sets")
    assert pd.read_parquet(paths[0])["split"].value_counts().to_dict() == {"train": 12, "test": 4, "validation": 4}
    own = {"sites": {"count": 3, "spec": str(tmp_path / "spec.json")}, "label": "label", "split": "split"}
    config = parse_config({**table, "data": own, "timeout": 5.0})
    sites = {id: {"data": f"file:{path}", "name": f"s{id}"} for id, path in enumerate(paths, 5)}
    start(config, Loopback(config, sites), tmp_path / "sites")
    run(parse_config(table), tmp_path / "simulated")
    mine, theirs = (lines(tmp_path / name)[-1]["metrics"] for name in ("sites", "simulated"))
    assert {n: v for n, v in theirs.items() if "global" not in n} == mine
    assert NAMES[1] in mine


def test_an_npz_has_no_place_for_validation_samples(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape("data.node_validation: an npz has no place for validation samples")):
        write_sets(federate(tiny(SHARE).data, 0), tmp_path)
    assert not list(tmp_path.iterdir())
