"""A class, or values, of each cell of a fine grid from patch tokens, with or without their context; here, from those that are stored."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilestream.errors import InputError, user_code
from tilestream.models.context_spec import ContextSpec
from tilestream.models.context_streaming import Rect, mix_rect
from tilestream.models.heads.blending import Piece
from tilestream.models.heads.patch_grid import BLOCK_SIDE, BlockGrid, PatchGrid
from tilestream.models.heads.token_decoder import spread_tokens
from tilestream.stages.clock import Clock
from tilestream.stages.hardware import one_thread
from tilestream.stages.heads.dense.unit_image import UnitImage, label_image
from tilestream.stages.heads.dense_model import dense_threads
from tilestream.stages.heads.describe import head_for
from tilestream.stages.heads.facts import HeadFacts
from tilestream.stages.mix_context import build_context
from tilestream.stages.slide_task import Report, SlideTask, check_stopped
from tilestream.stages.token_grid import TokenGrid
from tilestream.store.heads.columns import head_stage
from tilestream.store.heads.labels import write_unit
from tilestream.store.slide_store import SlideStore

BLOCK_BYTES = 48 * 1024**2
"""Of a block's tokens in float32, about."""

COPIES = 6
"""Times that a block's tokens lie in memory at once: as they are read, as a map, as they are spread, and in layers."""


