"""What every export shares: one slide read in blocks of rows, and files that appear whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import ConfigError, IncompleteError, InputError
from tilestream.geometry import PlacedGrid, Size, TileGrid
from tilestream.store.layout import OK, PADDED, STATUSES
from tilestream.store.slide_store import BLOCK_ROWS, SLIDE, TILES, SlideStore

VECTORS = {"tiles": f"{TILES}/X", "context": f"{TILES}/obsm/context", "slide": f"{SLIDE}/X"}
"""Where a store keeps the vectors that an export may be of."""


@dataclass(frozen=True)
class Written:
    """What an export wrote."""

    tiles: int
    """Tiles in the file."""
    notes: tuple[str, ...] = ()
    """What a person should know of it."""


@dataclass(frozen=True)
class Rows:
    """Consecutive tiles of a slide, m of them."""

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    y: NDArray[np.int64]
    """(m,) level-0 px of the top-left."""
    x: NDArray[np.int64]
    tissue: NDArray[np.float32]
    """(m,) fraction of the tile that is tissue; NaN where it was never looked for."""
    status: NDArray[np.int8]
    """(m,) code in `STATUSES`; -1 where the tile was never embedded."""
    embeddings: NDArray[np.float32]
    """(m, d) vectors, of what is exported; NaN in the rows of tiles that failed."""

    @property
    def good(self) -> NDArray[np.bool_]:
        """(m,) whether a tile has an embedding."""
        return is_good(self.status)

    @property
    def status_names(self) -> list[str]:
        """(m,) status of each tile in words; "" where it was never embedded."""
        return [STATUSES[code] if code >= 0 else "" for code in self.status.tolist()]


def is_good(status: NDArray[np.int8]) -> NDArray[np.bool_]:
    """(m,) whether tiles of these status codes have embeddings."""
    good: NDArray[np.bool_] = (status == OK) | (status == PADDED)
    return good


class StoredSlide:
    """One slide's store, for reading.

    Order: tiles as they are numbered, row-major.

    Memory bound: `BLOCK_ROWS` rows of the embeddings, and the tiles' status, one byte each.

    Raises
    ------
    InputError
        There is no store of ours, or it does not hold the vectors `what`, a key of `VECTORS`.
    IncompleteError
        The slide is not finished, unless `allow_unfinished`.
    """

    def __init__(self, name: str, store: SlideStore, *, what: str = "tiles", allow_unfinished: bool = False) -> None:
        self.id, self.store = name.removesuffix(".zarr"), store
        attributes = store.attributes
        if attributes is None:
            raise InputError(f"{store.folder.address}: is not a store of one slide. Give an output folder, or <output>/<slide id>.zarr.")
        if store.completion is None and not allow_unfinished:
            raise IncompleteError(
                f"{store.folder.address} is not finished. Run its command again, or add --allow-unfinished: tiles that are missing count as failed."
            )
        self.recipe: dict[str, Any] = attributes["recipe"]
        self.source: dict[str, Any] = attributes["source"]
        self.layout = store.layout
        self.vectors = VECTORS[what]
        """Path of the array that is exported."""
        if not store.folder.exists(f"{self.vectors}/zarr.json"):
            saved = ", ".join(self.recipe["output"]["save"])
            raise InputError(f"{store.folder.address}: " + {
                "tiles": f"holds no embeddings of tiles, output.save was {saved}. Run with tiles among them.",
                "context": f"holds no context of tiles, output.save was {saved}. Run with a context, and with tiles among them.",
                "slide": f"holds no vector of the slide, output.save was {saved}. Run with a pool, and with slide among them.",
            }[what])  # fmt: skip
        self.dim = int(store.array(self.vectors).shape[1])
        self.size = Size(self.source["height"], self.source["width"])
        self.mpp: float | None = self.source["mpp"]
        self.scale: float = self.source["scale"]
        self.tile: int = self.recipe["tiles"]["size"]
        self.placed: dict[str, Any] | None = self.source.get("grid")
        """Of tiles that a file gave: their step and where they begin."""
        self.stride: float = self.placed["stride"] if self.placed else self.recipe["tiles"]["stride"] or self.tile
        self.encoder: str = self.recipe["encoder"]["name"]
        self.good = is_good(self._column("status/codes")[:])

    @property
    def l0_extent(self) -> float:
        """Side of a tile in level-0 px."""
        return self.tile * self.scale

    @property
    def failed_note(self) -> tuple[str, ...]:
        """The words for tiles without embeddings that an export leaves out; none where there are none."""
        failed = len(self.good) - int(self.good.sum())
        return (f"{failed} failed {'tile' if failed == 1 else 'tiles'} left out, without an embedding",) if failed else ()

    @property
    def gridded(self) -> bool:
        """Whether the tiles lie on a regular grid; those that another program chose may not."""
        return self.recipe.get("imported", {}).get("grid") != "ranks" and (not self.placed or bool(self.placed["regular"]))

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
        if self.placed:
            lines = [start + np.rint(np.arange(self.placed[count]) * self.stride * self.scale).astype(np.int64)
                     for start, count in zip(self.placed["l0_offset"], ("rows", "cols"), strict=True)]  # fmt: skip
            return PlacedGrid(self.size, self.tile, self.stride, self.scale, "pad", l0_ys=lines[0], l0_xs=lines[1])
        return TileGrid(self.size, self.tile, self.stride, self.scale, self.recipe["tiles"].get("edge", "pad"))

    def blocks(self) -> Iterator[Rows]:
        """All tiles in order, `BLOCK_ROWS` at a time."""
        names = ("row", "col", "y", "x", "tissue", "status/codes")
        columns = [self._column(name) for name in names]
        embeddings = self.store.array(self.vectors)
        for start in range(0, self.layout.tiles, BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            row, col, y, x, tissue, status = (np.asarray(column[part]) for column in columns)
            yield Rows(row, col, y, x, tissue, status, np.asarray(embeddings[part], np.float32))

    def good_blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """x, y (m, 2) int64 level-0 px of the top-left, and embeddings (m, d) float32, of the tiles that have one."""
        for rows in self.blocks():
            yield np.stack([rows.x, rows.y], axis=1)[rows.good], rows.embeddings[rows.good]

    def _column(self, name: str) -> Any:
        return self.store.array(f"{TILES}/obs/{name}")


@contextmanager
def new_target(target: Path, option: str = "--out") -> Iterator[Path]:
    """A path to write to, in a folder of its own beside `target`; renamed to it when the block ends well, removed when it does not.

    A file that is there is replaced. A folder is not: what else lies in it is not known.

    Raises
    ------
    ConfigError
        `target` is a folder that is there already, or its own folder cannot be made.
    """
    if target.is_dir():
        raise ConfigError(f"{option}: {target} is there already. Delete it, or name another.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".export-", dir=target.parent))
    except OSError as error:
        raise ConfigError(
            f"{option}: {target.parent} cannot be written to: {error.strerror or error}. Name another with {option}."
        ) from error
    try:
        yield beside / target.name
        (beside / target.name).replace(target)
    finally:
        shutil.rmtree(beside)
