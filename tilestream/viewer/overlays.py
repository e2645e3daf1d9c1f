"""What is laid over a slide: small RGBA pictures, one pixel a tile, window or thumbnail pixel."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tilestream.models.pca import colours_of_scores, principal_colours
from tilestream.store.blocks import map_blocks
from tilestream.store.layout import STATUSES, vectors_place
from tilestream.store.slide_store import TISSUE
from tilestream.viewer.slide import Extent, Floats, PlaceMap, ViewedSlide

T = TypeVar("T")

Colours = NDArray[np.uint8]

STATUS_COLOURS = ((70, 120, 220), (40, 170, 190), (220, 40, 40), (240, 140, 20), (170, 40, 180))
"""RGB of each of `STATUSES`."""

PALETTE = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75), (227, 119, 194), (188, 189, 34), (23, 190, 207),
    (127, 127, 127), (57, 59, 121), (206, 219, 156), (132, 60, 57), (231, 186, 82), (123, 65, 115), (107, 174, 214), (253, 174, 107), (116, 196, 118),
    (158, 154, 200), (189, 158, 57),
)  # fmt: skip
"""RGB of clusters."""

HEAT = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float64)
"""RGB from low to high, evenly spaced; dark to light, so that it reads without colour too."""

MIXED = ("context", "tokens")
"""What names of vectors begin with in which tiles know of each other."""

MASK_SIDE = 1024
"""Longest side of the picture of the tissue mask."""


@dataclass(frozen=True)
class Overlay:
    """A picture and where it lies."""

    rgba: NDArray[np.uint32]
    """(h, w) red in the lowest byte, alpha in the highest."""
    extent: Extent
    words: str
    """What the colours mean, or why there are none."""


def on_places(places: PlaceMap, colours: Colours, words: str) -> Overlay:
    """The overlay that shows (n, 4) uint8 RGBA colours of tiles where the tiles lie."""
    table = np.concatenate([colours, np.zeros((1, 4), np.uint8)])  # -1 picks the last row: no tile
    rgba = np.ascontiguousarray(table[places.tile]).view(np.uint32)[..., 0]
    return Overlay(rgba, places.extent, words)


def _opaque(rgb: Colours, shown: NDArray[np.bool_]) -> Colours:
    return np.concatenate([rgb, np.where(shown, 255, 0).astype(np.uint8)[:, None]], axis=1)


def status_colours(status: NDArray[np.int8]) -> Colours:
    """(n, 4) RGBA by status; clear where a tile is not written yet."""
    return _opaque(np.array([*STATUS_COLOURS, (0, 0, 0)], np.uint8)[status], status >= 0)


def status_words(status: NDArray[np.int8]) -> str:
    """Counts by status, as words."""
    return ", ".join(f"{name} {int((status == code).sum()):,}" for code, name in enumerate(STATUSES) if (status == code).any())


def component_colours(scores: Floats, good: NDArray[np.bool_]) -> Colours:
    """(n, 4) RGBA of (n, k) scores: the first three components."""
    return _opaque(colours_of_scores(scores[:, :3].astype(np.float32)), good)


def cluster_colours(groups: NDArray[np.int64]) -> Colours:
    """(n, 4) RGBA by group; clear where a tile has none."""
    return _opaque(np.array(PALETTE, np.uint8)[groups % len(PALETTE)], groups >= 0)


def heat_colours(values: Floats) -> tuple[Colours, float, float]:
    """(n, 4) RGBA from dark to light between the 1st and 99th percentile, and these two; clear where a value is not finite."""
    seen = np.isfinite(values)
    low, high = (float(v) for v in np.percentile(values[seen], [1, 99])) if seen.any() else (0.0, 1.0)
    place = np.clip((np.where(seen, values, low) - low) / max(high - low, 1e-9), 0, 1) * (len(HEAT) - 1)
    rgb = np.stack([np.interp(place, np.arange(len(HEAT)), HEAT[:, k]) for k in range(3)], axis=1).astype(np.uint8)
    return _opaque(rgb, seen), low, high


def lit_colours(count: int, lit: NDArray[np.int64]) -> Colours:
    """(n, 4) RGBA: the tiles of a selection cyan, which neither stains nor `HEAT` have; the rest clear."""
    colours = np.zeros((count, 4), np.uint8)
    colours[lit] = (0, 240, 255, 255)
    return colours


def tissue_overlay(slide: ViewedSlide, places: PlaceMap) -> Overlay:
    """The tissue mask over the whole image; where none is stored, the fraction of each tile."""
    raw, what = slide.folder.get(TISSUE), "data" if slide.source.get("geo") else "tissue"
    if raw is not None:
        with Image.open(io.BytesIO(raw)) as opened:
            mask = opened.convert("L")
        mask.thumbnail((MASK_SIDE, MASK_SIDE), Image.Resampling.NEAREST)
        inside = np.asarray(mask) > 0
        rgba = np.where(inside, np.array([0, 150, 70, 255], np.uint8).view(np.uint32)[0], np.uint32(0)).astype(np.uint32)
        return Overlay(rgba, Extent.of(slide.size), f"{what}: {inside.mean():.0%} of the image")
    colours, low, high = heat_colours(slide.tissue)
    known = bool(np.isfinite(slide.tissue).any())
    return on_places(places, colours, f"{what} of a tile, {low:.2f} to {high:.2f}" if known else f"no {what} was looked for")


def similarity_overlay(similar: Floats, places: PlaceMap) -> Overlay:
    """(n,) cosines as dark to light."""
    colours, low, high = heat_colours(similar)
    return on_places(places, colours, f"cosine to the marked tile, {low:.2f} (dark) to {high:.2f} (light)")


def attention_overlay(slide: ViewedSlide, places: PlaceMap) -> Overlay | None:
    """The share of each tile in the slide's vector, mean over heads; None where the pool has no attention."""
    attention = slide.attention
    if attention is None:
        return None
    shares = np.asarray(attention[:], np.float32).mean(axis=1)
    colours, low, high = heat_colours(np.where(slide.good, shares, np.nan).astype(np.float32))
    return on_places(places, colours, f"attention, {low:.2e} to {high:.2e} of the slide's vector")


