"""Pieces whose last bytes are lost are unreadable, whichever codec; those beside them, and whole ones with padding, are read as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from tests.support.images import make_image
from tilestream.errors import ReadError
from tilestream.geometry import Region
from tilestream.sources.base import SourceOptions
from tilestream.sources.tiff.codecs.cut_streams import refuse_cut_jpeg_2000, refuse_cut_jpeg_xr
from tilestream.sources.tiff.source import TiffSource

CODECS: dict[str, dict[str, Any]] = {
    "jpeg2000": {}, "jpeg2000 lossy": {"level": 38}, "jpegxr": {}, "jpegxr lossy": {"level": 80}, "jpeg": {}, "webp": {}, "png": {}, "jpegxl": {},
    "lerc": {}, "deflate": {}, "lzw": {}, "zstd": {}, "lzma": {}, "packbits": {}, "none": {},
}  # fmt: skip
LAST = Region(64, 64, 64, 64)


def write(path: Path, codec: str) -> Path:
    name = codec.partition(" ")[0]
    noise = np.random.default_rng(0).integers(0, 60, (128, 128, 3))
    pixels = (make_image(128, 128) * 0.75 + noise).astype(np.uint8)
    options = {"compression": None if name == "none" else name, "compressionargs": CODECS[codec] or None}
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), metadata=None, **options)
    return path


def piece(path: Path) -> tuple[int, int]:
    """Where the last file tile lies, and its bytes."""
    with tifffile.TiffFile(path) as tif:
        return tif.pages[0].dataoffsets[3], tif.pages[0].databytecounts[3]


@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("codec", CODECS)
def test_a_piece_of_which_the_end_is_missing_is_unreadable_and_no_other(tmp_path: Path, codec: str, part: float) -> None:
    path = write(tmp_path / "a.tif", codec)
    whole = tifffile.imread(path)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tag = tif.pages[0].tags["TileByteCounts"]
        tag.overwrite([*tag.value[:3], int(tag.value[3] * part)])
    with TiffSource(str(path), SourceOptions()) as source:
        with pytest.raises(ReadError, match=r"a\.tif"):
            source.read_region(0, LAST)
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 128, 64)), whole[:, :64])


@pytest.mark.parametrize("coding", ["rgb", "ycbcr", "grey"])
@pytest.mark.parametrize("tables", [True, False])
def test_a_jpeg_that_ends_anywhere_in_its_header_spoils_no_other(tmp_path: Path, coding: str, tables: bool) -> None:
    pixels = make_image(128, 128)[..., 0] if coding == "grey" else make_image(128, 128)
    photometric = "minisblack" if coding == "grey" else coding
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, compression="jpeg", tile=(64, 64), metadata=None)
    if not tables:  # each tile with tables of its own
        parts = [imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels[y : y + 64, x : x + 64])) for y in (0, 64) for x in (0, 64)]
        photometric = "minisblack" if coding == "grey" else "ycbcr"
        options: dict[str, Any] = {"shape": pixels.shape, "dtype": pixels.dtype, "compression": "jpeg", "photometric": photometric}
        tifffile.imwrite(tmp_path / "a.tif", iter(parts), tile=(64, 64), metadata=None, **options)
    whole = tifffile.imread(tmp_path / "a.tif").reshape(128, 128, -1)
    offset, count = piece(tmp_path / "a.tif")
    header = (tmp_path / "a.tif").read_bytes()[offset : offset + count].index(b"\xff\xda") + 12
    for length in (*range(1, header, 11), header - 1):
        with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tif:
            tag = tif.pages[0].tags["TileByteCounts"]
            tag.overwrite([*tag.value[:3], length])
        with TiffSource(str(tmp_path / "a.tif"), SourceOptions()) as source:
            with pytest.raises(ReadError, match=r"file tile \(1, 1\)"):
                source.read_region(0, LAST)
            np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 64, 128)), np.broadcast_to(whole[:64], (64, 128, 3)))


@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.97])
@pytest.mark.parametrize("codec", ["jpeg2000", "jpeg2000 lossy", "jpeg", "png", "jpegxl", "deflate", "lzw", "zstd", "lzma"])
def test_a_piece_whose_end_was_never_filled_is_unreadable(tmp_path: Path, codec: str, part: float) -> None:
    path = write(tmp_path / "a.tif", codec)
    offset, count = piece(path)
    data = bytearray(path.read_bytes())
    first = offset + int(count * part)
    data[first : offset + count] = bytes(offset + count - first)
    path.write_bytes(data)
    with TiffSource(str(path), SourceOptions()) as source, pytest.raises(ReadError, match=r"a\.tif"):
        source.read_region(0, LAST)


FLAT_PICTURES = {
    "black": np.zeros((512, 512, 3), np.uint8),
    "white": np.full((512, 512, 3), 255, np.uint8),
    "coloured": np.full((512, 512, 3), (12, 200, 31), np.uint8),
    "half black": np.where(np.arange(512)[:, np.newaxis, np.newaxis] < 300, make_image(512, 512), 0).astype(np.uint8),
    "a row": np.where(np.arange(512)[:, np.newaxis, np.newaxis] == 511, make_image(512, 512), 255).astype(np.uint8),
}


@pytest.mark.parametrize("level", [None, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("picture", FLAT_PICTURES)
def test_flat_jpeg_xr_is_believed(picture: str, level: float | None) -> None:
    refuse_cut_jpeg_xr(imagecodecs.jpegxr_encode(FLAT_PICTURES[picture], level=level))


@pytest.mark.parametrize("first", [0.1, 0.5, 0.7])
def test_jpeg_xr_with_a_part_that_was_never_filled_is_unreadable(tmp_path: Path, first: float) -> None:
    path = write(tmp_path / "a.tif", "jpegxr")
    offset, count = piece(path)
    data = bytearray(path.read_bytes())
    at = offset + int(count * first)
    data[at : at + 1500] = bytes(1500)
    path.write_bytes(data)
    with (
        TiffSource(str(path), SourceOptions()) as source,
        pytest.raises(ReadError, match="JPEG XR stream of which 1024 bytes or more together are 0"),
    ):
        source.read_region(0, LAST)


@pytest.mark.parametrize("codecformat", ["j2k", "jp2"])
@pytest.mark.parametrize("padding", [0, 1, 500])
@pytest.mark.parametrize("ended", [True, False])
def test_streams_with_padding_or_without_an_end_are_believed(codecformat: str, padding: int, ended: bool) -> None:
    stream = imagecodecs.jpeg2k_encode(make_image(64, 64), codecformat=codecformat)
    if ended or padding < 64:
        refuse_cut_jpeg_2000((stream if ended else stream[:-2]) + bytes(padding))
    elif codecformat == "j2k":
        with pytest.raises(ReadError, match=r"without an end, whose last \d+ of \d+ bytes are 0"):
            refuse_cut_jpeg_2000(stream[:-2] + bytes(padding))
