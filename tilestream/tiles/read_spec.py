"""How tiles become pixels, in numbers: which level is read, how far it is averaged, how much is decoded at once and ahead."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilestream.sources.base import RGB, PixelKind, SegmentGrid

JOB_PIXELS = 1 << 21
"""Pixels decoded by one job of the pool: 7 ms of JPEG; with a quarter of it, handing over jobs cost a tenth of the time."""

READ_TILES = 64
"""Tiles that reading hands over at once on a CPU, at least: each handover between threads costs as much as reading five tiles."""

READ_PIXELS = READ_TILES * 256**2
"""Pixels of those tiles, at most: large ones are handed over in fewer, down to a batch of the encoder's."""

HOST_GROUP_PIECES = 64
"""Pieces of a group that threads of the host decode for a device: some for each thread, sent to the device together."""

UNIT_PIECES = 16
"""Pieces that a decoding process is sent at once: decoding them takes 3 ms, sending and hearing of them a fiftieth of that."""

GROUP_PIXELS = 1 << 25
"""Pixels of a group for a device, at most, where pieces are large; but at least one piece."""

GROUPS_IN_WORK = 4
"""Groups of pieces in host memory at once: one that leaves, one that is waited for, and those ahead."""

AHEAD_BYTES = 24 * 1024**2
"""Decoded bytes of the jobs in work or waiting, at most; but each thread has one job, and one more waits."""


@dataclass(frozen=True)
class ReadSpec:
    """How tiles become pixels: from which level, and how far that level is from the wanted scale."""

    level: int
    """Index of the level that is read."""
    downsample: float
    """Level-0 pixels per pixel of that level."""
    tile: int
    """Side of a tile in output pixels."""
    scale: float
    """Level-0 pixels per output pixel."""
    pixel: PixelKind = RGB
    """What a pixel holds."""

    @property
    def extent(self) -> float:
        """Side of a tile in pixels of the level."""
        return self.tile * self.scale / self.downsample

    @property
    def resampled(self) -> bool:
        """Whether the level's pixels must be averaged to reach the tile's size."""
        return round(self.extent) != self.tile

    @property
    def cover(self) -> int:
        """Side in level pixels of the square that holds a tile wherever it starts between two pixels."""
        return math.ceil(self.extent) + 1 if self.resampled else self.tile

    def px_origins(self, l0: NDArray[np.int64]) -> NDArray[np.float64]:
        """Level pixel where tiles start: whole where pixels are taken as they are, fractional where they are averaged."""
        px = l0 / self.downsample
        return px if self.resampled else np.rint(px)


def job_pieces(spec: ReadSpec, grid: SegmentGrid | None) -> int:
    """Pieces that one job of the pool decodes: about `JOB_PIXELS`, at least one piece."""
    return max(1, JOB_PIXELS // (grid.height * grid.width if grid else spec.cover**2))


def jobs_ahead(spec: ReadSpec, grid: SegmentGrid | None, threads: int) -> int:
    """Jobs in work or waiting at once: two a thread and one where they fit into `AHEAD_BYTES`, at least one a thread and one."""
    area = grid.height * grid.width if grid else spec.cover**2
    fitting = AHEAD_BYTES // (job_pieces(spec, grid) * area * spec.pixel.bytes)
    return max(threads + 1, min(2 * threads + 1, fitting))


def host_group(processes: int) -> int:
    """Pieces of a group that is decoded on the host for a device: by its threads, or by so many processes, each with a unit of its own."""
    return UNIT_PIECES * processes or HOST_GROUP_PIECES


def group_pieces(grid: SegmentGrid, most: int) -> int:
    """Pieces of a group for a device: `most`, fewer where pieces are large."""
    return max(1, min(most, GROUP_PIXELS // (grid.height * grid.width)))
