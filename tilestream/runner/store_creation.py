"""The store of a slide, made ready to be filled."""

from __future__ import annotations

from typing import Any

from tilestream.errors import without_credentials
from tilestream.geometry import PlacedGrid, TileGrid
from tilestream.runner.prepare import PreparedSlide, Setup
from tilestream.runner.slide_plan import SlidePlan
from tilestream.sources.base import SlideInfo
from tilestream.stages.finish_slide import png_bytes
from tilestream.stages.region_vectors import window_grids
from tilestream.stages.token_grid import tokens_a_side
from tilestream.store.slide_store import THUMBNAIL, TILES, TISSUE, SlideStore


def create_store(store: SlideStore, slide: PreparedSlide, setup: Setup, recipe: dict[str, Any]) -> None:
    """Write everything of a slide's store that is known before a tile is embedded."""
    plan, config, facts = slide.plan, setup.config, setup.facts
    info = plan.info
    source = {"address": without_credentials(plan.ref.address), "backend": info.backend, "fingerprint": info.fingerprint, "mpp": info.mpp, "mpp_source": info.mpp_source,
              "height": info.size.height, "width": info.size.width, "level": plan.spec.level, "downsample": plan.spec.downsample,
              "scale": plan.grid.scale, "resampled": plan.spec.resampled, "vendor": info.vendor, "warnings": list(plan.warnings),
              **_geo(info), "thumbnail_downsample": plan.thumbnail.downsample, "bounds": _bounds(info),
              "icc_profile": info.properties.get("icc_profile", "none"), "icc": info.properties.get("icc", "ignored"), **_placed(plan.grid)}  # fmt: skip
    uns: dict[str, Any] = {"spatial_unit": "px of level 0", "slide": plan.ref.id}
    if info.mpp is not None:
        uns["mpp"] = float(info.mpp)
    pictures = {THUMBNAIL: png_bytes(plan.thumbnail.pixels), TISSUE: png_bytes(plan.mask)}
    windows = (
        window_grids(config.windows, plan.grid, tokens_a_side(facts.tokens, plan.grid), facts.dim)
        if "windows" in config.output.save
        else []
    )
    store.create(
        slide.layout,
        plan.columns,
        {"recipe": recipe, "source": source, "listed": dict(plan.ref.extra)},
        uns=uns,
        objects=pictures,
        windows=windows,
        places=_places(plan),
    )


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
        cells = geo.moved(*grid.l0_offset, grid.stride * grid.scale)
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
