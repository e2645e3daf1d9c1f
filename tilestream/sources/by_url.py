"""Images by URL: a TIFF or a zipped Zarr is read by ranges where it lies, a Zarr by its chunks; what needs a local file says so."""

from __future__ import annotations

import posixpath
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tilestream.config.local_files import ZARR_MARKS
from tilestream.config.same_slide import NEVER_DICOM
from tilestream.config.urls.objects import beside_url, path_of
from tilestream.errors import InputError, NotThereError, TilestreamError, outage
from tilestream.sources.base import Source, SourceOptions
from tilestream.sources.containers import foreign_words, refuse_overview
from tilestream.sources.files import MASK_BESIDE, TIFF_STARTS, NoGridError, NotTiffError, join_fingerprints
from tilestream.sources.storage.contract import ByteSource
from tilestream.sources.storage.opened import open_beside, open_bytes

if TYPE_CHECKING:
    from tilestream.sources.dicom.listing import SeriesFiles
    from tilestream.sources.storage.staging import Stage, Staged

PREAMBLE = 132
"""Bytes of a DICOM file down to the end of its mark."""

STAGE = "Copy it ahead: set source.stage to a folder"


def open_url(address: str, options: SourceOptions, open_local: Callable[[str, SourceOptions], Source]) -> Source:
    """The image at a URL; `open_local` opens a copy of it, where `options.stage` says that there be one.

    Raises
    ------
    InputError
        Nothing there, or nothing reads it where it lies; the message names the way out.
    OutageError
        The server does not answer.
    """
    is_zip = path_of(address).lower().endswith((".zip", ".ozx"))
    is_store = (options.backend == "zarr" and not is_zip) or ".zarr/" in f"{path_of(address).rstrip('/')}/".lower()
    if options.stage is not None and not is_store:
        return _open_staged(address, options, options.stage, open_local)
    if options.backend == "openslide":
        raise InputError(f"{address}: source.backend openslide reads local files only. {STAGE}, or leave source.backend out.")
    if is_store:
        return _open_zarr(address, options)
    try:
        stored = open_bytes(address)
    except NotThereError:
        if options.backend != "auto":
            raise
        with suppress(InputError):  # a prefix is no object
            return _open_zarr(address, options)
        if find_spec("pydicom") is not None:
            with suppress(NotThereError):
                return _open_dicom(address, options, None)
        raise
    try:
        return _open_object(address, options, stored)
    except BaseException:
        stored.close()
        raise


def _open_object(address: str, options: SourceOptions, stored: ByteSource) -> Source:
    head = stored.read(0, min(4, stored.size))
    refuse_overview(path_of(address))
    if head in TIFF_STARTS or options.backend == "tiff":
        from tilestream.sources.tiff.source import TiffSource

        try:
            return TiffSource(address, options, stored)
        except NoGridError as error:
            words = str(error).removeprefix(f"{stored.name}: ").rstrip(".")
            if isinstance(error, NotTiffError) or options.backend == "tiff":
                raise InputError(f"{address}: {words}. Copy it again from its origin.") from error
            raise InputError(f"{address}: {words}; OpenSlide may read it, from a local disk only. {STAGE}.") from error
    if _is_dicom(stored):
        return _open_dicom(address, options, stored)
    if head[:2] == b"PK":
        return _open_zarr(address, options, stored)
    try:
        return _open_zarr(address, options)
    except InputError as error:
        told = foreign_words(path_of(address)) if not _may_be_slide(address) else ""
        raise InputError(
            told
            or f"{address}: is no TIFF and no Zarr, which are what is read over a network. {STAGE}, where OpenSlide or a picture reader opens it."
        ) from error


def _open_staged(address: str, options: SourceOptions, folder: str, open_local: Callable[[str, SourceOptions], Source]) -> Source:
    """The image from a copy of its file, or of all files of its DICOM series, which stay as long as the image is open."""
    from tilestream.sources.storage.staging import Stage

    stage = Stage(folder, options.stage_limit)
    held: list[tuple[Staged, str, bool]] = []
    series = _dicom_series(address)
    try:
        for url in (address,) if series is None else series.addresses:
            held.append(_hold(url, stage))  # noqa: PERF401  # those held so far are let go where one fails
        plain = replace(options, stage=None)
        paths = [str(staged.path) for staged, _, _ in held]
        source = open_local(paths[0], plain) if series is None else _open_series(address, plain, paths, series)
        source = _with_beside(address, source, plain)
        mask = _stage_mask(address, source, stage)
        held += mask
    except BaseException:
        if series is not None:
            series.close()
        for staged, _, _ in held:
            staged.release()
        raise
    for staged, _, _ in held:
        weakref.finalize(source, staged.release)
    own, said = source.info, [_said_beside(source)]
    identities = [join_fingerprints([identity, *said.pop()] if said else [identity]) for _, identity, marked in held if marked]
    fingerprint = join_fingerprints(identities if len(identities) == len(held) else [own.fingerprint, *(each for _, each, _ in mask)])
    source.info = replace(own, address=address, fingerprint=fingerprint, reason=f"{own.reason}, of a copy in source.stage")
    return source


