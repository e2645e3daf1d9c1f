"""A whole image, small: what tissue is looked for on, and what pictures show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tilestream.errors import ReadError
from tilestream.geometry import Region, level_for_scale
from tilestream.sources.base import WHITE, Pixels, SlideInfo, Source

THUMBNAIL_UM = 8.0
"""Resolution at which tissue is looked for, µm/px: a cell is about one pixel."""

LARGEST_SIDE = 2048
"""Longest side of a thumbnail where the image has no resolution."""

MOST_SIDE = 8192
"""Longest side of any thumbnail: a satellite image of 0.5 m/px must not be its own thumbnail."""

PICTURE_SIDE = 1500
"""Longest side of a picture, where the image has so many pixels."""

PICTURE_PIXELS = 40_000_000
"""Most pixels that are read for a picture alone; the thumbnail serves where no level is so small."""

BLOCK_BYTES = 32 * 1024**2
"""Source pixels, with sums of them, held at once while a thumbnail is made."""

PIECE = 256
"""Side, px, of the smallest block that is read again after a failure, where the file has no tiles of its own."""


@dataclass(frozen=True)
class Thumbnail:
    """The whole image, small."""

    pixels: Pixels
    """(h, w, 3) uint8."""
    downsample: float
    """Level-0 px per thumbnail px; pixel (0, 0) begins at level-0 (0, 0)."""
    missing: NDArray[np.bool_] | None = None
    """(h, w) bool: which pixels could not be decoded and are white; None where all could."""

    @property
    def unreadable(self) -> int:
        """Number of pixels that could not be decoded."""
        return 0 if self.missing is None else int(self.missing.sum())


def read_thumbnail(source: Source, um_per_px: float = THUMBNAIL_UM) -> Thumbnail:
    """The image at about `um_per_px`, at most `MOST_SIDE` px a side; at most 2048 where it has no resolution.

    A block that cannot be read is halved until only the broken file tiles are white: the rest of the slide keeps its tissue.

    Memory bound: the thumbnail, and one block of the level that is read, of about `BLOCK_BYTES`, or of one row of file tiles where
    those, as strips do, go across the whole image.
    """
    source = source.pictured()
    level, step = _level_and_step(source.info, um_per_px)
    found = source.info.levels[level]
    out = np.full((math.ceil(found.size.height / step), math.ceil(found.size.width / step), 3), WHITE, np.uint8)
    pieces = source.segment_grid(level)
    unit = (_unit(step, pieces.height if pieces else PIECE), _unit(step, pieces.width if pieces else PIECE))
    missing = np.zeros(out.shape[:2], np.bool_)
    for region in _blocks(out.shape[:2], step, unit):
        _fill((out, missing), source, level, region, step, unit)
    return Thumbnail(out, found.downsample * step, missing if missing.any() else None)


def thumbnail_bytes(source: Source, um_per_px: float = THUMBNAIL_UM) -> int:
    """What `read_thumbnail` takes: the pixels, which of them are missing, a block of the level with its sums, and what reading it holds."""
    source = source.pictured()
    level, step = _level_and_step(source.info, um_per_px)
    size, pieces = source.info.levels[level].size, source.segment_grid(level)
    block = min(size.height * size.width, max(BLOCK_BYTES // 15, pieces.height * pieces.width if pieces else 0))
    sums = 3 if step == 1 else 12 / step + 36 / step**2  # bytes a pixel, as in `_sums`
    return int(size.height * size.width / step**2 * 4 + block * (3 + sums)) + source.held_bytes(level, block)


def read_picture(source: Source, thumbnail: Thumbnail) -> Pixels:
    """(h, w, 3) uint8: the image as people look at it, with a longest side of `PICTURE_SIDE` where its thumbnail is smaller and the file allows it."""
    um_per_px = _picture_resolution(source.info)
    if um_per_px is None:
        return thumbnail.pixels
    found = read_thumbnail(source, um_per_px).pixels
    factor = PICTURE_SIDE / max(found.shape)
    if factor >= 1:
        return found
    height, width = (max(1, round(side * factor)) for side in found.shape[:2])
    return np.asarray(Image.fromarray(found).resize((width, height), Image.Resampling.BOX))


def picture_bytes(source: Source) -> int:
    """What `read_picture` takes beside the thumbnail."""
    um_per_px = _picture_resolution(source.info)
    return 0 if um_per_px is None else thumbnail_bytes(source, um_per_px) + PICTURE_SIDE**2 * 3


def _picture_resolution(info: SlideInfo) -> float | None:
    """µm per pixel at which a picture is read, from one level as it is or by whole steps; None where the thumbnail serves."""
    longest = max(info.size.height, info.size.width)
    if info.mpp is None or info.mpp * longest / PICTURE_SIDE >= THUMBNAIL_UM:
        return None
    scale = max(1.0, longest / PICTURE_SIDE)
    found = info.levels[level_for_scale(info.levels, scale) or 0]
    if found.size.height * found.size.width > PICTURE_PIXELS:
        return None
    return info.mpp * found.downsample * max(1, int(scale / found.downsample))


def _level_and_step(info: SlideInfo, um_per_px: float) -> tuple[int, int]:
    """The level that a thumbnail is read from, and how many of its pixels a side are one of the thumbnail's."""
    longest = max(info.size.height, info.size.width)
    wanted = um_per_px / info.mpp if info.mpp is not None else longest / LARGEST_SIDE
    scale = max(1.0, wanted, longest / MOST_SIDE)
    level = level_for_scale(info.levels, scale) or 0
    found = info.levels[level]
    step = max(1, round(scale / found.downsample))
    while math.ceil(max(found.size.height, found.size.width) / step) > MOST_SIDE:
        step += 1
    return level, step


