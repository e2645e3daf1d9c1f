"""Sources of pixels: `open_source` finds the backend that reads an address and says why it was chosen."""

from __future__ import annotations

import logging
from dataclasses import fields
from importlib.metadata import entry_points
from importlib.util import find_spec
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilestream.config.dicom_series import WHOLE_SLIDE, DicomHeader, headers_in, is_dicom
from tilestream.config.local_files import ZARR_MARKS, names_mosaic, refuse_special
from tilestream.config.same_slide import finest
from tilestream.config.urls.objects import STORE_SCHEMES, lost_or_refused
from tilestream.errors import ConfigError, InputError, NotThereError, OutageError, TilestreamError, outage
from tilestream.sources.base import Source, SourceOptions

if TYPE_CHECKING:
    from collections.abc import Callable

PLUGINS = "tilestream.sources"
"""Entry-point group: a name is a file suffix (`czi`) or a URL scheme, a value is a callable (address, SourceOptions) -> Source."""

OWN_GEOMETRY = frozenset({"leica", "mirax", "philips", "sakura", "trestle", "ventana", "zeiss"})
"""OpenSlide's names of vendors whose files state the places of tiles in their own metadata, overlaps and gaps included."""


def open_source(address: str, options: SourceOptions) -> Source:
    """The image at a path, a URL or a `sample://` address, opened by the backend that reads it best.

    `options.backend` forces one. With `auto`, a folder or a ZIP file is Zarr, what a URL names is TIFF or Zarr, a folder of DICOM files is one slide; PNG, JPEG and JPEG 2000
    are plain pictures; any other file is read by file tile where tifffile maps it to a
    regular grid, and through OpenSlide otherwise; what neither reads goes to a plug-in for its suffix or scheme.
    `info.reason` says in words what was chosen and why. With `options.icc`, pixels are converted to sRGB.

    Raises
    ------
    InputError
        Nothing there, no backend reads it, or the image is refused; the message names the cause from every backend tried.
    OutageError
        Its storage does not answer.
    ConfigError
        The options are wrong in themselves.
    """
    _quiet_libraries()
    if options.normalise is not None and options.icc:
        raise ConfigError("source.icc: true, but source.normalise asks for values of bands, which are no colours. Leave one of both out.")
    try:
        source = _open(address, options)
    except (OSError, InputError, OutageError) as error:
        if (lost := outage(error, address)) is not None and (told := lost_or_refused(lost, address, error)) is not error:
            raise told from error
        if isinstance(error, TilestreamError):
            raise
        raise InputError(f"{address}: cannot be opened: {error.strerror or error}. Mend that, or leave it out.") from error
    if options.normalise is not None and not source.pixel.bands:
        source.close()
        raise InputError(
            f"{address}: source.normalise: is for GeoTIFF and other TIFF files, and mosaics of them, which this is not. Leave it out."
        )
    mask = source.mask
    if options.icc:
        from tilestream.sources.wrapped.icc import with_profile

        source = with_profile(source)
    if mask is not None:
        from tilestream.sources.wrapped.masked import MaskedSource

        source = MaskedSource(source, mask)
    source.opened_with = options
    return source


def open_image(address: str | PathLike[str], **choices: Any) -> Source:
    """Open an image for reading: a slide, a raster, an OME-Zarr, a `sample://` address.

    Parameters
    ----------
    address : str or path
        A local path, or the URL of a TIFF or an OME-Zarr.
    **choices
        What the file leaves open: `mpp` (µm per level-0 px), `z`, `t`, `scene`, `channels`, `window`, `bands`, `normalise`, `icc`, `backend`; see `SourceOptions`.

    Returns
    -------
    image : Source
        `.info` says what it is, `.read((y, x, height, width), level)` gives (height, width, 3) uint8 pixels of a level, white outside the image,
        with `normalise` (height, width, bands) float32, NaN where there is nothing;
        `.to_dask(level)` a whole level as a `dask.array`. Close it, or use it in a `with` block.

    Raises
    ------
    InputError
        Nothing there, nothing reads it, or it leaves something open; the message names the choice that is wanted.
    ConfigError
        A choice is unknown, or wrong in itself.
    """
    known = {field.name for field in fields(SourceOptions)}
    for name in choices:
        if name not in known:
            raise ConfigError(f"open_image: {name!r} is no choice. Known are {', '.join(sorted(known))}.")
    if choices.get("bands") is not None or choices.get("normalise") is not None:
        from tilestream.config.bands.given import bands_from_config
        from tilestream.config.bands.statistics import channels_of, statistics_from_config

        for name, read in (("bands", bands_from_config), ("normalise", statistics_from_config)):
            try:
                choices[name] = None if choices.get(name) is None else read(choices[name])
            except ValueError as error:
                raise ConfigError(f"open_image: {name}: {error}.") from error
        if choices.get("channels") is None:
            choices["channels"] = channels_of(choices["normalise"])
    return open_source(fspath(address), SourceOptions(**choices))


