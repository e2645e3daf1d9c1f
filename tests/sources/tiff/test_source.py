"""TIFF files by file tile: every layout and codec, equality with OpenSlide, and everything that must be refused."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any, ClassVar

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile

from tests.support.images import make_image, pyramid, write_pyramid, write_svs
from tilestream.buffers import ThreadBuffers
from tilestream.errors import ConfigError, InputError, ReadError
from tilestream.geometry import Region, Size
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.files import NoGridError
from tilestream.sources.tiff import jpeg
from tilestream.sources.tiff.source import TiffSource
from tilestream.testing.sources import Image, SourceSuite, random_regions

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
def test_real_rasters_equal_tifffile(slides: Path, name: str) -> None:
    expected = tifffile.imread(slides / name, series=0, level=0)
    expected = np.moveaxis(expected, 0, -1) if expected.ndim == 3 and expected.shape[0] == 3 else expected
    with TiffSource(str(slides / name), SourceOptions()) as source:
        assert source.info.mpp is None
        for region in random_regions(source.info.size, seed=9, count=6):
            inside = region.clipped(source.info.size)
            if inside is not None:
                rgb = expected if expected.ndim == 3 else expected[..., np.newaxis]
                part = rgb[inside.px_y : inside.px_y + inside.height, inside.px_x : inside.px_x + inside.width]
                np.testing.assert_array_equal(source.read_region(0, inside), np.broadcast_to(part, (*part.shape[:2], 3)))


def test_mask_pages_are_not_levels(slides: Path) -> None:
    with TiffSource(str(slides / "cogeo.tif"), SourceOptions()) as source:
        assert [level.size.width for level in source.info.levels] == [1024, 512, 256, 128, 64, 32, 16]


def test_only_the_damaged_tile_fails(slides: Path) -> None:
    with (
        TiffSource(str(slides / "badtile.svs"), SourceOptions()) as source,
        TiffSource(str(slides / "CMU-1-Small-Region.svs"), SourceOptions()) as good,
    ):
        with pytest.raises(ReadError, match=r"badtile\.svs: level 0, file tile \(3, 5\): not a JPEG"):
            source.read_segment(0, 3, 5)
        for row, col in [(3, 4), (3, 6), (2, 5), (4, 5)]:
            np.testing.assert_array_equal(source.read_segment(0, row, col), np.array(good.read_segment(0, row, col)))


def test_undeclared_second_sample_is_alpha_and_said_to_be(slides: Path) -> None:
    with TiffSource(str(slides / "small_la.tiff"), SourceOptions()) as source:
        assert source.read_region(0, Region(0, 0, 1, 2)).tolist() == [[[255] * 3] * 2]
        assert "taken as alpha" in source.info.warnings[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zero_gi.tif", "0 x 2 px has no pixels"),
        ("unopenable.tiff", "compression 52479 is not supported"),
        ("broken.svs", "cannot be read as TIFF: not a TIFF file"),
        (
            "multi-channel-z-series.ome.tif",
            r"axis C is 3 long; axis Z is 5 long; samples are int8\. .*source: \{z: 0, channels: \[0, 1, 2\], window",
        ),
    ],
)
def test_files_that_cannot_be_read_are_refused_by_name(slides: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        TiffSource(str(slides / name), SourceOptions())


def test_chosen_axes_are_read(slides: Path) -> None:
    path = slides / "multi-channel-z-series.ome.tif"
    stack = tifffile.imread(path)  # (c, z, y, x) int8
    options = SourceOptions(z=3, channels=(2, 0, 1), window=(-128, 127))
    with TiffSource(str(path), options) as source:
        expected = np.moveaxis(stack[[2, 0, 1], 3].astype(np.int16) + 128, 0, -1)
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, *stack.shape[2:])), expected)
    with pytest.raises(InputError, match=r"source\.z: 5, but axis Z has indices 0 to 4"):
        TiffSource(str(path), SourceOptions(z=5, channels=(0,), window=(0, 1)))
    with pytest.raises(InputError, match=r"source\.channels: \[3\], but axis C has indices 0 to 2"):
        TiffSource(str(path), SourceOptions(z=0, channels=(3,), window=(0, 1)))


@pytest.mark.parametrize(
    ("pixels", "writing", "words"),
    [
        (np.zeros((64, 64), np.uint16), {}, r"samples are uint16\. .*window: \[0, 4095\]"),
        (np.zeros((64, 64), np.float32), {}, r"samples are float32\. .*window: \[0, 1\]"),
        (np.zeros((64, 64), np.bool_), {}, r"samples are 1-bit\. .*window: \[0, 1\]"),
        (
            np.zeros((64, 64, 5), np.uint8),
            {"photometric": "minisblack", "planarconfig": "contig"},
            r"axis S is 5 long\. .*channels: \[0, 1, 2\]",
        ),
        (np.zeros((64, 64, 4), np.uint8), {"photometric": "rgb", "extrasamples": ["unspecified"]}, "fourth not said to be alpha"),
        (np.zeros((4, 64, 64), np.uint8), {"photometric": "minisblack"}, r"axis I is 4 long\. .*source: \{z: 0\}"),
        (np.zeros((64, 64), np.uint8), {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}, "colours are PALETTE"),
        (np.zeros((64, 64, 4), np.uint8), {"photometric": "separated"}, "colours are SEPARATED"),
    ],
)
def test_what_is_not_8_bit_grey_or_rgb_must_be_chosen(tmp_path: Path, pixels: Any, writing: dict[str, Any], words: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None, **writing)
    with pytest.raises(InputError, match=words):
        TiffSource(str(tmp_path / "a.tif"), SourceOptions())


def test_window_maps_linearly_and_clips(tmp_path: Path) -> None:
    values = np.array([[0, 100, 300, 500, 65535]], np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, metadata=None)
    with TiffSource(str(tmp_path / "a.tif"), SourceOptions(window=(100, 500))) as source:
        assert source.read_region(0, Region(0, 0, 1, 5))[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_windows_and_channels_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tif", make_image(64, 64), tile=64, levels=1)
    with pytest.raises(ConfigError, match=r"source\.window: \[5, 5\]; the second value must be above"):
        TiffSource(str(tmp_path / "a.tif"), SourceOptions(window=(5, 5)))
    with pytest.raises(ConfigError, match=r"source\.channels: \[0, 1\]; give one"):
        TiffSource(str(tmp_path / "a.tif"), SourceOptions(channels=(0, 1)))


def test_channels_of_rgb_can_be_chosen(tmp_path: Path) -> None:
    image = make_image(100, 90, 4)
    path = write_pyramid(tmp_path / "a.tif", image, tile=64, levels=1, compression="deflate")
    with TiffSource(str(path), SourceOptions(channels=(2, 1, 0))) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 100, 90)), image[..., ::-1])


def test_images_of_comparable_size_are_scenes(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    images = [make_image(200, 300, 1), make_image(210, 250, 2)]
    with tifffile.TiffWriter(path) as tif:
        for name, image in zip(["first", "second"], images, strict=True):
            tif.write(image, photometric="rgb", metadata={"Name": name})
        tif.write(make_image(150, 290, 3), photometric="rgb", metadata={"Name": "macro image"})
    with pytest.raises(InputError, match=r"holds 2 images \(0: 200 x 300, 1: 210 x 250\)\. .*source: \{scene: 0\}"):
        TiffSource(str(path), SourceOptions())
    with TiffSource(str(path), SourceOptions(scene=1)) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 210, 250)), images[1])
    with pytest.raises(InputError, match=r"source\.scene: 2, but the file has scenes 0 to 1"):
        TiffSource(str(path), SourceOptions(scene=2))


def test_pieces_without_bytes_are_white_background(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(128, 128), tile=64, levels=1)
    patch_tag(path, "TileByteCounts", 1, 0)
    with TiffSource(str(path), SourceOptions()) as source:
        assert source.read_segment(0, 0, 1) is None
        assert (source.read_region(0, Region(0, 64, 64, 64)) == 255).all()
        np.testing.assert_array_equal(source.read_region(0, Region(0, 60, 64, 68)), read_openslide(path, 0, Region(0, 60, 64, 68)))


def test_offsets_beyond_the_end_fail_that_tile_only(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(128, 128), tile=64, levels=1)
    patch_tag(path, "TileOffsets", 2, 10**8)
    with TiffSource(str(path), SourceOptions()) as source:
        with pytest.raises(ReadError, match=r"file tile \(1, 0\): \d+ bytes at 100000000 lie beyond the file's"):
            source.read_segment(0, 1, 0)
        assert source.read_segment(0, 0, 0) is not None


@pytest.mark.parametrize("compression", ["deflate", "zstd", "lzw", "jpeg2000"])
def test_damaged_pieces_fail_with_the_decoders_words(tmp_path: Path, compression: str) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(128, 128), tile=64, levels=1, compression=compression)
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[1], tif.pages[0].databytecounts[1]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * min(count, 200))
    with TiffSource(str(path), SourceOptions()) as source:
        with pytest.raises(ReadError, match=r"file tile \(0, 1\): de"):
            source.read_segment(0, 0, 1)
        assert source.read_segment(0, 0, 0) is not None


def test_huge_tiles_and_cut_files_are_refused(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(128, 128), tile=64, levels=1)
    shutil.copy(path, tmp_path / "cut.tif")
    with (tmp_path / "cut.tif").open("r+b") as file:
        file.truncate(40)
    with pytest.raises(InputError, match=r"cut\.tif: cannot be read as TIFF"):
        TiffSource(str(tmp_path / "cut.tif"), SourceOptions())
    for tag in ("TileWidth", "TileLength"):
        patch_tag(path, tag, 0, 32768)
    with pytest.raises(InputError, match=r"32768 x 32768 px decodes to 3072 MiB, the limit is 256 MiB"):
        TiffSource(str(path), SourceOptions())


def test_a_huge_jpeg_in_a_small_tile_is_not_decoded(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(128, 128), tile=64, levels=1)
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[0], tif.pages[0].databytecounts[0]
    data = path.read_bytes()
    frame = data.index(b"\xff\xc0", offset, offset + count)
    with path.open("r+b") as file:
        file.seek(frame + 5)
        file.write(b"\xff\xdc\xff\xdc")
    with (
        TiffSource(str(path), SourceOptions()) as source,
        pytest.raises(ReadError, match="JPEG of 65500 x 65500 px in a file tile of 64 x 64"),
    ):
        source.read_segment(0, 0, 0)


def test_a_huge_jpeg_2000_in_a_small_tile_is_not_decoded(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(128, 128), tile=64, levels=1, compression="jpeg2000")
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\x4f\xff\x51") + 8
    data[at : at + 8] = struct.pack(">2I", 60000, 50000)
    path.write_bytes(data)
    with (
        TiffSource(str(path), SourceOptions()) as source,
        pytest.raises(ReadError, match="image of 50000 x 60000 px in a file tile of 64 x 64"),
    ):
        source.read_segment(0, 0, 0)


def patch_tag(path: Path, name: str, position: int, value: int) -> None:
    """Overwrite one value of a tag of the first page where it stands."""
    with tifffile.TiffFile(path) as tif:
        tag = tif.pages[0].tags[name]
        size = tag.dataformat[-1].upper()
        values = [tag.value] if isinstance(tag.value, int) else list(tag.value)
        where, order = tag.valueoffset, tif.byteorder
    values[position] = value
    with path.open("r+b") as file:
        file.seek(where)
        file.write(struct.pack(f"{order}{len(values)}{size}", *values))


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp", "warning"),
    [
        ((40000, 40000), "CENTIMETER", 0.25, None),
        ((101600, 101600), "INCH", 0.25, None),
        ((40000, 40200), "CENTIMETER", (0.25 + 1e4 / 40200) / 2, None),
        ((72, 72), "INCH", None, "placeholder"),
        ((40000, 40000), "NONE", None, None),
        ((0, 0), "CENTIMETER", None, "is no resolution"),
    ],
)
def test_resolution_tags_count_where_a_scanner_could_mean_them(
    tmp_path: Path, resolution: Any, unit: str, mpp: float | None, warning: str | None
) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(64, 64), tile=64, levels=1, resolution=resolution, resolutionunit=unit)
    with TiffSource(str(path), SourceOptions()) as source:
        assert source.info.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-6))
        assert [warning in w for w in source.info.warnings] == ([True] if warning else [])
    with TiffSource(str(path), SourceOptions(mpp=0.7)) as source:
        assert (source.info.mpp, source.info.mpp_source) == (0.7, "config")


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(64, 64), tile=64, levels=1, resolution=(40000, 20000), resolutionunit="CENTIMETER")
    with pytest.raises(InputError, match=r"pixels are not square.*0\.25 µm/px in x and 0\.5 in y"):
        TiffSource(str(path), SourceOptions())
    with TiffSource(str(path), SourceOptions(mpp=0.3)) as source:
        assert source.info.mpp == 0.3


@pytest.mark.parametrize(("stated", "mpp"), [("0.2521", 0.2521), ("0,2521", 0.2521), ("0", None), ("nan", None), ("-1", None)])
def test_aperio_resolution_is_checked(tmp_path: Path, stated: Any, mpp: float | None) -> None:
    path = write_svs(tmp_path / "a.svs", make_image(100, 100), mpp=stated)
    with TiffSource(str(path), SourceOptions()) as source:
        assert source.info.mpp == mpp
        assert len(source.info.warnings) == (1 if stated != "0.2521" else 0)


def test_pages_of_another_shape_are_not_levels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        common: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
        tif.write(make_image(200, 400), **common)
        tif.write(make_image(100, 200), subfiletype=1, **common)
        tif.write(make_image(90, 90), subfiletype=1, **common)
    with TiffSource(str(path), SourceOptions()) as source:
        assert [level.size for level in source.info.levels] == [Size(200, 400), Size(100, 200)]


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


@pytest.mark.parametrize("coding", [{"subsampling": (2, 2)}, {"subsampling": (1, 1)}])
def test_levels_made_by_the_decoder_are_close_to_the_average(tmp_path: Path, coding: dict[str, Any]) -> None:
    faint = make_image(500, 700, 3) // 4 + 96  # the average is of clipped values, the decoder clips the average
    path = write_pyramid(tmp_path / "a.tif", faint, levels=1, **coding)
    with TiffSource(str(path), SourceOptions()) as plain, TiffSource(str(path), SourceOptions(reduced=True)) as source:
        assert [level.downsample for level in source.info.levels] == [1.0, 2.0, 4.0]
        assert [level.size for level in source.info.levels] == [Size(500, 700), Size(250, 350), Size(125, 175)]
        full = source.read_region(0, Region(0, 0, 500, 700))
        np.testing.assert_array_equal(full, plain.read_region(0, Region(0, 0, 500, 700)))
        for level, factor in ((1, 2), (2, 4)):
            size = source.info.levels[level].size
            reduced = source.read_region(level, Region(0, 0, size.height, size.width)).astype(int)
            average = full.reshape(size.height, factor, size.width, factor, 3).mean(axis=(1, 3))
            assert np.abs(reduced - average).mean() < 1.0


def test_no_level_is_made_where_the_file_has_it_or_the_codec_cannot(tmp_path: Path) -> None:
    image = make_image(512, 512, 3)
    has = write_pyramid(tmp_path / "a.tif", image, tile=128, levels=3)
    with TiffSource(str(has), SourceOptions(reduced=True)) as source:
        assert [level.downsample for level in source.info.levels] == [1.0, 2.0, 4.0, 8.0, 16.0]
    cannot = write_pyramid(tmp_path / "b.tif", image, tile=128, levels=2, compression="deflate")
    with TiffSource(str(cannot), SourceOptions(reduced=True)) as source:
        assert [level.downsample for level in source.info.levels] == [1.0, 2.0]


def test_an_index_that_lists_too_few_pieces_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((256, 256, 3), np.uint8), photometric="rgb", tile=(64, 64))
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags["ImageWidth"].overwrite(4_194_560)
    with pytest.raises(InputError, match=r"lists 16 pieces where 4 x 65540 x 1 belong"):
        open_source(str(path), SourceOptions())  # OpenSlide opens it, and fails on each of 262,144 tiles
