"""Which parts of an image are tissue, decided once from a thumbnail, and how much of each tile that is."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, UnidentifiedImageError
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import closing, disk, opening

from tilestream.config.schema import Tissue
from tilestream.errors import ConfigError, InputError
from tilestream.geometry import TileGrid
from tilestream.sources.base import Pixels
from tilestream.tiles.annotations.cover import draw_tissue, is_drawn
from tilestream.tiles.thumbnail import THUMBNAIL_UM, Thumbnail

LEAST_SATURATION = 0.05
"""Saturation below which nothing is tissue: clean glass has up to 0.04 from the lamp's tint and JPEG noise, pale eosin 0.07 and more."""

MOST_SATURATION = 0.08
"""Saturation above which everything is tissue: pale fat at 8 µm/px has about 0.1."""

DARK = 30
"""Grey level below which saturation is mostly noise."""

LEAST_CONTRAST = 12
"""Grey levels between dark and bright below which an image without colour is taken for empty."""

PEN_HUES = ((75 / 360, 255 / 360),)
"""Hues of green and blue markers, as fractions of the circle; haematoxylin lies at 255 to 290 degrees, eosin at 300 to 350."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class FoundTissue:
    """Where the tissue of an image is."""

    mask: Mask
    """(h, w) bool: which pixels of the thumbnail are tissue."""
    warnings: tuple[str, ...] = ()
    """Why it may be wrong, in words."""


def find_tissue(
    thumbnail: Thumbnail, tissue: Tissue, um_per_px: float | None = None, *, file: Path | None = None, corner: tuple[float, float] = (0, 0)
) -> FoundTissue:
    """Which pixels of the thumbnail are tissue.

    Otsu's threshold (Otsu 1979) on HSV saturation, not below `LEAST_SATURATION`, closed by 2 px, holes under `min_area_um2` filled,
    opened by 1 px, less pieces under `min_area_um2`. An image without colour is judged by grey level: darker than the threshold is
    tissue on a bright ground, brighter on a dark one (fluorescence). Pixels that could not be read count as tissue.

    Parameters
    ----------
    thumbnail : Thumbnail
        The image.
    tissue : Tissue
        The section `tiles.tissue` of the config.
    um_per_px : float
        Size of a thumbnail pixel; None where the image has no resolution.
    file : Path
        The file that says where the tissue is, which goes before the method; see `mask_file`.
    corner : tuple
        Level-0 y, x from which its polygons count.

    Raises
    ------
    ConfigError
        A function cannot be used.
    InputError
        A mask file cannot be used; names the file.
    """
    if file is not None:
        return FoundTissue(_mask_from_file(file, tissue, thumbnail, corner))
    if tissue.method == "none":
        return FoundTissue(np.ones(thumbnail.pixels.shape[:2], np.bool_))
    if tissue.method == "function":
        return FoundTissue(_with_missing(_mask_from_function(tissue.function or "", thumbnail, um_per_px), thumbnail))
    return FoundTissue(_stained(thumbnail, tissue, um_per_px))


def _stained(thumbnail: Thumbnail, options: Tissue, um_per_px: float | None) -> Mask:
    mask = _otsu(thumbnail.pixels, pens=options.pens)
    least_px = options.min_area_um2 / (um_per_px or THUMBNAIL_UM) ** 2
    closed = closing(mask, disk(2))
    filled = ~_without_specks(~closed, least_px)  # vacuoles of fat, lumens of glands
    return _with_missing(_without_specks(opening(filled, disk(1)), least_px), thumbnail)


def tissue_bytes(pixels: int, *, searched: bool) -> int:
    """What finding tissue on so many thumbnail pixels takes, and the share of it in each tile: labels, masks, the summed-area table.

    Drawn outlines are not `searched`: they pass by one after the other, and what the largest takes is seen when it is read.
    """
    return pixels * (24 if searched else 12)


def _with_missing(mask: Mask, thumbnail: Thumbnail) -> Mask:
    """What cannot be read counts as tissue: its tiles become rows with a status, not a gap that nobody sees."""
    return mask if thumbnail.missing is None else mask | thumbnail.missing


def _otsu(pixels: Pixels, *, pens: bool) -> Mask:
    high, low = pixels.max(axis=2), pixels.min(axis=2)
    saturation = _saturation(high, low)
    if _quantile(saturation, 0.999) < 255 * LEAST_SATURATION:
        return _otsu_grey(high)
    # Dark pixels have a saturation that is mostly noise: a black border or marker is not tissue.
    mask: Mask = (saturation > max(255 * LEAST_SATURATION, _capped_otsu(saturation[high >= DARK]))) & (high >= DARK)
    if pens:
        for row, line in enumerate(pixels):
            mask[row] &= ~_pen(line)
    return mask


def _saturation(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w) uint8: HSV saturation, 255 for a pure colour; a row at a time, as 8 bits are all that is kept."""
    out = np.empty(high.shape, np.uint8)
    for row in range(len(high)):
        out[row] = (high[row].astype(np.int32) - low[row]) * 255 // np.maximum(high[row], 1)
    return out


