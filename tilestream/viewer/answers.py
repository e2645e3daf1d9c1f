"""What heads answered, over a slide: classes and densities of tiles as pictures, objects as tiles of the deep zoom."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tilestream.interop.objects.label_polygons import l0_step_of, labels_path
from tilestream.store.heads.columns import COUNTS
from tilestream.store.heads.palette import Colour, class_colours
from tilestream.store.heads.shapes import ShapeRows, ShapesFile, shapes_key
from tilestream.store.layout import TILES
from tilestream.store.slide import Slide
from tilestream.viewer.deepzoom import SIDE, Zoom
from tilestream.viewer.overlays import TileLayer, class_layer, value_layer
from tilestream.viewer.slide import ViewedSlide

CLASSES, DENSITY, OBJECTS, LABELS = "classes: ", "density: ", "objects: ", "labels: "
"""How the names of the overlays begin; the name of the head follows."""

MOST_LABELS = 4_000_000
"""Px of a label image that are counted for its legend."""

OUTLINES = 4.0
"""Level-0 px per px of a picture up to which objects have outlines; beyond, each is a dot."""


def head_overlays(slide: Slide) -> list[str]:
    """The overlays that a slide's heads have."""
    found = []
    for name in slide.heads:
        if slide.has(f"{TILES}/obs/{name}"):
            found.append(CLASSES + name)
        if slide.folder.exists(shapes_key(name)):
            found += [OBJECTS + name, DENSITY + name]
        if has_labels(slide, name):
            found.append(LABELS + name)
    return found


def has_labels(slide: Slide, head: str) -> bool:
    """Whether a head has left a label image of classes."""
    return slide.has(labels_path(head)) and slide.head_answer(head).task == "classification"


def answer_layer(slide: ViewedSlide, head: str) -> TileLayer:
    """The class of each tile; clear where there is none."""
    codes = np.asarray(slide.array(f"{TILES}/obs/{head}/codes")[:], np.int64)
    coloured = class_counts(slide, CLASSES + head)
    return class_layer(codes, [colour for colour, _ in coloured], [words for _, words in coloured])


def density_layer(slide: ViewedSlide, head: str) -> TileLayer:
    """Objects by area of each tile, or their number where the slide has no scale."""
    known = slide.mpp is not None
    values = np.asarray(slide.array(f"{TILES}/obs/{head}{COUNTS[1 if known else 0]}")[:], np.float32)
    return value_layer(values, f"{head}: objects {'a mm²' if known else 'a tile'}")


def class_counts(slide: Slide, chosen: str) -> list[tuple[Colour, str]]:
    """Colour and words of each class of an overlay of classes or objects, with how many there are."""
    kind, head = chosen.partition(": ")[0] + ": ", chosen.partition(": ")[2]
    classes = slide.head_answer(head).classes
    if kind == LABELS:
        shares = [f"{name} {share:.1%}" for name, share in zip(classes, label_shares(slide, head), strict=True)]
        return list(zip(class_colours(len(classes)), shares, strict=True))
    if kind == CLASSES:
        counts = np.bincount(np.asarray(slide.array(f"{TILES}/obs/{head}/codes")[:], np.int64), minlength=len(classes) + 1)[1:]
    else:
        counts = np.array(object_counts(slide, head))
    return [
        (colour, f"{name} {count:,}") for colour, name, count in zip(class_colours(len(classes)), classes, counts.tolist(), strict=True)
    ]


def object_counts(slide: Slide, head: str) -> list[int]:
    """Objects of each class of a head."""
    file = ShapesFile.of(slide.folder, head)
    return file.class_counts()


def label_shares(slide: Slide, head: str) -> list[float]:
    """Share of each class in what a label image covers, from a level of it that has at most `MOST_LABELS` px."""
    level = 0
    while math.prod((labels := slide.array(f"labels/{head}/{level}")).shape) > MOST_LABELS and slide.has(f"labels/{head}/{level + 1}"):
        level += 1
    counts = np.bincount(np.asarray(labels[:]).ravel(), minlength=len(slide.head_answer(head).classes) + 1)[1:]
    return [float(share) for share in counts / max(1, counts.sum())]


