"""Every object is kept by exactly one block, whatever the blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilestream.models.heads.objects.ownership import AxisBlocks, owned


@st.composite
def axes(draw) -> AxisBlocks:
    overlap, context = draw(st.integers(2, 40)), draw(st.integers(0, 20))
    size = overlap + 2 * context + draw(st.integers(1, 100))
    return AxisBlocks(draw(st.integers(1, 2000)), size, overlap, context)


@given(axes(), st.data())
def test_every_object_that_is_seen_whole_is_kept_once(axis, data):
    length = data.draw(st.integers(1, min(axis.overlap - 1, axis.length)))
    begin = data.draw(st.integers(0, axis.length - length))
    end = begin + length
    owners = [k for k in range(axis.count) if axis.owns(k, np.array([float(end)]))[0]]
    assert len(owners) == 1
    assert not axis.spans(owners[0], np.array([float(begin)]), np.array([float(end)]))[0]
    # Its owner reads all of it, with the surroundings that it asked for, unless the image ends there.
    start = axis.start(owners[0])
    assert begin >= start + (axis.context if owners[0] else 0)
    assert end <= start + axis.size - (axis.context if owners[0] < axis.count - 1 else 0)


@given(axes())
def test_blocks_cover_the_image(axis):
    assert axis.start(axis.count - 1) + axis.size >= axis.length
    assert axis.count == 1 or axis.start(axis.count - 2) + axis.size < axis.length


@given(axes(), st.data())
def test_an_object_that_is_cut_where_a_block_ends_is_not_kept_there(axis, data):
    block = data.draw(st.integers(0, axis.count - 1))
    end = axis.trusted(block)[1]
    assert block == axis.count - 1 or not axis.owns(block, np.array([end]))[0]


def test_an_object_as_long_as_the_overlap_is_told_and_a_shorter_one_is_not():
    axis = AxisBlocks(1000, 200, 50, 10)
    begin = axis.trusted(1)[0]
    lengths = np.arange(1.0, 80.0)
    assert axis.spans(1, np.full(79, begin), begin + lengths).tolist() == [length >= 50 for length in lengths]


def test_both_axes_must_agree():
    rows, cols = AxisBlocks(300, 100, 20), AxisBlocks(300, 100, 20)
    box = np.array([[70.0, 150.0, 85.0, 170.0]])
    owners = [(r, c) for r in range(rows.count) for c in range(cols.count) if owned(rows, cols, (r, c), box)[0][0]]
    assert owners == [(0, 1)]


def test_sizes_that_leave_no_step_are_refused():
    with pytest.raises(ValueError, match="must exceed"):
        AxisBlocks(100, 40, 20, 10)