def _quantile(values: NDArray[np.uint8], part: float) -> int:
    """The grey level that a part of the values does not exceed."""
    return int(np.searchsorted(_counts(values).cumsum(), part * values.size))


def _counts(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(256,) how often each grey level occurs, counted in pieces: numpy widens what it counts to 8 bytes."""
    flat = values.ravel()
    pieces = (np.bincount(flat[k : k + (1 << 16)], minlength=256) for k in range(0, flat.size, 1 << 16))
    total = np.zeros(256, np.int64)
    for piece in pieces:
        total += piece
    return total


def _otsu_level(values: NDArray[np.uint8]) -> float:
    counts = _counts(values)
    return float(threshold_otsu(hist=(counts, np.arange(256)))) if np.count_nonzero(counts) > 1 else 255.0


def _capped_otsu(saturation: NDArray[np.uint8]) -> float:
    """Otsu's threshold, at most `MOST_SATURATION`: above, it splits the tissue where that fills the image, and loses pale fat."""
    return min(_otsu_level(saturation), 255 * MOST_SATURATION) if saturation.size else 255.0


def _otsu_grey(grey: NDArray[np.uint8]) -> Mask:
    dark, bright = _quantile(grey, 0.001), _quantile(grey, 0.999)
    if bright - dark < LEAST_CONTRAST:
        return np.zeros(grey.shape, np.bool_)
    threshold = _otsu_level(grey)
    bright_ground = bright > 128 and _quantile(grey, 0.5) > threshold
    mask: Mask = grey <= threshold if bright_ground else grey > threshold
    return mask


def _pen(line: Pixels) -> Mask:
    """(w, 3) -> (w,) bool: strongly coloured pixels of hues that stains do not have."""
    red, green, blue = (line[:, k].astype(np.float32) for k in range(3))
    high, low = line.max(axis=1).astype(np.float32), line.min(axis=1).astype(np.float32)
    span = np.maximum(high - low, 1)
    hue = np.where(high == red, (green - blue) / span % 6, np.where(high == green, (blue - red) / span + 2, (red - green) / span + 4)) / 6
    strong = (high - low) > 0.35 * high
    marked: Mask = strong & np.logical_or.reduce([(hue >= a) & (hue <= b) for a, b in PEN_HUES])
    return marked


def _without_specks(mask: Mask, least_px: float) -> Mask:
    """The mask without 8-connected pieces of fewer than `least_px` pixels."""
    pieces, count = ndimage.label(mask, structure=np.ones((3, 3), np.bool_))
    area = np.zeros(count + 1, np.int64)
    for line in pieces:  # numpy widens what it counts to 8 bytes: a row at a time
        np.add.at(area, line, 1)
    large = area >= max(least_px, 1)
    large[0] = False
    kept: Mask = large[pieces]
    return kept


def _mask_from_file(path: Path, tissue: Tissue, thumbnail: Thumbnail, corner: tuple[float, float]) -> Mask:
    height, width = thumbnail.pixels.shape[:2]
    if is_drawn(path):
        return draw_tissue(path, tissue, (height, width), thumbnail.downsample, corner)
    try:
        with Image.open(path) as picture:
            stretch = picture.height / height / (picture.width / width)
            # Sizes are whole pixels: of a picture of few, a half may be missing a side.
            slack = 1.02 * (1 + 0.5 / min(picture.height, height)) * (1 + 0.5 / min(picture.width, width))
            if not 1 / slack <= stretch <= slack:
                raise InputError(
                    f"{path} is a picture of {picture.width} x {picture.height} px, but the image is {width} x {height} thumbnail px: "
                    "their shapes differ by more than 2 %. A mask is a picture of the whole image; is it another slide's?"
                )
            return np.asarray(_marked(picture).resize((width, height), Image.Resampling.NEAREST)) > 0
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise InputError(
            f"{path} cannot be read as a mask: {error}. Give a GeoJSON or XML of polygons in level-0 px, or a PNG of the whole image."
        ) from error


def _marked(picture: Image.Image) -> Image.Image:
    """A picture that is 0 where a mask is black or transparent. 16 bits are not cut to 8, nor is a palette's number taken for a colour."""
    if "A" in picture.getbands() or "transparency" in picture.info:
        layers = picture.convert("RGBA")
        opaque = layers.getchannel("A")
        colour = layers.convert("RGB").convert("L").point(lambda level: 255 * (level > 0))
        return ImageChops.multiply(opaque, colour) if colour.getbbox() else opaque
    if picture.mode.startswith(("I", "F")):
        return Image.fromarray(np.asarray(picture) > 0)
    return picture.convert("L")


def _mask_from_function(name: str, thumbnail: Thumbnail, um_per_px: float | None) -> Mask:
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"tiles.tissue.function: {name} cannot be imported: {error}. Write module:function.") from error
    mask = np.asarray(function(thumbnail.pixels, um_per_px))
    if mask.shape != thumbnail.pixels.shape[:2] or mask.dtype != np.bool_:
        raise ConfigError(
            f"tiles.tissue.function: {name} gave {mask.shape} {mask.dtype}, but it must give {thumbnail.pixels.shape[:2]} bool, a pixel for each of the thumbnail's."
        )
    return mask


