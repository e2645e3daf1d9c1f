"""Blocks of heads that segment from patch tokens, made of tokens as they come from the encoder or its context; no token is stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tilestream.models.context_spec import BAND_BYTES
from tilestream.models.context_streaming import TokenBand
from tilestream.stages.clock import Clock
from tilestream.stages.heads.dense.token_segmenting import TokenCanvas, commit_block, spread_out
from tilestream.stages.heads.describe import head_for
from tilestream.stages.heads.facts import HeadFacts
from tilestream.stages.slide_task import LineSettings, SlideTask, check_stopped
from tilestream.stages.token_grid import Index, TokenGrid
from tilestream.store.heads.columns import head_stage
from tilestream.store.layout import Layout
from tilestream.store.slide_store import SlideStore


def streamed_heads(line: LineSettings, layout: Layout) -> list[HeadFacts]:
    """The heads whose tokens pass by once, for they are not stored."""
    passing = line.facts.tokens > 1 and not layout.tokens
    return [facts for facts in line.heads if passing and facts.head.reads_tokens]


def block_rows(canvas: TokenCanvas, tile_row: Index, layout: Layout, shards: range) -> range:
    """The rows of blocks whose first tile lies in some shards: each row of a slide is of one of them; the last shards have those without tiles too."""
    first = np.searchsorted(tile_row, np.arange(canvas.blocks.rows) * canvas.blocks.cores)
    start, stop = layout.rows(shards[0]).start, layout.rows(shards[-1]).stop
    mine = np.flatnonzero((first >= start) & ((first < stop) | (shards.stop == layout.shards)))
    return range(int(mine[0]), int(mine[-1]) + 1) if len(mine) else range(0)


def missing_units(canvas: TokenCanvas, rows: range, store: SlideStore, head: str) -> dict[int, list[int]]:
    """The units that are not committed, by their row of blocks."""
    done, every = store.ledger(head_stage(head)), canvas.blocks.rows
    units = {row: [unit for unit in range(row, canvas.blocks.units, every) if unit not in done] for row in rows}
    return {row: missing for row, missing in units.items() if missing}


def open_blocks(task: SlideTask, store: SlideStore, tile_row: Index, shards: range) -> bool:
    """Whether heads lack blocks that are made while these shards pass by."""
    layout = store.layout
    for facts in streamed_heads(task.line, layout):
        canvas = TokenCanvas(task, facts)
        if missing_units(canvas, block_rows(canvas, tile_row, layout, shards), store, facts.name):
            return True
    return False


class TokenBlocks:
    """Decodes the blocks of one head, row by row, as soon as the tokens are there that they depend on.

    Order: bands come from top to bottom; each row of blocks is committed before a band that lies wholly below its halo is taken.

    Memory bound: the tokens of a row of blocks with its halo, and a band.
    """

    def __init__(self, task: SlideTask, facts: HeadFacts, places: TokenGrid, shards: range, device: torch.device, clock: Clock) -> None:
        self.task, self.store = replace(task, head=facts.name), task.open_store()
        self.canvas, self.places, self.device, self.clock = TokenCanvas(task, facts), places, device, clock
        layout = self.store.layout
        rows = block_rows(self.canvas, places.tile_row, layout, shards)
        self._missing = missing_units(self.canvas, rows, self.store, facts.name)
        self._kept = np.float32 if self.canvas.context is not None else np.dtype(layout.dtype)
        self._bands: list[TokenBand] = []

    @property
    def open(self) -> bool:
        """Whether blocks are missing."""
        return bool(self._missing)

    @property
    def first_row(self) -> int:
        """The first token row that missing blocks depend on."""
        return max(0, self._first(next(iter(self._missing))))

    @property
    def end_row(self) -> int:
        """The row past the last one that they depend on."""
        return self._end(next(reversed(self._missing)))

    def add(self, band: TokenBand) -> None:
        """Take tokens of whole rows, and make what is complete by them."""
        if not self._missing:
            return
        tokens = band.tokens.float()
        good = self._finite(band, tokens)
        kept = tokens[good.to(tokens.device)].to(torch.float16 if self._kept == np.float16 else torch.float32)
        self._bands.append(TokenBand(kept, band.tok_row[good], band.tok_col[good], band.upto))
        while self._missing and band.upto >= self._end(next(iter(self._missing))):
            self._make()

    def finish(self) -> None:
        """Make what is left; no more tokens come."""
        while self._missing:
            self._make()

    def _finite(self, band: TokenBand, tokens: torch.Tensor) -> torch.Tensor:
        """(n,) which tokens belong to tiles whose tokens are all finite, as far as the band has them."""
        finite = torch.isfinite(tokens).all(1).cpu()
        if bool(finite.all()):
            return finite
        owners = self.places.owners(band.tok_row.numpy(), band.tok_col.numpy())
        return torch.from_numpy(~np.isin(owners, owners[~finite.numpy()]))

    def _first(self, row: int) -> int:
        return row * self.canvas.blocks.cores * self.canvas.side - self.canvas.halo

    def _end(self, row: int) -> int:
        return min((row + 1) * self.canvas.blocks.cores * self.canvas.side + self.canvas.halo, self.places.grid.rows * self.canvas.side)

    def _make(self) -> None:
        """Decode and commit the first row of blocks that is missing, and let go of tokens that no later one needs."""
        row = next(iter(self._missing))
        loaded = head_for(self.task.head_facts, self.device)
        for unit in self._missing.pop(row):
            check_stopped()
            rect = self.canvas.rect(unit)
            parts = [(band, rect.holds(band.tok_row, band.tok_col)) for band in self._bands]
            tokens = [band.tokens[keep.to(self.device)].float() for band, keep in parts] or [
                torch.empty(0, self.canvas.dim, device=self.device)
            ]
            rows, cols = (
                torch.cat([torch.empty(0, dtype=torch.int64), *(getattr(band, name)[keep] for band, keep in parts)])
                for name in ("tok_row", "tok_col")
            )
            found = spread_out(rect, torch.cat(tokens), rows, cols)
            commit_block(self.task, self.store, self.canvas, loaded.module, unit, *found, self.clock)
        following = self._first(next(iter(self._missing))) if self._missing else 0
        self._bands = [band for band in self._bands if self._missing and band.upto > following]


def streamed_bytes(task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
    """What the tokens take that a head keeps while they pass by, and the band on its way."""
    canvas = TokenCanvas(task, facts)
    side, item = canvas.side, 4 if canvas.context is not None else np.dtype(layout.dtype).itemsize
    rows = canvas.blocks.cores * side + 2 * canvas.halo
    held = min(rows * task.grid.cols * side, layout.tiles * side**2) * canvas.dim * item
    return held + 4 * max(BAND_BYTES, task.grid.cols * side**2 * canvas.dim * 4)
