"""Classes of tiles: those of their slide, or of the regions that people drew over them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tilestream.config.fit_schema import FitConfig
from tilestream.errors import InputError
from tilestream.fitting.splits import Ints, join_groups
from tilestream.fitting.targets import Cases
from tilestream.store.slide import Slide
from tilestream.tiles.annotations.cover import draw_classes
from tilestream.tiles.tissue import tile_fractions

PIXELS_A_TILE = 16
"""Side of a tile, in pixels of the raster on which regions are drawn: parts of it are known to about 1 %."""


def annotation_file(pattern: str, slide: str) -> Path | None:
    """The file of drawn regions of a slide: by a pattern with `{slide}`, or in a folder; None where there is none."""
    if "{slide}" in pattern:
        path = Path(pattern.replace("{slide}", slide))
        return path if path.is_file() else None
    endings = (".geojson", ".json", ".geojson.gz", ".json.gz", ".xml")
    return next((path for ending in endings if (path := Path(pattern) / f"{slide}{ending}").is_file()), None)


def draw_tile_classes(slide: Slide, path: Path, min_fraction: float, chosen: Sequence[str] = ()) -> tuple[list[str], Ints]:
    """The classes of a file, and (n,) which of them each tile has; -1 where none covers `min_fraction` of it, or several do.

    Memory bound: 5 bytes for each pixel of a raster with `PIXELS_A_TILE` a tile, and class.

    Raises
    ------
    InputError
        The file is malformed, or the slide's tiles lie on no grid.
    """
    grid = slide.grid()
    downsample = max(1.0, slide.l0_extent / PIXELS_A_TILE)
    shape = (max(1, round(slide.size.height / downsample)), max(1, round(slide.size.width / downsample)))
    masks = {name: mask for name, mask in draw_classes(path, shape, downsample).items() if name and (not chosen or name in chosen)}
    row, col = (slide.read_column(name).astype(np.int64) for name in ("row", "col"))
    names = sorted(masks)
    label = np.full(slide.layout.tiles, -1, np.int64)
    owners = np.zeros(slide.layout.tiles, np.int64)
    for k, name in enumerate(names):
        covered = tile_fractions(masks[name], downsample, grid, row, col) >= min(min_fraction, 1 - 1e-6)
        label[covered] = k
        owners += covered
    label[owners > 1] = -1
    return names, label


def label_tiles(config: FitConfig, cases: Cases) -> tuple[Cases, list[Ints]]:
    """The cases that have labelled tiles, with all their classes, and the class of each tile of each, -1 where it has none.

    Raises
    ------
    InputError
        No tile has a class, all have one, or a class lies in one fold only.
    """
    target = config.target
    if target.annotations is None:
        good = [np.where(slide.read_good(), label, -1) for slide, label in zip(cases.slides, cases.label.tolist(), strict=True)]
        return cases, good
    files = {slide.id: annotation_file(target.annotations, slide.id) for slide in cases.slides}
    drawn = {
        slide.id: draw_tile_classes(slide, path, target.min_fraction, target.classes)
        for slide in cases.slides if (path := files[slide.id]) is not None
    }  # fmt: skip
    if not drawn:
        ids = ", ".join(slide.id for slide in cases.slides[:3])
        raise InputError(f"target.annotations: {target.annotations} has no file for any slide of the embeddings ({ids}, ...).")
    classes = target.classes or tuple(sorted(set(itertools.chain.from_iterable(names for names, _ in drawn.values()))))
    kept = [i for i, slide in enumerate(cases.slides) if slide.id in drawn]
    labels = [_renumbered(cases.slides[i], *drawn[cases.slides[i].id], classes) for i in kept]
    left = tuple(f"{slide.id}: no annotations" for slide in cases.slides if slide.id not in drawn)
    some = _subset(cases, kept, classes, cases.left_out + left)
    counts = np.array([[int((label == k).sum()) for k in range(len(classes))] for label in labels])
    if len(classes) < 2 or (counts.sum(axis=0) > 0).sum() < 2:
        there = ", ".join(f"{name} {count}" for name, count in zip(classes, counts.sum(axis=0).tolist(), strict=True)) or "none"
        raise InputError(
            f"target.annotations: tiles by class: {there}. It takes two classes with tiles that {target.min_fraction:.0%} of one covers."
        )
    return some, labels


def _renumbered(slide: Slide, names: Sequence[str], label: Ints, classes: Sequence[str]) -> Ints:
    """Labels by the classes of all slides, without tiles that failed."""
    places = np.array([classes.index(name) for name in names] + [-1])
    return np.where(slide.read_good(), places[label], -1)


def _subset(cases: Cases, kept: Sequence[int], classes: tuple[str, ...], left_out: tuple[str, ...]) -> Cases:
    at = np.asarray(kept)
    return Cases(
        tuple(cases.slides[i] for i in kept), tuple(cases.patients[i] for i in kept), cases.by_patient, join_groups(cases.group[at].tolist()),
        cases.fold[at], cases.task, classes, cases.label[at], cases.value[at], cases.died[at], left_out,
    )  # fmt: skip
