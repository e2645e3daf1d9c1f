"""Channels by the names that GDAL, OME-XML and OME-Zarr give them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from tilestream.errors import InputError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions

BANDS = ("coastal", "Blue", "Green", "Red", "nir")
PIXELS = np.random.default_rng(4).integers(0, 255, (5, 48, 64), np.uint8)
WHOLE = Region(0, 0, 48, 64)


def geotiff(path: Path) -> Path:
    """A raster as GDAL itself writes it."""
    rasterio = pytest.importorskip("rasterio")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            path / "bands.tif", "w", driver="GTiff", height=48, width=64, count=5, dtype="uint8", tiled=True, blockxsize=16, blockysize=16
        ) as out:
            out.write(PIXELS)
            out.descriptions = BANDS
    return path / "bands.tif"


def ome_tiff(path: Path) -> Path:
    """One page a channel."""
    tifffile.imwrite(
        path / "bands.ome.tif", PIXELS, tile=(16, 16), photometric="minisblack", metadata={"axes": "CYX", "Channel": {"Name": list(BANDS)}}
    )
    return path / "bands.ome.tif"


def ome_zarr(path: Path, version: str = "0.5") -> Path:
    """Channels with omero labels."""
    root = zarr.create_group(path / "bands.zarr", zarr_format=3 if version == "0.5" else 2)
    root.create_array("0", data=PIXELS, chunks=(2, 16, 16))
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    about = {
        "multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}],
        "omero": {"channels": [{"label": name, "color": "FFFFFF"} for name in BANDS]},
    }
    root.attrs.update({"ome": {"version": version, **about}} if version == "0.5" else about)
    return path / "bands.zarr"


def old_zarr(path: Path) -> Path:
    """The same in version 0.4, whose metadata lies at the top."""
    return ome_zarr(path, "0.4")


KINDS = [geotiff, ome_tiff, ome_zarr, old_zarr]


@pytest.mark.parametrize("make", KINDS)
def test_channels_by_name_are_those_channels(tmp_path: Path, make) -> None:
    path = str(make(tmp_path))
    for chosen in (("Red", "Green", "Blue"), ("red", "green", "blue"), ("red", 2, "blue")):
        with open_source(path, SourceOptions(channels=chosen)) as source:
            np.testing.assert_array_equal(source.read_region(0, WHOLE), np.moveaxis(PIXELS[[3, 2, 1]], 0, 2))
            assert source.info.properties["channels"] == "0: coastal, 1: Blue, 2: Green, 3: Red, 4: nir"
    with open_source(path, SourceOptions(channels=("nir",))) as source:
        np.testing.assert_array_equal(source.read_region(0, WHOLE)[..., 1], PIXELS[4])


@pytest.mark.parametrize("make", KINDS)
def test_who_must_choose_is_told_the_names(tmp_path: Path, make) -> None:
    path = str(make(tmp_path))
    with pytest.raises(InputError, match=r"is 5 long \(0: coastal, 1: Blue, 2: Green, 3: Red, 4: nir\)\. .*channels: \[red, green, blue\]"):
        open_source(path, SourceOptions())
    with pytest.raises(
        InputError, match=r"source\.channels: 'gren' is none of its channels, which are 0: coastal, .*Did you mean 'Green'\?"
    ):
        open_source(path, SourceOptions(channels=("red", "gren", "blue")))


def test_a_name_of_two_channels_and_a_file_without_names_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.ome.tif", PIXELS, photometric="minisblack", metadata={"axes": "CYX", "Channel": {"Name": ["a", "B", "b", "a", "c"]}}
    )
    with pytest.raises(InputError, match=r"'a' is the name of channels 0, 3"):
        open_source(str(tmp_path / "a.ome.tif"), SourceOptions(channels=("a",)))
    with open_source(str(tmp_path / "a.ome.tif"), SourceOptions(channels=("b",))) as source:
        np.testing.assert_array_equal(source.read_region(0, WHOLE)[..., 0], PIXELS[2])
    tifffile.imwrite(tmp_path / "b.tif", np.moveaxis(PIXELS, 0, 2), photometric="minisblack", planarconfig="contig", metadata=None)
    with pytest.raises(InputError, match=r"source\.channels: 'red', but the file does not name its channels\. Give numbers, 0 to 4"):
        open_source(str(tmp_path / "b.tif"), SourceOptions(channels=("red",)))


def test_rgb_has_its_names_without_metadata(tmp_path: Path) -> None:
    pixels = np.moveaxis(PIXELS[:4], 0, 2)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", planarconfig="contig", extrasamples=["unspecified"], metadata=None)
    with open_source(str(tmp_path / "a.tif"), SourceOptions(channels=("blue", "green", "red"))) as source:
        np.testing.assert_array_equal(source.read_region(0, WHOLE), pixels[..., [2, 1, 0]])


@pytest.mark.parametrize(
    "text", ["<GDALMetadata><Item name=", "no xml", '<GDALMetadata><Item sample="x" role="description">a</Item></GDALMetadata>']
)
def test_gdal_metadata_that_is_damaged_names_nothing(tmp_path: Path, text: str) -> None:
    tags = [(42112, "s", 0, text, True)]
    tifffile.imwrite(
        tmp_path / "a.tif", np.moveaxis(PIXELS, 0, 2), photometric="minisblack", planarconfig="contig", metadata=None, extratags=tags
    )
    with open_source(str(tmp_path / "a.tif"), SourceOptions(channels=(1,))) as source:
        assert "channels" not in source.info.properties
