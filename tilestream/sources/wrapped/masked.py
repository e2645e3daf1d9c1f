"""Images with a mask of their own, as GDAL writes them: what the mask leaves out is white, as under alpha 0, and no value."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tilestream.geometry import Region, level_for_scale
from tilestream.sources.base import Pixels, SegmentGrid, Source

BLOCK_PIXELS = 1 << 22
"""Pixels of a mask that are read at once, where it has no level of the image's own size."""


class MaskedSource(Source):
    """Another source's pixels, white where `mask` is 0. The mask comes last, behind colour profiles: white stays white.

    A level that the mask lacks takes the mask's pixel under the middle of its own, from the coarsest level that is no coarser.
    """

    def __init__(self, source: Source, mask: Source) -> None:
        self._source, self._mask, self.pixel = source, mask, source.pixel
        self.info = replace(
            source.info, properties={**source.info.properties, "mask": f"{len(mask.info.levels)} levels; white where it is 0"}
        )
        self.fetched, self.ahead, self.ahead_bytes = source.fetched, source.ahead, source.ahead_bytes  # type: ignore[method-assign]

    def pictured(self) -> MaskedSource:
        return MaskedSource(self._source.pictured(), self._mask) if self.pixel.bands else self

    def close(self) -> None:
        self._source.close()
        self._mask.close()

    def segment_grid(self, level: int) -> SegmentGrid | None:
        return self._source.segment_grid(level)

    def held_bytes(self, level: int, pixels: int) -> int:
        """Those of the image and of the mask, and the pixels that are made of both."""
        grid = self.segment_grid(level)
        area = grid.height * grid.width if grid else pixels
        return self._source.held_bytes(level, pixels) + self._mask.held_bytes(0, area) + area * (4 + self.pixel.bytes)

    def read_segment(self, level: int, row: int, col: int, out: Pixels | None = None) -> Pixels | None:
        grid = self.segment_grid(level)
        assert grid is not None, "read_segment needs a segment_grid"
        pixels = self._source.read_segment(level, row, col, out)
        region = Region(row * grid.height, col * grid.width, grid.height, grid.width).clipped(self.info.levels[level].size)
        if pixels is None or region is None:
            return None
        return self._whitened(pixels[: region.height, : region.width], level, region)

    def _read(self, level: int, region: Region) -> Pixels:
        return self._whitened(self._source.read_region(level, region), level, region)

    def _whitened(self, pixels: Pixels, level: int, region: Region) -> Pixels:
        absent = ~self.inside(level, region)
        fill = self.pixel.dtype.type(self.pixel.fill)
        return np.where(absent[..., np.newaxis], fill, pixels) if absent.any() else pixels

    def inside(self, level: int, region: Region) -> NDArray[np.bool_]:
        """(h, w) bool: which pixels of a region are part of the image."""
        size = self.info.levels[level].size
        levels = self._mask.info.levels
        for number, found in enumerate(levels):
            if found.size == size:
                same: NDArray[np.bool_] = self._mask.read_region(number, region)[..., 0] > 0
                return same
        number = level_for_scale(levels, self.info.levels[level].downsample) or 0
        own = levels[number].size
        px_y = ((np.arange(region.px_y, region.px_y + region.height) + 0.5) * own.height / size.height).astype(np.int64)
        px_x = ((np.arange(region.px_x, region.px_x + region.width) + 0.5) * own.width / size.width).astype(np.int64)
        left, width = int(px_x[0]), int(px_x[-1] - px_x[0]) + 1
        out = np.empty((region.height, region.width), np.bool_)
        step = max(1, BLOCK_PIXELS * region.height // (width * int(px_y[-1] - px_y[0] + 1)))
        for start in range(0, region.height, step):
            wanted = px_y[start : start + step]
            top = int(wanted[0])
            block = self._mask.read_region(number, Region(top, left, int(wanted[-1]) - top + 1, width))[..., 0]
            out[start : start + step] = block[np.ix_(wanted - top, px_x - left)] > 0
        return out
