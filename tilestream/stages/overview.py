"""The picture of a finished slide: what was kept, and where the embeddings are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tilestream.geometry import TileGrid, tiles_at
from tilestream.store.layout import PADDED

Colour = tuple[int, int, int]

PANEL_PX = 900
"""Longest side of each of the two panels."""
MARGIN, HEADER = 16, 28
MOSTLY = 0.5
"""Part of a tile that is tissue in those which the colours of the map are made for."""
EMPTY = (238, 238, 238)
OUTLINE, OUTLINE_ON_DARK = (0, 120, 85), (120, 245, 190)
KEPT, KEPT_ON_DARK = (0, 80, 170), (110, 225, 255)
DARK = 100
"""Mean of red, green and blue below which a pixel is dark, and lines on it are light."""
BAR_STEPS = [mantissa * 10**power for power in range(-3, 9) for mantissa in (1, 2, 5)]
"""Lengths of scale bars, µm."""
LONGEST_BAR = 0.3
"""Of the width of the slide's panel."""


@dataclass(frozen=True)
class SlidePanel:
    """The left half of the picture, which can be drawn before any embedding is known."""

    pixels: NDArray[np.uint8]
    """(h, w, 3): the thumbnail with tissue outline and kept tiles."""
    place: NDArray[np.int64]
    """(h, w): the kept tile under each pixel, -1 where there is none."""
    tiles: int
    """Kept tiles."""


def draw_slide_panel(
    thumbnail: NDArray[np.uint8], mask: NDArray[np.bool_], grid: TileGrid, tile_row: NDArray[np.int64], tile_col: NDArray[np.int64]
) -> SlidePanel:
    """The thumbnail with tissue outline and kept tiles.

    Parameters
    ----------
    thumbnail : (h, w, 3) uint8
        The image, small.
    mask : (h, w) bool
        Tissue on the thumbnail's pixels.
    grid : TileGrid
        Where tiles lie.
    tile_row, tile_col : (n,) int64
        Kept tiles.
    """
    height, width = thumbnail.shape[:2]
    factor = PANEL_PX / max(height, width)
    panel = (max(1, round(width * factor)), max(1, round(height * factor)))
    y, x = ((np.arange(px) + 0.5) * l0 / px for px, l0 in ((panel[1], grid.l0_size.height), (panel[0], grid.l0_size.width)))
    place = tiles_at(grid, tile_row, tile_col, y, x)
    slide = np.array(Image.fromarray(thumbnail).resize(panel, Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC))
    tissue = np.array(Image.fromarray(mask).resize(panel, Image.Resampling.NEAREST))
    dark = slide.mean(axis=2) < DARK
    for lines, colour, on_dark in ((_borders(place, len(tile_row)), KEPT, KEPT_ON_DARK), (_edges(tissue), OUTLINE, OUTLINE_ON_DARK)):
        slide[lines] = np.where(dark[lines, None], np.array(on_dark, np.uint8), np.array(colour, np.uint8))
    return SlidePanel(slide, place, len(tile_row))


def draw_overview(
    panel: SlidePanel, colours: NDArray[np.uint8] | None, title: str, outlined: str = "tissue", mpp: float | None = None
) -> bytes:
    """PNG: the slide's panel beside the map of the embeddings.

    Parameters
    ----------
    panel : SlidePanel
        From `draw_slide_panel`.
    colours : (n, 3) uint8, optional
        Of the kept tiles' embeddings, from `principal_colours`; None where there are none, and then no map of them.
    title : str
        Words above the panels.
    outlined : str
        What the mask is of, in words.
    mpp : float, optional
        µm per pixel of the panel, for a scale bar.
    """
    embedding_map = None
    if colours is not None:
        embedding_map = np.concatenate([colours, np.array([EMPTY], np.uint8)])[panel.place]  # -1 picks the last row: no tile
    return _compose(
        panel.pixels,
        embedding_map,
        title,
        [((KEPT, KEPT_ON_DARK), f"{panel.tiles:,} tiles kept"), ((OUTLINE, OUTLINE_ON_DARK), outlined)],
        mpp,
    )