def _quiet_libraries() -> None:
    """Keep what libraries log of a file off the terminal; handlers that a program has set up hear it as before."""
    for name in ("tifffile", "PIL"):
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())


def _open(address: str, options: SourceOptions) -> Source:
    """The image in its file's own colours."""
    openers: dict[str, Callable[[str, SourceOptions], Source]] = {
        "auto": _open_auto,
        "tiff": _open_tiff,
        "openslide": _open_openslide,
        "zarr": _open_zarr,
    }
    if options.backend not in openers:
        raise ConfigError(f"source.backend: {options.backend!r} is none of {', '.join(openers)}.")
    if names_mosaic(address):
        from tilestream.sources.mosaic.source import MosaicSource

        return MosaicSource(address, options)
    scheme = address.split("://", 1)[0].lower() if "://" in address else ""
    if scheme == "sample":
        from tilestream.sources.made.slide import ensure_sample

        address, scheme = str(ensure_sample(address)), ""
    if scheme and scheme not in STORE_SCHEMES:
        plugin = _plugin(scheme)
        if plugin is None:
            known = ", ".join(sorted({"sample", *STORE_SCHEMES}))
            raise InputError(f"{address}: no source for {scheme}:// addresses. Known are {known}, and plug-ins of the group {PLUGINS}.")
        return plugin(address, options)
    if scheme:
        from tilestream.sources.by_url import open_url

        return open_url(address, options, _open)
    refuse_special(address)
    if not _is_there(address):
        raise NotThereError(f"{address}: no such file. Check the path; relative paths start at {Path.cwd()}.")
    if Path(address).is_file():
        from tilestream.sources.tiff.chain import check_chain

        check_chain(address)  # before any library follows the chain
        from tilestream.sources.containers import refuse_special_beside

        refuse_special_beside(Path(address))
    return openers[options.backend](address, options)


def _is_there(address: str) -> bool:
    """Whether there is something at a path. Raises OSError where that cannot be known, e.g. in a folder that may not be looked into."""
    try:
        Path(address).stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return True


def _open_auto(address: str, options: SourceOptions) -> Source:
    """A local path, by the backend that fits."""
    path = Path(address)
    if path.is_dir():
        return _open_folder(path, options)
    from tilestream.sources.containers import foreign_words, refuse_overview
    from tilestream.sources.files import NoGridError, NotTiffError, checked_file, starts_as_zip
    from tilestream.sources.picture import is_picture, misnamed_words

    checked_file(address)
    suffix = path.suffix.removeprefix(".").lower()
    try:
        refuse_overview(address)
    except InputError:
        if _plugin(suffix) is None:
            raise
    if starts_as_zip(path):
        return _open_zarr(address, options)
    if is_picture(address):
        return _open_picture(address, options)
    vendor = _vendor(address)
    name, opener = ("dicom", _open_dicom) if is_dicom(path) else ("tiff", _open_tiff)
    if vendor in OWN_GEOMETRY:
        why = f"{vendor} files state the places of their tiles in their own metadata"
    else:
        try:
            return opener(address, options)
        except NoGridError as error:
            grid = "tifffile found no regular tile grid: " if name == "tiff" and not isinstance(error, NotTiffError) else ""
            why = f"{grid}{str(error).removeprefix(f'{address}: ')}"
    from tilestream.sources.openslide import OpenSlideSource

    try:
        return OpenSlideSource(address, options, reason=f"openslide: {why}")
    except InputError as error:
        if (plugin := _plugin(suffix)) is not None:  # looked for only here: it takes longer than opening most files
            return plugin(address, options)
        words = str(error).removeprefix(f"{address}: ")
        told = f"{address}: no backend reads it. {name}: {why}. openslide: {words.rstrip('.')}. Is it an image? Copy it again from its origin, or convert it to OME-Zarr."
        raise InputError(foreign_words(address) or misnamed_words(address) or told) from error


