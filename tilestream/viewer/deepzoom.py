"""Tiles of the zoom: an address of level, column and row becomes a small JPEG, from no more pixels than it needs."""

from __future__ import annotations

import io
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tilestream.errors import ReadError
from tilestream.geometry import Region, Size, level_for_scale
from tilestream.sources.base import Source
from tilestream.store.slide import Slide
from tilestream.tiles.thumbnail import read_thumbnail
from tilestream.viewer.pixels import AS_READ, Images, Look, blank, stored_thumbnail

SIDE = 512
"""Side of a tile of the zoom, px."""

MOST_RATIO = 4.0
"""Level pixels a side for one pixel of a tile, at most: 12 MB are read for a tile; farther out the thumbnail is shown."""

CACHE_BYTES = 48 * 1024**2
"""Encoded tiles that are kept."""

QUALITY = 85

BLOCK = 64
"""Side of the blocks in which a damaged part is read, px."""


@dataclass(frozen=True)
class Zoom:
    """The levels of the zoom over an image: level `deepest` has level-0 pixels, each one before it half as many a side."""

    size: Size
    """The image in level-0 px."""

    @property
    def deepest(self) -> int:
        """The first level at which one tile a side is too few for level-0 pixels, counted so that level 0 is one tile."""
        return max(0, math.ceil(math.log2(max(self.size.height, self.size.width) / SIDE)))

    @property
    def l0_side(self) -> int:
        """Side of the square that level 0 covers, level-0 px."""
        return SIDE << self.deepest

    def scale(self, level: int) -> int:
        """Level-0 px per pixel of a level."""
        return 1 << (self.deepest - level)

    def shape(self, level: int, col: int, row: int) -> tuple[int, int] | None:
        """Height and width of a tile, px: `SIDE`, or less where the image ends; None for an address that is no tile of the image."""
        if not 0 <= level <= self.deepest or min(col, row) < 0:
            return None
        scale = self.scale(level)
        height, width = (math.ceil(side / scale) - SIDE * at for side, at in ((self.size.height, row), (self.size.width, col)))
        return (min(SIDE, height), min(SIDE, width)) if height > 0 and width > 0 else None


@dataclass(frozen=True)
class Area:
    """A part of the image, and the size of its picture."""

    l0_y: float
    l0_x: float
    scale: float
    """Level-0 px per px of the picture."""
    height: int
    """Of the picture, px."""
    width: int

    def part(self, y: int, x: int, side: int) -> Area:
        """The block at (y, x) of the picture, at most `side` px a side."""
        height, width = min(side, self.height - y), min(side, self.width - x)
        return Area(self.l0_y + y * self.scale, self.l0_x + x * self.scale, self.scale, height, width)


