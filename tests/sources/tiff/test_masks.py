"""Transparency masks and nodata are alpha: rasterio, which is GDAL, says where the image is, and tilestream is white elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from rasterio.enums import Resampling
from rasterio.transform import Affine

from tests.support.images import halve, make_image
from tests.support.range_server import serving
from tests.support.runs import embed, opened
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.testing.sources import Image, SourceSuite

IMAGE = make_image(512, 640)


def write_gdal(path: Path, pixels: Image, mask: Any, *, internal: bool, overviews: tuple[int, ...] = (), **options: Any) -> Path:
    """A GeoTIFF with a mask, by GDAL."""
    height, width, bands = pixels.shape
    profile = {
        "driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": pixels.dtype, "crs": "EPSG:32633", "tiled": True, "blockxsize": 128, "blockysize": 128,
        "transform": Affine(10, 0, 500_000, 0, -10, 5_000_000), "photometric": "RGB", **options,
    }  # fmt: skip
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        with rasterio.open(path, "w", **profile) as file:
            file.write(np.moveaxis(pixels, -1, 0))
            if mask is not None:
                file.write_mask(mask)
        if overviews:
            with rasterio.open(path, "r+") as file:
                file.build_overviews(overviews, Resampling.nearest)
    return path


def whitened(path: Path) -> Image:
    """All of the image, white where rasterio's mask is 0; JPEG by tifffile, whose decoder smooths chroma as OpenSlide's does and GDAL's does not."""
    with rasterio.open(path) as judge:
        lossy = judge.profile.get("compress") == "jpeg"
        pixels = tifffile.imread(path, key=0).copy() if lossy else np.moveaxis(judge.read(), 0, -1).copy()
        pixels[judge.dataset_mask() == 0] = 255
    return pixels


def slanted() -> Any:
    y, x = np.mgrid[:512, :640]
    return ((x + 2 * y) % 700 < 450).astype(np.uint8) * 255


class TestInternalMask(SourceSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_gdal(tmp_path_factory.mktemp("mask") / "a.tif", IMAGE, slanted(), internal=True, compress="deflate", overviews=(2, 4))

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, path: Path) -> Image:
        return whitened(path)


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"compress": "jpeg", "photometric": "YCBCR"}, {"compress": "lzw", "interleave": "band"}, {"tiled": False, "blockysize": 16}],
)
def test_masks_are_gdals_whatever_the_coding(tmp_path: Path, options: dict[str, Any], internal: bool) -> None:
    path = write_gdal(tmp_path / "a.tif", IMAGE, slanted(), internal=internal, **options)
    assert (tmp_path / "a.tif.msk").exists() != internal
    with open_source(str(path), SourceOptions()) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 512, 640)), whitened(path))
        grid = source.segment_grid(0)
        assert grid is not None
        piece = source.read_segment(0, 1, 0)
        assert piece is not None
        np.testing.assert_array_equal(piece, source.read_region(0, Region(grid.height, 0, *piece.shape[:2])))


@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize("internal", [True, False])
def test_masks_beside_an_object_are_those_beside_a_file(tmp_path: Path, internal: bool, staged: bool) -> None:
    (tmp_path / "web").mkdir()
    path = write_gdal(tmp_path / "web" / "a.tif", IMAGE, slanted(), internal=internal)
    options = SourceOptions(stage=str(tmp_path / "stage")) if staged else SourceOptions()
    fingerprints = []
    with serving(tmp_path / "web") as server:
        for version in range(2):
            with open_source(server.url("a.tif", "?sig=1"), options) as source:
                fingerprints.append(source.info.fingerprint)
                np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 512, 640)), whitened(path))
                assert source.info.address == server.url("a.tif", "?sig=1")
            write_gdal(path, IMAGE, slanted()[::-1] if version == 0 else slanted(), internal=internal)
        assert fingerprints[0] != fingerprints[1]
        if not internal:
            (tmp_path / "web" / "a.tif.msk").write_text("<html>no such page")
            with open_source(server.url("a.tif"), options) as source:
                np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 512, 640)), IMAGE)


