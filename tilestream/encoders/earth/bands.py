"""Encoders of bands: what they say they take, held against what tiles are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tilestream.config.bands.band import Band
from tilestream.errors import ConfigError, InputError
from tilestream.sources.bands import number_of

if TYPE_CHECKING:
    from torch import nn


def bands_of(encoder: nn.Module) -> int | tuple[str, ...]:
    """What an encoder's attribute `bands` says: how many it takes, or which, in order; 0 where it takes colours.

    Raises
    ------
    ConfigError
        It is neither.
    """
    said = getattr(encoder, "bands", 0)
    if isinstance(said, int) and not isinstance(said, bool) and said >= 0:
        return said
    if isinstance(said, list | tuple) and said and all(isinstance(each, str) and each for each in said):
        return tuple(said)
    raise ConfigError(
        f"encoder.name: the module has bands = {said!r}, but bands must be the number of bands that it takes, or their names in order."
    )


def check_bands(encoder: nn.Module, name: str, bands: int) -> nn.Module:
    """The encoder; refused where it takes other tiles than those of `bands` bands, or than colours where that is 0.

    Raises
    ------
    ConfigError
        With both.
    """
    said = bands_of(encoder)
    count = said if isinstance(said, int) else len(said)
    named = "" if isinstance(said, int) else f" ({', '.join(said)})"
    if count == bands:
        return encoder
    if not bands:
        raise ConfigError(
            f"encoder.name: {name} takes {count} bands{named}, and tiles are colours. Say which bands and how they are normalised: source.channels and source.normalise."
        )
    if not count:
        raise ConfigError(
            f"source.normalise: tiles are values of {bands} bands, but encoder {name} takes colours. Leave it out and give source.window, or, where its forward "
            f"takes (n, {bands}, size, size) float32, let it say so by an attribute bands = {bands}."
        )
    raise ConfigError(f"source.channels: {bands} bands, but encoder {name} takes {count}{named}. Choose those, in this order.")


def refuse_other_bands(wanted: Sequence[str], bands: Sequence[Band], name: str, encoder: str) -> None:
    """Refuse an image whose chosen bands are known to be others than an encoder takes, or to lie in another order.

    Raises
    ------
    InputError
        With what the band is, and what it should be.
    """
    for number, (each, band) in enumerate(zip(wanted, bands, strict=False)):  # a plug-in may not say its bands
        if is_other(each, band):
            told = ", ".join(word for word in (band.name, band.common, f"{band.wavelength:g} µm" if band.wavelength else "") if word)
            raise InputError(
                f"{name}: channel {number + 1} of source.channels is {told}, but encoder {encoder} takes {each} there. "
                f"Choose {', '.join(wanted)}, in this order."
            )


def is_other(wanted: str, band: Band) -> bool:
    """Whether a band is known not to be the one that is meant by a common name or a wavelength; what is not known may be."""
    if wanted.casefold() in (band.name.casefold(), band.common.casefold()):
        return False
    try:
        return number_of(wanted, [band]) != 0 and bool(band.common)
    except InputError:  # a wavelength that is not near
        return band.wavelength is not None
