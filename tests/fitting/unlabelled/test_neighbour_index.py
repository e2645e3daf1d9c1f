"""An index of the tiles of a cohort, against scikit-learn's search through all of them."""

import numpy as np
import pandas as pd
import pytest
from sklearn.neighbors import NearestNeighbors

import tilestream
from tests.support.cohorts import write_rows
from tilestream.errors import InputError, OutputError
from tilestream.fitting.unlabelled.neighbour_index import open_index

SLIDES, TILES, DIM, COUNT = 6, 36, 8, 10


@pytest.fixture
def cohort(tmp_path):
    """Tiles around twenty centres, and queries near some of them."""
    chance = np.random.default_rng(0)
    centres = 3 * chance.normal(size=(20, DIM))
    x = (centres[chance.integers(20, size=(SLIDES, TILES))] + chance.normal(size=(SLIDES, TILES, DIM))).astype(np.float32)
    for i in range(SLIDES):
        write_rows(tmp_path / "out" / f"s{i:02}.zarr", x[i], fingerprint=f"image{i}")
    return tmp_path, x, centres[:6] + chance.normal(size=(6, DIM))


def places(table):
    """Number of each tile among all, (q, count)."""
    return (table["slide"].str[1:].astype(int) * TILES + table["tile"]).to_numpy().reshape(-1, COUNT)


def test_all_cells_give_what_a_search_through_all_tiles_gives_and_some_give_most_of_it(cohort):
    folder, x, queries = cohort
    index = tilestream.index_tiles(folder / "out", folder / "index", cells=12)
    distance, expected = NearestNeighbors(n_neighbors=COUNT, metric="cosine").fit(x.reshape(-1, DIM)).kneighbors(queries)
    found = tilestream.find_nearest(folder / "out", queries, COUNT, index=index, probes=12)
    assert (places(found) == expected).all()
    np.testing.assert_allclose(1 - found["cosine"].to_numpy().reshape(-1, COUNT), distance, atol=1e-6)
    pd.testing.assert_frame_equal(found, tilestream.find_nearest(folder / "out", queries, COUNT), rtol=1e-12)
    few = places(tilestream.find_nearest(folder / "out", queries, COUNT, index=index, probes=4))
    shared = [len(set(a) & set(b)) / COUNT for a, b in zip(few, expected, strict=True)]
    assert np.mean(shared) > 0.8
    known = open_index(index)
    assert sorted(map(tuple, known.places.tolist())) == [(i, row) for i in range(SLIDES) for row in range(TILES)]
    assert np.diff(known.starts).max() < SLIDES * TILES / 2


def test_an_index_of_something_else_is_refused_and_no_other_folder_replaced(cohort):
    folder, x, queries = cohort
    out = folder / "out"
    index = tilestream.index_tiles(out, folder / "index")
    first = {path.name: path.read_bytes() for path in index.iterdir()}
    assert tilestream.index_tiles(out, index) == index
    assert {path.name: path.read_bytes() for path in index.iterdir()} == first
    with pytest.raises(InputError, match="is an index of tiles, but context are looked for"):
        open_index(index).refuse_others([], "context")
    write_rows(out / "s06.zarr", x[0], fingerprint="image6")
    with pytest.raises(InputError, match=r"s06 is new\. Make it again with tilestream\.index_tiles"):
        tilestream.find_nearest(out, queries, index=index)
    (out / "s06.zarr").rename(folder / "away.zarr")
    (out / "s03.zarr").rename(folder / "s03.zarr")
    with pytest.raises(InputError, match="s03 is gone"):
        tilestream.find_nearest(out, queries, index=index)
    write_rows(out / "s03.zarr", x[3] + 1, fingerprint="image3")
    with pytest.raises(InputError, match="s03 has other embeddings"):
        tilestream.find_nearest(out, queries, index=index)
    (folder / "mine").mkdir()
    with pytest.raises(OutputError, match=r"mine is there and is no index of tiles\. Choose another folder"):
        tilestream.index_tiles(out, folder / "mine")
    for damage in ("{}", "no"):
        (index / "index.json").write_text(damage)
        with pytest.raises(InputError, match=r"is no index of tiles that can be read.*Make it with tilestream\.index_tiles"):
            tilestream.find_nearest(out, queries, index=index)
