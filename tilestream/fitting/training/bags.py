"""Tiles of a slide as a bag: some of them at random while a head learns, all of them, block by block, when it is judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilestream.fitting.metrics import Ints
from tilestream.fitting.training.features import THREADS, Vectors, read_rows
from tilestream.models.heads.bags import BagRows
from tilestream.models.positions import position_unit
from tilestream.store.blocks import map_ahead
from tilestream.store.slide import Slide

BAG = 512
"""Tiles of a bag while a head learns."""

PART = 4
"""One part of as many of a small slide is a bag."""

BLOCK = 2048
"""Tiles of a block while it is judged."""

MOST = 512
"""Slides that are looked at, at most, for what many would not tell better: means of channels, and when to stop."""


def some_of(which: Ints, most: int) -> Ints:
    """`most` of these at most, from all over their order."""
    return which if len(which) <= most else which[np.linspace(0, len(which) - 1, most).round().astype(np.int64)]


@dataclass(frozen=True)
class Rows(BagRows):
    """Rows of a bag that know how they are standardised and moved."""

    def standardised(self, mean: Tensor, spread: Tensor) -> Rows:
        """The same with channels of mean 0 and spread 1."""
        return Rows((self.x - mean) / spread, self.y_um, self.x_um, self.unit)

    def to(self, device: torch.device) -> Rows:
        """The same with its vectors on a device."""
        return Rows(self.x.to(device), self.y_um, self.x_um, self.unit)


class Bags:
    """Bags of slides. Slides are kept in memory as they were stored where all of them fit; else each bag is read.

    Memory bound: `limit` bytes of vectors, and a bit for each tile; with positions, 16 bytes for each tile of a bag.

    Parameters
    ----------
    slides : sequence of Slide
        Where the tiles are.
    what : str
        Which vectors: tiles or context.
    limit : int
        Bytes.
    positions : bool
        Whether the head asks where tiles lie; they are all at 0 where it does not.
    """

    def __init__(self, slides: Sequence[Slide], what: str, limit: int, *, positions: bool = False) -> None:
        self.slides, self.what, self.positions = slides, what, positions
        self.arrays = [slide.vectors(what) for slide in slides]
        self.dim = int(self.arrays[0].shape[1])
        with ThreadPoolExecutor(THREADS, thread_name_prefix="bags") as pool:
            self._bits = list(pool.map(lambda slide: np.packbits(slide.read_good()), slides))
        self.dtype = np.result_type(*(array.dtype for array in self.arrays))
        self.in_memory = sum(map(self.count, range(len(self.slides)))) * self.dim * self.dtype.itemsize <= limit
        self._held: dict[int, NDArray[np.floating]] = {}
        self._lock = Lock()

    def count(self, i: int) -> int:
        """Tiles of a slide that have a vector."""
        return int(np.bitwise_count(self._bits[i]).sum())

    def good(self, i: int) -> Ints:
        """Rows of the tiles of a slide that have a vector."""
        return np.flatnonzero(np.unpackbits(self._bits[i], count=self.slides[i].layout.tiles))

    def draw(self, which: Iterable[int], chance: np.random.Generator) -> Iterator[Rows]:
        """Bags of some slides, of `BAG` tiles or of a quarter of those that there are: never twice the same, so that few slides are not learned by heart.

        Of slides that are not in memory the tiles come from a few chunks drawn at random, so that little is read. Memory bound: a bag a thread is read
        ahead.
        """
        drawn = ((i, self._draw_rows(i, chance)) for i in which)
        yield from map_ahead(lambda bag: self.rows(*bag), drawn, THREADS)

    def rows(self, i: int, rows: Ints) -> Rows:
        """Some tiles of a slide, by their rows in its store."""
        step = self._step(i)
        if self.positions:
            y, x = (torch.as_tensor((self.slides[i].read_column(name)[rows] + 0.5) * (step or 1.0)) for name in ("row", "col"))
        else:
            y = x = torch.zeros(len(rows), dtype=torch.float64)
        return Rows(torch.as_tensor(self._read(i, rows)), y, x, position_unit(step))

    def whole(self, i: int) -> Iterator[Rows]:
        """All good tiles of a slide, block by block."""
        good = self.good(i)
        yield from map_ahead(lambda start: self.rows(i, good[start : start + BLOCK]), range(0, len(good), BLOCK), THREADS)

    def statistics(self, which: Ints) -> tuple[Tensor, Tensor]:
        """(d,) mean and spread of each channel over one bag of each slide, of `MOST` slides at most: what later bags are standardised by."""
        chance = np.random.default_rng(0)
        count, total, squares = 0, np.zeros(self.dim), np.zeros(self.dim)
        for rows in self.draw(some_of(which, MOST).tolist(), chance):
            x = rows.x.double().numpy()
            count, total, squares = count + len(x), total + x.sum(axis=0), squares + (x**2).sum(axis=0)
        mean = total / count
        spread = np.sqrt(np.maximum(squares / count - mean**2, 0)) + 1e-6
        return torch.as_tensor(mean, dtype=torch.float32), torch.as_tensor(spread, dtype=torch.float32)

    def _draw_rows(self, i: int, chance: np.random.Generator) -> Ints:
        good = self.good(i)
        if self.in_memory or len(good) <= PART * BAG:
            return np.sort(chance.permutation(good)[: min(BAG, -(-len(good) // PART))])
        chunk = good // self.arrays[i].chunks[0]
        order = chance.permutation(np.unique(chunk))
        # Twice as many tiles as are needed, so that neighbours are not all of a bag.
        sizes = np.cumsum([int((chunk == k).sum()) for k in order])
        enough = order[: int(np.searchsorted(sizes, 2 * BAG)) + 1]
        return np.sort(chance.permutation(good[np.isin(chunk, enough)])[:BAG])

    def _read(self, i: int, rows: Ints) -> Vectors:
        if not self.in_memory:
            return read_rows(self.arrays[i], rows)
        with self._lock:
            held = self._held.get(i)
        if held is None:
            held = read_rows(self.arrays[i], self.good(i)).astype(self.dtype)
            with self._lock:
                self._held[i] = held
        found: Vectors = held[np.searchsorted(self.good(i), rows)].astype(np.float32)
        return found

    def _step(self, i: int) -> float | None:
        """µm between tiles; None where the slide has no scale."""
        slide = self.slides[i]
        return None if slide.mpp is None else slide.stride * slide.scale * slide.mpp
