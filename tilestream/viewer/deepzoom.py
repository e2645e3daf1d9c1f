"""Tiles of the zoom: an address of level, column and row becomes a small JPEG, from no more pixels than it needs."""

from __future__ import annotations

import io
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass

from PIL import Image

from tilestream.errors import ReadError
from tilestream.geometry import Region, Size, level_for_scale
from tilestream.sources.base import Source
from tilestream.store.slide import Slide
from tilestream.tiles.thumbnail import read_thumbnail
from tilestream.viewer.pixels import Images, blank, stored_thumbnail

SIDE = 512
"""Side of a tile of the zoom, px."""

MOST_RATIO = 4.0
"""Level pixels a side for one pixel of a tile, at most: 12 MB are read for a tile; farther out the thumbnail is shown."""

CACHE_BYTES = 48 * 1024**2
"""Encoded tiles that are kept."""

QUALITY = 85


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

    def has(self, level: int, col: int, row: int) -> bool:
        """Whether an address is a tile of the square that level 0 covers; browsers ask for those beside the image too."""
        return 0 <= level <= self.deepest and max(col, row) < 1 << level and min(col, row) >= 0

    def meets(self, level: int, col: int, row: int) -> bool:
        """Whether a tile shows a part of the image."""
        step = SIDE * self.scale(level)
        return row * step < self.size.height and col * step < self.size.width


class DeepZoom:
    """Pictures of squares of slides, as JPEG. Safe to share between threads.

    Memory bound: `CACHE_BYTES` of encoded tiles, one thumbnail, and for each thread that reads one region of `MOST_RATIO * SIDE` px a side.
    """

    def __init__(self, images: Images) -> None:
        self.images = images
        self._tiles: OrderedDict[tuple[int, ...], bytes] = OrderedDict()
        self._bytes = 0
        self._thumbnail: tuple[int, Image.Image] | None = None
        self._lock, self._thumbnail_lock = threading.Lock(), threading.Lock()

    def tile(self, number: int, slide: Slide, address: tuple[int, int, int]) -> bytes | None:
        """JPEG of (level, column, row), white beside the image; None for an address that is no tile."""
        zoom = Zoom(slide.size)
        if not zoom.has(*address):
            return None
        if not zoom.meets(*address):
            return BESIDE
        level, col, row = address
        key = (number, *address)
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
        step = float(SIDE * zoom.scale(level))
        data = encode_jpeg(self.square(number, slide, row * step, col * step, step, SIDE))
        with self._lock:
            self._bytes += len(data) - len(self._tiles.pop(key, b""))
            self._tiles[key] = data
            while self._bytes > CACHE_BYTES:
                self._bytes -= len(self._tiles.popitem(last=False)[1])
        return data

    def square(self, number: int, slide: Slide, l0_y: float, l0_x: float, l0_extent: float, px: int) -> Image.Image:
        """(px, px) picture of a square of level-0 pixels, averaged; white outside the image.

        Taken from the coarsest level that is fine enough. What cannot be read there, and what would need too many pixels, is taken from
        the thumbnail.
        """
        with self.images.using(number, slide) as (source, _):
            if source is not None:
                level = choose_level(source, l0_extent / px)
                if level is not None:
                    try:
                        return _read_square(source, level, (l0_y, l0_x), l0_extent, px)
                    except ReadError:
                        pass  # a damaged place: the thumbnail shows as much of it as was ever seen
            return _cut(self._small(number, slide, source), slide.size, (l0_y, l0_x), l0_extent, px)

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


def _read_square(source: Source, level: int, corner: tuple[float, float], l0_extent: float, px: int) -> Image.Image:
    downsample = source.info.levels[level].downsample
    y, x, extent = corner[0] / downsample, corner[1] / downsample, l0_extent / downsample
    top, left = math.floor(y + 1e-6), math.floor(x + 1e-6)
    side = max(1, math.ceil(max(y - top, x - left) + extent - 1e-6))
    pixels = Image.fromarray(source.read_region(level, Region(top, left, side, side)))
    if side == px and extent == px:
        return pixels
    box = max(0.0, x - left), max(0.0, y - top), min(float(side), x - left + extent), min(float(side), y - top + extent)
    return pixels.resize((px, px), Image.Resampling.BOX if extent > px else Image.Resampling.BILINEAR, box)


def _cut(small: Image.Image, size: Size, corner: tuple[float, float], l0_extent: float, px: int) -> Image.Image:
    """A square of level-0 pixels from a picture that covers the whole image; white outside."""
    wide, high = small.width / size.width, small.height / size.height
    out = blank(px, px)
    y0, x0 = max(0.0, corner[0]), max(0.0, corner[1])
    y1, x1 = min(float(size.height), corner[0] + l0_extent), min(float(size.width), corner[1] + l0_extent)
    if y1 <= y0 or x1 <= x0:
        return out
    part = max(1, round((x1 - x0) / l0_extent * px)), max(1, round((y1 - y0) / l0_extent * px))
    box = (x0 * wide, y0 * high, x1 * wide, y1 * high)
    out.paste(
        small.resize(part, Image.Resampling.BILINEAR, box),
        (round((x0 - corner[1]) / l0_extent * px), round((y0 - corner[0]) / l0_extent * px)),
    )
    return out


def encode_jpeg(picture: Image.Image) -> bytes:
    """A picture as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


BESIDE = encode_jpeg(blank(8, 8))
"""A tile beside the image; browsers stretch it."""
