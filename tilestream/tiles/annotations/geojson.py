"""Regions of GeoJSON files as QuPath, GDAL and others write them: collection, bare list, single feature or geometry, or a sequence of them.

Plain or gzip, with BOM or without. A sequence (GeoJSONSeq, RFC 8142, newline-delimited) is one feature after the other, each with the byte RS before it or none.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tilestream.errors import InputError
from tilestream.tiles.annotations.holes import without_holes
from tilestream.tiles.annotations.shapes import FLAT, Ring, Shape, covers_nothing, ring_from_corners

_PLAIN = (".geojson", ".json", ".geojsonl", ".geojsons", ".ndjson")
ENDINGS = (*_PLAIN, *(f"{ending}.gz" for ending in _PLAIN))
"""Ends of the names of such files, in small letters."""

CHUNK = 1 << 20
"""Letters read at once."""

LARGEST_FEATURE = 1 << 28
"""Letters of one feature, above which it is refused."""

FINISHED = 64
"""Letters before the end of what is read so far: an error further ahead is no value cut short. No number, word or escape is longer."""

CLASS_KEYS = ("class", "label", "class_name")
"""Properties that hold a class where there is no `classification`, the first of them that does."""

_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"
_RECORD = "\x1e"
"""RS, before each text of a sequence."""
_NO_GEOMETRY = "features without a geometry"
_NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")


def read_geojson(path: Path) -> Iterator[Shape]:
    """The regions of a file, feature by feature; what covers nothing (points, lines, flat rings, no geometry) stands in their `left_out`.

    Memory bound: the text of the largest feature, at most `LARGEST_FEATURE`, and its numbers, about ten times that; and two chunks.

    Raises
    ------
    InputError
        Naming the file and the feature.
    """
    try:
        with path.open("rb") as raw:
            head = raw.read(2)
            raw.seek(0)
            binary = gzip.GzipFile(fileobj=raw) if head == b"\x1f\x8b" else raw
            encoding = "utf-16" if head in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            with io.TextIOWrapper(binary, encoding=encoding) as text:
                for number, element in enumerate(_elements(_Text(text, str(path))), start=1):
                    yield from _shapes(element, f"{path}: feature {number}", "")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} near byte {error.start} of what was read last.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}. Copy it again, or export it again.") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested deeper than any GeoJSON.") from error


class _Text:
    """JSON text, value by value: only what is not used yet is held."""

    def __init__(self, file: io.TextIOBase, path: str) -> None:
        self.file, self.path = file, path
        self.text, self.place, self.dropped, self.ended = "", 0, 0, False

    def error(self, words: str, place: int | None = None) -> InputError:
        """What is wrong, and where."""
        return InputError(f"{self.path}: letter {self.dropped + (self.place if place is None else place)}: {words}. Export it again.")

    def _read(self) -> None:
        """Hold more: as much again, so that a value of any length is parsed a few times only."""
        more = self.file.read(max(CHUNK, len(self.text) - self.place))
        self.ended = not more
        self.dropped += self.place
        self.text, self.place = self.text[self.place :] + more, 0

    def peek(self) -> str:
        """The next letter that is no space; "" at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in _SPACE:
                self.place += 1
            if self.place < len(self.text) or self.ended:
                return self.text[self.place : self.place + 1]
            self._read()

    def skip_record_marks(self) -> str:
        """Step over marks of records, of which several are as one; the next letter behind them that is no space."""
        while self.peek() == _RECORD:
            self.place += 1
        return self.peek()

    def expect(self, *letters: str) -> str:
        """Step over the next letter, which must be one of these."""
        letter = self.peek()
        if letter not in letters or not letter:
            raise self.error(f"expected {' or '.join(letters)}, found {letter or 'the end of the file'}")
        self.place += 1
        return letter

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                # A string that is cut short is reported where it begins.
                begun = error.pos > len(self.text) - FINISHED or self.text[error.pos] == '"' or self.text[error.pos - 1 : error.pos] == '"'
                if self.ended or not begun:
                    raise self.error(f"is not JSON: {error.msg}", error.pos) from error
            except ValueError as error:  # a number of thousands of digits
                raise self.error(f"is no number that can be used: {error}") from error
            else:
                if end < len(self.text) or self.ended:
                    self.place = end
                    return value
            if len(self.text) - self.place > LARGEST_FEATURE:
                raise self.error(f"a feature of more than {LARGEST_FEATURE} letters")
            self._read()

    def elements(self) -> Iterator[Any]:
        """The elements of the list that begins here."""
        self.expect("[")
        if self.peek() == "]":
            self.expect("]")
            return
        while True:
            yield self.value()
            if self.expect(",", "]") == "]":
                return


