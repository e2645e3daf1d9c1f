"""A worker process: its encoder, its decode threads, and the way of tiles from a source through the encoder.

On a CPU, tiles are made on the host and computed where they lie. On a CUDA device they are made there: host threads decode the
file's pieces into pinned memory (or the device decodes them), a stream of its own copies and gathers, the encoder follows on
another, and results come back while the next batch computes.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tilestream.buffers import PixelBuffers
from tilestream.encoders.earth.bands import check_bands
from tilestream.encoders.registry import build_encoder, files_of, is_others
from tilestream.encoders.weights import module_digest, weights_digest
from tilestream.errors import ConfigError, user_code
from tilestream.sources.base import Pixels, Source
from tilestream.sources.open_images import OpenImages
from tilestream.stages.clock import Clock, Wall
from tilestream.stages.encoding.children import children_memory
from tilestream.stages.encoding.device import DeviceEncoder
from tilestream.stages.encoding.embedded import ALL_TILES, Embedded, TileList
from tilestream.stages.encoding.host import HostEncoder
from tilestream.stages.encoding.reading import Batch, DeviceReading, HostReading
from tilestream.stages.encoding.settled import settle
from tilestream.stages.encoding.wide import WideTwin, beyond_range
from tilestream.stages.hardware import cast_encoder, peak_memory, pick_device, settle_allocator, worker_address
from tilestream.stages.pinning import begin_digest, check_alike, check_machine, pin_settings, unfit
from tilestream.stages.prefetch import read_ahead
from tilestream.stages.shares import CPU_BATCH, RESULTS, shards_open
from tilestream.stages.slide_task import check_stopped
from tilestream.stages.worker_settings import LANES, TASKS, EncoderFacts, WorkerSettings
from tilestream.tiles.buffer_limits import read_batch
from tilestream.tiles.decoding.processes import CHILD_BYTES, DecodeProcesses
from tilestream.tiles.device_reader import DeviceTileBatch
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.tile_reader import TileBatch

DEVICE_ERRORS: tuple[type[BaseException], ...] = (
    torch.OutOfMemoryError,
    *([torch.AcceleratorError] if hasattr(torch, "AcceleratorError") else []),  # since 2.8
)
"""What is a device's fault, not the encoder's."""


@dataclass(frozen=True)
class _Launched:
    """A batch whose results are on their way from the device."""

    batch: Batch
    whose: Callable[[int, int], str]
    """What tiles i to j of it are."""
    out: Tensor
    """In pinned memory on CUDA, filled once `finish` has returned."""
    finish: Callable[[], float]
    """Waits for `out`, and gives the seconds that computing it took."""


def _go_on() -> None:
    """Nothing is to be done."""


class Worker:
    """One process's encoder, decode pool and lanes. The encoder serves one shard at a time; reading runs ahead in the other lane.

    `encoder` is one that is built already; without it, it is built from the settings.

    Raises
    ------
    ConfigError
        The device is not there, or cannot do what the config asks of it.
    """

    graphs: DeviceEncoder | None = None
    """How the encoder runs on a CUDA device, where it is on one."""
    host: HostEncoder | None = None
    """How it runs on the processor, where it does."""

    def __init__(self, settings: WorkerSettings, encoder: nn.Module | None = None) -> None:
        wall = Wall()
        check_machine(settings)
        self.device = pick_device(settings.device)
        settle_allocator(computes=self.device.type == "cpu")
        self.settings = settings
        if settings.compute_threads is not None:
            torch.set_num_threads(settings.compute_threads)
        on_device = self.device.type == "cuda"
        if settings.decode == "gpu" and not on_device:
            raise ConfigError(f"source.decode: gpu, but compute.device is {self.device}. Set source.decode to auto or cpu.")
        self.processes = DecodeProcesses(settings.threads) if on_device and settings.decode_processes else None
        self.made_of = files_of(settings.spec)
        others = is_others(settings.encoder)
        wall.mark("device")
        built = check_bands(encoder or build_encoder(settings.spec), settings.encoder, settings.bands)
        wall.mark("building")
        self.encoder, self.dtype, self.notes, state = cast_encoder(
            built, settings.encoder, settings.precision, settings.tile, self.device, settings.bands
        )
        self._digesting = begin_digest(state) if on_device and encoder is None and not others else None
        del state
        wall.mark("casting")
        self.wide = WideTwin(self.encoder, settings.encoder) if self.dtype is torch.float16 else None
        self._known = module_digest(self.encoder) if others else ""  # before it has run: it may count what it was given
        if on_device:
            self.graphs = DeviceEncoder(self.encoder, settings.encoder, settings.tile, settings.batch, self.device, settings.pixel)
            self.batch = self.graphs.batch
            if settings.compile:
                self.graphs.compile()
            self.notes += self.graphs.notes
        else:
            self.batch = settings.batch or CPU_BATCH
            self.host = HostEncoder(self.encoder, settings.encoder, self.batch, exact=settings.exact)
        wall.mark("batch and graph")
        if settings.pinned is not None:
            check_alike(settings.pinned, settings, self._digest())
            if settings.compile:
                self._check_compiled()
        self.seconds = tuple(wall.marks.items())
        """What building it took, in order."""
        self.pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")
        # One thread does all computing: each thread has an allocator arena of its own, and activations would leave holes in all of them.
        self.compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.buffers = PixelBuffers()
        read_at_once = self.batch if on_device else read_batch(self.batch, settings.tile, settings.pixel)
        host = HostReading(settings, self.pool, self.buffers, read_at_once)
        self.reading = DeviceReading(host, self.device, self.processes) if on_device else host
        self.lanes = threading.BoundedSemaphore(LANES)
        self.open_shards = threading.BoundedSemaphore(shards_open(on_device=on_device))
        self.device_lock, self.results = threading.Lock(), threading.BoundedSemaphore(RESULTS)
        self.images = OpenImages(TASKS - 1)
        self.facts: EncoderFacts | None = None
        """What is known of the encoder, once it was asked for."""

    @contextmanager
    def lane(self) -> Iterator[Callable[[], None]]:
        """A lane, to the end of the block, or until what the block is given is called: all its tiles are read, and the next list may be.

        Raises
        ------
        InterruptedRunError
            The process was asked to stop while the lane was waited for.
        """
        with ExitStack() as held:
            held.enter_context(self.lanes)
            check_stopped()
            yield held.close

    def close(self) -> None:
        """Let go of threads, processes and open images."""
        for pool in (self.pool, self.compute):
            pool.shutdown()
        if self.processes is not None:
            self.processes.close()
        self.images.clear()

    @cached_property
    def pinned(self) -> WorkerSettings:
        """What every worker of this one's run must be set up with."""
        if self.settings.pinned is not None:
            return self.settings
        pinned = pin_settings(self.settings, self.device, self.dtype, self._digest(), self.batch)
        return replace(pinned, compile=False) if self.settings.compile and not self.compile() else pinned

    def _digest(self) -> str:
        """Of the weights, and of an encoder of others of all numbers that it holds."""
        if self._known:
            return self._known
        return weights_digest(self.encoder) if self._digesting is None else self._digesting.result()

    def program_bytes(self) -> int:
        """Resident memory of the worker before it reads: its own so far, its children's, and what decoding adds to theirs."""
        more = self.wide.host_bytes if self.wide is not None else 0
        decoders = self.processes.count if self.processes else 0
        return peak_memory() + max(children_memory() + CHILD_BYTES // 8 * decoders, CHILD_BYTES * decoders) + more  # some may not be up yet

    def embed_tiles(
        self,
        source: Source,
        spec: ReadSpec,
        l0_y: NDArray[np.int64],
        l0_x: NDArray[np.int64],
        clock: Clock,
        cuts: Sequence[int] = (),
        *,
        listed: TileList = ALL_TILES,
        when_read: Callable[[], None] = _go_on,
    ) -> Generator[Embedded, None, None]:
        """Read tiles and run them through the encoder, one caller at a time; reading starts before the caller's turn.

        Tiles come as their last piece is decoded, in any order. A list is read in parts that end at `cuts`, one after another: every tile
        of a part comes before any of the next. Closing the generator stops the reading. `when_read` is called by the thread that reads, after
        the last tile, where tiles lie on a device: those on the host take the memory of their lane until they are computed.

        Where the encoder fails, CodeError names it, whose tiles these are, and their rows.
        """
        batches = read_ahead(self._read_parts(source, spec, l0_y, l0_x, cuts, when_read), clock)
        try:
            first = next(batches, None)
            pending: deque[_Launched] = deque()
            with self.results:
                with self.device_lock:
                    if listed.compiled:
                        self._check_compiled()
                    while first is not None:
                        for part in first.parts(self.batch) if isinstance(first, TileBatch) and self.graphs is None else (first,):
                            pending.append(self._launch(part, listed))
                            if len(pending) > self.reading.in_flight:
                                yield self._land(pending.popleft(), clock)
                        with clock.timed("wait"):
                            first = next(batches, None)
                while pending:  # while the next caller launches: the device has no pause
                    yield self._land(pending.popleft(), clock)
        finally:
            batches.close()

    def _read_parts(
        self, source: Source, spec: ReadSpec, l0_y: NDArray[np.int64], l0_x: NDArray[np.int64], cuts: Sequence[int],
        when_read: Callable[[], None],
    ) -> Generator[Batch, None, None]:  # fmt: skip
        """The batches of each part, numbered through."""
        for start, end in pairwise([0, *cuts, len(l0_y)]):
            for batch in self.reading.read(source, spec, l0_y[start:end], l0_x[start:end]):
                failed = {start + k: message for k, message in batch.failed.items()}
                yield replace(batch, index=batch.index + start, failed=failed) if start else batch
        if self.reading.on_device(source, spec):
            when_read()

    def compile(self) -> bool:
        """Compile the encoder, where it is not by now; whether it is. There is nothing to compile on a processor."""
        return self.graphs is not None and self.graphs.compile()

    def _check_compiled(self) -> None:
        """Refuse this worker where it cannot do what is asked of it. Raises UnfitWorkerError."""
        if self.graphs is not None and not self.compile():
            raise unfit("it cannot compile the encoder, and the run's first worker could", "Set compute.compile to false")

    def _launch(self, batch: Batch, listed: TileList) -> _Launched:
        """Start the encoder on a batch."""

        def rows(start: int, end: int) -> str:
            places = listed.rows_of(batch.index[start:end])
            return f"{listed.whose}: rows {places.min()} to {places.max()}"

        if self.device.type == "cpu":
            start = time.perf_counter()
            out = self.compute.submit(self.encode, batch.pixels, rows).result()
            seconds = time.perf_counter() - start
            return _Launched(batch, rows, out, lambda: seconds)
        with torch.cuda.device(self.device):  # an event belongs to the device that is the thread's own
            return self._launch_on_device(batch, listed, rows)

    def _launch_on_device(self, batch: Batch, listed: TileList, rows: Callable[[int, int], str]) -> _Launched:
        if isinstance(batch, DeviceTileBatch) and batch.ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(batch.ready)
            batch.pixels.record_stream(stream)
        started, ended = (
            torch.cuda.Event(enable_timing=True),
            torch.cuda.Event(enable_timing=True, blocking=True),
        )  # cores are the decoders'
        started.record()
        found = self.encode(batch.pixels, rows, compiled=listed.compiled).float()
        out = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
        out.copy_(found, non_blocking=True)
        ended.record()

        def finish() -> float:
            ended.synchronize()
            return float(started.elapsed_time(ended)) / 1000

        return _Launched(batch, rows, out, finish)

    def _land(self, launched: _Launched, clock: Clock) -> Embedded:
        """Wait for the results of a batch, and give its memory back."""
        batch = launched.batch
        clock.add("compute", launched.finish())
        out = launched.out.float().numpy()
        with clock.timed("compute"):
            redone = self._compute_again(launched, out)
        if isinstance(batch, TileBatch) and batch.last:
            self.buffers.give(batch.pixels)
        return Embedded(batch.index, out, batch.failed, redone)

    def _compute_again(self, launched: _Launched, out: NDArray[np.float32]) -> frozenset[int]:
        """Put results in fp32 in the place of those that left the range of fp16; the places of their tiles."""
        batch, twin = launched.batch, self.wide
        if twin is None:
            return frozenset()
        beyond = np.flatnonzero(beyond_range(out) & ~np.isin(batch.index, list(batch.failed)))
        if len(beyond):
            with user_code(f"encoder {self.settings.encoder}", launched.whose(0, len(batch.index)), passing=DEVICE_ERRORS):
                out[beyond] = self.compute.submit(twin, batch.pixels, beyond).result()
        return frozenset(batch.index[beyond].tolist())

    @torch.inference_mode()
    def encode(self, pixels: Pixels | Tensor, whose: Callable[[int, int], str], *, compiled: bool = False) -> Tensor:
        """(n, tile, tile, 3) uint8 or (n, tile, tile, bands) float32 -> (n, dim) or (n, tokens, dim) on the device, in batches of one size; `whose` says what tiles i to j are."""
        tiles = (torch.from_numpy(pixels) if isinstance(pixels, np.ndarray) else pixels).to(self.device, non_blocking=True)
        parts, start = [], 0
        encode = self.host if self.graphs is None else partial(self.graphs, compiled=compiled)
        assert encode is not None, "an encoder that is on no device is on the host"
        for part in torch.split(tiles, self.batch):
            with user_code(f"encoder {self.settings.encoder}", whose(start, start + len(part)), passing=DEVICE_ERRORS):
                parts.append(encode(part))
            start += len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


_worker: Worker | None = None
_unsettle: Callable[[], None] = _go_on
_WORKER_LOCK = threading.Lock()


def worker_for(settings: WorkerSettings) -> Worker:
    """The worker of this process; built once, and anew when the settings change, or for the next run what its encoder is made of.

    One that chose for its run serves what it chose too.
    """
    global _worker, _unsettle  # noqa: PLW0603  # one encoder a process
    with _WORKER_LOCK:
        known = _worker is not None and settings in (_worker.settings, _worker.pinned)
        if _worker is None or not known or (settings.pinned is None and _worker.made_of != files_of(settings.spec)):
            if _worker is not None:
                if _worker.processes is not None:
                    _worker.processes.close()
                encoder, _worker = weakref.ref(_worker.encoder), None  # let go of the old encoder before the new one is built
                _unsettle()
                if encoder() is not None:  # it refers to itself
                    gc.collect()
            _worker = Worker(settings)
            if (
                worker_address() and _worker.graphs is not None
            ):  # a process that does nothing else; in one of the user's, it is the run's to say
                _unsettle = settle()
        return _worker
