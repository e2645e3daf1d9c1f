"""Zarr: plates, wells, lists of series, and OME metadata that are not what they should be."""

from __future__ import annotations

import json
import shutil
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
    with pytest.raises(InputError, match=r"holds 2 images \(0: 'made' 60 x 70, 1: 'made' 60 x 70\)\. .*source: \{scene: 0\}"):
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


Series = tuple[str, str, tuple[int, int]]
"""Path in the store, name in the OME-XML, height and width."""


def write_converted(
    root: Path, series: list[Series], version: str, *, listed: bool = True, size: str = "", mpp: float | None = 0.5
) -> Path:
    """A store as bioformats2raw writes it: series, their list, and the OME-XML of what was converted."""
    write_group(root, version, {"bioformats2raw.layout": 3})
    write_group(root / "OME", version, {"series": [path for path, _, _ in series]} if listed else {})
    images = "".join(
        f'<Image ID="Image:{k}" Name="{name}"><Pixels ID="Pixels:{k}" {size} SizeX="{width}" SizeY="{height}"/></Image>'
        for k, (_, name, (height, width)) in enumerate(series)
    )
    xml = f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{images}</OME>'
    (root / "OME" / "METADATA.ome.xml").write_text(xml, encoding="utf-8")
    for seed, (path, _, sides) in enumerate(series):
        unit = None if mpp is None else "micrometer"
        write_ome_zarr(root / path, make_image(*sides, seed), levels=1, version=version, mpp=mpp, unit=unit)
    return root


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_series_have_the_names_of_the_ome_xml(tmp_path: Path, version: str, listed: bool, zipped: bool) -> None:
    series = [("0", "tumour &lt;α&gt;", (60, 70)), ("1", "", (50, 80)), ("2", "macro image", (20, 30))]
    path = write_converted(tmp_path / "a.zarr", series, version, listed=listed)
    if zipped:
        path = Path(shutil.make_archive(str(tmp_path / "a.zarr"), "zip", path))
    words = r"holds 3 images \(0: 'tumour <α>' 60 x 70, 1: 'made' 50 x 80, 2: 'macro image' 20 x 30\)\. .*source: \{scene: 0\}"
    with pytest.raises(InputError, match=words):
        ZarrSource(str(path), SourceOptions())
    with ZarrSource(str(path), SourceOptions(scene=2)) as source:
        assert (source.info.size.height, source.info.properties["zarr.name"]) == (20, "macro image")


@pytest.mark.parametrize("first", [0, 1, 2])
def test_pictures_that_accompany_a_slide_are_not_asked_about_and_keep_their_numbers(tmp_path: Path, first: int) -> None:
    series = [("0", "slide", (60, 70)), ("1", "label image", (30, 40)), ("2", "macro image", (20, 50))]
    turned = [(str(k), *series[(k - first) % 3][1:]) for k in range(3)]
    path = write_converted(tmp_path / "a.zarr", turned, "0.4")
    with ZarrSource(str(path), SourceOptions()) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 60, 70)), make_image(60, 70, first))
    for scene, (_, _, sides) in enumerate(turned):
        with ZarrSource(str(path), SourceOptions(scene=scene)) as source:
            assert (source.info.size.height, source.info.size.width) == sides


def test_the_largest_series_is_the_slide_whatever_its_name(tmp_path: Path) -> None:
    path = write_converted(tmp_path / "a.zarr", [("0", "label", (60, 70)), ("1", "macro", (20, 30))], "0.4")
    with ZarrSource(str(path), SourceOptions()) as source:
        assert source.info.size.height == 60


@pytest.mark.parametrize(
    ("size", "mpp", "expected"),
    [
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.25"', None, 0.25),
        ('PhysicalSizeX="250" PhysicalSizeY="250" PhysicalSizeXUnit="nm" PhysicalSizeYUnit="nm"', None, 0.25),
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.25"', 0.5, 0.5),  # the image's own statement goes first
        ('PhysicalSizeX="0.25"', None, None),
        ('PhysicalSizeX="3" PhysicalSizeY="3" PhysicalSizeXUnit="pixel" PhysicalSizeYUnit="pixel"', None, None),
        ('PhysicalSizeX="x" PhysicalSizeY="0.25"', None, None),
        ("", None, None),
    ],
)
def test_series_without_a_scale_have_the_resolution_of_the_ome_xml(
    tmp_path: Path, size: str, mpp: float | None, expected: float | None
) -> None:
    path = write_converted(tmp_path / "a.zarr", [("0", "", (60, 70)), ("1", "", (60, 70))], "0.4", size=size, mpp=mpp)
    with ZarrSource(str(path), SourceOptions(scene=1)) as source:
        assert source.info.mpp == expected
    with ZarrSource(str(path), SourceOptions(scene=0, mpp=2.0)) as source:
        assert source.info.mpp == 2.0


@pytest.mark.parametrize("xml", ["", "<OME", "<a/>", '<?xml version="1.0" encoding="none"?><OME/>'])
def test_an_ome_xml_that_cannot_be_read_says_nothing(tmp_path: Path, xml: str) -> None:
    path = write_converted(tmp_path / "a.zarr", [("0", "a", (60, 70)), ("1", "b", (60, 70))], "0.5")
    (path / "OME" / "METADATA.ome.xml").write_text(xml)
    with pytest.raises(InputError, match=r"holds 2 images \(0: 'made' 60 x 70, 1: 'made' 60 x 70\)"):
        ZarrSource(str(path), SourceOptions())


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
