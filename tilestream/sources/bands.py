"""Which band is meant by a name, a common name or a wavelength, which samples stand for a value of it, and the values that an encoder gets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.config.bands.band import FILE, PRESETS, Band
from tilestream.config.bands.statistics import NONE, OF_BANDS, STATISTICS, unsaid
from tilestream.errors import ConfigError, InputError
from tilestream.sources.base import PixelKind, Pixels, SourceOptions

NEAR = 0.02
"""Micrometres by which a wavelength may lie off a band's centre."""

BLOCK_PIXELS = 1 << 15
"""Pixels that are mapped at once: what they take on the way stays in a core's cache."""

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*(nm|um|µm|μm)", re.IGNORECASE)

Nodata = float | tuple[float | None, ...] | None
"""The value that stands for nothing: in all bands, or in each."""

Window = tuple[float, float] | tuple[tuple[float, float], ...]
"""Values that become 0 and 255: of all channels, or of each."""


def known_bands(chosen: str | tuple[Band, ...] | None, own: Sequence[Band], address: str) -> tuple[Band, ...]:
    """What is known of a file's bands: its own words, completed by a preset or by what the config says, by name, else in their order.

    Raises
    ------
    InputError
        They cannot be told which is which.
    """
    if chosen is None or chosen == FILE:
        return tuple(own)
    said = PRESETS[chosen] if isinstance(chosen, str) else chosen
    by_name = {_plain(band.name): band for band in said}
    if any(_plain(band.name) in by_name for band in own):
        return tuple(_completed(band, by_name.get(_plain(band.name))) for band in own)
    by_common = {band.common.casefold(): band for band in said if band.common}
    if any(band.common.casefold() in by_common or band.name.casefold() in by_common for band in own):
        return tuple(_completed(band, by_common.get(band.name.casefold()) or by_common.get(band.common.casefold())) for band in own)
    if len(own) != len(said):
        what = f"{chosen} has" if isinstance(chosen, str) else "it gives"
        raise InputError(
            f"{address}: source.bands: {what} {len(said)} bands ({', '.join(band.name for band in said)}), and the file has {len(own)}, of which none has "
            "such a name. Name the bands in the file, or give a mapping of its own bands in their order."
        )
    return tuple(replace(known, name=band.name or known.name) for band, known in zip(own, said, strict=True))


def _plain(name: str) -> str:
    """A name without case, zeros before numbers and what products put before it: SR_B04 is b4."""
    return re.sub(r"(?<![0-9])0+(?=\d)", "", name.casefold().removeprefix("sr_"))


def _completed(band: Band, known: Band | None) -> Band:
    return band if known is None else replace(known, name=band.name or known.name)


def number_of(wanted: int | str, bands: Sequence[Band]) -> int | str:
    """The number of a band by its common name or its wavelength (`665nm`, `0.665um`); what is neither, or is a name, stays."""
    if isinstance(wanted, int) or any(band.name.casefold() == wanted.casefold() for band in bands):
        return wanted
    common = [number for number, band in enumerate(bands) if band.common and band.common.casefold() == wanted.casefold()]
    if len(common) == 1:
        return common[0]
    found = _LENGTH.fullmatch(wanted.strip())
    if found is None:
        return wanted
    length = float(found[1]) / (1000 if found[2].lower() == "nm" else 1)
    known = {number: abs(band.wavelength - length) for number, band in enumerate(bands) if band.wavelength is not None}
    nearest = min(known, key=lambda number: known[number], default=None)
    if nearest is None or known[nearest] > NEAR + 1e-9:
        told = ", ".join(f"{band.name} {band.wavelength:g}" for band in bands if band.wavelength is not None)
        raise InputError(
            f"source.channels: {wanted!r}: no band lies within {NEAR * 1000:g} nm of it; known are {told or 'none'}{' (µm)' if told else ''}. "
            "Choose one of them by name, or state wavelengths: source.bands."
        )
    return nearest


