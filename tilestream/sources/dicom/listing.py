"""Which files beside each other are one DICOM series, in a folder or in a bucket, and their bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tilestream.config.dicom_series import WHOLE_SLIDE, DicomHeader, header_from, headers_in, read_header
from tilestream.config.same_slide import NEVER_DICOM
from tilestream.config.urls.objects import open_object, scheme_of, server_words, split_key
from tilestream.errors import InputError, NotThereError, OutageError
from tilestream.sources.files import NoGridError
from tilestream.sources.storage.contract import ByteSource
from tilestream.sources.storage.local import LocalBytes
from tilestream.sources.storage.opened import open_bytes

MOST_OBJECTS = 256
"""Objects beside each other that are looked at for those of a series; a slide has about ten."""

UNSEEN = "a web server gives no lists: other levels of its DICOM series, which are files of their own, are not seen."


@dataclass(frozen=True)
class SeriesFiles:
    """The files of a slide."""

    levels: tuple[ByteSource, ...]
    addresses: tuple[str, ...]
    """Of those, in the same order."""
    others: tuple[str, ...]
    """Names of those that are no level, and what they are."""
    warnings: tuple[str, ...] = ()

    def close(self) -> None:
        """Close the files."""
        for stored in self.levels:
            stored.close()


def files_beside(address: str) -> SeriesFiles:
    """The series that a local DICOM file belongs to: all its files in the same folder.

    Raises
    ------
    NoGridError
        It is no DICOM file whose elements can be read as they stand.
    InputError
        No file of its series is a level of a slide.
    """
    path = Path(address)
    own = read_header(path)
    if own is not None and own.is_index:
        raise InputError(f"{address}: is an index of DICOM files in folders below it. Name the folder that holds those of the slide.")
    if own is None:
        raise NoGridError(f"{address}: its DICOM elements cannot be read")
    _refuse_deflated(address, own)
    series = [header for header in headers_in(path.parent) if header.series == own.series] if own.series else [own]
    volumes, others = _levels_of(address, series)
    paths = tuple(str(header.path) for header in volumes)
    return SeriesFiles(tuple(LocalBytes(path) for path in paths), paths, others)


def _refuse_deflated(address: str, header: DicomHeader) -> None:
    if header.is_deflated:
        raise InputError(
            f"{address}: its elements are compressed as a whole (transfer syntax Deflated Explicit VR Little Endian, {header.syntax}), so frames cannot be "
            "read one by one. Write it anew without that: dcmconv +te."
        )


def objects_beside(address: str, named: ByteSource | None) -> SeriesFiles:
    """The series that a DICOM object belongs to: its objects right beside it; without a named one, the only series right below a prefix.

    A web server gives no lists: there a file is the slide, which a warning says.

    Raises
    ------
    InputError
        There is no DICOM object, or no level among them, or several series and none of them is named.
    OutageError
        The server does not answer.
    """
    own = None if named is None else _header(named)
    if named is not None and own is None:
        raise InputError(f"{address}: its DICOM elements cannot be read. The object is damaged; copy it again from its origin.")
    if own is not None:
        _refuse_deflated(address, own)
    web = scheme_of(address) in ("http", "https")
    if web and named is None:
        raise NotThereError(f"{address}: no such file, and a web server gives no lists of what lies below it.")
    if web and named is not None and own is not None:
        _, others = _levels_of(address, [own])
        return SeriesFiles((named,), (address,), others, (UNSEEN,))
    opened: list[tuple[DicomHeader, ByteSource, str]] = []
    kept: list[DicomHeader] = []
    try:
        for url in _list_beside(address if named is None else split_key(address)[0]):
            stored = open_bytes(url)
            header = _header(stored)
            if header is not None and (own is None or header.series == own.series):
                opened.append((header, stored, url))
            else:
                stored.close()
        kept, others = _one_slide(address, [header for header, _, _ in opened])
    finally:
        for header, stored, _ in opened:
            if header not in kept:
                stored.close()
    if named is not None:
        named.close()
    files = [(stored, url) for header, stored, url in opened if header in kept]
    return SeriesFiles(tuple(stored for stored, _ in files), tuple(url for _, url in files), others)


def _one_slide(address: str, headers: list[DicomHeader]) -> tuple[list[DicomHeader], tuple[str, ...]]:
    """As `_levels_of`, of objects that are beside each other. Raises InputError where they are no slide, or several."""
    if not headers:
        raise NotThereError(
            f"{address}: there are no DICOM files right below it. Check the address; a series is named by its prefix or by one of its files."
        )
    if len({header.series for header in headers if header.sop_class == WHOLE_SLIDE}) > 1:
        raise InputError(f"{address}: holds several DICOM series, each a slide. Name one object of each.")
    return _levels_of(address, headers)


def _header(stored: ByteSource) -> DicomHeader | None:
    with stored.open_file() as file:
        return header_from(file, Path(stored.name))


def _list_beside(prefix: str) -> list[str]:
    """The objects right below a prefix that may be DICOM."""
    import obstore
    from obstore import exceptions

    try:
        store, key = open_object(prefix.rstrip("/"))
        listed = obstore.list_with_delimiter(store, key)
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, FileNotFoundError) as error:
        raise InputError(f"{prefix}: cannot be listed: {server_words(error)}. Credentials are taken from the environment.") from None
    except exceptions.BaseError as error:
        raise OutageError(f"{prefix}: cannot be listed: {server_words(error)}. Check the URL and the connection.") from None
    names = sorted(str(entry["path"]).rpartition("/")[2] for entry in listed["objects"])
    names = [name for name in names if f".{name.lower().rpartition('.')[2]}" not in NEVER_DICOM]
    if len(names) > MOST_OBJECTS:
        raise InputError(
            f"{prefix}: {len(names)} objects lie right below it, at most {MOST_OBJECTS} are looked through for a DICOM series."
        )
    return [f"{prefix.rstrip('/')}/{name}" for name in names]


def _levels_of(address: str, series: Iterable[DicomHeader]) -> tuple[list[DicomHeader], tuple[str, ...]]:
    """The files of the slide's levels, and what the others of its series are. Raises InputError where there is no level."""
    headers = list(series)
    volumes = [header for header in headers if header.sop_class == WHOLE_SLIDE and "VOLUME" in header.image_type]
    kinds = {
        header.path.name: header.image_type[2] if len(header.image_type) > 2 else "unknown" for header in headers if header not in volumes
    }
    others = tuple(f"{name}: {kind}" for name, kind in kinds.items())
    if not volumes:
        raise InputError(
            f"{address}: no file of its series is a level of a slide (ImageType VOLUME) of the class VL Whole Slide Microscopy; there are {', '.join(others)}. "
            "Name a file of the slide, or convert this one to a plain picture."
        )
    return volumes, others
