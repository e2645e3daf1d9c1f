"""Frames of every transfer syntax, offset table and sample type: equal to OpenSlide where it reads them, else to pydicom or to what was stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pydicom
import pytest
from PIL import Image as Pillow
from pydicom.dataset import Dataset
from pydicom.pixels import iter_pixels

from tests.sources.tiff.test_source import read_openslide
from tests.support.dicom import CODINGS, cut_frames, encode_jpeg, write_coded, write_series
from tests.support.images import make_image, pyramid
from tilestream.errors import InputError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.dicom import frames as module
from tilestream.sources.dicom.source import DicomSource
from tilestream.testing.sources import Image, SourceSuite

IMAGE, AUTO = make_image(150, 200), SourceOptions()
OPENSLIDE_READS = ("native", "jpeg 4:2:0", "jpeg 4:4:4", "jpeg rgb", "jpeg 2000 lossless", "jpeg 2000", "jpeg 2000 rgb")
LOSSLESS = ("native", "native implicit", "jpeg 2000 lossless", "htj2k", "rle")


def read_level(path: Path, level: int = 0, options: SourceOptions = AUTO) -> Image:
    with open_source(str(path), options) as source:
        assert isinstance(source, DicomSource)
        size = source.info.levels[level].size
        return source.read_region(level, Region(0, 0, size.height, size.width))


def read_pydicom(path: Path) -> Image:
    """All of a file's level by pydicom's own decoders."""
    data = pydicom.dcmread(path)
    tile, cols = data.Rows, -(-data.TotalPixelMatrixColumns // data.Columns)
    out = np.zeros((-(-data.TotalPixelMatrixRows // tile) * tile, cols * tile, 3), np.uint8)
    for k, frame in enumerate(iter_pixels(data)):
        out[k // cols * tile :, k % cols * tile :][:tile, :tile] = frame if frame.ndim == 3 else frame[..., np.newaxis]
    return out[: data.TotalPixelMatrixRows, : data.TotalPixelMatrixColumns]


class DicomSuite(SourceSuite):
    coding: str

    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("dicom")
        return write_coded(folder, pyramid(make_image(700, 530), 3), cls.coding, tile=128)[0]

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, path: Path) -> Image:
        return read_openslide(path, 0, Region(0, 0, 700, 530)) if cls.coding in OPENSLIDE_READS else read_pydicom(path)

    def test_fingerprint_is_stable_and_follows_the_bytes(self, path: Path, tmp_path: Path) -> None:
        """Of every file of a series, whichever is named."""
        folder = tmp_path / "copy"
        folder.mkdir()
        for each in path.parent.iterdir():
            (folder / f"renamed-{each.name}").write_bytes(each.read_bytes())
        prints = [_fingerprint(each) for each in (path, path.with_name("1.dcm"), folder / "renamed-2.dcm", folder)]
        assert len(set(prints)) == 1
        with (folder / "renamed-2.dcm").open("ab") as file:
            file.write(b"\0")
        assert _fingerprint(folder) != prints[0]


def _fingerprint(path: Path) -> str:
    with open_source(str(path), AUTO) as source:
        return source.info.fingerprint


class TestJpeg(DicomSuite):
    coding = "jpeg 4:2:0"


class TestRle(DicomSuite):
    coding = "rle"


@pytest.mark.parametrize("coding", CODINGS)
def test_each_syntax_gives_the_pixels_that_others_read(tmp_path: Path, coding: str) -> None:
    paths = write_coded(tmp_path, pyramid(IMAGE, 2), coding)
    for level, path in enumerate(paths):
        pixels = read_level(paths[0], level)
        if coding in OPENSLIDE_READS:
            np.testing.assert_array_equal(pixels, read_openslide(paths[0], level, Region(0, 0, *pixels.shape[:2])))
        if coding == "htj2k lossy":
            assert np.abs(pixels.astype(int) - pyramid(IMAGE, 2)[level]).max() <= 4
        if coding in LOSSLESS:
            np.testing.assert_array_equal(pixels, pyramid(IMAGE, 2)[level])
        if coding in ("native", "native implicit", "rle", "jpeg 2000", "jpeg 2000 lossless", "jpeg 2000 rgb"):
            np.testing.assert_array_equal(pixels, read_pydicom(path))


@pytest.mark.parametrize("coding", [name for name in CODINGS if name not in OPENSLIDE_READS])
def test_openslide_is_the_judge_of_all_that_it_reads(tmp_path: Path, coding: str) -> None:
    path = write_coded(tmp_path, [IMAGE], coding)[0]
    with pytest.raises(openslide.OpenSlideError):
        openslide.OpenSlide(path).read_region((0, 0), 0, (200, 150))


TABLES = [("basic", 1), ("basic", 3), ("extended", 1), ("none", 1), ("none", 3)]
"""Kinds of tables of offsets, and fragments of a frame. A frame in RLE is one fragment (PS3.5 A.4.2)."""


@pytest.mark.parametrize(
    ("coding", "table", "fragments"),
    [(coding, *table) for coding in ("jpeg 4:2:0", "jpeg 2000", "rle") for table in TABLES if coding != "rle" or table[1] == 1],
)
def test_frames_are_found_by_every_table_and_without_one(tmp_path: Path, coding: str, table: str, fragments: int) -> None:
    expected = read_level(write_coded(tmp_path / "a", [IMAGE], coding)[0])
    path = write_coded(tmp_path / "b", [IMAGE], coding, table=table, fragments=fragments)[0]
    np.testing.assert_array_equal(read_level(path), expected)


def test_fragments_are_walked_once_by_a_process_as_long_as_the_file_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_coded(tmp_path, [IMAGE], "jpeg 4:2:0", table="none")[0]
    expected, walks = read_level(path), []
    original = module._walk_fragments
    monkeypatch.setattr(module, "_walk_fragments", lambda *given: walks.append(given) or original(*given))
    np.testing.assert_array_equal(read_level(path), expected)
    assert not walks
    write_coded(tmp_path, [255 - IMAGE], "jpeg 4:2:0", table="none")
    assert (read_level(path) != expected).any()
    assert len(walks) == 1


def test_a_basic_table_that_has_begun_anew_beyond_four_gib_is_not_believed(tmp_path: Path) -> None:
    path = write_coded(tmp_path, [IMAGE], "jpeg 4:2:0")[0]
    expected, data = read_level(path), bytearray(path.read_bytes())
    at = data.index(b"\xfe\xff\x00\xe0") + 8
    data[at + 40 : at + 44] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    np.testing.assert_array_equal(read_level(path), expected)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("coding", ["native", "jpeg 4:2:0", "jpeg 2000 lossless", "rle"])
def test_grey_is_grey_and_may_be_inverted(tmp_path: Path, photometric: str, coding: str) -> None:
    grey, how = IMAGE[..., 0], CODINGS[coding]
    frames = None if how.encode is None else [[how.encode(tile) for tile in cut_frames(grey, 64)]]
    path = write_series(tmp_path, [grey], frames=frames, photometric=photometric, syntax=how.syntax)[0]
    expected = read_pydicom(path)
    np.testing.assert_array_equal(read_level(path), 255 - expected if photometric == "MONOCHROME1" else expected)


def test_planes_of_samples_are_put_together(tmp_path: Path) -> None:
    def change(number: int, data: Dataset) -> None:
        tiles = [np.moveaxis(tile, 2, 0).tobytes() for tile in cut_frames(IMAGE, 64)]
        data.PlanarConfiguration, data.PixelData = 1, b"".join(tiles)
        data["PixelData"].VR = "OB"

    np.testing.assert_array_equal(read_level(write_series(tmp_path, [IMAGE], change=change)[0]), IMAGE)


def test_uncompressed_ycbcr_becomes_rgb(tmp_path: Path) -> None:
    ycc = Pillow.fromarray(IMAGE).convert("YCbCr")
    path = write_series(tmp_path, [np.asarray(ycc)], photometric="YBR_FULL")[0]
    assert np.abs(read_level(path).astype(int) - np.asarray(ycc.convert("RGB"))).max() <= 1


@pytest.mark.parametrize("coding", ["native", "jpeg 2000 lossless", "rle"])
def test_sixteen_bits_need_a_window(tmp_path: Path, coding: str) -> None:
    values, how = (IMAGE[..., 0].astype(np.uint16) * 257), CODINGS[coding]
    frames = None if how.encode is None else [[how.encode(tile) for tile in cut_frames(values, 64)]]
    path = write_series(tmp_path, [values], frames=frames, photometric="MONOCHROME2", syntax=how.syntax)[0]
    with pytest.raises(InputError, match=r"samples are uint16\. Choose in the config, for example source: \{window: \[0, 4095\]\}"):
        read_level(path)
    pixels = read_level(path, options=SourceOptions(window=(0, 65535)))
    np.testing.assert_array_equal(pixels, np.broadcast_to(IMAGE[..., :1], IMAGE.shape))


def test_one_sample_of_colour_may_be_chosen(tmp_path: Path) -> None:
    pixels = read_level(write_series(tmp_path, [IMAGE])[0], options=SourceOptions(channels=(1,)))
    np.testing.assert_array_equal(pixels, np.broadcast_to(IMAGE[..., 1:2], IMAGE.shape))


def test_jpeg_is_decoded_at_half_scale_where_that_is_wanted(tmp_path: Path) -> None:
    path = write_coded(tmp_path, [IMAGE], "jpeg 4:2:0")[0]
    with open_source(str(path), SourceOptions(reduced=True)) as source:
        assert [level.downsample for level in source.info.levels] == [1, 2, 4]
        half = source.read_region(1, Region(0, 0, 75, 100))
    exact = IMAGE.reshape(75, 2, 100, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - exact).mean() < 3


def test_streams_for_a_device_are_the_frames(tmp_path: Path) -> None:
    path = write_coded(tmp_path, [IMAGE], "jpeg 4:4:4")[0]
    with open_source(str(path), AUTO) as source:
        assert source.has_jpeg_streams(0)
        stream = source.encoded_segment(0, 1, 2)
    assert stream is not None
    tile = cut_frames(IMAGE, 64)[6]
    assert stream.endswith(encode_jpeg(tile, subsampling=0)[-200:])


@pytest.mark.parametrize("icc", [b"p" * 3000, None])
def test_facts_of_the_header_are_told(tmp_path: Path, icc: bytes | None) -> None:
    def change(number: int, data: Dataset) -> None:
        if icc is not None:
            data.OpticalPathSequence[0].ICCProfile = icc

    path = write_series(tmp_path, pyramid(IMAGE, 2), overview=True, change=change)[0]
    with open_source(str(path), AUTO) as source:
        info = source.info
        assert (info.backend, info.vendor, info.mpp, info.mpp_source) == ("dicom", "dicom", 0.5, "the DICOM pixel spacing")
        assert info.reason == "dicom: regular grid of 64 x 64 NONE frames"
        assert info.properties["dicom.other_files"] == "2.dcm: OVERVIEW"
        assert info.properties["dicom.files"] == "0.dcm, 1.dcm"
        assert source.icc_profile == icc


def test_without_pydicom_openslide_reads_and_the_words_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_series(tmp_path, [IMAGE])[0]
    monkeypatch.setattr("tilestream.sources.find_spec", lambda name: None)
    with open_source(str(path), AUTO) as source:
        assert source.info.backend == "openslide"
        assert source.info.reason.endswith("where pydicom is installed, several times as fast: pip install 'tilestream[dicom]'")
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 150, 200)), IMAGE)