def _open_folder(path: Path, options: SourceOptions) -> Source:
    if path.suffix == ".zarr" or any((path / mark).exists() for mark in ZARR_MARKS):
        return _open_zarr(str(path), options)
    if headers := headers_in(path):
        return _open_auto(str(series_in(path, headers)), options)
    plugin = _plugin(path.suffix.removeprefix(".").lower())
    if plugin is not None:
        return plugin(str(path), options)
    raise InputError(
        f"{path}: is a folder without Zarr metadata ({', '.join(ZARR_MARKS)}). Name the images in it, for example {path}/*.svs."
    )


def series_in(folder: Path, headers: list[DicomHeader]) -> Path:
    """The file by which the one DICOM series of a folder is opened. Raises InputError where it holds several, or none of a slide."""
    slides = [header for header in headers if header.sop_class == WHOLE_SLIDE]
    if not slides and len(headers) == 1 and headers[0].is_index:
        raise InputError(
            f"{folder}: its {headers[0].path.name} is an index of DICOM files in folders below. Name the folder that holds those of the slide."
        )
    if not slides:
        raise InputError(
            f"{folder}: its {len(headers)} DICOM files are no whole-slide images (SOP class {headers[0].sop_class or 'unknown'})."
        )
    by_series: dict[str, list[DicomHeader]] = {}
    for header in slides:
        by_series.setdefault(header.series, []).append(header)
    if len(by_series) > 1:
        named = ", ".join(finest(group).path.name for group in by_series.values())
        raise InputError(f"{folder}: holds {len(by_series)} DICOM series, each a slide. Name one file of each: {named}.")
    return finest(slides).path


def _open_tiff(address: str, options: SourceOptions) -> Source:
    from tilestream.sources.tiff.source import TiffSource

    return TiffSource(address, options)


def _open_dicom(address: str, options: SourceOptions) -> Source:
    from tilestream.sources.files import NoGridError

    if find_spec("pydicom") is None:
        raise NoGridError(
            f"{address}: frames of DICOM slides are read one by one where pydicom is installed, several times as fast: pip install 'tilestream[dicom]'"
        )
    from tilestream.sources.dicom.source import DicomSource

    return DicomSource(address, options)


def _open_picture(address: str, options: SourceOptions) -> Source:
    from tilestream.sources.picture import PictureSource

    return PictureSource(address, options)


def _open_openslide(address: str, options: SourceOptions) -> Source:
    from tilestream.sources.openslide import OpenSlideSource

    return OpenSlideSource(address, options)


def _open_zarr(address: str, options: SourceOptions) -> Source:
    from tilestream.sources.zarr import ZarrSource

    return ZarrSource(address, options)


def _vendor(address: str) -> str | None:
    """OpenSlide's name for the format family, or None where it knows none."""
    from openslide import OpenSlide, OpenSlideError

    try:
        vendor: str | None = OpenSlide.detect_format(address)
    except OpenSlideError:  # recognised, but damaged
        return None
    return vendor


def _plugin(name: str) -> Callable[[str, SourceOptions], Source] | None:
    """The callable that a plug-in offers for a suffix or scheme; loaded only when asked for."""
    for entry in entry_points(group=PLUGINS):
        if entry.name.lower().removeprefix(".") == name and name:
            factory: Callable[[str, SourceOptions], Source] = entry.load()
            return factory
    return None
