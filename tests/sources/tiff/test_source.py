"""TIFF files by file tile: every layout and codec, equality with OpenSlide, and everything that must be refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar

import imagecodecs
import numpy as np
import openslide
import pytest
import rasterio
import tifffile
from rasterio.errors import NotGeoreferencedWarning

from tests.support.images import make_image, pyramid, write_pyramid, write_svs
from tests.support.tiff_tags import patch_tag
from tilestream.buffers import ThreadBuffers
from tilestream.geometry import Region, Size
from tilestream.sources.base import SourceOptions
from tilestream.sources.files import NoGridError
from tilestream.sources.tiff.codecs import jpeg
from tilestream.sources.tiff.source import TiffSource
from tilestream.testing.sources import Image, SourceSuite, cut, random_regions

HEIGHT, WIDTH = 413, 530


class TiffSuite(SourceSuite):
    """A made pyramid; the reference is tifffile's own reading unless said otherwise."""

    writing: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("tiff") / "made.tif"
        return write_pyramid(path, make_image(HEIGHT, WIDTH, 3), **{"tile": 128, **cls.writing})

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, path: Path) -> Image:
        return tifffile.imread(path, series=0, level=0)

    def test_is_read_by_file_tile(self, source: TiffSource) -> None:
        assert source.info.backend == "tiff"
        assert source.info.mpp == pytest.approx(0.5, rel=1e-6)
        assert source.info.mpp_source == "the TIFF resolution tags"
        assert len(source.info.levels) == 3


class JpegSuite(TiffSuite):
    """JPEG, decoded by libjpeg-turbo in OpenSlide too: equal bit for bit, at every level."""

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, path: Path) -> Image:
        return read_openslide(path, 0, Region(0, 0, HEIGHT, WIDTH))

    def test_every_level_equals_openslide(self, source: TiffSource, path: Path) -> None:
        assert_equals_openslide(source, path)


def read_openslide(path: Path, level: int, region: Region) -> Image:
    """OpenSlide's pixels on white, by its PIL interface; the region starts at a whole multiple of the downsample."""
    with openslide.OpenSlide(path) as slide:
        downsample = slide.level_downsamples[level]
        place = round(region.px_x * downsample), round(region.px_y * downsample)
        rgba = np.asarray(slide.read_region(place, level, (region.width, region.height))).astype(np.uint16)
    rgb, alpha = rgba[..., :3], rgba[..., 3:]
    return ((rgb * alpha + 127) // 255 + 255 - alpha).astype(np.uint8)


def assert_equals_openslide(source: TiffSource, path: Path) -> None:
    with openslide.OpenSlide(path) as slide:
        sizes = slide.level_dimensions
    for k, level in enumerate(source.info.levels):
        number = sizes.index((level.size.width, level.size.height))
        whole = Region(0, 0, level.size.height, level.size.width)
        exact = level.downsample == round(level.downsample)
        regions = random_regions(level.size, seed=k, count=6, side=200) if exact else [whole]
        for region in regions:
            inside = region.clipped(level.size)
            if inside is not None:
                np.testing.assert_array_equal(
                    source.read_region(k, inside), read_openslide(path, number, inside), err_msg=f"level {k} {inside}"
                )


class TestJpeg420(JpegSuite):
    writing: ClassVar = {"subsampling": (2, 2)}


class TestJpeg444(JpegSuite):
    writing: ClassVar = {"subsampling": (1, 1)}


class TestJpeg422(JpegSuite):
    writing: ClassVar = {"subsampling": (2, 1)}


class TestJpegRgbWithoutMarker(JpegSuite):
    """RGB kept as RGB inside JPEG: without a marker libjpeg would take it for YCbCr."""

    writing: ClassVar = {"jpeg_rgb": True}

    def test_the_file_stores_rgb(self, path: Path) -> None:
        with tifffile.TiffFile(path) as tif:
            assert tif.pages[0].photometric == tifffile.PHOTOMETRIC.RGB


class TestDeflateWithPredictor(TiffSuite):
    writing: ClassVar = {"compression": "deflate", "predictor": True}


class TestLzw(TiffSuite):
    writing: ClassVar = {"compression": "lzw"}


class TestZstd(TiffSuite):
    writing: ClassVar = {"compression": "zstd"}


class TestPackbits(TiffSuite):
    writing: ClassVar = {"compression": "packbits"}


class TestJpeg2000(TiffSuite):
    writing: ClassVar = {"compression": "jpeg2000"}


class TestUncompressed(TiffSuite):
    writing: ClassVar = {"compression": None}


class TestStrips(TiffSuite):
    writing: ClassVar = {"compression": "deflate", "tile": None, "rowsperstrip": 10}


class TestJpegStrips(TiffSuite):
    writing: ClassVar = {"tile": None, "rowsperstrip": 16}


class TestPlanar(TiffSuite):
    writing: ClassVar = {"compression": "deflate", "planarconfig": "separate"}

    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("tiff") / "planar.tif"
        with tifffile.TiffWriter(path) as tif:
            for k, pixels in enumerate(pyramid(make_image(HEIGHT, WIDTH, 3), 3)):
                tif.write(
                    np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate", tile=(64, 64), compression="deflate",
                    subfiletype=min(k, 1), resolution=(20000, 20000), resolutionunit="CENTIMETER", metadata=None,
                )  # fmt: skip
        return path

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, path: Path) -> Image:
        return np.moveaxis(tifffile.imread(path, series=0, level=0), 0, -1)


