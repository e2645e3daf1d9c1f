"""AnnData's on-disk form: groups and arrays with the encodings of its specification, version 0.2.0.

Source: https://anndata.readthedocs.io/en/stable/fileformat-prose.html. Written by hand because the embeddings arrive shard by
shard, which `anndata`'s own writer has no way to express; `anndata.read_zarr` opens the result.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from tilestream.store.layout import Layout

ARRAY: dict[str, Any] = {"encoding-type": "array", "encoding-version": "0.2.0"}
STRINGS: dict[str, Any] = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
DICT: dict[str, Any] = {"encoding-type": "dict", "encoding-version": "0.1.0"}
CATEGORICAL: dict[str, Any] = {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}

CHECKED = ZstdCodec(level=0, checksum=True)
"""Of the arrays that shards fill: a chunk with a wrong byte is an error for every reader."""


def create_table(
    parent: zarr.Group, name: str, dim: int, obs: dict[str, NDArray[Any]], uns: dict[str, Any], index: list[str], more: Iterable[str] = ()
) -> zarr.Group:
    """An AnnData group without X, in the on-disk form of anndata 0.2.0 elements, which `anndata.read_zarr` opens.

    `index` names its rows; the columns `more` of obs are for the caller to write.
    """
    group = parent.create_group(name, attributes={"encoding-type": "anndata", "encoding-version": "0.1.0"})
    spatial = obs.pop("spatial", None)
    table = group.create_group("obs", attributes=column_order(obs, more))
    write_strings(table, "_index", index)
    for column, values in obs.items():
        write_plain(table, column, values)
    variables = group.create_group("var", attributes=column_order((), ()))
    write_strings(variables, "_index", [str(k) for k in range(dim)])
    for mapping in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
        group.create_group(mapping, attributes=DICT)
    if spatial is not None:
        write_plain(group.require_group("obsm"), "spatial", spatial)
    for key, value in uns.items():
        write_scalar(group.require_group("uns"), key, value)
    return group


def column_order(columns: Iterable[str], more: Iterable[str]) -> dict[str, Any]:
    """The attributes of a table with these columns."""
    return {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index", "column-order": [*columns, *more]}


def write_plain(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    """An array of one row a tile that is known when the table is created."""
    chunks = (max(1, min(len(values), 65536)), *values.shape[1:])
    group.create_array(name, data=values, chunks=chunks, attributes=ARRAY)


def write_categories(table: zarr.Group, name: str, codes: NDArray[np.int8], categories: list[str]) -> None:
    """A column of few values."""
    column = table.create_group(name, attributes=dict(CATEGORICAL))
    write_plain(column, "codes", codes)
    write_strings(column, "categories", categories)


def write_strings(group: zarr.Group, name: str, values: list[str]) -> None:
    """An array of strings of any length."""
    array = group.create_array(name, shape=(len(values),), chunks=(max(1, min(len(values), 65536)),), dtype="string", attributes=STRINGS)
    if values:
        array[:] = np.asarray(values, dtype=object)


def write_scalar(group: zarr.Group, name: str, value: str | float) -> None:
    """A string or number of `uns`, as a 0-d array."""
    kind = {"encoding-type": "string" if isinstance(value, str) else "numeric-scalar", "encoding-version": "0.2.0"}
    dtype: Any = "string" if isinstance(value, str) else np.asarray(value).dtype
    array = group.create_array(name, shape=(), dtype=dtype, attributes=dict(kind))
    array[...] = np.asarray(value, dtype=object) if isinstance(value, str) else value


def row_array(group: zarr.Group, name: str, layout: Layout, trailing: tuple[int, ...]) -> None:
    """An array of one row a tile; unwritten rows read as NaN, never as zero."""
    group.create_array(
        name, shape=(layout.tiles, *trailing), dtype=layout.dtype, fill_value=np.nan, attributes=ARRAY, config={"write_empty_chunks": True}, compressors=CHECKED,
        chunks=(layout.chunk_rows, *trailing), shards=(layout.shard_tiles, *trailing),
        dimension_names=["tile", *(["token"] if len(trailing) == 2 else []), "feature"],
    )  # fmt: skip
