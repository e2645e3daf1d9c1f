"""Shards of rows are the objects that zarr writes."""

import json

import numpy as np
import pytest
import zarr

from tilestream.store.anndata_tables import CHECKED
from tilestream.store.zarr_chunks import encode_shard

ROWS, SHARD, CHUNK = 23, 10, 5


def made(folder, dtype, trailing, fill, **more):
    """An array of rows, its values, and its metadata as stored."""
    settings = {"chunks": (CHUNK, *trailing), "shards": (SHARD, *trailing), "compressors": CHECKED, **more}
    array = zarr.create_array(
        folder, shape=(ROWS, *trailing), dtype=dtype, fill_value=fill, config={"write_empty_chunks": True}, **settings
    )
    values = (np.random.default_rng(0).normal(size=(ROWS, *trailing)) * 9).astype(dtype)
    values[CHUNK : 2 * CHUNK] = fill  # a chunk of nothing is written as well
    array[:] = values
    return values, json.loads((folder / "zarr.json").read_text())


@pytest.mark.parametrize("trailing", [(), (3,), (2, 3)], ids=["column", "vectors", "tokens"])
@pytest.mark.parametrize(("dtype", "fill"), [("float16", np.nan), ("float32", np.nan), ("int8", -1), ("uint16", 0)])
def test_a_shard_is_the_object_that_zarr_writes(tmp_path, dtype, fill, trailing):
    values, described = made(tmp_path, dtype, trailing, fill)
    for number, start in enumerate(range(0, ROWS, SHARD)):
        rows = slice(start, min(start + SHARD, ROWS))
        path = tmp_path.joinpath("c", str(number), *("0" for _ in trailing))
        assert encode_shard(described, rows, values[rows]) == path.read_bytes()
        assert encode_shard(described, rows, values[rows].astype(np.float64)) == path.read_bytes()


@pytest.mark.parametrize("rows", [slice(0, 5), slice(5, 15), slice(20, 22)])
def test_rows_that_are_no_shard_are_left_to_zarr(tmp_path, rows):
    values, described = made(tmp_path, "float32", (3,), np.nan)
    assert encode_shard(described, rows, values[rows]) is None


@pytest.mark.parametrize(
    "other",
    [
        {"shards": None}, {"compressors": None}, {"compressors": zarr.codecs.GzipCodec()}, {"chunks": (5, 1)}, {"chunks": (5, 1), "shards": (10, 1)},
        {"serializer": zarr.codecs.BytesCodec(endian="big")}, {"filters": [zarr.codecs.TransposeCodec(order=(1, 0))]},
    ],
    ids=["no shards", "no compressor", "gzip", "chunks across", "shards across", "big endian", "filter"],
)  # fmt: skip
def test_arrays_of_another_make_are_left_to_zarr(tmp_path, other):
    values, described = made(tmp_path, "float32", (3,), np.nan, **other)
    assert encode_shard(described, slice(0, SHARD), values[:SHARD]) is None
