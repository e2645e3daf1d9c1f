"""A class, or values, of each pixel: patches through a dense model, blended, and written block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.errors import InputError
from tilestream.geometry import level_for_scale
from tilestream.models.heads.blending import Blender
from tilestream.models.heads.patch_grid import BlockGrid, PatchGrid
from tilestream.stages.clock import Clock
from tilestream.stages.hardware import THREAD_BYTES, one_thread, pick_device
from tilestream.stages.heads.dense.draw_labels import draw_labels
from tilestream.stages.heads.dense.token_segmenting import TokenCanvas, segment_tokens
from tilestream.stages.heads.dense.unit_image import UnitImage, label_image, pixel_bytes
from tilestream.stages.heads.dense.unit_writer import UnitWriter
from tilestream.stages.heads.dense_model import DenseModel, dense_threads
from tilestream.stages.heads.describe import head_for
from tilestream.stages.heads.facts import DenseFacts, HeadFacts
from tilestream.stages.heads.kind import HeadKind
from tilestream.stages.heads.patch_reading import READ_AT_ONCE, PatchReader, hands_for
from tilestream.stages.pinning import check_machine
from tilestream.stages.prefetch import QUEUE_BATCHES
from tilestream.stages.slide_task import Report, SlideTask, check_stopped, outlast_outages
from tilestream.store.heads.columns import head_stage
from tilestream.store.heads.labels import make_labels, write_levels
from tilestream.store.heads.shapes import picture_key
from tilestream.store.layout import Layout
from tilestream.store.slide_store import SlideStore
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.tile_reader import Failure

CAUSES_A_UNIT = 20
"""Failed patches of a unit whose causes are kept."""


class SegmentKind(HeadKind):
    """Heads that label pixels, in units of blocks."""

    together = 16
    finishes = True

    def units(self, task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
        return canvas_of(task, facts).blocks.units

    def make(self, task: SlideTask, facts: HeadFacts, store: SlideStore) -> None:
        segmenting = [name for name, own in store.heads.items() if own["kind"] == "segment" and own["answer"]["task"] == "classification"]
        make_labels(store, canvas_of(task, facts).image, segmenting)

    def work(self, task: SlideTask, units: range) -> Report:
        check_machine(task.line.worker)
        device = torch.device("cpu") if task.head_facts.on_processor else pick_device(task.line.worker.device)
        return _segment(task, units, device) if task.head_facts.head.input == "pixels" else segment_tokens(task, units, device)

    def finish(self, task: SlideTask, units: range) -> Report:
        clock, canvas = Clock(), canvas_of(task, task.head_facts)
        store = task.open_store()

        def picture() -> dict[str, bytes]:
            return {} if canvas.image.channels else {picture_key(task.head): draw_labels(task, store, canvas.image)}

        with clock.timed("write"):
            write_levels(store, canvas.image, units.start, picture)
        return Report(task.slide, units, clock.seconds)

    def memory(self, task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
        return THREAD_BYTES + facts.bytes + canvas_of(task, facts).memory(task.line.worker.threads)

    def output(self, task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
        canvas = canvas_of(task, facts)
        return canvas.image.stored_bytes(canvas.computed(task, layout.tiles))


def canvas_of(task: SlideTask, facts: HeadFacts) -> Canvas | TokenCanvas:
    """Where everything lies of a head on a slide. Raises InputError where the slide does not suit what it reads."""
    return Canvas(task, facts) if facts.head.input == "pixels" else TokenCanvas(task, facts)


class Canvas:
    """Where everything lies of one head on one slide, from sizes alone.

    Raises
    ------
    InputError
        The image is coarser than what the head reads.
    """

    def __init__(self, task: SlideTask, facts: HeadFacts) -> None:
        assert facts.dense is not None, "a head that segments was probed"
        self.dense: DenseFacts = facts.dense
        self.answer = facts.answer
        scale = facts.mpp / task.mpp if facts.mpp is not None and task.mpp is not None else task.grid.scale
        level = level_for_scale(task.levels, scale)
        if level is None:
            raise InputError(
                f"{task.slide}: heads.{facts.name}.mpp is {facts.mpp}, but the finest level has {task.mpp:.4g} µm/px. "
                f"Set heads.{facts.name}.mpp to {task.mpp:.4g} or more, or leave this slide out."
            )
        self.spec = ReadSpec(level, task.levels[level].downsample, self.dense.size, scale)
        size = task.grid.l0_size
        height, width = (max(1, math.ceil(side / scale - 1e-6)) for side in (size.height, size.width))
        self.patches = PatchGrid(height, width, self.dense.size, self.dense.margin, self.dense.stride)
        self.blocks = BlockGrid.of(self.patches, pixel_bytes(facts))
        self.image = label_image(facts, self.patches.shape, self.blocks, scale * self.dense.stride, task.mpp)

    @property
    def channels(self) -> int:
        """Numbers of a pixel while patches meet."""
        return self.answer.outputs if self.dense.blend == "crop" else self.answer.columns

    def kept(self, task: SlideTask, store: SlideStore) -> NDArray[np.bool_]:
        """(rows, cols) the cores that meet a tile of the slide: there is nothing to be seen in others."""
        edges = np.zeros((self.patches.rows + 1, self.patches.cols + 1), np.int64)
        tile_row, tile_col = task.read_places(store)
        step = self.patches.step * self.spec.scale
        first, end = [], []
        for l0, count in ((task.grid.l0_y(tile_row), self.patches.rows), (task.grid.l0_x(tile_col), self.patches.cols)):
            first.append(np.clip(np.floor(l0 / step).astype(np.int64), 0, count))
            end.append(np.clip(np.ceil((l0 + task.grid.l0_extent) / step - 1e-6).astype(np.int64), 0, count))
        for y, x, sign in ((first[0], first[1], 1), (first[0], end[1], -1), (end[0], first[1], -1), (end[0], end[1], 1)):
            np.add.at(edges, (y, x), sign)
        covered: NDArray[np.bool_] = edges.cumsum(0).cumsum(1)[:-1, :-1] > 0
        return covered

    def computed(self, task: SlideTask, tiles: int) -> int:
        """Output px of so many tiles, at most."""
        extent = math.ceil(task.grid.l0_extent / self.spec.scale / self.patches.step) + 1
        return min(self.patches.rows * self.patches.cols, tiles * extent**2) * self.patches.core**2

    def memory(self, threads: int) -> int:
        """Bytes that a worker holds beside the model's weights."""
        grid, dense = self.patches, self.dense
        patch = grid.side**2 * 4 * (self.channels + 1)
        flight = (3 * dense.batch + 6) * patch
        across = (self.blocks.blocks * self.blocks.cores + 2) * grid.core + 2 * grid.border
        carry = 0 if dense.blend == "crop" else 2 * grid.border * across * 4 * (self.channels + 1)
        unit = self.blocks.blocks * self.blocks.side**2 * self.image.pixel_bytes
        written = 4 * self.blocks.side**2 * self.image.pixel_bytes
        tiles = dense.size**2 * 3 + (self.spec.cover**2 * 3 if self.spec.resampled else 0)
        batches = (QUEUE_BATCHES + 3) * READ_AT_ONCE * dense.size**2 * 3
        reading = batches + (2 * threads + 6) * tiles + dense.batch * dense.size**2 * 3 * 2
        return dense.bytes * 5 // 4 + flight + carry + 3 * unit + written + 16 * grid.core**2 + reading


