"""Views of rows, series and texts: the published steps by known values, and what no view may change."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.codecs import pixel_codec
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedkd.data.codec import Codec
from fedkd.data.spec import MASKED, PAD, START, Column, DataSpec
from fedkd.errors import InputError
from fedkd.learning.batches import Preprocess
from fedkd.learning.kind_views import (
    changed,
    code_series,
    cut_tokens,
    dropped_tokens,
    permuted,
    replaced,
    scarf_view,
    strong_series,
    vime_view,
    weak_series,
)
from fedkd.learning.views import Wanted, views_of
from fedkd.streams import torch_stream


def wave(shape: tuple[int, ...], step: float, start: float, scale: float = 1.0) -> Tensor:
    return torch.from_numpy(scale * np.sin(step * np.arange(math.prod(shape)) + start)).view(shape)


def stream() -> torch.Generator:
    return torch_stream(0, 1, 2, "views")


def test_scarf_takes_cells_of_donors() -> None:
    rows, chosen = wave((6, 4), 0.37, 0.1, 2), wave((6, 4), 1.3, 0.4) < math.sin(0.2)
    donors = (5 * torch.arange(24).view(6, 4) + 3) % 6
    assert int(chosen.sum()) == 14
    found = replaced(rows, rows, chosen, donors)[0]
    torch.testing.assert_close(found, torch.tensor([0.19966683, 0.90577257, 1.46446289, 1.87123200]).double())


def test_scarf_changes_a_fixed_number_of_columns_of_each_row() -> None:
    """0.6 of 13 columns: 7; an indicator goes with its number. The published rewrite changes the other 40 %."""
    groups = [*range(10), 3, *range(10, 13)]  # the number 3 has an indicator
    rows, pool = torch.zeros(50, 14), torch.ones(20, 14)
    found = scarf_view(rows, pool, groups, 0.6, stream())
    assert torch.equal(found[:, 3], found[:, 10])
    columns = torch.cat([found[:, :10], found[:, 11:]], dim=1)
    assert columns.sum(1).tolist() == [7.0] * 50
    assert len({tuple(row) for row in columns.tolist()}) > 20


def test_vime_permutes_columns_within_the_batch() -> None:
    rows = torch.arange(40.0).view(10, 4)
    found = vime_view(rows, range(4), 1.0, stream())
    for column in range(4):
        assert sorted(found[:, column].tolist()) == rows[:, column].tolist()
    assert torch.equal(vime_view(rows, range(4), 0.0, stream()), rows)
    many = torch.arange(10_000.0).view(2000, 5)
    share = float((vime_view(many, range(5), 0.3, stream()) != many).float().mean())
    assert 0.27 < share < 0.33


def test_series_are_scaled_and_permuted_in_all_channels_alike() -> None:
    """TS-TCC's code takes the permuted channel 0 for all channels."""
    series = torch.cat([wave((2, 3, 8), 0.37, 0.2, 2), torch.ones(2, 1, 8).double()], dim=1)
    factors = 2 + 1.1 * wave((2, 3), 0.7, 0.3)
    found = changed(series, factors[..., None], None)[0, 1, :3]
    torch.testing.assert_close(found, torch.tensor([-0.10769965, -2.21595017, -4.02428222]).double())
    order = torch.tensor([5, 6, 7, 0, 1, 2, 3, 4]).repeat(2, 1)
    moved = changed(permuted(series, order), torch.ones(()), 0.8 * wave((2, 3, 8), 0.59, 0.6))[1, 2]
    expected = [-2.46156886, -2.26540442, -1.70811126, 1.89482421, 1.45490545, 0.65752164, -0.37517267, -1.43970187]
    torch.testing.assert_close(moved, torch.tensor(expected).double())
    assert abs(float(moved[0]) - -2.63830613) > 0.1


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_no_view_changes_what_is_behind_the_end(lengths: list[int], seed: int) -> None:
    series = torch.randn(len(lengths), 4, 9, generator=torch.Generator().manual_seed(seed))
    tokens = torch.zeros(len(lengths), 9, dtype=torch.int64)
    for row, length in enumerate(lengths):
        series[row, :, length:], series[row, -1, :length] = 0, 1
        tokens[row, :length] = torch.arange(4, 4 + length)
    for view in (weak_series, strong_series, code_series):
        found = view(series, torch.Generator().manual_seed(seed))
        assert torch.equal(found[:, -1], series[:, -1])
        assert not found[:, :-1][(series[:, -1:] == 0).expand(-1, 3, -1)].any()
    masked = dropped_tokens(tokens, torch.Generator().manual_seed(seed))
    assert torch.equal(masked == PAD, tokens == PAD)
    assert ((masked != PAD) & (masked != MASKED)).any(1).all()
    cut = cut_tokens(tokens, torch.Generator().manual_seed(seed))
    gone = [0 if length == 1 else math.ceil(0.2 * length) for length in lengths]
    assert (cut != PAD).sum(1).tolist() == [length - less for length, less in zip(lengths, gone, strict=True)]


def test_the_segments_of_a_series_are_all_there() -> None:
    series = torch.arange(20.0).expand(64, 2, 20).clone()
    series[:, -1] = 1
    found = strong_series(series, stream())[:, 0].round()
    assert all(sorted(row) == sorted(series[0, 0].tolist()) for row in found.tolist())
    assert (found != series[:, 0]).any(1).sum() > 20  # one segment in four changes nothing


def test_a_start_token_stays() -> None:
    tokens = torch.tensor([[START, 5, 6, 7]] * 200)
    assert (dropped_tokens(tokens, stream())[:, 0] == START).all()
    assert (cut_tokens(tokens, stream())[:, 0] == START).all()


def rows_codec() -> Codec:
    columns = (Column(name="a"), Column(name="b", categories=("x", "y")))
    spec = DataSpec(kind="table", shape=(2,), columns=columns)
    return Codec(spec, np.zeros(1), np.ones(1), np.zeros(1), codes=(np.array([1, 2]),))


@pytest.mark.parametrize(("wanted", "valid"), [("official", "auto, scarf, vime"), ("tokens", "auto, scarf, vime")])
def test_views_of_another_kind_are_refused(wanted: Wanted, valid: str) -> None:
    with pytest.raises(InputError, match=f"strategy.aug = {wanted!r}: the samples are of kind 'table'; valid: {valid}"):
        views_of(wanted, ["x"], Preprocess(rows_codec(), "none", torch.device("cpu")), np.zeros((3, 2)))


def test_a_view_of_a_row_has_valid_codes() -> None:
    pool = np.array([[0.5, 0.0], [1.5, 1.0], [2.5, np.nan]])
    for view in views_of("auto", ["x"], Preprocess(rows_codec(), "none", torch.device("cpu")), pool):
        found = view(pool[[0, 1, 2, 0]], stream())
        assert found.shape == (4, 2)
        assert set(found[:, 1].tolist()) <= {0.0, 1.0, 2.0}


def test_images_of_five_channels_have_views_without_colours() -> None:
    prepare = Preprocess(pixel_codec(0.5, 0.5, (5, 8, 8)), "none", torch.device("cpu"))
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 8, 8), dtype=np.uint8)
    for wanted in ("official", "simclr"):
        first, _ = views_of(wanted, ["x"], prepare, images)  # type: ignore[arg-type]
        assert first(images, stream()).shape == (6, 5, 8, 8)
