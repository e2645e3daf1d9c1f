"""What the command `import` does: features that TRIDENT or CLAM computed become a store of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.config.local_files import refuse_url
from tilestream.config.slide_list import SlideRef, id_from_address, id_problem
from tilestream.errors import ConfigError, InputError, OutputError, without_credentials
from tilestream.geometry import Size
from tilestream.sources import open_source
from tilestream.sources.base import SlideInfo, SourceOptions
from tilestream.sources.hdf5_file import hdf5_errors, open_hdf5
from tilestream.store.folder import Folder
from tilestream.store.layout import NONFINITE, OK, PADDED, STATUSES, TILES, Layout, TileColumns
from tilestream.store.lock import hold_lock
from tilestream.store.ownership import refuse_foreign
from tilestream.store.slide_store import FORMAT, SlideStore
from tilestream.tiles.coords import check_image, check_places
from tilestream.tiles.coords_file import GRID_TOLERANCE, FeatureFile, TilePlaces

SHARD_TILES = 2048
"""Rows of a shard of an imported store."""


def import_features(path: str, slide: str, output: str, *, patch_size_level0: float | None = None, encoder: str | None = None) -> str:
    """Make `<output>/<slide id>.zarr`, a finished store, of an HDF5 file; returns words on what was made.

    Tiles are numbered row-major. Where they lie on no regular grid anchored at (0, 0), row and col are ranks among the y and x that
    occur, and `recipe["imported"]["grid"]` is `ranks` in place of `regular`. Tissue is NaN: it was never looked for.

    Memory bound: places of all tiles, and the features of one shard of 2048.

    Parameters
    ----------
    path : str
        The HDF5 file.
    slide : str
        The image, whose size and resolution are then known; or a name for the slide, where there is no image.
    output : str
        An output folder or its URL.
    patch_size_level0 : float, optional
        Side of a tile in level-0 px, for files that do not say.
    encoder : str, optional
        Name of the encoder as a config has it, which goes before the file's: heads that are fitted on the features are held to it.

    Raises
    ------
    ConfigError
        h5py is not installed, the name of the slide is unsafe, or something that is not ours lies where its store belongs.
    InputError
        The file is not one of features and places, is of another image, has a tile twice, or does not say how large a tile is; or the image
        cannot be opened.
    OutputError
        The output holds this slide already.
    """
    refuse_url(path, "features")
    if not Path(path).exists():
        raise InputError(f"{path}: no such file. Give the HDF5 file that holds features and coords.")
    info = _find_image(slide)
    name = slide if info is None else id_from_address(slide)
    if problem := id_problem(name):
        raise ConfigError(f"--slide: {name!r} cannot name a store: it {problem}. Give another.")
    address = slide if info is None or "://" in slide else str(Path(slide).absolute())
    refuse_foreign(Folder(output), [SlideRef(name, address)])
    with open_hdf5(Path(path)) as opened, hold_lock(Folder(output), name):
        with hdf5_errors(path):
            file = FeatureFile(path, opened)
            file.encoder = encoder or file.encoder
        if info is not None:
            check_image(file, info, name)
        check_places(path, file.y, file.x, info, name)
        store = SlideStore(Folder(output) / f"{name}.zarr")
        about = store.attributes  # of an import that was cut short: it is done again
        if store.completion is not None or (about is not None and "imported" not in about["recipe"]):
            raise OutputError(f"{store.folder.address}: is there already. Delete it, or choose another --out.")
        places = file.places(file.tiling(info, patch_size_level0))
        counts = _fill(store, file, places, slide, info)
    bad = f", {counts['nonfinite']} of them not finite" if counts["nonfinite"] else ""
    grid = "on a regular grid" if places.regular else "on no regular grid: row and col are ranks, and neighbours may lie apart"
    image = "" if info is not None else f"; {slide!r} is taken as a name, for there is no such file: the slide has no resolution"
    return without_credentials(f"{name}: {len(places.order)} tiles x {store.layout.dim}{bad}, {grid}{image} -> {store.folder.address}")


def _find_image(slide: str) -> SlideInfo | None:
    """The image at an address, or None for a mere name. Raises InputError for what looks like a path and is none."""
    if not ("://" in slide or "/" in slide or "\\" in slide or Path(slide).exists()):
        return None
    with open_source(slide, SourceOptions()) as source:
        return source.info


def _fill(store: SlideStore, file: FeatureFile, places: TilePlaces, slide: str, info: SlideInfo | None) -> dict[str, int]:
    """Write the whole store, its completion mark last; returns tiles by status."""
    extent, layout = places.tiling.l0_extent, Layout(len(places.order), file.features.shape[1], SHARD_TILES, file.dtype)
    size = _image_size(file, places, info)
    source = _source(slide, info, size, places)
    missing = np.full(layout.tiles, np.nan, np.float32)
    columns = TileColumns(places.row, places.col, places.y, places.x, missing, extent)
    uns = {"spatial_unit": "px of level 0", "slide": Path(store.folder.address).stem}
    uns |= {} if source["mpp"] is None else {"mpp": source["mpp"]}
    store.create(layout, columns, {"recipe": _recipe(file, places), "source": source}, uns=uns, objects={})
    padded = (places.y + extent > size.height + GRID_TOLERANCE) | (places.x + extent > size.width + GRID_TOLERANCE)
    counts = {STATUSES[code]: 0 for code in (OK, PADDED, NONFINITE)}
    for shard, values, status in _shards(layout, file, places.order, padded):
        here = {name: int((status == STATUSES.index(name)).sum()) for name in counts}
        store.write_shard(shard, {f"{TILES}/X": values, f"{TILES}/obs/status/codes": status}, {"counts": here})
        counts = {name: counts[name] + here[name] for name in counts}
    store.seal()
    store.complete({"tiles": layout.tiles, "counts": counts})
    return counts


def _shards(
    layout: Layout, file: FeatureFile, order: NDArray[np.int64], padded: NDArray[np.bool_]
) -> Iterator[tuple[int, NDArray[Any], NDArray[np.int8]]]:
    """Number, embeddings (m, d) and status (m,) of each shard; rows that are not finite are NaN throughout."""
    for shard in range(layout.shards):
        rows = layout.rows(shard)
        values = file.read(order[rows])
        bad = ~np.isfinite(values).all(axis=1)
        values[bad] = np.nan
        status = np.where(bad, NONFINITE, np.where(padded[rows], PADDED, OK)).astype(np.int8)
        yield shard, values.astype(layout.dtype), status


def _image_size(file: FeatureFile, places: TilePlaces, info: SlideInfo | None) -> Size:
    """The image in level-0 px: its own, else as the file says, else as far as its tiles reach."""
    if info is not None:
        return info.size
    told = [int(file.attributes.get(name, 0)) for name in ("level0_height", "level0_width")]
    if min(told) > 0:
        return Size(*told)
    extent = places.tiling.l0_extent
    return Size(*(max(1, int(np.ceil(corner.max(initial=0) + extent))) for corner in (places.y, places.x)))


def _source(slide: str, info: SlideInfo | None, size: Size, places: TilePlaces) -> dict[str, Any]:
    """What is known of the image, in the form that a run stores."""
    level = places.tiling.level
    known = info is not None and level < len(info.levels)
    return {
        "address": without_credentials(slide),
        "backend": info.backend if info else "",
        "fingerprint": info.fingerprint if info else "",
        "mpp": info.mpp if info else None,
        "mpp_source": info.mpp_source if info else "",
        "height": size.height,
        "width": size.width,
        "level": level if known else 0,
        "downsample": info.levels[level].downsample if info is not None and known else 1.0,
        "scale": places.tiling.scale,
        "resampled": False,
        "vendor": info.vendor if info else "",
        "warnings": list(info.warnings) if info else [],
    }


def _recipe(file: FeatureFile, places: TilePlaces) -> dict[str, Any]:
    """What is known of how the numbers came about; `imported` says that they are another program's."""
    return {
        "format": FORMAT,
        "imported": {"file": file.path, "grid": "regular" if places.regular else "ranks"},
        "tiles": {"size": places.tiling.tile, "stride": places.tiling.stride, "edge": "pad"},
        "encoder": {"name": file.encoder, "dim": file.features.shape[1]},
        "context": None,
        "pool": {"name": "none"},
        "windows": None,
        "output": {"save": ["tiles"], "dtype": file.dtype},
        "compute": {"shard_tiles": SHARD_TILES},
    }
