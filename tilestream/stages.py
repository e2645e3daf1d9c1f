"""What a worker does: tiles of a shard through the encoder into the store, and what follows once a slide's shards are done.

A task carries an address and numbers and returns counts and seconds: pixels and embeddings never leave the worker but to the store.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.errors import ConfigError, InputError, InterruptedRunError
from tilestream.layout import DECODE_ERROR, NONFINITE, OK, PADDED
from tilestream.machine import device_name, peak_memory, pick_device, pick_precision, settle_allocator
from tilestream.models.encoders import EncoderSpec, build_encoder, random_weights
from tilestream.models.weights import weights_digest
from tilestream.objects import Folder
from tilestream.plan import LANES, EncoderFacts
from tilestream.reading import PixelBuffers, TileBatch, TileReader
from tilestream.readspec import ReadSpec
from tilestream.sources import open_source
from tilestream.sources.base import Source, SourceOptions
from tilestream.store import SlideStore

QUEUE_BATCHES = 2
"""Batches that wait between reading and computing."""

CPU_BATCH, GPU_BATCH = 16, 256
"""Tiles a batch where the config leaves it open: a CPU gains nothing from more, a GPU needs them to be busy."""

STOP = threading.Event()
"""Set in the process that was asked to stop: shards in work end at their next batch."""


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker is set up; equal settings share one encoder."""

    encoder: str
    weights: str | None
    args: str
    """Arguments of the factory, as JSON: hashable."""
    precision: str
    device: str
    tile: int
    batch: int | None
    """Tiles a batch; None takes what suits the device."""
    threads: int
    compute_threads: int | None
    """Threads of torch within one operation; None leaves torch's own choice."""

    @property
    def spec(self) -> EncoderSpec:
        """What the encoder is built from."""
        return EncoderSpec(name=self.encoder, weights=self.weights, args=json.loads(self.args))


@dataclass(frozen=True)
class ShardTask:
    """One shard of one slide."""

    slide: str
    address: str
    options: SourceOptions
    fingerprint: str
    """Of the source when the slide was planned; another one now means that the file changed under the run."""
    spec: ReadSpec
    l0_y: NDArray[np.int64]
    l0_x: NDArray[np.int64]
    padded: NDArray[np.bool_]
    shard: int
    store: str
    """Address of the slide's store."""
    settings: WorkerSettings
    fail_tiles: bool
    """Whether one failed tile ends the slide."""


@dataclass
class Clock:
    """Seconds by stage. Reading overlaps computing, so they need not add up to the wall clock."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class ShardReport:
    """What a shard's task returns."""

    slide: str
    shard: int
    counts: dict[str, int]
    """Tiles by status."""
    seconds: dict[str, float]
    """Seconds by stage."""
    errors: dict[int, str]
    """Why tiles failed, by row of the output; at most 20."""
    peak_bytes: int
    """High-water mark of the worker's resident memory so far."""
    worker: str
    """Process that did it."""


