"""What is laid over a slide: a code and a palette for each tile, or a small picture of the whole slide."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tilestream.models.pca import colours_of_scores, principal_colours
from tilestream.store.blocks import map_blocks
from tilestream.store.layout import STATUSES, vectors_place
from tilestream.store.slide_store import TISSUE
from tilestream.viewer.slide import Extent, Floats, ViewedSlide

T = TypeVar("T")

Colours = NDArray[np.uint8]

STATUS_COLOURS = ((0, 114, 178), (86, 180, 233), (213, 94, 0), (230, 159, 0), (204, 121, 167))
"""RGB of each of `STATUSES`."""

PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167), (51, 34, 136), (170, 68, 153),
    (153, 153, 51), (136, 34, 85), (221, 204, 119), (102, 102, 102), (17, 119, 51), (187, 204, 51), (255, 170, 187), (102, 37, 6), (136, 204, 238),
    (170, 170, 170), (0, 0, 0),
)  # fmt: skip
"""RGB of clusters and of classes that are drawn: told apart by people of every colour vision as far as so many can be."""

HEAT = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float64)
"""RGB from low to high, evenly spaced; dark to light, so that it reads without colour too."""

MIXED = ("context", "tokens")
"""What names of vectors begin with in which tiles know of each other."""

STEPS = 255
"""Codes of a value, from low to high."""

MASK_SIDE = 1024
"""Longest side of the picture of the tissue mask."""


@dataclass(frozen=True)
class Legend:
    """What colours mean."""

    words: str = ""
    entries: tuple[tuple[tuple[int, ...], str], ...] = ()
    """Colour and words of each class; the class of place k has code k + 1."""
    low: float | None = None
    """What code 1 stands for, where codes are values."""
    high: float | None = None
    """What the last code stands for."""

    def told(self) -> dict[str, Any]:
        """As the page reads it."""
        entries = [{"colour": list(colour[:3]), "words": words} for colour, words in self.entries]
        bar = [HEAT[k].astype(int).tolist() for k in range(len(HEAT))] if self.low is not None else None
        return {"words": self.words, "entries": entries, "low": self.low, "high": self.high, "bar": bar}


@dataclass(frozen=True)
class TileLayer:
    """Colours of tiles."""

    codes: Colours
    """(n,) row of the palette of each tile, 0 is clear; or (n, 4) RGBA where there is no palette."""
    legend: Legend
    palette: Colours = field(default_factory=lambda: np.zeros((0, 4), np.uint8))
    """(m, 4) RGBA."""

    @property
    def rgba(self) -> Colours:
        """(n, 4) colours."""
        colours: Colours = self.palette[self.codes] if self.codes.ndim == 1 else self.codes
        return colours


@dataclass(frozen=True)
class PictureLayer:
    """A picture and where it lies."""

    rgba: Colours
    """(h, w, 4)."""
    extent: Extent
    legend: Legend


def _palette(colours: Any) -> Colours:
    """Clear, then each colour."""
    rgb = np.asarray(colours, np.uint8).reshape(-1, 3)
    return np.concatenate([np.zeros((1, 4), np.uint8), np.column_stack([rgb, np.full(len(rgb), 255, np.uint8)])])


def _opaque(rgb: Colours, shown: NDArray[np.bool_]) -> Colours:
    return np.concatenate([rgb, np.where(shown, 255, 0).astype(np.uint8)[..., None]], axis=-1)


def class_layer(codes: NDArray[Any], colours: Any, words: list[str], about: str = "") -> TileLayer:
    """Tiles by class: code 0 is none, code k class k - 1."""
    entries = tuple((tuple(int(v) for v in colour), name) for colour, name in zip(colours, words, strict=True))
    return TileLayer(codes.astype(np.uint8), Legend(about, entries), _palette([colour for colour, _ in entries]))


def value_layer(values: NDArray[Any], about: str) -> TileLayer:
    """Tiles by a value, dark to light between the 1st and 99th percentile; clear where it is not finite."""
    values = np.asarray(values, np.float32)
    seen = np.isfinite(values)
    low, high = (float(v) for v in np.percentile(values[seen], [1, 99])) if seen.any() else (0.0, 1.0)
    place = np.clip((np.where(seen, values, low) - low) / max(high - low, 1e-9), 0, 1)
    codes = np.where(seen, 1 + np.rint(place * (STEPS - 1)), 0).astype(np.uint8)
    at = np.linspace(0, len(HEAT) - 1, STEPS)
    heat = np.stack([np.interp(at, np.arange(len(HEAT)), HEAT[:, k]) for k in range(3)], axis=1)
    return TileLayer(codes, Legend(about if seen.any() else f"{about}: not known", low=low, high=high), _palette(heat))


def status_layer(status: NDArray[np.int8]) -> TileLayer:
    """Tiles by status; clear where a tile is not written yet."""
    words = [f"{name} {int((status == code).sum()):,}" for code, name in enumerate(STATUSES)]
    return class_layer(status.astype(np.int64) + 1, STATUS_COLOURS, words)


def component_layer(scores: Floats, good: NDArray[np.bool_]) -> TileLayer:
    """Tiles by (n, k) scores: the first three components."""
    words = "first three principal components as red, green, blue: like colours, like tiles"
    return TileLayer(_opaque(colours_of_scores(scores[:, :3].astype(np.float32)), good), Legend(words))


def cluster_layer(groups: NDArray[np.int64]) -> TileLayer:
    """Tiles by group; clear where a tile has none."""
    counts = np.bincount(groups[groups >= 0], minlength=1)
    colours = [PALETTE[k % len(PALETTE)] for k in range(len(counts))]
    return class_layer(groups + 1, colours, [f"{k + 1}: {count:,}" for k, count in enumerate(counts.tolist())])


def tissue_layer(slide: ViewedSlide) -> TileLayer | PictureLayer:
    """The tissue mask over the whole image; where none is stored, the fraction of each tile."""
    raw, what = slide.folder.get(TISSUE), slide.mask_word
    if raw is None:
        known = bool(np.isfinite(slide.tissue).any())
        return value_layer(slide.tissue, f"{what} in each tile" if known else f"no {what} was looked for")
    with Image.open(io.BytesIO(raw)) as opened:
        mask = opened.convert("L")
    mask.thumbnail((MASK_SIDE, MASK_SIDE), Image.Resampling.NEAREST)
    inside = np.asarray(mask) > 0
    rgb = np.broadcast_to(np.array([0, 158, 115], np.uint8), (*inside.shape, 3))
    return PictureLayer(
        _opaque(rgb, inside), Extent.of(slide.size), Legend("", (((0, 158, 115), f"{what}: {inside.mean():.0%} of the image"),))
    )


def similarity_layer(similar: Floats) -> TileLayer:
    """(n,) cosines."""
    return value_layer(similar, "cosine to the marked tile")


def attention_layer(slide: ViewedSlide) -> TileLayer:
    """The share of each tile in the slide's vector, mean over heads."""
    assert slide.attention is not None, "it is offered only where there is one"
    shares = np.asarray(slide.attention[:], np.float32).mean(axis=1)
    return value_layer(np.where(slide.good, shares, np.nan), "attention: share in the slide's vector")


