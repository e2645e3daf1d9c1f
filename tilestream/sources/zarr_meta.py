"""What a Zarr store says of its image: OME-Zarr 0.4 and 0.5 multiscales, or the axes of a plain array.

Sources: https://ngff.openmicroscopy.org/0.4/ and /0.5/ (multiscales, axes, coordinateTransformations, bioformats2raw.layout);
for plain arrays `dimension_names` of Zarr v3 and `_ARRAY_DIMENSIONS` of xarray.
"""

from __future__ import annotations

import hashlib
import itertools
import json
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
from tilestream.sources.resolution import UNKNOWN, Resolution, micrometres_from_unit, resolution_from_config, resolution_from_file
from tilestream.sources.sample_values import Choices

MAX_SCENES = 1000


CHANNEL_NAMES = dict.fromkeys(("channel", "channels", "band", "bands", "s", "sample", "samples", "rgb"), "c")
"""Names that plain arrays give to their channel axis."""


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
    version: str = ""
    """OME-Zarr version, "" for a plain array."""
    facts: dict[str, str] = field(default_factory=dict)
    channel_names: tuple[str, ...] = ()
    """Labels of the channels as OME-Zarr states them (omero), "" for one without."""

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
        group, scale = _pick_scene(node, choices)
        image = _from_multiscale(group, scale, address)
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


def _ome(group: Any) -> Mapping[str, Any]:
    """The OME metadata of a group: under `ome` since 0.5, at the top before."""
    attributes = dict(group.attrs)
    inner = attributes.get("ome")
    return inner if isinstance(inner, Mapping) else attributes


def _pick_scene(group: Any, choices: Choices) -> tuple[Any, Mapping[str, Any]]:
    """The group and multiscales entry of the scene to read."""
    address, wanted = choices.address, choices.options.scene
    if "plate" in _ome(group):
        raise InputError(f"{address}: is a plate of wells. Name one image in it, for example {address}/A/1/0.")
    scenes = [(group, entry) for entry in _ome(group).get("multiscales", [])]
    if not scenes:  # bioformats2raw: images in groups 0, 1, ...
        for number in range(MAX_SCENES):
            child = group.get(str(number))
            if not isinstance(child, zarr.Group) or "multiscales" not in _ome(child):
                break
            scenes.append((child, _ome(child)["multiscales"][0]))
    if not scenes:
        raise InputError(f"{address}: the Zarr group holds no OME-Zarr image (no `multiscales`). Name the image group or the array in it.")
    if wanted is not None and not 0 <= wanted < len(scenes):
        raise InputError(f"{address}: source.scene: {wanted}, but the store has scenes 0 to {len(scenes) - 1}.")
    if wanted is None and len(scenes) > 1:
        choices.refuse(f"the store holds {len(scenes)} images", "scene", "0")
    return scenes[wanted or 0]


def _from_multiscale(group: Any, entry: Mapping[str, Any], address: str) -> ZarrImage:
    stated = entry.get("axes", list("tczyx"))  # before 0.3 all five were implied
    axes = tuple(str(axis["name"] if isinstance(axis, Mapping) else axis).lower() for axis in stated)
    units = {str(axis["name"]).lower(): str(axis.get("unit", "")) for axis in stated if isinstance(axis, Mapping)}
    arrays = []
    for dataset in entry["datasets"]:
        array = group.get(dataset["path"])
        if not isinstance(array, zarr.Array):
            raise InputError(f"{address}: the metadata names an array {dataset['path']!r} that is not in the store.")
        arrays.append(array)
    scale = np.ones(len(axes))
    known = False
    for step in (*entry["datasets"][0].get("coordinateTransformations", ()), *entry.get("coordinateTransformations", ())):
        if step.get("type") == "scale" and len(step.get("scale", ())) == len(axes):
            scale, known = scale * np.asarray(step["scale"], np.float64), True
    version = str(entry.get("version") or _ome(group).get("version", ""))
    sides = (float(scale[axes.index("y")]), float(scale[axes.index("x")])) if known and {"y", "x"} <= set(axes) else None
    facts = {"zarr.group": group.path or "/", "zarr.name": str(entry.get("name", ""))}
    return ZarrImage(tuple(arrays), axes, sides, (units.get("y", ""), units.get("x", "")), version, facts, _labels(group))


def _labels(group: Any) -> tuple[str, ...]:
    omero = _ome(group).get("omero")
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
    if image.l0_scale is None:
        return UNKNOWN
    per_unit = [micrometres_from_unit(unit) for unit in image.units]
    if per_unit[0] is None or per_unit[1] is None:
        return UNKNOWN
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
