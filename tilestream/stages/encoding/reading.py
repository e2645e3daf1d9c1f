"""How a worker makes tiles: on the host, or on its device from pieces that the host decodes."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.buffers import PixelBuffers
from tilestream.sources.base import Source
from tilestream.stages.prefetch import side_stream
from tilestream.stages.shares import IN_FLIGHT
from tilestream.stages.worker_settings import WorkerSettings
from tilestream.tiles.decoding.processes import DecodeProcesses
from tilestream.tiles.device_decoding import HostDecoder, NvImageCodecDecoder, StreamDecoder
from tilestream.tiles.device_reader import DeviceTileBatch, DeviceTileReader, can_decode_on_device
from tilestream.tiles.isolation import IsolatedReader, Job
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.tile_reader import TileBatch, TileReader

Batch = TileBatch | DeviceTileBatch


class HostReading:
    """Tiles made by this process's threads, or in a child process where reading is isolated."""

    in_flight = 0
    """Batches launched before the results of the first are waited for."""

    def __init__(self, settings: WorkerSettings, pool: ThreadPoolExecutor, buffers: PixelBuffers, batch: int) -> None:
        self.settings, self.pool, self.buffers, self.batch = settings, pool, buffers, batch

    def on_device(self, source: Source, spec: ReadSpec) -> bool:
        """Whether tiles are put together on a device, and lie there."""
        return False

    def read(self, source: Source, spec: ReadSpec, l0_y: NDArray[np.int64], l0_x: NDArray[np.int64]) -> Generator[Batch, None, None]:
        """Batches of the tiles at (n,) level-0 places."""
        threads = self.settings.threads
        if self.settings.isolate:
            yield from IsolatedReader(Job(source.opened_as, spec, threads, self.batch)).read(l0_y, l0_x)
        else:
            yield from TileReader(source, spec, pool=self.pool, threads=threads, batch=self.batch, buffers=self.buffers).read(l0_y, l0_x)


class DeviceReading(HostReading):
    """Tiles put together on a device from the file's pieces; on the host where there are none, reading is isolated, or tiles are values of bands."""

    in_flight = IN_FLIGHT

    def __init__(self, host: HostReading, device: torch.device, processes: DecodeProcesses | None) -> None:
        super().__init__(host.settings, host.pool, host.buffers, host.batch)
        self.device, self.processes = device, processes
        self._free: dict[bool, list[StreamDecoder | HostDecoder]] = {True: [], False: []}

    def on_device(self, source: Source, spec: ReadSpec) -> bool:
        """Whether tiles are put together on the device, and lie there."""
        return not self.settings.isolate and not spec.pixel.bands and source.segment_grid(spec.level) is not None

    def read(self, source: Source, spec: ReadSpec, l0_y: NDArray[np.int64], l0_x: NDArray[np.int64]) -> Generator[Batch, None, None]:
        """Batches of the tiles at (n,) level-0 places, each complete on its own stream once it is `ready`."""
        if not self.on_device(source, spec):
            yield from super().read(source, spec, l0_y, l0_x)
            return
        on_device = self.settings.decode == "gpu" and can_decode_on_device(source, spec.level)
        free = self._free[on_device]
        decoder = free.pop() if free else NvImageCodecDecoder(self.device) if on_device else HostDecoder(self.device, self.processes)
        try:
            reader = DeviceTileReader(source, spec, decoder=decoder, pool=self.pool, threads=self.settings.threads, batch=self.batch)
            with side_stream(self.device) as stream:
                for batch in reader.read(l0_y, l0_x):
                    yield replace(batch, ready=None if stream is None else stream.record_event())
        finally:
            free.append(decoder)