def _with_beside(address: str, source: Source, options: SourceOptions) -> Source:
    """The source with what lies beside an object of which it reads a copy."""
    from tilestream.sources.tiff.beside import read_beside
    from tilestream.sources.tiff.source import TiffSource

    if not isinstance(source, TiffSource) or not source.index.may_be_raster:
        return source
    told = read_beside(address, placed=source.info.geo is not None)
    if not told.files and not told.warnings:
        return source
    source.close()
    return TiffSource(source.info.address, options, beside=address)


def _said_beside(source: Source) -> tuple[str, ...]:
    """The digest of what others say of an image, as one or none."""
    from tilestream.sources.tiff.source import TiffSource

    return (source.index.beside,) if isinstance(source, TiffSource) and source.index.beside else ()


def _stage_mask(address: str, source: Source, stage: Stage) -> list[tuple[Staged, str, bool]]:
    """A copy of the mask that lies beside an object, which the source takes up; none where there is none."""
    from tilestream.sources.tiff.beside import GDALS
    from tilestream.sources.tiff.source import TiffSource, mask_of_file

    if not isinstance(source, TiffSource) or source.mask is not None or source.info.vendor not in GDALS:
        return []
    stored = open_beside(address, MASK_BESIDE, TIFF_STARTS)
    if stored is None:
        return []
    stored.close()
    held = _hold(beside_url(address, MASK_BESIDE), stage)
    try:
        mask = mask_of_file(str(held[0].path))
    except BaseException:
        held[0].release()
        raise
    if mask.info.fingerprint == source.info.fingerprint:  # a server that gives one file whatever it is asked for
        mask.close()
        held[0].release()
        return []
    source.mask = mask
    return [held]


def _hold(address: str, stage: Stage) -> tuple[Staged, str, bool]:
    """The copy of an object, its identity, and whether the server says when it changes."""
    from tilestream.sources.storage.fetching import RangeFetcher, identity_of

    fetcher = RangeFetcher(address)
    ranges, version = fetcher.look(), fetcher.version
    assert version is not None, "looking pins it"
    identity, name = identity_of(version.size, version.mark or address), posixpath.basename(unquote(path_of(address))) or "slide"
    place = identity_of(version.size, f"{version.mark} {address}")  # an ETag tells versions of one address apart, not addresses
    staged = stage.hold(place, name, version.size, lambda file: fetcher.copy(file, whole=not ranges))
    return staged, identity, bool(version.mark)


def _dicom_series(address: str) -> SeriesFiles | None:
    """The DICOM series of an object, or right below a prefix; None where there is none."""
    if find_spec("pydicom") is None or f".{path_of(address).lower().rpartition('.')[2]}" in NEVER_DICOM:
        return None
    from tilestream.sources.dicom.listing import objects_beside

    try:
        stored = open_bytes(address)
    except NotThereError:
        with suppress(NotThereError):
            return objects_beside(address, None)
        return None
    try:
        found = objects_beside(address, stored) if _is_dicom(stored) else None
    except BaseException:
        stored.close()
        raise
    if found is None:
        stored.close()
    return found


def _is_dicom(stored: ByteSource) -> bool:
    return stored.size > PREAMBLE and stored.read(PREAMBLE - 4, 4) == b"DICM"


def _open_series(address: str, options: SourceOptions, paths: list[str], series: SeriesFiles) -> Source:
    """The slide that copies of a series' files are. Raises InputError."""
    from tilestream.sources.dicom.source import DicomSource
    from tilestream.sources.storage.local import LocalBytes

    series.close()
    try:
        return DicomSource(address, options, replace(series, levels=tuple(LocalBytes(path) for path in paths)))
    except NoGridError as error:
        raise InputError(f"{error}. Download the series, and name its folder.") from error


def _open_dicom(address: str, options: SourceOptions, stored: ByteSource | None) -> Source:
    """The DICOM series of an object, or right below a prefix. Raises InputError."""
    if find_spec("pydicom") is None:
        raise InputError(
            f"{address}: reading DICOM over a network needs the extra `dicom`: pip install 'tilestream[dicom]'. Or {STAGE[0].lower()}{STAGE[1:]}."
        )
    from tilestream.sources.dicom.listing import objects_beside
    from tilestream.sources.dicom.source import DicomSource

    try:
        return DicomSource(address, options, objects_beside(address, stored))
    except NoGridError as error:
        raise InputError(f"{error}. Download the series, and name its folder: OpenSlide may read it.") from error


def _may_be_slide(address: str) -> bool:
    """Whether OpenSlide reads files of that name where they lie on a disk."""
    return path_of(address).lower().endswith((".mrxs", ".czi"))


def _open_zarr(address: str, options: SourceOptions, zipped: ByteSource | None = None) -> Source:
    from tilestream.sources.zarr import ZarrSource

    try:
        return ZarrSource(address, options, zipped=zipped)
    except (OSError, TilestreamError) as error:
        unfit = _unfit_store(address) if zipped is None and outage(error, address) is not None else None
        if unfit is None:
            raise
    raise unfit  # of its own: what came of an outage is taken for one


def _unfit_store(address: str) -> InputError | None:
    """What is the matter with how a web server gives a Zarr's metadata; None where nothing is."""
    from tilestream.sources.storage.web_answers import unfit_answer

    parts = (unfit_answer(beside_url(address.rstrip("/"), f"/{mark}")) for mark in ZARR_MARKS)
    return next(filter(None, parts), None)
