"""OME-TIFF in several files: channels are joined, missing files are named."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.support.images import make_image
from tilestream.errors import InputError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.facts.describe import describe_image
from tilestream.testing.sources import Image

SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
RGB = SourceOptions(channels=(0, 1, 2))
ALL = Region(0, 0, 300, 260)


def write_channels(folder: Path, image: Image, *, z: int = 1) -> list[Path]:
    """One file a channel, as Micro-Manager and many exporters write them; with `z` planes each."""
    ids = [uuid.uuid4().urn for _ in range(3)]
    data = "".join(
        f'<TiffData FirstC="{c}" FirstZ="{k}" IFD="{k}" PlaneCount="1"><UUID FileName="c{c}.ome.tif">{ids[c]}</UUID></TiffData>'
        for c in range(3)
        for k in range(z)
    )
    height, width = image.shape[:2]
    channels = "".join(f'<Channel ID="Channel:0:{c}" SamplesPerPixel="1"/>' for c in range(3))
    paths = []
    for c in range(3):
        xml = (
            f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{SCHEMA}" UUID="{ids[c]}"><Image ID="Image:0"><Pixels ID="Pixels:0" '
            f'DimensionOrder="XYZCT" Type="uint8" SizeX="{width}" SizeY="{height}" SizeC="3" SizeZ="{z}" SizeT="1" PhysicalSizeX="0.25" '
            f'PhysicalSizeY="0.25">{channels}{data}</Pixels></Image></OME>'
        )
        paths.append(folder / f"c{c}.ome.tif")
        with tifffile.TiffWriter(paths[-1]) as tif:
            for k in range(z):
                tif.write(
                    np.roll(image[..., c], k, axis=0),
                    tile=(64, 64),
                    photometric="minisblack",
                    metadata=None,
                    description=None if k else xml,
                )
    return paths


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_channels_of_several_files_are_one_image_whichever_is_named(tmp_path: Path, opened: int) -> None:
    image = make_image(300, 260)
    paths = write_channels(tmp_path, image)
    with open_source(str(paths[opened]), RGB) as source, open_source(str(paths[0]), RGB) as first:
        assert source.info.mpp == 0.25
        assert source.info.fingerprint == first.info.fingerprint
        np.testing.assert_array_equal(source.read_region(0, ALL), image)
        np.testing.assert_array_equal(np.moveaxis(tifffile.imread(paths[opened]), 0, -1), image)
    with open_source(str(paths[opened]), SourceOptions(channels=(2,))) as source:
        np.testing.assert_array_equal(source.read_region(0, ALL)[..., 0], image[..., 2])


def test_planes_are_chosen_among_files_too(tmp_path: Path) -> None:
    image = make_image(300, 260)
    paths = write_channels(tmp_path, image, z=3)
    with pytest.raises(InputError, match=r"axis C is 3 long; axis Z is 3 long|axis Z is 3 long; axis C is 3 long"):
        open_source(str(paths[0]), SourceOptions())
    with open_source(str(paths[1]), SourceOptions(channels=(0, 1, 2), z=2)) as source:
        np.testing.assert_array_equal(source.read_region(0, ALL), np.roll(image, 2, axis=0))


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_file_is_named_and_the_others_can_be_chosen(tmp_path: Path, lost: int, capfd: pytest.CaptureFixture[str]) -> None:
    image = make_image(300, 260)
    paths = write_channels(tmp_path, image)
    paths.pop(lost).unlink()
    with pytest.raises(InputError, match=rf"lies in several files, and 1 of them are not in .*: c{lost}\.ome\.tif\. Put them beside"):
        open_source(str(paths[0]), RGB)
    there = (lost + 1) % 3
    with open_source(str(paths[0]), SourceOptions(channels=(there,))) as source:
        np.testing.assert_array_equal(source.read_region(0, ALL)[..., 0], image[..., there])
    assert capfd.readouterr() == ("", "")


def test_a_file_whose_metadata_lies_elsewhere_names_it(tmp_path: Path) -> None:
    xml = f'<OME xmlns="{SCHEMA}"><BinaryOnly MetadataFile="set.companion.ome" UUID="urn:uuid:1"/></OME>'
    tifffile.imwrite(tmp_path / "a.ome.tif", make_image(64, 64), photometric="rgb", metadata=None, description=xml)
    with pytest.raises(InputError, match=r"told in set\.companion\.ome\. Convert the whole to OME-Zarr: bioformats2raw"):
        open_source(str(tmp_path / "a.ome.tif"), SourceOptions())


@pytest.mark.parametrize(
    ("lost", "end"),
    [([], r"\."), ([1], r" \(not in [^)]*: c1\.ome\.tif\)\."), ([1, 2], r" \(not in [^)]*: c1\.ome\.tif, c2\.ome\.tif\)\.")],
)
@pytest.mark.parametrize("z", [1, 3])
def test_who_must_choose_is_told_in_which_files_the_planes_lie(tmp_path: Path, lost: list[int], end: str, z: int) -> None:
    paths = write_channels(tmp_path, make_image(300, 260), z=z)
    for number in lost:
        paths[number].unlink()
    named = rf"the image lies in 3 files: c0\.ome\.tif, c1\.ome\.tif, c2\.ome\.tif{end} Choose in the config, .*channels: \[0, 1, 2\]"
    with pytest.raises(InputError, match=rf"axis C is 3 long; .*{named}"):
        describe_image(str(paths[0]))


def test_an_image_in_one_file_speaks_of_no_others(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", np.moveaxis(make_image(300, 260), -1, 0), photometric="minisblack", metadata={"axes": "CYX"})
    with pytest.raises(InputError, match=r"axis C is 3 long\. Choose in the config"):
        describe_image(str(tmp_path / "a.ome.tif"))


@pytest.mark.parametrize(
    ("pixels", "options", "words"),
    [
        (make_image(150, 130, 2)[..., 1], {"tile": (64, 64)}, "c1.ome.tif is another kind of picture: 150 x 130 uint8"),
        (make_image(300, 260, 2)[..., 1].astype(np.uint16), {"tile": (64, 64)}, "300 x 260 uint16"),
        (make_image(300, 260, 2)[..., 1], {"tile": (128, 128)}, "in tiles of 128 x 128"),
        (make_image(300, 260, 2)[..., 1], {"tile": (64, 64), "compression": "zlib"}, "ADOBE_DEFLATE"),
    ],
)
def test_files_that_are_not_made_alike_are_refused_by_name(tmp_path: Path, pixels: Image, options: dict[str, object], words: str) -> None:
    paths = write_channels(tmp_path, make_image(300, 260, 1))
    tifffile.imwrite(paths[1], pixels, photometric="minisblack", metadata=None, **options)
    with pytest.raises(InputError, match=words):
        open_source(str(paths[0]), RGB)


def test_a_file_that_is_no_tiff_is_named(tmp_path: Path) -> None:
    paths = write_channels(tmp_path, make_image(300, 260, 1))
    paths[2].write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"of them c2\.ome\.tif cannot be read as TIFF\. Copy them again"):
        open_source(str(paths[0]), RGB)


def test_a_companion_that_is_there_does_not_make_its_file_an_image_of_its_own(tmp_path: Path) -> None:
    xml = f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{SCHEMA}"><BinaryOnly MetadataFile="m.companion.ome" UUID="{uuid.uuid4().urn}"/></OME>'
    tifffile.imwrite(tmp_path / "a.ome.tif", make_image(300, 260, 1)[..., 0], tile=(64, 64), metadata=None, description=xml.encode())
    (tmp_path / "m.companion.ome").write_text(f'<OME xmlns="{SCHEMA}"/>')
    for options in (SourceOptions(), RGB):
        with pytest.raises(InputError, match=r"told in m\.companion\.ome"):
            open_source(str(tmp_path / "a.ome.tif"), options)
