"""Tiles and tissue as GeoJSON that QuPath reads: one FeatureCollection, places in px of full resolution from the top-left corner.

Sources: https://www.rfc-editor.org/rfc/rfc7946 (features, closed rings) and
https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html (units, objectType, classification, measurements).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tilestream.errors import InputError
from tilestream.interop.on_map import MapPlaces
from tilestream.interop.target import Target, Written
from tilestream.models.pca import principal_components
from tilestream.store.slide import Slide
from tilestream.store.slide_store import TISSUE

Ring = list[list[float]]
"""Corners x, y in px of full resolution; the last is the first."""

TISSUE_COLOUR, FAILED_COLOUR = (0, 140, 60), (200, 0, 0)

COMPONENTS = 3
"""Principal components that are written of each tile."""

COLINEAR = 0.01
"""Mask px that a corner of an outline may lie off a straight line and be left out."""


def write_geojson(slide: Slide, target: Target, *, in_bounds: bool = False) -> Written:
    """The tissue as annotations, then every tile as an object of type `tile`, feature by feature.

    Of an image on a map with a known CRS, tiles alone are written, in degrees of WGS 84. A tile is its square, with the measurements row, col, tissue and the first three principal components of the slide's embeddings as
    PC1 to PC3; a failed tile has its status as classification, and no components.

    Memory bound: a block of rows, and the tissue mask.

    Parameters
    ----------
    slide : Slide
        What is written.
    target : Target
        The file.
    in_bounds : bool
        Count places from the corner of OpenSlide's bounds, where QuPath has its origin for slides that have them.

    Raises
    ------
    InputError
        `in_bounds`, but the slide's file cannot be asked for its bounds.
    """
    on_map = MapPlaces.of(slide)
    if on_map is not None and on_map.crs:
        features = _map_features(slide, on_map)
        return _write(target, features, slide.layout.tiles)
    l0_y, l0_x = bounds_corner(slide) if in_bounds else (0, 0)
    features = chain(_tissue_features(slide, l0_y, l0_x), _tile_features(slide, l0_y, l0_x))
    return _write(target, features, slide.layout.tiles)


def _write(target: Target, features: Iterable[dict[str, Any]], tiles: int) -> Written:
    with target.writing() as path, path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, feature in enumerate(features):
            file.write(("," if number else "") + "\n" + json.dumps(feature, allow_nan=False))
        file.write("\n]}\n")
    return Written(tiles)


def _map_features(slide: Slide, on_map: MapPlaces) -> Iterator[dict[str, Any]]:
    """Every tile of an image on a map, in longitude and latitude as RFC 7946 wants them; rings run against the clock."""
    for feature in _tile_features(slide, 0, 0):
        ring = on_map.degrees(np.asarray(feature["geometry"]["coordinates"][0], np.float64))
        feature["geometry"]["coordinates"] = [(ring if turn_of(ring) > 0 else ring[::-1]).tolist()]
        feature["properties"]["measurements"].pop("tissue", None)
        yield feature


def turn_of(ring: NDArray[np.float64]) -> float:
    """Twice the signed area of a closed ring of x, y: positive where it runs against the clock."""
    x, y = ring.T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))


def bounds_corner(slide: Slide) -> tuple[int, int]:
    """y, x in level-0 px of the corner of OpenSlide's bounds: as the store says, else as the file does; 0, 0 where the file has none.

    Raises
    ------
    InputError
        The store does not say, and OpenSlide cannot open the file.
    """
    found = slide.source.get("bounds")
    if found is None:
        from tilestream.interop.recorded_image import open_recorded
        from tilestream.sources.base import SourceOptions

        try:
            with open_recorded(slide, SourceOptions(backend="openslide", mpp=slide.mpp)) as source:
                found = source.info.properties
        except InputError as error:
            raise InputError(
                f"{slide.id}: --in-bounds needs the bounds that OpenSlide finds in the slide. {error} Or leave it out."
            ) from error
    return int(found.get("openslide.bounds-y", 0)), int(found.get("openslide.bounds-x", 0))


def _feature(rings: list[Ring], **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": properties}


def _tile_features(slide: Slide, l0_y: int, l0_x: int) -> Iterator[dict[str, Any]]:
    components, side = principal_components(slide.vector_blocks()), slide.l0_extent
    for rows in slide.blocks():
        scores = components.scores(rows.vectors, COMPONENTS)
        for k, status in enumerate(rows.status_names):
            y, x = int(rows.y[k]) - l0_y, int(rows.x[k]) - l0_x
            measured = {"row": int(rows.row[k]), "col": int(rows.col[k]), "tissue": float(rows.tissue[k])}
            measured |= {f"PC{number}": float(score) for number, score in enumerate(scores[k], start=1)}
            failed = {} if rows.good[k] else {"classification": {"name": status or "missing", "color": list(FAILED_COLOUR)}}
            yield _feature(
                [[[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]],
                objectType="tile",
                measurements={name: value for name, value in measured.items() if math.isfinite(value)},
                **failed,
            )


def _tissue_features(slide: Slide, l0_y: int, l0_x: int) -> Iterator[dict[str, Any]]:
    """One annotation a piece of tissue, its holes left out; none where the store has no mask."""
    raw = slide.folder.get(TISSUE)
    if raw is None:
        return
    mask = np.asarray(Image.open(io.BytesIO(raw))) > 0
    downsample = mask_downsample(slide, mask.shape)
    for rings in outlines(mask):
        corners = [(ring * downsample - (l0_x, l0_y)).round(2).tolist() for ring in rings]
        yield _feature(corners, objectType="annotation", classification={"name": "Tissue", "color": list(TISSUE_COLOUR)})


def mask_downsample(slide: Slide, shape: tuple[int, ...]) -> float:
    """Level-0 px per px of the tissue mask: as the store says, else from both sizes, whose last row and column may be cut short."""
    stated: float | None = slide.source.get("thumbnail_downsample")
    return stated if stated is not None else max(slide.size.height / shape[0], slide.size.width / shape[1])


def outlines(mask: NDArray[np.bool_]) -> Iterator[list[NDArray[np.float64]]]:
    """Closed rings (k, 2) of x, y in mask px for each piece of an (h, w) mask: its outline, then its holes; px (0, 0) begins at (0, 0)."""
    from skimage.measure import approximate_polygon, find_contours, label, regionprops

    for piece in regionprops(label(mask, connectivity=1)):
        # Contours run through the centres of px: in a frame of one empty px, index 1 is the centre of the first px, at 0.5.
        corner = np.array(piece.bbox[:2]) - 0.5
        rings = [approximate_polygon(ring, COLINEAR) + corner for ring in find_contours(np.pad(piece.image, 1).astype(np.float32), 0.5)]
        rings.sort(key=_area, reverse=True)
        yield [ring[:, ::-1] for ring in rings]


def _area(ring: NDArray[np.float64]) -> float:
    y, x = ring.T
    return abs(float(np.sum(y[:-1] * x[1:] - x[:-1] * y[1:]))) / 2
