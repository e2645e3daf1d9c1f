"""Patches and units cover the slide; those that no tile needs are left out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilestream.geometry import Size
from tilestream.models.heads.objects import detect_grid
from tilestream.models.heads.objects.detect_grid import DetectGrid


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([1.0, 2.0, 1.9802, 0.7]), st.integers(100, 700))
def test_every_patch_is_in_one_unit(height, width, scale, size):
    grid = DetectGrid.over(Size(height, width), scale, size, 20, 10)
    seen = [patch for unit in range(grid.units) for patch in zip(*map(np.ndarray.tolist, grid.patches(unit)), strict=True)]
    assert sorted(seen) == [(row, col) for row in range(grid.rows.count) for col in range(grid.cols.count)]
    last = grid.l0_box(grid.units - 1)
    assert last[2] >= height - 1
    assert last[3] >= width - 1


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 1.9802]))
def test_patches_that_meet_a_tile_are_those_that_rectangles_say(seed, scale):
    rng = np.random.default_rng(seed)
    grid = DetectGrid.over(Size(2000, 1500), scale, 130, 20, 5)
    y, x, extent = rng.integers(0, 1900, 6), rng.integers(0, 1400, 6), float(rng.integers(1, 400))
    rows, cols = (index.ravel() for index in np.mgrid[: grid.rows.count, : grid.cols.count])
    found = grid.touched(rows, cols, y, x, extent)
    top, left, side = grid.l0_origins(rows), grid.l0_origins(cols), 130 * scale
    meet = [((top < ty + extent) & (top + side > ty) & (left < tx + extent) & (left + side > tx)) for ty, tx in zip(y, x, strict=True)]
    assert (found == np.any(meet, axis=0)).all()


def test_objects_beyond_the_image_are_nobodys():
    grid = DetectGrid.over(Size(100, 100), 1.0, 64, 10, 0)
    last = grid.rows.count - 1
    boxes = np.array([[40.0, 40.0, 45.0, 45.0], [60.0, 60.0, 63.0, 63.0]])  # of a patch that begins at 54
    assert grid.owned(last, last, boxes)[0].tolist() == [True, False]


def test_an_overlap_that_leaves_no_step_is_refused():
    with pytest.raises(ValueError, match="must exceed"):
        DetectGrid.over(Size(100, 100), 1.0, 64, 40, 12)


def test_units_have_about_the_same_area_whatever_the_patches():
    sides = [DetectGrid.over(Size(20000, 20000), 1.0, size, 32, 0) for size in (128, 512, 2048, 8192)]
    assert all(grid.side * grid.rows.step <= max(detect_grid.UNIT, grid.rows.step) for grid in sides)
    assert sides[-1].side == 1
