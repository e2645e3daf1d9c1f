"""Packing depends on places on the absolute grid and on nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tilestream.models.windows import pack_windows, window_partition, window_unpartition

FAR = 1 << 28
places = st.sets(
    st.tuples(st.integers(-FAR, FAR) | st.integers(-6, 6), st.integers(-FAR, FAR) | st.integers(-6, 6)), min_size=1, max_size=30
)


def split(chosen):
    row, col = torch.tensor(sorted(chosen)).T
    return row, col


@given(places, st.integers(1, 5), st.data())
def test_each_token_lies_in_its_own_cell_of_its_own_window(chosen, window, data):
    shift = data.draw(st.integers(0, window - 1))
    row, col = split(chosen)
    cells = pack_windows(row, col, window, shift)
    there = cells >= 0
    assert sorted(cells[there].tolist()) == list(range(len(row)))
    assert there.any(dim=1).all()
    windows = []
    for line in cells.tolist():
        found = {((int(row[t]) + shift) // window, (int(col[t]) + shift) // window) for t in line if t >= 0}
        assert len(found) == 1
        windows += found
        assert all(cell == (row[t] + shift) % window * window + (col[t] + shift) % window for cell, t in enumerate(line) if t >= 0)
    assert windows == sorted(set(windows))


@given(places, st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_matter(chosen, random):
    row, col = split(chosen)
    order = list(range(len(row)))
    random.shuffle(order)
    cells, shuffled = pack_windows(row, col, 4, 2), pack_windows(row[order], col[order], 4, 2)
    assert torch.equal(cells >= 0, shuffled >= 0)
    assert torch.equal(cells[cells >= 0], torch.tensor(order)[shuffled[shuffled >= 0]])


def test_absent_cells_are_zero_even_beside_nan_and_are_not_written_back():
    row, col = torch.tensor([0, 5]), torch.tensor([0, 5])
    tokens = torch.tensor([[torch.nan], [2.0]])
    cells = pack_windows(row, col, 4)
    windows = window_partition(tokens, cells)
    assert windows.shape == (2, 16, 1)
    assert windows.isnan().sum() == 1
    assert windows.nan_to_num().sum() == 2
    back = torch.zeros(2, 1)
    window_unpartition(windows + 1, cells, back)
    assert back.isnan().tolist() == [[True], [False]]
    assert back[1, 0] == 3


def test_no_tokens_make_no_windows():
    none = torch.empty(0, dtype=torch.int64)
    assert pack_windows(none, none, 4).shape == (0, 16)


def test_two_tokens_in_one_place_are_refused():
    with pytest.raises(ValueError, match="same row and column"):
        pack_windows(torch.tensor([1, 1]), torch.tensor([2, 2]), 4)


def test_rows_without_columns_are_refused():
    with pytest.raises(ValueError, match="as many rows as columns"):
        pack_windows(torch.tensor([1, 1]), torch.tensor([2]), 4)