def mixed_vectors(slide: ViewedSlide) -> list[str]:
    """Which vectors a finished slide's tiles have beside their embeddings, by their names in the store: contexts, and tokens of slide encoders."""
    named = [what for what in slide.named_vectors if what.startswith(MIXED)]
    return [what for what in (*MIXED, *named) if slide.finished and slide.has(str(vectors_place(what)))]


def mixed_layer(slide: ViewedSlide, what: str) -> TileLayer:
    """Tiles by their contexts or tokens: the first three principal components."""
    colours = principal_colours(partial(map_blocks, slide.vectors(what)), slide.layout.tiles)
    return TileLayer(_opaque(colours, slide.good), Legend(f"{what}: first three principal components as red, green, blue"))


def window_sides(slide: ViewedSlide) -> list[int]:
    """Sides, in tokens, of the window vectors that are stored; small first."""
    sides = (slide.recipe.get("windows") or {}).get("sides", [])
    return sorted(side for side in sides if slide.finished and slide.has(f"windows/{side}"))


def window_layer(slide: ViewedSlide, side: int) -> PictureLayer:
    """Vectors of the windows of one side as colours: their first three principal components."""
    stored = slide.windows(side)
    rows, cols = stored.shape[:2]

    def each(work: Callable[[Floats, int], T], skip: int) -> Iterator[T]:
        for row in range(0, rows, skip + 1):
            yield work(np.asarray(stored[row], np.float32), row * cols)

    seen = np.concatenate(list(each(lambda block, _: np.isfinite(block).all(axis=1), 0)))
    rgba = _opaque(principal_colours(each, rows * cols), seen).reshape(rows, cols, 4)
    l0_side = float(stored.attrs["side_l0_px"])  # type: ignore[arg-type]
    words = f"windows of {side} tokens: first three principal components as red, green, blue"
    return PictureLayer(rgba, Extent(0.0, 0.0, rows * l0_side, cols * l0_side), Legend(words))