class TestBigTiff(TiffSuite):
    writing: ClassVar = {"compression": "deflate", "bigtiff": True}


class TestGrey(TiffSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_pyramid(tmp_path_factory.mktemp("tiff") / "grey.tif", make_image(HEIGHT, WIDTH, 3)[..., 1], tile=128)

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, path: Path) -> Image:
        grey = tifffile.imread(path, series=0, level=0)
        return np.repeat(grey[..., np.newaxis], 3, axis=-1)


class TestRgba(TiffSuite):
    """Straight alpha, random in all its values, and OpenSlide's compositing of it."""

    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        alpha = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 1), np.uint8)
        image = np.concatenate([make_image(HEIGHT, WIDTH, 3), alpha], axis=-1)
        return write_pyramid(
            tmp_path_factory.mktemp("tiff") / "rgba.tif", image, tile=128, compression="deflate", extrasamples=["unassalpha"]
        )

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, path: Path) -> Image:
        rgba = tifffile.imread(path, series=0, level=0).astype(np.uint16)
        return ((rgba[..., :3] * rgba[..., 3:] + 127) // 255 + 255 - rgba[..., 3:]).astype(np.uint8)


class TestOmeTiff(SourceSuite):
    """An OME-TIFF whose levels are SubIFDs."""

    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("tiff") / "made.ome.tif"
        first, *rest = pyramid(make_image(HEIGHT, WIDTH, 3), 3)
        with tifffile.TiffWriter(path) as tif:
            common = {"tile": (128, 128), "compression": "deflate", "photometric": "rgb"}
            tif.write(
                first,
                subifds=len(rest),
                metadata={"axes": "YXS", "PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25},
                **common,
            )
            for pixels in rest:
                tif.write(pixels, subfiletype=1, **common)
        return path

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, path: Path) -> Image:
        return tifffile.imread(path)

    def test_resolution_is_in_the_units_of_the_metadata(self, source: TiffSource) -> None:
        assert source.info.mpp == pytest.approx(0.25)
        assert len(source.info.levels) == 3


class TestAperio(SourceSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_svs(tmp_path_factory.mktemp("tiff") / "made.svs", make_image(HEIGHT, WIDTH, 3), mpp=0.25)

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, path: Path) -> Image:
        return read_openslide(path, 0, Region(0, 0, HEIGHT, WIDTH))

    def test_levels_are_the_tiled_pages(self, source: TiffSource, path: Path) -> None:
        assert source.info.vendor == "aperio"
        assert source.info.mpp == 0.25
        assert [level.size for level in source.info.levels] == [Size(HEIGHT, WIDTH), Size(HEIGHT // 2, WIDTH // 2)]
        assert_equals_openslide(source, path)


@pytest.mark.parametrize("level", [0, 60])
def test_aperio_jpeg_2000_equals_openslide(tmp_path: Path, level: int) -> None:
    path, image = tmp_path / "a.svs", make_image(300, 400, 1)
    coding = {"compression": "jpeg2000", "compressionargs": {"codecformat": "j2k", "level": level}}
    tifffile.imwrite(
        path, image, tile=(240, 240), photometric="rgb", description="Aperio Image Library v12\n400x300|MPP = 0.25", metadata=None, **coding
    )
    patch_tag(path, "Compression", 0, 33005)
    with TiffSource(str(path), SourceOptions()) as source:
        assert_equals_openslide(source, path)
    patch_tag(path, "Compression", 0, 33003)
    with pytest.raises(NoGridError, match=r"JPEG 2000 in YCbCr \(compression 33003\) is converted to RGB by OpenSlide only"):
        TiffSource(str(path), SourceOptions())


def test_rgb_jpeg_is_read_as_rgb_whatever_marker_it_carries() -> None:
    image = make_image(64, 64, 1)
    plain = imagecodecs.jpeg8_encode(image, level=95, colorspace="rgb", outcolorspace="rgb")
    assert jpeg.scan_markers(plain).components == 3
    decoder = jpeg.JpegDecoder.from_tables(None, rgb=True, height=64, width=64, buffers=ThreadBuffers())
    jfif = jpeg.SOI + b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00" + plain[2:]
    for stream in (plain, jfif, jpeg.SOI + jpeg.adobe_marker(1) + plain[2:]):
        assert np.abs(decoder.decode(stream, (64, 64)).astype(int) - image).max() < 40
        np.testing.assert_array_equal(decoder.decode(stream, (64, 64)), decoder.decode(plain, (64, 64)))


def test_imagecodecs_decodes_what_simplejpeg_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(200, 200, 2), tile=64, levels=1)
    with TiffSource(str(path), SourceOptions()) as source:
        whole = Region(0, 0, 200, 200)
        expected = source.read_region(0, whole)
        monkeypatch.setattr(jpeg, "simplejpeg", None)
        np.testing.assert_array_equal(source.read_region(0, whole), expected)


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "test3-DAPI-2-387.ndpi", "boxes.tiff", "cogeo.tif"])
def test_real_files_equal_openslide(slides: Path, name: str) -> None:
    with TiffSource(str(slides / name), SourceOptions()) as source:
        assert_equals_openslide(source, slides / name)