def mixed_vectors(slide: ViewedSlide) -> list[str]:
    """Which vectors a finished slide's tiles have beside their embeddings, by their names in the store: contexts, and tokens of slide encoders."""
    named = [what for what in slide.named_vectors if what.startswith(MIXED)]
    return [what for what in (*MIXED, *named) if slide.finished and slide.has(str(vectors_place(what)))]


def mixed_overlay(slide: ViewedSlide, what: str, places: PlaceMap) -> Overlay:
    """Contexts or tokens of tiles as colours: their first three principal components."""
    colours = principal_colours(partial(map_blocks, slide.vectors(what)), slide.layout.tiles)
    return on_places(places, _opaque(colours, slide.good), f"{what}: first three principal components as colours")


def window_sides(slide: ViewedSlide) -> list[int]:
    """Sides, in tokens, of the window vectors that are stored; small first."""
    sides = (slide.recipe.get("windows") or {}).get("sides", [])
    return sorted(side for side in sides if slide.finished and slide.has(f"windows/{side}"))


def window_overlay(slide: ViewedSlide, side: int) -> Overlay:
    """Vectors of the windows of one side as colours: their first three principal components."""
    stored = slide.windows(side)
    rows, cols = stored.shape[:2]

    def each(work: Callable[[Floats, int], T], skip: int) -> Iterator[T]:
        for row in range(0, rows, skip + 1):
            yield work(np.asarray(stored[row], np.float32), row * cols)

    seen = np.concatenate(list(each(lambda block, _: np.isfinite(block).all(axis=1), 0)))
    rgba = _opaque(principal_colours(each, rows * cols), seen).view(np.uint32).reshape(rows, cols)
    l0_side = float(stored.attrs["side_l0_px"])  # type: ignore[arg-type]
    return Overlay(rgba, Extent(0.0, 0.0, rows * l0_side, cols * l0_side), f"windows of {side} tokens: first three principal components")
