"""Zarr: plates, wells, lists of series, and OME metadata that are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.support.images import make_image, write_ome_zarr
from tilestream.errors import InputError
from tilestream.geometry import Region
from tilestream.sources.base import SourceOptions
from tilestream.sources.zarr import ZarrSource


def write_group(path: Path, version: str, attributes: dict[str, Any]) -> None:
    told = {"ome": {"version": version, **attributes}} if version == "0.5" else attributes
    zarr.open_group(path, mode="a", zarr_format=3 if version == "0.5" else 2, attributes=told)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_plate_names_an_image_that_is_there_and_a_well_has_its_fields_as_scenes(tmp_path: Path, version: str) -> None:
    plate = tmp_path / "plate.zarr"
    write_group(plate, version, {"plate": {"wells": [{"path": "B/3"}, {"path": "C/11"}]}})
    write_group(plate / "B", version, {})
    write_group(plate / "B" / "3", version, {"well": {"images": [{"path": "1"}, {"path": "f2"}]}})
    fields = {name: make_image(60, 70, seed) for seed, name in enumerate(("1", "f2"))}
    for name, image in fields.items():
        write_ome_zarr(plate / "B" / "3" / name, image, levels=1, version=version)
    with pytest.raises(InputError, match=r"is a plate of wells\. Name one image in it, for example .*plate\.zarr/B/3/1\."):
        ZarrSource(str(plate), SourceOptions())
    with pytest.raises(InputError, match=r"holds 2 images\. .*source: \{scene: 0\}"):
        ZarrSource(str(plate / "B" / "3"), SourceOptions())
    for scene, image in enumerate(fields.values()):
        with ZarrSource(str(plate / "B" / "3"), SourceOptions(scene=scene)) as source:
            np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 60, 70)), image)


@pytest.mark.parametrize("wells", [[], None, [{"path": "B/3"}], "B/3"])
def test_a_plate_without_images_is_refused_all_the_same(tmp_path: Path, wells: Any) -> None:
    write_group(tmp_path / "p.zarr", "0.5", {"plate": {"wells": wells}})
    with pytest.raises(InputError, match=r"is a plate of wells\. Name one image in it, for example .*p\.zarr/ROW/COLUMN/FIELD"):
        ZarrSource(str(tmp_path / "p.zarr"), SourceOptions())


def test_series_are_read_under_the_names_and_in_the_order_that_are_listed(tmp_path: Path) -> None:
    root = tmp_path / "many.zarr"
    write_group(root, "0.5", {"bioformats2raw.layout": 3})
    write_group(root / "OME", "0.5", {"series": ["slide", "0"]})
    images = {name: make_image(60, 70, seed) for seed, name in enumerate(("0", "slide"))}
    for name, image in images.items():
        write_ome_zarr(root / name, image, levels=1)
    for scene, name in enumerate(("slide", "0")):
        with ZarrSource(str(root), SourceOptions(scene=scene)) as source:
            np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 60, 70)), images[name])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("datasets", None, "datasets must be a list"),
        ("datasets", [], "datasets must be a list"),
        ("datasets", "0", "datasets must be a list"),
        ("datasets", [{}], "datasets must be a list"),
        ("datasets", [{"path": "0", "coordinateTransformations": {"type": "scale"}}], "coordinateTransformations must be a list"),
        ("datasets", [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": None}]}], "scale must be a list of numbers"),
        ("datasets", [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, "a", 1]}]}], "scale must be a list"),
        ("axes", None, "axes must be a list of names"),
        ("axes", [{"type": "space"}, "y", "x"], "axes must be a list of names"),
        ("coordinateTransformations", ["scale"], "coordinateTransformations must be a list"),
        ("", "a", "an entry of multiscales is 'a'"),
    ],
)
def test_malformed_metadata_are_refused_in_words(tmp_path: Path, key: str, value: Any, words: str) -> None:
    path = write_ome_zarr(tmp_path / "a.zarr", make_image(64, 70), levels=1)
    told = json.loads((path / "zarr.json").read_text())
    multiscales = told["attributes"]["ome"]["multiscales"]
    multiscales[0] = {**multiscales[0], key: value} if key else value
    (path / "zarr.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=rf"a\.zarr: the OME-Zarr metadata are malformed: {words}.*Export it again, or name the array"):
        ZarrSource(str(path), SourceOptions())