@pytest.mark.parametrize("name", ["RGB.byte.tif", "rgb_deflate.tif", "yb10kx5k.zstd.tiff", "grey10kx5k.tif"])
def test_real_rasters_equal_tifffile_and_gdals_mask(slides: Path, name: str) -> None:
    expected = tifffile.imread(slides / name, series=0, level=0)
    expected = np.moveaxis(expected, 0, -1) if expected.ndim == 3 and expected.shape[0] == 3 else expected
    expected = np.array(np.broadcast_to(expected if expected.ndim == 3 else expected[..., np.newaxis], (*expected.shape[:2], 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(slides / name) as judge:
            expected[judge.dataset_mask() == 0] = 255
            metres = judge.transform.a * 1e6 if judge.crs else None
    with TiffSource(str(slides / name), SourceOptions()) as source:
        assert source.info.mpp == (None if metres is None else pytest.approx(metres, rel=1e-4))
        for region in random_regions(source.info.size, seed=9, count=6):
            np.testing.assert_array_equal(source.read_region(0, region), cut(expected, region))


def test_fingerprint_follows_a_changed_byte_of_the_same_size(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(100, 100), tile=64, levels=1, compression=None)
    with TiffSource(str(path), SourceOptions()) as source:
        before = source.info.fingerprint
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with TiffSource(str(path), SourceOptions()) as source:
        assert source.info.fingerprint != before


def test_a_file_that_is_no_tiff_is_not_a_grid(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"nothing of the kind")
    with pytest.raises(NoGridError, match="cannot be read as TIFF"):
        TiffSource(str(tmp_path / "a.tif"), SourceOptions())
