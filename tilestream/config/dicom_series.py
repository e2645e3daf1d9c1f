"""What a DICOM file says of itself before its pixels: which series it belongs to, and what kind of image it holds.

Sources: DICOM PS3.5 (data elements, nested sequences), PS3.10 (preamble, file meta information), PS3.6 (tags).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""SOP class of VL Whole Slide Microscopy Image Storage."""

DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of Media Storage Directory Storage, DICOMDIR: an index of other files."""

IMPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
"""Transfer syntaxes whose elements are not written as all others' are."""

META_CLASS, META_SYNTAX, SOP_CLASS, SERIES, IMAGE_TYPE = 0x00020002, 0x00020010, 0x00080016, 0x0020000E, 0x00080008
PHOTOMETRIC, TOTAL_COLUMNS, TOTAL_ROWS, PIXELS = 0x00280004, 0x00480006, 0x00480007, 0x7FE00010
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF

LONG_FORMS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""Value representations whose length is four bytes, behind two reserved ones."""

LONGEST_VALUE = 4096
"""Bytes of a value that is kept; those that are asked for have fewer than a hundred."""

DEEPEST = 32
"""Sequences within each other that are believed."""

MOST_LOOKED_AT = 64
"""Files of a folder that are looked at before it counts as none of DICOM files."""


@dataclass(frozen=True)
class DicomHeader:
    """One DICOM file, as far as it concerns which image it is a part of."""

    path: Path
    series: str
    """SeriesInstanceUID; files with the same one are one slide."""
    sop_class: str
    """What kind of object it is."""
    syntax: str
    """TransferSyntaxUID: how elements and pixels are coded."""
    photometric: str
    """What it says of its colours, e.g. RGB or YBR_FULL_422."""
    image_type: tuple[str, ...]
    """E.g. ORIGINAL, PRIMARY, VOLUME, NONE; or OVERVIEW, LABEL, THUMBNAIL in the third place."""
    area: int
    """Pixels of the whole level that it holds; 0 where it does not say."""
    pixels_at: int
    """Byte at which the pixel data element's value begins; 0 where it was not reached."""

    @property
    def is_index(self) -> bool:
        """Whether it holds no image, but tells of the files that do."""
        return self.sop_class == DIRECTORY

    @property
    def is_deflated(self) -> bool:
        """Whether its elements are compressed all together: only its file meta information is known."""
        return self.syntax == DEFLATED

    @property
    def rank(self) -> tuple[bool, int, str]:
        """Order within a series: the finest level of the slide itself is the largest."""
        return "VOLUME" in self.image_type, self.area, self.path.name


def read_header(path: Path) -> DicomHeader | None:
    """What a file says of itself; None for what is no DICOM file, or too damaged to say."""
    try:
        with path.open("rb") as file:
            return header_from(file, path)
    except OSError:
        return None


def header_from(file: BinaryIO, path: Path) -> DicomHeader | None:
    """What an open file says of itself; None for what is no DICOM file, or too damaged to say. Raises what reading the file raises."""
    try:
        file.seek(128)
        if file.read(4) != b"DICM":
            return None
        values = _Elements(file).read()
    except (struct.error, ValueError, RecursionError):
        return None
    words = {tag: value.decode("ascii", "replace").strip(" \0") for tag, value in values.kept.items() if isinstance(value, bytes)}
    sides = [_integer(values.kept.get(tag, b""), values.order) for tag in (TOTAL_ROWS, TOTAL_COLUMNS)]
    return DicomHeader(
        path, words.get(SERIES, ""), words.get(SOP_CLASS) or words.get(META_CLASS, ""), words.get(META_SYNTAX, ""), words.get(PHOTOMETRIC, ""),
        tuple(words.get(IMAGE_TYPE, "").split("\\")), sides[0] * sides[1], values.pixels_at,
    )  # fmt: skip


def headers_in(folder: Path) -> list[DicomHeader]:
    """The DICOM files of a folder, by name; folders within it are not looked into."""
    found = (read_header(path) for path in sorted(folder.iterdir()) if path.is_file())
    return [header for header in found if header is not None]


def holds_dicom(folder: Path) -> bool:
    """Whether a folder has DICOM files among its first ones."""
    for number, path in enumerate(sorted(folder.iterdir())):
        if number == MOST_LOOKED_AT:
            break
        if path.is_file() and is_dicom(path):
            return True
    return False


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _integer(value: bytes, order: str) -> int:
    return int(struct.unpack(f"{order}I", value)[0]) if len(value) == 4 else 0


class _Elements:
    """Walks the data elements of an open file that stands behind its prefix, up to the pixels."""

    WANTED = frozenset({META_CLASS, META_SYNTAX, SOP_CLASS, SERIES, IMAGE_TYPE, PHOTOMETRIC, TOTAL_COLUMNS, TOTAL_ROWS})

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.order, self.implicit = file, "<", False
        self.kept: dict[int, bytes] = {}
        self.pixels_at = 0

    def read(self) -> _Elements:
        """Keep what is wanted."""
        meta = True
        while True:
            start = self.file.tell()
            head = self.file.read(4)
            if len(head) < 4:
                return self
            group, element = struct.unpack("<HH" if meta else f"{self.order}HH", head)
            if meta and group != 2:  # the file meta information ends: from here on the file's own coding holds
                meta = False
                if self._is_deflated():
                    return self
                self._choose_coding()
                self.file.seek(start)
                continue
            tag = (group << 16) | element
            length = self._length()
            if tag == PIXELS:
                self.pixels_at = self.file.tell()
                return self
            if tag in self.WANTED and length <= LONGEST_VALUE:
                self.kept[tag] = self.file.read(length)
                if len(self.kept[tag]) < length:
                    raise ValueError("the file ends within a value")
            elif length == UNDEFINED:
                self._skip_items(0)
            else:
                self.file.seek(length, 1)

    def _syntax(self) -> str:
        return self.kept.get(META_SYNTAX, b"").decode("ascii", "replace").strip(" \0")

    def _is_deflated(self) -> bool:
        """Whether nothing behind the file meta information can be read as it stands."""
        return self._syntax() == DEFLATED

    def _choose_coding(self) -> None:
        syntax = self._syntax()
        self.order = ">" if syntax == BIG_ENDIAN else "<"
        self.implicit = syntax == IMPLICIT

    def _length(self) -> int:
        """Length of the value that follows, behind its representation where that is written."""
        if self.implicit:
            return int(struct.unpack(f"{self.order}I", self.file.read(4))[0])
        kind = self.file.read(2)
        if kind in LONG_FORMS:
            return int(struct.unpack(f"{self.order}2xI", self.file.read(6))[0])
        return int(struct.unpack(f"{self.order}H", self.file.read(2))[0])

    def _skip_items(self, depth: int) -> None:
        """Go behind the end of a sequence of undefined length."""
        if depth > DEEPEST:
            raise ValueError("sequences lie too deep within each other")
        while True:
            group, element, length = struct.unpack(f"{self.order}HHI", self.file.read(8))
            tag = (group << 16) | element
            if tag == SEQUENCE_END:
                return
            if tag != ITEM:
                raise ValueError("an item belongs here")
            if length == UNDEFINED:
                self._skip_item(depth)
            else:
                self.file.seek(length, 1)

    def _skip_item(self, depth: int) -> None:
        while True:
            group, element = struct.unpack(f"{self.order}HH", self.file.read(4))
            if (group << 16) | element == ITEM_END:
                self.file.seek(4, 1)
                return
            length = self._length()
            if length == UNDEFINED:
                self._skip_items(depth + 1)
            else:
                self.file.seek(length, 1)
