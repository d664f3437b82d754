"""Small real sets that come with fedkd: a table, texts, series, each with natural nodes (see shipped/README.md)."""

from __future__ import annotations

from pathlib import Path

from ..config import SetsConfig
from .npz import from_npz
from .samples import Dataset
from .table_files import from_rows

_HOME = Path(__file__).parent / "shipped"


def heart(*, root: Path, download: bool) -> Dataset:
    """Return UCI's Heart Disease (Janosi et al., 1988): 920 patients of four hospitals, 13 columns; disease or not."""
    return from_rows(_HOME / "heart.csv", SetsConfig(label="disease", node="hospital", drop=["num"]))


def sentences(*, root: Path, download: bool) -> Dataset:
    """Return Sentiment Labelled Sentences (Kotzias et al., 2015): 3,000 sentences of three sites; positive or not."""
    return from_rows(_HOME / "sentences.csv", SetsConfig(label="label", text="text", node="site"))


def spoken_digits(*, root: Path, download: bool) -> Dataset:
    """Return a part of the Free Spoken Digit Dataset (Jackson et al.): 0 to 3, 504 recordings by six speakers."""
    return from_npz(_HOME / "spoken_digits.npz", SetsConfig(kind="series"))
