"""Frames of DICOM slides to samples, by transfer syntax (PS3.5 section 10 and annex A), and what the samples mean."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from tilestream.buffers import ThreadBuffers
from tilestream.errors import InputError, ReadError
from tilestream.sources.dicom.instance import INVERTED, NATIVE, Instance
from tilestream.sources.dicom.jfif import is_jfif, rgb_from_ycc
from tilestream.sources.files import NoGridError
from tilestream.sources.sample_values import Choices, SampleRule
from tilestream.sources.tiff.jpeg import JpegDecoder

JPEG = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})
JPEG_LS = frozenset({"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"})
JPEG_2000 = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
HTJ2K = frozenset({"1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"})
RLE = "1.2.840.10008.1.2.5"
BIG_ENDIAN = "1.2.840.10008.1.2.2"

NAMES = {
    **dict.fromkeys(JPEG, "jpeg"), **dict.fromkeys(JPEG_LS, "jpegls"), **dict.fromkeys(JPEG_2000, "jpeg2000"), **dict.fromkeys(HTJ2K, "htj2k"),
    **dict.fromkeys(NATIVE, "none"), RLE: "rle",
}  # fmt: skip
"""Words for `SlideInfo.compression`."""

SIZ = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 codestream and its size marker; length, capabilities, then Xsiz, Ysiz, XOsiz, YOsiz follow (ISO 15444-1, A.5.1)."""

SOF_LS = b"\xff\xf7"
"""Start of a JPEG-LS frame; length, precision, then height and width follow (T.87, C.2.2)."""

CODECS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "jpeg2000": (imagecodecs.JPEG2K, imagecodecs.jpeg2k_decode),
    "htj2k": (imagecodecs.HTJ2K, imagecodecs.htj2k_decode),
    "jpegls": (imagecodecs.JPEGLS, imagecodecs.jpegls_decode),
    "rle": (imagecodecs.DICOMRLE, imagecodecs.dicomrle_decode),
}

Decode = Callable[[bytes, Instance], NDArray[Any]]


def decoder_of(found: Instance) -> Decode:
    """What makes (h, w, s) samples of a frame's bytes, for every syntax but JPEG. Raises InputError where the syntax is not read here."""
    name = NAMES.get(found.syntax)
    if name == "none":
        return _from_native
    if name not in CODECS:
        raise NoGridError(f"{found.path}: the transfer syntax {_syntax_words(found.syntax)} is not read")
    if not getattr(CODECS[name][0], "available", False):
        raise InputError(
            f"{found.path}: the transfer syntax {_syntax_words(found.syntax)} needs imagecodecs with {name.upper()}. Install a newer one."
        )
    return _from_rle if name == "rle" else _from_stream


def jpeg_decoder(found: Instance, first_frame: bytes, buffers: ThreadBuffers) -> tuple[JpegDecoder, bool]:
    """The decoder of an image's JPEG frames, and whether they are YCbCr under a header that says RGB."""
    if found.bits_stored != 8 or found.bits != 8:
        raise InputError(f"{found.path}: JPEG frames of {found.bits_stored} bits a sample; those of 8 are read.")
    mistold = found.photometric == "RGB" and is_jfif(first_frame)
    rgb = found.photometric == "RGB" and not mistold
    return JpegDecoder.from_tables(None, rgb=rgb, height=found.tile.height, width=found.tile.width, buffers=buffers), mistold


def sample_rule(found: Instance, choices: Choices, paths: int) -> SampleRule:
    """How samples become RGB; what cannot be known is noted in `choices`, where more than one optical path has taken the channels."""
    window = choices.options.window
    choices.values(np.dtype(np.uint8 if found.bits == 8 else np.uint16), found.bits_stored if found.bits_stored < 8 else found.bits)
    channels = None
    if paths > 1:
        chosen = choices.numbers or (0,)
        if len(chosen) > 1 and found.samples > 1:
            choices.refuse(f"each of its {paths} optical paths has {found.samples} samples a pixel", "channels", "[0]")
    elif choices.options.channels is not None:
        channels = choices.channels(found.samples, "the samples of a pixel")
    return SampleRule(channels, window, invert=found.photometric == INVERTED)


