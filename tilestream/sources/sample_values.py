"""From what a file stores to (h, w, 3) uint8 RGB: which axes, channels and values are taken, and how alpha is composited.

Alpha on white, in exact integers: a straight colour c under alpha a becomes (c * a + 127) // 255 + 255 - a, which is libtiff's
premultiplication followed by OpenSlide's; a premultiplied colour p becomes p + 255 - a.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tilestream.config.bands.band import Band
from tilestream.errors import ConfigError, InputError
from tilestream.sources.bands import (
    BLOCK_PIXELS,
    BandValues,
    Nodata,
    Window,
    band_values,
    known_bands,
    number_of,
    stored_window,
    windows_of,
)
from tilestream.sources.base import RGB, WHITE, PixelKind, Pixels, SourceOptions
from tilestream.sources.channel_names import list_channels, number_channels

Alpha = Literal["none", "straight", "premultiplied"]


@dataclass(frozen=True)
class SampleRule:
    """How samples of one pixel become RGB."""

    channels: tuple[int, ...] | None = None
    """One or three sample indices, and behind them that of alpha; None takes all."""
    window: Window | None = None
    """Sample values that become 0 and 255: of all samples, or of each that is left."""
    alpha: Alpha = "none"
    """Meaning of the last sample that is taken."""
    invert: bool = False
    """Whether 0 is white (TIFF photometric WhiteIsZero)."""
    nodata: Nodata = None
    """The value that all colour samples of a pixel have where there is no image, or that each of those that are taken has; such pixels are white, as under alpha 0. Of values, each band counts by itself."""
    palette: bytes = b""
    """Red, green and blue of each number that a sample can be, where samples are numbers of colours; window and inversion are of those colours then."""
    values: BandValues | None = None
    """What becomes of samples where pixels are values of bands, not colours."""

    @classmethod
    def of_chosen(cls, chosen: tuple[int, ...], window: Window | None, alpha: Alpha, at: int, **more: Any) -> SampleRule:
        """Samples that were chosen from a pixel whose sample `at` is alpha, under which they lie unless it is one of them."""
        return cls((*chosen, at), window, alpha, **more) if alpha != "none" and at not in chosen else cls(chosen, window, **more)

    @property
    def trivial(self) -> bool:
        """Whether one or three uint8 samples are already the pixel."""
        plain = self.channels is None and self.window is None and self.values is None and not self.palette
        return plain and self.alpha == "none" and not self.invert and self.nodata is None

    @property
    def pixel(self) -> PixelKind:
        """What a pixel holds."""
        return RGB if self.values is None else self.values.pixel

    @property
    def as_picture(self) -> SampleRule:
        """The rule by which people see what is read as values."""
        if self.values is None:
            return self
        count = len(self.values.linear)
        chosen = range(count + (self.alpha != "none")) if self.channels is None else self.channels
        shown = tuple(chosen[k] for k in self.values.shown)
        nodata = tuple(self.nodata[k] for k in self.values.shown) if isinstance(self.nodata, tuple) else self.nodata
        return SampleRule(shown + tuple(chosen[count:]), self.values.window, self.alpha, nodata=nodata)

    @property
    def mapping_bytes(self) -> int:
        """What mapping `BLOCK_PIXELS` at once takes: their samples in float64, and three copies on the way."""
        if self.values is not None:
            return self.values.mapping_bytes
        if self.window is not None:
            return BLOCK_PIXELS * 3 * 8 * 4
        return BLOCK_PIXELS * (8 + 3 * 3) + len(self.palette) if self.palette else 0

    def pixels(self, samples: NDArray[Any]) -> Pixels:
        """(h, w, 3) uint8, or (h, w, bands) float32, from (h, w, s) samples; possibly a read-only view."""
        if self.values is None:
            return self.rgb(samples)
        taken = samples if self.channels is None else samples[..., list(self.channels)]
        if self.alpha == "none":
            return self.values.of(taken, self.nodata)
        found = self.values.of(taken[..., :-1], self.nodata)
        found[taken[..., -1] == 0] = np.nan
        return found

    def rgb(self, samples: NDArray[Any]) -> Pixels:
        """(h, w, 3) uint8 from (h, w, s) samples; possibly a read-only view.

        Samples of other types are mapped some rows at a time: in float64, as they are on the way, all of them are many times the pixels; so are numbers of colours as numpy looks them up.
        """
        if self.window is None and not self.palette:
            return self._rgb(samples)
        height, width = samples.shape[:2]
        out, step = np.empty((height, width, 3), np.uint8), max(1, BLOCK_PIXELS // max(1, width))
        for row in range(0, height, step):
            out[row : row + step] = self._rgb(samples[row : row + step])
        return out

    def _rgb(self, samples: NDArray[Any]) -> Pixels:
        if self.channels is not None:
            samples = samples[..., list(self.channels)]
        absent = None if self.nodata is None else is_nodata(samples if self.alpha == "none" else samples[..., :-1], self.nodata)
        colour, alpha = (samples[..., :-1], samples[..., -1:]) if self.alpha != "none" else (samples, None)
        if self.palette:
            colour = np.frombuffer(self.palette, np.uint8).reshape(-1, 3)[colour[..., 0].astype(np.intp)]
        if self.window is not None:
            colour = map_window(colour, self.window)
        if alpha is not None and (self.window is not None or self.palette):
            alpha = map_window(alpha, _opaque(alpha.dtype))
        assert colour.dtype == np.uint8, "a rule without a window is made for uint8 only"
        if self.invert:
            colour = 255 - colour
        if alpha is not None:
            colour = composite_straight(colour, alpha) if self.alpha == "straight" else composite_premultiplied(colour, alpha)
        if absent is not None and absent.any():
            colour = np.where(absent[..., np.newaxis], np.uint8(WHITE), colour)
        assert colour.shape[-1] in (1, 3), "a rule leaves grey or RGB"
        return colour if colour.shape[-1] == 3 else np.broadcast_to(colour, (*colour.shape[:2], 3))


def _opaque(dtype: np.dtype[Any]) -> Window:
    """The samples of alpha that hide everything and nothing: what a type can hold, of floats 0 and 1 (TIFF 6.0, section 18)."""
    return (0, float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1)


def is_nodata(samples: NDArray[Any], nodata: float | tuple[float | None, ...]) -> NDArray[np.bool_]:
    """(h, w) bool: where all samples of a pixel are the value for "nothing here", which may be NaN; None is no sample's."""
    values = nodata if isinstance(nodata, tuple) else (nodata,) * samples.shape[-1]
    same = [is_value(samples[..., k], value) for k, value in enumerate(values)]
    absent: NDArray[np.bool_] = np.logical_and.reduce(same)  # five times as fast as all(axis=-1)
    return absent


