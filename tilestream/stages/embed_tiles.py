"""What a worker does: tiles of a shard through the encoder into the store, and what follows once a slide's shards are done.

A task carries an address and numbers and returns counts and seconds: pixels and embeddings never leave the worker but to the store.
"""

from __future__ import annotations

import os
import threading
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.encoders.registry import random_weights
from tilestream.encoders.weights import weights_digest
from tilestream.errors import ConfigError, InputError, InterruptedRunError
from tilestream.sources.base import Source, SourceOptions
from tilestream.stages.clock import Clock
from tilestream.stages.hardware import device_name
from tilestream.stages.worker import Embedded, Worker, worker_for
from tilestream.stages.worker_settings import EncoderFacts, WorkerSettings
from tilestream.store.folder import Folder
from tilestream.store.layout import DECODE_ERROR, NONFINITE, OK, PADDED, STATUSES, TIMEOUT
from tilestream.store.slide_store import SlideStore
from tilestream.tiles.isolation import Quarantined
from tilestream.tiles.read_spec import ReadSpec

STOP = threading.Event()
"""Set in the process that was asked to stop: shards in work end at their next batch."""


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


def describe_encoder(settings: WorkerSettings) -> EncoderFacts:
    """Build the encoder, run one batch of noise through it, and say what the plan must know."""
    worker = worker_for(settings)
    noise = np.random.default_rng(0).integers(0, 256, (worker.batch, settings.tile, settings.tile, 3), np.uint8)
    out = worker.compute.submit(worker.encode, noise).result()
    dim = int(worker.encoder.dim)  # type: ignore[arg-type]
    if out.shape[-1] != dim:
        raise ConfigError(f"encoder.name: {settings.encoder} says dim {dim}, but its output is {tuple(out.shape[1:])}.")
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
        peak_bytes=worker.program_bytes(),
        device=device_name(worker.device),
        precision=kinds[worker.dtype],
        batch=worker.batch,
        threads=settings.threads,
        processes=worker.processes.count if worker.processes else 0,
        mpp_range=getattr(worker.encoder, "mpp_range", None),
        notes=tuple(worker.notes),
    )


def embed_shard(task: ShardTask) -> ShardReport:
    """Read, embed and write one shard; its bytes do not depend on who does it or how often."""
    worker = worker_for(task.settings)
    with worker.lanes:
        source = open_unchanged(worker, task.address, task.options, task.fingerprint)
        clock = Clock()
        arrays, errors = _embed_tiles(worker, source, task, clock)
    # The lane is free for the next shard while this one is written.
    counts = count_statuses(arrays["tables/tiles/obs/status/codes"])
    if errors and task.fail_tiles:
        refuse_tile(task.slide, errors)
    with clock.timed("write"):
        SlideStore(Folder(task.store)).write_shard(task.shard, arrays, {"counts": counts})
    return ShardReport(task.slide, task.shard, counts, clock.seconds, errors, worker.peak_bytes(), f"{os.uname().nodename}:{os.getpid()}")


def open_unchanged(worker: Worker, address: str, options: SourceOptions, fingerprint: str) -> Source:
    """The image of a task, if it is still the one that was planned.

    Raises
    ------
    InputError
        The file changed, or cannot be opened any more.
    """
    source = worker.source(address, options)
    if source.info.fingerprint != fingerprint:  # left open by an earlier run of this process, perhaps
        source = worker.reopen(address, options)
    if source.info.fingerprint != fingerprint:
        raise InputError(f"{address} changed while it was being read. Run again with --restart once the file is whole.")
    return source


def count_statuses(status: NDArray[np.int8]) -> dict[str, int]:
    """Tiles by the name of their status."""
    return {STATUSES[code]: int((status == code).sum()) for code in (OK, PADDED, DECODE_ERROR, TIMEOUT, NONFINITE)}


def refuse_tile(slide: str, errors: dict[int, str]) -> NoReturn:
    """End a slide that may have no failed tile."""
    row, message = next(iter(errors.items()))
    raise InputError(f"{slide}: tile {row} failed: {message} (on_error.tile is fail; nan would keep the slide)")


def _embed_tiles(worker: Worker, source: Source, task: ShardTask, clock: Clock) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
    """Arrays of a shard by path, and why tiles failed by output row."""
    store = SlideStore(Folder(task.store))
    layout = store.layout
    n = len(task.l0_y)
    vectors = np.full((n, layout.dim), np.nan, np.dtype(layout.dtype))
    tokens = np.full((n, layout.tokens, layout.dim), np.nan, np.dtype(layout.dtype)) if layout.tokens else None
    status = np.where(task.padded, PADDED, OK).astype(np.int8)
    errors: dict[int, str] = {}
    first_row = layout.rows(task.shard).start
    with closing(worker.embed_tiles(source, task.spec, task.l0_y, task.l0_x, clock)) as embedded:
        for part in embedded:
            if STOP.is_set():
                raise InterruptedRunError("stopped")
            place_results(part, vectors, tokens, status, errors)
    arrays: dict[str, NDArray[Any]] = {"tables/tiles/X": vectors, "tables/tiles/obs/status/codes": status}
    if tokens is not None:
        arrays["tokens"] = tokens
    return arrays, {first_row + k: errors[k] for k in sorted(errors)[:20]}


def place_results(
    part: Embedded, vectors: NDArray[Any], tokens: NDArray[Any] | None, status: NDArray[np.int8], errors: dict[int, str]
) -> None:
    """Put a batch's results at its tiles' rows; failed tiles stay NaN.

    A result that is not finite in the stored type is a failure, never a row: where tokens are kept, each token counts, for the mean of a
    tile may be in range while a token of it is not.
    """
    out = part.out
    good = np.array([k not in part.failed for k in part.index.tolist()], np.bool_)
    for tile, message in part.failed.items():
        status[tile] = TIMEOUT if isinstance(message, Quarantined) else DECODE_ERROR
        errors[tile] = message
    with np.errstate(invalid="ignore", over="ignore"):  # infinite tokens of both signs; the mean is judged below
        vector = out.mean(axis=1) if out.ndim == 3 else out
    finite = _in_range(vector, vectors.dtype)
    if tokens is not None:
        finite &= _in_range(out.reshape(len(out), -1), tokens.dtype)
    for tile in part.index[good & ~finite].tolist():
        status[tile], errors[tile] = (
            NONFINITE,
            f"the encoder's output is not finite, or beyond the range of {vectors.dtype}, the stored type",
        )
    good &= finite
    vectors[part.index[good]] = vector[good]
    if tokens is not None:
        tokens[part.index[good]] = out[good]


def _in_range(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """Which rows (n,) of (n, d) are finite, also once they are stored as `dtype`."""
    # A NaN passes through both and is below nothing.
    largest = np.maximum(values.max(axis=1, initial=0), -values.min(axis=1, initial=0))
    return np.asarray(largest <= np.finfo(dtype).max)
