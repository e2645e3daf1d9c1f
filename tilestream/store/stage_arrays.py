"""Metadata of the arrays that stages after the tiles fill, from the shapes and recipes of a slide alone: it can be made again at any time, byte for byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tilestream.store.anndata_tables import ARRAY, CHECKED, column_order, create_table, row_array
from tilestream.store.folder import Folder
from tilestream.store.heads.columns import SLIDE, TILES, head_places, make_columns
from tilestream.store.layout import Layout, TileColumns, WindowGrid

OBS = f"{TILES}/obs/zarr.json"
"""Names the columns of tiles, those of heads among them."""

OBS_COLUMNS = ("row", "col", "y", "x", "tissue")
"""Columns of tiles that are known before a pixel is read."""


def obs_columns(columns: TileColumns) -> dict[str, NDArray[Any]]:
    """The columns of tiles that are known before a pixel is read, and their centres."""
    return {"row": columns.row, "col": columns.col, "y": columns.y, "x": columns.x, "tissue": columns.tissue, "spatial": _centres(columns)}


def _centres(columns: TileColumns) -> NDArray[np.float64]:
    """(n, 2) x, y of the tile centres in level-0 px: AnnData's order."""
    half = columns.l0_extent / 2
    return np.stack([columns.x + half, columns.y + half], axis=1).astype(np.float64)


def stage_metadata(
    layout: Layout, windows: Iterable[WindowGrid], heads: Mapping[str, Mapping[str, Any]], listed: Iterable[str], frame: str | None
) -> dict[str, bytes]:
    """Objects by name.

    Parameters
    ----------
    layout, windows : Layout, iterable of WindowGrid
        The shapes.
    heads : mapping
        Recipes of heads by name.
    listed : iterable of str
        Columns of tiles that come from the list of slides.
    frame : str, optional
        Id of the slide, where heads need a table of it and there is none.
    """
    made = Folder.in_memory("memory")
    root = zarr.create_group(made.store)
    places = [f"{TILES}/obsm/context/", "windows", OBS]
    if layout.context_dim:
        row_array(root.require_group(f"{TILES}/obsm"), "context", layout, (layout.context_dim,))
    for grid in windows:
        root.require_group("windows").create_array(
            str(grid.side), shape=(grid.rows, grid.cols, grid.dim), chunks=(1, grid.cols, grid.dim), dtype=layout.dtype, fill_value=np.nan,
            config={"write_empty_chunks": True}, compressors=CHECKED, dimension_names=["row", "col", "feature"],
            attributes={"side_tokens": grid.side, "side_l0_px": grid.l0_side},
        )  # fmt: skip
    added = make_columns(root, layout, heads)
    root.require_group(f"{TILES}/obs").attrs.put(column_order(OBS_COLUMNS, ["status", "slide", *listed, *added]))
    places += [f"{place}/" for name in heads for place in head_places(name)]
    if frame is not None and any(own["kind"] == "slide" for own in heads.values()):
        create_table(root.require_group("tables"), "slide", 0, {}, {}, [frame])
        places.append(f"{SLIDE}/")
    return {key: made.get(key) or b"" for key in made.names() if key.startswith(tuple(places))}


def slide_table(slide_id: str, vector: NDArray[np.float32]) -> dict[str, bytes]:
    """The objects of the table of a slide whose vector (d,) this is, by name."""
    made = Folder.in_memory("memory")
    slide = create_table(zarr.create_group(made.store).create_group("tables"), "slide", len(vector), {}, {}, [slide_id])
    slide.create_array("X", data=vector[None].astype(np.float32), chunks=(1, max(1, len(vector))), attributes=ARRAY)
    return {key: made.get(key) or b"" for key in made.names(SLIDE)}
