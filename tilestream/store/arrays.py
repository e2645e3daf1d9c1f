"""The arrays of a slide that stages fill: one row a tile, shard by shard."""

from __future__ import annotations

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from tilestream.store.anndata_tables import ARRAY
from tilestream.store.layout import Layout

CHECKED = ZstdCodec(level=0, checksum=True)
"""Of the arrays that shards fill: a chunk with a wrong byte is an error for every reader."""


def row_array(group: zarr.Group, name: str, layout: Layout, trailing: tuple[int, ...]) -> None:
    """An array of one row a tile; unwritten rows read as NaN, never as zero."""
    group.create_array(
        name, shape=(layout.tiles, *trailing), dtype=layout.dtype, fill_value=np.nan, attributes=ARRAY, config={"write_empty_chunks": True}, compressors=CHECKED,
        chunks=(layout.chunk_rows, *trailing), shards=(layout.shard_tiles, *trailing),
        dimension_names=["tile", *(["token"] if len(trailing) == 2 else []), "feature"],
    )  # fmt: skip
