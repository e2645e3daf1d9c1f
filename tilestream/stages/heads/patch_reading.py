"""Patches of pixels in row-major order, read ahead of the model."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.buffers import PixelBuffers
from tilestream.config.heads import NO_ENCODER
from tilestream.models.heads.patch_grid import PatchGrid
from tilestream.sources.base import Source
from tilestream.sources.open_images import OpenImages
from tilestream.stages.clock import Clock
from tilestream.stages.encoding.reading import Batch, DeviceReading, HostReading
from tilestream.stages.heads.dense_model import PixelPatch
from tilestream.stages.prefetch import read_ahead
from tilestream.stages.slide_task import SlideTask
from tilestream.stages.worker import worker_for
from tilestream.stages.worker_settings import WorkerSettings
from tilestream.tiles.decoding.processes import DecodeProcesses
from tilestream.tiles.device_reader import DeviceTileBatch
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.tile_reader import Failure

READ_AT_ONCE = 4
"""Patches that reading hands over together."""


@dataclass(frozen=True)
class Hands:
    """What a process reads with."""

    pool: ThreadPoolExecutor
    buffers: PixelBuffers
    images: OpenImages
    processes: DecodeProcesses | None


_own: dict[tuple[int, bool], Hands] = {}
_LOCK = threading.Lock()


def hands_for(settings: WorkerSettings, device: torch.device) -> Hands:
    """Those of the process's encoder; where there is none, its own."""
    if settings.encoder != NO_ENCODER:
        worker = worker_for(settings)
        return Hands(worker.pool, worker.buffers, worker.images, worker.processes)
    with _LOCK:
        key = (settings.threads, device.type == "cuda" and settings.decode_processes)
        if key not in _own:
            processes = DecodeProcesses(settings.threads) if key[1] else None
            _own[key] = Hands(ThreadPoolExecutor(settings.threads, thread_name_prefix="decode"), PixelBuffers(), OpenImages(1), processes)
        return _own[key]


class PatchReader:
    """Reads the patches of one slide.

    Memory bound: `READ_AT_ONCE` patches in each of the batches that are read ahead, the tiles that the reader has open, and of a row those that
    were ready before one to the left of them.
    """

    def __init__(self, task: SlideTask, grid: PatchGrid, spec: ReadSpec, device: torch.device, clock: Clock) -> None:
        self.task, self.grid, self.spec, self.device, self.clock = task, grid, spec, device, clock
        settings = task.line.worker
        self.hands = hands_for(settings, device)
        host = HostReading(settings, self.hands.pool, self.hands.buffers, READ_AT_ONCE)
        self._reading = DeviceReading(host, device, self.hands.processes) if device.type == "cuda" else host

    def read(self, needed: NDArray[np.bool_]) -> Generator[PixelPatch, None, None]:
        """The patches of which `needed` (rows, cols) is true, row-major. Closing the generator stops the reading."""
        source = self.hands.images.get(self.task.image)
        rows = [(int(row), np.flatnonzero(needed[row])) for row in np.flatnonzero(needed.any(axis=1))]
        batches = read_ahead(self._rows(source, rows), self.clock)
        try:
            for row, cols in rows:
                yield from self._in_order(row, cols, batches)
        finally:
            batches.close()

    def _rows(self, source: Source, rows: list[tuple[int, NDArray[np.int64]]]) -> Iterator[Batch]:
        """The batches of one row of patches after another: within a row, patches are ready from left to right, nearly."""
        for row, cols in rows:
            l0_y, l0_x = (
                np.rint(self.grid.px_origins(index) * self.spec.scale).astype(np.int64) for index in (np.full(len(cols), row), cols)
            )
            yield from self._reading.read(source, self.spec, l0_y, l0_x)

    def _in_order(self, row: int, cols: NDArray[np.int64], batches: Iterator[Batch]) -> Iterator[PixelPatch]:
        ready: dict[int, PixelPatch] = {}
        place = 0
        while place < len(cols):
            with self.clock.timed("wait"):
                batch = next(batches)
            ready |= dict(self._patches(row, cols, batch))
            while place in ready:
                yield ready.pop(place)
                place += 1

    def _patches(self, row: int, cols: NDArray[np.int64], batch: Batch) -> Iterator[tuple[int, PixelPatch]]:
        if isinstance(batch, DeviceTileBatch):
            pixels = batch.pixels
            if batch.ready is not None:
                stream = torch.cuda.current_stream(self.device)
                stream.wait_event(batch.ready)
                pixels.record_stream(stream)
        else:
            pixels = torch.from_numpy(batch.pixels).to(self.device, copy=True)
            self.hands.buffers.give(batch.pixels)
        for number, k in enumerate(batch.index.tolist()):
            found: torch.Tensor | Failure = batch.failed.get(k, pixels[number])
            yield k, PixelPatch(row, int(cols[k]), found)
