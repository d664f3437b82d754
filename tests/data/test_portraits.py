"""Small pictures of samples."""

from __future__ import annotations

import numpy as np

from fedkd.data.portraits import portraits, value_of
from fedkd.data.spec import Column, DataSpec


def test_images_are_shown_as_they_are_or_scaled() -> None:
    images = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4)
    assert portraits(DataSpec(kind="image", shape=(1, 4, 4), largest=255.0), images) is images
    floats = portraits(DataSpec(kind="image", shape=(1, 4, 4)), images.astype(np.float32) - 5)
    assert (floats.dtype, floats[0].min(), floats[0].max()) == (np.uint8, 0, 255)


def test_other_samples_are_drawn() -> None:
    columns = (Column(name="age"), Column(name="sex", categories=("f", "m")))
    rows = portraits(DataSpec(kind="table", shape=(2,), columns=columns), np.array([[50.0, 1.0], [np.nan, np.nan]]))
    series = np.full((2, 2, 9), np.nan, np.float32)
    series[0, :, :5] = np.sin(np.arange(10)).reshape(2, 5)
    lines = portraits(DataSpec(kind="series", shape=(2, 9)), series)
    words = ("<pad>", "<unknown>", "<start>", "<mask>", "żółw", "sat")
    texts = portraits(DataSpec(kind="tokens", shape=(4,), words=words), np.array([[4, 5, 0, 0], [5, 5, 5, 5]]))
    arrays = portraits(DataSpec(kind="array", shape=(2, 3)), np.arange(12.0).reshape(2, 2, 3))
    for drawn in (rows, lines, texts, arrays):
        assert (drawn.dtype, len(drawn), drawn.shape[1]) == (np.uint8, 2, 3)
        assert drawn[0].min() < 128
    assert lines[1].min() == 255  # a series without steps
    assert not np.array_equal(rows[0], rows[1])


def test_cells_are_written_with_their_categories() -> None:
    assert [value_of(None, 1234.5), value_of(("a", "b"), 1.0), value_of(None, float("nan"))] == ["1.23e+03", "b", "-"]