def tiles_at_edges(status: NDArray[np.int8], tissue: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """(n,) tiles that are mostly background or hang over the image: how white they are would be most of the map. None where too few are left."""
    edges = (status == PADDED) | (tissue < MOSTLY)
    return edges if (~edges).sum() > 3 else None


def _borders(place: NDArray[np.int64], tiles: int) -> NDArray[np.bool_]:
    """Pixels whose upper or left neighbour belongs to another tile; none where tiles are too small to draw."""
    if (place >= 0).sum() < 36 * tiles:
        return np.zeros(place.shape, np.bool_)
    border = np.zeros(place.shape, np.bool_)
    border[1:] |= place[1:] != place[:-1]
    border[:, 1:] |= place[:, 1:] != place[:, :-1]
    return border


def _edges(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    edge = np.zeros(mask.shape, np.bool_)
    edge[1:] |= mask[1:] != mask[:-1]
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    return edge


def _compose(
    left: NDArray[np.uint8], right: NDArray[np.uint8] | None, title: str, legend: list[tuple[tuple[Colour, Colour], str]], mpp: float | None
) -> bytes:
    height, width = left.shape[:2]
    canvas = Image.new("RGB", (width + 2 * MARGIN + (0 if right is None else width + MARGIN), height + 2 * HEADER + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(15)
    _write(draw, (MARGIN, 8), title, font)
    at = MARGIN
    for (colour, on_dark), words in legend:  # as lines are drawn on light and on dark pixels
        for place, (line, ground) in ((at, (colour, "white")), (at + 14, (on_dark, "black"))):
            draw.rectangle((place, HEADER + 9, place + 12, HEADER + 21), fill=ground, outline=line, width=3)
        _write(draw, (at + 32, HEADER + 6), words, font)
        at += 50 + round(draw.textlength(words, font=font))
    canvas.paste(Image.fromarray(left), (MARGIN, 2 * HEADER + 6))
    if right is not None:
        _write(draw, (width + 2 * MARGIN, HEADER + 6), "embeddings: first three principal components as red, green, blue", font)
        canvas.paste(Image.fromarray(right), (width + 2 * MARGIN, 2 * HEADER + 6))
    if mpp is not None:
        _draw_scale(draw, font, (MARGIN + 10, 2 * HEADER + 6 + height - 10), width * LONGEST_BAR, mpp)
    # One filter for all rows takes a third of the time of trying all of them, and suits squares of one colour as well.
    return bytes(imagecodecs.png_encode(np.asarray(canvas), level=3, filter=imagecodecs.PNG.FILTER.UP))


def _write(draw: ImageDraw.ImageDraw, corner: tuple[float, float], words: str, font: Any) -> None:
    """Words in black; the font that Pillow brings has no µ, which is a u with a tail here."""
    x, y = corner
    for k, part in enumerate(words.split("µ")):
        if k:
            draw.text((x, y), "u", fill="black", font=font)
            left, _, _, base = draw.textbbox((x, y), "u", font=font)
            draw.line((left, base - 3, left, base + 3), fill="black", width=1)
            x += draw.textlength("u", font=font)
        draw.text((x, y), part, fill="black", font=font)
        x += draw.textlength(part, font=font)


def _draw_scale(draw: ImageDraw.ImageDraw, font: Any, corner: tuple[int, int], most: float, mpp: float) -> None:
    """A bar of a round length on a white ground, whose lower left corner is `corner`; at most `most` px."""
    fitting = [step for step in BAR_STEPS if step / mpp <= most]
    if not fitting:
        return
    um, (x, y) = fitting[-1], corner
    long = round(um / mpp)
    words = f"{um:g} µm" if um < 1000 else f"{um / 1000:g} mm" if um < 1e6 else f"{um / 1e6:g} m" if um < 1e9 else f"{um / 1e9:g} km"
    wide = max(long, round(draw.textlength(words, font=font))) + 12
    draw.rectangle((x, y - 34, x + wide, y), fill="white", outline="black")
    _write(draw, (x + 6, y - 31), words, font)
    draw.rectangle((x + 6, y - 10, x + 6 + long, y - 6), fill="black")