def _elements(text: _Text) -> Iterator[Any]:
    """Features, one after the other, whatever holds them together."""
    if text.peek() == "[":
        yield from text.elements()
    else:
        text.skip_record_marks()
        yield from _members(text)
        while text.skip_record_marks() == "{":
            yield from _members(text)
    if text.peek():
        raise text.error(f"expected the end of the file, found {text.peek()}")


def _members(text: _Text) -> Iterator[Any]:
    """The features of a collection, or the one feature or geometry that an object is."""
    told: dict[str, Any] = {}
    streamed = False
    text.expect("{")
    if text.peek() == "}":
        raise text.error("an empty object is no GeoJSON")
    while True:
        if text.peek() != '"':
            raise text.error(f"expected a key, found {text.peek() or 'the end of the file'}")
        key = text.value()
        text.expect(":")
        if key == "features" and text.peek() == "[":
            streamed = True
            yield from text.elements()
        else:
            told[key] = text.value()
        if text.expect(",", "}") == "}":
            break
    if not streamed:
        yield told
    elif told.get("type", "FeatureCollection") != "FeatureCollection":
        raise text.error(f"type is {str(told['type'])[:40]!r}, but features make a FeatureCollection")


def _shapes(node: Any, where: str, name: str) -> Iterator[Shape]:
    kind = node.get("type") if isinstance(node, dict) else None
    if kind in _NO_AREA:
        yield Shape(name, (), left_out=(kind,))
    elif kind == "FeatureCollection":
        for each in _list(node, "features", where):
            yield from _shapes(each, where, name)
    elif kind == "Feature":
        if node.get("geometry") is None:
            yield Shape("", (), left_out=(_NO_GEOMETRY,))
        else:
            yield from _shapes(node["geometry"], where, class_of(node, where))
    elif kind == "GeometryCollection":
        for each in _list(node, "geometries", where):
            yield from _shapes(each, where, name)
    elif kind in ("Polygon", "MultiPolygon"):
        coordinates = _list(node, "coordinates", where)
        parts = [coordinates] if kind == "Polygon" else coordinates
        if not all(isinstance(part, list) for part in parts):
            raise InputError(f"{where}: a MultiPolygon is a list of polygons, each a list of rings, but here is {str(coordinates)[:60]}.")
        rings = [[ring_from_corners(ring if isinstance(ring, list) else [ring], where) for ring in part] for part in parts]
        yield _shape(name, rings)
    else:
        found = str(kind if kind is not None else node)[:60]
        raise InputError(f"{where}: is neither a feature nor a geometry of GeoJSON (RFC 7946): {found!r}.")


def _shape(name: str, polygons: list[list[Ring]]) -> Shape:
    """A region without what covers nothing: a polygon with its holes, or a hole; of no polygon at all the region itself."""
    drawn: list[tuple[Ring, ...]] = []
    flat = 0
    for rings in polygons or [[]]:
        if not rings or covers_nothing(rings[0]):
            flat += 1
            continue
        kept = (rings[0], *(hole for hole in rings[1:] if not covers_nothing(hole)))
        flat += len(rings) - len(kept)
        drawn.extend(without_holes(kept) if len(kept) > 1 else [kept])
    return Shape(name, tuple(drawn), left_out=(FLAT,) * flat)


def _list(node: dict[str, Any], key: str, where: str) -> list[Any]:
    value = node.get(key)
    if not isinstance(value, list):
        raise InputError(f"{where}: {node['type']} needs a list {key}, but it is {str(value)[:60]}.")
    return value


def class_of(feature: dict[str, Any], where: str) -> str:
    """The class of a feature as QuPath writes it (name, names or a plain string), else the property `class`, `label` or `class_name`, in any case; "" where it has none."""
    properties = feature.get("properties")
    if properties is None:
        return ""
    if not isinstance(properties, dict):
        raise InputError(f"{where}: properties are {str(properties)[:60]}, but they must be an object.")
    told = _unpacked(properties.get("classification"))
    if isinstance(told, dict):
        names = told.get("names")
        told = ": ".join(map(str, names)) if told.get("name") is None and isinstance(names, list) else told.get("name")
    if told is None:
        named = {key.casefold(): value for key, value in properties.items()}
        told = next((word for key in CLASS_KEYS if (word := _word(named.get(key), numbers=key == "class")) is not None), None)
    return "" if told is None else str(told).encode("utf-8", "replace").decode()  # half a surrogate pair cannot be printed


def _unpacked(told: Any) -> Any:
    """A classification; tables cannot hold objects, so that GDAL and geopandas write QuPath's as text."""
    if isinstance(told, str) and told.lstrip().startswith("{"):
        try:
            return json.loads(told)
        except (ValueError, RecursionError):
            return told
    return told


def _word(value: Any, *, numbers: bool) -> str | None:
    """A class as a word; with `numbers`, which under other names count objects, also where it is one. A column with gaps has 1.0 for 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    number = numbers and isinstance(value, int) and not isinstance(value, bool)
    return str(value) if isinstance(value, str) or number else None
