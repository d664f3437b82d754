"""Nodes and sites whose texts are mostly unknown words are refused by name; fewer unknown words are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import merged
from helpers.federations import refused, start
from helpers.loopback import Loopback

from fedkd.config import DataConfig, parse_config
from fedkd.data.agreement import Agreement, to_json
from fedkd.data.federation import federate
from fedkd.errors import InputError

COMMON = ["good film", "bad film", "good day", "bad day"]


def texts(folder: Path, *others: str) -> dict[str, Any]:
    """Return `[data]` of two nodes: `a` has common words, `b` ten times each of the given texts with a number."""
    rows = [f"{text},{i % 2},a" for i, text in enumerate(COMMON * 10)]
    rows += [f"{text}{i},{i % 2},b" for i in range(20) for text in others]
    (folder / "texts.csv").write_text("\n".join(["t,y,who", *rows]) + "\n")
    return {
        "file": str(folder / "texts.csv"), "text": "t", "label": "y", "node": "who",
        "partition": {"scheme": "natural"},
    }  # fmt: skip


def test_a_node_of_unknown_words_is_refused_by_name(tmp_path: Path) -> None:
    table = texts(tmp_path, "good x")  # half of its words are in one text only
    data = federate(DataConfig.model_validate(table), 0)
    assert "20 of 120 words are rarer than data.min_count in the training texts; each becomes the unknown token" in (
        data.notes
    )
    table = texts(tmp_path, "good y x")
    assert "20 of 140 words are rarer" in str(federate(DataConfig.model_validate(table), 0).notes)
    table = texts(tmp_path, "x", "good z")
    with pytest.raises(InputError, match="data.text: 40 of 60 words of node b are rarer than data.min_count"):
        federate(DataConfig.model_validate(table), 0)
    assert "unknown" not in str(federate(DataConfig.model_validate({**table, "tokenizer": "bytes"}), 0).notes)
    scheme = {**table, "partition": {"scheme": "iid", "clients": 2}}
    assert "40 of 140 words are rarer" in str(federate(DataConfig.model_validate(scheme), 0).notes)


def test_empty_texts_have_no_unknown_words(tmp_path: Path) -> None:
    table = texts(tmp_path, "good y")
    with (tmp_path / "texts.csv").open("a") as file:
        file.writelines(f",{i % 2},b\n" for i in range(200))
    notes = federate(DataConfig.model_validate(table), 0).notes
    assert "20 of 120 words" in str(notes)
    assert "200 texts are empty" in str(notes)


def test_a_site_of_unknown_words_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"rounds": 1, "model": {"name": "text_cnn", "width": 4, "filters": 4}, "strategy": {"name": "fedavg"}}
    run |= {"train": {"batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}}}
    data = federate(DataConfig.model_validate(texts(tmp_path, "good x")), 0)
    (tmp_path / "spec.json").write_bytes(to_json(Agreement(data.codec, data.classes)))
    own = {"sites": {"count": 1, "spec": str(tmp_path / "spec.json")}, "text": "t", "label": "y", "split": "part"}
    config = parse_config(merged(run, {"data": own, "timeout": 5.0}))
    rows = [f"good film here,{i % 2},{'test' if i > 15 else 'train'}" for i in range(20)]
    (tmp_path / "own.csv").write_text("\n".join(["t,y,part", *rows]))
    sites = {5: {"data": f"file:{tmp_path / 'own.csv'}", "name": "a"}}
    start(config, Loopback(config, sites), tmp_path / "good")
    (tmp_path / "other.csv").write_text("\n".join(["t,y,part", *rows]).replace("film", "cinema"))
    sites[5]["data"] = f"file:{tmp_path / 'other.csv'}"
    said = refused(config, sites, tmp_path, monkeypatch)
    assert "most of its words are not in data.sites.spec" in said
    assert "cinema" not in said