class Worker:
    """One process's encoder, decode pool and lanes. The encoder serves one shard at a time; reading runs ahead in the other lane."""

    def __init__(self, settings: WorkerSettings) -> None:
        settle_allocator()
        self.settings = settings
        if settings.compute_threads is not None:
            torch.set_num_threads(settings.compute_threads)
        self.device = pick_device(settings.device)
        self.dtype = pick_precision(settings.precision, self.device)
        self.batch = settings.batch or (CPU_BATCH if self.device.type == "cpu" else GPU_BATCH)
        self.encoder = build_encoder(settings.spec).to(self.device)
        if self.dtype is not torch.float32:
            self.encoder = self.encoder.to(self.dtype)
        self.pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")
        # One thread does all computing: each thread has an allocator arena of its own, and activations would leave holes in all of them.
        self.compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.buffers = PixelBuffers()
        self.lanes = threading.BoundedSemaphore(LANES)
        self.device_lock = threading.Lock()
        self._sources: dict[tuple[str, SourceOptions], Source] = {}
        self._sources_lock = threading.Lock()

    def source(self, address: str, options: SourceOptions) -> Source:
        """The open image of an address; the two used last stay open."""
        with self._sources_lock:
            key = (address, options)
            if key not in self._sources:
                while len(self._sources) >= LANES:
                    self._sources.pop(next(iter(self._sources)))
                self._sources[key] = open_source(address, options)
            return self._sources[key]

    @torch.inference_mode()
    def embed(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, tile, tile, 3) uint8 -> (n, dim) or (n, tokens, dim) float32; short batches are filled up, so shapes never change."""
        count = len(pixels)
        if count < self.batch:
            pixels = np.concatenate([pixels, np.zeros((self.batch - count, *pixels.shape[1:]), np.uint8)])
        tiles = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
        out = self.encoder(tiles)
        if not (isinstance(out, torch.Tensor) and out.is_floating_point() and out.ndim in (2, 3) and len(out) == len(pixels)):
            seen = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, torch.Tensor) else type(out).__name__
            raise ConfigError(
                f"encoder.name: {self.settings.encoder} gave {seen} for {len(pixels)} tiles; "
                "an encoder returns (n, dim) or (n, tokens, dim) floating point."
            )
        result: NDArray[np.float32] = out[:count].float().cpu().numpy()
        return result


@lru_cache(maxsize=1)
def get_worker(settings: WorkerSettings) -> Worker:
    """The worker of this process; built once, and anew when the settings change."""
    return Worker(settings)


_GET_WORKER_LOCK = threading.Lock()


def worker_for(settings: WorkerSettings) -> Worker:
    """`get_worker`, safe to call from two lanes at once."""
    with _GET_WORKER_LOCK:
        return get_worker(settings)


def describe_encoder(settings: WorkerSettings) -> EncoderFacts:
    """Build the encoder, run one batch of noise through it, and say what the plan must know."""
    worker = worker_for(settings)
    noise = np.random.default_rng(0).integers(0, 256, (worker.batch, settings.tile, settings.tile, 3), np.uint8)
    out = worker.compute.submit(worker.embed, noise).result()
    dim = int(worker.encoder.dim)  # type: ignore[arg-type]
    if out.shape[-1] != dim:
        raise ConfigError(f"encoder.name: {settings.encoder} says dim {dim}, but its output is {out.shape[1:]}.")
    kinds = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return EncoderFacts(
        name=settings.encoder,
        dim=dim,
        tokens=out.shape[1] if out.ndim == 3 else 1,
        tile_size=getattr(worker.encoder, "tile_size", None),
        mpp=getattr(worker.encoder, "mpp", None),
        parameters=sum(p.numel() for p in worker.encoder.parameters()),
        digest=weights_digest(worker.encoder),
        untrained=random_weights(settings.spec, worker.encoder),
        peak_bytes=peak_memory(),
        device=device_name(worker.device),
        precision=kinds[worker.dtype],
        batch=worker.batch,
        threads=settings.threads,
    )


def embed_shard(task: ShardTask) -> ShardReport:
    """Read, embed and write one shard; its bytes do not depend on who does it or how often."""
    worker = worker_for(task.settings)
    with worker.lanes:
        source = worker.source(task.address, task.options)
        if source.info.fingerprint != task.fingerprint:
            raise InputError(f"{task.address} changed while it was being read. Run again with --restart once the file is whole.")
        clock = Clock()
        arrays, errors = _embed_tiles(worker, source, task, clock)
        status = arrays["tables/tiles/obs/status/codes"]
        counts = {
            name: int((status == code).sum())
            for name, code in (("ok", OK), ("padded", PADDED), ("decode_error", DECODE_ERROR), ("nonfinite", NONFINITE))
        }
        if errors and task.fail_tiles:
            row, message = next(iter(errors.items()))
            raise InputError(f"{task.slide}: tile {row} failed: {message} (on_error.tile is fail; nan would keep the slide)")
        with clock.timed("write"):
            store = SlideStore(Folder(task.store))
            store.write_shard(task.shard, arrays, {"counts": counts})
        return ShardReport(task.slide, task.shard, counts, clock.seconds, errors, peak_memory(), f"{os.uname().nodename}:{os.getpid()}")


def _embed_tiles(worker: Worker, source: Source, task: ShardTask, clock: Clock) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
    """Arrays of a shard by path, and why tiles failed by output row."""
    store = SlideStore(Folder(task.store))
    layout = store.layout
    n = len(task.l0_y)
    vectors = np.full((n, layout.dim), np.nan, np.float32)
    tokens = np.full((n, layout.tokens, layout.dim), np.nan, np.dtype(layout.dtype)) if layout.tokens else None
    status = np.where(task.padded, PADDED, OK).astype(np.int8)
    errors: dict[int, str] = {}
    first_row = layout.rows(task.shard).start
    reader = TileReader(source, task.spec, pool=worker.pool, threads=task.settings.threads, batch=worker.batch, buffers=worker.buffers)
    batches = read_ahead(reader.read(task.l0_y, task.l0_x), clock)
    first = next(batches, None)
    with worker.device_lock:
        while first is not None:
            if STOP.is_set():
                batches.close()
                raise InterruptedRunError("stopped")
            batch = first
            with clock.timed("compute"):
                out = worker.compute.submit(worker.embed, batch.pixels).result()
            _place(batch, out, vectors, tokens, status, errors, np.dtype(layout.dtype))
            worker.buffers.give(batch.pixels)
            with clock.timed("wait"):
                first = next(batches, None)
    arrays: dict[str, NDArray[Any]] = {"tables/tiles/X": vectors.astype(layout.dtype), "tables/tiles/obs/status/codes": status}
    if tokens is not None:
        arrays["tokens"] = tokens
    return arrays, {first_row + k: errors[k] for k in sorted(errors)[:20]}


def _place(
    batch: TileBatch,
    out: NDArray[np.float32],
    vectors: NDArray[np.float32],
    tokens: NDArray[Any] | None,
    status: NDArray[np.int8],
    errors: dict[int, str],
    stored: np.dtype[Any],
) -> None:
    """Put a batch's results at its tiles' rows; failed tiles stay NaN. A result that is not finite is a failure, never a row."""
    good = np.array([k not in batch.failed for k in batch.index.tolist()], np.bool_)
    for tile, message in batch.failed.items():
        status[tile], errors[tile] = DECODE_ERROR, message
    vector = out.mean(axis=1) if out.ndim == 3 else out
    largest = np.finfo(stored).max
    finite = np.isfinite(vector).all(axis=1) & (np.abs(vector).max(axis=1, initial=0) <= largest)
    for tile in batch.index[good & ~finite].tolist():
        status[tile], errors[tile] = NONFINITE, "the encoder's output is not finite, or too large for the stored type"
    good &= finite
    vectors[batch.index[good]] = vector[good]
    if tokens is not None:
        tokens[batch.index[good]] = out[good]


def read_ahead(batches: Iterator[TileBatch], clock: Clock) -> Generator[TileBatch, None, None]:
    """The same batches, read by a thread that runs up to `QUEUE_BATCHES` ahead. Closing the iterator stops the thread."""
    ready: queue.Queue[TileBatch | BaseException | None] = queue.Queue(QUEUE_BATCHES)
    stopped = threading.Event()

    def put(item: TileBatch | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            while not stopped.is_set():
                with clock.timed("read"):
                    batch = next(batches, None)
                if not put(batch) or batch is None:
                    return
        except Exception as error:  # noqa: BLE001  # carried to the thread that consumes, which raises it
            put(error)

    thread = threading.Thread(target=produce, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
