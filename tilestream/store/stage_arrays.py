"""Metadata of the arrays that stages after the tiles fill, from the shapes and recipes of a slide alone: it can be made again at any time, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tilestream.store.anndata_tables import ARRAY, CHECKED, column_order, create_table, row_array, write_plain
from tilestream.store.folder import Folder
from tilestream.store.heads.columns import head_of_stage, head_places, make_columns, shape_files
from tilestream.store.layout import SLIDE, TILES, Layout, TileColumns, WindowGrid, context_place, pool_places
from tilestream.store.ledger import NAMED, Ledger
from tilestream.store.records import sums_of

OBS = f"{TILES}/obs/zarr.json"
"""Names the columns of tiles, those of heads among them."""

OBS_COLUMNS = ("row", "col", "y", "x", "tissue")
"""Columns of tiles that are known before a pixel is read."""

OVERVIEW = "overview.png"


def obs_columns(columns: TileColumns) -> dict[str, NDArray[Any]]:
    """The columns of tiles that are known before a pixel is read, and their centres."""
    return {"row": columns.row, "col": columns.col, "y": columns.y, "x": columns.x, "tissue": columns.tissue, "spatial": _centres(columns)}


def _centres(columns: TileColumns) -> NDArray[np.float64]:
    """(n, 2) x, y of the tile centres in level-0 px: AnnData's order."""
    half = columns.l0_extent / 2
    return np.stack([columns.x + half, columns.y + half], axis=1).astype(np.float64)


