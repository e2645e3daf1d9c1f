"""Image streams that are cut short, of which their decoders say nothing.

Sources: ISO 15444-1, A.4.4 (EOC) for JPEG 2000; ITU-T T.832, A.7.18 and A.7.19 (IMAGE_OFFSET, IMAGE_BYTE_COUNT) for JPEG XR.
"""

from __future__ import annotations

import struct

from tilestream.errors import ReadError

JPEG_2000_START, END_OF_CODESTREAM = b"\xff\x4f", b"\xff\xd9"

MOST_PADDING = 64
"""Zero bytes behind a JPEG 2000 stream without an end that are believed to be no lost bytes. Its coder writes no such runs."""

LOST_RUN = bytes(1024)
"""Zeros that no coder of JPEG XR writes: flat and black images have some 60 together."""

JPEG_XR_START = b"II\xbc"

IMAGE_OFFSET, IMAGE_BYTE_COUNT = 0xBCC0, 0xBCC1


def refuse_cut_jpeg_2000(data: bytes) -> None:
    """Refuse a codestream whose last bytes are lost: zeros, as in a file that was made at full size and not filled. Raises ReadError."""
    kept = data.rstrip(b"\0")
    lost = len(data) - len(kept)
    if data.startswith(JPEG_2000_START) and lost >= MOST_PADDING and not kept.endswith(END_OF_CODESTREAM):
        raise ReadError(f"a JPEG 2000 stream without an end, whose last {lost} of {len(data)} bytes are 0")


def refuse_cut_jpeg_xr(data: bytes) -> None:
    """Refuse a file of which the image is longer than the bytes that are there. Raises ReadError."""
    if not data.startswith(JPEG_XR_START) or len(data) < 8:
        return
    told: dict[int, int] = {}
    (directory,) = struct.unpack_from("<I", data, 4)
    try:
        (count,) = struct.unpack_from("<H", data, directory)
        for k in range(count):
            tag, kind, _, value = struct.unpack_from("<HHII", data, directory + 2 + 12 * k)
            told[tag] = value & 0xFFFF if kind == 3 else value  # SHORT
    except struct.error as error:
        raise ReadError(f"a JPEG XR stream whose directory at {directory} lies behind its {len(data)} bytes") from error
    start = told.get(IMAGE_OFFSET, 0)
    end = start + told.get(IMAGE_BYTE_COUNT, 0)
    if LOST_RUN in data[start:end]:
        raise ReadError(f"a JPEG XR stream of which {len(LOST_RUN)} bytes or more together are 0")
    if end > len(data):
        raise ReadError(f"a JPEG XR stream of {end} bytes, of which {len(data)} are there")
