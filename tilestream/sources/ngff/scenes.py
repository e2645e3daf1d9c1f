"""Which image of an OME-Zarr store is meant: its scenes, with what they are called and how large they are.

Sources: https://ngff.openmicroscopy.org/0.4/ and /0.5/ (multiscales, plate, well, bioformats2raw.layout).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import zarr

from tilestream.errors import InputError
from tilestream.sources.ngff.ome_xml import OmeImage, read_ome_images
from tilestream.sources.sample_values import Choices
from tilestream.sources.tiff.pages import is_associated

MAX_SCENES = 1000

MOST_LISTED = 20
"""Scenes that an error lists."""


@dataclass(frozen=True)
class Scene:
    """One image of a store."""

    group: Any
    """zarr.Group that holds it."""
    entry: Any
    """Its entry of `multiscales`, as it is written."""
    told: OmeImage | None = None
    """What the OME-XML beside the images says of it."""

    @property
    def name(self) -> str:
        """What it is called, "" where nothing says so."""
        own = self.entry.get("name") if isinstance(self.entry, Mapping) else None
        return (self.told.name if self.told is not None else "") or (own.strip() if isinstance(own, str) else "")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of level 0; 0 where the metadata do not lead to an array."""
        try:
            array = self.group[self.entry["datasets"][0]["path"]]
            axes = [str(axis["name"] if isinstance(axis, Mapping) else axis).lower() for axis in self.entry.get("axes", "tczyx")]
            return array.shape[axes.index("y")], array.shape[axes.index("x")]
        except (LookupError, TypeError, ValueError, AttributeError):
            return 0, 0


def ome_of(group: Any) -> Mapping[str, Any]:
    """The OME metadata of a group: under `ome` since 0.5, at the top before."""
    attributes = dict(group.attrs)
    inner = attributes.get("ome")
    return inner if isinstance(inner, Mapping) else attributes


def pick_scene(group: Any, choices: Choices) -> Scene:
    """The scene to read; noted in `choices` where several could be meant. Raises InputError."""
    address, wanted = choices.address, choices.options.scene
    if "plate" in ome_of(group):
        raise InputError(f"{address}: is a plate of wells. Name one image in it, for example {address}/{_example(group)}.")
    scenes = [Scene(group, entry) for entry in _multiscales(group)] or _listed(group)
    if not scenes:
        raise InputError(f"{address}: the Zarr group holds no OME-Zarr image (no `multiscales`). Name the image group or the array in it.")
    if wanted is not None:
        if not 0 <= wanted < len(scenes):
            raise InputError(f"{address}: source.scene: {wanted}, but the store has scenes 0 to {len(scenes) - 1}.")
        return scenes[wanted]
    meant = _without_associated(scenes) if len(scenes) > 1 else scenes
    if len(meant) > 1:
        choices.refuse(f"the store holds {len(scenes)} images ({_list(scenes)})", "scene", str(scenes.index(meant[0])))
    return meant[0]


def _listed(group: Any) -> list[Scene]:
    """The images of the groups in a group, each with what the OME-XML says of it."""
    inner = list(_inner_images(group))
    told = dict(enumerate(read_ome_images(group))) if inner and "well" not in ome_of(group) else {}
    return [Scene(child, _multiscales(child)[0], told.get(number)) for number, child in inner]


def _without_associated(scenes: list[Scene]) -> list[Scene]:
    """Less the pictures that accompany a slide, by their names: never the largest image."""
    largest = max(math.prod(scene.sides) for scene in scenes)
    return [scene for scene in scenes if math.prod(scene.sides) == largest or not is_associated(scene.name)]


def _list(scenes: Sequence[Scene]) -> str:
    named = [
        f"{k}: {f'{scene.name!r} ' if scene.name else ''}{scene.sides[0]} x {scene.sides[1]}"
        for k, scene in enumerate(scenes[:MOST_LISTED])
    ]
    return ", ".join(named) + (f" and {len(scenes) - MOST_LISTED} more" if len(scenes) > MOST_LISTED else "")


def _multiscales(group: Any) -> list[Any]:
    stated = ome_of(group).get("multiscales")
    return stated if isinstance(stated, list) else []


def _inner_images(group: Any) -> Iterator[tuple[int, Any]]:
    """The image groups in a group by their numbers: the fields of a well, the series that bioformats2raw lists, else 0, 1, ... as far as they go."""
    paths = _paths(ome_of(group).get("well"), "images")
    listing = group.get("OME")
    if not paths and isinstance(listing, zarr.Group) and isinstance(series := ome_of(listing).get("series"), list):
        paths = [str(path) for path in series]
    for number, path in enumerate(itertools.islice(paths or map(str, itertools.count()), MAX_SCENES)):
        child = group.get(path)
        if isinstance(child, zarr.Group) and _multiscales(child):
            yield number, child
        elif not paths:
            return


def _paths(node: Any, key: str) -> list[str]:
    """The `path` of each object in a list of a plate or a well."""
    each = node.get(key) if isinstance(node, Mapping) else None
    return [str(item["path"]) for item in each if isinstance(item, Mapping) and "path" in item] if isinstance(each, list) else []


def _example(plate: Any) -> str:
    """The path of the first image of a plate; a pattern where none is there."""
    for path in _paths(ome_of(plate)["plate"], "wells"):
        well = plate.get(path)
        for _, child in _inner_images(well) if isinstance(well, zarr.Group) else ():
            return str(child.path).removeprefix(plate.path).lstrip("/")
    return "ROW/COLUMN/FIELD"
