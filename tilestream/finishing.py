"""What follows once all shards of a slide are committed: the slide vector and the picture."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tilestream.config import Pool
from tilestream.contextual import CONTEXT_ROWS
from tilestream.grid import TileGrid
from tilestream.machine import peak_memory
from tilestream.models.pooling import make_pool
from tilestream.models.weights import load_weights
from tilestream.objects import Folder
from tilestream.overview import draw_overview, principal_colours
from tilestream.store import SlideStore

THUMBNAIL, TISSUE = "thumbnail.png", "tissue.png"


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
    """Slide vector and overview of one slide; then nothing is left but the completion mark, which the driver writes.

    Both pass over the stored rows in blocks of one fixed size, so that no result depends on how rows were cut into shards.
    """
    store = SlideStore(Folder(task.store))
    seconds = {}
    if task.pool.name != "none" and task.save_slide:
        start = time.perf_counter()
        pooled = CONTEXT_ROWS if task.context else "tables/tiles/X"
        store.write_slide_vector(_pool(task.pool, store.layout.dim, store.blocks(pooled)), task.slide)
        seconds["pool"] = time.perf_counter() - start
    start = time.perf_counter()
    thumbnail, mask = _image(store.folder, THUMBNAIL), _image(store.folder, TISSUE) > 0
    colours = principal_colours(lambda: store.blocks("tables/tiles/X"))
    store.folder.put("overview.png", draw_overview(thumbnail, mask, task.grid, task.tile_row, task.tile_col, colours, task.title))
    seconds["overview"] = time.perf_counter() - start
    return FinishReport(task.slide, seconds, peak_memory())


def _image(folder: Folder, key: str) -> NDArray[np.uint8]:
    raw = folder.get(key)
    assert raw is not None, f"{key} is written when a store is created"
    return np.asarray(Image.open(io.BytesIO(raw)))


def png_bytes(pixels: NDArray[Any]) -> bytes:
    """An (h, w, 3) uint8 or (h, w) bool array as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _pool(pool: Pool, dim: int, blocks: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Blocks of (n, d) -> (d,) float32 over the rows that are finite; NaN where there is none."""
    model = make_pool(pool.name, dim, load_weights(pool.weights) if pool.weights is not None else None)
    state = model.identity()
    for rows in blocks:
        keep = np.isfinite(rows).all(axis=1)
        state = model.merge(state, model.state(torch.from_numpy(rows), torch.from_numpy(keep)))
    vector: NDArray[np.float32] = model.result(state).float().numpy()
    return vector
