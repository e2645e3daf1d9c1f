"""Features in HDF5, as TRIDENT and CLAM store them, and as their downstream tools read them.

Both hold `features` (n, d) float32 and `coords` (n, 2) int64: x, y of a tile's top-left in level-0 px. They differ in the attributes.
Sources: https://github.com/mahmoodlab/TRIDENT and https://github.com/mahmoodlab/CLAM (descriptions of their outputs).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilestream.errors import InputError
from tilestream.interop.target import Target, Written
from tilestream.sources.hdf5_file import load_h5py
from tilestream.store.slide import Slide

CHUNK_ROWS = 256
"""Rows of an HDF5 chunk."""

UM_MAGNIFICATION = 10.0
"""µm/px times magnification: 20x is 0.5 µm/px."""


def write_trident(slide: Slide, target: Target) -> Written:
    """`features` and `coords` with the attributes of TRIDENT's feature files.

    `coords` has patch_size and overlap in px at the target resolution, patch_size_level0 in level-0 px, both magnifications as the whole
    numbers nearest to 10 / (µm/px), level0_width and level0_height in px, name and savetodir; `features` has name, savetodir and encoder.

    Raises
    ------
    InputError
        The slide has no resolution, or one so coarse that no magnification can be stated.
    """
    found = slide.mpp and round(UM_MAGNIFICATION / (slide.mpp * slide.scale))
    if slide.mpp is None or not found:
        resolution = "no resolution" if slide.mpp is None else f"tiles of {slide.mpp * slide.scale:g} µm/px"
        raise InputError(
            f"{slide.id}: the slide has {resolution}, and TRIDENT's files state a magnification of at least 1. "
            "Use --to clam-h5, or embed the slide with source.mpp."
        )
    place = {"name": slide.id, "savetodir": str(target.path.parent)}
    coords = {
        "patch_size": slide.tile,
        "patch_size_level0": round(slide.l0_extent),
        "level0_magnification": round(UM_MAGNIFICATION / slide.mpp),
        "target_magnification": found,
        "overlap": slide.tile - round(slide.stride),
        "level0_width": slide.size.width,
        "level0_height": slide.size.height,
        **place,
    }
    return _write(slide, target, coords, {**place, "encoder": slide.encoder})


def write_clam(slide: Slide, target: Target) -> Written:
    """`features` and `coords` with the attributes of CLAM's files.

    `coords` has patch_level, the level that was read, and patch_size, the side of a tile in px of that level; where tiles were shrunk
    further, custom_downsample is the ratio of patch_size to what the encoder saw.
    """
    downsample = float(slide.source["downsample"])
    attributes: dict[str, Any] = {"patch_size": round(slide.l0_extent / downsample), "patch_level": int(slide.source["level"])}
    ratio = slide.scale / downsample
    if round(slide.l0_extent / downsample) != slide.tile:
        attributes["custom_downsample"] = round(ratio) if abs(ratio - round(ratio)) < 0.01 else ratio
    return _write(slide, target, attributes, {})


def _write(slide: Slide, target: Target, coords_attributes: dict[str, Any], features_attributes: dict[str, Any]) -> Written:
    """Write both datasets block by block."""
    h5py = load_h5py()
    written, dim = Written.without_failed(slide), int(slide.vectors().shape[1])
    count = written.tiles
    with target.writing() as path, h5py.File(path, "w") as file:
        chunk = max(1, min(CHUNK_ROWS, count))
        features = file.create_dataset("features", (count, dim), np.float32, chunks=(chunk, dim), maxshape=(None, dim))
        coords = file.create_dataset("coords", (count, 2), np.int64, chunks=(chunk, 2), maxshape=(None, 2))
        file.attrs["l0_extent"] = slide.l0_extent  # px of level 0, as it is: their attributes are whole numbers
        features.attrs.update(features_attributes)
        coords.attrs.update(coords_attributes)
        start = 0
        for places, values in slide.good_blocks():
            end = start + len(values)
            features[start:end], coords[start:end] = values, places
            start = end
    return written
