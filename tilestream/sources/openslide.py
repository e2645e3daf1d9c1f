"""Images through OpenSlide: its raw premultiplied ARGB, composited on white, without a detour through PIL."""

from __future__ import annotations

import hashlib
import sys
import threading
import weakref
from ctypes import POINTER, c_uint32
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray
from openslide import lowlevel

from tilestream.errors import InputError, ReadError, outage
from tilestream.geometry import Level, Region, Size
from tilestream.sources.base import LARGEST_PROFILE, WHITE, Pixels, SlideInfo, Source, SourceOptions
from tilestream.sources.dicom.jfif import WARNING, rgb_from_ycc, says_rgb_but_is_jfif
from tilestream.sources.files import checked_file, fingerprint_file
from tilestream.sources.resolution import PLACEHOLDER_MPP, UNKNOWN, Resolution, parse_number, resolution_from_config, resolution_from_file
from tilestream.sources.sample_values import composite_straight

OPENSLIDE_ERRORS = (openslide.OpenSlideError, OSError, ValueError)
"""What openslide-python raises on files that it cannot open or read; OpenSlideUnsupportedFormatError is among the first."""

OPAQUE = 0xFF000000
"""The smallest word whose alpha is 255."""

_RAW_READ: Any = getattr(lowlevel, "_read_region", None) if sys.byteorder == "little" else None
"""openslide_read_region itself, which the package wraps for PIL only; None where a later package hides it."""


class _Handle:
    """One open slide; closed when the last thread that uses it lets go."""

    def __init__(self, address: str, *, ycc: bool = False) -> None:
        self.raw, self.ycc = lowlevel.open(address), ycc
        weakref.finalize(self, lowlevel.close, self.raw)

    def read(self, level: int, l0_y: int, l0_x: int, height: int, width: int) -> Pixels:
        """(height, width, 3) uint8 on white."""
        if _RAW_READ is None:
            rgba = np.asarray(lowlevel.read_region(self.raw, l0_x, l0_y, level, width, height))
            return rgb_from_ycc(rgba[..., :3], rgba[..., 3] < 255) if self.ycc else composite_straight(rgba[..., :3], rgba[..., 3:])
        argb = np.empty((height, width), np.uint32)
        _RAW_READ(self.raw, argb.ctypes.data_as(POINTER(c_uint32)), l0_x, l0_y, level, width, height)
        return rgb_from_ycc(rgb_from_argb(argb), argb < OPAQUE) if self.ycc else rgb_from_argb(argb)


def rgb_from_argb(argb: NDArray[np.uint32]) -> Pixels:
    """(h, w, 3) uint8 from (h, w) premultiplied ARGB words: colour + 255 - alpha, which is compositing on white, exactly."""
    bgra = argb.view(np.uint8).reshape(*argb.shape, 4)
    out = np.empty((*argb.shape, 3), np.uint8)
    opaque = not argb.size or int(argb.min()) >= OPAQUE  # alpha is 255 everywhere
    for channel in range(3):  # one by one: an inner loop over the three values of a pixel takes twice as long
        if opaque:
            out[..., channel] = bgra[..., 2 - channel]
        else:
            np.add(bgra[..., 2 - channel], WHITE - bgra[..., 3], out=out[..., channel])
    return out