def tile_fractions(
    mask: Mask, downsample: float, grid: TileGrid, tile_row: NDArray[np.int64], tile_col: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(n,) part of each tile's level-0 square that is tissue; what lies outside the image is not.

    The integral of the mask is taken at fractional places (bilinear in the summed-area table, Crow 1984), so it is exact.
    """
    table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
    np.cumsum(mask, axis=0, dtype=np.int32, out=table[1:, 1:])
    np.cumsum(table, axis=1, out=table)
    rows, cols = np.unique(tile_row), np.unique(tile_col)
    top, left = grid.l0_y(rows) / downsample, grid.l0_x(cols) / downsample
    side = grid.l0_extent / downsample
    bottom, right = np.minimum(top + side, grid.l0_size.height / downsample), np.minimum(left + side, grid.l0_size.width / downsample)
    bands = _at(table, bottom, 0) - _at(table, top, 0)
    sums = _at(bands, right, 1) - _at(bands, left, 1)
    fractions = sums[np.searchsorted(rows, tile_row), np.searchsorted(cols, tile_col)] / side**2
    return np.clip(fractions, 0, 1).astype(np.float32)


def _at(table: NDArray[Any], place: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Values of a summed-area table at fractional places along an axis, held at its ends."""
    place = np.clip(place, 0, table.shape[axis] - 1)
    low = np.minimum(np.floor(place).astype(np.int64), table.shape[axis] - 2) if table.shape[axis] > 1 else np.zeros(len(place), np.int64)
    part = np.expand_dims(place - low, 1 - axis)
    values: NDArray[np.float64] = np.take(table, low, axis) * (1 - part) + np.take(table, low + 1, axis) * part
    return values