def is_value(samples: NDArray[Any], value: float | None) -> NDArray[np.bool_]:
    """(...) bool: where samples are a value, which may be NaN; None is no sample's."""
    if value is None:
        return np.zeros(samples.shape, np.bool_)
    same: NDArray[np.bool_] = np.isnan(samples) if value != value else samples == value  # noqa: PLR0124  # NaN
    return same


def composite_straight(colour: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w, c) uint8: colours on white, (c * a + 127) // 255 + 255 - a."""
    a = alpha.astype(np.uint16)
    return ((colour * a + 127) // 255 + (255 - a)).astype(np.uint8)


def composite_premultiplied(colour: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w, c) uint8: premultiplied colours on white, p + 255 - a, held at 255 where a file breaks p <= a."""
    out: NDArray[np.uint8] = np.minimum(colour, alpha) + (255 - alpha)
    return out


def map_window(samples: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """uint8 of the same shape: window[0] becomes 0, window[1] becomes 255, linear between, rounded (half to even), clipped; NaN is white."""
    low, high = np.asarray(window, np.float64).T  # of each sample where they are several
    scaled = np.clip((samples.astype(np.float64) - low) * 255 / (high - low), 0, 255)
    mapped: NDArray[np.uint8] = np.rint(np.nan_to_num(scaled, nan=WHITE)).astype(np.uint8)
    return mapped


class Choices:
    """Collects everything that an image leaves open and the config does not choose, for one error that names it all."""

    def __init__(self, address: str, options: SourceOptions) -> None:
        self.address = address
        self.options = options
        self.problems: list[str] = []
        self.hints: dict[str, str] = {}
        self.names: tuple[str, ...] = ()
        channels = options.channels
        many = options.normalise is not None
        if channels is not None and (
            (len(channels) not in (1, 3) and not many) or any(isinstance(each, int) and each < 0 for each in channels)
        ):
            raise ConfigError(f"source.channels: {list(channels)}; give one (grey) or three (RGB), by name or by number from 0 on.")
        self.bands: tuple[Band, ...] = ()
        count = 1 if channels is None else len(channels)
        windows = () if options.window is None else windows_of(options.window, count)
        if any(not low < high for low, high in windows):
            raise ConfigError(f"source.window: {list(options.window or ())}; the second value must be above the first.")
        if options.window is not None and len(windows) != count and not many:
            raise ConfigError(
                f"source.window: {len(windows)} pairs for {count} channels; give one for each of source.channels, or one for all."
            )

    def refuse(self, problem: str, key: str, value: str) -> None:
        """Note a problem and what to write under `source` to settle it."""
        self.problems.append(problem)
        self.hints[key] = value

    def index(self, axis: str, length: int, key: str) -> int:
        """The chosen index on an axis, 0 where there is only one or where it is refused."""
        chosen: int | None = getattr(self.options, key) if key in ("z", "t") else None
        if chosen is None:
            if length > 1:
                self.refuse(f"axis {axis} is {length} long", key, "0")
            return 0
        if not 0 <= chosen < length:
            raise InputError(f"{self.address}: source.{key}: {chosen}, but axis {axis} has indices 0 to {length - 1}.")
        return chosen

    def know_bands(self, own: Sequence[Band]) -> None:
        """Take what a raster says of its bands: those that were chosen by a name or by wavelength are numbers from here on. Raises InputError."""
        self.bands = known_bands(self.options.bands, own, self.address)
        if self.options.channels is not None:
            self.options = replace(self.options, channels=tuple(number_of(each, self.bands) for each in self.options.channels))
        self.name_channels([band.name for band in self.bands])

    def window(self, channels: Sequence[int] | None) -> Window | None:
        """The samples that become 0 and 255: as the config says, where it knows bands by their scale and offset."""
        window = self.options.window
        if window is None or self.options.bands is None:
            return window
        taken = [self.bands[number] for number in (range(len(self.bands)) if channels is None else channels)]
        return stored_window(window, taken)

    def band_values(self, channels: Sequence[int], kind: np.dtype[Any], bits: int) -> BandValues | None:
        """What becomes of the samples of chosen channels where the options ask for values; None where they ask for colours. Raises InputError."""
        if self.options.normalise is None or self.problems:
            return None
        return band_values([self.bands[number] for number in channels], kind, bits, self.options)

    def name_channels(self, names: Sequence[str]) -> None:
        """Take what the file calls its channels, "" for each without a name: those that were chosen by name are numbers from here on. Raises InputError."""
        self.names = tuple(names)
        if self.options.channels is not None:
            self.options = replace(self.options, channels=number_channels(self.options.channels, names, self.address))

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """The numbers of the chosen channels, None where none are chosen."""
        chosen = self.options.channels
        if chosen is None:
            return None
        return number_channels(chosen, self.names or ("",), self.address)

    def channels(self, length: int, what: str) -> tuple[int, ...]:
        """The chosen channels of an axis `length` long; refused where none are chosen."""
        chosen = self.numbers
        if chosen is None:
            listed = list_channels(self.names)
            self.refuse(f"{what} is {length} long{f' ({listed})' if listed else ''}", "channels", _channels_hint(self.names, length))
            return (0,)
        if max(chosen) >= length:
            raise InputError(f"{self.address}: source.channels: {list(chosen)}, but {what} has indices 0 to {length - 1}.")
        return chosen

    def values(self, dtype: np.dtype[Any], bits: int) -> None:
        """Refuse samples that are not 8-bit unsigned, unless a window says which values are black and white."""
        if (dtype == np.uint8 and bits == 8) or self.options.window is not None or self.options.normalise is not None:
            return
        kind = f"{bits}-bit" if bits < 8 else str(dtype)
        self.refuse(f"samples are {kind}", "window", _window_hint(dtype, bits))

    def settle(self) -> None:
        """Raise one InputError with all that was refused, if anything was."""
        if self.options.bands is not None and not self.bands:
            raise InputError(f"{self.address}: source.bands: is for GeoTIFF and other TIFF files, which this is not. Leave it out.")
        if self.problems:
            order = [key for key in ("scene", "z", "t", "channels", "window") if key in self.hints]
            hint = ", ".join(f"{key}: {self.hints[key]}" for key in order)
            way_out = f"Choose in the config, for example source: {{{hint}}}" if hint else "Save the wanted plane as a file of its own"
            raise InputError(f"{self.address}: {'; '.join(self.problems)}. {way_out}")


def _channels_hint(names: Sequence[str], length: int) -> str:
    if {"red", "green", "blue"} <= {name.casefold() for name in names}:
        return "[red, green, blue]"
    return "[0, 1, 2]" if length >= 3 else "[0]"


def _window_hint(dtype: np.dtype[Any], bits: int) -> str:
    if dtype.kind not in "iu":
        return "[0, 1]"
    if dtype.kind == "u":
        return "[0, 4095]" if bits == 16 else f"[0, {2**bits - 1}]"
    return f"[{-(2 ** (bits - 1))}, {2 ** (bits - 1) - 1}]"


def axis_keys(axes: Sequence[str]) -> dict[int, str]:
    """Config key (z, t, channels or "" for height, width and samples) for each position of an axis list.

    Axes that have no meaning of their own (pages that a file does not name: I, Q, and others) are chosen by `z` where there is no z axis.
    """
    names = [axis.lower() for axis in axes]
    spare = "" if "z" in names else "z"
    keys = {"z": "z", "t": "t", "c": "channels", "y": "", "x": "", "s": ""}
    out: dict[int, str] = {}
    for position, name in enumerate(names):
        if name in keys:
            out[position] = keys[name]
        else:
            out[position] = spare or name
            spare = ""
    return out
