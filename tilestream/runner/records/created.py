"""What a new store says of its slide, and of how its tiles lie."""

from __future__ import annotations

from typing import Any

from tilestream.encoders.factories import code_sha256
from tilestream.errors import without_credentials
from tilestream.geometry import PlacedGrid, TileGrid
from tilestream.runner.prepare import PreparedSlide, Setup, windows_of
from tilestream.runner.slide_plan import SlidePlan
from tilestream.sources.base import SlideInfo
from tilestream.store.layout import TILES
from tilestream.store.picture import png_bytes
from tilestream.store.slide_store import THUMBNAIL, TISSUE, SlideStore


def create_store(store: SlideStore, slide: PreparedSlide, setup: Setup, attributes: dict[str, Any]) -> None:
    """Write everything of a slide's store that is known before a tile is embedded."""
    plan, _config, _facts = slide.plan, setup.config, setup.facts
    info = plan.info
    source = {"address": without_credentials(plan.ref.address), "backend": info.backend, "fingerprint": info.fingerprint, "mpp": info.mpp, "mpp_source": info.mpp_source,
              "height": info.size.height, "width": info.size.width, "level": plan.spec.level, "downsample": plan.spec.downsample,
              "scale": plan.grid.scale, "resampled": plan.spec.resampled, "vendor": info.vendor, "warnings": list(plan.warnings), "tissue_found": bool(plan.mask.any()),
              **_geo(info), "thumbnail_downsample": plan.thumbnail.downsample, "bounds": _bounds(info),
              "icc_profile": info.properties.get("icc_profile", "none"), "icc": info.properties.get("icc", "ignored"), **_placed(plan.grid)}  # fmt: skip
    uns: dict[str, Any] = {"spatial_unit": "px of level 0", "slide": plan.ref.id}
    if info.mpp is not None:
        uns["mpp"] = float(info.mpp)
    pictures = {THUMBNAIL: plan.picture, TISSUE: png_bytes(plan.mask)}
    store.create(
        slide.layout,
        plan.columns,
        {**attributes, "source": source, "listed": dict(plan.ref.extra), **_code(setup.config.encoder.name)},
        uns=uns,
        objects=pictures,
        windows=windows_of(slide, setup),
        places=_places(plan),
    )


def _code(encoder: str) -> dict[str, str]:
    """Digest of the code of an encoder's factory, where it has a file; no part of the recipe, for not all of it need change numbers."""
    code = code_sha256(encoder)
    return {} if code is None else {"encoder_code_sha256": code}


def _geo(info: SlideInfo) -> dict[str, Any]:
    """Where on a map level 0 lies, for those who read the store; nothing where the file does not say."""
    geo = info.geo
    return {} if geo is None else {"geo": {"crs": geo.crs, "name": geo.name, "transform": list(geo.transform), "metres": geo.metres}}


def _places(plan: SlidePlan) -> dict[str, dict[str, Any]]:
    """The conventions `proj` and `spatial`: at the root for level-0 pixels, at the table for rows and columns of tiles."""
    geo, grid = plan.info.geo, plan.grid
    if geo is None:
        return {}
    found = {"": geo.attributes((plan.info.size.height, plan.info.size.width))}
    if grid.regular:
        cells = geo.moved(*grid.l0_offset, grid.l0_step)
        found[TILES] = cells.attributes((grid.rows, grid.cols), ("row", "col"))
    return found


def _bounds(info: SlideInfo) -> dict[str, str] | None:
    """OpenSlide's bounds of the part that was scanned, level-0 px; empty where it has none, None where OpenSlide did not read it."""
    if info.backend != "openslide":
        return None
    return {name: value for name, value in info.properties.items() if name.startswith("openslide.bounds-")}


def _placed(grid: TileGrid) -> dict[str, Any]:
    """What a reader must know of places that a file gave: the step between tiles, px at the target resolution, and where tile (0, 0) lies."""
    if not isinstance(grid, PlacedGrid):
        return {}
    offset = list(grid.l0_offset)
    return {"grid": {"regular": grid.regular, "stride": grid.stride, "l0_offset": offset, "rows": grid.rows, "cols": grid.cols}}
