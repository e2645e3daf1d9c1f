"""An output's slides as one cohort, and what is passed over."""

import re

import numpy as np
import pandas as pd
import pytest
import zarr

import tilestream
from tests.support.foreign import SEEDS
from tests.support.stores import make_store
from tilestream.errors import IncompleteError, InputError
from tilestream.store.cohort import Cohort, find_stores, verify_output
from tilestream.store.slide import Slide


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Two slides, one with failed tiles, among things that are not ours."""
    folder = tmp_path_factory.mktemp("cohort")
    make_store(folder / "b.zarr", 3, 4)
    make_store(folder / "a.zarr", failed=(0, 7), mpp=None)
    for name, make in SEEDS.items():
        (folder / name).mkdir()
        make(folder / name / f"{name}.zarr")
        (folder / name / f"{name}.zarr").rename(folder / f"{name}.zarr")
    return folder


def test_an_output_gives_its_slides_in_order_and_by_id(output):
    cohort = tilestream.open(output)
    assert isinstance(cohort, Cohort)
    assert [slide.id for slide in cohort] == cohort.ids == ["a", "b"]
    assert (len(cohort), "a" in cohort, "c" in cohort) == (2, True, False)
    assert isinstance(cohort["b"], Slide)
    assert np.array_equal(cohort["b"].embeddings[:], tilestream.open(output / "b.zarr").embeddings[:])
    with pytest.raises(KeyError, match=r"'c' is not in .*, which holds a, b"):
        cohort["c"]
    assert "2 slides" in repr(cohort)


def test_rows_of_a_cohort_have_names_of_their_own_and_say_their_slide(output):
    cohort = tilestream.open(output)
    obs = cohort.obs
    assert list(obs.columns) == ["row", "col", "y", "x", "tissue", "status", "slide"]
    assert obs.index.is_unique
    assert list(obs.index) == [f"{slide}_{row}_{col}" for slide, row, col in zip(obs["slide"], obs["row"], obs["col"], strict=True)]
    assert list(obs["slide"]) == ["a"] * 20 + ["b"] * 12
    expected = np.concatenate([slide.embeddings[:] for slide in cohort])
    assert np.array_equal(cohort.to_dask().compute(), expected, equal_nan=True)
    table = cohort.to_anndata()
    assert list(table.obs_names) == list(obs.index)
    assert np.array_equal(table.X, expected, equal_nan=True)
    assert table.obsm["spatial"].shape == (32, 2)
    pd.testing.assert_frame_equal(table.obs, obs, check_dtype=False, check_index_type=False)
    stored = zarr.open_group(str(output / "b.zarr" / "tables" / "tiles" / "obs"), mode="r")
    assert list(stored["_index"][:]) == list(obs.index[20:])


def test_only_tiles_with_an_embedding_are_in_a_table_of_ok_ones(output):
    cohort = tilestream.open(output)
    for table, rows in ((cohort["a"].to_anndata(ok_only=True), 18), (cohort.to_anndata(ok_only=True), 30)):
        assert table.shape == (rows, 6)
        assert np.isfinite(table.X).all()
        assert set(table.obs["status"]) <= {"ok", "padded"}


def test_what_is_not_ours_is_neither_a_slide_nor_damage(output):
    assert list(find_stores(str(output))) == ["a", "b"]
    said = []
    assert verify_output(str(output), said.append) == 0
    assert said == ["a: ok", "b: ok"]


@pytest.mark.parametrize("place", ["ome-zarr.zarr", "zarr-v2-group.zarr", "zarr-v3-array.zarr", "nothing", "folder.zarr"])
def test_what_is_neither_an_output_nor_a_store_is_refused(output, place):
    with pytest.raises(InputError, match=re.escape(str(output / place))):
        tilestream.open(output / place)
    assert not (output / "nothing").exists()


def test_slides_that_are_not_finished_are_named_and_left_out(tmp_path):
    make_store(tmp_path / "a.zarr")
    make_store(tmp_path / "b.zarr", finish=False)
    with pytest.warns(UserWarning, match="not finished, and left out: b"):
        cohort = tilestream.open(tmp_path)
    assert cohort.ids == ["a"]
    assert list(cohort.unfinished) == ["b"]
    with pytest.raises(IncompleteError, match=r"b\.zarr is not finished"):
        cohort["b"]
    assert tilestream.open(tmp_path, allow_unfinished=True).ids == ["a", "b"]


def test_slides_of_different_dimensions_are_not_put_into_one_table(tmp_path):
    make_store(tmp_path / "a.zarr", dim=6)
    make_store(tmp_path / "b.zarr", dim=5)
    for asked in (Cohort.to_anndata, Cohort.to_dask):
        with pytest.raises(InputError, match=r"different dimensions \(b 5, a 6\)"):
            asked(tilestream.open(tmp_path))


@pytest.mark.parametrize("name", ["embeddings", "attention", "windows"])
def test_readers_cannot_write(tmp_path, name):
    make_store(tmp_path / "a.zarr")
    for path in ("tables/tiles/obsm/attention", "windows/2"):
        zarr.create_array(str(tmp_path / "a.zarr"), name=path, data=np.ones((2, 2)))
    slide = tilestream.open(tmp_path / "a.zarr")
    array = {"embeddings": slide.embeddings, "attention": slide.attention, "windows": slide.windows(2)}[name]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        slide.folder.put("notes.txt", b"")
    with pytest.raises(ValueError, match="read-only"):
        slide.folder.delete("zarr.json")


def test_tables_of_stores_from_before_tiles_had_names_get_them(tmp_path):
    make_store(tmp_path / "a.zarr")
    obs = zarr.open_group(str(tmp_path / "a.zarr" / "tables" / "tiles" / "obs"), mode="r+")
    obs["_index"][:] = np.array([str(k) for k in range(20)], dtype=object)
    del obs["slide"]
    obs.attrs["column-order"] = [name for name in obs.attrs["column-order"] if name != "slide"]
    table = tilestream.open(tmp_path / "a.zarr", verify=False).to_anndata()
    assert list(table.obs_names[:2]) == ["a_0_0", "a_0_1"]
    assert set(table.obs["slide"]) == {"a"}


def test_star_imports_leave_pythons_own_open_alone():
    names = {}
    exec("from tilestream import *", names)
    assert "open" not in names
    assert "run" in names
