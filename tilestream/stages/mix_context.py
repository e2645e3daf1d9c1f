"""Stage 2: the context of a slide's tiles from its tokens in the store, whole, in bands of rows, or in shards with a halo.

`tilestream.models.context_streaming` says why the three give the same result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.config.schema import Context
from tilestream.encoders.contexts.context_file import context_path
from tilestream.encoders.weights import apply_weights
from tilestream.models.context import ContextTransformer
from tilestream.models.context_spec import BAND_BYTES
from tilestream.models.context_streaming import Rect, RowBands, TokenBand, input_rects, mix_rect
from tilestream.stages.hardware import one_thread, pick_device, pick_precision
from tilestream.stages.pinning import check_machine, load_pinned
from tilestream.stages.region_vectors import WindowWriter
from tilestream.stages.slide_task import LineSettings, Report, SlideTask, check_stopped
from tilestream.stages.token_grid import TileMeans, TokenGrid, tokens_a_side
from tilestream.stages.worker_settings import Digests
from tilestream.store.layout import OK, PADDED, context_place
from tilestream.store.slide_store import CODES, SlideStore


def build_context(context: Context, dim: int, precision: str = "fp32", pinned: Digests = ()) -> ContextTransformer:
    """The windowed transformer of a config, with its weights, in the encoder's number format or, with `exact`, in fp32.

    Beside an encoder of fp16 it runs in bf16: no token of it could be computed again alone.

    Raises
    ------
    ConfigError
        The numbers do not fit the encoder's dimension, or the weights do not fit the model.
    InputError
        The weights file cannot be read.
    """
    model = ContextTransformer(
        dim=dim,
        depth=context.depth,
        heads=context.heads,
        window=context.window,
        shift=context.shift,
        position=context.position,
        seed=context.seed,
        width=context.width,
    )
    if context.weights is not None:
        state = load_pinned(str(context_path(context.weights)), "context.weights", pinned)
        apply_weights(model, state, context.weights, section="context")
    precision = "bf16" if precision == "fp16" else precision
    return model.eval() if context.exact else model.eval().to(pick_precision(precision, torch.device("cpu")))


def mix_context(task: SlideTask, shards: range) -> Report:
    """Context of a slide whose tiles are all in the store, or of some shards of it; those that are committed already are left as they are.

    The projection counts one context in a process, whatever the number of lanes.
    """
    check_machine(task.line.worker)
    return _mix(task, shards, pick_device(task.line.worker.device))  # which device is this worker's is known in its own threads only


@one_thread
@torch.inference_mode()
def _mix(task: SlideTask, shards: range, device: torch.device) -> Report:
    start = time.perf_counter()
    tokens = StoredTokens(task, device)
    committed = tokens.store.ledger(tokens.stage)
    if task.schedule == "halo_shards":
        for shard in shards:
            if shard not in committed:
                tokens.write(shard, _mix_shard(tokens, shard))
    else:
        _mix_rows(task, tokens, next((k for k in shards if k not in committed), shards.stop))
    return Report(task.slide, shards, {"context": time.perf_counter() - start})


class StoredTokens:
    """The tokens of a slide as stage 1 left them in the store, and the place for their context."""

    def __init__(self, task: SlideTask, device: torch.device) -> None:
        assert task.line.context is not None
        self.device, self.stage = device, task.line.context.stage
        self.store = task.open_store()
        self.layout = self.store.layout
        self.places = TokenGrid(task.grid, *task.read_places(self.store), tokens_a_side(self.layout.tokens, task.grid))
        self.model = build_context(task.line.context, self.layout.dim, task.line.facts.precision, task.line.weights).to(self.device)
        self.stride_um = None if task.stride_um is None else task.stride_um / self.places.side

    def read(self, first_row: int, end_row: int) -> TokenBand:
        """The tokens of tile rows first_row to end_row, the end excluded, on the device."""
        tiles = self.places.tiles_between(first_row, end_row)
        vectors = np.asarray(self.store.array("tables/tiles/X")[tiles], np.float32)
        good: NDArray[np.bool_] = np.asarray(np.isfinite(vectors).all(axis=1))
        values = np.asarray(self.store.array("tokens")[tiles], np.float32) if self.layout.tokens else vectors
        band = self.places.band(tiles, values, good, end_row * self.places.side)
        return TokenBand(band.tokens.to(self.device), band.tok_row, band.tok_col, band.upto)

    def bands(self, first_row: int) -> Iterator[TokenBand]:
        """The tokens from a tile row on, in bands of whole tile rows."""
        for start, end in row_groups(self.places, self.layout.dim, first_row, self.places.grid.rows):
            check_stopped()
            yield self.read(start, end)

    def write(self, shard: int, means: NDArray[np.float32]) -> None:
        """Commit the context of a shard."""
        write_context(self.store, self.stage, shard, means)


def write_context(store: SlideStore, stage: str, shard: int, means: NDArray[np.float32]) -> None:
    """Commit (rows, dim) context of a shard, with the number of tiles that have an embedding and get a context that is not finite."""
    with np.errstate(over="ignore"):  # out of fp16's range
        values = means.astype(store.layout.dtype)
    bad, failed = ~np.isfinite(values).all(axis=1), 0
    if bad.any():
        values[bad] = np.nan
        failed = int(np.isin(np.asarray(store.array(CODES)[store.layout.rows(shard)])[bad], (OK, PADDED)).sum())
    store.write_shard(shard, {context_place(stage): values}, {"failed": failed}, stage=stage)


def row_groups(places: TokenGrid, dim: int, first_row: int, end_row: int) -> Iterator[tuple[int, int]]:
    """Tile rows in groups of about `BAND_BYTES` of tokens: the first row of each and the row past its last."""
    counts = np.bincount(places.tile_row, minlength=places.grid.rows) * places.side**2 * dim * 4
    start, held = first_row, 0
    for row in range(first_row, end_row):
        if held and held + counts[row] > BAND_BYTES:
            yield start, row
            start, held = row, 0
        held += int(counts[row])
    if start < end_row:
        yield start, end_row


def _mix_rows(task: SlideTask, tokens: StoredTokens, first: int) -> None:
    """Context from shard `first` on, in one pass, and window vectors from the first row that is not committed."""
    places, layout, model = tokens.places, tokens.layout, tokens.model
    sink = Sink(places, tokens.store, task.line, first, layout.shards)
    if sink.first_row is None:
        return
    top = max(0, input_top(model, sink.first_row) // places.side)
    if task.schedule == "dense":
        band = tokens.read(top, places.grid.rows)
        mixed = model(band.tokens, band.tok_row, band.tok_col, tokens.stride_um)
        sink.add(TokenBand(mixed, band.tok_row, band.tok_col, band.upto))
    else:
        for band in RowBands(model, tokens.stride_um).run(tokens.bands(top)):
            sink.add(band)
    sink.finish()


class Sink:
    """Where mixed tokens go: the context of their tiles, and the vectors of their windows; each is written as it is complete.

    Parameters
    ----------
    places : TokenGrid
    store : SlideStore
    line : LineSettings
        With the context, and the window vectors that are wanted.
    first, end : int
        Shards whose context is wanted, the end excluded.
    """

    def __init__(self, places: TokenGrid, store: SlideStore, line: LineSettings, first: int, end: int) -> None:
        assert line.context is not None
        layout, windows = store.layout, line.token_windows
        self._layout, self._store, self._stage = layout, store, line.context.stage
        self._means = TileMeans(places, layout.shard_tiles, layout.dim, self._write, first, end)
        self._windows = None if windows is None else WindowWriter(windows, store, line.weights)
        rows = [] if first >= end else [int(places.tile_row[layout.rows(first).start]) * places.side]
        if self._windows is not None and self._windows.open_row is not None:
            rows.append(self._windows.open_row)
        self.first_row = min(rows, default=None)
        """The first token row that is wanted; None where nothing is."""

    def add(self, band: TokenBand) -> None:
        """Take the tokens of whole rows."""
        self._means.add(band)
        if self._windows is not None:
            self._windows.add(band)

    def finish(self) -> None:
        """Write what is left; no more tokens come."""
        self._means.finish()
        if self._windows is not None:
            self._windows.finish()

    def _write(self, shard: int, means: NDArray[np.float32]) -> None:
        write_context(self._store, self._stage, shard, means)


def input_top(model: ContextTransformer, row: int) -> int:
    """The first token row that the results from `row` on depend on."""
    return input_rects(model, Rect(row, 0, row + 1, 1))[0].row


def input_end(model: ContextTransformer, row_end: int) -> int:
    """The row past the last one that the results before `row_end` depend on."""
    return input_rects(model, Rect(row_end - 1, 0, row_end, 1))[0].row_end


def _mix_shard(tokens: StoredTokens, shard: int) -> NDArray[np.float32]:
    """(rows, dim) float32 context of one shard, from its tokens and their halo."""
    places, layout = tokens.places, tokens.layout
    rows = layout.rows(shard)
    first, last = int(places.tile_row[rows.start]), int(places.tile_row[rows.stop - 1])

    def read(rect: Rect) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        band = tokens.read(max(0, rect.row // places.side), min(places.grid.rows, -(-rect.row_end // places.side)))
        keep = rect.holds(band.tok_row, band.tok_col)
        return band.tokens[keep.to(band.tokens.device)], band.tok_row[keep], band.tok_col[keep]

    wanted = Rect(first * places.side, 0, (last + 1) * places.side, places.width)
    mixed, tok_row, tok_col = mix_rect(tokens.model, wanted, read, tokens.stride_um)
    found: list[NDArray[np.float32]] = []
    means = TileMeans(places, layout.shard_tiles, layout.dim, lambda _, values: found.append(values), shard, shard + 1)
    means.add(TokenBand(mixed, tok_row, tok_col, wanted.row_end))
    means.finish()
    return found[0]
