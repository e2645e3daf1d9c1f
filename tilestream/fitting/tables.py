"""Tables of labels as people have them: CSV, TSV or XLSX, one row a slide or a patient."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tilestream.config.local_files import read_small_file, table_rows
from tilestream.config.types import composed
from tilestream.errors import ConfigError, InputError

LARGEST_TABLE = 64 * 1024**2
"""Bytes of a table: some hundred thousand rows."""

SLIDES = ("slide", "slide_id", "slide_name", "filename", "file", "file_name", "image", "image_id", "image_name", "wsi", "wsi_id")
"""Names of a column of slides, as `plain_column` has them, in the order in which they are looked for. STAMP writes FILENAME, Patho-Bench and CLAM slide_id."""

PATIENTS = ("patient", "patient_id", "case_id", "case", "pat_id", "submitter_id", "patientid", "caseid")
"""Names of a column of patients. STAMP writes PATIENT, Patho-Bench and CLAM case_id, GigaPath's tables pat_id."""

MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", "#n/a", "<na>"})
"""Cells that say nothing, case ignored."""

SHEET, OLD_SHEET = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
"""How files of Excel begin, whatever they are called: those of today, and those of before 2007."""

_SUFFIX = re.compile(r"(\.ome)?(\.zarr|\.h5|\.tiff?|\.svs|\.ndpi|\.mrxs|\.scn|\.bif|\.dcm|\.pt)$", re.IGNORECASE)

_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
"""A comma that parts thousands, or begins decimals."""


@dataclass(frozen=True)
class Table:
    """A table in memory."""

    path: str
    header: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    """Cells by column, without spaces at their ends."""

    def column(self, name: str, key: str) -> str:
        """The column of this name, case ignored where no other is meant; `key` is the config's.

        Raises
        ------
        ConfigError
            There is none; the message has the nearest.
        """
        if composed(name) in self.header:
            return composed(name)
        found = [column for column in self.header if plain_column(column) == plain_column(name)]
        if len(found) == 1:
            return found[0]
        near = difflib.get_close_matches(name.casefold(), [column.casefold() for column in self.header], 1)
        hint = next((column for column in self.header if column.casefold() in near), None)
        raise ConfigError(f"{key}: {self.path} has no column {name!r}{f'; did you mean {hint!r}?' if hint else '.'} {self.columns}")

    @property
    def columns(self) -> str:
        """Its columns, in words."""
        more = f" and {len(self.header) - 12} more" if len(self.header) > 12 else ""
        return f"Its first row, which names the columns, has {', '.join(self.header[:12])}{more}."

    def find(self, names: Iterable[str]) -> str | None:
        """The first of these columns that there is, by `plain_column`."""
        known = {plain_column(column): column for column in reversed(self.header)}
        return next((known[name] for name in names if name in known), None)


def plain_column(name: str) -> str:
    """A column's name without case, with _ for what else may stand between words: `Slide ID` and `slide-id` are slide_id."""
    return re.sub(r"[\s\-_.]+", "_", composed(name).strip().casefold())


def read_table(path: str, key: str) -> Table:
    """A table: the first sheet of a file of Excel, by what is in it; else text with commas, semicolons or tabs between its cells.

    Raises
    ------
    ConfigError
        It cannot be read, has no header, two columns of one name, or rows that are longer than the header; names `key` and the file.
    """
    data = read_small_file(Path(path), key, "Give a CSV, TSV or XLSX with a header.", LARGEST_TABLE)
    rows = _sheet(data, path, key) if data.startswith((SHEET, OLD_SHEET)) else table_rows(data, path, key)
    header = tuple(composed(cell).strip() for cell in next(rows, []))
    named = [name for name in header if name]
    if not named:
        raise ConfigError(f"{key}: {path} has no header. Its first row must name the columns, e.g. slide,label.")
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise ConfigError(f"{key}: {path} has two columns named {twice[0]!r}. Rename one of them.")
    body = []
    for number, row in enumerate(rows, start=2):
        if any(cell.strip() for cell in row[len(header) :]):
            raise ConfigError(f"{key}: {path}, row {number} has {len(row)} cells, but there are {len(header)} columns.")
        cells = {name: composed(cell).strip() for name, cell in zip(header, row, strict=False) if name}
        if any(cells.values()):
            body.append(dict.fromkeys(named, "") | cells)
    if not body:
        raise ConfigError(f"{key}: {path} has a header but no rows.")
    return Table(path, tuple(named), tuple(body))


