"""Tiles of a shard through the encoder into the store.

A task carries an address and numbers and returns counts and seconds: pixels and embeddings never leave the worker but to the store.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tilestream.config.heads import NO_ENCODER
from tilestream.encoders.earth.bands import bands_of
from tilestream.encoders.registry import random_weights
from tilestream.errors import ConfigError, InputError, InterruptedRunError
from tilestream.sources.base import Pixels, Source
from tilestream.stages.clock import Clock
from tilestream.stages.encoding.embedded import Embedded, TileList
from tilestream.stages.encoding.in_work import ShardRows, Teller, placed
from tilestream.stages.hardware import device_name, peak_memory, pick_device
from tilestream.stages.pinning import PRECISIONS
from tilestream.stages.shares import CPU_BATCH
from tilestream.stages.slide_task import Report, SlideTask, add_counts, check_stopped, outlast_outages
from tilestream.stages.worker import Worker, worker_for
from tilestream.stages.worker_settings import EncoderFacts, WorkerSettings, uses_processes
from tilestream.store.layout import DECODE_ERROR, NONFINITE, OK, PADDED, STATUSES, TIMEOUT
from tilestream.store.slide_store import CODES, ROWS, SlideStore
from tilestream.tiles.grid import TileSet

PROBED = 8
"""Tiles of noise that an encoder on a device is tried on."""

ERRORS_A_SHARD = 20
"""Failed tiles of a shard whose causes are kept."""


def embed(image: Source, tiles: TileSet, encoder: nn.Module, *, batch_size: int | None = None) -> NDArray[np.float32]:
    """The embeddings of an image's tiles: the rows that a run stores with the same encoder and number format.

    Parameters
    ----------
    image : Source
        From `open_image`; the one that the tiles were found on.
    tiles : TileSet
        From `find_tiles`.
    encoder : nn.Module
        From `load_encoder`, or your own: an int `dim`, and a `forward` that takes (n, 3, size, size) uint8 on its device and returns
        (n, dim), or (n, k * k, dim) for patch tokens, of which the mean is taken. Of an image opened with `normalise` it takes
        (n, bands, size, size) float32, and says so by an attribute `bands`. It runs where it is, in its own number format, in eval mode.
    batch_size : int, optional
        Tiles that it gets at once; what suits its device where it is not given.

    Returns
    -------
    rows : (n, dim) float32
        In the order of the tiles; NaN where a tile could not be read or the result is not finite.

    Raises
    ------
    ConfigError
        The encoder's `dim` is not the width of what it returns.
    InputError
        The image cannot be read any more.
    """
    for name, value, kind, wanted in (
        ("image", image, Source, "what open_image gives"),
        ("tiles", tiles, TileSet, "what find_tiles gives"),
        ("encoder", encoder, nn.Module, "what load_encoder gives, or a torch.nn.Module"),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"{name}: {type(value).__name__}, but embed takes {wanted}.")
    parameter = next(encoder.parameters(), torch.empty(0))
    cores = len(os.sched_getaffinity(0))
    settings = WorkerSettings(
        encoder=type(encoder).__name__, weights=None, args="{}", precision=PRECISIONS[parameter.dtype], device=str(parameter.device),
        tile=tiles.grid.tile, batch=batch_size, threads=cores, compile=False, isolate=False, decode="cpu",
        decode_processes=uses_processes(cores), compute_threads=None, bands=tiles.spec.pixel.bands,
    )  # fmt: skip
    training = encoder.training
    worker = Worker(settings, encoder.eval())
    try:
        rows = np.full((len(tiles), int(encoder.dim)), np.nan, np.float32)  # type: ignore[arg-type]
        status = np.full(len(tiles), OK, np.int8)
        y, x = tiles.positions.T
        with closing(worker.embed_tiles(image, tiles.spec, y, x, Clock())) as embedded:
            for part in embedded:
                if part.out.shape[-1] != encoder.dim:
                    raise ConfigError(f"{settings.encoder} says dim {encoder.dim}, but its output is {tuple(part.out.shape[1:])}.")
                place_results(part, rows, None, status, {})
    finally:
        worker.close()
        encoder.train(training)
    return rows


def describe_encoder(settings: WorkerSettings) -> tuple[EncoderFacts, WorkerSettings]:
    """Build the encoder, run one batch of noise through it, and say what the plan must know, and what all other workers are to be set up with."""
    if settings.encoder == NO_ENCODER:
        return _no_encoder(settings)
    worker = worker_for(settings)
    if worker.facts is None:
        worker.facts = _learn_facts(worker, settings)
    return replace(worker.facts, peak_bytes=worker.program_bytes()), worker.pinned


def compile_ahead(settings: WorkerSettings) -> str:
    """Compile the encoder of this process's worker while it works, in a thread of low priority; why that could not be done, or ""."""
    worker = worker_for(settings)
    with ThreadPoolExecutor(1, "compile", _give_way) as pool:
        return "" if pool.submit(worker.compile).result() else "".join(worker.graphs.notes[-1:] if worker.graphs else [])