class DeepZoom:
    """Pictures of parts of slides, as JPEG. Safe to share between threads.

    Memory bound: `CACHE_BYTES` of encoded tiles, one thumbnail, and for each thread that reads one region of `MOST_RATIO * SIDE` px a side.
    """

    def __init__(self, images: Images) -> None:
        self.images = images
        self._tiles: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._bytes = 0
        self._thumbnail: tuple[int, Image.Image] | None = None
        self._lock, self._thumbnail_lock = threading.Lock(), threading.Lock()

    def tile(self, number: int, slide: Slide, address: tuple[int, int, int], look: Look = AS_READ) -> bytes | None:
        """JPEG of (level, column, row), which ends where the image does; None for an address that is no tile."""
        zoom = Zoom(slide.size)
        shape = zoom.shape(*address)
        if shape is None:
            return None
        level, col, row = address
        key = (number, *address, look)
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
        scale = float(zoom.scale(level))
        data = encode_jpeg(self.picture(number, slide, Area(row * SIDE * scale, col * SIDE * scale, scale, *shape), look))
        with self._lock:
            self._bytes += len(data) - len(self._tiles.pop(key, b""))
            self._tiles[key] = data
            while self._bytes > CACHE_BYTES:
                self._bytes -= len(self._tiles.popitem(last=False)[1])
        return data

    def picture(self, number: int, slide: Slide, area: Area, look: Look = AS_READ) -> Image.Image:
        """A part of the image, averaged; white outside of it, hatched where the file is damaged.

        Taken from the coarsest level that is fine enough. What would need too many pixels is taken from the thumbnail.
        """
        with self.images.using(number, slide, look) as (source, _):
            level = None if source is None else choose_level(source, area.scale)
            if source is None or level is None:
                return _cut(self._small(number, slide, source), slide.size, area)
            try:
                return _read_area(source, level, area)
            except ReadError:
                self.images.distrust(number, look)
        return self._blocks(number, slide, area, look)

    def _blocks(self, number: int, slide: Slide, area: Area, look: Look) -> Image.Image:
        """A part of the image that cannot be read as a whole, block by block; those that cannot be read are hatched."""
        out = hatched(area.height, area.width)
        for y in range(0, area.height, BLOCK):
            for x in range(0, area.width, BLOCK):
                with self.images.using(number, slide, look) as (source, _):
                    level = None if source is None else choose_level(source, area.scale)
                    if source is None or level is None:
                        continue
                    try:
                        out.paste(_read_area(source, level, area.part(y, x, BLOCK)), (x, y))
                    except ReadError:
                        self.images.distrust(number, look)
        return out

    def _small(self, number: int, slide: Slide, source: Source | None) -> Image.Image:
        """The thumbnail of a slide; made anew where none is stored and the image is there, which takes one pass over it."""
        with self._thumbnail_lock:
            if self._thumbnail is None or self._thumbnail[0] != number:
                found = stored_thumbnail(slide)
                if found is None:
                    found = blank(64, 64) if source is None else Image.fromarray(read_thumbnail(source, 32.0).pixels)
                self._thumbnail = number, found
            return self._thumbnail[1]


def choose_level(source: Source, scale: float) -> int | None:
    """The coarsest level fine enough for `scale` level-0 px per pixel; None where it holds too many pixels for a tile."""
    level = level_for_scale(source.info.levels, scale) or 0
    return level if scale / source.info.levels[level].downsample <= MOST_RATIO else None


def _read_area(source: Source, level: int, area: Area) -> Image.Image:
    downsample = source.info.levels[level].downsample
    y, x, step = area.l0_y / downsample, area.l0_x / downsample, area.scale / downsample
    top, left = math.floor(y + 1e-6), math.floor(x + 1e-6)
    high, wide = y - top + area.height * step, x - left + area.width * step
    region = Region(top, left, max(1, math.ceil(high - 1e-6)), max(1, math.ceil(wide - 1e-6)))
    pixels = Image.fromarray(source.read_region(level, region))
    if (region.height, region.width) == (area.height, area.width) and step == 1:
        return pixels
    box = max(0.0, x - left), max(0.0, y - top), min(float(region.width), wide), min(float(region.height), high)
    return pixels.resize((area.width, area.height), Image.Resampling.BOX if step > 1 else Image.Resampling.BILINEAR, box)


def _cut(small: Image.Image, size: Size, area: Area) -> Image.Image:
    """A part of the image from a picture that covers all of it; white outside."""
    wide, high = small.width / size.width, small.height / size.height
    out = blank(area.height, area.width)
    y0, x0 = max(0.0, area.l0_y), max(0.0, area.l0_x)
    y1, x1 = min(float(size.height), area.l0_y + area.height * area.scale), min(float(size.width), area.l0_x + area.width * area.scale)
    if y1 <= y0 or x1 <= x0:
        return out
    part = max(1, round((x1 - x0) / area.scale)), max(1, round((y1 - y0) / area.scale))
    box = (x0 * wide, y0 * high, x1 * wide, y1 * high)
    out.paste(
        small.resize(part, Image.Resampling.BILINEAR, box),
        (round((x0 - area.l0_x) / area.scale), round((y0 - area.l0_y) / area.scale)),
    )
    return out


def hatched(height: int, width: int) -> Image.Image:
    """A picture of grey with dark stripes: nothing that a slide could show."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.where(((y + x) % 16 < 4)[..., None], np.uint8(90), np.full((height, width, 3), 170, np.uint8)))


def encode_jpeg(picture: Image.Image) -> bytes:
    """A picture as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
