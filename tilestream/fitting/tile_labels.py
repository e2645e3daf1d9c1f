"""Classes of tiles: those of their slide, or of the regions that people drew over them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from skimage import measure

from tilestream.config.fit_schema import FitConfig
from tilestream.errors import InputError
from tilestream.fitting.labels import in_order, refuse_alike
from tilestream.fitting.targets import Cases, Ints, annotation_file
from tilestream.fitting.training.features import Labels
from tilestream.store.cohort import some
from tilestream.store.heads.columns import NOT_COMPUTED
from tilestream.store.slide import Slide
from tilestream.tiles.annotations.cover import draw_classes
from tilestream.tiles.tissue import tile_fractions

PIXELS_A_TILE = 16
"""Side of a tile, in pixels of the raster on which regions are drawn: parts of it are known to about 1 %."""


class Doubtful:
    """What was drawn on slides and labels no tile, for people to hear of."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, int]] = {}

    def note(self, slide: str, counts: Mapping[str, int]) -> None:
        """Take up how many of each kind a slide has, by words on the kind."""
        for words, count in counts.items():
            self._found.setdefault(words, {})[slide] = count

    def words(self) -> tuple[str, ...]:
        """A sentence on each kind."""
        return tuple(
            f"Left out of the annotations: {words}, {sum(counts.values())} on {len(counts)} slide{'s' if len(counts) > 1 else ''} "
            f"({some([*counts])})."
            for words, counts in self._found.items()
        )


def draw_tile_classes(
    slide: Slide, path: Path, min_fraction: float, chosen: Sequence[str] = (), doubtful: Doubtful | None = None
) -> tuple[list[str], Labels]:
    """The classes of a file, and (n,) which of them each tile has; -1 where none covers `min_fraction` of it, or several do.

    `doubtful` takes up polygons that cover nothing, or nothing of the image, and those that have no class.

    Memory bound: 5 bytes for each pixel of a raster with `PIXELS_A_TILE` a tile, and class.

    Raises
    ------
    InputError
        The file is malformed, or the slide's tiles lie on no grid.
    """
    grid = slide.grid()
    downsample = max(1.0, slide.l0_extent / PIXELS_A_TILE)
    shape = (max(1, round(slide.size.height / downsample)), max(1, round(slide.size.width / downsample)))
    counts: Counter[str] = Counter()
    drawn = draw_classes(path, shape, downsample, doubtful=counts)
    masks = {name: mask for name, mask in drawn.items() if name and (not chosen or name in chosen)}
    counts.update(f"all polygons of the class {name!r}, which lie outside of the image" for name, mask in masks.items() if not mask.any())
    if doubtful is not None:
        doubtful.note(slide.id, counts)
    row, col = (slide.read_column(name).astype(np.int64) for name in ("row", "col"))
    names = sorted(masks)
    label = np.full(slide.layout.tiles, -1, np.int16)
    owners = np.zeros(slide.layout.tiles, np.int16)
    for k, name in enumerate(names):
        covered = tile_fractions(masks[name], downsample, grid, row, col) >= min(min_fraction, 1 - 1e-6)
        label[covered] = k
        owners += covered
    label[owners > 1] = -1
    return names, label


def label_tiles(config: FitConfig, cases: Cases) -> tuple[Cases, list[Labels]]:
    """The cases that have labelled tiles, with all their classes, and the class of each tile of each, -1 where it has none.

    Raises
    ------
    InputError
        No tile has a class, all have one, or a class lies in one fold only.
    """
    target = config.target
    if cases.classes:
        good = [
            np.where(slide.read_good(), label, -1).astype(np.int16) for slide, label in zip(cases.slides, cases.label.tolist(), strict=True)
        ]
        return cases, good
    drawn: dict[str, tuple[list[str], Labels]] = {}
    doubtful = Doubtful()
    for slide in cases.slides:
        if target.annotations is None:
            drawn[slide.id] = _answered(slide, str(target.obs), target.classes)
        elif (path := annotation_file(target.annotations, slide.id)) is not None:
            drawn[slide.id] = draw_tile_classes(slide, path, target.min_fraction, target.classes, doubtful)
    refuse_alike(
        itertools.chain.from_iterable(names for names, _ in drawn.values()),
        f"target.{'obs' if target.annotations is None else 'annotations'}",
    )
    classes = target.classes or tuple(in_order(itertools.chain.from_iterable(names for names, _ in drawn.values())))
    labels = [_renumbered(slide, *drawn[slide.id], classes) for slide in cases.slides]
    counts = np.array([[int((label == k).sum()) for k in range(len(classes))] for label in labels])
    if len(classes) < 2 or (counts.sum(axis=0) > 0).sum() < 2:
        there = ", ".join(f"{name} {count}" for name, count in zip(classes, counts.sum(axis=0).tolist(), strict=True)) or "none"
        wanted = f" that {target.min_fraction:.0%} of one covers" if target.annotations is not None else ""
        key = "annotations" if target.annotations is not None else "obs"
        raise InputError(" ".join([f"target.{key}: tiles by class: {there}. It takes two classes with tiles{wanted}.", *doubtful.words()]))
    return replace(cases, classes=classes, told=(*cases.told, *doubtful.words())), labels


def _answered(slide: Slide, head: str, chosen: Sequence[str]) -> tuple[list[str], Labels]:
    """The classes that a head gave the tiles of a slide, and (n,) which of them each has; -1 where it gave none."""
    found = slide.read_head_classes(head)
    names = [name for name in map(str, found.categories) if name != NOT_COMPUTED and (not chosen or name in chosen)]
    code = np.array([names.index(name) if name in names else -1 for name in map(str, found.categories)], np.int16)
    return names, code[np.asarray(found.codes)]


def number_regions(slides: Sequence[Slide], case: Ints, row: Ints, label: Ints) -> Ints:
    """(m,) number of the region of each labelled tile: tiles of one slide and class that touch, at corners too, through others."""
    found = np.zeros(len(case), np.int64)
    first = 0
    for i in np.unique(case).tolist():
        places = [slides[i].read_column(name).astype(np.int64) for name in ("row", "col")]
        for k in np.unique(label[case == i]).tolist():
            own = np.flatnonzero((case == i) & (label == k))
            y, x = (axis[row[own]] for axis in places)
            mask = np.zeros((y.max() + 1, x.max() + 1), np.bool_)
            mask[y, x] = True
            numbers, count = measure.label(mask, connectivity=2, return_num=True)
            found[own] = first + numbers[y, x] - 1
            first += count
    return found


def _renumbered(slide: Slide, names: Sequence[str], label: Labels, classes: Sequence[str]) -> Labels:
    """Labels by the classes of all slides, without tiles that failed."""
    places = np.array([classes.index(name) for name in names] + [-1], np.int16)
    return np.where(slide.read_good(), places[label], np.int16(-1))
