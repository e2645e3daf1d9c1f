"""Which band is meant by a name, a common name or a wavelength, and which samples stand for a value of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tilestream.config.bands.band import FILE, PRESETS, Band
from tilestream.errors import InputError

NEAR = 0.02
"""Micrometres by which a wavelength may lie off a band's centre."""

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*(nm|um|µm|μm)", re.IGNORECASE)

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
