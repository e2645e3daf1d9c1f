"""Objects in the pixels of a slide: overlapping patches through a detector, each object kept by exactly one of them.

A patch is read, computed and finished for itself, and decides alone which objects are its own: see `models.heads.objects.ownership`. So no object depends
on how patches are shared out, and nothing is compared between them. Objects whose middle lies in no tile of the slide are left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.buffers import PixelBuffers
from tilestream.encoders.heads.loaded import LoadedHead
from tilestream.errors import CodeError, ConfigError, InputError, user_code
from tilestream.geometry import level_for_scale
from tilestream.models.heads.objects.detect_grid import UNIT, DetectGrid, batch_of
from tilestream.models.heads.objects.detections import find_objects, is_finite, split_outputs
from tilestream.models.heads.objects.found import Objects
from tilestream.sources.base import Source
from tilestream.sources.open_images import OpenImages
from tilestream.stages.clock import Clock
from tilestream.stages.encoding.reading import HostReading
from tilestream.stages.hardware import THREAD_BYTES, one_thread, pick_device
from tilestream.stages.heads.describe import head_for
from tilestream.stages.heads.detect_parts import commit_part, join, reopen, tile_places
from tilestream.stages.heads.facts import HeadFacts
from tilestream.stages.heads.kind import HeadKind
from tilestream.stages.pinning import check_machine
from tilestream.stages.slide_task import Report, SlideTask, check_stopped, outlast_outages
from tilestream.stages.worker_settings import LANES, WorkerSettings
from tilestream.store.heads.columns import head_stage
from tilestream.store.heads.shapes import ShapeRows, load_pyarrow
from tilestream.store.layout import Layout
from tilestream.store.slide_store import SlideStore
from tilestream.tiles.read_spec import ReadSpec

OVERLAP = 64
"""Px by which patches overlap where neither config nor model says; a quarter of a patch where that is less."""

AHEAD = 2
"""Patches a thread that wait to be finished."""

POST_BYTES = 120
"""Bytes a pixel that a thread takes to make objects of a patch's maps."""

OBJECT_BYTES, PIXELS_AN_OBJECT = 3000, 400
"""What an object takes until it is written, and pixels of a slide that hold one, about."""


