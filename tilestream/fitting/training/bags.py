"""Tiles of a slide as a bag: some of them at random while a head learns, all of them, block by block, when it is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilestream.fitting.metrics import Ints
from tilestream.fitting.training.features import THREADS, read_rows
from tilestream.models.heads.bags import BagRows
from tilestream.models.positions import position_unit
from tilestream.store.blocks import map_ahead, widen
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


CPU = torch.device("cpu")

Prepare = Callable[[BagRows, np.random.Generator], BagRows]
"""What a thread that reads does with rows before anybody waits for them, with a generator of their own."""


class Bags:
    """Bags of slides, read ahead by threads. Slides that are held in memory are so as they were stored: all of them where they fit, else those that `hold` names.

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
    device : torch.device
        Where vectors are wanted. To one that is no CPU they go as they were stored, from pinned memory, and nobody waits for them there.
    """

    def __init__(self, slides: Sequence[Slide], what: str, limit: int, *, positions: bool = False, device: torch.device = CPU) -> None:
        self.slides, self.what, self.positions, self.device = slides, what, positions, device
        self.arrays = [slide.vectors(what) for slide in slides]
        self.dim = int(self.arrays[0].shape[1])
        with ThreadPoolExecutor(THREADS, thread_name_prefix="bags") as pool:
            self._bits = list(pool.map(lambda slide: np.packbits(slide.read_good()), slides))
        self.dtype, self.limit = np.result_type(*(array.dtype for array in self.arrays)), limit
        self.in_memory = sum(map(self._size, range(len(self.slides)))) <= limit
        self._wanted = set(range(len(self.slides))) if self.in_memory else set()
        self._held: dict[int, NDArray[np.floating]] = {}
        self._locks = [Lock() for _ in slides]

    def hold(self, which: Sequence[int]) -> None:
        """Keep slides in memory from when they are next read, as many of these as fit, in their order; let go of the others."""
        if not self.in_memory:
            ends = np.cumsum([self._size(i) for i in which])
            self._wanted = set(which[: int(np.searchsorted(ends, self.limit, side="right"))])
            self._held = {i: held for i, held in self._held.items() if i in self._wanted}

    def _size(self, i: int) -> int:
        return self.count(i) * self.dim * self.dtype.itemsize

    def count(self, i: int) -> int:
        """Tiles of a slide that have a vector."""
        return int(np.bitwise_count(self._bits[i]).sum())

    def good(self, i: int) -> Ints:
        """Rows of the tiles of a slide that have a vector."""
        return np.flatnonzero(np.unpackbits(self._bits[i], count=self.slides[i].layout.tiles))

    def draw(self, which: Sequence[int], chance: np.random.Generator, prepare: Prepare | None = None) -> Iterator[BagRows]:
        """Bags of some slides, of `BAG` tiles or of a quarter of those that there are: never twice the same, so that few slides are not learned by heart.

        Of slides that are not in memory the tiles come from a few chunks drawn at random, so that little is read. What is drawn of a bag does not depend on
        which thread came first. Memory bound: a bag a thread is read ahead.
        """

        def drawn(job: tuple[int, int]) -> BagRows:
            i, seed = job
            own = np.random.default_rng(seed)
            rows = self.rows(i, self._draw_rows(i, own))
            return rows if prepare is None else prepare(rows, own)

        yield from map_ahead(drawn, zip(which, chance.integers(2**63, size=len(which)).tolist(), strict=True), THREADS)

    def rows(self, i: int, rows: Ints) -> BagRows:
        """Some tiles of a slide, by their rows in its store; float32, on the device."""
        step = self._step(i)
        if self.positions:
            y, x = (torch.as_tensor((self.slides[i].read_column(name)[rows] + 0.5) * (step or 1.0)) for name in ("row", "col"))
        else:
            y = x = torch.zeros(len(rows), dtype=torch.float64)
        return BagRows(self._vectors(i, rows), y, x, position_unit(step))

    def whole(self, which: Sequence[int], prepare: Prepare | None = None) -> Iterator[tuple[int, BagRows]]:
        """All good tiles of some slides, slide by slide, block by block, with each slide's place in `which`; what is read ahead may be of the next slide."""

        def block(job: tuple[int, int]) -> tuple[int, BagRows]:
            number, start = job
            rows = self.rows(which[number], self.good(which[number])[start : start + BLOCK])
            return number, rows if prepare is None else prepare(rows, np.random.default_rng(0))

        jobs = ((number, start) for number, i in enumerate(which) for start in range(0, self.count(i), BLOCK))
        yield from map_ahead(block, jobs, THREADS)

    def statistics(self, which: Ints) -> tuple[Tensor, Tensor]:
        """(d,) mean and spread of each channel over one bag of each slide, of `MOST` slides at most: what later bags are standardised by."""
        chance = np.random.default_rng(0)
        count, total, squares = 0, np.zeros(self.dim), np.zeros(self.dim)
        for rows in self.draw(some_of(which, MOST).tolist(), chance):
            x = rows.x.double().cpu().numpy()
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

    def _vectors(self, i: int, rows: Ints) -> Tensor:
        """(m, d) float32 on the device."""
        if self.device.type == "cpu":
            out = np.empty((len(rows), self.dim), np.float32)
            self._read(i, rows, out)
            return torch.from_numpy(out)
        stored = torch.empty((len(rows), self.dim), dtype=torch.from_numpy(np.empty(0, self.dtype)).dtype, pin_memory=True)
        self._read(i, rows, stored.numpy())
        return stored.to(self.device, non_blocking=True).float()

    def _read(self, i: int, rows: Ints, out: NDArray[np.floating]) -> None:
        if i not in self._wanted:
            read_rows(self.arrays[i], rows, out)
            return
        good = self.good(i)
        with self._locks[i]:  # one thread reads a slide, others that want it wait
            if i not in self._held:
                self._held[i] = read_rows(self.arrays[i], good, np.empty((len(good), self.dim), self.dtype))
        held = self._held[i]
        at = np.searchsorted(good, rows)
        widen(held[at[0] : at[-1] + 1] if at[-1] - at[0] + 1 == len(at) else held[at], out)

    def _step(self, i: int) -> float | None:
        """µm between tiles; None where the slide has no scale."""
        slide = self.slides[i]
        return None if slide.mpp is None else slide.stride * slide.scale * slide.mpp
