"""Which parts of an image are tissue, decided once from a thumbnail, and how much of each tile that is."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, UnidentifiedImageError

from tilestream.config.schema import Tissue
from tilestream.errors import ConfigError, InputError
from tilestream.geometry import TileGrid
from tilestream.sources.base import Pixels
from tilestream.tiles.annotations.cover import draw_tissue, is_drawn
from tilestream.tiles.background.squares import BLOCKS, unscanned
from tilestream.tiles.background.surface import CLEAR_GLASS, Background, Ground, distances, find_background
from tilestream.tiles.thumbnail import THUMBNAIL_UM, Thumbnail

DARK = 30
"""Grey level below which saturation is mostly noise."""

LEAST_TISSUE = 0.005
"""Share of the image that is more than specks of noise."""

TYPICAL_PART, MOST_STEPS = 0.3, 2.5
"""The limit between background and tissue: this part of the distance that tissue typically has, at least 1 step and at most so many; fat has 3."""

SPREAD_PART = 0.25
"""Part of the strongest distance within 2 px that a pixel of tissue has at least."""

PALE_SIDE = 3
"""Radius, px, of what is tissue although it is paler than the limit: over so wide a part neither noise nor the spread of a strong colour is what it is."""

FAINT_STAIN, MOST_PALE = 8.0, 0.14
"""Of tissue of fewer steps than this, the share of what stands out that may be a little paler than what counts and yet more than noise."""

FAINT, MOST_NEAR, LEAST_SHARE = 2.2, 0.35, 0.01
"""When the method is unsure: steps of typical tissue below, share of pixels near the limit above, share of background in the image below."""

FAINT_THINGS = "no tissue stands out, but the background is not even: what lies there may be too faint. Look at the image, or give a mask."

NOTHING_SHINES = "nothing stands out from the dark ground: what lies there may be too dim. Look at the image, or give a mask."

MOST_PEN = 0.3
"""Part of what stands out that pens may be before it is doubted."""

PENS = f"more than {MOST_PEN:.0%} of what stands out has colours of marker pens and was left out: look at the tissue, or set tiles.tissue.pens to false."

RATHER_UNSCANNED = "what stands out is white or black to the last bit, with straight borders, as parts that were never scanned are: look at the tissue, or give a mask."

EITHER = (
    "a dark and a bright part are flat, and the {taken} one was taken for the ground: look at the tissue, or give a mask. "
    "If the {other} one is the ground, write tiles: {{tissue: {{ground: {other}}}}}."
)

NO_BACKGROUND = (
    "no part of the image is flat, so that nothing says what the glass looks like: all of it counts as tissue. Look at it, or give a mask."
)

DRAWING_BYTES = 64 * 1024**2
"""Bytes of the outlines that are gathered and drawn at once, of polygons as people draw them."""

PEN_HUES = ((75 / 360, 248 / 360),)
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

    The method `otsu`, which keeps its first name, looks for the background (`find_background`): glass of any tint and brightness, under uneven light, or
    the dark ground of fluorescence. Tissue is what differs from it on its own side, darker than glass, brighter than a dark ground; closed by 2 px,
    holes under `min_area_um2` filled, opened by 1 px, less pieces under `min_area_um2`. Parts that were never scanned are not tissue; pixels that
    could not be read count as tissue. Where it is unsure it says so.

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
        return _mask_from_file(file, tissue, thumbnail, corner)
    if tissue.method == "none":
        return FoundTissue(np.ones(thumbnail.pixels.shape[:2], np.bool_))
    if tissue.method == "function":
        return FoundTissue(_with_missing(_mask_from_function(tissue.function or "", thumbnail, um_per_px), thumbnail))
    return _stained(thumbnail, tissue, um_per_px)


def _stained(thumbnail: Thumbnail, tissue: Tissue, um_per_px: float | None) -> FoundTissue:
    """What differs from the background of the image, without specks and small holes."""
    from scipy import ndimage

    pixels = thumbnail.pixels
    missing = np.zeros(pixels.shape[:2], np.bool_) if thumbnail.missing is None else thumbnail.missing
    mask, background, warnings = _apart(pixels, missing, tissue.ground)
    if background is None:
        return FoundTissue(_with_missing(mask, thumbnail), warnings)
    if tissue.pens:
        white = np.full(3, 255.0) if background.dark else np.exp(background.base)
        before = int(mask.sum())
        for row, line in enumerate(pixels):
            mask[row] &= ~_pen(line, white)
        if mask.sum() < (1 - MOST_PEN) * before:
            warnings += (PENS,)
    least_px = tissue.min_area_um2 / (um_per_px or THUMBNAIL_UM) ** 2
    closed: Mask = ndimage.grey_closing(mask.view(np.uint8), footprint=_disk(2)).view(np.bool_)
    filled = ~without_specks(~closed, least_px)  # vacuoles of fat, lumens of glands
    opened: Mask = ndimage.grey_opening(filled.view(np.uint8), footprint=_disk(1)).view(np.bool_)
    return FoundTissue(_with_missing(without_specks(opened, least_px), thumbnail), warnings)


def _disk(radius: int) -> Mask:
    """(2 radius + 1, 2 radius + 1): the pixels within a radius."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    found: Mask = y**2 + x**2 <= radius**2
    return found


