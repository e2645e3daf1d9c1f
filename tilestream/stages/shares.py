"""What parts of a worker take, from sizes alone: imports no library that computes, for plans are made without one."""

from __future__ import annotations

from tilestream.stages.hardware import THREAD_BYTES
from tilestream.stages.worker_settings import LANES, EncoderFacts
from tilestream.store.layout import BLOCK_ROWS, BLOCKS_AHEAD
from tilestream.tiles.read_spec import READ_TILES

IN_FLIGHT = 2
"""Batches launched on a device before the results of the first are waited for."""

RESULTS = 2
"""Lists of tiles of which a device's results are in flight: one computes, and of the one before it they are put in their places."""

CPU_BATCH = 16
"""Tiles a batch where the config leaves it open: a CPU gains nothing from more. On a GPU it is measured."""

PICTURE_BYTES = 40 * 1024**2
"""Both panels of the overview with the tile under each of their pixels, the canvas, and its PNG."""

OVERVIEW_ROWS, OVERVIEW_THREADS = 1024, 8
"""Rows of a block that the overview reads, and threads that do it, at most: more of either took longer."""


def shards_open(*, on_device: bool) -> int:
    """Shards whose rows a worker holds at once: in lanes, and one that is written; on a device one more, which is computed and all read."""
    return LANES + 1 + on_device


def plans_here(*, on_device: bool) -> int:
    """Slides that are planned at once in the process that embeds: on a processor all cores are the encoder's, and a device may be through with a slide before the next one is planned."""
    return 2 if on_device else 1


def results_bytes(facts: EncoderFacts) -> int:
    """Host memory of the results of the batches in flight, those of the next shard's among them, and of the ones that are put in their places."""
    batches = RESULTS * (IN_FLIGHT + 1) if facts.device.startswith("cuda") else 3 * max(1, READ_TILES // facts.batch)
    return batches * facts.batch * facts.tokens * facts.dim * 4


def rows_bytes(tiles: int, dim: int) -> int:
    """What pooling holds of the rows that pass by, beside the block in work in float64, twice; and the thread in which it multiplies."""
    return THREAD_BYTES + (min(tiles, BLOCK_ROWS * (BLOCKS_AHEAD + 2)) * 4 + min(tiles, BLOCK_ROWS) * 16) * dim


def drawing_bytes(tiles: int, dim: int, threads: int) -> int:
    """What the overview takes: the picture, and of blocks of rows the scatter in float32 and float64, some of them merged."""
    blocks = min(-(-tiles // OVERVIEW_ROWS), min(OVERVIEW_THREADS, threads) + 2)
    return PICTURE_BYTES + blocks * (12 * dim**2 + OVERVIEW_ROWS * dim * 8) + 3 * 8 * dim**2
