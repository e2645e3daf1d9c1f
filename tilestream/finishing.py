"""What follows once all shards of a slide are committed: context over its token grid, the slide vector, the picture."""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tilestream.config import Context, Pool
from tilestream.errors import ConfigError
from tilestream.grid import TileGrid
from tilestream.layout import Layout
from tilestream.machine import peak_memory, pick_device
from tilestream.models.context import ContextTransformer
from tilestream.models.pooling import make_pool
from tilestream.models.weights import apply_weights, load_weights
from tilestream.objects import Folder
from tilestream.overview import draw_overview
from tilestream.store import SlideStore

THUMBNAIL, TISSUE = "thumbnail.png", "tissue.png"
CONTEXT_ROWS = "tables/tiles/obsm/context"


@dataclass(frozen=True)
class FinishTask:
    """One slide whose tiles are all in the store."""

    slide: str
    store: str
    """Address of the slide's store."""
    grid: TileGrid
    tile_row: NDArray[np.int64]
    tile_col: NDArray[np.int64]
    stride_um: float | None
    """Step between tiles in µm; None where the image has no scale."""
    context: Context | None
    pool: Pool
    device: str
    save_slide: bool
    """Whether the pooled vector is stored."""
    title: str


@dataclass(frozen=True)
class FinishReport:
    """What finishing a slide took."""

    slide: str
    seconds: dict[str, float]
    peak_bytes: int


@torch.inference_mode()
def finish_slide(task: FinishTask) -> FinishReport:
    """Context, slide vector and overview of one slide, then nothing is left but the completion mark, which the driver writes."""
    store = SlideStore(Folder(task.store))
    layout = store.layout
    vectors = np.asarray(store.array("tables/tiles/X")[:], np.float32)
    seconds = {}
    pooled = vectors
    if task.context is not None:
        start = time.perf_counter()
        pooled = _context_of_tiles(task, task.context, store, layout, vectors)
        for shard in range(layout.shards):
            store.write_shard(shard, {CONTEXT_ROWS: pooled[layout.rows(shard)].astype(layout.dtype)}, {}, stage="context")
        seconds["context"] = time.perf_counter() - start
    if task.pool.name != "none" and task.save_slide:
        start = time.perf_counter()
        store.write_slide_vector(_pool(task.pool, pooled), task.slide)
        seconds["pool"] = time.perf_counter() - start
    start = time.perf_counter()
    thumbnail, mask = _image(store.folder, THUMBNAIL), _image(store.folder, TISSUE) > 0
    store.folder.put("overview.png", draw_overview(thumbnail, mask, task.grid, task.tile_row, task.tile_col, vectors, task.title))
    seconds["overview"] = time.perf_counter() - start
    return FinishReport(task.slide, seconds, peak_memory())


def build_context(context: Context, dim: int) -> ContextTransformer:
    """The windowed transformer of a config, with its weights.

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
    )
    if context.weights is not None:
        apply_weights(model, load_weights(context.weights), context.weights, section="context")
    return model.eval()


def _image(folder: Folder, key: str) -> NDArray[np.uint8]:
    raw = folder.get(key)
    assert raw is not None, f"{key} is written when a store is created"
    return np.asarray(Image.open(io.BytesIO(raw)))


def png_bytes(pixels: NDArray[Any]) -> bytes:
    """An (h, w, 3) uint8 or (h, w) bool array as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _context_of_tiles(
    task: FinishTask, context: Context, store: SlideStore, layout: Layout, vectors: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(n, d) float32: each tile's token after the windowed transformer, or the mean over its patch tokens; NaN where the tile failed."""
    device = pick_device(task.device)
    model = build_context(context, layout.dim).to(device)
    good = np.isfinite(vectors).all(axis=1)
    out = np.full(vectors.shape, np.nan, np.float32)
    side = tokens_a_side(layout.tokens, task.grid)
    per_tile = side * side
    tokens = np.asarray(store.array("tokens")[:], np.float32)[good].reshape(-1, layout.dim) if layout.tokens else vectors[good]
    within = np.arange(per_tile)
    tok_row = (task.tile_row[good, None] * side + within // side).ravel()
    tok_col = (task.tile_col[good, None] * side + within % side).ravel()
    inside = _inside(task.grid, tok_row, tok_col, side)
    stride_um = None if task.stride_um is None else task.stride_um / side
    mixed = model(
        torch.from_numpy(tokens[inside]).to(device), torch.from_numpy(tok_row[inside]), torch.from_numpy(tok_col[inside]), stride_um
    )
    owner = np.repeat(np.flatnonzero(good), per_tile)[inside]
    total = np.zeros(vectors.shape, np.float64)
    np.add.at(total, owner, mixed.float().cpu().numpy())
    count = np.bincount(owner, minlength=len(vectors))
    out[good] = (total[good] / np.maximum(count[good], 1)[:, None]).astype(np.float32)
    return out


def tokens_a_side(tokens: int, grid: TileGrid) -> int:
    """Tokens along one side of a tile; 1 for encoders that give one vector.

    Raises
    ------
    ConfigError
        The tokens are no square grid, or tiles overlap or leave gaps, so that tokens have no place on one absolute grid.
    """
    if tokens == 0:
        return 1
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ConfigError(
            f"context: the encoder gives {tokens} tokens a tile, which is no square grid. Use an encoder without extra tokens."
        )
    if grid.stride != grid.tile:
        raise ConfigError(
            f"tiles.stride: {grid.stride}, but a context over patch tokens needs tiles that meet: leave it out or set it to {grid.tile}."
        )
    return side


def _inside(grid: TileGrid, tok_row: NDArray[np.int64], tok_col: NDArray[np.int64], side: int) -> NDArray[np.bool_]:
    """Which tokens start inside the image; those of the white border are absent, not zero."""
    step = grid.stride * grid.scale / side
    return (tok_row * step < grid.l0_size.height) & (tok_col * step < grid.l0_size.width)


def _pool(pool: Pool, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, d) -> (d,) float32 over the rows that are finite; NaN where there is none."""
    model = make_pool(pool.name, rows.shape[1], load_weights(pool.weights) if pool.weights is not None else None)
    keep = np.isfinite(rows).all(axis=1)
    vector: NDArray[np.float32] = model.result(model.state(torch.from_numpy(rows[keep]))).float().numpy()
    return vector
