"""Which slides a config means: addresses from paths, globs, CSV files and samples, each with a name of its own."""

from __future__ import annotations

import glob
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, urlsplit

from tilestream.config.dicom_series import holds_dicom, is_dicom
from tilestream.config.local_files import MOSAIC, ZARR_MARKS, expand_path, read_small_file, refuse_url, table_rows
from tilestream.config.same_slide import NEVER_DICOM, merge_files
from tilestream.config.urls.objects import is_url
from tilestream.errors import ConfigError

LONGEST_ID = 200
"""Bytes of a slide's id in UTF-8: file systems take names of 255, and suffixes are added."""

TAKEN = frozenset({"row", "col", "y", "x", "tissue", "status", "slide", "spatial", "_index"})
"""Columns of an output that have a meaning of their own."""

COLUMNS = ("path", "id", "mpp", "mask")
"""Columns of a list of slides that mean something; `slide_id` is taken for `id`."""

LARGEST_CSV = 64 * 1024**2
"""Bytes of a list of slides: some hundred thousand of them."""
_DOUBLE_SUFFIX = re.compile(r"(\.ome)?\.zarr\.zip$|\.ome\.(zarr|tiff?|btf|tf[28]|zip)$", re.IGNORECASE)

_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


@dataclass(frozen=True)
class SlideRef:
    """One slide of a run, before it is opened; it need not exist."""

    id: str
    """Name of the slide in the output; safe as a file name, and no other slide's."""
    address: str
    """Absolute path, URL, or `sample://` or `mosaic://` address."""
    mpp: float | None = None
    """Resolution of level 0 as a CSV gives it, µm/px; None where it does not."""
    mask: str | None = None
    """Absolute path of the file that says where its tissue is, as a CSV gives it; None where it does not."""
    extra: tuple[tuple[str, str], ...] = ()
    """The other columns of a CSV and what they say of it, such as patient or site: they go with its tiles into the output."""

    def __post_init__(self) -> None:
        problem = id_problem(self.id)
        if problem:
            raise ConfigError(
                f"slides: {self.address!r} has the id {self.id!r}, which {problem}. Give it an id in a CSV with the columns path,id."
            )


def list_slides(slides: Sequence[str]) -> list[SlideRef]:
    """The slides of a config's `slides`, in the order given; those of a glob are sorted.

    Files of one DICOM series, or of one OME-TIFF, are one slide (see `merge_files`), and so is a folder of DICOM files. Any other folder stands
    for the slides that lie in it, by their names, not for those in folders below, and so does a URL that ends in a slash.
    Local paths are relative to the working directory, in a CSV to the CSV's folder. A path without a file is kept: it is refused
    when it is opened, without stopping the others.

    Raises
    ------
    ConfigError
        A glob matches nothing, a folder holds no slide, a CSV cannot be used, a file is listed twice, or an id is unsafe or not unique.
    """
    listed = merge_files([ref for entry in slides for ref in _expand(entry)], id_from_address)
    refs = [replace(ref, id=own_id, mpp=mpp) for ref, own_id, mpp in listed]
    seen: dict[str, SlideRef] = {}
    for ref in refs:
        # File systems differ in what they take for one name: ignore case and the spelling of accents.
        first = seen.setdefault(unicodedata.normalize("NFC", ref.id).casefold(), ref)
        if first is not ref:
            raise ConfigError(
                f"slides: two slides have the id {ref.id!r}: {first.address} and {ref.address}. Give ids of their own in a CSV with the columns path,id."
            )
    return refs


def id_from_address(address: str) -> str:
    """A readable id: the file name without suffix, or kind, size and seed of a sample."""
    if address.startswith("sample://"):
        return _sample_id(address)
    if address.startswith(MOSAIC):
        return _mosaic_id(address.removeprefix(MOSAIC))
    path = re.split("[?#]", address.split("://", 1)[1], maxsplit=1)[0].partition("/")[2] if "://" in address else address
    name = PurePosixPath(path.replace(os.sep, "/")).name
    return _DOUBLE_SUFFIX.sub("", name) if _DOUBLE_SUFFIX.search(name) else PurePosixPath(name).stem if name else name


