"""The picture of a finished slide: what was kept, and where the embeddings are alike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import imagecodecs
import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tilestream.grid import TileGrid

T = TypeVar("T")

Rows = NDArray[np.float32]
Scatter = NDArray[np.float64]

AXES_ROWS = 4096
"""Rows that the principal axes of a slide are taken from, about."""

LARGEST = 1e15
"""Values beyond it have no part in the axes: sums of their squares leave float32."""

PANEL_PX = 900
"""Longest side of each of the two panels."""
MARGIN, HEADER = 16, 28
EMPTY = (238, 238, 238)
OUTLINE = (0, 140, 60)
KEPT = (40, 90, 200)


class EachBlock(Protocol):
    """Goes over the rows of a slide anew each time, and gives what `work` makes of each block (m, d) float32, in order.

    After each block, `skip` blocks are left out. Blocks may be worked on at once.
    """

    def __call__(self, work: Callable[[Rows], T], skip: int) -> Iterable[T]: ...


def principal_colours(each: EachBlock, count: int) -> NDArray[np.uint8]:
    """Colours (n, 3) uint8 of n rows: the first three principal components, each stretched between its 2nd and 98th percentile.

    The sign of a component is free: each is turned so that its largest loading is positive, so that the same embeddings
    always give the same picture. Rows that are not finite become grey.

    Parameters
    ----------
    each : EachBlock
        Goes over the rows; axes come from about `AXES_ROWS` rows spread over all.
    count : int
        Number of rows, n.
    """
    axes = _axes(each(Moments.of, max(0, count // AXES_ROWS - 1)), 3)

    def project(rows: Rows) -> Rows:
        scores = np.full((len(rows), 3), np.nan, np.float32)
        if axes is not None:
            with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite give what is not, which becomes grey
                scores[:, : axes.shape[1]] = rows @ axes.astype(np.float32)
        return scores

    scores = np.concatenate([np.empty((0, 3), np.float32), *each(project, 0)])
    colours = np.full(scores.shape, 128, np.uint8)
    for component in range(3 if axes is None else axes.shape[1]):
        column = scores[:, component]
        good = np.isfinite(column)
        if good.any():
            low, high = np.percentile(column[good].astype(np.float64), [2, 98])
            spread = high - low if high - low > 1e-6 * max(abs(low), abs(high), 1e-6) else 1.0
            colours[good, component] = (np.clip((column[good] - low) / spread, 0, 1) * 255).astype(np.uint8)
    return colours


def principal_axes(blocks: Iterable[Rows], most: int = 3) -> NDArray[np.float64] | None:
    """The first `most` principal axes (d, <= most) of the rows (m, d) of all blocks that are finite; None for fewer than two."""
    return _axes(map(Moments.of, blocks), most)


@dataclass(frozen=True)
class Moments:
    """Count, mean (d,) and scatter around it (d, d) of some rows."""

    count: int
    mean: NDArray[np.float64]
    scatter: Scatter

    @classmethod
    def of(cls, rows: Rows) -> Moments:
        """Those of the rows of a block that are finite, and whose squares are."""
        good = rows[(np.abs(rows) < LARGEST).all(axis=1)]
        mean = good.mean(axis=0, dtype=np.float64) if len(good) else np.zeros(rows.shape[1])
        away = good - mean.astype(np.float32)
        return cls(len(good), mean, (away.T @ away).astype(np.float64))

    def merge(self, other: Moments) -> Moments:
        """Those of both sets of rows (Chan, Golub and LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115)."""
        if not self.count or not other.count:
            return other if other.count else self
        count, apart = self.count + other.count, other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), scatter)


def _axes(parts: Iterable[Moments], most: int) -> NDArray[np.float64] | None:
    moments = functools.reduce(Moments.merge, parts, Moments(0, np.zeros(1), np.zeros((1, 1))))
    if moments.count < 2:
        return None
    axes = _largest(moments.scatter, min(most, len(moments.mean)))
    return np.asarray(axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]))


def _largest(scatter: Scatter, count: int) -> Scatter:
    """Eigenvectors (d, count) of the largest eigenvalues, largest first."""
    dim = len(scatter)
    if count < dim:
        try:  # a few of many come five times faster by Lanczos' way; the start is fixed, so that the same rows give the same axes
            values, axes = scipy.sparse.linalg.eigsh(scatter, count, v0=np.random.default_rng(0).standard_normal(dim))
            return np.asarray(axes[:, np.argsort(values)[::-1]])
        except scipy.sparse.linalg.ArpackError:  # rows that are all the same, among others
            pass
    return np.asarray(scipy.linalg.eigh(scatter, subset_by_index=[dim - count, dim - 1])[1][:, ::-1])


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
    place = _tile_of_pixel(grid, tile_row, tile_col, panel)
    slide = np.array(Image.fromarray(thumbnail).resize(panel, Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST))
    tissue = np.array(Image.fromarray(mask).resize(panel, Image.Resampling.NEAREST))
    slide[_borders(place, len(tile_row))] = KEPT
    slide[_edges(tissue)] = OUTLINE
    return SlidePanel(slide, place, len(tile_row))


def draw_overview(panel: SlidePanel, colours: NDArray[np.uint8], title: str) -> bytes:
    """PNG: the slide's panel beside the map of the embeddings.

    Parameters
    ----------
    panel : SlidePanel
        From `draw_slide_panel`.
    colours : (n, 3) uint8
        Of the kept tiles' embeddings, from `principal_colours`.
    title : str
        Words above the panels.
    """
    embedding_map = np.concatenate([colours, np.array([EMPTY], np.uint8)])[panel.place]  # -1 picks the last row: no tile
    return _compose(panel.pixels, embedding_map, title, f"{panel.tiles} tiles kept (blue), tissue outlined (green)")


def _tile_of_pixel(grid: TileGrid, tile_row: NDArray[np.int64], tile_col: NDArray[np.int64], panel: tuple[int, int]) -> NDArray[np.int64]:
    """(h, w) index of the kept tile under each pixel of a panel, -1 where there is none."""
    width, height = panel
    if not grid.regular:
        return _painted(grid, tile_row, tile_col, panel)
    table = np.full((grid.rows + 1, grid.cols + 1), -1, np.int64)
    table[tile_row, tile_col] = np.arange(len(tile_row))
    step = grid.stride * grid.scale
    y0, x0 = grid.l0_offset
    row = np.floor(((np.arange(height) + 0.5) * grid.l0_size.height / height - y0) / step).astype(np.int64)
    col = np.floor(((np.arange(width) + 0.5) * grid.l0_size.width / width - x0) / step).astype(np.int64)
    row[row < 0], col[col < 0] = grid.rows, grid.cols
    return table[np.minimum(row, grid.rows)[:, None], np.minimum(col, grid.cols)[None, :]]


def _painted(grid: TileGrid, tile_row: NDArray[np.int64], tile_col: NDArray[np.int64], panel: tuple[int, int]) -> NDArray[np.int64]:
    """As `_tile_of_pixel`, for tiles that lie on no lattice: each painted where it is, at least one pixel, later ones over earlier ones."""
    width, height = panel
    place = np.full((height, width), -1, np.int64)
    starts = grid.l0_y(tile_row) * (height / grid.l0_size.height), grid.l0_x(tile_col) * (width / grid.l0_size.width)
    side = grid.l0_extent * height / grid.l0_size.height
    tops, lefts = (np.floor(start).astype(np.int64).tolist() for start in starts)
    bottoms, rights = (np.ceil(start + side).astype(np.int64).tolist() for start in starts)
    for tile, (top, left, bottom, right) in enumerate(zip(tops, lefts, bottoms, rights, strict=True)):
        place[top:bottom, left:right] = tile
    return place


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
    # One filter for all rows takes a third of the time of trying all of them, and suits squares of one colour as well.
    return bytes(imagecodecs.png_encode(np.asarray(canvas), level=3, filter=imagecodecs.PNG.FILTER.UP))
