"""Which files of a list are one slide: a DICOM series, an OME-TIFF in several files, one file under two names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from tilestream.config.dicom_series import WHOLE_SLIDE, DicomHeader, headers_in, read_header
from tilestream.errors import ConfigError

NEVER_DICOM = frozenset({
    ".svs", ".tif", ".tiff", ".btf", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu", ".zarr", ".zip", ".ozx", ".png", ".jpg", ".jpeg", ".jp2", ".czi",
    ".vsi", ".isyntax",
})  # fmt: skip
"""Suffixes of files that are not opened to see whether they are DICOM."""

OME_NAME = re.compile(r"\.ome\.(tiff?|btf|tf[28])$", re.IGNORECASE)
_FILE_NAME = re.compile(r'<UUID\b[^>]*\bFileName="([^"]+)"')

Key = tuple[str, ...]
"""What files of one slide have in common."""


class Listed(Protocol):
    """One file of a list."""

    @property
    def id(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def mpp(self) -> float | None: ...


R = TypeVar("R", bound=Listed)


def merge_files(refs: Sequence[R], name: Callable[[str], str]) -> list[tuple[R, str, float | None]]:
    """The slides of a list in which several files may be one slide; `name` gives the id that an address has of itself.

    A DICOM series is addressed by its folder where that is listed, else by its finest level, an OME-TIFF by the first of its files in the list. Such a slide is called by the id that the list gives,
    else by its folder where that holds no other slide of the list, else by the file. Given are the file by which each is opened, its id and its resolution.

    Raises
    ------
    ConfigError
        One file under two names, or files of one slide with different ids or resolutions.
    """
    if len(refs) < 2:
        return [(ref, ref.id, ref.mpp) for ref in refs]
    _refuse_same_file(refs)
    headers: dict[str, DicomHeader] = {}
    folders = _series_of_folders(refs)
    groups: dict[Key, list[R]] = {}
    for ref in refs:
        groups.setdefault(_key(ref, headers, folders), []).append(ref)
    owners: dict[str, int] = {}
    for group in groups.values():
        for folder in {os.path.dirname(ref.address) for ref in group}:  # noqa: PTH120  # addresses are strings
            owners[folder] = owners.get(folder, 0) + 1
    return [_merged(group, headers, owners, name) for group in groups.values()]


def finest(headers: Iterable[DicomHeader]) -> DicomHeader:
    """The file of a series by which its slide is opened."""
    return max(headers, key=lambda header: header.rank)


def _refuse_same_file(refs: Sequence[Listed]) -> None:
    seen: dict[str, Listed] = {}
    for ref in refs:
        if "://" in ref.address:
            continue
        first = seen.setdefault(os.path.realpath(ref.address), ref)
        if first is not ref:
            raise ConfigError(
                f"slides: {first.address} is listed twice, as {first.id!r} and as {ref.id!r} ({ref.address}). Leave one of them out of the list."
            )


def _series_of_folders(refs: Sequence[Listed]) -> dict[tuple[str, str], Key]:
    """Of folders in the list that are one DICOM series, and of which files are listed as well: each one's key by its real path and series."""
    local = [ref.address for ref in refs if "://" not in ref.address]
    parents = {os.path.realpath(os.path.dirname(address)) for address in local}  # noqa: PTH120
    found: dict[tuple[str, str], Key] = {}
    for address in local:
        real = os.path.realpath(address)
        if real in parents and os.path.isdir(real):  # noqa: PTH112
            series = {header.series for header in headers_in(Path(real)) if header.sop_class == WHOLE_SLIDE}
            if len(series) == 1:
                found[real, series.pop()] = ("file", address)
    return found


def _key(ref: Listed, headers: dict[str, DicomHeader], folders: dict[tuple[str, str], Key]) -> Key:
    """The series or the set of files that a slide's file belongs to; the file itself where it is alone."""
    alone = ("file", ref.address)
    if "://" in ref.address:
        return alone
    path = Path(ref.address)
    if OME_NAME.search(path.name):
        named = _ome_files(path)
        return ("ome", str(path.parent), *sorted(named)) if path.name in named and len(named) > 1 else alone
    if path.suffix.lower() in NEVER_DICOM:
        return alone
    header = read_header(path) if path.is_file() else None
    if header is None or not header.series:
        return alone
    headers[ref.address] = header
    return folders.get((os.path.realpath(path.parent), header.series), ("dicom", header.series))


def _ome_files(path: Path) -> set[str]:
    """Names of the files that the OME-XML of a TIFF speaks of; none where it cannot be read."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tif:
            return set(_FILE_NAME.findall(tif.pages.first.description))
    except (tifffile.TiffFileError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        return set()


def _merged(
    group: list[R], headers: dict[str, DicomHeader], owners: dict[str, int], name: Callable[[str], str]
) -> tuple[R, str, float | None]:
    if len(group) == 1:
        return group[0], group[0].id, group[0].mpp
    files = ", ".join(ref.address for ref in group)
    given = {ref.id for ref in group if ref.id != name(ref.address)}
    stated = {ref.mpp for ref in group if ref.mpp is not None}
    for what, values in (("ids", given), ("resolutions", stated)):
        if len(values) > 1:
            raise ConfigError(
                f"slides: {files} belong to one slide, with {len(values)} {what} ({', '.join(sorted(map(str, values)))}). List one of them."
            )
    dicom = [headers[ref.address] for ref in group if ref.address in headers]
    # What is no DICOM file in a series is its folder, which goes before its files.
    address = str(finest(dicom).path) if len(dicom) == len(group) else next(ref.address for ref in group if ref.address not in headers)
    folder = os.path.dirname(address)  # noqa: PTH120
    named_by_folder = len(dicom) == len(group) and owners[folder] == 1
    own = given.pop() if given else os.path.basename(folder) if named_by_folder else name(address)  # noqa: PTH119
    chosen = next(ref for ref in group if ref.address == address)
    return chosen, own, stated.pop() if stated else None
