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
from tilestream.sources.dicom.jfif import rgb_from_ycc
from tilestream.sources.files import NoGridError
from tilestream.sources.sample_values import Choices, SampleRule
from tilestream.sources.tiff.codecs.cut_streams import refuse_cut_jpeg_2000
from tilestream.sources.tiff.codecs.jpeg import JpegDecoder

JPEG = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})
JPEG_2000 = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
HTJ2K = frozenset({"1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"})
RLE = "1.2.840.10008.1.2.5"
BIG_ENDIAN = "1.2.840.10008.1.2.2"

NAMES = {
    **dict.fromkeys(JPEG, "jpeg"), **dict.fromkeys(JPEG_2000, "jpeg2000"), **dict.fromkeys(HTJ2K, "htj2k"),
    **dict.fromkeys(NATIVE, "none"), RLE: "rle",
}  # fmt: skip
"""Words for `SlideInfo.compression`."""

SIZ = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 codestream and its size marker; length, capabilities, then Xsiz, Ysiz, XOsiz, YOsiz follow (ISO 15444-1, A.5.1)."""

Decode = Callable[[bytes, Instance], NDArray[Any]]


def decoder_of(found: Instance) -> Decode:
    """What makes (h, w, s) samples of a frame's bytes, for every syntax but JPEG. Raises NoGridError where the syntax is not read here."""
    if found.syntax in NATIVE:
        return _from_native
    if found.syntax == RLE:
        return _from_rle
    if found.syntax in JPEG_2000 | HTJ2K:
        return _from_jpeg_2000
    from pydicom.uid import UID

    raise NoGridError(f"{found.name}: the transfer syntax {UID(found.syntax).name} ({found.syntax}) is not read")


def jpeg_decoder(found: Instance, buffers: ThreadBuffers, *, mistold: bool) -> JpegDecoder:
    """The decoder of an image's JPEG frames; `mistold` where they are YCbCr under a header that says RGB. Raises InputError."""
    if found.bits_stored != 8 or found.bits != 8:
        raise InputError(
            f"{found.name}: JPEG frames of {found.bits_stored} bits a sample; those of 8 are read. Convert it to 8 bits, or to JPEG 2000."
        )
    rgb = found.photometric == "RGB" and not mistold
    return JpegDecoder.from_tables(None, rgb=rgb, height=found.tile.height, width=found.tile.width, buffers=buffers)


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
    samples = np.frombuffer(data, sample_type(found))
    if found.pixels.turned:
        samples = samples.reshape(-1, 2)[:, ::-1].reshape(-1)
    return _arranged(samples, found, planar=found.planar)


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


def _from_jpeg_2000(data: bytes, found: Instance) -> NDArray[Any]:
    """By OpenJPEG, which knows HTJ2K as well; what a stream claims is compared with its place before memory is taken for it."""
    refuse_cut_jpeg_2000(data)
    at = data.find(SIZ, 0, 4096)
    if at < 0 or len(data) < at + 24:
        raise ReadError(f"no JPEG 2000 stream: starts with {data[:4].hex(' ')}")
    right, bottom, left, top = struct.unpack_from(">4I", data, at + len(SIZ) + 4)
    if (bottom - top, right - left) != (found.tile.height, found.tile.width):
        raise ReadError(f"image of {bottom - top} x {right - left} px in a frame of {found.tile.height} x {found.tile.width}")
    try:
        return np.asarray(imagecodecs.jpeg2k_decode(data))
    except (imagecodecs.Jpeg2kError, ValueError, RuntimeError, TypeError, MemoryError) as error:
        raise ReadError(f"decoder: {str(error) or type(error).__name__}") from error