def _give_way() -> None:
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _learn_facts(worker: Worker, settings: WorkerSettings) -> EncoderFacts:
    """What a batch of noise tells."""
    count = worker.host.at_once if worker.host is not None else min(PROBED, worker.batch)  # a device's batches are filled up
    rng, shape = np.random.default_rng(0), (count, settings.tile, settings.tile, settings.pixel.channels)
    noise: Pixels = rng.standard_normal(shape, np.float32) if settings.bands else rng.integers(0, 256, shape, np.uint8)
    out = worker.compute.submit(worker.encode, noise, lambda *_: "a batch of noise").result()
    dim = int(worker.encoder.dim)  # type: ignore[arg-type]
    if out.shape[-1] != dim:
        raise ConfigError(f"encoder.name: {settings.encoder} says dim {dim}, but its output is {tuple(out.shape[1:])}.")
    pinned = worker.pinned.pinned
    assert pinned is not None, "what a worker has pinned is pinned"
    return EncoderFacts(
        name=settings.encoder,
        dim=dim,
        tokens=out.shape[1] if out.ndim == 3 else 1,
        tile_size=getattr(worker.encoder, "tile_size", None),
        mpp=getattr(worker.encoder, "mpp", None),
        parameters=sum(p.numel() for p in worker.encoder.parameters()),
        digest=pinned.weights_sha256,
        untrained=random_weights(settings.spec, worker.encoder),
        peak_bytes=worker.program_bytes(),
        device=device_name(worker.device),
        precision=PRECISIONS[worker.dtype],
        batch=worker.batch,
        threads=settings.threads,
        processes=worker.processes.count if worker.processes else 0,
        mpp_range=getattr(worker.encoder, "mpp_range", None),
        notes=(*getattr(worker.encoder, "notes", ()), *worker.notes),
        vector=getattr(worker.encoder, "vector", None),
        tile_seconds=worker.graphs.seconds_a_tile() if worker.graphs else None,
        takes_larger_tiles=bool(getattr(worker.encoder, "takes_larger_tiles", False)),
        cpu_capability=pinned.cpu_capability,
        seconds=worker.seconds,
        bands=taken if isinstance(taken := bands_of(worker.encoder), tuple) else (),
    )


def _no_encoder(settings: WorkerSettings) -> tuple[EncoderFacts, WorkerSettings]:
    """What is to be known where heads alone read pixels."""
    device = pick_device(settings.device)
    facts = EncoderFacts(
        name=NO_ENCODER, dim=1, tokens=1, tile_size=None, mpp=None, parameters=0, digest=NO_ENCODER, untrained=False, peak_bytes=peak_memory(),
        device=device_name(device), precision="fp32", batch=settings.batch or CPU_BATCH, threads=settings.threads,
    )  # fmt: skip
    return facts, settings


_Embedded = tuple[dict[str, NDArray[Any]], dict[int, str], int]


def embed_tiles(task: SlideTask, shards: range) -> Report:
    """Read, embed and write shards; their bytes do not depend on who does it or how often."""
    worker, store, clock = worker_for(task.line.worker), task.open_store(), Clock()
    counts: dict[str, int] = {}
    errors: dict[int, str] = {}
    for shard in shards:
        embed_shard = partial(_embed_in_turn, worker, store, task, shard, clock)
        with worker.open_shards:
            arrays, failed, redone = outlast_outages(embed_shard, partial(worker.images.forget, task.image))
            # The lane is free for the next shard while this one is written.
            if failed and task.line.fail_tiles:
                refuse_tile(task.slide, failed)
            found = count_statuses(arrays[CODES])
            with clock.timed("write"):
                store.write_shard(shard, arrays, shard_record(found, failed, redone))
            del arrays
        counts, errors = add_counts(counts, found), errors | failed
    return Report(task.slide, shards, clock.seconds, counts, errors)