def id_problem(slide_id: str) -> str:
    """Why an id is no safe file name, as words behind "which"; empty where it is one."""
    if not slide_id.strip():
        return "is empty"
    if set(slide_id) == {"."}:
        return "means a folder"
    if "/" in slide_id or "\\" in slide_id:
        return "has a path separator"
    kinds = {unicodedata.category(letter) for letter in slide_id}
    if any(kind.startswith("C") for kind in kinds):
        return "has bytes that are not UTF-8" if "Cs" in kinds else "has control characters"
    if len(slide_id.encode()) > LONGEST_ID:
        return f"is {len(slide_id.encode())} bytes long, more than {LONGEST_ID}"
    return ""


def _sample_id(address: str) -> str:
    parts = urlsplit(address)
    query = dict(parse_qsl(parts.query))
    size = [f"{query.pop('width')}x{query.pop('height')}"] if {"width", "height"} <= query.keys() else []
    words = ["sample", parts.netloc, *size, f"seed{query.pop('seed', '0')}", *(f"{key}{value}" for key, value in sorted(query.items()))]
    return re.sub(r"[^\w.-]+", "-", "_".join(words))


def _mosaic_id(path: str) -> str:
    """The name of the folder that rasters lie in, before what is a pattern; of a list, its own."""
    parts = PurePosixPath(path.replace(os.sep, "/")).parts
    fixed = parts[: next((k for k, part in enumerate(parts) if glob.has_magic(part)), len(parts))]
    return PurePosixPath(fixed[-1]).stem if fixed and len(fixed) == len(parts) else fixed[-1] if fixed else ""


def _mosaic(entry: str) -> SlideRef:
    try:
        address = MOSAIC + os.path.abspath(expand_path(entry.removeprefix(MOSAIC)))  # noqa: PTH100  # may be a pattern
    except ValueError as error:
        raise ConfigError(f"slides: {error}.") from error
    return SlideRef(id_from_address(address), address)


def _expand(entry: str) -> Iterator[SlideRef]:
    if entry.startswith(MOSAIC):
        yield _mosaic(entry)
    elif is_url(entry):
        from tilestream.config.urls.listing import list_urls

        yield from (SlideRef(id_from_address(url), url) for url in list_urls(entry))
    elif "://" in entry:
        yield SlideRef(id_from_address(entry), entry)
    elif entry.lower().endswith(".csv"):
        yield from _read_csv(Path(entry))
    elif glob.has_magic(entry) and not _answers(Path(entry).exists):
        yield from _expand_glob(entry)
    else:
        yield from _expand_folder(Path(entry)) if _is_plain_folder(Path(entry)) else [_local_slide(entry)]


def _expand_folder(folder: Path) -> Iterator[SlideRef]:
    """The slides that lie in a folder, sorted: files that are called as slides are, Zarr folders, folders of DICOM files."""
    found = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and _looks_like_slide(path)]
    if not found:
        raise ConfigError(
            f"slides: the folder {str(folder)!r} holds no file that is called as a slide is (.svs, .tiff, .ndpi, .zarr ...). Give a glob, e.g. {folder}/**/*.svs for those in folders below it."
        )
    yield from (_local_slide(str(path)) for path in found)


def _looks_like_slide(path: Path) -> bool:
    if _answers(path.is_dir):
        return not _is_plain_folder(path)
    return path.suffix.lower() in NEVER_DICOM or _answers(lambda: is_dicom(path))


def _expand_glob(pattern: str) -> Iterator[SlideRef]:
    """Files and Zarr folders that match, sorted; other folders are not slides."""
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  (Path.glob takes no absolute patterns)
    found = [path for path in matches if not _is_plain_folder(Path(path))]
    if not found:
        start = next(folder for folder in Path(pattern).absolute().parents if not glob.has_magic(str(folder)))
        if _answers(start.is_dir) and not os.access(start, os.R_OK | os.X_OK):
            raise ConfigError(f"slides: {pattern!r}: this user may not look into {start}. Ask for the right to read it.")
        raise ConfigError(f"slides: nothing matches {pattern!r} in {Path.cwd()}. Check the pattern, and the folder that you are in.")
    yield from (_local_slide(path) for path in found)


def _local_slide(path: str) -> SlideRef:
    # Absolute, because workers may run in another folder.
    return SlideRef(id_from_address(os.path.abspath(path)), str(Path(path).absolute()))  # noqa: PTH100  # `.` and `..` have names


