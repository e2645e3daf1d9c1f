"""What an image looks like where nothing lies on it: the colour and the light of the glass, or the dark ground of fluorescence.

Bright field: light passes the glass and is absorbed by tissue, so that the glass is the brightest large part that is flat, whatever its tint and however
much of the image it fills. Fluorescence: tissue shines, and the ground is the darkest large flat part. Flat is what differs from its neighbours by no more
than noise; the lamp may light it unevenly, which a smooth surface over all its flat parts follows. Parts that were never scanned are white or black to
the last bit, with straight borders; they say nothing of the glass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tilestream.sources.base import Pixels
from tilestream.tiles.background.squares import (
    BLACK_TO,
    LEAST_PART,
    STRAIGHT,
    WHITE_FROM,
    Blocks,
    Floats,
    Mask,
    cut_blocks,
    find_flat,
    straight_share,
)

DIMMEST_GLASS = 90
"""Mean grey level that glass has at least."""

MOST_TINT = 0.3
"""HSV saturation that glass has at most: yellowed mountant has 0.15, tissue in one flat colour more."""

BRIGHTEST_GROUND = 110
"""Grey level of its brightest channel that the ground of fluorescence has at most."""

CLEAR_GLASS = 200
"""Mean grey level of glass that is believed to be glass although nothing lies on it."""

LEAST_OTHER, LEAST_BESIDE_GLASS, LEAST_APART = 0.05, 0.25, 0.3
"""What else may be the ground: so large, as a part of what is taken for it, more beside clear glass, on which marks lie;
and so much brighter or darker, as a part of the brighter."""

MOST_GREY = 0.03
"""Difference between channels, as a part of the brightest, that what has no colour has at most."""

MOST_WRONG = 0.05
"""Part of an image that may lie clearly on the other side of its ground than tissue, before the ground is doubted."""

STIFFNESS = 0.005
"""How much a surface is held back from sloping, against squares spread over the whole image, whose variance is about 0.3."""

LEAST_ABSORBED, LEAST_TINT, LEAST_GLOW = 0.04, 0.03, 3.0
"""The least that counts as tissue where there is no noise: light absorbed, difference of that between channels, grey levels above a dark ground."""


Ground = Literal["auto", "bright", "dark"]


@dataclass(frozen=True)
class Background:
    """The background of one image, as a surface: what each pixel would be if nothing lay there."""

    dark: bool
    """Whether tissue is brighter than the background (fluorescence)."""
    base: Floats
    """(3,) logarithm of the glass's grey levels, or the levels of a dark ground, in the middle of the image."""
    slopes: Floats
    """(5, 3) how it changes with x, y, x², xy, y², where both run from -1 to 1."""
    noise: float
    """Standard deviation of a background pixel about it, in the same units, of the noisiest channel."""
    tint_noise: float
    """Standard deviation of the differences between channels; 0 for a dark ground."""
    share: float
    """Part of the image that it was estimated from."""
    structure: float
    """Standard deviation between its squares, grey levels; 0 where it is no more than their noise explains."""
    either: bool = False
    """Whether another flat part could be the ground, and what was taken for it be flat tissue."""
    stated: bool = False
    """Whether a person said that it is the ground."""

    @property
    def enough(self) -> float:
        """Distance from the background, in steps of what counts as tissue at least, that is told apart; light has a wider range than absorption."""
        return 48.0 if self.dark else 16.0

    @property
    def quiet(self) -> bool:
        """Whether noise explains nothing on glass that is half as far from it as what counts as tissue at least."""
        return not self.dark and 4 * self.noise <= LEAST_ABSORBED / 2 and 4 * self.tint_noise <= LEAST_TINT / 2

    @property
    def bright(self) -> float:
        """Mean grey level of the channels in the middle of the image."""
        return float(self.base.mean() if self.dark else np.exp(self.base).mean())

    def surface(self, y: Floats, x: Floats) -> Floats:
        """(..., 3) the background at places from -1 to 1."""
        return self.base + _terms(y, x) @ self.slopes


def _terms(y: Floats, x: Floats) -> Floats:
    return np.stack([x, y, x * x, x * y, y * y], axis=-1)


