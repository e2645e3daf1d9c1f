"""Tiles, tokens, context and label images of a slide in one pass: reader, encoder, row bands, means and blocks as one chain of generators; no token is stored."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.models.context import ContextTransformer
from tilestream.models.context_streaming import RowBands, TokenBand
from tilestream.stages.clock import Clock
from tilestream.stages.embed_tiles import ERRORS_A_SHARD, count_statuses, place_results, refuse_tile, shard_record
from tilestream.stages.encoding.embedded import Embedded, TileList
from tilestream.stages.encoding.in_work import Teller
from tilestream.stages.heads.dense.token_blocks import TokenBlocks, streamed_heads
from tilestream.stages.mix_context import Sink, build_context, input_end, input_top, row_groups
from tilestream.stages.slide_task import Report, SlideTask, add_counts, check_stopped, outlast_outages
from tilestream.stages.token_grid import TokenGrid, tokens_a_side
from tilestream.stages.worker import Worker, worker_for
from tilestream.store.layout import OK, PADDED, Layout
from tilestream.store.slide_store import CODES, ROWS

SEGMENT_HALOS = 16
"""Rows of a segment for each row that its halo adds: at most an eighth is computed twice."""


IN_TURN = ("wait", "compute", "write")
"""What a pass does in turn with its context; reading goes on beside it."""


def segments(layout: Layout, tile_row: NDArray[np.int64], halo_tiles: int, *, whole: bool) -> Iterator[range]:
    """Runs of shards, each one task: all of them, or few enough that several workers share them and the halo costs little."""
    first = 0
    for shard in range(layout.shards):
        rows = int(tile_row[layout.rows(shard).stop - 1] - tile_row[layout.rows(first).start]) + 1
        if shard == layout.shards - 1 or (not whole and rows >= SEGMENT_HALOS * halo_tiles):
            yield range(first, shard + 1)
            first = shard + 1


def embed_and_mix(task: SlideTask, shards: range) -> Report:
    """Read, embed, mix and write the shards that are not committed yet; their bytes do not depend on where it starts."""
    worker = worker_for(task.line.worker)
    return outlast_outages(partial(_pass_shards, worker, task, shards), partial(worker.images.forget, task.image))


@torch.inference_mode()
def _pass_shards(worker: Worker, task: SlideTask, shards: range) -> Report:
    with worker.lane():
        source = worker.images.get(task.image)
        work = _Pass(task, shards, worker.device)
        if (rows := work.rows()) is not None:
            start = time.perf_counter()
            tiles, groups = work.places.tiles_between(*rows), list(row_groups(work.places, work.layout.dim, *rows))
            y, x = task.grid.l0_y(work.places.tile_row[tiles]), task.grid.l0_x(work.places.tile_col[tiles])
            cuts = [work.places.tiles_between(row, row).start - tiles.start for row, _ in groups[1:]]
            tiles_read = worker.embed_tiles(
                source, task.spec, y, x, work.clock, cuts, listed=TileList(task.slide, tiles.start, task.compiled)
            )
            with closing(tiles_read) as embedded:
                work.pass_on(
                    TokenBand(b.tokens.to(worker.device), b.tok_row, b.tok_col, b.upto) for b in work.bands(embedded, tiles, groups)
                )
            if work.mixing is not None:
                others = sum(spent for stage, spent in work.clock.seconds.items() if stage in IN_TURN or stage.startswith("head "))
                work.clock.add("context", time.perf_counter() - start - others)
    return Report(task.slide, shards, work.clock.seconds, work.counts, work.errors)


class _Pass:
    """What a pass knows of its slide, and the rows that it has not written yet."""

    def __init__(self, task: SlideTask, shards: range, device: torch.device) -> None:
        self.task, self.shards, self.context = task, shards, task.line.context
        self.store = task.open_store()
        self.layout = self.store.layout
        self.places = TokenGrid(task.grid, *task.read_places(self.store), tokens_a_side(task.line.facts.tokens, task.grid))
        self.stride_um = None if task.stride_um is None else task.stride_um / self.places.side
        self.clock = Clock()
        self.counts: dict[str, int] = {}
        self.errors: dict[int, str] = {}
        self._tiles_open = set(shards) - set(self.store.ledger())
        self._teller, self._fresh = Teller(task.token, task.slide, shards.start), 0
        self._failed: dict[int, str] = {}
        self._redone: set[int] = set()
        self._parts: list[tuple[NDArray[Any], NDArray[np.int8]]] = []
        blocks = [TokenBlocks(task, facts, self.places, shards, device, self.clock) for facts in streamed_heads(task.line, self.layout)]
        missing = [each for each in blocks if each.open]
        self._of_tokens = [each for each in missing if each.task.head_facts.head.input == "tokens"]
        self._of_context = [each for each in missing if each.task.head_facts.head.input == "context"]
        self._sink = None if self.context is None else Sink(self.places, self.store, task.line, self._first_open(), shards.stop)
        self.mixing: ContextTransformer | None = None
        """The context, where anything of it is missing."""
        if self.context is not None and self._sink is not None and (self._of_context or self._sink.first_row is not None):
            self.mixing = build_context(self.context, self.layout.dim, task.line.facts.precision, task.line.weights).to(device)

    def _first_open(self) -> int:
        """The first shard whose context is not committed; its tiles may be."""
        assert self.context is not None
        done = self.store.ledger(self.context.stage)
        return next((shard for shard in self.shards if shard not in done), self.shards.stop)

    def rows(self) -> tuple[int, int] | None:
        """The first tile row and the row past the last one that what is missing depends on; None where nothing is."""
        side, tile_row, layout = self.places.side, self.places.tile_row, self.layout
        first = [int(tile_row[layout.rows(shard).start]) for shard in sorted(self._tiles_open)[:1]]
        last = int(tile_row[layout.rows(self.shards.stop - 1).stop - 1]) + 1
        end = [last] if first else []
        for blocks in self._of_tokens:
            first, end = [*first, blocks.first_row // side], [*end, -(-blocks.end_row // side)]
        if self.mixing is not None:
            mixed = [] if self._sink is None or self._sink.first_row is None else [(self._sink.first_row, last * side)]
            for top, bottom in (*mixed, *((blocks.first_row, blocks.end_row) for blocks in self._of_context)):
                first, end = [*first, input_top(self.mixing, top) // side], [*end, -(-input_end(self.mixing, bottom) // side)]
        if not first:
            return None
        rows = self.places.grid.rows
        return max(0, min(first)), rows if self.shards.stop == layout.shards else min(rows, max(end))

    def pass_on(self, bands: Iterator[TokenBand]) -> None:
        """Make of tokens, as they come, what is missing of their context and of heads."""
        passed = self._through(bands, self._of_tokens)
        if self.mixing is None or self._sink is None:
            for _ in passed:
                pass
            return
        for band in self._through(RowBands(self.mixing, self.stride_um).run(passed), self._of_context):
            with self.clock.timed("write"):
                self._sink.add(band)
        with self.clock.timed("write"):
            self._sink.finish()

    @staticmethod
    def _through(bands: Iterator[TokenBand], blocks: list[TokenBlocks]) -> Iterator[TokenBand]:
        for band in bands:
            for each in blocks:
                each.add(band)
            yield band
        for each in blocks:
            each.finish()

    def bands(self, embedded: Iterator[Embedded], tiles: slice, groups: list[tuple[int, int]]) -> Iterator[TokenBand]:
        """The tokens of each group of tile rows; its tiles are committed on the way as their shards fill up."""
        for row, end_row in groups:
            rows = self.places.tiles_between(row, end_row)
            yield self._band(embedded, rows, rows.start - tiles.start, end_row)

    def _band(self, embedded: Iterator[Embedded], rows: slice, offset: int, end_row: int) -> TokenBand:
        count, per_tile, dim = rows.stop - rows.start, self.places.side**2, self.layout.dim
        stored = np.dtype(self.layout.dtype)
        vectors = np.full((count, dim), np.nan, stored)
        tokens = np.zeros((count, per_tile, dim), stored)
        padded = self.task.grid.overhangs(self.places.tile_row[rows], self.places.tile_col[rows])
        status = np.where(padded, PADDED, OK).astype(np.int8)
        errors: dict[int, str] = {}
        still_open = list(self._tiles_open)
        for part in _take(embedded, offset, count):
            check_stopped()
            self._fresh += int(np.isin((rows.start + part.index) // self.layout.shard_tiles, still_open).sum())
            self._teller.tell(self._fresh, sum(self.counts.values()))
            place_results(part, vectors, tokens, status, errors)
            self._redone |= {rows.start + k for k in part.redone}
        if errors and self.task.line.fail_tiles:
            refuse_tile(self.task.slide, {rows.start + k: message for k, message in sorted(errors.items())})
        with self.clock.timed("write"):
            self._commit(rows, vectors, status, errors)
        # Tokens are rounded to the stored type, as where they are stored and read back: each way of the context has the same input.
        good: NDArray[np.bool_] = np.asarray(np.isfinite(vectors).all(axis=1))
        return self.places.band(rows, tokens.astype(np.float32), good, end_row * self.places.side)

    def _commit(self, rows: slice, vectors: NDArray[Any], status: NDArray[np.int8], errors: dict[int, str]) -> None:
        """Take rows, which come in order, and write each open shard once it is full."""
        for shard in range(rows.start // self.layout.shard_tiles, -(-rows.stop // self.layout.shard_tiles)):
            if shard not in self._tiles_open:
                continue
            whole = self.layout.rows(shard)
            part = slice(max(rows.start, whole.start) - rows.start, min(rows.stop, whole.stop) - rows.start)
            self._parts.append((vectors[part].copy(), status[part]))
            mine = [k for k in sorted(errors) if part.start <= k < part.stop]
            self._failed |= {rows.start + k: errors[k] for k in mine[: ERRORS_A_SHARD - len(self._failed)]}
            if rows.stop >= whole.stop:
                values, codes = (np.concatenate(column) for column in zip(*self._parts, strict=True))
                self._parts.clear()
                counts = count_statuses(codes)
                redone = sum(whole.start <= row < whole.stop for row in self._redone)
                self.store.write_shard(shard, {ROWS: values, CODES: codes}, shard_record(counts, self._failed, redone))
                self._redone = {row for row in self._redone if row >= whole.stop}
                self.errors |= self._failed
                self._failed = {}
                self.counts = add_counts(self.counts, counts)


def _take(embedded: Iterator[Embedded], offset: int, count: int) -> Iterator[Embedded]:
    """The results of the next `count` tiles, in any order, numbered from 0; reading was cut so that they end with a batch."""
    while count > 0:
        part = next(embedded)
        failed = {k - offset: message for k, message in part.failed.items()}
        yield Embedded(part.index - offset, part.out, failed, frozenset(k - offset for k in part.redone))
        count -= len(part.index)