def windows_of(window: Window, count: int) -> tuple[tuple[float, float], ...]:
    """The window of each of `count` channels."""
    pairs = [pair for pair in window if isinstance(pair, tuple)]
    if pairs:
        return tuple(pairs)
    low, high = (float(value) for value in window if not isinstance(value, tuple))
    return ((low, high),) * count


def stored_window(window: Window, bands: Sequence[Band]) -> tuple[tuple[float, float], ...]:
    """For each of `bands` the samples that stand for the values of a window."""
    pairs = windows_of(window, len(bands))
    return tuple(
        ((low - band.offset) / band.scale, (high - band.offset) / band.scale) for (low, high), band in zip(pairs, bands, strict=True)
    )


@dataclass(frozen=True)
class BandValues:
    """How the samples of chosen bands become values in float32."""

    linear: tuple[tuple[float, float], ...]
    """Factor and summand of each band's samples: scale, offset, mean and standard deviation in one."""
    shown: tuple[int, ...]
    """Which of the chosen bands a picture shows: one (grey) or three (red, green, blue)."""
    window: Window
    """Samples of those that are black and white there."""

    @property
    def pixel(self) -> PixelKind:
        """What a pixel holds."""
        return PixelKind(len(self.linear))

    @property
    def mapping_bytes(self) -> int:
        """What mapping `BLOCK_PIXELS` at once takes."""
        return BLOCK_PIXELS * len(self.linear) * 8 * 4

    def of(self, samples: NDArray[Any], nodata: Nodata) -> Pixels:
        """(h, w, b) float32 of (h, w, b) samples, (value - mean) / std; NaN where a band's sample is nodata or not finite.

        Rows are mapped whole, all bands of all pixels in one line: a loop over the bands of each pixel takes four times as long.
        """
        height, width, bands = samples.shape
        out = np.empty((height, width * bands), np.float32)
        work = np.dtype(np.float32 if np.can_cast(samples.dtype, np.float32) else np.float64)
        factor, summand = (np.tile(numbers.astype(work), width) for numbers in np.asarray(self.linear, np.float64).T)
        absent, step = _samples_of(nodata, samples.dtype, width), max(1, BLOCK_PIXELS // max(1, width))
        for row in range(0, height, step):
            block = np.ascontiguousarray(samples[row : row + step]).reshape(-1, width * bands)
            values = out[row : row + step]
            with np.errstate(invalid="ignore", over="ignore"):
                made = block.astype(work)
                made *= factor
                made += summand
                values[...] = made
            if samples.dtype.kind == "f":
                values[~np.isfinite(values)] = np.nan
            if absent is not None:
                values[(block == absent[0]) & absent[1]] = np.nan
        return out.reshape(height, width, bands)


def _samples_of(nodata: Nodata, kind: np.dtype[Any], width: int) -> tuple[Any, Any] | None:
    """What stands for nothing in samples of a row, and where anything does; None where nothing does."""
    if not isinstance(nodata, tuple):
        absent = sample_of(nodata, kind)
        return None if absent is None else (absent, np.True_)
    found = [sample_of(value, kind) for value in nodata]
    return np.tile(np.array([value or 0 for value in found], kind), width), np.tile([value is not None for value in found], width)


def nodata_of(values: Sequence[float | None]) -> Nodata:
    """The value that stands for nothing in bands, of each of which it is given: one, where it is the same in all."""
    return values[0] if len({repr(value) for value in values}) == 1 else tuple(values)


def nodata_in(nodata: Nodata, chosen: Sequence[int]) -> Nodata:
    """What stands for nothing in chosen bands, of what is said of all."""
    if not isinstance(nodata, tuple):
        return nodata
    return nodata_of([nodata[band] if band < len(nodata) else None for band in chosen])


def nodata_words(nodata: Nodata) -> str:
    """What stands for nothing, as people read it."""
    said = nodata if isinstance(nodata, tuple) else (nodata,)
    return ", ".join("none" if value is None else f"{value:g}" for value in said)


def sample_of(value: float | None, kind: np.dtype[Any]) -> Any:
    """A value as samples of a kind have it; None where none of them can be it."""
    if value is None:
        return None
    if kind.kind != "f":
        low, high = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
        if not (float(value).is_integer() and low <= value <= high):
            return None
    with np.errstate(over="ignore"):  # the largest double stands for nothing in files of singles
        return kind.type(value)


def band_values(bands: Sequence[Band], kind: np.dtype[Any], bits: int, options: SourceOptions) -> BandValues:
    """What `options.normalise` makes of samples of the chosen `bands`.

    Raises
    ------
    InputError
        A band's mean and standard deviation are not known, or samples are no plain numbers.
    """
    if kind.kind not in "iuf":
        raise InputError(
            f"source.normalise: samples are {kind}, and integers and floats are read. Convert the file: gdal_translate -ot Float32."
        )
    if problem := unsaid(options.normalise, bands=options.bands is not None):
        raise ConfigError(f"source.normalise: {problem}.")
    said = [(band.scale, band.offset) if options.bands is not None else (1.0, 0.0) for band in bands]
    pairs = _statistics(bands, options.normalise)
    linear = tuple((scale / std, (offset - mean) / std) for (scale, offset), (mean, std) in zip(said, pairs, strict=True))
    known = [{band.common.casefold(), band.name.casefold()} for band in bands]
    colours = [next((k for k, names in enumerate(known) if colour in names), None) for colour in ("red", "green", "blue")]
    found = tuple(k for k in colours if k is not None)
    shown = found if len(found) == 3 else (0, 1, 2) if len(bands) >= 3 else (0,)
    if options.window is not None:
        wanted = windows_of(options.window, len(shown))
        if len(wanted) != len(shown):
            raise ConfigError(f"source.window: {len(wanted)} pairs, but pictures show {len(shown)} bands. Give one pair for all.")
    elif options.normalise != NONE:
        wanted = tuple((pairs[k][0] - pairs[k][1], pairs[k][0] + pairs[k][1]) for k in shown)
    elif kind.kind == "f":
        wanted = ((0.0, 1.0),) * len(shown)
    else:
        low, high = (0.0, 2.0**bits - 1) if kind.kind == "u" else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
        return BandValues(linear, shown, ((low, high),) * len(shown))
    stored = [((low - said[k][1]) / said[k][0], (high - said[k][1]) / said[k][0]) for k, (low, high) in zip(shown, wanted, strict=True)]
    return BandValues(linear, shown, tuple(stored))


def _statistics(bands: Sequence[Band], normalise: str | tuple[tuple[float, float], ...] | None) -> list[tuple[float, float]]:
    """Mean and standard deviation of each band."""
    if normalise == NONE:
        return [(0.0, 1.0)] * len(bands)
    if isinstance(normalise, tuple):
        if len(normalise) != len(bands):
            raise ConfigError(f"source.normalise: {len(normalise)} means, but {len(bands)} channels. Give one for each of source.channels.")
        return list(normalise)
    found = [_stated(band, normalise) for band in bands]
    missing = [band.common or band.name or f"number {number}" for number, band in enumerate(bands) if found[number] is None]
    if missing:
        where = (
            "source.bands gives no mean and std of them" if normalise == OF_BANDS else f"it is for {', '.join(STATISTICS[str(normalise)])}"
        )
        raise InputError(
            f"source.normalise: {normalise}: bands {', '.join(missing)}: {where}. Say what each band is by source.bands, or give source.normalise {{mean: [...], std: [...]}}."
        )
    return [pair for pair in found if pair is not None]


def _stated(band: Band, normalise: str | None) -> tuple[float, float] | None:
    if normalise == OF_BANDS:
        return None if band.mean is None or band.std is None else (band.mean, band.std)
    table = STATISTICS[str(normalise)]
    return table.get(band.common.casefold()) or table.get(band.name.casefold())
