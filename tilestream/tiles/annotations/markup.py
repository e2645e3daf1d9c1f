"""Regions of XML files as ASAP and Aperio ImageScope write them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.parsers import expat

import numpy as np

from tilestream.errors import InputError
from tilestream.tiles.annotations.shapes import FLAT, Ring, Shape, covers_nothing, ring_from_corners

CHUNK = 1 << 18
"""Bytes read at once."""

MOST_CORNERS = 20_000_000
"""Corners of one annotation, above which it is refused."""

ELLIPSE_CORNERS = 128
"""Corners of the polygon that stands for an ellipse: it is 0.04 % smaller."""

_ASAP_AREAS = ("polygon", "rectangle", "spline")
_RECTANGLE, _ELLIPSE = "1", "2"
_SCOPE_AREAS = ("0", _RECTANGLE, _ELLIPSE)
"""ImageScope's types of regions with an area; 3 is an arrow, 4 a ruler."""
_NO_AREA = "dots, arrows and rulers"


def read_markup(path: Path) -> Iterator[Shape]:
    """The regions of a file, annotation by annotation; what covers nothing (dots, arrows, rulers, flat rings) stands in their `left_out`.

    Memory bound: the corners of the largest annotation, at most `MOST_CORNERS`, about 100 bytes each.

    Raises
    ------
    InputError
        Naming the file and the line.
    """
    reader = _Reader(path)
    try:
        with path.open("rb") as file:
            while True:
                chunk = file.read(CHUNK)
                reader.parser.Parse(chunk, not chunk)
                yield from reader.take()
                if not chunk:
                    return
    except expat.ExpatError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.offset + 1}: is not XML: {expat.errors.messages[error.code]}."
        ) from error
    except (OSError, LookupError, ValueError) as error:  # the last two: an encoding that nobody knows
        raise InputError(f"{path} cannot be read: {error}.") from error


class _Reader:
    """Corners and classes while elements open, shapes where annotations close."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.StartDoctypeDeclHandler = self._refuse_doctype
        self.root = ""
        self.ready: list[Shape] = []
        self.name, self.text, self.kind, self.negative = "", "", "", False
        self.corners: list[tuple[int, float, float]] = []
        self.layer: list[tuple[str, Ring]] = []
        self.holes: list[Ring] = []
        self.left_out: list[str] = []
        self.held = 0

    @property
    def where(self) -> str:
        return f"{self.path}, line {self.parser.CurrentLineNumber}"

    def take(self) -> list[Shape]:
        """The shapes that are complete."""
        ready, self.ready = self.ready, []
        return ready

    def _refuse_doctype(self, *_: object) -> None:
        raise InputError(f"{self.where}: a document type is declared, which neither ASAP nor ImageScope does.")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self.root:
            if tag not in ("ASAP_Annotations", "Annotations"):
                raise InputError(
                    f"{self.where}: the root is <{tag[:40]}>, but ASAP writes <ASAP_Annotations> and ImageScope <Annotations>."
                )
            self.root = tag
        elif tag == "Annotation":
            asap = self.root == "ASAP_Annotations"
            group = attributes.get("PartOfGroup", "") if asap else attributes.get("Name", "")
            self.name, self.kind = ("" if asap and group == "None" else group), attributes.get("Type", "")
            self.corners, self.layer, self.holes, self.left_out, self.held = [], [], [], [], 0
        elif tag == "Attribute" and not self.name and attributes.get("Name") == "Description":
            self.name = attributes.get("Value", "")
        elif tag == "Region":
            self.kind, self.negative = attributes.get("Type", "0"), attributes.get("NegativeROA", "0") in ("1", "true")
            self.text, self.corners = attributes.get("Text", ""), []
        elif tag in ("Coordinate", "Vertex"):
            self._corner(attributes)

    def _corner(self, attributes: dict[str, str]) -> None:
        self.held += 1
        if self.held > MOST_CORNERS:
            raise InputError(f"{self.where}: an annotation has more than {MOST_CORNERS} corners.")
        try:
            order = int(attributes.get("Order", len(self.corners)))
            x, y = (float(attributes[key].replace(",", ".")) for key in ("X", "Y"))
        except (KeyError, ValueError) as error:
            raise InputError(f"{self.where}: a corner needs the numbers X and Y, but it has {str(attributes)[:80]}.") from error
        self.corners.append((order, x, y))

    def _end(self, tag: str) -> None:
        if tag == "Region":
            if self.kind in _SCOPE_AREAS:
                ring = self._ring()
                if covers_nothing(ring):
                    self.left_out.append(FLAT)
                elif self.negative:
                    self.holes.append(ring)
                else:
                    self.layer.append((self.name or self.text, ring))
            else:
                self.left_out.append(_NO_AREA)
        elif tag == "Annotation" and self.root == "ASAP_Annotations":
            if self.kind.lower() in _ASAP_AREAS:
                ring = self._ring()
                flat = covers_nothing(ring)
                self.ready.append(Shape(self.name, () if flat else ((ring,),), left_out=(FLAT,) if flat else ()))
            else:
                self.ready.append(Shape(self.name, (), left_out=(_NO_AREA,)))
        elif tag == "Annotation":
            cuts = tuple((ring,) for ring in self.holes)
            for name in dict.fromkeys(name for name, _ in self.layer):
                self.ready.append(Shape(name, tuple((ring,) for other, ring in self.layer if other == name), cuts))
            if self.left_out:
                self.ready.append(Shape(self.name, (), left_out=tuple(self.left_out)))

    def _ring(self) -> Ring:
        """The ring of the corners read last: as drawn, or of the box that they span."""
        self.corners.sort(key=lambda corner: corner[0])
        corners = [corner[1:] for corner in self.corners]
        boxed = self.root == "Annotations" and (self.kind == _ELLIPSE or (self.kind == _RECTANGLE and len(corners) == 2))
        if not boxed or len(corners) < 2:
            return ring_from_corners(corners, self.where)
        (left, top), (right, bottom) = _box(corners)
        if self.kind == _RECTANGLE:
            return ring_from_corners([(left, top), (right, top), (right, bottom), (left, bottom)], self.where)
        angle = np.arange(ELLIPSE_CORNERS) * (2 * math.pi / ELLIPSE_CORNERS)
        x = (left + right) / 2 + np.cos(angle) * (right - left) / 2
        return ring_from_corners(np.stack([x, (top + bottom) / 2 + np.sin(angle) * (bottom - top) / 2], axis=1).tolist(), self.where)


def _box(corners: list[tuple[float, float]]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Top-left and bottom-right x, y of the box that corners span."""
    xs, ys = zip(*corners, strict=True)
    return (min(xs), min(ys)), (max(xs), max(ys))