def place_tiles(task: SlideTask, shards: range) -> Report:
    """Commit shards of tiles that no encoder sees: where they lie, and no vectors. No pixel is read."""
    store, layout = task.open_store(), task.open_store().layout
    counts: dict[str, int] = {}
    for shard in shards:
        rows = layout.rows(shard)
        padded = task.grid.overhangs(*task.read_places(store, rows))
        status = np.where(padded, PADDED, OK).astype(np.int8)
        found = count_statuses(status)
        vectors = np.full((len(status), layout.dim), np.nan, layout.dtype)
        store.write_shard(shard, {ROWS: vectors, CODES: status}, {"counts": found, "errors": {}})
        counts = add_counts(counts, found)
    return Report(task.slide, shards, {}, counts)


def count_statuses(status: NDArray[np.int8]) -> dict[str, int]:
    """Tiles by the name of their status."""
    return {STATUSES[code]: int((status == code).sum()) for code in (OK, PADDED, DECODE_ERROR, TIMEOUT, NONFINITE)}


def refuse_tile(slide: str, errors: dict[int, str]) -> NoReturn:
    """End a slide that may have no failed tile."""
    row, message = next(iter(errors.items()))
    raise InputError(f"{slide}: tile {row} failed: {message} (on_error.tile is fail; nan would keep the slide)")


def _embed_in_turn(worker: Worker, store: SlideStore, task: SlideTask, shard: int, clock: Clock) -> _Embedded:
    with worker.lane() as leave:
        return _embed_shard(worker, store, task, shard, clock, leave)


def _embed_shard(worker: Worker, store: SlideStore, task: SlideTask, shard: int, clock: Clock, when_read: Callable[[], None]) -> _Embedded:
    """Arrays of a shard by path, why tiles failed by output row, at most 20, and how many were computed again in fp32."""
    layout = store.layout
    rows = layout.rows(shard)
    tile_row, tile_col = task.read_places(store, rows)
    n = len(tile_row)
    vectors = np.full((n, layout.dim), np.nan, np.dtype(layout.dtype))
    tokens = np.full((n, layout.tokens, layout.dim), np.nan, np.dtype(layout.dtype)) if layout.tokens else None
    status = np.where(task.grid.overhangs(tile_row, tile_col), PADDED, OK).astype(np.int8)
    filled = ShardRows(store, shard, {ROWS: vectors, CODES: status} | ({} if tokens is None else {"tokens": tokens}))
    teller, todo = Teller(task.token, task.slide, shard), filled.open
    y, x = task.grid.l0_y(tile_row[todo]), task.grid.l0_x(tile_col[todo])
    source = worker.images.get(task.image)
    listed = TileList(task.slide, rows.start, task.compiled, todo)
    with closing(worker.embed_tiles(source, task.spec, y, x, clock, listed=listed, when_read=when_read)) as embedded:
        try:
            for part in embedded:
                part = placed(part, todo)  # noqa: PLW2901  # the same results, by their rows
                place_results(part, vectors, tokens, status, filled.errors)
                filled.note(part)
                teller.tell(filled.done, filled.kept)
                check_stopped()
        except InterruptedRunError:  # an outage is one
            filled.keep()
            teller.tell(filled.done, filled.kept, now=True)
            raise
    errors = filled.errors
    return filled.arrays, {rows.start + k: errors[k] for k in sorted(errors)[:ERRORS_A_SHARD]}, len(filled.redone)


def shard_record(counts: dict[str, int], errors: dict[int, str], redone: int) -> dict[str, Any]:
    """What the ledger keeps of a shard of tiles; `redone` of them were computed in fp32, as they left the range of fp16."""
    return {"counts": counts, "errors": errors, **({"redone": redone} if redone else {})}


def place_results(
    part: Embedded, vectors: NDArray[Any], tokens: NDArray[Any] | None, status: NDArray[np.int8], errors: dict[int, str]
) -> None:
    """Put a batch's results at its tiles' rows; failed tiles stay NaN.

    A result that is not finite in the stored type is a failure, never a row: where tokens are kept, each token counts, for the mean of a
    tile may be in range while a token of it is not.
    """
    out = part.out
    good = np.array([k not in part.failed for k in part.index.tolist()], np.bool_)
    for tile, failure in part.failed.items():
        status[tile], errors[tile] = failure.status, failure.words
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
