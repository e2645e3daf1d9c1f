"""The picture of a finished slide: what was kept, and where the embeddings are alike."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tilestream.grid import TileGrid

PANEL_PX = 900
"""Longest side of each of the two panels."""
MARGIN, HEADER = 16, 28
EMPTY = (238, 238, 238)
OUTLINE = (0, 140, 60)
KEPT = (40, 90, 200)


def principal_colours(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(n, d) -> (n, 3) uint8: the first three principal components, each stretched between its 2nd and 98th percentile.

    The sign of a component is free: each is turned so that its largest loading is positive, so that the same embeddings
    always give the same picture. Rows that are not finite become grey.
    """
    good = np.isfinite(vectors).all(axis=1)
    colours = np.full((len(vectors), 3), 128, np.uint8)
    if good.sum() < 2:
        return colours
    centred = vectors[good].astype(np.float64)
    centred -= centred.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, np.argsort(values)[::-1][:3]]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    scores = centred @ axes
    low, high = np.percentile(scores, [2, 98], axis=0)
    spread = np.where(high - low > 1e-12, high - low, 1.0)
    colours[good, : axes.shape[1]] = (np.clip((scores - low) / spread, 0, 1) * 255).astype(np.uint8)
    return colours


def draw_overview(
    thumbnail: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    grid: TileGrid,
    tile_row: NDArray[np.int64],
    tile_col: NDArray[np.int64],
    vectors: NDArray[np.float32],
    title: str,
) -> bytes:
    """PNG: the thumbnail with tissue outline and kept tiles, beside the map of the embeddings.

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
    vectors : (n, d) float
        Their embeddings; NaN where a tile failed.
    title : str
        Words above the panels.
    """
    height, width = thumbnail.shape[:2]
    factor = PANEL_PX / max(height, width)
    panel = (max(1, round(width * factor)), max(1, round(height * factor)))
    place = _tile_of_pixel(grid, tile_row, tile_col, panel)
    slide = np.array(Image.fromarray(thumbnail).resize(panel, Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST))
    tissue = np.array(Image.fromarray(mask).resize(panel, Image.Resampling.NEAREST))
    slide[_borders(place)] = KEPT
    slide[_edges(tissue)] = OUTLINE
    colours = np.concatenate([principal_colours(vectors), np.array([EMPTY], np.uint8)])
    embedding_map = colours[place]  # -1 picks the last row: no tile
    return _compose(slide, embedding_map, title, f"{len(tile_row)} tiles kept (blue), tissue outlined (green)")


def _tile_of_pixel(grid: TileGrid, tile_row: NDArray[np.int64], tile_col: NDArray[np.int64], panel: tuple[int, int]) -> NDArray[np.int64]:
    """(h, w) index of the kept tile under each pixel of a panel, -1 where there is none."""
    width, height = panel
    table = np.full((grid.rows + 1, grid.cols + 1), -1, np.int64)
    table[tile_row, tile_col] = np.arange(len(tile_row))
    step = grid.stride * grid.scale
    row = ((np.arange(height) + 0.5) * grid.l0_size.height / height / step).astype(np.int64)
    col = ((np.arange(width) + 0.5) * grid.l0_size.width / width / step).astype(np.int64)
    return table[np.minimum(row, grid.rows)[:, None], np.minimum(col, grid.cols)[None, :]]


def _borders(place: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels whose upper or left neighbour belongs to another tile; none where tiles are too small to draw."""
    if (place >= 0).sum() < 36 * max(1, len(np.unique(place))):
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


def _compose(left: NDArray[np.uint8], right: NDArray[np.uint8], title: str, caption: str) -> bytes:
    height, width = left.shape[:2]
    canvas = Image.new("RGB", (2 * width + 3 * MARGIN, height + 2 * HEADER + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(15)
    draw.text((MARGIN, 8), title, fill="black", font=font)
    draw.text((MARGIN, HEADER + 6), caption, fill="black", font=font)
    draw.text((width + 2 * MARGIN, HEADER + 6), "embeddings: first three principal components as RGB", fill="black", font=font)
    canvas.paste(Image.fromarray(left), (MARGIN, 2 * HEADER + 6))
    canvas.paste(Image.fromarray(right), (width + 2 * MARGIN, 2 * HEADER + 6))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()
