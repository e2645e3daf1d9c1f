"""Rows that are drawn, and means of slides, from stores on disk."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilestream
from tests.support.stores import make_store
from tilestream.errors import InputError
from tilestream.fitting.training.features import draw_rows, pool_slides, read_drawn, read_rows


@given(st.lists(st.lists(st.integers(-1, 2), min_size=1, max_size=30), min_size=1, max_size=6), st.integers(1, 60), st.integers(0, 3))
def test_draws_are_even_over_classes_and_slides(lists, limit, seed):
    labels = [np.array(label) for label in lists]
    drawn = draw_rows(labels, 3, limit, seed)
    counts = np.array([[(label[rows] == k).sum() for k in range(3)] for label, rows in zip(labels, drawn, strict=True)])
    there = np.array([[(label == k).sum() for k in range(3)] for label in labels])
    assert counts.sum() == min(limit, there.sum())
    for label, rows in zip(labels, drawn, strict=True):
        assert (label[rows] >= 0).all()
        assert (np.diff(rows) > 0).all()
    # Nobody has two more than another who had more to give.
    totals, all_there = counts.sum(axis=0), there.sum(axis=0)
    for k in range(3):
        assert totals[k] == all_there[k] or totals[k] >= totals.max() - 1
        for i in range(len(labels)):
            assert counts[i, k] == there[i, k] or counts[i, k] >= counts[:, k].max() - 1


def test_what_is_read_is_what_is_stored(tmp_path):
    for name, side in (("a", 40), ("b", 25)):
        make_store(tmp_path / f"{name}.zarr", side, side, dim=5, failed=(3,))
    slides = [tilestream.open(tmp_path / f"{name}.zarr") for name in "ab"]
    labels = [np.where(slide.read_good(), np.arange(slide.layout.tiles) % 3 - 1, -1) for slide in slides]
    drawn = read_drawn(slides, "tiles", labels, 2, 300, 0)
    assert len(drawn.x) == 300
    assert drawn.labelled == sum((label >= 0).sum() for label in labels)
    for i, slide in enumerate(slides):
        own = drawn.case == i
        np.testing.assert_array_equal(drawn.x[own], slide.embeddings[:][drawn.row[own]])
        np.testing.assert_array_equal(drawn.label[own], labels[i][drawn.row[own]])


@pytest.mark.parametrize(("rule", "oracle"), [("mean", np.nanmean), ("max", np.nanmax)])
def test_slides_are_pooled_without_failed_tiles(tmp_path, rule, oracle):
    make_store(tmp_path / "a.zarr", 70, 71, dim=5, failed=(3, 600, 4969))
    slide = tilestream.open(tmp_path / "a.zarr")
    np.testing.assert_allclose(pool_slides([slide], "tiles", rule)[0], oracle(slide.embeddings[:].astype(float), axis=0), atol=1e-9)


def test_a_slide_without_a_good_tile_is_refused(tmp_path):
    make_store(tmp_path / "a.zarr", 1, 2, failed=(0, 1))
    with pytest.raises(InputError, match="a has no tile with an embedding"):
        pool_slides([tilestream.open(tmp_path / "a.zarr")], "tiles", "mean")


@pytest.mark.parametrize("rows", [[], [0], [511], [512], [3, 600], [511, 512, 513], [0, 1, 2, 700], list(range(720))])
def test_any_rows_are_read_none_among_them(tmp_path, rows):
    make_store(tmp_path / "a.zarr", 24, 30)
    array = tilestream.open(tmp_path / "a.zarr").vectors("tiles")
    found = read_rows(array, np.array(rows, np.int64))
    np.testing.assert_array_equal(found, array[:][rows])
    assert found.shape == (len(rows), array.shape[1])
