"""What one DICOM file of a slide says of its image, read by pydicom and checked: DICOM PS3.3 A.32.8 (VL Whole Slide Microscopy) and C.8.12."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError
from tilestream.geometry import Size
from tilestream.sources.base import LARGEST_PROFILE
from tilestream.sources.dicom.kept import Kept
from tilestream.sources.storage.contract import ByteSource
from tilestream.sources.storage.pieces import MAX_PIECE_BYTES

PIXEL_DATA = 0x7FE00010
UNDEFINED = 0xFFFFFFFF

PLANE_POSITION, OPTICAL_PATH, COLUMN, ROW, DEPTH = 0x0048021A, 0x00480207, 0x0048021E, 0x0048021F, 0x0040074A
"""Where a frame lies, and in which light: two sequences, and three numbers of the first."""

HEAD = 8
"""Bytes of an item of encapsulated pixels before its value: tag and length."""

MOST_TILES = 1 << 24
"""Places for frames in a level that are believed: a square level of a million px has as many of 256 px."""

NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
"""Transfer syntaxes of uncompressed pixels; all others encapsulate their frames."""

FULL, SPARSE = "TILED_FULL", "TILED_SPARSE"
SUBSAMPLED = "YBR_FULL_422"
INVERTED = "MONOCHROME1"
"""Grey of which 0 is white."""

COLOURS = {"RGB": 3, "YBR_FULL": 3, SUBSAMPLED: 3, "YBR_ICT": 3, "YBR_RCT": 3, INVERTED: 1, "MONOCHROME2": 1}
"""Colours that are read, with their samples a pixel."""

WANTED = (
    "ImageType", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored",
    "PixelRepresentation", "TotalPixelMatrixRows", "TotalPixelMatrixColumns", "TotalPixelMatrixFocalPlanes", "DimensionOrganizationType",
    "OpticalPathSequence", "ConcatenationFrameOffsetNumber", "ConcatenationUID", "SharedFunctionalGroupsSequence", "ImagedVolumeWidth", "ImagedVolumeHeight",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "Manufacturer", "ManufacturerModelName",
)  # fmt: skip

DAMAGED = (
    *(struct.error, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(AssertionError, RuntimeError, EOFError, MemoryError),
)
"""What pydicom raises on damaged files, beside its own InvalidDicomError: it trusts lengths and types."""


@dataclass(frozen=True)
class PixelElement:
    """Where the pixel data of a file lie."""

    at: int
    """Byte at which the value begins."""
    length: int | None
    """Its bytes; None where frames are encapsulated, whose items say how long they are."""
    turned: bool
    """Whether they are words of two bytes of which the second is the first sample: OW of 8-bit samples in the order of big-endian machines (PS3.5 8.1.1)."""
    extended: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    """Offsets and lengths of the frames by the extended offset table; None where there is none."""


@dataclass(frozen=True)
class Instance:
    """One file: a level of a slide, or a part of one."""

    name: str
    """Address as messages show it."""
    syntax: str
    """TransferSyntaxUID."""
    size: Size
    """Of the whole level."""
    tile: Size
    """Of a frame."""
    frames: int
    first: int
    """Number of the first frame among those of its concatenation."""
    concatenation: str
    """UID that the parts of one image share; "" where it is not in parts."""
    photometric: str
    samples: int
    planar: bool
    """Whether the samples of a pixel lie apart."""
    bits: int
    """Bits that a sample takes."""
    bits_stored: int
    planes: int
    """Focal planes of a TILED_FULL image."""
    paths: tuple[tuple[str, str], ...]
    """Identifier and description of its optical paths."""
    places: NDArray[np.int64] | None
    """(frames, 4): row and column in pixels from 0, focal plane in nm, optical path by its number in `paths`; None for TILED_FULL."""
    spacing: tuple[float, float] | None
    """mm a pixel in y and x."""
    spacing_source: str
    icc_profile: bytes | None
    pixels: PixelElement

    @property
    def file_name(self) -> str:
        """The last part of its address."""
        return self.name.rpartition("/")[2]

    @property
    def frame_bytes(self) -> int:
        """Bytes of a decoded frame."""
        return self.tile.height * self.tile.width * self.samples * self.bits // 8


_PLACES: Kept[NDArray[np.int64] | None] = Kept(16)
"""They take a tenth of a millisecond a frame to read."""


def read_instance(stored: ByteSource) -> Instance:
    """A file of a slide.

    Raises
    ------
    InputError
        It is damaged, or of a kind that is not read; the message says which.
    """
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with stored.open_file() as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values that break a rule of form and can be read all the same
            return _instance(stored, file)
    except InputError:
        raise
    except (*DAMAGED, BytesLengthException, InvalidDicomError) as error:
        words = str(error).split("\n", 1)[0] or type(error).__name__
        raise InputError(
            f"{stored.name}: its DICOM header cannot be read: {words}. The file is damaged; copy it again from its origin."
        ) from error


def _instance(stored: ByteSource, file: Any) -> Instance:
    import pydicom

    name = stored.name
    data = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(WANTED))
    syntax = str(data.file_meta.TransferSyntaxUID)
    at, length, words = _pixel_element(name, file, data)
    frames = _whole(name, data, "NumberOfFrames", 1)
    size = Size(_whole(name, data, "TotalPixelMatrixRows"), _whole(name, data, "TotalPixelMatrixColumns"))
    tile = Size(_whole(name, data, "Rows"), _whole(name, data, "Columns"))
    tiles = -(-size.height // tile.height) * -(-size.width // tile.width)
    if tiles > MOST_TILES:
        raise InputError(
            f"{name}: a level of {size.height} x {size.width} px in frames of {tile.height} x {tile.width} has {tiles} tiles, the limit is {MOST_TILES}."
        )
    paths = _optical_paths(data)
    organization = str(data.get("DimensionOrganizationType", "") or "")
    places = None if organization == FULL else _PLACES.get(stored, lambda: _places(stored, frames, paths))
    if places is None and organization not in (FULL, ""):
        raise InputError(f"{name}: its frames are organised as {organization}; {FULL} and {SPARSE} are read. Export it as one of them.")
    photometric = str(data.get("PhotometricInterpretation", ""))
    spacing, source = _spacing(data, size)
    made = Instance(
        name, syntax, size, tile, frames,
        _whole(name, data, "ConcatenationFrameOffsetNumber", 0, least=0) if data.get("ConcatenationUID") else 0,
        str(data.get("ConcatenationUID", "") or ""), photometric, _whole(name, data, "SamplesPerPixel", 1), bool(data.get("PlanarConfiguration", 0) or 0),
        _whole(name, data, "BitsAllocated"), _whole(name, data, "BitsStored", 8), _whole(name, data, "TotalPixelMatrixFocalPlanes", 1),
        paths, places, spacing, source, _icc_profile(data), PixelElement(at, length, words and int(data.get("BitsAllocated") or 0) == 8, _extended(data, frames)),
    )  # fmt: skip
    _check(made, int(data.get("PixelRepresentation", 0) or 0))
    held = stored.size if length is None else length
    least = HEAD if length is None else made.frame_bytes
    if frames * least > held or frames > MOST_TILES:
        raise InputError(
            f"{name}: claims {frames} frames in {held} bytes, which need at least {frames * least}. The file is damaged or cut off; copy it again."
        )
    return made


def _check(found: Instance, signed: int) -> None:
    """Refuse what would decode to something other than grey or RGB samples."""
    name = found.name
    if COLOURS.get(found.photometric) != found.samples:
        raise InputError(
            f"{name}: colours are {found.photometric or 'not said'} with {found.samples} samples a pixel; {', '.join(COLOURS)} are read. Convert it to RGB."
        )
    if found.bits not in (8, 16) or signed or not 0 < found.bits_stored <= found.bits:
        kind = "signed" if signed else "unsigned"
        raise InputError(f"{name}: samples are {kind}, {found.bits_stored} of {found.bits} bits; unsigned ones of 8 and 16 bits are read.")
    if found.pixels.turned and found.frame_bytes % 2:
        raise InputError(
            f"{name}: frames of {found.frame_bytes} bytes in words of two, which begin within one (big-endian OW). Write it anew: dcmconv +te."
        )
    if found.photometric == SUBSAMPLED and found.pixels.length is not None and found.pixels.length < found.frames * found.frame_bytes:
        raise InputError(
            f"{name}: its frames are uncompressed {SUBSAMPLED}, which is not read. Convert its colours to RGB, or its frames to JPEG."
        )
    if found.frame_bytes > MAX_PIECE_BYTES:
        raise InputError(
            f"{name}: a frame of {found.tile.height} x {found.tile.width} px decodes to {found.frame_bytes / 2**20:.0f} MiB, "
            f"the limit is {MAX_PIECE_BYTES // 2**20} MiB. Convert the file to smaller tiles."
        )


def _whole(name: str, data: Any, key: str, default: int | None = None, least: int = 1) -> int:
    """A whole number of the header, at least `least`."""
    value = data.get(key)
    if value is None or value == "":
        value = default
    if value is None:
        raise InputError(
            f"{name}: the DICOM header lacks {key}. The file is damaged, or no whole-slide image; copy it again from its origin."
        )
    number = int(value)
    if number < least:
        raise InputError(f"{name}: {key} is {number}, at least {least} belongs there. The file is damaged; copy it again from its origin.")
    return number


def _pixel_element(name: str, file: Any, data: Any) -> tuple[int, int | None, bool]:
    """Byte at which the pixel data's value begins, its length, and whether it is words whose high byte comes first, from the element at which the header's reading stopped."""
    head = file.read(12)
    meta = data.file_meta.TransferSyntaxUID
    order, implicit = ("<" if meta.is_little_endian else ">"), meta.is_implicit_VR
    if len(head) < (8 if implicit else 12):
        raise InputError(f"{name}: ends before its pixel data. The file is cut off; copy it again.")
    group, element = struct.unpack_from(f"{order}HH", head)
    if (group << 16) | element != PIXEL_DATA:
        raise InputError(f"{name}: holds no pixel data of whole numbers ({group:04X},{element:04X} is there). It is no whole-slide image.")
    (length,) = struct.unpack_from(f"{order}I", head, 4 if implicit else 8)
    words = order == ">" and head[4:6] == b"OW"
    return file.tell() - (4 if implicit else 0), None if length == UNDEFINED else int(length), words


def _optical_paths(data: Any) -> tuple[tuple[str, str], ...]:
    found = [
        (str(item.get("OpticalPathIdentifier", "") or ""), str(item.get("OpticalPathDescription", "") or ""))
        for item in _items(data, "OpticalPathSequence")
    ]
    return tuple(found) or (("", ""),)


def _places(stored: ByteSource, frames: int, paths: tuple[tuple[str, str], ...]) -> NDArray[np.int64] | None:
    """Where each frame says that it lies; None where the frames do not say."""
    import pydicom

    wanted = ["PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"]
    with stored.open_file() as file:
        data = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=wanted)
    groups = _items(data, "PerFrameFunctionalGroupsSequence")
    if not groups or "PlanePositionSlideSequence" not in groups[0]:
        return None
    if len(groups) != frames:
        raise InputError(
            f"{stored.name}: says where {len(groups)} frames lie, but has {frames}. The file is damaged; copy it again from its origin."
        )
    numbers = {identifier: number for number, (identifier, _) in enumerate(paths)}
    shared = next(iter(_items(data, "SharedFunctionalGroupsSequence")), None)
    out = np.zeros((frames, 4), np.int64)
    own = None if shared is None else _optical_path(shared)
    for frame, group in enumerate(groups):
        place = group[PLANE_POSITION].value[0]
        column, row, depth = (_number(place, tag) for tag in (COLUMN, ROW, DEPTH))
        said = _optical_path(group)
        name = paths[0][0] if said is None and own is None else said if said is not None else own
        if name not in numbers:
            raise InputError(
                f"{stored.name}: frame {frame + 1} is of the optical path {name!r}, which the header does not describe. The file is damaged."
            )
        if row is None or column is None:
            raise InputError(
                f"{stored.name}: frame {frame + 1} does not say where it lies. The file is damaged; copy it again from its origin."
            )
        out[frame] = int(row) - 1, int(column) - 1, round((depth or 0) * 1e3), numbers[name]
    return out


def _optical_path(group: Any) -> str | None:
    """The identifier of the optical path that a functional group names; None where it names none."""
    if OPTICAL_PATH not in group or not (items := group[OPTICAL_PATH].value):
        return None
    return str(items[0].OpticalPathIdentifier)


def _number(place: Any, tag: int) -> float | None:
    """A number of a data set: where it is still encoded as it nearly always is, without the object that pydicom makes of it, which takes five times as long."""
    if tag not in place:
        return None
    raw = place.get_item(tag)
    if getattr(raw, "is_raw", False) and raw.is_little_endian and raw.value is not None:
        if tag == DEPTH and b"\\" not in raw.value:
            return float(raw.value.strip(b" \0") or 0)
        if len(raw.value) == 4:
            return float(int.from_bytes(raw.value, "little", signed=True))
    value = place[tag].value
    return None if value is None or value == "" else float(value)


def _items(data: Any, name: str) -> Sequence[Any]:
    found: Sequence[Any] = data[name].value if name in data else ()
    return found or ()


def _spacing(data: Any, size: Size) -> tuple[tuple[float, float] | None, str]:
    """Size of a pixel in y and x, mm: of the pixels, else of the whole image, which is divided among them."""
    for group in _items(data, "SharedFunctionalGroupsSequence"):
        for measures in _items(group, "PixelMeasuresSequence"):
            stated = measures.get("PixelSpacing")
            if stated is not None and len(stated) == 2:
                return (float(stated[0]), float(stated[1])), "the DICOM pixel spacing"
    height, width = data.get("ImagedVolumeHeight"), data.get("ImagedVolumeWidth")
    if height is None or width is None:
        return None, ""
    return (float(height) / size.height, float(width) / size.width), "the DICOM size of the imaged volume"


def _icc_profile(data: Any) -> bytes | None:
    for item in _items(data, "OpticalPathSequence"):
        profile = item.get("ICCProfile")
        if profile:
            return bytes(profile) if len(profile) <= LARGEST_PROFILE else b""
    return None


def _extended(data: Any, frames: int) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    offsets, lengths = data.get("ExtendedOffsetTable"), data.get("ExtendedOffsetTableLengths")
    if not offsets or not lengths or len(offsets) != 8 * frames or len(lengths) != 8 * frames:
        return None
    return np.frombuffer(offsets, "<u8").astype(np.int64), np.frombuffer(lengths, "<u8").astype(np.int64)
