"""What a Zarr store says of its image: OME-Zarr 0.4 and 0.5 multiscales, or the axes of a plain array.

Sources: https://ngff.openmicroscopy.org/0.4/ and /0.5/ (multiscales, axes, coordinateTransformations, bioformats2raw.layout);
for plain arrays `dimension_names` of Zarr v3 and `_ARRAY_DIMENSIONS` of xarray.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from tilestream.config.local_files import open_regular
from tilestream.errors import InputError
from tilestream.geometry import Level, Size, downsample_from_sizes
from tilestream.sources.files import SAMPLE_BYTES, WHOLE_BYTES, fingerprint_file
from tilestream.sources.ngff.scenes import Scene, ome_of, pick_scene
from tilestream.sources.resolution import UNKNOWN, Resolution, micrometres_from_unit, resolution_from_config, resolution_from_file
from tilestream.sources.sample_values import Choices

CHANNEL_NAMES = dict.fromkeys(("channel", "channels", "band", "bands", "s", "sample", "samples", "rgb"), "c")
"""Names that plain arrays give to their channel axis."""


ROUNDING = 1e-6
"""Part of a side that scales written with few digits may be off."""

OBJECTS = 256
"""Objects of a Zarr that go into its fingerprint."""


@dataclass(frozen=True)
class ZarrImage:
    """One image: its arrays, finest first, and the meaning of their axes."""

    arrays: tuple[Any, ...]
    """zarr.Array of each level."""
    axes: tuple[str, ...]
    """Lower-case names: y, x, and any of t, z, c and others."""
    l0_scale: tuple[float, float] | None = None
    """Length of a level-0 pixel in y and x, in `units`."""
    units: tuple[str, str] = ("", "")
    """Units of y and x."""
    scales: tuple[tuple[float, float] | None, ...] = ()
    """Length of a pixel of each level in y and x as the level states it, None of one that does not."""
    warnings: tuple[str, ...] = ()
    """What is wrong with the scales as they are written."""
    version: str = ""
    """OME-Zarr version, "" for a plain array."""
    facts: dict[str, str] = field(default_factory=dict)
    channel_names: tuple[str, ...] = ()
    """Labels of the channels as OME-Zarr states them (omero), "" for one without."""
    ome_um: tuple[float, float] | None = None
    """Height and width of a level-0 pixel in µm as the OME-XML beside the image states them."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """Geometry of the levels."""
        y, x = self.axes.index("y"), self.axes.index("x")
        sizes = [Size(array.shape[y], array.shape[x]) for array in self.arrays]
        return tuple(Level(size, downsample_from_sizes(sizes[0], size) if k else 1.0) for k, size in enumerate(sizes))


def find_image(node: Any, choices: Choices) -> ZarrImage:
    """The image in a zarr.Array or zarr.Group. Raises InputError."""
    address = choices.address
    if isinstance(node, zarr.Array):
        image = ZarrImage((node,), plain_axes(node, address))
    else:
        image = _from_multiscale(pick_scene(node, choices), address)
    for axis in ("y", "x"):
        if image.axes.count(axis) != 1:
            raise InputError(f"{address}: axes {list(image.axes)} must hold {axis} once.")
    y, x = image.axes.index("y"), image.axes.index("x")
    for array in image.arrays:
        if array.ndim != len(image.axes) or 0 in array.shape:
            raise InputError(
                f"{address}: array {array.path or '/'} of shape {array.shape} does not hold an image with axes {list(image.axes)}."
            )
    downsamples = [(array.shape[y], array.shape[x]) for array in image.arrays]
    if any(later[0] > before[0] or later[1] > before[1] or later == before for before, later in itertools.pairwise(downsamples)):
        raise InputError(f"{address}: levels of {downsamples} px (height, width) do not run from fine to coarse.")
    return image


def _check_multiscale(entry: Any, address: str) -> None:
    """Refuse an entry of `multiscales` that is not what OME-Zarr says it is. Raises InputError."""
    wrong = _malformed(entry)
    if wrong:
        raise InputError(
            f"{address}: the OME-Zarr metadata are malformed: {wrong}. Export it again, or name the array in it, for example {address}/0."
        )


def _malformed(entry: Any) -> str:
    """What is wrong with an entry of `multiscales`, in words; "" where nothing is."""
    if not isinstance(entry, Mapping):
        return f"an entry of multiscales is {str(entry)[:40]!r}, no object"
    datasets, axes = entry.get("datasets"), entry.get("axes", [])
    if not (
        isinstance(datasets, list)
        and datasets
        and all(isinstance(item, Mapping) and isinstance(item.get("path"), str) for item in datasets)
    ):
        return f"datasets must be a list of objects with a path each, but it is {str(datasets)[:40]!r}"
    names = [axis.get("name") if isinstance(axis, Mapping) else axis for axis in axes] if isinstance(axes, list) else [None]
    if not all(isinstance(name, str) for name in names):
        return f"axes must be a list of names, but it is {str(axes)[:80]!r}"
    for steps in (each.get("coordinateTransformations") for each in (*datasets, entry)):
        if steps is not None and not (isinstance(steps, list) and all(isinstance(step, Mapping) for step in steps)):
            return f"coordinateTransformations must be a list of objects, but it is {str(steps)[:40]!r}"
        for step in steps or ():
            scale = step.get("scale", [])
            if not (isinstance(scale, list) and all(isinstance(side, int | float) for side in scale)):
                return f"scale must be a list of numbers, but it is {str(scale)[:40]!r}"
    return ""


def _from_multiscale(scene: Scene, address: str) -> ZarrImage:
    group, entry = scene.group, scene.entry
    _check_multiscale(entry, address)
    stated = entry.get("axes", list("tczyx"))  # before 0.3 all five were implied
    axes = tuple(str(axis["name"] if isinstance(axis, Mapping) else axis).lower() for axis in stated)
    units = {str(axis["name"]).lower(): str(axis.get("unit", "")) for axis in stated if isinstance(axis, Mapping)}
    arrays = []
    for dataset in entry["datasets"]:
        array = group.get(dataset["path"])
        if not isinstance(array, zarr.Array):
            raise InputError(f"{address}: the metadata names an array {dataset['path']!r} that is not in the store.")
        arrays.append(array)
    places = [(f"level {k}", dataset) for k, dataset in enumerate(entry["datasets"])]
    found = [_scale(dataset, axes, place) for place, dataset in (*places, ("all levels", entry))]
    scales, warnings = [scale for scale, _ in found], tuple(words for _, words in found if words)
    l0_stated = [scale for scale, _ in (found[0], found[-1]) if scale is not None]
    whole = not found[0][1] and not found[-1][1]  # of two factors one alone would be a wrong length
    sides = (math.prod(y for y, _ in l0_stated), math.prod(x for _, x in l0_stated)) if l0_stated and whole else None
    version = str(entry.get("version") or ome_of(group).get("version", ""))
    facts = {"zarr.group": group.path or "/", "zarr.name": scene.name}
    return ZarrImage(
        tuple(arrays),
        axes,
        sides,
        (units.get("y", ""), units.get("x", "")),
        tuple(scales[:-1]),
        warnings,
        version,
        facts,
        _labels(group),
        None if scene.told is None else scene.told.um,
    )


def _scale(part: Mapping[str, Any], axes: tuple[str, ...], place: str) -> tuple[tuple[float, float] | None, str]:
    """The scale in y and x that a level, or all together, states; and what is wrong with it, in words: then there is none."""
    stated = [step["scale"] for step in part.get("coordinateTransformations") or () if step.get("type") == "scale" and "scale" in step]
    if wrong := next((scale for scale in stated if len(scale) != len(axes)), None):
        return (
            None,
            f"the OME-Zarr metadata state a scale of {len(wrong)} values for {place}, but there are {len(axes)} axes ({', '.join(axes)}); it is not used.",
        )
    if not stated or not {"y", "x"} <= set(axes):
        return None, ""
    y, x = axes.index("y"), axes.index("x")
    return (math.prod(float(scale[y]) for scale in stated), math.prod(float(scale[x]) for scale in stated)), ""


def doubts_of_levels(image: ZarrImage) -> tuple[str, ...]:
    """Which levels state another ratio to level 0 than their arrays have, by more than a pixel of rounding; arrays are right."""
    first = image.scales[0] if image.scales else None
    if first is None or not all(math.isfinite(side) and side > 0 for side in first):
        return ()
    l0_size = image.levels[0].size
    told = []
    for k, (level, scale) in enumerate(zip(image.levels, image.scales, strict=True)):
        if scale is None:
            continue
        stated = [side / l0_side for side, l0_side in zip(scale, first, strict=True)]
        sides = [(l0_size.height, level.size.height), (l0_size.width, level.size.width)]
        if all(
            ratio > 0 and abs(l0_side / ratio - side) <= 1 + ROUNDING * side for ratio, (l0_side, side) in zip(stated, sides, strict=True)
        ):
            continue
        real = " x ".join(f"{l0_side / side:.4g}" for l0_side, side in sides)
        told.append(
            f"the OME-Zarr metadata state that a pixel of level {k} is {' x '.join(f'{ratio:.4g}' for ratio in stated)} pixels of level 0 (height x width), "
            f"but by the sizes of the arrays it is {real}, which is taken."
        )
    return tuple(told)


def _labels(group: Any) -> tuple[str, ...]:
    omero = ome_of(group).get("omero")
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    return tuple(str(channel.get("label") or "") if isinstance(channel, Mapping) else "" for channel in channels or ())


def plain_axes(array: Any, address: str) -> tuple[str, ...]:
    """Axes of an array without OME metadata: as it declares them, else by its shape where that leaves one reading only."""
    declared = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    if declared and all(declared):
        return tuple(CHANNEL_NAMES.get(str(name).lower(), str(name).lower()) for name in declared)
    shape = array.shape
    if len(shape) == 2:
        return ("y", "x")
    if len(shape) == 3 and (shape[0] in (1, 3)) != (shape[2] in (1, 3)):
        return ("y", "x", "c") if shape[2] in (1, 3) else ("c", "y", "x")
    raise InputError(
        f"{address}: an array of shape {shape} does not say which axis is which. "
        "Store its dimension_names (Zarr v3) or the attribute _ARRAY_DIMENSIONS, for example ['y', 'x', 'c']."
    )


def resolution_of(image: ZarrImage, choices: Choices) -> Resolution:
    """The resolution of level 0, from the config or else from the scale and units of the axes; no unit, no resolution."""
    if choices.options.mpp is not None:
        return resolution_from_config(choices.options.mpp)
    per_unit = [micrometres_from_unit(unit) for unit in image.units]
    if image.l0_scale is None or None in per_unit:
        return (
            UNKNOWN if image.ome_um is None else resolution_from_file(choices.address, *image.ome_um[::-1], "the OME-XML beside the image")
        )
    y, x = (side * factor for side, factor in zip(image.l0_scale, per_unit, strict=True) if factor is not None)
    return resolution_from_file(choices.address, x, y, "the OME-Zarr metadata")


def fingerprint_of(node: Any, image: ZarrImage, address: str) -> str:
    """Hexadecimal blake2b digest of all metadata and, for a local store, of evenly spaced level-0 objects.

    `OBJECTS` of them at most, whole where they are small (`WHOLE_BYTES` in all), else their sizes, heads and tails.
    """
    digest = hashlib.blake2b(digest_size=16)
    for item in (node, *image.arrays):
        digest.update(json.dumps(item.metadata.to_dict(), sort_keys=True, default=str).encode())
        digest.update(repr((item.path, getattr(item, "shape", ()))).encode())
    array = image.arrays[0]
    if "://" not in address and Path(address).is_file():  # a ZIP file
        digest.update(fingerprint_file(Path(address)).encode())
    root = Path(address) / (array.path if isinstance(node, zarr.Group) else "")
    if root.is_dir():
        paths = _sampled_objects(array, root)
        for path in paths:
            digest.update(_head(path, WHOLE_BYTES // len(paths)))
    return digest.hexdigest()


def _sampled_objects(array: Any, root: Path) -> list[Path]:
    """Paths of evenly spaced chunks, or shards, of an array."""
    stored = array.shards or array.chunks
    counts = [-(-side // step) for side, step in zip(array.shape, stored, strict=True)]
    total = int(np.prod(counts, dtype=np.int64))
    picked = np.unique(np.linspace(0, total - 1, min(OBJECTS, total)).astype(np.int64))
    places = np.stack(np.unravel_index(picked, counts), axis=-1).tolist() if counts else [[]]
    return [root / array.metadata.encode_chunk_key(tuple(place)) for place in places]


def _head(path: Path, most: int) -> bytes:
    """An object of up to `most` bytes, else its size and first and last 4 KiB; nothing where it was never written."""
    try:
        with open_regular(path) as file:
            if path.stat().st_size <= most:
                return file.read()
            head = file.read(SAMPLE_BYTES)
            size = file.seek(0, 2)
            file.seek(max(0, size - SAMPLE_BYTES))
            return str(size).encode() + head + file.read(SAMPLE_BYTES)
    except FileNotFoundError:
        return b"-"
