"""Which pixels of a raster drawn regions cover: as tissue, or class by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from tilestream.config.schema import Tissue
from tilestream.config.types import composed
from tilestream.errors import InputError
from tilestream.tiles.annotations.geojson import CLASS_KEYS, ENDINGS, read_geojson
from tilestream.tiles.annotations.markup import read_markup
from tilestream.tiles.annotations.raster import Canvas, Mask
from tilestream.tiles.annotations.shapes import Shape

GEOJSON = ENDINGS
MARKUP = (".xml",)

NAMELESS = "polygons without a class"
"""What no class can be learned from, in words."""

MOST_CLASSES = 64
"""Classes that are drawn apart at once."""


def is_drawn(path: Path) -> bool:
    """Whether a file holds polygons, by its name; others are pictures."""
    return path.name.lower().endswith(GEOJSON + MARKUP)


def read_shapes(path: Path) -> Iterator[Shape]:
    """The regions of a file, in its order.

    Raises
    ------
    InputError
        Naming the file and the place in it.
    """
    shapes = read_markup(path) if path.name.lower().endswith(MARKUP) else read_geojson(path)
    return (replace(shape, name=composed(shape.name)) for shape in shapes)


def taken(name: str, tissue: Tissue) -> bool | None:
    """Whether polygons of a class are tissue (True), are cut out of it (False), or do not count (None)."""
    if _matches(name, tissue.exclude) and name.casefold() not in {pattern.casefold() for pattern in tissue.include}:
        return False
    return True if not tissue.include or _matches(name, tissue.include) else None


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name.casefold(), composed(pattern).casefold()) for pattern in patterns)


def draw_tissue(
    path: Path, tissue: Tissue, shape: tuple[int, int], downsample: float, corner: tuple[float, float] = (0.0, 0.0)
) -> tuple[Mask, tuple[str, ...]]:
    """(h, w) bool: what polygons of the classes that count cover, less what polygons of excluded classes cover; and what may be wrong, in words.

    Parameters
    ----------
    path : Path
        GeoJSON or XML.
    tissue : Tissue
        Which classes count.
    shape : tuple
        Rows and columns of the raster.
    downsample : float
        Level-0 px per px of the raster.
    corner : tuple
        Level-0 y, x of the place from which the file counts.

    Raises
    ------
    InputError
        The file is malformed, or no polygon that counts lies in the image; names the file.
    """
    inside, outside = (Canvas(shape, downsample, corner) for _ in range(2))
    seen: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for region in read_shapes(path):
        left_out.update(region.left_out)
        if not region.polygons:
            continue
        seen[region.name] += len(region.polygons)
        counts = taken(region.name, tissue)
        if counts is not None:
            (inside if counts else outside).add(region)
    if not any(taken(name, tissue) for name in seen):
        raise InputError(
            f"{path} has {_no_polygons(seen)}{_nothing(left_out)}. Draw the tissue, or choose classes by tiles.tissue.include and exclude."
        )
    mask = inside.mask()
    if not mask.any():
        height, width = (round(side * downsample) for side in shape)
        raise InputError(
            f"{path}: of its polygons ({sum(seen.values())}) none that counts lies inside the image of {width} x {height} level-0 px. "
            "Is it another slide's? Polygons are in px of full resolution; those that count from OpenSlide's bounds need tiles.tissue.in_bounds."
        )
    mask &= ~outside.mask()
    told = (f"{path.name}: left out for covering nothing: {_counted(left_out)}.",) if left_out else ()
    return mask, (*_unused(tissue, seen), *told)


def _unused(tissue: Tissue, seen: Counter[str]) -> Iterator[str]:
    """Which of the names that were given are the class of no polygon: a slip of the pen leaves in what was to be cut out."""
    for key, patterns in (("include", tissue.include), ("exclude", tissue.exclude)):
        if patterns == Tissue.model_fields[key].default:
            continue
        idle = [pattern for pattern in patterns if not any(_matches(name, (pattern,)) for name in seen)]
        if idle:
            yield f"tiles.tissue.{key}: no polygon has the class {', '.join(idle)}; there are {_classes(seen)}."


def _no_polygons(seen: Counter[str]) -> str:
    return f"no polygon of a class that counts; it has {_classes(seen)}" if seen else "no polygon"


def _nothing(left_out: Counter[str]) -> str:
    return f", but what covers nothing: {_counted(left_out)}" if left_out else ""


def _counted(left_out: Counter[str]) -> str:
    return ", ".join(f"{words} ({count})" for words, count in left_out.most_common())


def _classes(seen: Counter[str]) -> str:
    """Classes and how many polygons each has; where none has one, where one would stand."""
    if set(seen) == {""}:
        return f"no class ({seen['']}): GeoJSON has one in the property classification, {', '.join(CLASS_KEYS[:-1])} or {CLASS_KEYS[-1]}"
    return ", ".join(f"{name or 'no class'} ({count})" for name, count in seen.most_common(8))


def draw_classes(
    path: Path, shape: tuple[int, int], downsample: float, corner: tuple[float, float] = (0.0, 0.0), doubtful: Counter[str] | None = None
) -> dict[str, Mask]:
    """What each class covers, (h, w) bool by its name; polygons of several classes may lie over one another.

    With `tile_fractions` of each mask, a tile gets the class that covers enough of it. Polygons without a class are under "". `doubtful` is
    given, in words, what covers nothing and what has no class, and how many of each there are.

    Memory bound: 5 bytes a pixel and class.

    Raises
    ------
    InputError
        The file is malformed, or has more than `MOST_CLASSES` classes.
    """
    canvases: dict[str, Canvas] = {}
    found: Counter[str] = Counter() if doubtful is None else doubtful
    for region in read_shapes(path):
        found.update(region.left_out)
        found.update([] if region.name else [NAMELESS] * len(region.polygons))
        if not region.polygons:
            continue
        if region.name not in canvases and len(canvases) == MOST_CLASSES:
            raise InputError(f"{path} has more than {MOST_CLASSES} classes: {', '.join([*canvases][:8])}, ... Name fewer.")
        canvases.setdefault(region.name, Canvas(shape, downsample, corner)).add(region)
    return {name: canvas.mask() for name, canvas in canvases.items()}
