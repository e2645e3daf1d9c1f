"""A slide through its slide encoder: rows stream from the store, the vector comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.config.vectors.pool import OnePool
from tilestream.encoders.slides.build import build_slide_encoder
from tilestream.encoders.slides.files import slide_weights
from tilestream.encoders.slides.presets import SLIDE_PRESETS
from tilestream.models.slides.base import SlideEncoder, TileBlock
from tilestream.stages.hardware import THREAD_BYTES
from tilestream.stages.pinning import check_pinned
from tilestream.stages.slide_task import SlideTask, check_stopped
from tilestream.stages.slides.contract import tile_cells
from tilestream.store.layout import BLOCK_ROWS, BLOCKS_AHEAD
from tilestream.store.slide_store import ROWS, SlideStore
from tilestream.store.stage_arrays import TokenRows

HELD = 4
"""Slide encoders that stay loaded: a config may list several."""


@dataclass(frozen=True)
class EncodedSlide:
    """What a slide encoder made of a slide."""

    vector: NDArray[np.float32]
    """(dim,), NaN where no tile has an embedding."""
    tiles: int
    """Tiles that have one."""
    tokens: TokenRows | None = None
    """Of its tiles, where they are asked for."""


def try_slide_encoder(pool: OnePool) -> str:
    """Build a slide encoder, to see before any work that it takes its arguments and weights; its name.

    Raises
    ------
    ConfigError, InputError
        As `build_slide_encoder`.
    """
    _encoder_for(pool, torch.device("cpu"))
    return pool.name


def encode_slide(task: SlideTask, pool: OnePool, store: SlideStore, device: torch.device) -> EncodedSlide:
    """Pass the stored rows of a slide through its slide encoder, in fp32.

    Rows come in blocks that do not depend on shards, and all that is computed at once is of fixed size, so shards and resume change no bit on a
    processor; nor do workers and threads in exact mode, where one thread computes.
    """
    encoder = _encoder_for(pool, device)
    check_pinned(slide_weights(pool), "pool.weights", task.line.weights)
    good = np.concatenate([np.empty(0, np.bool_), *store.map_blocks(ROWS, lambda rows, _: np.isfinite(rows).all(axis=1))])
    tiles = int(good.sum())
    if tiles == 0:
        return EncodedSlide(np.full(encoder.dim, np.nan, np.float32), 0)
    with _one_thread() if task.line.worker.exact else nullcontext():
        made = encoder.encode(_blocks(task, store, device), tiles, check_stopped)
    tokens = _token_rows(made.tokens, good) if pool.tokens and made.tokens is not None else None
    return EncodedSlide(made.vector.float().cpu().numpy(), tiles, tokens)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: a product of matrices may have other last bits with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _token_rows(tokens: torch.Tensor, good: NDArray[np.bool_]) -> TokenRows:
    """Tokens of the tiles that have an embedding as rows of all tiles."""
    at = np.cumsum(good) - 1

    def read(rows: slice) -> NDArray[np.float32]:
        here = good[rows]
        found = np.full((len(here), tokens.shape[1]), np.nan, np.float32)
        if here.any():
            first, last = at[rows][here][[0, -1]]
            found[here] = tokens[int(first) : int(last) + 1].float().cpu().numpy()
        return found

    return TokenRows(tokens.shape[1], read)


def _blocks(task: SlideTask, store: SlideStore, device: torch.device) -> Iterator[TileBlock]:
    """The tiles that have an embedding, block by block."""
    row, col = tile_cells(task.grid, *task.read_places(store))
    start = 0
    for block in store.blocks(ROWS):
        check_stopped()
        places, good = slice(start, start + len(block)), np.isfinite(block).all(axis=1)
        start += len(block)
        if good.any():
            cells = (torch.from_numpy(cell[places][good]) for cell in (row, col))
            yield TileBlock(torch.from_numpy(block[good]).to(device), *cells)


def _encoder_for(pool: OnePool, device: torch.device) -> SlideEncoder:
    """The slide encoder of a pool on a device; the last ones stay."""
    path = slide_weights(pool)
    files = [] if path is None else [Path(path), *sorted(Path(path).rglob("*"))]
    seen = tuple((stat.st_mtime_ns, stat.st_size) for stat in (file.stat() for file in files if file.exists()))
    return _load(json.dumps(pool.recipe(), sort_keys=True), str(device), seen)


@lru_cache(maxsize=HELD)
def _load(pool: str, device: str, _files: tuple[tuple[int, int], ...]) -> SlideEncoder:
    return build_slide_encoder(OnePool(**json.loads(pool))).to(device)


def slide_encoder_bytes(pool: OnePool, tiles: int, *, cuda: bool) -> int:
    """Upper bound of the host memory that a slide encoder takes: weights and their file, the tokens of all tiles where it computes there, rows as they are read."""
    preset = SLIDE_PRESETS[pool.name]
    rows = min(tiles, BLOCK_ROWS * (BLOCKS_AHEAD + 4)) * preset.inputs * 4
    computing = 0 if cuda else THREAD_BYTES + preset.spec.bytes(tiles)
    return 2 * preset.spec.weight_bytes + computing + rows + 40 * tiles
