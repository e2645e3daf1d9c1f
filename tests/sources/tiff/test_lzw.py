"""LZW streams that a decoder would read beyond its table for."""

import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from tilestream.errors import ReadError
from tilestream.sources.base import SourceOptions
from tilestream.sources.tiff.codecs.lzw import CLEAR, END, check_lzw
from tilestream.sources.tiff.source import TiffSource


def packed(codes: list[int]) -> bytes:
    """Codes as a TIFF stream, each as wide as the table needs it after the codes before."""
    text, since = "", -1
    for code in codes:
        text += format(code, f"0{9 if since < 254 else 10 if since < 766 else 11 if since < 1790 else 12}b")
        since = 0 if code == CLEAR else since + 1
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 60_000), st.sampled_from([1, 2, 7, 64, 256]), st.integers(0, 2**32 - 1))
def test_what_an_encoder_writes_passes(size, kinds, seed):
    data = np.random.default_rng(seed).integers(0, kinds, size).astype(np.uint8).tobytes()
    check_lzw(imagecodecs.lzw_encode(data))


@pytest.mark.parametrize("before", [[], [65], [65] * 300, [65] * 2000, [65] * 3000 + [CLEAR] + [66] * 1000])
def test_a_code_that_no_table_holds_is_refused_wherever_the_clear_code_is(before):
    sound = [CLEAR, *before, CLEAR, 65, END]
    check_lzw(packed(sound))
    assert imagecodecs.lzw_decode(packed(sound)) == bytes(code for code in sound if code < CLEAR)
    with pytest.raises(ReadError, match=r"LZW code 300 at bit \d+ follows a clear code"):
        check_lzw(packed([CLEAR, *before, CLEAR, 300, 65, END]))


def test_what_follows_the_end_does_not_matter():
    check_lzw(packed([CLEAR, 65, END, CLEAR, 300]))
    check_lzw(b"")
    check_lzw(b"\x80")


@pytest.mark.parametrize("fill_order", [1, 2])
def test_the_tile_fails_and_its_neighbour_is_read(tmp_path, fill_order):
    path = tmp_path / "a.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (64, 128, 3)).astype(np.uint8)
    private = [(65000, "H", 1, fill_order, True)]  # the writer refuses FillOrder itself: it is renamed below
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), compression="lzw", metadata=None, extratags=private)
    with tifffile.TiffFile(path) as tif:
        offsets, counts = tif.pages[0].dataoffsets, tif.pages[0].databytecounts
    data = bytearray(path.read_bytes().replace(struct.pack("<HHI", 65000, 3, 1), struct.pack("<HHI", 266, 3, 1)))
    data[offsets[1] : offsets[1] + 4] = packed([CLEAR, 329, 162])
    if fill_order == 2:
        mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
        for offset, count in zip(offsets, counts, strict=True):
            data[offset : offset + count] = data[offset : offset + count].translate(mirrored)
    path.write_bytes(data)
    with TiffSource(str(path), SourceOptions()) as source:
        assert np.array_equal(source.read_segment(0, 0, 0), pixels[:, :64])
        with pytest.raises(ReadError, match=r"file tile \(0, 1\): decoder: LZW code 329 at bit 9"):
            source.read_segment(0, 0, 1)
