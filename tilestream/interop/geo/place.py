"""Where the tiles of a slide lie on its map as cells of a raster, and what geoembeddings say of where they come from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tilestream.errors import InputError, without_credentials
from tilestream.interop.on_map import MapPlaces
from tilestream.sources.geo import GeoReference
from tilestream.store.slide import Slide


def map_of(slide: Slide) -> MapPlaces:
    """Where its image lies. Raises InputError where that is on no map."""
    found = MapPlaces.of(slide)
    if found is None:
        raise InputError(f"{slide.id}: its image lies on no map. Export it as parquet, ome-zarr or spatialdata.")
    return found


def cells_of(slide: Slide) -> GeoReference:
    """The map for cells of one step between tiles, each centred on its tile: row and column of a cell are the tile's.

    Raises
    ------
    InputError
        Its image lies on no map, or its tiles on no grid.
    """
    on_map, grid = map_of(slide), slide.grid()
    code = on_map.crs if on_map.crs.startswith("EPSG:") else ""
    a, b, c, d, e, f = on_map.transform
    whole = GeoReference((a, b, c, d, e, f), code, "" if code else on_map.crs, metres=slide.source["geo"].get("metres"))
    rim = (grid.l0_extent - grid.l0_step) / 2
    return whole.moved(grid.l0_offset[0] + rim, grid.l0_offset[1] + rim, grid.l0_step)


def ground_size(cells: GeoReference) -> float | None:
    """Metres on the ground of a cell's side; None where the map's units are no lengths."""
    a, _, _, d, _, _ = cells.transform
    return None if cells.metres is None else math.hypot(a, d) * cells.metres


def model_uri(slide: Slide) -> str:
    """A URI for the encoder: its page where it has one, else a name."""
    kind, _, name = slide.encoder.partition(":")
    pages = {"hf": "https://huggingface.co/", "timm": "https://huggingface.co/timm/"}
    return f"{pages[kind]}{quote(name)}" if name and kind in pages else f"urn:tilestream:encoder:{quote(slide.encoder, safe='')}"


def source_uri(slide: Slide) -> str:
    """A URI for the image, without credentials."""
    address = without_credentials(str(slide.source["address"]))
    return quote(address, safe="/:?=&%*[]~@") if "://" in address else Path(address).absolute().as_uri()


def chip_layout(slide: Slide) -> dict[str, Any]:
    """How tiles were cut, in the words that the Zarr convention and the STAC extension share."""
    stride = max(1, round(slide.stride))
    return {"layout_type": "regular_grid", "chip_size": [slide.tile, slide.tile], "stride": [stride, stride]}
