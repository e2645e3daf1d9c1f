"""A thumbnail in small squares: which are flat, and which parts were never scanned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilestream.sources.base import Pixels

BLOCKS = 512
"""Longest side, blocks, of the picture that the background is looked for on."""

WHITE_FROM, BLACK_TO = 253, 6
"""Grey levels of parts that were not scanned: white from the first on in all channels, black up to the second."""

STRAIGHT = 0.5
"""Share of a border in straight runs from which on parts count as not scanned: outlines of tissue have under 0.2, stairs of a scanner over 0.8."""

RUN = 8
"""Length of a straight run, px."""

LEAST_PART = 0.0015
"""Smallest share of the image that can be the background."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Blocks:
    """The thumbnail in squares of a few pixels."""

    mean: Floats
    """(h, w, 3)."""
    spread: Floats
    """(h, w) standard deviation within a square, of the noisiest channel."""
    valid: Mask
    """(h, w) squares that were read and scanned."""

    @property
    def places(self) -> tuple[Floats, Floats]:
        """(h, w) y and x from -1 to 1."""
        h, w = self.spread.shape
        y, x = np.meshgrid((np.arange(h) + 0.5) / h * 2 - 1, (np.arange(w) + 0.5) / w * 2 - 1, indexing="ij")
        return y, x


def unscanned(pixels: Pixels) -> Mask:
    """(h, w) bool: white or black to the last bit, in parts with straight borders."""
    white, black = (_large(extreme) for extreme in (pixels.min(axis=2) >= WHITE_FROM, pixels.max(axis=2) <= BLACK_TO))
    found = np.zeros(pixels.shape[:2], np.bool_)
    for part, other in ((white, black), (black, white)):
        if part.any() and not part.all() and straight_share(part, other) > STRAIGHT:
            found |= part
    return found


def _large(mask: Mask) -> Mask:
    """The mask's parts that are not small."""
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    large = np.bincount(parts.ravel(), minlength=count + 1) >= LEAST_PART * mask.size
    large[0] = False
    kept: Mask = large[parts]
    return kept


def straight_share(part: Mask, other: Mask | None = None) -> float:
    """Share of a part's border that runs straight along an axis; where it meets the other part counts only if that is all of it."""
    from scipy import ndimage

    straight = total = 0
    for turned, beside in ((part, other), (part.T, None if other is None else other.T)):
        border = turned[1:] ^ turned[:-1]
        if beside is not None:
            border &= ~(beside[1:] | beside[:-1])
        total += int(border.sum())
        straight += int(ndimage.binary_opening(border, np.ones((1, RUN), np.bool_)).sum())
    if total < RUN and other is not None:
        return straight_share(part)
    return straight / total if total else 0.0


def cut_blocks(pixels: Pixels, ignored: Mask) -> Blocks:
    """The thumbnail in squares of at least 2 px; those with an ignored pixel are not valid."""
    side = max(2, math.ceil(max(pixels.shape[:2]) / BLOCKS))
    h, w = (max(1, n // side) for n in pixels.shape[:2])
    side_y, side_x = (min(side, n) for n in pixels.shape[:2])
    mean, spread, valid = np.empty((h, w, 3)), np.empty((h, w)), np.empty((h, w), np.bool_)
    for row in range(h):
        part = slice(row * side_y, (row + 1) * side_y)
        squares = pixels[part, : w * side_x].reshape(side_y, w, side_x, 3).astype(np.float32)
        mean[row] = squares.mean(axis=(0, 2))
        spread[row] = squares.std(axis=(0, 2)).max(axis=-1)
        valid[row] = ~ignored[part, : w * side_x].reshape(side_y, w, side_x).any(axis=(0, 2))
    return Blocks(mean, spread, valid)


def find_flat(blocks: Blocks, noisier: int) -> Mask:
    """(h, w) bool: squares that differ within, and from their neighbours, by noise only."""
    from scipy import ndimage

    spreads = blocks.spread[blocks.valid]
    spreads = spreads[spreads > 0.2]  # squares of one colour, as marks have, say nothing of the noise
    noise = min(float(np.quantile(spreads, 0.01)) if len(spreads) else 0.0, 1.2)
    flat = blocks.valid & (blocks.spread <= noisier * max(4 * noise, 1.5))
    most = noisier * max(2.5, 5 * noise)
    for axis in (0, 1):
        if blocks.mean.shape[axis] > 1:
            apart = np.abs(np.diff(blocks.mean, axis=axis)).max(axis=2) > most
            before, after = (
                (slice(None, -1), slice(1, None)) if axis == 0 else ((slice(None), slice(None, -1)), (slice(None), slice(1, None)))
            )
            flat[before] &= ~apart
            flat[after] &= ~apart
    # Pale or dim tissue is flat here and there, the background nearly everywhere.
    dense: Mask = ndimage.uniform_filter(flat.astype(np.float32), 5, mode="nearest") > 0.75
    return flat & dense
