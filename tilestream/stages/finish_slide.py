"""What follows once all shards of a slide are committed: its vectors, its picture, its checksums."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from tilestream.config.heads import NO_ENCODER
from tilestream.config.vectors.pool import OnePool, Pool
from tilestream.models.context_streaming import TokenBand
from tilestream.models.pca import principal_colours
from tilestream.models.pooling import SoftmaxPool, make_pool
from tilestream.stages.clock import Clock
from tilestream.stages.hardware import one_thread, pick_device
from tilestream.stages.overview import SlidePanel, draw_overview, draw_slide_panel, tiles_at_edges
from tilestream.stages.pinning import check_machine, load_pinned
from tilestream.stages.region_vectors import WindowWriter, write_larger_windows
from tilestream.stages.shares import OVERVIEW_ROWS, OVERVIEW_THREADS
from tilestream.stages.slide_task import Report, SlideTask
from tilestream.stages.slides.encode import encode_slide
from tilestream.store.blocks import read_rows
from tilestream.store.folder import Folder
from tilestream.store.layout import TILES, context_place
from tilestream.store.slide_store import CODES, ROWS, THUMBNAIL, TISSUE, SlideStore


def unmade_pools(pool: Pool, store: SlideStore) -> list[OnePool]:
    """The pools whose vectors a store lacks; they are made one after another, as they share a table."""
    return [each for each in pool.every if not store.ledger(each.stage)]


def pool_slide(task: SlideTask, shards: range) -> Report:
    """The slide's vectors from the stored rows.

    Rows pass in blocks of one fixed size, so that no result depends on how they were cut into shards.
    """
    check_machine(task.line.worker)
    return _pool(task, shards, pick_device(task.line.worker.device))  # which device is this worker's is known in its own threads only


@one_thread
@torch.inference_mode()
def _pool(task: SlideTask, shards: range, device: torch.device) -> Report:
    store, clock = task.open_store(), Clock()
    with clock.timed("pool"):
        for pool in unmade_pools(task.line.pool, store):
            if pool.encodes:
                made = encode_slide(task, pool, store, device)
                store.write_pool(made.vector, task.slide, None, pool.stage, made.tokens, asked=made.tiles > 0)
            else:
                _pool_rows(task, pool, store, _pooled(task))
    return Report(task.slide, shards, clock.seconds)


@one_thread
@torch.inference_mode()
def pool_windows(task: SlideTask, shards: range) -> Report:
    """The vectors of regions from the stored rows, where no pass over tokens made them; and those of larger regions."""
    check_machine(task.line.worker)
    store, clock, line = task.open_store(), Clock(), task.line
    with clock.timed("windows"):
        if line.facts.tokens == 1:
            _window_vectors(task, store, _pooled(task))
        write_larger_windows(line.windows, store, line.weights)
    return Report(task.slide, shards, clock.seconds)


def draw_slide(task: SlideTask, shards: range) -> Report:
    """Write the overview; what does not depend on embeddings is drawn while they are read."""
    store, clock = task.open_store(), Clock()
    with clock.timed("overview"):
        _draw(task, store)
    return Report(task.slide, shards, clock.seconds)


def finish_slide(task: SlideTask, shards: range) -> Report:
    """Drop the arrays that nobody asked for, ever; then only the completion mark is missing."""
    store, clock = task.open_store(), Clock()
    save = (store.attributes or {})["recipe"]["output"]["save"]
    contexts = [context_place(stage) for stage in store.upstream if stage.startswith("context")]
    unwanted = ([] if "tiles" in save else [ROWS, *contexts]) + ([] if "tokens" in save else ["tokens"])
    if stored := [path for path in unwanted if path in store.dropping or store.folder.exists(f"{path}/zarr.json")]:
        store.drop(stored)
    with clock.timed("seal"):
        store.seal()
    return Report(task.slide, shards, clock.seconds)


def _pooled(task: SlideTask) -> str:
    """The rows that vectors of regions and of the slide are made of."""
    return ROWS if task.line.context is None else context_place(task.line.context.stage)


def _draw(task: SlideTask, store: SlideStore) -> None:
    tile_row, tile_col = task.read_places(store)

    def slide_panel() -> SlidePanel:
        thumbnail, mask = _image(store.folder, THUMBNAIL), _image(store.folder, TISSUE) > 0
        return draw_slide_panel(thumbnail, mask, task.grid, tile_row, tile_col)

    with ThreadPoolExecutor(1) as pool, threadpool_limits(1, "blas"):  # sixteen threads for matrices this small took longer to start
        panel = pool.submit(slide_panel)
        each = partial(store.map_blocks, ROWS, block_rows=OVERVIEW_ROWS, threads=min(OVERVIEW_THREADS, task.line.worker.threads))
        status, tissue = (read_rows(store.folder, path) for path in (CODES, f"{TILES}/obs/tissue"))
        embedded = task.line.facts.name != NO_ENCODER
        colours = principal_colours(each, store.layout.tiles, tiles_at_edges(status, tissue)) if embedded else None
        on_map = ((store.attributes or {}).get("source") or {}).get("geo")
        drawn = panel.result()
        mpp = None if task.mpp is None else task.mpp * task.grid.l0_size.width / drawn.pixels.shape[1]
        store.write_picture(draw_overview(drawn, colours, task.title, "what holds data" if on_map else "tissue", mpp))


def _pool_rows(task: SlideTask, chosen: OnePool, store: SlideStore, rows: str) -> None:
    """The slide's vector, and with learned pools the share that each tile has in it."""
    weights = load_pinned(chosen.weights, "pool.weights", task.line.weights) if chosen.weights is not None else None
    pool = make_pool(chosen.name, store.layout.dim, weights)
    state, logits, some = pool.identity(), [], False
    for block in store.blocks(rows):
        keep = torch.from_numpy(np.isfinite(block).all(axis=1))
        some = some or bool(keep.any())
        state = pool.merge(state, pool.state(torch.from_numpy(block), keep))
        if isinstance(pool, SoftmaxPool):
            logits.append(pool.logits(torch.from_numpy(block).double()))  # NaN where a tile failed
    shares = None
    if isinstance(pool, SoftmaxPool):
        found = torch.cat([torch.empty(0, pool.heads, dtype=torch.float64), *logits])
        shares = pool.attention(found, state).float().numpy()
    store.write_pool(pool.result(state).float().numpy(), task.slide, shares, chosen.stage, asked=some)


def _window_vectors(task: SlideTask, store: SlideStore, rows: str) -> None:
    """Window vectors of tile vectors, from the rows that are stored."""
    writer = WindowWriter(task.line.windows, store, task.line.weights)
    tile_row, tile_col = task.read_places(store)
    start = 0
    for block in store.blocks(rows):
        end = start + len(block)
        keep = np.isfinite(block).all(axis=1)
        tok_row, tok_col = (torch.from_numpy(places[start:end][keep]) for places in (tile_row, tile_col))
        upto = int(tile_row[end]) if end < len(tile_row) else task.grid.rows
        writer.add(TokenBand(torch.from_numpy(block[keep]), tok_row, tok_col, upto))
        start = end
    writer.finish()


def _image(folder: Folder, key: str) -> NDArray[np.uint8]:
    raw = folder.get(key)
    assert raw is not None, f"{key} is written when a store is created"
    return np.asarray(Image.open(io.BytesIO(raw)))
