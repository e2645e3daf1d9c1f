"""`Slide`: one slide's store, for reading; nothing but this class asks whether a store is ours and whether it is finished."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tilestream.errors import IncompleteError, InputError
from tilestream.geometry import PlacedGrid, Size, TileGrid
from tilestream.store.blocks import StoredArray, damage_named, map_blocks, read_rows
from tilestream.store.folder import Folder
from tilestream.store.heads.reading import StoredHeads
from tilestream.store.layout import BLOCK_ROWS, STATUSES, TILES, VECTORS, Layout, Rows, is_good, pool_places, tile_names, vectors_place
from tilestream.store.ledger import NAMED
from tilestream.store.ownership import is_begun, is_ours
from tilestream.store.picture import plot_picture, slide_html
from tilestream.store.slide_store import THUMBNAIL, SlideStore

if TYPE_CHECKING:
    import anndata
    import dask.array
    import pandas as pd

_LACKING = {
    "tiles": "no embeddings of tiles, output.save was {saved}. Run with tiles among them.",
    "context": "no context of tiles, output.save was {saved}. Run with a context, and with tiles among them.",
    "slide": "no vector of the slide, output.save was {saved}. Run with a pool, and with slide among them.",
    "tokens": "no tokens of tiles of a slide encoder. Run with pool.tokens: true.",
}


class Slide(StoredHeads):
    """One slide's embeddings. Nothing is read before it is asked for, and nothing can be written.

    Order: tiles as they are numbered, row-major. Memory bound: `BLOCK_ROWS` rows in `blocks`; else what is asked for.

    Parameters
    ----------
    place : path, URL or Folder
        `<output>/<slide id>.zarr`.
    allow_unfinished : bool
        Whether the slide may lack tiles; rows that are missing are NaN.
    what : str
        A key of `VECTORS`, or of `named_vectors`: which vectors `blocks` gives.
    verify : bool
        Whether a finished slide is checked as it is opened: sizes of all objects, bytes of all but the rows, which are checked as they are read.

    Raises
    ------
    InputError
        There is no store of ours.
    IncompleteError
        The slide is not finished, unless `allow_unfinished`; its creation was cut short; or it is damaged, with `verify`.
    """

    def __init__(
        self, place: str | os.PathLike[str] | Folder, *, allow_unfinished: bool = False, what: str = "tiles", verify: bool = True
    ) -> None:
        self.path = place.address if isinstance(place, Folder) else os.fspath(place)
        self.folder = Folder(self.path, read_only=True)
        self.id = self.path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".zarr")
        about, self.completion = self._open(allow_unfinished=allow_unfinished, verify=verify)
        self.recipe: dict[str, Any] = about["recipe"]
        """The settings that the numbers depend on."""
        self.source: dict[str, Any] = about["source"]
        """The image: address, size, resolution, level that was read."""
        self.listed: dict[str, str] = about.get("listed", {})
        """The other columns of the list of slides, such as patient or site."""
        self.layout, self.what = Layout(**about["layout"]), what

    def _open(self, *, allow_unfinished: bool, verify: bool) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """What the store says of itself, and its completion mark."""
        if not is_ours(self.folder) and not is_begun(self.folder):
            raise InputError(f"{self.path} is not a store of one slide. Give an output folder, or <output>/<slide id>.zarr in it.")
        about, mark = (store := SlideStore(self.folder)).attributes, store.completion
        if verify:
            store.refuse_damaged()
        if about is None:
            raise IncompleteError(f"{self.path}: its creation was cut short. Run its command again.")
        if mark is None and not allow_unfinished:
            raise IncompleteError(
                f"{self.path} is not finished. Run its command again, or allow unfinished slides (allow_unfinished=True, "
                "--allow-unfinished): tiles that are missing count as failed."
            )
        return about, mark

    # -- facts ------------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether every tile was dealt with when the store was opened."""
        return self.completion is not None

    @property
    def size(self) -> Size:
        """The image in level-0 px."""
        return Size(self.source["height"], self.source["width"])

    @property
    def image(self) -> str:
        """Equal for slides that show the same image; of features that were imported without an image, nothing but the slide itself."""
        return str(self.source.get("fingerprint") or self.path)

    @property
    def mpp(self) -> float | None:
        """µm/px of level 0, where it is known."""
        mpp: float | None = self.source["mpp"]
        return mpp

    @property
    def scale(self) -> float:
        """Level-0 px per px of a tile."""
        return float(self.source["scale"])

    @property
    def tile_mpp(self) -> float | None:
        """µm/px of a tile: what the run asked for, else that of what was read; None where it is not known."""
        wanted: float | None = self.recipe["tiles"].get("mpp")
        return wanted if wanted is not None or self.mpp is None else self.mpp * self.scale

    @property
    def tile(self) -> int:
        """Side of a tile, px."""
        return int(self.recipe["tiles"]["size"])

    @property
    def stride(self) -> float:
        """Step between tiles, px."""
        placed = self.source.get("grid")
        return float(placed["stride"] if placed else self.recipe["tiles"]["stride"] or self.tile)

    @property
    def l0_extent(self) -> float:
        """Side of a tile in level-0 px."""
        return self.tile * self.scale

    @property
    def encoder(self) -> str:
        """Name of the encoder."""
        return str(self.recipe["encoder"]["name"])

    @property
    def gridded(self) -> bool:
        """Whether the tiles lie on a regular grid; those that another program chose may not."""
        placed = self.source.get("grid")
        return self.recipe.get("imported", {}).get("grid") != "ranks" and (not placed or bool(placed["regular"]))

    def grid(self) -> TileGrid:
        """The regular grid that the tiles lie on.

        Raises
        ------
        InputError
            Another program chose the tiles, and they lie on none.
        """
        if not self.gridded:
            raise InputError(
                f"{self.id}: its tiles come from another program and lie on no regular grid. Export them as spatialdata, geojson, parquet or csv."
            )
        placed = self.source.get("grid")
        if placed:
            ys, xs = (start + np.rint(np.arange(placed[count]) * self.stride * self.scale).astype(np.int64)
                      for start, count in zip(placed["l0_offset"], ("rows", "cols"), strict=True))  # fmt: skip
            return PlacedGrid(self.size, self.tile, self.stride, self.scale, "pad", l0_ys=ys, l0_xs=xs)
        return TileGrid(self.size, self.tile, self.stride, self.scale, self.recipe["tiles"].get("edge", "pad"))

    # -- arrays -----------------------------------------------------------------------------------------------------

    def has(self, path: str) -> bool:
        """Whether the store holds an array or a group."""
        return self.folder.exists(f"{path}/zarr.json")

    def array(self, path: str) -> zarr.Array[Any]:
        """One array of the store, read where it is indexed, with IncompleteError where that is damaged."""
        return StoredArray.of(self.folder, path)

    def vectors(self, what: str | None = None) -> zarr.Array[Any]:
        """(n, d) the vectors `what`, by default those that the slide was opened for.

        Raises
        ------
        InputError
            The run was told not to keep them.
        """
        what = what or self.what
        place = vectors_place(what)
        assert place is not None, f"{what} is no kind of vectors"
        if not self.has(place):
            named = f" Under names it has {', '.join(self.named_vectors)}." if self.named_vectors else ""
            raise InputError(
                f"{self.path} holds {_LACKING[what.partition('-')[0]].format(saved=', '.join(self.recipe['output']['save']))}{named}"
            )
        return self.array(place)

    @property
    def named_vectors(self) -> list[str]:
        """Contexts and vectors of the slide that are kept under names, as `vectors` takes them: `context-wide`, `slide-wide`, `tokens-wide`."""
        stages = [stage for stage, own in self.recipe.items() if stage.startswith(NAMED) and own is not None]
        found = {stage.replace("pool-", kind) for stage in stages for kind in ("slide-", "tokens-")}
        return [what for what in sorted(found) if self.has(str(vectors_place(what)))]

    @property
    def embeddings(self) -> zarr.Array[Any]:
        """(n, d) one row a tile; a Zarr array, read where it is indexed.

        Raises
        ------
        InputError
            The run was told not to keep them.
        """
        return self.vectors("tiles")

    @property
    def context(self) -> zarr.Array[Any] | None:
        """(n, d2) after the windowed transformer, or None where there is none."""
        return self.array(VECTORS["context"]) if self.has(VECTORS["context"]) else None

    @property
    def attention(self) -> zarr.Array[Any] | None:
        """(n, heads) share of each tile in the slide's vector, or None where the pool has none."""
        place = pool_places("pool")[1]
        return self.array(place) if self.has(place) else None

    def windows(self, side: int) -> zarr.Array[Any]:
        """(rows, cols, d) vectors of the windows of `side` tokens, NaN where a window is empty.

        Raises
        ------
        InputError
            None of this side were kept.
        """
        if not self.has(f"windows/{side}"):
            raise InputError(f"{self.path} holds no windows of {side} tokens. Run with output.save: [windows], windows.sides: [{side}].")
        return self.array(f"windows/{side}")

    @property
    def slide_vector(self) -> NDArray[np.float32] | None:
        """(d,) the pooled vector, or None where none was stored."""
        return np.asarray(self.array(VECTORS["slide"])[0], np.float32) if self.has(VECTORS["slide"]) else None

    def read_column(self, name: str) -> NDArray[Any]:
        """(n,) one column of the tiles: row, col, y, x, tissue or status/codes."""
        place = f"{TILES}/obs/{name}"
        with damage_named(self.folder, place):
            return read_rows(self.folder, place)

    def read_good(self) -> NDArray[np.bool_]:
        """(n,) whether a tile has an embedding."""
        return is_good(self.read_column("status/codes"))

    @property
    def positions(self) -> NDArray[np.int64]:
        """(n, 2) y, x of each tile's top-left in level-0 px."""
        return np.stack([self.read_column(name) for name in ("y", "x")], axis=1)

    @property
    def obs(self) -> pd.DataFrame:
        """One row a tile, named `<slide id>_<row>_<col>`: row, col, y, x, tissue, status, slide, what the list of slides says, and classes by heads."""
        import pandas as pd

        columns: dict[str, Any] = {name: self.read_column(name) for name in ("row", "col", "y", "x", "tissue")}
        columns["status"] = pd.Categorical.from_codes(self.read_column("status/codes"), categories=list(STATUSES))
        for name, value in {"slide": self.id, **self.listed}.items():
            columns[name] = pd.Categorical.from_codes(np.zeros(self.layout.tiles, np.int8), categories=[value])
        columns |= {name: self.read_head_classes(name) for name in self.heads if self.has(f"{TILES}/obs/{name}")}
        return pd.DataFrame(columns, index=tile_names(self.id, columns["row"], columns["col"]))

    def blocks(self) -> Iterator[Rows]:
        """All tiles in order, `BLOCK_ROWS` at a time, with the vectors that the slide was opened for."""
        columns = [self.array(f"{TILES}/obs/{name}") for name in ("row", "col", "y", "x", "tissue", "status/codes")]
        vectors = self.vectors()
        for start in range(0, self.layout.tiles, BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            row, col, y, x, tissue, status = (np.asarray(column[part]) for column in columns)
            yield Rows(row, col, y, x, tissue, status, np.asarray(vectors[part], np.float32))

    def good_blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """x, y (m, 2) int64 level-0 px of the top-left, and vectors (m, d) float32, of the tiles that have one."""
        for rows in self.blocks():
            yield np.stack([rows.x, rows.y], axis=1)[rows.good], rows.vectors[rows.good]

    def vector_blocks(self) -> Iterator[NDArray[np.float32]]:
        """The vectors alone, (m, d) float32 in the same order, read ahead by threads."""
        with damage_named(self.folder, str(vectors_place(self.what))):
            yield from map_blocks(self.vectors(), lambda rows, _: rows)

    def read_commits(self) -> dict[int, dict[str, Any]]:
        """What was told of each shard that is in the store, by its number."""
        return SlideStore(self.folder).ledger()

    # -- in the form of others --------------------------------------------------------------------------------------

    def to_dask(self) -> dask.array.Array:
        """(n, d) `dask.array`, one block a shard."""
        import dask.array as da

        array: da.Array = da.from_zarr(self.embeddings, chunks=(self.layout.shard_tiles, self.layout.dim))
        return array

    def to_anndata(self, *, ok_only: bool = False) -> anndata.AnnData:
        """The table of tiles, in memory; with `ok_only`, without those that failed: no row of it is NaN."""
        import anndata

        with damage_named(self.folder, TILES):
            table = anndata.read_zarr(zarr.open_group(self.folder.store, path=TILES, mode="r"))
        if "slide" not in table.obs:  # a store from before tiles had names
            table.obs = table.obs.set_index(self.obs.index).assign(slide=self.obs["slide"])
        return table[self.read_good()].copy() if ok_only else table

    def read_picture(self) -> bytes | None:
        """The overview, else the thumbnail, as PNG; None for imported slides, which have neither."""
        return self.folder.get("overview.png") or self.folder.get(THUMBNAIL)

    def plot(self, axes: Any = None) -> Any:
        """Draw the overview into matplotlib axes, new ones where none are given, and return them.

        Raises
        ------
        ConfigError
            matplotlib is not installed.
        InputError
            The slide has no picture yet.
        """
        raw = self.read_picture()
        if raw is None:
            raise InputError(f"{self.path} has no picture. Finish its run, or plot .positions yourself.")
        return plot_picture(raw, axes)

    def _repr_html_(self) -> str:
        """What a notebook shows: the picture, small, with shape and recipe."""
        layout = self.layout
        words = f"{layout.tiles:,} tiles x {layout.dim} {layout.dtype}" + (f", context {layout.context_dim}" if layout.context_dim else "")
        return slide_html(self.path, words, self.read_picture(), self.recipe)

    def __repr__(self) -> str:
        return f"<tilestream {self.path}: {self.layout.tiles} tiles x {self.layout.dim}, {self.encoder}>"