def stage_metadata(
    layout: Layout,
    windows: Iterable[WindowGrid],
    heads: Mapping[str, Mapping[str, Any]],
    listed: Iterable[str],
    frame: str | None,
    named: Iterable[str] = (),
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
        Id of the slide, where heads and named pools need a table of it and there is none.
    named : iterable of str
        Stages that are kept under names.
    """
    made = Folder.in_memory("memory")
    root = zarr.create_group(made.store)
    contexts = {"context": layout.context_dim} | {stage: layout.dim for stage in named if stage.startswith("context-")}
    places = [*(f"{context_place(stage)}/" for stage in contexts), "windows", OBS]
    for stage, dim in contexts.items():
        if dim:
            row_array(root.require_group(f"{TILES}/obsm"), stage, layout, (dim,))
    for grid in windows:
        root.require_group("windows").create_array(
            str(grid.side), shape=(grid.rows, grid.cols, grid.dim), chunks=(1, grid.cols, grid.dim), dtype=layout.dtype, fill_value=np.nan,
            config={"write_empty_chunks": True}, compressors=CHECKED, dimension_names=["row", "col", "feature"],
            attributes={"side_tokens": grid.side, "side_l0_px": grid.l0_side},
        )  # fmt: skip
    added = make_columns(root, layout, heads)
    root.require_group(f"{TILES}/obs").attrs.put(column_order(OBS_COLUMNS, ["status", "slide", *listed, *added]))
    places += [f"{place}/" for name in heads for place in head_places(name)]
    if frame is not None and (any(own["kind"] == "slide" for own in heads.values()) or any(stage.startswith("pool-") for stage in named)):
        create_table(root.require_group("tables"), "slide", 0, {}, {}, [frame])
        places.append(f"{SLIDE}/")
    return {key: made.get(key) or b"" for key in made.names() if key.startswith(tuple(places))}


def _pool_row(stage: str, vector: NDArray[np.float32]) -> dict[str, bytes]:
    """The objects of a vector (d,) of a slide that is kept under a name."""
    made, place = Folder.in_memory("memory"), pool_places(stage)[0]
    zarr.create_group(made.store).require_group(f"{SLIDE}/obsm").create_array(
        stage, data=vector[None].astype(np.float32), chunks=(1, max(1, len(vector))), attributes=ARRAY
    )
    return {key: made.get(key) or b"" for key in made.names(place)}


def slide_table(slide_id: str, vector: NDArray[np.float32]) -> dict[str, bytes]:
    """The objects of the table of a slide whose vector (d,) this is, by name."""
    made = Folder.in_memory("memory")
    slide = create_table(zarr.create_group(made.store).create_group("tables"), "slide", len(vector), {}, {}, [slide_id])
    slide.create_array("X", data=vector[None].astype(np.float32), chunks=(1, max(1, len(vector))), attributes=ARRAY)
    return {key: made.get(key) or b"" for key in made.names(SLIDE)}


@dataclass(frozen=True)
class TokenRows:
    """Tokens of all tiles of a slide, given out as they are written."""

    dim: int
    read: Callable[[slice], NDArray[np.float32]]
    """(m, dim) of some tiles, NaN for those that have none."""


class LaterStages(Ledger):
    """What is made of a slide's rows, and where that goes; the part of `SlideStore` that writes it."""

    if TYPE_CHECKING:

        @property
        def attributes(self) -> dict[str, Any] | None: ...

        @property
        def layout(self) -> Layout: ...

        def array(self, path: str) -> zarr.Array[Any]: ...

    def _named(self) -> list[str]:
        """The stages that are kept under names."""
        return [stage for stage in self.stage_recipes if stage.startswith(NAMED)]

    def make_arrays(self, windows: Iterable[WindowGrid] = (), *, anew: bool = False) -> None:
        """Make the arrays that stages after the tiles fill, or their metadata anew where it is not as it should be; windows of other sides go.

        In a store that is made `anew` there are none.
        """
        about = self.attributes or {}
        framed = not anew and self.folder.exists(f"{SLIDE}/zarr.json")
        frame = None if framed else self.folder.address.rsplit("/", 1)[-1].removesuffix(".zarr")
        wanted = stage_metadata(self.layout, windows, self.heads, about.get("listed", {}), frame, self._named())
        if anew:
            self.folder.set_all(wanted)
            self.folder.flush_all(list(wanted))
            return
        for key, data in wanted.items():
            if data != self.folder.get(key):
                self.folder.put(key, data)
        sides = {key.split("/")[1] for key in self.folder.names("windows") if key.count("/") > 1}
        for side in sides if any(key.startswith("windows/") for key in wanted) else ():
            if f"windows/{side}/zarr.json" not in wanted:
                self.folder.delete_all(f"windows/{side}")

    def holds(self, stage: str) -> bool:
        """Whether all of a stage is committed under its present recipe."""
        kind = stage.partition("-")[0]
        if kind == "context":
            return len(self.ledger(stage)) == self.layout.shards
        if kind == "windows":
            sides = {key.split("/")[1] for key in self.folder.names("windows") if key.count("/") > 1}
            return all(len(self.ledger(f"windows{side}")) == self.array(f"windows/{side}").shape[0] for side in sides)
        return bool(self.ledger(stage)) or stage not in self.stage_recipes

    def drop_head(self, head: str) -> None:
        """Remove what a head has left."""
        for place in head_places(head):
            self.folder.delete_all(place)
        for key in shape_files(head):
            self.folder.delete(key)

    def drop_stage(self, stage: str) -> None:
        """Remove what a stage after the tiles has left."""
        if head := head_of_stage(stage):
            self.drop_head(head)
        elif stage == "windows":
            self.folder.delete_all("windows")
        elif stage.startswith("context"):
            self.folder.delete_all(context_place(stage))
        elif stage == "pool":
            self._clear_slide_table()
        elif stage.startswith("pool-"):
            for place in pool_places(stage):
                self.folder.delete_all(place)

    def _clear_slide_table(self) -> None:
        """Remove the vector of the slide that has no name, and the table round it; what heads and named pools have there stays."""
        others = (*(f"{SLIDE}/obsm/{head}/" for head in self.heads), *(f"{pool_places(stage)[0]}/" for stage in self._named()))
        there = self.folder.names("tables")
        for place in pool_places("pool")[1:]:
            if self.folder.local is not None or any(key.startswith(f"{place}/") for key in there):  # empty folders go as well
                self.folder.delete_all(place)
        for key in there:
            if key.startswith(f"{SLIDE}/") and not key.startswith(others):
                self.folder.delete(key)

    def write_pool(
        self,
        vector: NDArray[np.float32],
        slide_id: str,
        shares: NDArray[np.float32] | None,
        stage: str = "pool",
        tokens: TokenRows | None = None,
        *,
        asked: bool = True,
    ) -> None:
        """Write a vector of the slide, (1, d) float32, and with learned pools the shares of tiles in it, (n, heads) float32; then their entry.

        They are tables/slide/X and tables/tiles/obsm/attention, and of a named pool arrays of its own in both `obsm`. Tokens of tiles, (n, w) float32,
        go beside the shares, shard by shard. The entry says where a vector is not finite though it was `asked` for: there are tiles with an embedding.
        """
        places = pool_places(stage)
        with self.committing():
            self.drop_stage(stage)
            made = slide_table(slide_id, vector) if stage == "pool" else _pool_row(stage, vector)
            self.folder.set_all(made)
            obsm = zarr.open_group(self.folder.store, path=f"{TILES}/obsm", mode="r+", zarr_format=3, use_consolidated=False)
            if shares is not None:
                write_plain(obsm, places[1].rpartition("/")[2], shares)
            if tokens is not None:
                row_array(obsm, places[2].rpartition("/")[2], replace(self.layout, dtype="float32"), (tokens.dim,))
                array = self.array(places[2])
                for shard in range(self.layout.shards):
                    array[self.layout.rows(shard)] = tokens.read(self.layout.rows(shard))
            beside = [key for place in places[1:] for key in self.folder.names(place)] if shares is not None or tokens is not None else []
            self.folder.flush_all([*made, *beside])
            failed = asked and not bool(np.isfinite(vector).all())
            self.record(stage, 0, {**sums_of(made), **self.sums(beside)}, {"failed": int(failed)})

    def write_picture(self, data: bytes) -> None:
        """Write the overview, and its entry."""
        with self.committing():
            self.folder.put(OVERVIEW, data)
            self.record("picture", 0, sums_of({OVERVIEW: data}), {})
