"""Reading in a child process, which may hang or die: the tile that does it is given up, and the others are read.

Pixels pass through a pipe, which costs more than decoding a tile in place; that is why `compute.isolate` is off by default.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError
from tilestream.reading import TileBatch, TileReader
from tilestream.readspec import ReadSpec
from tilestream.sources.base import SourceOptions

PATIENCE = 60.0
"""Seconds that a child may take for one batch."""

START = 120.0
"""Seconds that a child may take to start and open its source."""


class Quarantined(str):
    """Why a tile was given up after it made the reading process hang or die twice."""

    __slots__ = ()


@dataclass(frozen=True)
class Job:
    """What a child is told when it starts."""

    address: str
    options: SourceOptions
    spec: ReadSpec
    threads: int
    batch: int
    opener: str = "tilestream.sources:open_source"
    """`module:function` that opens a source."""


class IsolatedReader:
    """Reads tiles as `TileReader` does, in a child process that is replaced when it hangs or dies.

    A group of tiles on which that happens is split in two, each half tried anew; a tile that is alone and does it again is failed.

    Parameters
    ----------
    job : Job
    patience : float
        Seconds that a batch may take.
    """

    def __init__(self, job: Job, patience: float = PATIENCE) -> None:
        self.job = job
        self.patience = patience
        self._child: Any = None
        self._pipe: Connection | None = None

    def read(self, l0_y: NDArray[np.int64], l0_x: NDArray[np.int64]) -> Iterator[TileBatch]:
        """Batches of tiles, each tile once: read, or failed with the reason.

        Raises
        ------
        InputError
            The child cannot open the source.
        """
        waiting = deque([np.arange(start, min(start + 4 * self.job.batch, len(l0_y))) for start in range(0, len(l0_y), 4 * self.job.batch)])
        try:
            while waiting:
                group = waiting.popleft()
                left = set(group.tolist())
                trouble = ""
                try:
                    for batch in self._ask(group, l0_y, l0_x):
                        left -= set(batch.index.tolist())
                        yield batch
                except TimeoutError:  # an OSError, so it goes first
                    trouble = f"reading took more than {self.patience:g} s"
                except (EOFError, OSError):
                    trouble = "the reading process died"
                if trouble:
                    self.close()
                    rest = np.array(sorted(left))
                    if len(rest) == 1 and len(group) == 1:
                        yield self._give_up(rest, trouble)
                    else:
                        waiting.extendleft(reversed([part for part in np.array_split(rest, 2) if len(part)]))
        finally:
            self.close()

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.join()
            self._child = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _ask(self, group: NDArray[np.int64], l0_y: NDArray[np.int64], l0_x: NDArray[np.int64]) -> Iterator[TileBatch]:
        pipe = self._pipe or self._start()
        pipe.send((l0_y[group], l0_x[group]))
        while True:
            if not pipe.poll(self.patience):
                raise TimeoutError
            head = pipe.recv()
            if head is None:
                return
            index, failed, shape = head
            pixels = np.empty(shape, np.uint8)
            pipe.recv_bytes_into(pixels.reshape(-1).data)
            yield TileBatch(index=group[index], pixels=pixels, failed={int(group[k]): message for k, message in failed.items()})

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs, self.job), daemon=True)
        self._child.start()
        theirs.close()
        if not self._pipe.poll(START):
            raise TimeoutError
        refusal = self._pipe.recv()
        if refusal is not None:
            raise InputError(refusal)
        return self._pipe

    def _give_up(self, tile: NDArray[np.int64], trouble: str) -> TileBatch:
        side = self.job.spec.tile
        message = Quarantined(f"{trouble}, twice; the tile was given up (compute.isolate)")
        return TileBatch(index=tile, pixels=np.full((1, side, side, 3), 255, np.uint8), failed={int(tile[0]): message})


def _serve(pipe: Connection, job: Job) -> None:
    """The child: open the source, then read what is asked for until the parent goes away."""
    module, _, name = job.opener.partition(":")
    try:
        source = getattr(importlib.import_module(module), name)(job.address, job.options)
    except InputError as error:
        pipe.send(str(error))
        return
    pipe.send(None)
    with ThreadPoolExecutor(job.threads) as pool:
        while True:
            try:
                l0_y, l0_x = pipe.recv()
            except EOFError:
                return
            reader = TileReader(source, job.spec, pool=pool, threads=job.threads, batch=job.batch)
            for batch in reader.read(l0_y, l0_x):
                pipe.send((batch.index, batch.failed, batch.pixels.shape))
                pipe.send_bytes(np.ascontiguousarray(batch.pixels).data.cast("B"))
            pipe.send(None)
