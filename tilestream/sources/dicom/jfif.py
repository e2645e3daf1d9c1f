"""DICOM slides whose header says RGB while their JPEG frames are JFIF, which is YCbCr: OpenSlide believes the header, every JPEG decoder the frame.

Sources: JFIF 1.02 (T.871), DICOM PS3.5 section 8.2.1 and A.4 (encapsulated frames), libjpeg's `jdcolor.c` for the rounding.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilestream.config.dicom_series import DicomHeader, headers_in, read_header
from tilestream.config.same_slide import finest
from tilestream.errors import ReadError
from tilestream.sources.base import Pixels
from tilestream.sources.tiff.codecs.jpeg import APP0, scan_markers

JPEG_SYNTAXES = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})
"""Baseline and extended JPEG."""

ITEM = b"\xfe\xff\x00\xe0"
FRAME_HEAD = 1 << 16
"""Bytes of a frame that are looked at."""

WARNING = "the DICOM header says RGB, but its JPEG frames are JFIF, which is YCbCr; the colours are taken as JFIF says."

_SHIFT = 16
_CHROMA = np.arange(256, dtype=np.int64) - 128


def _fixed(factor: float) -> int:
    return int(factor * (1 << _SHIFT) + 0.5)


_HALF = 1 << (_SHIFT - 1)
_RED = ((_fixed(1.402) * _CHROMA + _HALF) >> _SHIFT).astype(np.int16)
_BLUE = ((_fixed(1.772) * _CHROMA + _HALF) >> _SHIFT).astype(np.int16)
_GREEN_CR = (-_fixed(0.71414) * _CHROMA).astype(np.int32)
_GREEN_CB = (-_fixed(0.34414) * _CHROMA + _HALF).astype(np.int32)


def says_rgb_but_is_jfif(address: str) -> bool:
    """Whether the slide that a DICOM file belongs to has YCbCr frames under a header that says RGB."""
    header = read_header(Path(address))
    if header is not None and "VOLUME" not in header.image_type:
        header = finest(other for other in headers_in(Path(address).parent) if other.series == header.series)
    return header is not None and header.photometric == "RGB" and header.syntax in JPEG_SYNTAXES and _begins_with_jfif(header)


def _begins_with_jfif(header: DicomHeader) -> bool:
    """Whether the first frame has a JFIF marker."""
    with header.path.open("rb") as file:
        file.seek(header.pixels_at)
        tag, length = struct.unpack("<4sI", file.read(8))  # the table of offsets, which may be empty
        if tag != ITEM:
            return False
        file.seek(length, 1)
        if file.read(4) != ITEM:
            return False
        file.seek(4, 1)
        try:
            return is_jfif(file.read(FRAME_HEAD))
        except ReadError:
            return False


def is_jfif(data: bytes) -> bool:
    """Whether a JPEG stream has a JFIF marker. Raises ReadError for what is no JPEG stream."""
    return any(data[start + 1] == APP0 and data[start + 4 : start + 8] == b"JFIF" for start, _ in scan_markers(data).colour_markers)


def rgb_from_ycc(ycc: Pixels, outside: NDArray[np.bool_]) -> Pixels:
    """(h, w, 3) uint8 RGB from Y, Cb, Cr with libjpeg's rounding; white where nothing was decoded."""
    luma, cb, cr = (ycc[..., k] for k in range(3))
    out = np.empty_like(ycc)
    np.clip(luma + _RED[cr], 0, 255, out=out[..., 0], casting="unsafe")
    np.clip(luma + ((_GREEN_CB[cb] + _GREEN_CR[cr]) >> _SHIFT), 0, 255, out=out[..., 1], casting="unsafe")
    np.clip(luma + _BLUE[cb], 0, 255, out=out[..., 2], casting="unsafe")
    out[outside] = 255
    return out