def _is_plain_folder(path: Path) -> bool:
    """Whether this is a folder that is neither a Zarr store nor a DICOM series alone."""
    if path.suffix.lower() == ".zarr" or not _answers(path.is_dir):
        return False
    if any(_answers((path / name).exists) for name in ZARR_MARKS):
        return False
    return not _answers(lambda: holds_dicom(path)) or _answers(lambda: any(other.suffix.lower() in NEVER_DICOM for other in path.iterdir()))


def _answers(check: Callable[[], bool]) -> bool:
    """A question to the file system; no where it cannot tell: such a slide is refused when it is opened."""
    try:
        return check()
    except OSError:
        return False


def _read_csv(path: Path) -> Iterator[SlideRef]:
    """Slides from a CSV with columns path[,id][,mpp][,mask]; other columns go with the slides, empty rows are left alone."""
    data = read_small_file(path, "slides", "Give a CSV with a column named path, a path or a glob.", LARGEST_CSV)
    rows = table_rows(data, path, "slides")
    header = _columns(next(rows, []))
    if header.count("path") != 1 or any(header.count(name) > 1 for name in header if name):
        raise ConfigError(
            f"slides: {path} has the columns {header}, but it needs one named path, and at most one each named id, mpp and mask (slide_id is id), no two of one name, with commas, semicolons or tabs between."
        )
    if taken := sorted(name for name in header if name.lower() in TAKEN or "/" in name):
        raise ConfigError(f"slides: {path} has a column {taken[0]!r}, a name that the output uses or cannot hold. Rename it.")
    found = False
    for number, row in enumerate(rows, start=2):
        if any(row):
            found = True
            yield _slide_from_row(path, number, header, row)
    if not found:
        raise ConfigError(f"slides: {path} has a header but no slides.")


def _columns(names: list[str]) -> list[str]:
    """Names of columns: those that mean something whatever their case, the others as they are written."""
    plain = [name.strip() for name in names]
    known = {name: name for name in COLUMNS} | {"slide_id": "id"}
    return [known.get(name.lower(), name) for name in plain]


def _slide_from_row(path: Path, number: int, header: list[str], row: list[str]) -> SlideRef:
    where = f"slides: {path}, row {number}"
    if len(row) > len(header):
        raise ConfigError(
            f"{where}: {len(row)} cells, but there are {len(header)} columns. Put quotes round a cell that holds what stands between cells."
        )
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=False)}
    address = cells.get("path", "")
    if not address:
        raise ConfigError(f"{where}: path is empty.")
    if address.startswith(MOSAIC):
        address = MOSAIC + _path_from_cell(address.removeprefix(MOSAIC), path, where)
    elif "://" not in address:
        address = _path_from_cell(address, path, where)
    if _is_plain_folder(Path(address)):
        raise ConfigError(f"{where}: {address!r} is a folder, not a slide.")
    if cells.get("mask"):
        refuse_url(cells["mask"], f"{where}, mask")
    mask = _path_from_cell(cells["mask"], path, where) if cells.get("mask") else None
    extra = tuple((name, cells.get(name, "")) for name in header if name and name not in COLUMNS)
    return SlideRef(cells.get("id") or id_from_address(address), address, _mpp_from_cell(cells.get("mpp", ""), where), mask, extra)


def _path_from_cell(cell: str, path: Path, where: str) -> str:
    """The absolute path that a cell names, relative to the CSV's folder."""
    try:
        return str((path.parent / expand_path(cell)).absolute())
    except ValueError as error:
        raise ConfigError(f"{where}: {error}.") from error


def _mpp_from_cell(cell: str, where: str) -> float | None:
    if not cell:
        return None
    try:
        # A comma begins decimals where semicolons stand between cells; of 1,250 nobody can tell whether it parts thousands.
        mpp = math.nan if "_" in cell or _THOUSANDS.fullmatch(cell) else float(cell.replace(",", ".", 1))
    except ValueError:
        mpp = math.nan
    if not (math.isfinite(mpp) and mpp > 0):
        raise ConfigError(f"{where}: mpp is {cell!r}, but it must be a number above 0, in µm/px, such as 0.25.")
    return mpp