def draw_answer_tile(slide: Slide, head: str, address: tuple[int, int, int]) -> bytes | None:
    """PNG of (level, column, row) of the deep zoom: the objects there, or the labels, clear elsewhere; None for an address that is no tile."""
    return (draw_label_tile if has_labels(slide, head) else draw_object_tile)(slide, head, address)


def draw_label_tile(slide: Slide, head: str, address: tuple[int, int, int]) -> bytes | None:
    """The same of the label image: the class at the middle of each px, from the level that is as fine.

    Memory bound: a tile of labels.
    """
    zoom = Zoom(slide.size)
    shape = zoom.shape(*address)
    if shape is None:
        return None
    level, col, row = address
    scale, step, finest = float(zoom.scale(level)), l0_step_of(slide, head), 0
    while scale >= 2 * step and slide.has(f"labels/{head}/{finest + 1}"):
        finest, step = finest + 1, step * 2
    labels = slide.array(f"labels/{head}/{finest}")
    places = [
        np.floor((np.arange(side) + start * SIDE + 0.5) * scale / step).astype(np.int64)
        for start, side in zip((row, col), shape, strict=True)
    ]
    found = np.zeros(shape, np.uint8)
    inside = [at < side for at, side in zip(places, labels.shape, strict=True)]
    y, x = (at[within] for at, within in zip(places, inside, strict=True))
    if len(y) and len(x):
        part = np.asarray(labels[y[0] : y[-1] + 1, x[0] : x[-1] + 1])
        found[: len(y), : len(x)] = part[y - y[0]][:, x - x[0]]
    table = np.zeros((256, 4), np.uint8)
    colours = class_colours(len(slide.head_answer(head).classes))
    table[1 : len(colours) + 1] = [(*colour, 255) for colour in colours]
    out = io.BytesIO()
    Image.fromarray(table[found]).save(out, "PNG", compress_level=1)
    return out.getvalue()


def draw_object_tile(slide: Slide, head: str, address: tuple[int, int, int]) -> bytes | None:
    """PNG of (level, column, row) of the deep zoom: the objects there, clear elsewhere; None for an address that is no tile.

    Memory bound: a row group of objects.
    """
    zoom = Zoom(slide.size)
    shape = zoom.shape(*address)
    if shape is None:
        return None
    level, col, row = address
    scale = float(zoom.scale(level))
    corner = np.array([col, row]) * SIDE * scale
    canvas = Image.new("RGBA", shape[::-1])
    draw = ImageDraw.Draw(canvas)
    file = ShapesFile.of(slide.folder, head)
    colours = class_colours(len(file.classes))
    x0, y0 = corner.tolist()
    for rows in file.within(y0, x0, y0 + SIDE * scale, x0 + SIDE * scale):
        (_draw_outlines if scale <= OUTLINES else _draw_dots)(draw, rows, corner, scale, colours)
    out = io.BytesIO()
    canvas.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _draw_outlines(draw: ImageDraw.ImageDraw, rows: ShapeRows, corner: NDArray[np.float64], scale: float, colours: list[Colour]) -> None:
    for shape, kind in zip(rows.shapes, rows.classes.tolist(), strict=True):
        for part in getattr(shape, "geoms", [shape]):
            for ring in (part.exterior, *part.interiors):
                corners = ((np.asarray(ring.coords) - corner) / scale).tolist()
                draw.line([tuple(each) for each in corners], fill=(*colours[kind], 255), width=2)


def _draw_dots(draw: ImageDraw.ImageDraw, rows: ShapeRows, corner: NDArray[np.float64], scale: float, colours: list[Colour]) -> None:
    import shapely

    left, top, right, bottom = shapely.bounds(rows.shapes).T
    middles = (np.stack([left + right, top + bottom], axis=1) / 2 - corner) / scale
    for kind in np.unique(rows.classes).tolist():
        for x, y in np.unique(np.floor(middles[rows.classes == kind]), axis=0).tolist():
            draw.rectangle((x, y, x + 1, y + 1), fill=(*colours[kind], 255))
