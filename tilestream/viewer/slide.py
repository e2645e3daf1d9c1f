"""One slide as the viewer sees it: places of its tiles, which of them are there, and passes over their embeddings."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError
from tilestream.geometry import Size, placed_at, tiles_at
from tilestream.models.pca import AXES_ROWS, principal_axes
from tilestream.store.folder import Folder
from tilestream.store.layout import BLOCK_ROWS, VECTORS, is_good, nothing_kept
from tilestream.store.slide import Slide

SCORES = 16
"""Leading principal components that are kept of each tile, for clusters and pictures."""

MOST_PLACES = 2048
"""Longest side, in cells, of the map of tiles that lie on no lattice."""

CACHE_BYTES = 96 * 1024**2
"""Blocks of embeddings that are kept for the next click, over all slides."""

Floats = NDArray[np.float32]


class BlockCache:
    """Blocks of rows as they are stored, those of the stores used last. Memory bound: `CACHE_BYTES`.

    A store larger than the cache keeps its first blocks: going round it in a ring, the block used longest ago is the one wanted next.
    """

    def __init__(self) -> None:
        self._stores: OrderedDict[str, dict[int, NDArray[Any]]] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def read(self, address: str, array: Any, part: slice) -> Floats:
        """(m, d) float32 rows of an array."""
        with self._lock:
            blocks = self._stores.setdefault(address, {})
            self._stores.move_to_end(address)
            block = blocks.get(part.start)
        if block is None:
            block = np.asarray(array[part])
            self._keep(address, part.start, block)
        return np.asarray(block, np.float32)

    def _keep(self, address: str, start: int, block: NDArray[Any]) -> None:
        with self._lock:
            blocks = self._stores.setdefault(address, {})
            if start in blocks:  # another thread was faster
                return
            while self._bytes + block.nbytes > CACHE_BYTES and next(iter(self._stores)) != address:
                self._drop(next(iter(self._stores)))
            if self._bytes + block.nbytes <= CACHE_BYTES:
                blocks[start] = block
                self._bytes += block.nbytes

    def _drop(self, address: str) -> None:
        self._bytes -= sum(block.nbytes for block in self._stores.pop(address, {}).values())

    def forget(self, address: str) -> None:
        """Drop the blocks of a store."""
        with self._lock:
            self._drop(address)


@dataclass(frozen=True)
class Extent:
    """A rectangle of level-0 px that a picture covers."""

    l0_y: float
    l0_x: float
    l0_height: float
    l0_width: float

    @classmethod
    def of(cls, size: Size) -> Extent:
        """That of a whole image."""
        return cls(0.0, 0.0, float(size.height), float(size.width))


@dataclass(frozen=True)
class PlaceMap:
    """Which tile lies where: cells of one size over a rectangle of the image."""

    tile: NDArray[np.int64]
    """(h, w) number of the tile in each cell, -1 where there is none."""
    extent: Extent


class ViewedSlide(Slide):
    """A slide's store, finished or not; imported ones too.

    Memory bound: 40 bytes and `SCORES` float16 a tile, and a block of rows.

    Raises
    ------
    InputError
        There is no store of ours, or its embeddings were not kept.
    """

    def __init__(self, place: Folder, cache: BlockCache) -> None:
        super().__init__(place, allow_unfinished=True)
        self.cache, self._lock = cache, threading.Lock()
        self.embedded = self.has(VECTORS["tiles"]) or not self.heads
        """Whether there are embeddings; where heads alone read pixels, there are none."""
        self.rows: Any = self.vectors() if self.embedded else np.full((self.layout.tiles, 1), np.nan, np.float16)
        self.row, self.col, self.y, self.x = map(self.read_column, ("row", "col", "y", "x"))
        self.tissue = self.read_column("tissue")
        self.status = self.read_column("status/codes").copy()
        self.shards = list(range(self.layout.shards)) if self.finished else sorted(self.read_commits())
        committed = np.zeros(self.layout.tiles, np.bool_)
        for shard in self.shards:
            committed[self.layout.rows(shard)] = True
        self.status[~committed] = -1  # what a writer has not committed may still change
        self.good = is_good(self.status) & self.embedded
        self._scores: Floats | None = None
        self._norms: Floats | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the slide holds or will hold, about."""
        return self.layout.tiles * (4 * 8 + 4 + 1 + 1 + 4 + 2 * SCORES)

    @property
    def words(self) -> str:
        """Tiles, failures and what is missing, in words."""
        good = is_good(self.status)
        done, failed = int(good.sum()), int(((self.status >= 0) & ~good).sum())
        missing = int((self.status < 0).sum())
        words = f"{done:,} tiles x {self.layout.dim}, {self.encoder}" if self.embedded else f"{done:,} tiles without embeddings"
        words += f"; {failed:,} failed" if failed else ""
        words += f"; still being written: {missing:,} tiles to come" if not self.finished else ""
        return words + (f"; {nothing_kept(self.source)}" if not self.layout.tiles else "")

    @property
    def mask_word(self) -> str:
        """What the mask of tiles is of: tissue, or data where the image is a map."""
        return "data" if self.source.get("geo") else "tissue"

    def parts(self) -> list[slice]:
        """Row ranges of at most `BLOCK_ROWS` that are committed, in order."""
        found = []
        for shard in self.shards:
            rows = self.layout.rows(shard)
            found += [slice(start, min(start + BLOCK_ROWS, rows.stop)) for start in range(rows.start, rows.stop, BLOCK_ROWS)]
        return found

    def passes(self, skip: int = 0) -> Iterator[tuple[slice, Floats]]:
        """Row ranges and their embeddings (m, d) float32; after each, `skip` ranges are left out."""
        if not self.layout.tiles:
            return
        for part in self.parts()[:: skip + 1]:
            yield part, self.cache.read(self.path, self.rows, part)

    def embedding(self, tile: int) -> Floats:
        """(d,) float32 of one tile."""
        return np.asarray(self.rows[tile], np.float32)

    def norms(self) -> Floats:
        """(n,) float32 lengths of the embeddings; NaN where there is none."""
        with self._lock:
            if self._norms is None:
                found = np.full(self.layout.tiles, np.nan, np.float32)
                for part, rows in self.passes():
                    found[part] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
                found[~self.good] = np.nan
                self._norms = found
            return self._norms

    def scores(self) -> Floats:
        """(n, k) float16 leading principal components, k <= `SCORES`, from axes of a sample of the rows; NaN where there is no embedding."""
        with self._lock:
            if self._scores is None:
                skip = max(0, self.layout.tiles // AXES_ROWS - 1)
                axes = principal_axes((rows for _, rows in self.passes(skip)), SCORES)
                found = np.full((self.layout.tiles, 3 if axes is None else max(3, axes.shape[1])), np.nan, np.float16)
                if axes is not None:
                    self._fill_scores(found, axes)
                self._scores = found
            return self._scores

    def _fill_scores(self, out: NDArray[np.float16], axes: NDArray[np.float64]) -> None:
        centre, spread = None, 1.0
        for part, rows in self.passes():
            good = self.good[part]
            if not good.any():
                continue
            scores = rows[good] @ axes.astype(np.float32)
            if centre is None:  # of the first block: near enough to keep float16 in its range
                centre = scores.mean(axis=0)
                spread = float(np.abs(scores - centre).max()) or 1.0
            here = np.full((len(rows), out.shape[1]), np.nan, np.float32)
            here[good, : axes.shape[1]] = np.clip((scores - centre) / spread, -1e4, 1e4)
            out[part] = here

    def places(self) -> PlaceMap:
        """The map of the tiles: one cell a tile where they lie on a grid, else cells of an eighth of a tile."""
        try:
            grid = self.grid()
        except InputError:
            factor = min(1.0, MOST_PLACES / max(self.size.height, self.size.width), 8 / self.l0_extent)
            y, x = (
                np.asarray((np.arange(max(1, round(l0 * factor))) + 0.5) / factor, np.float64) for l0 in (self.size.height, self.size.width)
            )
            return PlaceMap(placed_at(self.y, self.x, self.l0_extent, y, x), Extent(0.0, 0.0, len(y) / factor, len(x) / factor))
        y, x = (
            np.asarray((np.arange(count) + 0.5) * grid.l0_step + start, np.float64)
            for count, start in zip((grid.rows, grid.cols), grid.l0_cells, strict=True)
        )
        extent = Extent(*grid.l0_cells, grid.rows * grid.l0_step, grid.cols * grid.l0_step)
        return PlaceMap(tiles_at(grid, self.row, self.col, y, x), extent)