def _apart(pixels: Pixels, missing: Mask, ground: Ground) -> tuple[Mask, Background | None, tuple[str, ...]]:
    """What differs from the background; parts that were never scanned are none of it, where the rest can be explained without them."""
    empty = unscanned(pixels)
    if empty.any():
        background = find_background(pixels, empty | missing, ground=ground)
        if background is not None:
            mask, warnings = _beyond(pixels, background, empty | missing)
            # A rest that is all background is rather tissue on a background that is black or white to the last bit.
            if mask.sum() > LEAST_TISSUE * (~empty).sum() or background.bright >= CLEAR_GLASS:
                return mask, background, warnings
    background = find_background(pixels, missing, gaps=False, ground=ground)
    if background is None:
        mask = ~missing
        return mask, None, (NO_BACKGROUND,) if mask.any() else ()
    mask, warnings = _beyond(pixels, background, missing)
    if (mask & empty).sum() > mask.sum() / 2:
        warnings += (RATHER_UNSCANNED,)
    return mask, background, warnings


def _beyond(pixels: Pixels, background: Background, ignored: Mask) -> tuple[Mask, tuple[str, ...]]:
    """What is further from the background than one step, or than a part of what is typical of tissue, so that borders lie where they are."""
    from scipy import ndimage

    steps = distances(pixels, background)
    steps[ignored] = 0
    if not background.dark:
        steps[pixels.max(axis=2) < DARK * (background.bright / 255 if background.stated else 1)] = 0
    one = 255 / background.enough
    counts = _counts(steps)
    beyond = np.where(np.arange(256) > one, counts, 0).cumsum()
    typical = max(one, float(np.searchsorted(beyond, beyond[-1] / 2)))
    level = float(np.clip(TYPICAL_PART * typical, one, MOST_STEPS * one))
    near = int(counts[int(0.6 * level) : int(1.6 * level)].sum()) / max(1, int(beyond[-1]))
    # A JPEG and the scanner's optics spread strong colours over their border.
    mask: Mask = (steps > level) & (steps > SPREAD_PART * ndimage.maximum_filter(steps, 5))
    if level > one:
        pale: Mask = (steps > one) & ~mask
        mask |= ndimage.grey_opening(pale.view(np.uint8), footprint=_disk(PALE_SIDE)).view(np.bool_)
    if mask.sum() <= LEAST_TISSUE * mask.size:
        faint = (FAINT_THINGS,) if background.structure > 1 else (NOTHING_SHINES,) if background.dark else ()
        return mask, (*faint, *_other_ground(background))
    pale_share = int(counts[int(0.6 * one) : int(one) + 1].sum()) / max(1, int(beyond[-1]))
    return mask, tuple(_doubts(background, typical / one, near, pale_share))


def _doubts(background: Background, typical: float, near: float, pale: float) -> Iterator[str]:
    """Why what was found may be wrong."""
    name = "the dark ground" if background.dark else "the glass"
    if typical < FAINT:
        yield f"tissue hardly stands out from {name} ({typical:.1f} times what noise and uneven light make of it): look at the tissue, or give a mask."
    elif near > MOST_NEAR:
        yield f"much of the image lies between {name} and tissue ({near:.0%} of what stands out is near the limit): look at the tissue, or give a mask."
    elif background.quiet and typical < FAINT_STAIN and pale > MOST_PALE:
        yield f"the stain is faint, and things paler than what counts as tissue lie on {name} ({pale:.0%} of what stands out): look at the tissue, or give a mask."
    yield from _other_ground(background)
    if background.share < LEAST_SHARE:
        yield f"only {background.share:.1%} of the image shows {name}: look at the tissue, or give a mask."


def _other_ground(background: Background) -> Iterator[str]:
    """That another part of the image may be the ground, and what to write where it is."""
    if background.either:
        taken, other = ("dark", "bright") if background.dark else ("bright", "dark")
        yield EITHER.format(taken=taken, other=other)