def _sheet(data: bytes, path: str, key: str) -> Iterator[list[str]]:
    if data.startswith(OLD_SHEET):
        raise ConfigError(f"{key}: {path} is in Excel's format of before 2007. Save it as XLSX or CSV.")
    try:
        import openpyxl
    except ImportError as error:
        raise ConfigError(f"{key}: {path} needs openpyxl to be read. Run pip install 'tilestream[fit]', or save it as CSV.") from error
    try:
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        rows = [["" if cell is None else str(cell) for cell in row] for row in book.worksheets[0].iter_rows(values_only=True)]
    except Exception as error:  # a foreign parser on a foreign file
        raise ConfigError(f"{key}: {path} is no XLSX that can be read ({error}). Save it as CSV.") from error
    if len(rows) < 2 and len(book.worksheets) > 1:
        first, others = book.worksheets[0].title, ", ".join(sheet.title for sheet in book.worksheets[1:6])
        raise ConfigError(
            f"{key}: {path}: its first sheet, {first}, is no table, and no other is read ({others}). Put the table first, or save it as CSV."
        )
    yield from rows


def is_missing(cell: str) -> bool:
    """Whether a cell says nothing."""
    return cell.casefold() in MISSING


def said(cell: str) -> str:
    """What a cell says, "" where it says nothing."""
    return "" if is_missing(cell) else composed(cell)


def plain_name(name: str) -> str:
    """A slide's name without folder and without the endings that programs add."""
    return _SUFFIX.sub("", composed(name).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1])


def match_slides(ids: Sequence[str], named: Sequence[str], path: str, key: str) -> dict[str, str]:
    """Which slide of an output each name of a table means: the id itself, else the id without folders and endings on both sides, else that in any case.

    Names that mean none are left out.

    Raises
    ------
    ConfigError
        A name means two slides, two names mean one, or none means any: the message shows some of both sides.
    """
    known = set(ids)
    short: dict[str, list[str]] = {}
    any_case: dict[str, list[str]] = {}
    for slide in ids:
        short.setdefault(plain_name(slide), []).append(slide)
        any_case.setdefault(plain_name(slide).casefold(), []).append(slide)
    found: dict[str, str] = {}
    for name in dict.fromkeys(named):
        meant = [name] if name in known else short.get(plain_name(name)) or any_case.get(plain_name(name).casefold(), [])
        if len(meant) > 1:
            raise ConfigError(f"{key}: {path} names {name!r}, which may be {' or '.join(meant[:3])}. Write their ids in full.")
        if meant:
            found[name] = meant[0]
    refuse_double(found, path, key)
    if not found:
        raise ConfigError(
            f"{key}: no slide of {path} is in the embeddings. The table has {_some(named)}; the embeddings have {_some(ids)}. "
            "Ids must be equal, case and file endings aside."
        )
    return found


def refuse_double(found: Mapping[str, str], path: str, key: str) -> None:
    """Refuse two names that mean one slide."""
    meant: dict[str, str] = {}
    for name, slide in found.items():
        if meant.setdefault(slide, name) != name:
            raise ConfigError(f"{key}: {path} names the slide {slide} twice, as {meant[slide]!r} and {name!r}. Leave one of them out.")


def number(cell: str, what: str) -> float:
    """A cell as a finite number. Raises InputError."""
    if _THOUSANDS.fullmatch(cell):
        raise InputError(
            f"{what} is {cell!r}, which may mean {cell.replace(',', '')} or {cell.replace(',', '.', 1)}. Write it without a comma."
        )
    try:
        value = float(cell.replace(",", ".")) if "_" not in cell else float("nan")
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise InputError(f"{what} is {cell!r}, but it must be a number.")
    return value


def _some(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(repr(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
