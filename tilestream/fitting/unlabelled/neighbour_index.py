"""An index of the tiles of a cohort: rows sorted into cells of like ones, so that a search reads a few cells and not every store."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError, OutputError
from tilestream.fitting.metrics import Floats, Ints
from tilestream.fitting.unlabelled.clusters import some_rows
from tilestream.fitting.unlabelled.neighbours import Hits, best_hits, directions, numbered_blocks, opened_slides
from tilestream.store.records import digest_of
from tilestream.store.slide import Slide

FORMAT = 1

ABOUT = "index.json"

ROUNDS = 10
"""Of k-means on some rows, by which cells are found."""

ROWS_OF_A_CELL = 16
"""Of the rows from which cells are found, at least."""


@dataclass(frozen=True)
class NeighbourIndex:
    """Rows by cell, on disk; read where they are asked for."""

    path: Path
    what: str
    slides: dict[str, str]
    """The slides in order, and a digest of the vectors of each."""
    centres: Floats
    """(c, d) unit vectors."""
    starts: Ints
    """(c + 1,) where cells begin."""
    rows: NDArray[np.floating[Any]]
    """(n, d) vectors as they are stored, cell by cell."""
    places: Ints
    """(n, 2) slide and row of each."""

    def nearest(self, queries: NDArray[np.floating[Any]], count: int, probes: int) -> list[Hits]:
        """The nearest tiles to each query (q, d) among the `probes` cells whose centres are nearest to it: slide, row and cosine; exact with all cells.

        Memory bound: a cell.
        """
        unit = directions(queries)
        order = np.argsort(-(unit @ self.centres.T), axis=1, kind="stable")[:, :probes]
        found = []
        for query, cells in zip(unit, order.tolist(), strict=True):
            hits: Hits = []
            for cell in sorted(cells):
                part = slice(int(self.starts[cell]), int(self.starts[cell + 1]))
                cosine = directions(np.asarray(self.rows[part], np.float64)) @ query
                hits = best_hits(hits, cosine, self.places[part, 0], self.places[part, 1], count)
            found.append(hits)
        return found

    def refuse_others(self, slides: Sequence[Slide], what: str) -> None:
        """Refuse slides that are not those of the index, with the vectors that it was made of. Raises InputError."""
        if what != self.what:
            raise InputError(
                f"{self.path} is an index of {self.what}, but {what} are looked for. Make one of {what} with tilestream.index_tiles."
            )
        there = {slide.id: _digest(slide, self.what) for slide in slides}
        for name in [*there, *self.slides]:
            if there.get(name) != self.slides.get(name):
                told = "is new" if name not in self.slides else "is gone" if name not in there else "has other embeddings"
                raise InputError(
                    f"{self.path} is not of this output as it is now: {name} {told}. Make it again with tilestream.index_tiles."
                )


def index_tiles(output: str | os.PathLike[str], index: str | os.PathLike[str], what: str = "tiles", cells: int | None = None) -> Path:
    """Write an index of the tiles of an output, for `find_nearest(..., index=...)`: a copy of their vectors, sorted.

    Memory bound: some 20,000 rows, a block a thread and the cells' centres. The same output gives the same bytes on one machine's CPU.

    Parameters
    ----------
    output : path or URL
        The `output` of a run, or one slide of it.
    index : path
        Folder to write; an index that is there is replaced.
    what : str
        Which vectors: tiles or context.
    cells : int, optional
        Cells; by default the root of the number of tiles, as far as enough rows tell them apart.

    Raises
    ------
    InputError
        There is no output, it has no such vectors, or no tile with them.
    OutputError
        The folder holds something else, or cannot be written.
    """
    folder, slides = Path(index), opened_slides(output)
    if folder.exists() and not (folder / ABOUT).is_file():
        raise OutputError(f"{folder} is there and is no index of tiles. Choose another folder.")
    if not any(slide.read_good().any() for slide in slides):
        raise InputError(f"{output} has no tile with an embedding: there is nothing to index.")
    made = folder.with_name(f"{folder.name}.part")
    try:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        _write(made, slides, what, cells)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return folder


def open_index(index: str | os.PathLike[str]) -> NeighbourIndex:
    """An index that `index_tiles` wrote. Raises InputError."""
    folder = Path(index)
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise InputError(f"{folder} was written by another version of tilestream. Make it again with tilestream.index_tiles.")
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("centres", "starts", "rows", "places")}
        return NeighbourIndex(folder, about["what"], about["slides"], **arrays)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} is no index of tiles that can be read ({error}). Make it with tilestream.index_tiles.") from error


def _write(folder: Path, slides: Sequence[Slide], what: str, cells: int | None) -> None:
    centres = _find_cells(slides, what, cells)
    counts = np.zeros(len(centres), np.int64)
    for _, _, _, own in _in_cells(slides, what, centres):
        counts += np.bincount(own, minlength=len(centres))
    starts = np.concatenate([[0], np.cumsum(counts)])
    dim, kind = centres.shape[1], np.result_type(*(slide.vectors(what).dtype for slide in slides))
    rows = np.lib.format.open_memmap(folder / "rows.npy", "w+", kind, (int(starts[-1]), dim))
    places = np.lib.format.open_memmap(folder / "places.npy", "w+", np.int64, (int(starts[-1]), 2))
    free = starts[:-1].copy()
    for i, numbers, x, own in _in_cells(slides, what, centres):
        order = np.argsort(own, kind="stable")
        there = np.bincount(own, minlength=len(centres))
        at = np.arange(len(own)) - np.repeat(np.cumsum(there) - there, there) + np.repeat(free, there)
        rows[at], places[at, 0], places[at, 1] = x[order], i, numbers[order]
        free += there
    rows.flush()
    places.flush()
    np.save(folder / "centres.npy", centres)
    np.save(folder / "starts.npy", starts)
    about = {"format": FORMAT, "what": what, "slides": {slide.id: _digest(slide, what) for slide in slides}}
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def _find_cells(slides: Sequence[Slide], what: str, cells: int | None) -> Floats:
    """(c, d) unit centres of k-means by cosine, of rows from all over the cohort."""
    chance = np.random.default_rng(0)
    some = directions(some_rows(slides, what, chance))
    tiles = sum(slide.layout.tiles for slide in slides)
    wanted = cells or min(round(tiles**0.5), len(some) // ROWS_OF_A_CELL)
    centres = some[chance.permutation(len(some))[: max(1, wanted)]]
    for _ in range(ROUNDS):
        own = (some @ centres.T).argmax(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, own, some)
        empty = np.bincount(own, minlength=len(centres)) == 0
        centres = np.where(empty[:, None], centres, directions(sums))
    return centres


def _in_cells(slides: Sequence[Slide], what: str, centres: Floats) -> Iterator[tuple[int, Ints, Floats, Ints]]:
    """Blocks of the tiles: slide, rows, vectors, and the cell of each."""
    for i, rows, x in numbered_blocks(slides, what):
        yield i, rows, x, (directions(x) @ centres.T).argmax(axis=1)


def _digest(slide: Slide, what: str) -> str:
    """Over the checksums of a slide's vectors."""
    ledger = f".tilestream/shards/{what}-"
    return digest_of({path: told for path, told in (slide.completion or {}).get("objects", {}).items() if path.startswith(ledger)})