@one_thread
@torch.inference_mode()
def _segment(task: SlideTask, units: range, device: torch.device) -> Report:
    facts, store, clock = task.head_facts, task.open_store(), Clock()
    canvas = Canvas(task, facts)
    kept, images = canvas.kept(task, store), hands_for(task.line.worker, device).images

    def work() -> None:
        done = store.ledger(head_stage(facts.name))
        for run in canvas.blocks.runs(units):
            for part in _missing(run, done):
                _Segmenting(task, store, canvas, device, clock).run(part, kept)

    with dense_threads(device):
        outlast_outages(work, partial(images.forget, task.image))
    return Report(task.slide, units, clock.seconds)


def _missing(run: range, done: dict[int, dict[str, object]]) -> Iterator[range]:
    start = run.start
    for unit in run:
        if unit in done:
            if start < unit:
                yield range(start, unit)
            start = unit + 1
    if start < run.stop:
        yield range(start, run.stop)


class _Segmenting:
    """Consecutive units of one stripe, from patches to blocks in the store.

    Memory bound: the units that a row of patches reaches into, two at most, and the one that is written meanwhile.
    """

    def __init__(self, task: SlideTask, store: SlideStore, canvas: Canvas, device: torch.device, clock: Clock) -> None:
        self.task, self.store, self.canvas, self.device, self.clock = task, store, canvas, device, clock
        facts = task.head_facts
        loaded = head_for(facts, device)
        self.model = DenseModel(
            loaded.module, facts.answer, device, task.line.worker.precision, as_logits=canvas.dense.blend == "crop",
            what=f"heads.{facts.name}.model: {facts.head.model}", whose=task.slide,
        )  # fmt: skip
        self.failed: dict[tuple[int, int], Failure] = {}

    def run(self, units: range, kept: NDArray[np.bool_]) -> None:
        """Compute and commit units."""
        canvas = self.canvas
        rect = canvas.blocks.cores_of(units)
        blender = Blender(canvas.patches, rect, canvas.dense.blend, canvas.channels, self.device)
        needed = rect.needed(kept, blender.ring)
        opened = UnitImage(canvas, units[0], self.device)
        following: UnitImage | None = None
        reader = PatchReader(self.task, canvas.patches, canvas.spec, self.device, self.clock)
        with UnitWriter(self.store, canvas.image, self.clock) as self.writer, closing(reader.read(needed)) as pixels:
            for piece in blender.run(self.model.run(pixels, canvas.dense.batch, self.failed), needed):
                check_stopped()
                while piece.y >= opened.end:
                    opened, following = self._commit(opened, kept, following), None
                opened.add(piece)
                if piece.y + piece.computed.shape[0] > opened.end and opened.unit + 1 in units:
                    following = following or UnitImage(canvas, opened.unit + 1, self.device)
                    following.add(piece)
            while opened.unit in units:
                opened, following = self._commit(opened, kept, following), None

    def _commit(self, unit: UnitImage, kept: NDArray[np.bool_], following: UnitImage | None) -> UnitImage:
        """Have a unit written that is complete; the one after it."""
        rect = self.canvas.blocks.cores_of(range(unit.unit, unit.unit + 1))
        own = {place: failure for place, failure in self.failed.items() if rect.holds(*place)}
        patches = int(kept[rect.row : rect.row_end, rect.col : rect.col_end].sum())
        causes = {f"{row},{col}": failure.words for (row, col), failure in sorted(own.items())[:CAUSES_A_UNIT]}
        if own and self.task.line.fail_tiles:
            place, words = next(iter(causes.items()))
            raise InputError(f"{self.task.slide}: head {self.task.head}, patch {place} failed: {words} (on_error.tile is fail)")
        self.writer.write(unit, {"patches": patches, "failed": len(own), "causes": causes})
        return following or UnitImage(self.canvas, unit.unit + 1, self.device)
