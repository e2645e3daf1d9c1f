"""The grid covers every pixel once, and its positions follow the contract's formula."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilestream.geometry import Level, PlacedGrid, Size, TileGrid, level_for_scale

sizes = st.integers(1, 300_000)
tiles = st.integers(1, 1024)
scales = st.floats(0.05, 64, allow_nan=False)


@given(height=sizes, width=sizes, tile=tiles, stride=tiles, scale=scales)
def test_the_far_corner_follows_the_formula(height, width, tile, stride, scale):
    grid = TileGrid(Size(height, width), tile, stride, scale)
    assert (grid.rows, grid.cols) == (math.ceil(height / (stride * scale)), math.ceil(width / (stride * scale)))
    for count, length in ((grid.rows, height), (grid.cols, width)):
        last = int(grid.l0_origins(np.array([count - 1]))[0])
        assert last == round((count - 1) * stride * scale)
        assert abs(last - (count - 1) * stride * scale) <= 0.5
        assert last <= length


@given(height=st.integers(1, 400), width=st.integers(1, 400), tile=st.integers(1, 64), scale=st.floats(0.5, 5))
def test_tiles_cover_every_pixel_and_meet_without_gaps(height, width, tile, scale):
    grid = TileGrid(Size(height, width), tile, tile, scale)
    row, col = grid.candidates()
    assert len(row) == grid.rows * grid.cols
    for index, length in ((np.unique(row), height), (np.unique(col), width)):
        starts = grid.l0_origins(index)
        assert starts[0] == 0
        assert (np.abs(np.diff(starts) - grid.l0_extent) <= 1).all()
        assert starts[-1] + grid.l0_extent + 0.5 >= length


@given(height=st.integers(1, 500), width=st.integers(1, 500), tile=st.integers(1, 512), stride=st.integers(8, 512), scale=st.floats(0.2, 8))
def test_drop_leaves_out_exactly_the_tiles_that_hang_over(height, width, tile, stride, scale):
    padded = TileGrid(Size(height, width), tile, stride, scale, "pad")
    dropped = TileGrid(Size(height, width), tile, stride, scale, "drop")
    row, col = padded.candidates()
    over = padded.overhangs(row, col)
    kept = dropped.candidates()
    assert np.array_equal(kept[0], row[~over])
    assert np.array_equal(kept[1], col[~over])


def test_numbering_is_row_major():
    row, col = TileGrid(Size(500, 700), 224, 224, 1.0).candidates()
    assert row.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert col.tolist() == [0, 1, 2, 3] * 3


def test_an_exact_fit_is_not_padded():
    grid = TileGrid(Size(448, 448), 224, 224, 1.0)
    assert not grid.overhangs(*grid.candidates()).any()


def test_grids_of_different_places_are_not_equal():
    def grid(ys, xs):
        return PlacedGrid(Size(1000, 1000), 100, 100.0, 1.0, l0_ys=np.array(ys), l0_xs=np.array(xs))

    same, again = grid([7, 107], [3, 103]), grid([7, 107], [3, 103])
    assert same == again
    assert hash(same) == hash(again)
    for other in (grid([7, 107], [3, 104]), grid([500, 600, 700], [400]), grid([3, 103], [7, 107]), grid([7], [107, 3, 103])):
        assert same != other


@pytest.mark.parametrize(
    ("downsamples", "scale", "level"),
    [
        ((1.0, 2.0, 4.0), 2.0, 1),
        ((1.0, 2.001, 4.016), 2.0, 1),  # 2.001 is within 1 % of 2
        ((1.0, 2.001, 4.016), 4.0, 2),
        ((1.0, 3.9998, 16.0), 4.0, 1),  # an int() would have made 3 of 3.9998
        ((1.0, 2.03), 2.0, 0),
        ((1.0, 4.0), 3.9, 0),
        ((1.0, 4.0), 0.5, None),
        ((1.0,), 0.995, 0),
    ],
)
def test_the_coarsest_level_that_is_not_too_coarse_is_read(downsamples, scale, level):
    levels = tuple(Level(Size(1000, 1000), d) for d in downsamples)
    assert level_for_scale(levels, scale) == level


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [({"tile": 0}, "got 0 and 4"), ({"stride": 0}, "got 4 and 0"), ({"scale": math.nan}, "got nan"), ({"scale": -1.0}, "got -1.0")],
)
def test_impossible_grids_are_refused_at_birth(kwargs, words):
    with pytest.raises(ValueError, match=words):
        TileGrid(**{"l0_size": Size(10, 10), "tile": 4, "stride": 4, "scale": 1.0} | kwargs)
