"""What heads answered, over a slide: classes and densities of tiles as pictures, objects as tiles of the deep zoom."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tilestream.store.heads.columns import COUNTS
from tilestream.store.heads.palette import Colour, class_colours
from tilestream.store.heads.shapes import ShapeRows, ShapesFile, shapes_key
from tilestream.store.layout import TILES
from tilestream.store.slide import Slide
from tilestream.viewer.deepzoom import SIDE, Zoom
from tilestream.viewer.overlays import Overlay, heat_colours, on_places
from tilestream.viewer.slide import PlaceMap, ViewedSlide

CLASSES, DENSITY, OBJECTS = "classes: ", "density: ", "objects: "
"""How the names of the overlays begin; the name of the head follows."""

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
    return found


def class_overlay(slide: ViewedSlide, places: PlaceMap, head: str) -> Overlay:
    """The class of each tile; clear where there is none."""
    codes = np.asarray(slide.array(f"{TILES}/obs/{head}/codes")[:], np.int64)
    colours = np.array([(0, 0, 0), *class_colours(len(slide.head_answer(head).classes))], np.uint8)[codes]
    alpha = np.where(codes > 0, 255, 0).astype(np.uint8)
    return on_places(places, np.concatenate([colours, alpha[:, None]], axis=1), "")


def density_overlay(slide: ViewedSlide, places: PlaceMap, head: str) -> Overlay:
    """Objects by area of each tile, or their number where the slide has no scale."""
    known = slide.mpp is not None
    values = np.asarray(slide.array(f"{TILES}/obs/{head}{COUNTS[1 if known else 0]}")[:], np.float32)
    colours, low, high = heat_colours(values)
    return on_places(places, colours, f"{head}: {low:,.0f} (dark) to {high:,.0f} (light) objects {'a mm²' if known else 'a tile'}")


def class_counts(slide: Slide, chosen: str) -> list[tuple[Colour, str]]:
    """Colour and words of each class of an overlay of classes or objects, with how many there are."""
    kind, head = (CLASSES if chosen.startswith(CLASSES) else OBJECTS), chosen.partition(": ")[2]
    classes = slide.head_answer(head).classes
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


def draw_object_tile(slide: Slide, head: str, address: tuple[int, int, int]) -> bytes | None:
    """PNG of (level, column, row) of the deep zoom: the objects there, clear elsewhere; None for an address that is no tile.

    Memory bound: a row group of objects.
    """
    zoom = Zoom(slide.size)
    if not zoom.has(*address):
        return None
    level, col, row = address
    scale = float(zoom.scale(level))
    corner = np.array([col, row]) * SIDE * scale
    canvas = Image.new("RGBA", (SIDE, SIDE))
    if zoom.meets(*address):
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