def _unit(step: int, piece: int) -> int:
    """The smallest block side, px of the level: whole thumbnail pixels, and whole file tiles unless that is much larger."""
    both = math.lcm(step, piece)
    return both if both <= max(2048, piece) else math.ceil(piece / step) * step


def _blocks(shape: tuple[int, ...], step: int, unit: tuple[int, int]) -> Iterator[Region]:
    """Regions that cover a thumbnail of `shape`, of whole thumbnail pixels, each of about `BLOCK_BYTES`; row-major."""
    height, width = shape[0] * step, shape[1] * step
    area = BLOCK_BYTES // 15  # px; three bytes, and sums of four for each
    wide = min(width, max(1, math.isqrt(area) // unit[1]) * unit[1])
    high = max(1, area // wide // unit[0]) * unit[0] if unit[0] * wide <= area else max(1, area // wide // step) * step
    for y in range(0, height, high):
        for x in range(0, width, wide):
            yield Region(y, x, min(high, height - y), min(wide, width - x))


def _fill(out: tuple[Pixels, NDArray[np.bool_]], source: Source, level: int, region: Region, step: int, unit: tuple[int, int]) -> None:
    """Write the block means of a region into the thumbnail, or mark the pixels that cannot be read."""
    top, left = region.px_y // step, region.px_x // step
    rows, cols = region.height // step, region.width // step
    try:
        sums = _sums(source, level, region, step)
    except ReadError:
        y, x = region.px_y, region.px_x
        if region.width > unit[1]:
            cut = math.ceil(region.width / unit[1] / 2) * unit[1]
            halves = Region(y, x, region.height, cut), Region(y, x + cut, region.height, region.width - cut)
        elif region.height > unit[0]:
            cut = math.ceil(region.height / unit[0] / 2) * unit[0]
            halves = Region(y, x, cut, region.width), Region(y + cut, x, region.height - cut, region.width)
        else:
            out[1][top : top + rows, left : left + cols] = True
            return
        for half in halves:
            _fill(out, source, level, half, step, unit)
        return
    out[0][top : top + rows, left : left + cols] = (sums + step**2 // 2) // step**2


def _sums(source: Source, level: int, region: Region, step: int) -> NDArray[np.unsignedinteger[Any]]:
    """(rows, cols, 3) sums over the region's squares of `step` px; one row of squares that is too large is read in strips of its own.

    Two sums of integers: a mean over both axes at once is 12 times slower, and slower than decoding.
    """
    cols = region.width // step
    if region.height > step or region.height * region.width <= 2 * BLOCK_BYTES // 15:
        pixels = source.read_region(level, region)
        if step == 1:
            return pixels
        across = pixels.reshape(region.height // step, step, -1).sum(axis=1, dtype=np.uint32)
        sums: NDArray[np.unsignedinteger[Any]] = across.reshape(-1, cols, step, 3).sum(
            axis=2, dtype=np.uint32 if step <= 4096 else np.uint64
        )
        return sums
    total = np.zeros((1, cols, 3), np.uint64)
    pieces = source.segment_grid(level)
    high = max(pieces.height if pieces else 1, BLOCK_BYTES // 15 // region.width)
    for y in range(0, step, high):
        pixels = source.read_region(level, Region(region.px_y + y, region.px_x, min(high, step - y), region.width))
        total[0] += pixels.sum(axis=0, dtype=np.uint32).reshape(cols, step, 3).sum(axis=1, dtype=np.uint64)
    return total