def decode_frame(data: bytes, found: Instance, decode: Decode) -> NDArray[Any]:
    """(h, w, s) samples of a frame, RGB or grey, at least as large as the tile. Raises ReadError."""
    samples = decode(data, found)
    samples = samples[..., np.newaxis] if samples.ndim == 2 else samples
    wanted = found.tile.height, found.tile.width, found.samples
    if samples.shape != wanted or samples.dtype.itemsize * 8 != found.bits or samples.dtype.kind != "u":
        raise ReadError(f"decoded to {samples.shape} {samples.dtype} where {wanted} of {found.bits} bits belong")
    if found.photometric in ("YBR_FULL", "YBR_FULL_422"):
        return rgb_from_ycc(samples, np.zeros(samples.shape[:2], np.bool_))
    return samples


def sample_type(found: Instance) -> np.dtype[Any]:
    """Type of the samples as uncompressed frames have them."""
    return np.dtype(f"{'>' if found.syntax == BIG_ENDIAN else '<'}u{found.bits // 8}")


def _from_native(data: bytes, found: Instance) -> NDArray[Any]:
    return _arranged(np.frombuffer(data, sample_type(found)), found, planar=found.planar)


def _from_rle(data: bytes, found: Instance) -> NDArray[Any]:
    kind = np.dtype(f"<u{found.bits // 8}")
    try:
        samples = np.frombuffer(imagecodecs.dicomrle_decode(data, kind), kind)
    except (imagecodecs.DicomrleError, ValueError, RuntimeError, TypeError) as error:
        raise ReadError(f"RLE decoder: {error}") from error
    if samples.size != found.tile.height * found.tile.width * found.samples:
        raise ReadError(f"decoded to {samples.size} samples where {found.tile.height} x {found.tile.width} x {found.samples} belong")
    return _arranged(samples, found, planar=True)


def _arranged(samples: NDArray[Any], found: Instance, *, planar: bool) -> NDArray[Any]:
    """(h, w, s) samples in the machine's byte order from a flat array of them."""
    height, width, count = found.tile.height, found.tile.width, found.samples
    shaped = samples.reshape(count, height, width).transpose(1, 2, 0) if planar else samples.reshape(height, width, count)
    return shaped if shaped.dtype.isnative else shaped.astype(shaped.dtype.newbyteorder("="))


def _from_stream(data: bytes, found: Instance) -> NDArray[Any]:
    """JPEG 2000, HTJ2K and JPEG-LS; what a stream claims is compared with its place before memory is taken for it."""
    name = NAMES[found.syntax]
    at = data.find(SOF_LS if name == "jpegls" else SIZ, 0, 4096)
    if at < 0 or len(data) < at + 24:
        raise ReadError(f"no {name} stream: starts with {data[:4].hex(' ')}")
    if name == "jpegls":
        height, width = struct.unpack_from(">2H", data, at + len(SOF_LS) + 3)
    else:
        right, bottom, left, top = struct.unpack_from(">4I", data, at + len(SIZ) + 4)
        height, width = bottom - top, right - left
    if (height, width) != (found.tile.height, found.tile.width):
        raise ReadError(f"image of {height} x {width} px in a frame of {found.tile.height} x {found.tile.width}")
    try:
        return np.asarray(CODECS[name][1](data))
    except (
        imagecodecs.Jpeg2kError,
        imagecodecs.Htj2kError,
        imagecodecs.JpeglsError,
        ValueError,
        RuntimeError,
        TypeError,
        MemoryError,
    ) as error:
        raise ReadError(f"decoder: {str(error) or type(error).__name__}") from error


def _syntax_words(syntax: str) -> str:
    from pydicom.uid import UID

    name = UID(syntax).name
    return syntax if name == syntax else f"{name} ({syntax})"
