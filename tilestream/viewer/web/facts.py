"""What the page is told of outputs and slides: JSON, and arrays behind a JSON head."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import without_credentials
from tilestream.store.layout import STATUSES
from tilestream.store.picture import png_bytes
from tilestream.viewer.answer_words import answer_words
from tilestream.viewer.catalogue import Catalogue
from tilestream.viewer.deepzoom import SIDE, Zoom
from tilestream.viewer.overlays import HEAT, PALETTE, PictureLayer, TileLayer
from tilestream.viewer.slide import Extent, ViewedSlide
from tilestream.viewer.web.layers import Layer, layer_names


def packed(head: dict[str, Any], *arrays: NDArray[Any] | bytes) -> bytes:
    """Length of the head (4 bytes, little), the head as JSON, filled up with spaces to a multiple of 4, and each array's bytes, little end first."""
    text = json.dumps(head, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    parts = [part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes() for part in arrays]
    return b"".join([len(text).to_bytes(4, "little"), text, *parts])


def outputs_told(catalogue: Catalogue, *, drawing: bool) -> dict[str, Any]:
    """Outputs with their slides, and what this viewer can do."""
    names = [without_credentials(output.address) for output in catalogue.outputs]
    return {
        "outputs": [
            {
                "name": name,
                "first": output.first.number,
                "slides": [{"number": entry.number, "id": entry.id} for entry in output.entries],
            }
            for name, output in zip(_short(names), catalogue.outputs, strict=True)
        ],
        "umap": importlib.util.find_spec("umap") is not None,
        "drawing": drawing,
        "heat": HEAT.tolist(),
        "palette": PALETTE,
    }


def _short(names: list[str]) -> list[str]:
    """The ends of addresses that tell them apart."""
    parts = [name.rstrip("/").split("/") for name in names]
    for most in range(1, max(map(len, parts)) + 1):
        short = ["/".join(each[-most:]) for each in parts]
        if len(set(short)) == len(set(names)):
            return short
    return names


def slide_told(catalogue: Catalogue, number: int) -> dict[str, Any]:
    """Facts of a slide, or why it cannot be shown."""
    entry = catalogue.entry(number)
    catalogue.refresh(number)
    problem = catalogue.problem(number)
    if problem is not None:
        return {"number": number, "id": entry.id, "problem": problem}
    slide = catalogue.slide(number)
    zoom = Zoom(slide.size)
    with catalogue.zoom.images.using(number, slide) as (source, why):
        gone, names = why, () if source is None else source.info.channels
    read = slide.recipe.get("source") or {}
    return {
        "number": number, "id": entry.id, "words": slide.words, "gone": gone, "height": slide.size.height, "width": slide.size.width,
        "mpp": slide.mpp, "levels": zoom.deepest, "side": SIDE, "tiles": slide.layout.tiles, "l0_extent": slide.l0_extent,
        "layers": layer_names(slide), "answers": answer_words(slide), "statuses": list(STATUSES), "embedded": slide.embedded,
        "channels": [name or f"channel {at}" for at, name in enumerate(names)], "window": _one_range(read.get("window")),
        "read": [names.index(each) if each in names else each for each in read.get("channels") or []],
    }  # fmt: skip


def _one_range(window: Any) -> list[float] | None:
    """The values that are black and white, where they are the same for all channels."""
    return window if isinstance(window, list) and len(window) == 2 and all(isinstance(end, int | float) for end in window) else None


def places_told(slide: ViewedSlide) -> bytes:
    """Which tile lies in which cell, and of each tile y and x of its top-left and its status: int32, int32, int32, int8."""
    places = slide.places()
    head = {**_extent(places.extent), "rows": places.tile.shape[0], "cols": places.tile.shape[1], "tiles": slide.layout.tiles}
    head["lattice"] = slide.gridded
    return packed(head, *(part.astype("<i4") for part in (places.tile, slide.y, slide.x)), slide.status)


def layer_told(layer: Layer, head: dict[str, Any]) -> bytes:
    """A layer: codes of tiles with their palette, RGBA of tiles, a PNG with its extent, or the head whose answer comes tile by tile."""
    told = {**head, "legend": layer.legend.told()}
    if isinstance(layer, TileLayer):
        return packed({**told, "kind": "tiles", "palette": layer.palette.tolist(), "tiles": len(layer.codes)}, layer.codes)
    if isinstance(layer, PictureLayer):
        return packed({**told, "kind": "picture", **_extent(layer.extent)}, png_bytes(layer.rgba))
    return packed({**told, "kind": "zoom", "head": layer.head})


def _extent(extent: Extent) -> dict[str, float]:
    return {"y": extent.l0_y, "x": extent.l0_x, "height": extent.l0_height, "width": extent.l0_width}
