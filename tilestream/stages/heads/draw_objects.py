"""The picture of a detect head, and what pictures of other heads share with it: where its objects lie on the slide, and their outlines where they lie densest."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tilestream.geometry import Region, Size, level_for_scale
from tilestream.sources.base import Source
from tilestream.store.heads.palette import class_colours
from tilestream.store.heads.shapes import ShapesFile

PANEL_PX = 900
"""Longest side of each of the two panels."""

CLOSE_UP = 450
"""Px of the detector that the close-up shows, along a side."""

MARGIN, HEADER = 16, 28
LARGE_DOTS = 20_000
"""Objects up to which each is a dot of more than one pixel."""


@dataclass
class SlideDots:
    """The thumbnail of a slide, on which objects are dots in the colour of their class."""

    pixels: NDArray[np.uint8]
    """(h, w, 3)"""
    l0_size: Size
    colours: NDArray[np.uint8]
    """(C, 3)"""
    radius: int

    @classmethod
    def on(cls, thumbnail: bytes | None, l0_size: Size, classes: int, objects: int) -> SlideDots:
        """An empty one, for about so many objects."""
        factor = PANEL_PX / max(l0_size.height, l0_size.width)
        panel = max(1, round(l0_size.width * factor)), max(1, round(l0_size.height * factor))
        image = Image.new("RGB", panel, "white") if thumbnail is None else Image.open(io.BytesIO(thumbnail))
        image = (image if image.mode == "RGB" else image.convert("RGB")).resize(panel)  # `convert` would copy what needs no change
        pale = (np.asarray(image).astype(np.uint16) + 255) // 2
        return cls(pale.astype(np.uint8), l0_size, np.array(class_colours(classes), np.uint8), 1 if objects <= LARGE_DOTS else 0)

    def add(self, points: NDArray[np.float64], classes: NDArray[np.int64]) -> None:
        """Draw objects at (m, 2) y, x in level-0 px."""
        height, width = self.pixels.shape[:2]
        y, x = (np.floor(points * (height / self.l0_size.height, width / self.l0_size.width)).astype(np.int64)).T
        steps = range(-self.radius, self.radius + 1)
        for down, right in ((down, right) for down in steps for right in steps):
            inside = np.clip(y + down, 0, height - 1), np.clip(x + right, 0, width - 1)
            self.pixels[inside] = self.colours[classes]


def draw_close_up(source: Source, file: ShapesFile, l0_y: float, l0_x: float, scale: float) -> Image.Image:
    """The pixels round a place, and the outlines of the objects there; `scale` level-0 px are one px of the detector. Raises ReadError, OutageError."""
    levels = source.info.levels
    level = level_for_scale(levels, scale) or 0
    l0_side = CLOSE_UP * scale
    y, x = max(0.0, l0_y - l0_side / 2), max(0.0, l0_x - l0_side / 2)
    px = [round(value / levels[level].downsample) for value in (y, x, l0_side, l0_side)]
    image = Image.fromarray(source.read_region(level, Region(px[0], px[1], max(1, px[2]), max(1, px[3])))).resize((PANEL_PX, PANEL_PX))
    draw, colours, factor = ImageDraw.Draw(image), class_colours(len(file.classes)), PANEL_PX / l0_side
    for rows in file.within(y, x, y + l0_side, x + l0_side):
        for shape, kind in zip(rows.shapes, rows.classes.tolist(), strict=True):
            for part in getattr(shape, "geoms", [shape]):
                corners = (np.asarray(part.exterior.coords) - (x, y)) * factor
                draw.line([tuple(corner) for corner in corners.tolist()], fill=colours[kind], width=2)
    return image


def compose(pixels: NDArray[np.uint8], beside: Image.Image | None, title: str, legend: Sequence[str], caption: str) -> bytes:
    """PNG: the slide (h, w, 3) beside another picture, under a title and words for each class in its colour; `caption` is of the other one."""
    left = Image.fromarray(pixels)
    right = beside or Image.new("RGB", (PANEL_PX, PANEL_PX), (238, 238, 238))
    height = max(left.height, right.height)
    canvas = Image.new("RGB", (left.width + right.width + 3 * MARGIN, height + 2 * HEADER + 2 * MARGIN), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    draw.text((MARGIN, 8), title, fill="black", font=font)
    place = MARGIN
    for words, colour in zip(legend, class_colours(len(legend)), strict=True):
        draw.rectangle((place, HEADER + 8, place + 12, HEADER + 20), fill=colour)
        draw.text((place + 18, HEADER + 6), words, fill="black", font=font)
        place += 36 + int(draw.textlength(words, font=font))
    draw.text((left.width + 2 * MARGIN, HEADER + 6), caption, fill="black", font=font)
    canvas.paste(left, (MARGIN, 2 * HEADER + 6))
    canvas.paste(right, (left.width + 2 * MARGIN, 2 * HEADER + 6))
    out = io.BytesIO()
    canvas.save(out, "PNG")
    return out.getvalue()
