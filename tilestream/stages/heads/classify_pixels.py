"""A class and probabilities of each tile from its pixels: the tiles are read as for an encoder, and the head stands in its place."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.stages.clock import Clock
from tilestream.stages.embed_tiles import refuse_tile
from tilestream.stages.encoding.embedded import TileList
from tilestream.stages.hardware import pick_device
from tilestream.stages.heads.answers import NOT_FINITE, activate, write_answers
from tilestream.stages.heads.describe import head_for
from tilestream.stages.heads.facts import HeadFacts
from tilestream.stages.slide_task import Report, SlideTask, check_stopped, outlast_outages
from tilestream.stages.worker import Worker
from tilestream.stages.worker_settings import WorkerSettings
from tilestream.store.heads.columns import head_stage, rows_of_unit
from tilestream.store.slide_store import SlideStore

_LOCK = threading.Lock()
_workers: dict[tuple[HeadFacts, WorkerSettings], Worker] = {}
"""Of this process: one for each head that reads pixels."""


def classify_pixels(task: SlideTask, units: range) -> Report:
    """Read, classify and commit the tiles of units that are not committed yet."""
    facts, store, clock = task.head_facts, task.open_store(), Clock()
    worker = _worker_of(task)
    done = store.ledger(head_stage(facts.name))
    for unit in units:
        if unit in done:
            continue
        rows = rows_of_unit(store.layout, facts.head.input, unit)
        answer = partial(_classify, task, worker, store, rows, clock)
        values, failed = outlast_outages(answer, partial(worker.images.forget, task.image))
        if failed and task.line.fail_tiles:
            refuse_tile(task.slide, failed)
        with clock.timed("write"):
            write_answers(store, facts, unit, rows, values, failed)
    return Report(task.slide, units, {f"head {facts.name}": sum(clock.seconds.values())})


def _worker_of(task: SlideTask) -> Worker:
    """The head of a task in the place of an encoder; those of other runs are let go."""
    facts = task.head_facts
    with _LOCK:
        key = facts, task.line.worker
        if key not in _workers:
            for other in [other for other in _workers if other[0] not in task.line.heads or other[1] != task.line.worker]:
                _workers.pop(other).close()
            module = head_for(facts, torch.device("cpu") if facts.on_processor else pick_device(task.line.worker.device)).module
            _workers[key] = Worker(head_settings(facts, task.line.worker), module)
        return _workers[key]


def head_settings(facts: HeadFacts, settings: WorkerSettings) -> WorkerSettings:
    """How a worker is set up for a head: in float32, and where ONNX runs for one of those."""
    device = "cpu" if facts.on_processor else settings.device
    batch = settings.batch if device == "cpu" else None
    return replace(settings, encoder=f"heads.{facts.name}", precision="fp32", compile=False, device=device, batch=batch, pinned=None)


def _classify(task: SlideTask, worker: Worker, store: SlideStore, rows: slice, clock: Clock) -> tuple[NDArray[np.float32], dict[int, str]]:
    """(m, columns) answers of tiles, NaN where there is none, and why there is none, by row."""
    answer = task.head_facts.answer
    tile_row, tile_col = task.read_places(store, rows)
    values = np.full((len(tile_row), answer.columns), np.nan, np.float32)
    failed: dict[int, str] = {}
    y, x = task.grid.l0_y(tile_row), task.grid.l0_x(tile_col)
    with worker.lane():
        source = worker.images.get(task.image)
        with closing(worker.embed_tiles(source, task.spec, y, x, clock, listed=TileList(task.slide, rows.start))) as embedded:
            for part in embedded:
                check_stopped()
                good = np.array([tile not in part.failed for tile in part.index.tolist()], np.bool_)
                values[part.index[good]] = activate(torch.from_numpy(part.out[good]), answer)
                nothing = part.index[good][np.isnan(values[part.index[good]]).any(axis=1)]
                failed |= dict.fromkeys((rows.start + nothing).tolist(), NOT_FINITE)
                failed |= {rows.start + tile: failure.words for tile, failure in part.failed.items()}
    return values, failed