def tissue_bytes(pixels: int, *, searched: bool) -> int:
    """What finding tissue on so many thumbnail pixels takes, and the share of it in each tile: labels, masks, the summed-area table.

    With it the squares on which the background is looked for; or, where tissue is drawn and not `searched`, the outlines that are drawn at once.
    """
    return pixels * 24 + min(pixels // 4, BLOCKS**2) * 200 if searched else pixels * 12 + DRAWING_BYTES


def _with_missing(mask: Mask, thumbnail: Thumbnail) -> Mask:
    """What cannot be read counts as tissue: its tiles become rows with a status, not a gap that nobody sees."""
    return mask if thumbnail.missing is None else mask | thumbnail.missing


def _counts(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(256,) how often each grey level occurs, counted in pieces: numpy widens what it counts to 8 bytes."""
    flat = values.ravel()
    pieces = (np.bincount(flat[k : k + (1 << 16)], minlength=256) for k in range(0, flat.size, 1 << 16))
    total = np.zeros(256, np.int64)
    for piece in pieces:
        total += piece
    return total


def _pen(line: Pixels, white: NDArray[np.float64]) -> Mask:
    """(w, 3) -> (w,) bool: strongly coloured pixels of hues that stains do not have, seen as on a glass without a tint."""
    seen = line * (white.max() / white).astype(np.float32)
    red, green, blue = seen.T
    high, low = seen.max(axis=1), seen.min(axis=1)
    span = np.maximum(high - low, 1)
    hue = np.where(high == red, (green - blue) / span % 6, np.where(high == green, (blue - red) / span + 2, (red - green) / span + 4)) / 6
    strong = (high - low) > 0.35 * high
    marked: Mask = strong & np.logical_or.reduce([(hue >= a) & (hue <= b) for a, b in PEN_HUES])
    return marked


def without_specks(mask: Mask, least_px: float) -> Mask:
    """The mask without 8-connected pieces of fewer than `least_px` pixels."""
    from scipy import ndimage

    pieces, count = ndimage.label(mask, structure=np.ones((3, 3), np.bool_))
    area = np.zeros(count + 1, np.int64)
    for line in pieces:  # numpy widens what it counts to 8 bytes: a row at a time
        np.add.at(area, line, 1)
    large = area >= max(least_px, 1)
    large[0] = False
    kept: Mask = large[pieces]
    return kept


def _mask_from_file(path: Path, tissue: Tissue, thumbnail: Thumbnail, corner: tuple[float, float]) -> FoundTissue:
    height, width = thumbnail.pixels.shape[:2]
    if is_drawn(path):
        return FoundTissue(*draw_tissue(path, tissue, (height, width), thumbnail.downsample, corner))
    try:
        with Image.open(path) as picture:
            stretch = picture.height / height / (picture.width / width)
            # Sizes are whole pixels: of a picture of few, a half may be missing a side.
            slack = 1.02 * (1 + 0.5 / min(picture.height, height)) * (1 + 0.5 / min(picture.width, width))
            if not 1 / slack <= stretch <= slack:
                raise InputError(
                    f"{path} is a picture of {picture.height} x {picture.width} px, but the image is {height} x {width} thumbnail px (h x w): "
                    "their shapes differ by more than 2 %. A mask is a picture of the whole image; is it another slide's?"
                )
            return FoundTissue(np.asarray(_marked(picture).resize((width, height), Image.Resampling.NEAREST)) > 0)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise InputError(
            f"{path} cannot be read as a mask: {error}. Give a GeoJSON or XML of polygons in level-0 px, or a PNG of the whole image."
        ) from error


def _marked(picture: Image.Image) -> Image.Image:
    """A picture that is 0 where a mask is black or transparent. 16 bits are not cut to 8, nor is a palette's number taken for a colour."""
    if "A" in picture.getbands() or "transparency" in picture.info:
        layers = picture.convert("RGBA")
        opaque = layers.getchannel("A")
        colour = _coloured(layers.convert("RGB"))
        return ImageChops.multiply(opaque, colour) if colour.getbbox() else opaque
    if picture.mode.startswith(("I", "F")):
        return Image.fromarray(np.asarray(picture) > 0)
    return _coloured(picture.convert("RGB")) if picture.mode not in ("1", "L") else picture.convert("L")


def _coloured(picture: Image.Image) -> Image.Image:
    """255 where any band is not 0: class numbers stand in one band alone, too dark for a grey level."""
    red, green, blue = picture.split()
    lightest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return lightest.point(lambda level: 255 * (level > 0))


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
