"""A class and probabilities of each tile: heads of kind classify, and their work on stored rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tilestream.errors import user_code
from tilestream.stages.clock import Clock
from tilestream.stages.embed_tiles import refuse_tile
from tilestream.stages.hardware import THREAD_BYTES, one_thread, pick_device
from tilestream.stages.heads.answers import NOT_FINITE, activate, write_answers
from tilestream.stages.heads.classify_pixels import classify_pixels
from tilestream.stages.heads.describe import head_for
from tilestream.stages.heads.facts import HeadFacts
from tilestream.stages.heads.kind import HeadKind
from tilestream.stages.pinning import check_machine
from tilestream.stages.slide_task import Report, SlideTask, check_stopped
from tilestream.store.blocks import map_blocks
from tilestream.store.heads.columns import head_stage, row_units, rows_of_unit, unit_rows
from tilestream.store.layout import BLOCKS_AHEAD, Layout

if TYPE_CHECKING:
    import zarr

BATCH = 2048
"""Rows that a head gets at once: always as many, and each at the same place among them, so that no bit depends on units or shards."""

SMALL, SMALL_BATCH = 128 * 1024, 128
"""Bytes up to which a head's multiplications are too small to be shared between threads of a processor, which would wait for each other longer than they
compute: such a head gets its rows in parts that stay in one thread."""


class ClassifyKind(HeadKind):
    """Heads that answer for each tile, in units of rows."""

    def units(self, task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
        return row_units(layout, facts.head.input)

    def work(self, task: SlideTask, units: range) -> Report:
        check_machine(task.line.worker)
        if task.head_facts.head.input == "pixels":
            return classify_pixels(task, units)
        return _predict_rows(task, units, pick_device(task.line.worker.device))

    def memory(self, task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
        """Weights, the blocks that are read ahead, a batch, and the answers of a unit, some more while they are written."""
        rows = min(layout.tiles, unit_rows(layout, facts.head.input))
        if facts.head.input == "pixels":  # what tiles take on their way is counted with the encoder's
            return facts.bytes + rows * (facts.answer.columns * 4 + 2) * 3
        blocks = (BLOCKS_AHEAD + 3) * min(layout.tiles, BATCH) * max(layout.dim, layout.context_dim) * 6
        return THREAD_BYTES + facts.bytes + blocks + rows * (facts.answer.columns * 4 + 2) * 3

    def output(self, task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
        return layout.tiles * (4 * facts.answer.columns + 2)


@one_thread
@torch.inference_mode()
def _predict_rows(task: SlideTask, units: range, device: torch.device) -> Report:
    facts, store, clock = task.head_facts, task.open_store(), Clock()
    loaded = head_for(facts, device)
    done = store.ledger(head_stage(facts.name))
    for unit in units:
        if unit in done:
            continue
        check_stopped()
        rows = rows_of_unit(store.layout, facts.head.input, unit)
        with clock.timed(f"head {facts.name}"):
            values, failed = row_answers(store.array(task.read_by_head), rows, loaded.module, facts, device, task.slide)
        if failed and task.line.fail_tiles:
            refuse_tile(task.slide, failed)
        with clock.timed("write"):
            write_answers(store, facts, unit, rows, values, failed)
    return Report(task.slide, units, clock.seconds)


def row_answers(
    array: zarr.Array[Any], rows: slice, module: nn.Module, facts: HeadFacts, device: torch.device, slide: str
) -> tuple[NDArray[np.float32], dict[int, str]]:
    """(m, columns) answers of stored rows, NaN where a row is, or where the head gives none; and why, by row, where it is the head."""
    failed: dict[int, str] = {}
    values = np.full((rows.stop - rows.start, facts.answer.columns), np.nan, np.float32)
    step = SMALL_BATCH if facts.bytes <= SMALL and device.type == "cpu" else BATCH
    for start, batch, bad in map_blocks(array, _whole_batch, block_rows=BATCH, start=rows.start - rows.start % BATCH, stop=rows.stop):
        first, end = max(start, rows.start), min(start + BATCH, rows.stop)
        with user_code(f"heads.{facts.name}.model: {facts.head.model}", f"{slide}: rows {first} to {end - 1}"):
            out = torch.cat([module(part.to(device)) for part in torch.from_numpy(batch).split(step)]).float().cpu()
        answers = activate(out, facts.answer)
        nothing = np.isnan(answers).any(axis=1) & ~bad
        answers[bad] = np.nan
        values[first - rows.start : end - rows.start] = answers[first - start : end - start]
        failed |= dict.fromkeys((first + np.flatnonzero(nothing[first - start : end - start])).tolist(), NOT_FINITE)
    return values, failed


def _whole_batch(block: NDArray[np.float32], start: int) -> tuple[int, NDArray[np.float32], NDArray[np.bool_]]:
    """Where a block starts, the block as (`BATCH`, d) with zeros where nothing is, and which of its rows that are."""
    if len(block) < BATCH:
        block = np.concatenate([block, np.full((BATCH - len(block), block.shape[1]), np.nan, np.float32)])
    bad = np.asarray(~np.isfinite(block).all(axis=1))
    if bad.any():
        block[bad] = 0
    return start, block, bad