class DetectKind(HeadKind):
    """Heads that find objects, in units of patches."""

    finishes = True

    def units(self, task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
        return detect_grid(task, facts).units

    def make(self, task: SlideTask, facts: HeadFacts, store: SlideStore) -> None:
        reopen(store, facts.name, detect_grid(task, facts).units)

    def work(self, task: SlideTask, units: range) -> Report:
        check_machine(task.line.worker)
        reading, store, clock = _reading(task.line.worker), task.open_store(), Clock()
        done = store.ledger(head_stage(task.head))
        for unit in units:
            if unit not in done:
                work = partial(_find_in_unit, task, store, unit, reading, clock)
                rows, failed = outlast_outages(work, partial(reading.images.forget, task.image))
                if failed and task.line.fail_tiles:
                    (row, col), words = next(iter(failed.items()))
                    raise InputError(f"{task.slide}: head {task.head}, patch {row}, {col} failed: {words} (on_error.tile is fail)")
                with clock.timed("write"):
                    commit_part(store, task.head_facts, unit, rows, failed)
        return Report(task.slide, units, clock.seconds)

    def finish(self, task: SlideTask, units: range) -> Report:
        store, clock = task.open_store(), Clock()
        with clock.timed("join"):
            join(task, store, detect_grid(task, task.head_facts), units.start, _reading(task.line.worker).images)
        return Report(task.slide, units, clock.seconds)

    def memory(self, task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
        """The detector and a batch of its patches, patches that are read, the maps that are finished, and the objects of a unit."""
        load_pyarrow()
        grid = detect_grid(task, facts)
        size, threads = grid.rows.size, task.line.worker.threads
        area, batch = size**2, batch_of(size)
        cover = 1 + max(1.0, grid.scale / task.spec.downsample) ** 2
        read = area * 3 * (2 * batch + int((2 * grid.side + threads) * cover))
        objects = OBJECT_BYTES * min((grid.side * size) ** 2, max(UNIT, size) ** 2) // PIXELS_AN_OBJECT
        return facts.bytes + LANES * (read + objects) + (AHEAD + 1) * threads * area * 20 + threads * (POST_BYTES * area + THREAD_BYTES)

    def output(self, task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
        """A guess: objects cannot be counted before they are found."""
        area = layout.tiles * (task.grid.l0_extent / detect_grid(task, facts).scale) ** 2
        return int(area / (4 * PIXELS_AN_OBJECT)) * 500 + layout.tiles * (len(facts.answer.classes) + 2) * 4


def detect_grid(task: SlideTask, facts: HeadFacts) -> DetectGrid:
    """The patches of a slide. Raises ConfigError or InputError where size, overlap or resolution leave none."""
    key, size = f"heads.{facts.name}", facts.size or task.grid.tile
    if facts.mpp is not None and task.mpp is None:
        raise InputError(
            f"{task.slide}: {key} reads pixels at {facts.mpp:g} µm/px, but the slide's resolution is not known. Give it in the list of slides."
        )
    scale = task.grid.scale if facts.mpp is None or task.mpp is None else facts.mpp / task.mpp
    overlap = min(OVERLAP, size // 4) if facts.overlap is None else facts.overlap
    try:
        return DetectGrid.over(task.grid.l0_size, scale, size, overlap, facts.context)
    except ValueError as error:
        raise ConfigError(
            f"{key}.overlap: {overlap} px, and {facts.context} px a side that the model wants around, of patches of {size} px leave nothing to "
            f"step on by. Set {key}.size to more than {overlap + 2 * facts.context}."
        ) from error


@dataclass(frozen=True)
class _Reading:
    """What a process reads patches with, and finishes them."""

    settings: WorkerSettings
    decode: ThreadPoolExecutor
    finish: ThreadPoolExecutor
    buffers: PixelBuffers
    images: OpenImages


@lru_cache(maxsize=1)
def _reading(settings: WorkerSettings) -> _Reading:
    decode, finish = (ThreadPoolExecutor(settings.threads, thread_name_prefix=name) for name in ("patches", "objects"))
    return _Reading(settings, decode, finish, PixelBuffers(), OpenImages(LANES))


@dataclass(frozen=True)
class _Patch:
    """Where a patch lies."""

    row: int
    col: int
    l0_y: int
    l0_x: int


Found = tuple[_Patch, Objects | str]
"""The objects of a patch in level-0 px, or why there are none."""


def _find_in_unit(
    task: SlideTask, store: SlideStore, unit: int, reading: _Reading, clock: Clock
) -> tuple[ShapeRows, dict[tuple[int, int], str]]:
    """The objects of a unit, in the order of patches, and why patches failed."""
    facts = task.head_facts
    grid, tiles = detect_grid(task, facts), tile_places(task, store)
    rows, cols = grid.patches(unit)
    near = tiles.near(*grid.l0_box(unit))
    needed = grid.touched(rows, cols, tiles.l0_y[near], tiles.l0_x[near], tiles.l0_extent)
    rows, cols = rows[needed], cols[needed]
    patches = [
        _Patch(*place) for place in zip(*map(np.ndarray.tolist, (rows, cols, grid.l0_origins(rows), grid.l0_origins(cols))), strict=True)
    ]
    kept: dict[tuple[int, int], Objects] = {}
    failed: dict[tuple[int, int], str] = {}
    with closing(_find(task, facts, grid, patches, reading, clock)) as results:
        for patch, found in results:
            check_stopped()
            if isinstance(found, str):
                failed[patch.row, patch.col] = found
            else:
                kept[patch.row, patch.col] = found
    objects = Objects.joined([kept[place] for place in sorted(kept)])
    objects = objects.take(tiles.holds(objects.centres))
    return ShapeRows.of(objects.shapes, objects.classes, objects.scores, task.mpp), failed


def _find(
    task: SlideTask, facts: HeadFacts, grid: DetectGrid, patches: list[_Patch], reading: _Reading, clock: Clock
) -> Generator[Found, None, None]:
    """What each patch of a list holds, as it is finished."""
    device = torch.device("cpu") if facts.on_processor else pick_device(task.line.worker.device)
    loaded = head_for(facts, device)
    pending: deque[Future[Found]] = deque()
    most = AHEAD * task.line.worker.threads
    source = reading.images.get(task.image)
    spec = read_spec(source, grid, facts, task.slide)
    host = HostReading(task.line.worker, reading.decode, reading.buffers, batch_of(spec.tile))
    y, x = (np.array([getattr(patch, name) for patch in patches], np.int64) for name in ("l0_y", "l0_x"))
    try:
        for batch in host.read(source, spec, y, x):
            where = [patches[k] for k in batch.index.tolist()]
            with clock.timed(f"head {facts.name}"):
                parts = _forward(
                    loaded, facts, np.asarray(batch.pixels), device, f"{task.slide}: patches {where[0].row}, {where[0].col} on"
                )
            for k, patch, part in zip(batch.index.tolist(), where, parts, strict=True):
                if k in batch.failed:
                    yield patch, batch.failed[k].words
                    continue
                pending.append(reading.finish.submit(_finish, patch, part, loaded, facts, grid, task.slide))
                while len(pending) > most:
                    yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def read_spec(source: Source, grid: DetectGrid, facts: HeadFacts, slide: str) -> ReadSpec:
    """How patches are read. Raises InputError where the image has no pixels that fine."""
    level = level_for_scale(source.info.levels, grid.scale)
    if level is None:
        raise InputError(
            f"{slide}: heads.{facts.name} reads {facts.mpp:g} µm/px, but the finest level has {source.info.mpp:.4g}. Leave the slide out."
        )
    return ReadSpec(level, source.info.levels[level].downsample, grid.rows.size, grid.scale)


@one_thread
@torch.inference_mode()
def _forward(loaded: LoadedHead, facts: HeadFacts, pixels: NDArray[np.uint8], device: torch.device, whose: str) -> list[Any]:
    """What the detector gives for each of (n, S, S, 3) patches."""
    tiles = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).contiguous()
    with user_code(f"heads.{facts.name}.model: {facts.head.model}", whose):
        return split_outputs(loaded.module(tiles), len(pixels))


def _finish(patch: _Patch, part: Any, loaded: LoadedHead, facts: HeadFacts, grid: DetectGrid, slide: str) -> Found:
    """The objects that a patch keeps, in level-0 px and in an order of their own."""
    key = f"heads.{facts.name}"
    if not is_finite(part):
        return patch, "what the detector gives is not finite"
    own = getattr(loaded.module, "find_objects", None)
    with user_code(f"{key}.model: {facts.head.model}", f"{slide}: patch {patch.row}, {patch.col}", passing=(CodeError,)):
        objects = find_objects(part, len(facts.answer.classes), grid.rows.size, own)
    if not objects.finite:
        return patch, "boxes or scores are not finite"
    keep, spanning = grid.owned(patch.row, patch.col, objects.boxes)
    if spanning.any():
        y0, x0, y1, x1 = objects.boxes[int(np.flatnonzero(spanning)[0])].tolist()
        side = int(np.ceil(max(y1 - y0, x1 - x0)))
        raise InputError(
            f"{slide}: {key}.overlap: {grid.rows.overlap} px, but at level-0 y {patch.l0_y + y0 * grid.scale:.0f}, x {patch.l0_x + x0 * grid.scale:.0f} "
            f"there is an object of {side} px or more, which no patch may see whole. Set {key}.overlap to more than the largest object, e.g. {2 * side}."
        )
    objects = objects.take(keep)
    order = np.lexsort((objects.scores, objects.classes, *objects.boxes.T[::-1]))
    return patch, objects.take(order).moved(patch.l0_y, patch.l0_x, grid.scale)
