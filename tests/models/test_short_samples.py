"""A model that the shortest series or text of the data breaks is refused before the run, with the layer's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import merged
from helpers.federations import refused

from fedkd.config import parse_config
from fedkd.core.setup import make_setup
from fedkd.data.agreement import Agreement, to_json
from fedkd.data.federation import federate
from fedkd.data.spec import Form
from fedkd.errors import InputError
from fedkd.models.build import build
from fedkd.streams import default_stream, torch_stream

CODE = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

class Part(nn.Module):
    def forward(self, x, mask):
        return (x * mask[:, None]).sum(2) / mask.sum(1, keepdim=True)

class Pooled(nn.Module):  # three pools leave nothing of fewer than eight steps
    def __init__(self, channels, classes, packed):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(channels, 4, 3, padding=1), nn.MaxPool1d(8))
        self.mean, self.layer, self.packed = Part(), nn.GRU(4, 4, batch_first=True), packed
        self.head = nn.Linear(4, classes)
    def forward(self, x, mask):
        lengths, h = mask.sum(1) // 8, self.body(x)
        if self.packed:
            packed = pack_padded_sequence(h.transpose(1, 2), lengths.cpu(), batch_first=True, enforce_sorted=False)
            return self.head(self.layer(packed)[1][0])
        return self.head(self.mean(h, (torch.arange(h.shape[2]) < lengths[:, None]).float()))

class Trimmed(nn.Module):  # a kernel of four is longer than a text of fewer tokens
    def __init__(self, words, classes):
        super().__init__()
        self.words, self.kernel, self.head = nn.Embedding(words, 4), nn.Conv1d(4, 4, 4), nn.Linear(4, classes)
    def forward(self, x, mask):
        x = x[:, : int(mask.sum(1).max())]
        return self.head(self.kernel(self.words(x).transpose(1, 2)).amax(2))

class Plain(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.pools = nn.Sequential(*(nn.MaxPool2d(2) for _ in range(3)))
        self.head = nn.Linear(width, classes)
    def forward(self, x):
        return self.head(self.pools(x).flatten(1) if x.dim() == 4 else x.float().flatten(1))

def mean(shape, classes):
    return Pooled(shape[0], classes, False)
def packed(shape, classes):
    return Pooled(shape[0], classes, True)
def text(form, classes):
    return Trimmed(form.vocabulary, classes)
def plain(shape, classes):
    return Plain(shape[0] * shape[1] if len(shape) == 2 else shape[0], classes)
"""
RUN: dict[str, Any] = {
    "rounds": 1, "strategy": {"name": "fedavg"},
    "train": {"batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.1}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _code(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)


def series(folder: Path, name: str, model: str, shortest: int, part: str = "train") -> dict[str, Any]:
    """Return a run over series of 24 steps, one of them of `shortest` steps."""
    labels = np.arange(8) % 2
    lengths = {one: np.full(8, 24) for one in ("train", "test")}
    lengths[part][3] = shortest
    x = np.ones((8, 2, 24), np.float32) * np.arange(24)
    arrays = {"x_train": x, "y_train": labels, "x_test": x, "y_test": labels}
    np.savez(folder / f"{name}.npz", **arrays, **{f"length_{one}": lengths[one] for one in lengths})
    data = {"file": str(folder / f"{name}.npz"), "partition": {"scheme": "iid", "clients": 2}}
    return {**RUN, "data": data, "model": {"name": f"{folder / 'mine.py'}:{model}"}}


@pytest.mark.parametrize(
    ("model", "part", "message"),
    [
        ("mean", "train", "of 7 steps: the output of layer 'mean' is not finite; leave out what is so short"),
        ("mean", "test", "of 7 steps: the output of layer 'mean' is not finite"),
        ("packed", "train", "of 7 steps: Length of all samples has to be greater than 0"),
    ],
)
def test_a_series_that_pools_leave_nothing_of_is_refused(tmp_path: Path, model: str, part: str, message: str) -> None:
    make_setup(parse_config(series(tmp_path, "long", model, 8, part))).check()
    config = parse_config(series(tmp_path, "short", model, 7, part))
    with pytest.raises(InputError, match=rf"model.name = '.*:{model}' cannot take the shortest series .*{message}"):
        make_setup(config).check()


@pytest.mark.parametrize(("shortest", "fits"), [(4, True), (3, False)])
def test_a_text_that_is_shorter_than_a_kernel_is_refused(tmp_path: Path, shortest: int, fits: bool) -> None:
    rows = [f"a b a b a b a b a,{i % 2},{'test' if i > 9 else 'train'}" for i in range(20)]
    rows += [f"{'a b a b'[: 2 * shortest - 1]},{i % 2},train" for i in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(["t,y,part", *rows]))
    data: dict[str, Any] = {"file": str(tmp_path / "t.csv"), "text": "t", "label": "y", "split": "part"}
    data["partition"] = {"scheme": "iid", "clients": 2}
    setup = make_setup(parse_config({**RUN, "data": data, "model": {"name": f"{tmp_path / 'mine.py'}:text"}}))
    if fits:
        setup.check()
        return
    with pytest.raises(InputError, match="shortest text of the data, of 3 tokens: layer 'kernel' fails: .*Kernel size"):
        setup.check()


def test_a_site_tries_its_own_shortest_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = series(tmp_path, "own", "mean", 7)
    data = federate(parse_config(series(tmp_path, "agreed", "mean", 8)).data, 0)
    (tmp_path / "spec.json").write_bytes(to_json(Agreement(data.codec, data.classes)))
    config = parse_config(
        merged(table, {"data": {"sites": {"count": 1, "spec": str(tmp_path / "spec.json")}}, "timeout": 5.0})
    )
    said = refused(config, {5: {"data": f"npz:{tmp_path / 'own.npz'}", "name": "a"}}, tmp_path, monkeypatch)
    assert "mean cannot take its shortest series; the site's own log says why" in said
    assert "of 7 steps: the output of layer 'mean' is not finite" in caplog.text
    assert "7 steps" not in said


def test_a_model_without_a_mask_needs_series_of_one_length(tmp_path: Path) -> None:
    equal = make_setup(parse_config(series(tmp_path, "equal", "plain", 24)))
    equal.check()
    assert "padding" not in equal.environment.about_models()[0]
    table = series(tmp_path, "unequal", "plain", 23)
    with pytest.raises(InputError, match="takes no mask, .* or set model.ignore_mask = true to let it read them"):
        make_setup(parse_config(table)).check()
    unequal = make_setup(parse_config(merged(table, {"model.ignore_mask": True})))
    unequal.check()
    assert unequal.environment.about_models()[0].endswith("no mask: it reads padding as zeros")
    assert equal.environment.model(0).state_dict().keys() == unequal.environment.model(0).state_dict().keys()


def test_the_layer_that_small_images_break_is_named(tmp_path: Path) -> None:
    with (
        default_stream(torch_stream(0, 0, "server", "test")),
        pytest.raises(InputError, match="for images of 1x3x3 and 2 classes: .*layer 'pools.1' fails"),
    ):
        build(f"{tmp_path / 'mine.py'}:plain", {}, Form("image", (1, 3, 3)), 2)
