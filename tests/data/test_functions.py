"""Sets that a function in a file returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedkd.config import SetsConfig
from fedkd.data.datasets import load
from fedkd.data.samples import Dataset
from fedkd.errors import InputError

HEAD = """
import numpy as np, torch, fedkd
from PIL import Image
rng = np.random.default_rng(0)
X, Y, T, L = rng.normal(size=(12, 3)), np.arange(12) % 3, rng.normal(size=(6, 3)), np.arange(6) % 3

class Items(torch.utils.data.Dataset):
    classes = ["a", "b", "c"]
    def __init__(self, values, labels=None):
        self.values, self.labels = values, labels if labels is not None else [i % 3 for i in range(len(values))]
    def __len__(self): return len(self.values)
    def __getitem__(self, i): return self.values[i], self.labels[i]

def f(root=None, download=False):
    return """


def read(tmp_path: Path, code: str, size: int | None = None, **options: Any) -> Dataset:
    path = tmp_path / f"f{len(list(tmp_path.iterdir()))}.py"  # a file is loaded once
    path.write_text(HEAD + code)
    config = SetsConfig(**options)
    return load(f"{path}:f", tmp_path, download=False, size=size, channels=None, config=config)


@pytest.mark.parametrize(
    ("code", "kind", "shape"),
    [
        ("X, Y, T, L", "table", (3,)),
        ("(X, Y), (T, L)", "table", (3,)),
        ("[X.tolist(), Y.tolist(), T.tolist(), L.tolist()]", "table", (3,)),
        ("dict(x_train=X, y_train=Y, x_test=T, y_test=L, kind='table', columns=['a', 'b', 'c'])", "table", (3,)),
        ("torch.from_numpy(X), torch.from_numpy(Y), torch.from_numpy(T), torch.from_numpy(L)", "table", (3,)),
        ("torch.zeros(12, 3, 4, 5), Y, torch.zeros(6, 3, 4, 5), L", "image", (3, 4, 5)),
        ("np.zeros((12, 4, 5, 3), np.float32), Y, np.zeros((6, 4, 5, 3), np.float32), L", "image", (3, 4, 5)),
        ("np.zeros((12, 4, 5), np.uint8), Y, np.zeros((6, 4, 5), np.uint8), L", "image", (1, 4, 5)),
        ("Items(torch.zeros(12, 3, 4, 5)), Items(torch.zeros(6, 3, 4, 5))", "image", (3, 4, 5)),
        ("Items([Image.new('L', (5, 4))] * 9), Items([Image.new('L', (5, 4))] * 6)", "image", (1, 4, 5)),
        ("Items([Image.new(m, (5, 4)) for m in ('L', 'RGB', 'P')] * 3), Items([Image.new('RGB', (5, 4))] * 6)", "image",
         (3, 4, 5)),
        ("Items([np.ones((2, 3 + i % 3)) for i in range(9)]), Items([np.ones((2, 7))] * 6)", "series", (2, 7)),
        ("Items([np.ones(3 + i % 3, int) * 4 for i in range(9)]), Items([np.ones(9, int)] * 6)", "tokens", (16,)),
        ("torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), Items(T)", "table", (3,)),
    ],
)  # fmt: skip
def test_what_a_function_may_return(tmp_path: Path, code: str, kind: str, shape: tuple) -> None:
    data = read(tmp_path, code)
    assert data.about.kind == kind
    assert data.about.shape == shape
    assert len(data.test.labels) == 6
    assert data.classes == (("a", "b", "c") if code.startswith("Items") else ("0", "1", "2"))


def test_its_own_set_and_its_arguments(tmp_path: Path) -> None:
    code = """fedkd.Dataset(fedkd.Samples(X, Y), fedkd.Samples(T, L), ("a", "b", "c"),
        spec=fedkd.DataSpec(kind="array", shape=(3,)))"""
    assert read(tmp_path, code).about.kind == "array"
    (tmp_path / "g.py").write_text(HEAD.replace("def f(root=None, download=False)", "def f()") + "X, Y, T, L")
    assert load(f"{tmp_path}/g.py:f", tmp_path, download=False, size=None, channels=None).about.kind == "table"
    assert read(tmp_path, "np.ones((12, 3, 4)), Y, np.ones((6, 3, 4)), L", kind="series").about.shape == (3, 4)
    assert read(tmp_path, "X, Y, T, L", kind="array").about.kind == "array"
    big = "Items([Image.new('L', (5 + i, 4)) for i in range(9)]), Items([Image.new('L', (5, 4))] * 6)"
    assert read(tmp_path, big, size=8).about.shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("None", "it returns NoneType; valid are a fedkd.Dataset; x_train"),
        ("(i for i in range(3))", "it returns generator; valid are"),
        ("X, Y, T", "it returns 3 values; valid are"),
        ("X", "it returns ndarray; valid are"),
        ("dict(x_train=X, y_train=Y)", "it returns a dict without x_test, y_test"),
        ("(i for i in range(3)), None", "the training part is generator; valid are"),
        ("X, Y, None, L", "the test part has NoneType for an array"),
        ("X, Y, T, L * 0.5", "y_test in what .* returns must have one whole number or name .* it is float64, 6"),
        ("X, Y, T, L[:3]", "y_test in what .* returns must have one whole number"),
        ("X, Y - 1, T, L", "has the label -1; labels count from 0"),
        ("X, Y, T[:, :2], L", "x_test in what .* returns is float64, 6 x 2"),
        ("X * np.inf, Y, T, L", "train rows: 36 values are not finite"),
        ("torch.zeros(12, 3, device='meta'), Y, T, L", "a tensor on the device meta; return tensors on the CPU"),
        ("np.array([{}] * 12), Y, T, L", "an array of object; it must be numbers"),
        ("[[1.0], [1.0, 2.0]], Y, T, L", "a list of unlike lengths"),
        ("np.ones((12, 3, 4)), Y, np.ones((6, 3, 4)), L", "float64, 12 x 3 x 4; .* set data.kind"),
        ("Items([]), Items(T)", "the training part has no items"),
        ("X.tolist(), Items(T)", "the training part: item 0 is list; it must be a pair"),
        ("Items(X, [[0, 1]] * 12), Items(T)", r"the label of item 0 has the shape \(2,\); it must be one class"),
        ("Items([np.ones((2, 2, 2)), np.ones((3, 2, 2))] * 3), Items(T)", "inputs of 2 shapes: 2 x 2 x 2, 3 x 2 x 2"),
        ("Items(['a'] * 3), Items(T)", "the training part has str for an array"),
        ("1 / 0", "raised ZeroDivisionError"),
        ("exit(3)", "raised SystemExit"),
    ],
)
def test_what_it_may_not_return(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, code)


def test_a_class_as_torchvision_has_them(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text(
        HEAD.replace("def f", "def g")
        + """0
class ByTrain(Items):
    def __init__(self, root, train=True, download=False): super().__init__(torch.zeros(9 if train else 6, 1, 4, 4))
class BySplit(Items):
    def __init__(self, root, split="train"): super().__init__(torch.zeros(9 if split == "train" else 6, 1, 4, 4))
"""
    )
    for name in ("ByTrain", "BySplit"):
        data = load(f"{tmp_path}/c.py:{name}", tmp_path, download=False, size=None, channels=None)
        assert (len(data.train.labels), len(data.test.labels)) == (9, 6)
        assert data.about.shape == (1, 4, 4)
    with pytest.raises(InputError, match="the class Items has neither a parameter `train` nor `split`"):
        load(f"{tmp_path}/c.py:Items", tmp_path, download=False, size=None, channels=None)
    with pytest.raises(InputError, match="is ndarray, no function"):
        load(f"{tmp_path}/c.py:X", tmp_path, download=False, size=None, channels=None)