def find_background(pixels: Pixels, ignored: Mask, *, gaps: bool = True, ground: Ground = "auto") -> Background | None:
    """The background of a thumbnail, or None where nothing in it is flat.

    Parameters
    ----------
    pixels : Pixels
        The thumbnail.
    ignored : Mask
        Pixels that say nothing.
    gaps : bool
        Whether a dark part with straight borders beside glass is a gap in the scan, however large it is.
    ground : str
        Whether it is bright glass or a dark ground, where a person says so.
    """
    blocks = cut_blocks(pixels, ignored)
    if not blocks.valid.any():
        return None
    for noisier in (1, 2, 4):
        flat = find_flat(blocks, noisier)
        parts = _large_parts(blocks, flat)
        if ground != "auto" and (stated := _stated_seed(parts, dark=ground == "dark")) is not None:
            return replace(_fit(blocks, flat, stated, dark=ground == "dark"), stated=True)
        if seeds := _seeds(parts):
            break
    else:
        return None
    dark = True in seeds
    gap = gaps and dark and False in seeds and straight_share(seeds[True]) > STRAIGHT
    if len(seeds) == 2:  # a dark part beside glass is a gap or a mark, unless it is the larger and lies around what shines
        dark = bool(seeds[True].sum() > seeds[False].sum()) and not gap
    either = not gap and ((dark and len(seeds) == 2) or _is_other(parts, seeds[dark]))
    background = _fit(blocks, flat, seeds[dark], dark=dark)
    darker, brighter = _sides(blocks, background)
    wrong, right = (darker, brighter) if dark else (brighter, darker)
    background = replace(
        background, either=either or _is_beside_flat(blocks, parts, background) or wrong > max(2 * right, MOST_WRONG * blocks.valid.sum())
    )
    # Middling grey may be dim glass or a bright ground: what lies on it tells.
    if wrong > 2 * right and DIMMEST_GLASS / 2 <= background.bright <= 1.5 * BRIGHTEST_GROUND:
        return _fit(blocks, flat, seeds[dark], dark=not dark)
    return background


@dataclass(frozen=True)
class _Parts:
    """The flat parts of an image that are large enough to be its background."""

    number: NDArray[np.int64]
    """(h, w) the number of the part that a square belongs to, 0 for none."""
    numbers: NDArray[np.int64]
    """(n,) those of the large ones."""
    area: NDArray[np.int64]
    """(n,) squares."""
    level: Floats
    """(n, 3) mean grey levels."""

    @property
    def bright(self) -> Floats:
        bright: Floats = self.level.mean(axis=1)
        return bright

    @property
    def high(self) -> Floats:
        high: Floats = self.level.max(axis=1)
        return high

    @property
    def untinted(self) -> NDArray[np.bool_]:
        untinted: NDArray[np.bool_] = 1 - self.level.min(axis=1) / np.maximum(self.high, 1) <= MOST_TINT
        return untinted

    def largest(self, wanted: NDArray[np.bool_]) -> Mask:
        """(h, w) the squares of the largest of the wanted parts."""
        largest: Mask = self.number == self.numbers[np.argmax(np.where(wanted, self.area, 0))]
        return largest


def _large_parts(blocks: Blocks, flat: Mask) -> _Parts:
    number, count = ndimage.label(flat, np.ones((3, 3)))
    area = np.bincount(number.ravel(), minlength=count + 1)[1:]
    numbers = 1 + np.flatnonzero(area >= max(6, LEAST_PART * blocks.valid.size))
    level = np.stack([ndimage.mean(blocks.mean[..., c], number, numbers) for c in range(3)], axis=1).reshape(-1, 3)
    return _Parts(number, numbers, area[numbers - 1], level)


def _seeds(parts: _Parts) -> dict[bool, Mask]:
    """Squares of the flat part that is glass (False) and of that which is a dark ground (True), as far as there are such parts."""
    bright, high = parts.bright, parts.high
    glass = (bright >= DIMMEST_GLASS) & parts.untinted
    ground = ~glass & (high <= BRIGHTEST_GROUND)
    seeds = {}
    if glass.any():
        seeds[False] = parts.largest(glass & (bright >= 0.9 * bright[glass].max()))
    if ground.any():
        seeds[True] = parts.largest(ground & (bright <= bright[ground].min() + 10))
    return seeds


def _stated_seed(parts: _Parts, *, dark: bool) -> Mask | None:
    """Squares of the flat part that is the ground where a person says which kind it is: the darkest, or the brightest, which has no colour if it can."""
    bright = parts.bright
    if not len(bright):
        return None
    if dark:
        return parts.largest(bright <= bright.min() + 10)
    glass = parts.untinted if parts.untinted.any() else np.ones(len(bright), np.bool_)
    return parts.largest(glass & (bright >= 0.9 * bright[glass].max()))


def _is_other(parts: _Parts, seed: Mask) -> bool:
    """Whether another flat part is large and unlike enough to be the ground: of two such parts in a dim image either may be."""
    bright = parts.bright
    own = float(bright[parts.numbers == parts.number[seed][0]][0])
    low, high = np.minimum(bright, own), np.maximum(bright, own)
    unlike = (low <= BRIGHTEST_GROUND) & (high - low > np.maximum(10, LEAST_APART * high))
    large = parts.area >= (LEAST_BESIDE_GLASS if own >= CLEAR_GLASS else LEAST_OTHER) * seed.sum()
    return bool((unlike & large).any())


