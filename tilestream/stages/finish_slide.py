"""What follows once all shards of a slide are committed: the slide vector and the picture."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from tilestream.config.schema import Pool, Windows
from tilestream.encoders.weights import load_weights
from tilestream.geometry import TileGrid
from tilestream.models.context_streaming import TokenBand
from tilestream.models.pca import principal_colours
from tilestream.models.pooling import SoftmaxPool, make_pool
from tilestream.stages.clock import Clock
from tilestream.stages.hardware import peak_memory
from tilestream.stages.mix_context import CONTEXT_ROWS
from tilestream.stages.overview import SlidePanel, draw_overview, draw_slide_panel
from tilestream.stages.region_vectors import WindowWriter, write_larger_windows
from tilestream.store.folder import Folder
from tilestream.store.slide_store import THUMBNAIL, TISSUE, SlideStore

TILE_ROWS = "tables/tiles/X"

OVERVIEW_ROWS, OVERVIEW_THREADS = 1024, 8
"""Rows of a block that the overview reads, and threads that do it, at most: more of either took longer."""


@dataclass(frozen=True)
class FinishTask:
    """One slide whose tiles are all in the store."""

    slide: str
    store: str
    """Address of the slide's store."""
    grid: TileGrid
    tile_row: NDArray[np.int64]
    tile_col: NDArray[np.int64]
    context: bool
    """Whether the slide vector pools the context, or the tiles as they were embedded."""
    pool: Pool
    windows: Windows
    vectors: bool
    """Whether the encoder gives one vector a tile, so that window vectors are made of what is stored."""
    save: tuple[str, ...]
    """What is kept: tiles, slide, windows, tokens."""
    title: str
    threads: int
    """Threads that read rows for the overview."""


@dataclass(frozen=True)
class FinishReport:
    """What finishing a slide took."""

    slide: str
    seconds: dict[str, float]
    peak_bytes: int


@torch.inference_mode()
def finish_slide(task: FinishTask) -> FinishReport:
    """Slide vector and overview of one slide; then nothing is left but the completion mark, which the driver writes.

    Both pass over the stored rows in blocks of one fixed size, so that no result depends on how rows were cut into shards.
    """
    store, clock = SlideStore(Folder(task.store)), Clock()
    if not store.dropping:
        rows = CONTEXT_ROWS if task.context else TILE_ROWS
        if "slide" in task.save and task.pool.name != "none":
            with clock.timed("pool"):
                _pool_slide(task, store, rows)
        if "windows" in task.save:
            with clock.timed("windows"):
                if task.vectors:
                    _window_vectors(task, store, rows)
                write_larger_windows(task.windows, store)
        with clock.timed("overview"):
            _draw(task, store)
    unwanted = ([] if "tiles" in task.save else [TILE_ROWS, CONTEXT_ROWS]) + ([] if "tokens" in task.save else ["tokens"])
    if stored := [path for path in unwanted if path in store.dropping or store.folder.exists(f"{path}/zarr.json")]:
        store.drop(stored)
    with clock.timed("seal"):
        store.seal()
    return FinishReport(task.slide, clock.seconds, peak_memory())


def _draw(task: FinishTask, store: SlideStore) -> None:
    """Write the overview; what does not depend on embeddings is drawn while they are read."""

    def slide_panel() -> SlidePanel:
        thumbnail, mask = _image(store.folder, THUMBNAIL), _image(store.folder, TISSUE) > 0
        return draw_slide_panel(thumbnail, mask, task.grid, task.tile_row, task.tile_col)

    with ThreadPoolExecutor(1) as pool, threadpool_limits(1, "blas"):  # sixteen threads for matrices this small took longer to start
        panel = pool.submit(slide_panel)
        each = partial(store.map_blocks, TILE_ROWS, block_rows=OVERVIEW_ROWS, threads=min(OVERVIEW_THREADS, task.threads))
        colours = principal_colours(each, store.layout.tiles)
        store.folder.put("overview.png", draw_overview(panel.result(), colours, task.title))


def _pool_slide(task: FinishTask, store: SlideStore, rows: str) -> None:
    """The slide's vector, and with learned pools the share that each tile has in it."""
    weights = load_weights(task.pool.weights) if task.pool.weights is not None else None
    pool = make_pool(task.pool.name, store.layout.dim, weights)
    state, logits = pool.identity(), []
    for block in store.blocks(rows):
        keep = torch.from_numpy(np.isfinite(block).all(axis=1))
        state = pool.merge(state, pool.state(torch.from_numpy(block), keep))
        if isinstance(pool, SoftmaxPool):
            logits.append(pool.logits(torch.from_numpy(block).double()))  # NaN where a tile failed
    store.write_slide_vector(pool.result(state).float().numpy(), task.slide)
    if isinstance(pool, SoftmaxPool):
        found = torch.cat([torch.empty(0, pool.heads, dtype=torch.float64), *logits])
        store.write_attention(pool.attention(found, state).float().numpy())


def _window_vectors(task: FinishTask, store: SlideStore, rows: str) -> None:
    """Window vectors of tile vectors, from the rows that are stored."""
    writer = WindowWriter(task.windows, store)
    start = 0
    for block in store.blocks(rows):
        end = start + len(block)
        keep = np.isfinite(block).all(axis=1)
        tok_row, tok_col = (torch.from_numpy(places[start:end][keep]) for places in (task.tile_row, task.tile_col))
        upto = int(task.tile_row[end]) if end < len(task.tile_row) else task.grid.rows
        writer.add(TokenBand(torch.from_numpy(block[keep]), tok_row, tok_col, upto))
        start = end
    writer.finish()


def _image(folder: Folder, key: str) -> NDArray[np.uint8]:
    raw = folder.get(key)
    assert raw is not None, f"{key} is written when a store is created"
    return np.asarray(Image.open(io.BytesIO(raw)))


def png_bytes(pixels: NDArray[Any]) -> bytes:
    """An (h, w, 3) uint8 or (h, w) bool array as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