class OpenSlideSource(Source):
    """Pixels of any format that OpenSlide reads, region by region.

    A handle that failed once fails for ever (OpenSlide latches errors), so after an error the region is tried once more on a
    handle of its own and the shared one is replaced: regions beside a damaged one stay readable, in whatever order threads come.
    OpenSlide takes level-0 integers as places: on a level with a broken downsample a region may lie up to half a pixel off.

    Raises
    ------
    InputError
        OpenSlide cannot open the file, or the options choose what OpenSlide does not offer.
    """

    def __init__(self, address: str, options: SourceOptions, reason: str = "openslide: chosen by source.backend") -> None:
        path = checked_file(address)
        self.opened_with = options
        _check_options(address, options)
        self._address = address
        self._lock = threading.Lock()
        try:
            self._handle: _Handle | None = _Handle(address)
            self._ycc = lowlevel.get_property_value(self._handle.raw, "openslide.vendor") == "dicom" and says_rgb_but_is_jfif(address)
            self._handle.ycc = self._ycc
            self._numbers, levels = _levels(self._handle.raw)
            profile_bytes = int(lowlevel.get_icc_profile_size(self._handle.raw))
            properties = {
                name: lowlevel.get_property_value(self._handle.raw, name) for name in lowlevel.get_property_names(self._handle.raw)
            }
        except OPENSLIDE_ERRORS as error:
            raise InputError(f"{address}: OpenSlide cannot open it: {str(error) or type(error).__name__}") from error
        stated = _resolution(address, properties, options)
        if options.icc and profile_bytes:
            self.icc_profile = _icc_profile(address, profile_bytes)
        kept = {"icc_profile": f"{profile_bytes} bytes" if profile_bytes else "none"}
        kept |= {name: value for name, value in properties.items() if name.startswith("openslide.") and ".level[" not in name}
        self.info = SlideInfo(
            address=address,
            backend="openslide",
            reason=reason,
            levels=levels,
            mpp=stated.mpp,
            mpp_source=stated.source,
            vendor=properties.get("openslide.vendor", ""),
            fingerprint=_fingerprint(path, properties),
            properties=kept,
            warnings=((WARNING,) if self._ycc else ()) + stated.warnings,
        )

    def close(self) -> None:
        """Let go of the slide; it is closed when the last read in flight ends. May be called twice."""
        self._handle = None

    def _read(self, level: int, region: Region) -> Pixels:
        downsample = self.info.levels[level].downsample
        place = self._numbers[level], round(region.px_y * downsample), round(region.px_x * downsample), region.height, region.width
        handle = self._handle
        if handle is None:
            raise ReadError(f"{self._address}: is closed")
        try:
            return handle.read(*place)
        except OPENSLIDE_ERRORS:
            self._replace(handle)
        try:
            return _Handle(self._address, ycc=self._ycc).read(*place)
        except OPENSLIDE_ERRORS as error:
            self._check_storage()
            words = str(error) or type(error).__name__
            raise ReadError(
                f"{self._address}: level {level}, {region.height} x {region.width} px at ({region.px_y}, {region.px_x}): {words}"
            ) from error

    def _check_storage(self) -> None:
        """Raise OutageError where the file's storage does not answer: OpenSlide says in words alone why it failed."""
        try:
            with Path(self._address).open("rb") as file:
                file.read(1)
        except OSError as error:
            if (lost := outage(error, self._address, missing=True)) is not None:
                raise lost from error

    def _replace(self, failed: _Handle) -> None:
        """Open a new shared handle, unless another thread has done so already."""
        with self._lock:
            if self._handle is failed:
                try:
                    self._handle = _Handle(self._address, ycc=self._ycc)
                except OPENSLIDE_ERRORS as error:
                    self._check_storage()
                    raise ReadError(f"{self._address}: cannot be opened again after a read error: {error}") from error


def _icc_profile(address: str, size: int) -> bytes:
    """The slide's colour profile, read through a handle of its own, which it may break; empty where it cannot be one."""
    try:
        return bytes(lowlevel.read_icc_profile(_Handle(address).raw) or b"") if size <= LARGEST_PROFILE else b""
    except OPENSLIDE_ERRORS:
        return b""


def _fingerprint(path: Path, properties: dict[str, str]) -> str:
    """Digest of the file's samples and of OpenSlide's quick hash, which covers the companion files of MIRAX and VMS slides."""
    parts = fingerprint_file(path) + properties.get(openslide.PROPERTY_NAME_QUICKHASH1, "")
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def _check_options(address: str, options: SourceOptions) -> None:
    chosen = [name for name in ("z", "t", "channels", "window", "bands", "scene") if getattr(options, name) is not None]
    if chosen:
        keys = ", ".join(f"source.{name}" for name in chosen)
        raise InputError(f"{address}: is read through OpenSlide, which offers one RGB image only; take {keys} out of the config for it.")


def _levels(raw: Any) -> tuple[tuple[int, ...], tuple[Level, ...]]:
    """OpenSlide's numbers and the geometry of the levels that are coarser than the one before; masks show up as levels of equal size."""
    numbers: list[int] = []
    levels: list[Level] = []
    for number in range(lowlevel.get_level_count(raw)):
        width, height = lowlevel.get_level_dimensions(raw, number)
        level = Level(Size(height, width), float(lowlevel.get_level_downsample(raw, number)))
        if not levels or level.downsample > levels[-1].downsample:
            numbers.append(number)
            levels.append(level)
    return tuple(numbers), tuple(levels)


def _resolution(address: str, properties: dict[str, str], options: SourceOptions) -> Resolution:
    """From openslide.mpp-x and openslide.mpp-y (https://openslide.org/api/python/#standard-properties)."""
    if options.mpp is not None:
        return resolution_from_config(options.mpp)
    stated = [properties.get(name) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
    if stated[0] is None or stated[1] is None:
        return UNKNOWN
    (x, words), (y, more) = parse_number(stated[0]), parse_number(stated[1])
    limit = PLACEHOLDER_MPP if properties.get("openslide.vendor") == "generic-tiff" else float("inf")
    found = resolution_from_file(address, x, y, "OpenSlide's mpp properties", limit=limit)
    return Resolution(found.mpp, found.source, tuple(dict.fromkeys((*words, *more))) + found.warnings)