class TokenCanvas:
    """Where everything lies of a head over tokens on one slide, from sizes alone. A unit is one block; its tokens have a halo.

    Raises
    ------
    InputError
        The tiles of the slide are no lattice, or do not meet.
    """

    def __init__(self, task: SlideTask, facts: HeadFacts) -> None:
        assert facts.dense is not None, "a head that segments was probed"
        self.dense, self.answer = facts.dense, facts.answer
        grid, dim = task.grid, task.line.facts.dim
        if not grid.regular or grid.l0_offset != (0, 0) or grid.stride != grid.tile:
            raise InputError(
                f"{task.slide}: heads.{facts.name} segments from {facts.head.input}, but tiles are {grid.tile} px every {grid.stride:g} px from {grid.l0_offset} on"
                f"{'' if grid.regular else ', and no lattice'}. Leave tiles.stride and foreign places out, or let the head read pixels."
            )
        self.side, self.up = self.dense.size, self.dense.up
        step = grid.scale * grid.tile / self.side / self.up
        core = self.side * self.up
        height, width = (min(count * core, max(1, math.ceil(side / step - 1e-6)))
                         for count, side in ((grid.rows, grid.l0_size.height), (grid.cols, grid.l0_size.width)))  # fmt: skip
        self.patches = PatchGrid(height, width, core, 0)
        cores = min(math.isqrt(BLOCK_BYTES // (self.side**2 * dim * 4)), round(BLOCK_SIDE / core))
        self.blocks = BlockGrid(self.patches, max(1, cores), 1)
        self.image = label_image(facts, self.patches.shape, self.blocks, step, task.mpp)
        context = task.line.context if facts.head.input == "context" else None
        self.context = None if context is None else ContextSpec(dim, context.depth, context.window, context.shift)
        self.dim = dim

    @property
    def halo(self) -> int:
        """Tokens around a block that are read: those that the decoder sees, and those whose mean fills these where they are missing."""
        return 2 * self.dense.margin

    def computed(self, task: SlideTask, tiles: int) -> int:  # as of pixels
        """Output px of so many tiles."""
        return tiles * self.patches.core**2

    def memory(self, threads: int) -> int:  # as of pixels
        """Bytes that a worker holds beside the decoder's weights."""
        across = self.blocks.cores * self.side + 2 * self.halo
        tokens = across**2 * self.dim * 4 * COPIES
        mixed = 0 if self.context is None else self.context.whole_bytes((across + 2 * self.context.halo) ** 2)
        pixels = (across * self.up) ** 2 * 4 * (3 * self.answer.outputs + 4)
        return self.dense.bytes + tokens + mixed + pixels + 4 * self.blocks.side**2 * self.image.pixel_bytes

    def rect(self, unit: int) -> Rect:
        """The tokens of a unit and its halo, as far as they may lie beyond the image: always as many, so that the same bits come out."""
        cores, side = self.blocks.cores_of(range(unit, unit + 1)), self.blocks.cores * self.side
        row, col = cores.row * self.side - self.halo, cores.col * self.side - self.halo
        return Rect(row, col, row + side + 2 * self.halo, col + side + 2 * self.halo)


@one_thread
@torch.inference_mode()
def segment_tokens(task: SlideTask, units: range, device: torch.device) -> Report:
    """Compute and commit units that are not committed yet."""
    facts, store, clock = task.head_facts, task.open_store(), Clock()
    canvas = TokenCanvas(task, facts)
    assert store.layout.tokens or not store.layout.tiles, "tokens that are not stored pass by while tiles are embedded"
    stored = StoredMap(task, store, canvas, device) if store.layout.tokens else None
    module = head_for(facts, device).module
    done = store.ledger(head_stage(facts.name))
    for unit in units:
        if unit in done:
            continue
        check_stopped()
        rect, nothing = canvas.rect(unit), torch.empty(0, dtype=torch.int64)
        with clock.timed("read"):
            tokens, there = (
                spread_out(rect, torch.empty(0, canvas.dim, device=device), nothing, nothing) if stored is None else stored.read(rect)
            )
        commit_block(task, store, canvas, module, unit, tokens, there, clock)
    return Report(task.slide, units, clock.seconds)


def commit_block(
    task: SlideTask, store: SlideStore, canvas: TokenCanvas, module: torch.nn.Module, unit: int, tokens: Tensor, there: Tensor,
    clock: Clock,
) -> None:  # fmt: skip
    """Decode the tokens of a block and its halo, (d, h, w) and where there are any, and write it."""
    facts, device = task.head_facts, tokens.device
    filled, tiles, failed = UnitImage(canvas, unit, device), 0, 0
    if bool(there.any()):
        with (
            dense_threads(device),
            clock.timed(f"head {facts.name}"),
            user_code(f"heads.{facts.name}.model: {facts.head.model}", f"{task.slide}: block {unit}"),
        ):
            piece = _decode(canvas, unit, module, tokens, there)
        filled.add(piece)
        tiles, failed = _count(canvas, there, piece.computed)
    if failed and task.line.fail_tiles:
        raise InputError(
            f"{task.slide}: head {facts.name}, block {unit}: {failed} tiles got values that are not finite (on_error.tile is fail)"
        )
    with clock.timed("write"):
        blocks, likely = filled.blocks()
        write_unit(store, canvas.image, unit, blocks, likely, {"patches": tiles, "failed": failed})


def spread_out(rect: Rect, tokens: Tensor, row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """(d, h, w) float32 tokens of a rectangle, 0 where none is, and (h, w) where there is one; from (n, d) and their places."""
    height, width, device = rect.row_end - rect.row, rect.col_end - rect.col, tokens.device
    found = torch.zeros(tokens.shape[1], height, width, device=device)
    there = torch.zeros(height, width, dtype=torch.bool, device=device)
    y, x = (row - rect.row).to(device), (col - rect.col).to(device)
    found[:, y, x] = tokens.float().T
    there[y, x] = True
    return found, there


def _decode(canvas: TokenCanvas, unit: int, module: torch.nn.Module, tokens: Tensor, there: Tensor) -> Piece:
    """The output of a block, computed where its own tokens are there and what comes out is finite."""
    values = module(spread_tokens(tokens, there, canvas.dense.margin)[None])[0].float()
    edge, up = canvas.halo, canvas.up
    inner = slice(edge, len(there) - edge)
    values = values[:, edge * up : edge * up + canvas.blocks.side, edge * up : edge * up + canvas.blocks.side]
    own = there[inner, inner].repeat_interleave(up, 0).repeat_interleave(up, 1)
    stripe, row = canvas.blocks.place(unit)
    return Piece(row * canvas.blocks.side, stripe * canvas.blocks.side, values, own & torch.isfinite(values).all(0))


def _count(canvas: TokenCanvas, there: Tensor, computed: Tensor) -> tuple[int, int]:
    """Tiles of a block that have tokens, and those of which some got no finite value."""
    inner = slice(canvas.halo, len(there) - canvas.halo)
    cores = canvas.blocks.cores
    whole = there[inner, inner].reshape(cores, canvas.side, cores, canvas.side)
    lost = whole & ~computed[:: canvas.up, :: canvas.up].reshape(cores, canvas.side, cores, canvas.side)
    return int(whole.any(3).any(1).sum()), int(lost.any(3).any(1).sum())


class StoredMap:
    """Rectangles of the token grid of a slide, of what is stored, or of that behind the context.

    Memory bound: the tokens of a rectangle, of its halo in the context, and the chunks that hold a row of its tiles.
    """

    def __init__(self, task: SlideTask, store: SlideStore, canvas: TokenCanvas, device: torch.device) -> None:
        self.device = device
        self.places = TokenGrid(task.grid, *task.read_places(store), canvas.side)
        self.array = store.array("tokens")
        self.dim = task.line.facts.dim
        self.step = None if task.stride_um is None else task.stride_um / canvas.side
        context = task.line.context if canvas.context is not None else None
        self.context = (
            None if context is None else build_context(context, self.dim, task.line.facts.precision, task.line.weights).to(device)
        )

    def read(self, rect: Rect) -> tuple[Tensor, Tensor]:
        """(d, h, w) float32 tokens of a rectangle, 0 where none is, and (h, w) where there is one; both on the device."""
        if self.context is None:
            tokens, row, col = self._tokens(rect)
        else:
            tokens, row, col = mix_rect(self.context, rect, partial(self._tokens), self.step)
        return spread_out(rect, tokens, row, col)

    def _tokens(self, rect: Rect) -> tuple[Tensor, Tensor, Tensor]:
        """(n, d) tokens that lie in a rectangle, row-major, and their places."""
        places, side = self.places, self.places.side
        grid = places.grid
        tokens: list[Tensor] = [torch.empty(0, self.dim)]
        rows, cols = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
        for tile_row in range(max(0, rect.row // side), min(grid.rows, -(-rect.row_end // side))):
            tiles = self._between(tile_row, rect.col // side, -(-rect.col_end // side))
            if tiles.start == tiles.stop:
                continue
            values = np.asarray(self.array[tiles], np.float32)
            good = np.asarray(np.isfinite(values).all(axis=(1, 2)))
            band = places.band(tiles, values, good, (tile_row + 1) * side)
            keep = rect.holds(band.tok_row, band.tok_col)
            for part, found in ((tokens, band.tokens), (rows, band.tok_row), (cols, band.tok_col)):
                part.append(found[keep])
        return torch.cat(tokens).to(self.device), torch.cat(rows), torch.cat(cols)

    def _between(self, tile_row: int, first: int, end: int) -> slice:
        """The tiles of a row from a column on, up to another."""
        row = self.places.tiles_between(tile_row, tile_row + 1)
        cols: NDArray[np.int64] = self.places.tile_col[row]
        low, high = np.searchsorted(cols, [first, end]).tolist()
        return slice(row.start + low, row.start + high)