def _is_beside_flat(blocks: Blocks, parts: _Parts, glass: Background) -> bool:
    """Whether a large part without colour, which counts as tissue on grey glass, is as flat as that: of an image without colours either may be the ground."""
    if glass.dark or np.ptp(np.exp(glass.base)) > MOST_GREY * glass.bright:
        return False
    y, x = blocks.places
    absorbed = (glass.surface(y, x) - np.log(np.maximum(blocks.mean, 1))).max(axis=2)
    least = glass.share * blocks.valid.size * (LEAST_BESIDE_GLASS if glass.bright >= CLEAR_GLASS else LEAST_OTHER)
    grey = np.ptp(parts.level, axis=1) <= MOST_GREY * parts.high
    away = ndimage.median(absorbed, parts.number, parts.numbers) > 2 * max(LEAST_ABSORBED, 4 * glass.noise)
    return bool((grey & (parts.bright > BLACK_TO) & (parts.area >= least) & away).any())


def _sides(blocks: Blocks, background: Background) -> tuple[int, int]:
    """Number of squares that are clearly darker, and clearly brighter, than the background; white and black to the last bit count for neither."""
    y, x = blocks.places
    clear = background.surface(y, x)
    difference = (blocks.mean - (clear if background.dark else np.exp(clear))).mean(axis=2)
    level = blocks.mean.mean(axis=2)
    told = blocks.valid & (level < WHITE_FROM) & (level > BLACK_TO)
    margin = 3 * background.noise * (1 if background.dark else background.bright) + 0.05 * background.bright + 1
    return int((told & (difference < -margin)).sum()), int((told & (difference > margin)).sum())


def _fit(blocks: Blocks, flat: Mask, seed: Mask, *, dark: bool) -> Background:
    """A surface through the seed, and through all flat squares that it meets on the way."""
    y, x = blocks.places
    values = blocks.mean if dark else np.log(np.maximum(blocks.mean, 1))
    inside = seed
    least = 4.0 if dark else 0.03
    base, slopes = np.zeros(3), np.zeros((5, 3))
    for _ in range(6):
        base, slopes = _least_squares(_terms(y[inside], x[inside]), values[inside])
        if not dark:  # one lamp lights all channels
            slopes = np.repeat(slopes.mean(axis=1, keepdims=True), 3, axis=1)
        rest = values - (base + _terms(y, x) @ slopes)
        noise = float(np.median(np.abs(rest[inside]).max(axis=1))) * 1.5
        grown = flat & (np.abs(rest).max(axis=2) <= max(least, 3 * noise))
        if not grown.any() or np.array_equal(grown, inside):
            break
        inside = grown
    rest = (values - (base + _terms(y, x) @ slopes))[inside]
    within = blocks.spread[inside]
    pixel = within if dark else within / np.maximum(blocks.mean[inside].min(axis=1), 1)
    own = float(np.sqrt(np.mean(np.minimum(pixel, np.quantile(pixel, 0.95)) ** 2)))
    between = float(np.sqrt((rest**2).mean(axis=0)).max())
    noise = math.hypot(own, between)
    tints = rest - rest.mean(axis=1, keepdims=True)
    tint_noise = math.hypot(own if _coloured(blocks) else 0.0, float(np.sqrt((tints**2).mean(axis=0)).max()))
    # Squares of 2 px and more, each of its own noise, differ by half of it.
    structure = between * (1 if dark else float(np.exp(base).mean())) if between > 0.8 * own else 0.0
    return Background(dark, base, slopes, noise, tint_noise, float(inside.mean()), structure)


def _coloured(blocks: Blocks) -> bool:
    return bool(np.ptp(blocks.mean[blocks.valid], axis=1).max() > 1)


def _least_squares(terms: Floats, values: Floats) -> tuple[Floats, Floats]:
    """(3,) level and (5, 3) slopes of a surface; slopes are held back where the places are few or close together, as the surface goes on beyond them."""
    middle, level = terms.mean(axis=0), values.mean(axis=0)
    apart = terms - middle
    hold = np.eye(terms.shape[1]) * len(values) * STIFFNESS
    slopes = np.linalg.solve(apart.T @ apart + hold, apart.T @ (values - level))
    return level - middle @ slopes, slopes


def distances(pixels: Pixels, background: Background) -> NDArray[np.uint8]:
    """(h, w) uint8 how far each pixel is from the background on the side of tissue: 255 is `enough` times the least that counts, 0 none.

    On glass, the light absorbed in the channel that absorbs most (log of glass over pixel), or the difference between the channels that absorb most
    and least, which a wrong guess of the light leaves alone; on a dark ground, the light above it.
    """
    h, w = pixels.shape[:2]
    out = np.empty((h, w), np.uint8)
    x = (np.arange(w) + 0.5) / w * 2 - 1
    for row in range(h):
        clear = background.surface(np.full(w, (row + 0.5) / h * 2 - 1), x)
        if background.dark:
            steps = (pixels[row] - clear).max(axis=1) / max(LEAST_GLOW, 4 * background.noise)
        else:
            absorbed = clear - np.log(np.maximum(pixels[row], 1).astype(np.float64))
            most = absorbed.max(axis=1)
            tint = (most - absorbed.min(axis=1)) / max(LEAST_TINT, 4 * background.tint_noise)
            steps = np.maximum(most / max(LEAST_ABSORBED, 4 * background.noise), np.where(most > 0, tint, 0))
        out[row] = np.clip(steps * (255 / background.enough), 0, 255)
    return out
