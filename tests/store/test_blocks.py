"""Rows are widened to float32 exactly, whoever does it."""

import sys

import numpy as np
import pytest

from tilestream.store.blocks import SERIAL, widen


@pytest.mark.parametrize("by", ["torch", "numpy"])
@pytest.mark.parametrize("width", [1, 7, SERIAL + 5])
def test_every_half_is_the_same_number_in_float32(by, width, monkeypatch):
    if by == "numpy":
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    else:
        pytest.importorskip("torch")
    halves = np.arange(65_536, dtype=np.uint16).view(np.float16)
    rows = np.resize(halves, (-(-65_536 // width), width))
    out = np.empty(rows.shape, np.float32)
    widen(rows, out)
    np.testing.assert_array_equal(out.view(np.uint32)[~np.isnan(rows)], rows.astype(np.float32).view(np.uint32)[~np.isnan(rows)])
    assert np.isnan(out[np.isnan(rows)]).all()


@pytest.mark.parametrize(
    "rows", [np.ones((3, 2), np.float32), np.zeros((0, 2), np.float16), np.frombuffer(bytes(8), np.float16).reshape(2, 2)]
)
def test_other_rows_are_copied(rows):
    out = np.full(rows.shape, np.nan, np.float32)
    widen(rows, out)
    np.testing.assert_array_equal(out, rows)
