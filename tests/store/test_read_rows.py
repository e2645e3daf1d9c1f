"""Rows that are read without zarr are those that zarr reads."""

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tilestream.store.blocks import read_rows
from tilestream.store.folder import Folder
from tilestream.store.zarr_chunks import stored_reader

DTYPES = ("int8", "uint8", "int32", "int64", "float16", "float32", "float64")


def array_in(folder, *, shape, dtype="int64", chunk=7, shard=None, fill=None, **options):
    return zarr.open_group(folder, mode="a").create_array(
        "obs/a", shape=shape, dtype=dtype, chunks=(chunk, *shape[1:]), shards=None if shard is None else (shard, *shape[1:]), fill_value=fill, **options
    )  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_rows_of_any_array_of_ours(tmp_path_factory, data):
    folder, count = tmp_path_factory.mktemp("a"), data.draw(st.integers(0, 60))
    chunk, dtype = data.draw(st.integers(1, 20)), data.draw(st.sampled_from(DTYPES))
    shard = data.draw(st.sampled_from([None, chunk, 3 * chunk]))
    shape = data.draw(st.sampled_from([(count,), (count, 2), (count, 2, 3)]))
    fill = np.nan if dtype.startswith("float") else -1 if not dtype.startswith("u") else 3
    array = array_in(folder, shape=shape, dtype=dtype, chunk=chunk, shard=shard, fill=fill)
    written = data.draw(st.integers(0, count))  # the rest was never written, and reads as the fill value
    array[:written] = np.arange(np.prod(shape)).reshape(shape).astype(dtype)[:written]
    rows = slice(data.draw(st.one_of(st.none(), st.integers(0, count))), data.draw(st.one_of(st.none(), st.integers(0, count))))
    rows = rows if rows.start is None or rows.stop is None or rows.start <= rows.stop else slice(rows.stop, rows.start)
    found, wanted = read_rows(Folder(str(folder)), "obs/a", rows), array[rows]
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": zarr.codecs.BloscCodec(cname="lz4")},
        {"compressors": None},
        {"filters": [zarr.codecs.TransposeCodec(order=(1, 0))]},
        {"chunk_key_encoding": {"name": "v2", "separator": "."}},
        {"serializer": zarr.codecs.BytesCodec(endian="big")},
        {"dtype": "complex64"},
    ],
)
def test_what_is_not_understood_is_left_to_zarr(tmp_path, options):
    array = array_in(tmp_path, shape=(20, 2), **options)
    array[:] = np.arange(40).reshape(20, 2)
    np.testing.assert_array_equal(read_rows(Folder(str(tmp_path)), "obs/a", slice(3, 11)), np.arange(40).reshape(20, 2)[3:11])


def test_arrays_of_other_kinds_have_no_reader(tmp_path):
    store = Folder(str(tmp_path)).store
    assert stored_reader(store, "a", {}) is None
    assert stored_reader(store, "a", {"zarr_format": 2}) is None


def test_an_array_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"."):
        read_rows(Folder(str(tmp_path)), "obs/a")


def test_damaged_rows_are_an_error(tmp_path):
    array = array_in(tmp_path, shape=(20,), chunk=20)
    array[:] = np.arange(20)
    chunk = tmp_path / "obs" / "a" / "c" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises((ValueError, RuntimeError), match=r"."):
        read_rows(Folder(str(tmp_path)), "obs/a")