def test_levels_without_a_mask_of_their_own_take_level_0s(tmp_path: Path) -> None:
    mask = slanted()
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(IMAGE, tile=(128, 128), photometric="rgb", metadata=None)
        tif.write(halve(IMAGE), tile=(128, 128), photometric="rgb", subfiletype=1, metadata=None)
        tif.write(mask > 0, tile=(128, 128), photometric="mask", subfiletype=4, metadata=None)
    with open_source(str(tmp_path / "a.tif"), SourceOptions()) as source:
        assert [level.downsample for level in source.info.levels] == [1, 2]
        expected = np.where(mask[1::2, 1::2, np.newaxis] > 0, halve(IMAGE), np.uint8(255))
        np.testing.assert_array_equal(source.read_region(1, Region(0, 0, 256, 320)), expected)
        np.testing.assert_array_equal(source.read_region(1, Region(77, 33, 100, 90)), expected[77:177, 33:123])


def test_blocks_that_a_mask_never_wrote_are_outside(tmp_path: Path) -> None:
    mask = np.zeros((512, 640), np.uint8)
    mask[:128, :128] = 255
    path = write_gdal(tmp_path / "a.tif", IMAGE, mask, internal=True, sparse_ok=True)
    with open_source(str(path), SourceOptions()) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 512, 640)), whitened(path))


def test_masked_pixels_are_no_tissue(tmp_path: Path) -> None:
    pixels = IMAGE.copy()
    pixels[:, 320:] = (150, 20, 20)
    mask = np.full((512, 640), 255, np.uint8)
    mask[:, 320:] = 0
    write_gdal(tmp_path / "a.tif", pixels, mask, internal=True)
    embed(str(tmp_path / "a.tif"), tmp_path / "out", tiles={"size": 64, "tissue": "otsu"})
    obs = opened(tmp_path / "out", "a").obs
    assert len(obs) > 0
    assert (obs.x < 320).all()


@pytest.mark.parametrize(
    ("nodata", "dtype", "window"),
    [
        (0, "uint8", None),
        (255, "uint8", None),
        (7, "uint8", None),
        (0, "uint16", (0, 4095)),
        (-9999, "int16", (0, 4095)),
        (float("nan"), "float32", (0, 1)),
    ],
)
def test_nodata_is_white(tmp_path: Path, nodata: float, dtype: str, window: Any) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(1, 200, (200, 300, 3)).astype(dtype) / (1 if dtype != "float32" else 200)
    values = values.astype(dtype)
    values[50:90, 100:] = nodata
    values[120:, :20, 0] = nodata  # one band of three: still an image
    path = write_gdal(tmp_path / "a.tif", values, None, internal=True, nodata=nodata)
    with rasterio.open(path) as judge:
        absent = judge.dataset_mask() == 0
    assert absent.sum() == 40 * 200
    with open_source(str(path), SourceOptions(window=window, channels=(0, 1, 2) if dtype != "uint8" else None)) as source:
        pixels = source.read_region(0, Region(0, 0, 200, 300))
        assert (pixels[absent] == 255).all()
        if dtype == "uint8":
            np.testing.assert_array_equal(pixels[~absent], values[~absent])
        assert source.info.properties["geo.nodata"] == f"{nodata:g}"


def test_a_profile_does_not_tint_what_is_masked(tmp_path: Path) -> None:
    from tests.support.profiles import odd_profile

    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(IMAGE, tile=(128, 128), photometric="rgb", metadata=None, iccprofile=odd_profile())
        tif.write(slanted() > 0, tile=(128, 128), photometric="mask", subfiletype=4, metadata=None)
    with open_source(str(tmp_path / "a.tif"), SourceOptions(icc=True)) as source:
        pixels = source.read_region(0, Region(0, 0, 512, 640))
        assert (pixels[slanted() == 0] == 255).all()
        assert source.info.properties["icc"] == "applied"
