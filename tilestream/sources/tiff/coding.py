"""What the samples of a TIFF page mean: which codecs and colours are read, and how samples become RGB."""

from __future__ import annotations

import shlex
import struct
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from tilestream.errors import InputError
from tilestream.sources.bands import Nodata, nodata_in
from tilestream.sources.files import NoGridError
from tilestream.sources.sample_values import Alpha, Choices, SampleRule

TIFFFILE_ERRORS = (
    *(tifffile.TiffFileError, struct.error, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(AssertionError, RuntimeError, OSError, EOFError, MemoryError, SyntaxError),  # SyntaxError: ElementTree's ParseError
)
"""What tifffile raises on damaged files: its parsers trust what they read and fail in whatever way the numbers lead to."""

JPEG, JPEG_2000_YCBCR = 7, 33003
JPEG_2000 = frozenset({33003, 33004, 33005, 34712})
JPEG_XR = frozenset({22610, 34934})
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
INTERLEAVED, SEPARATE = 1, 2
"""PlanarConfiguration."""
COLOR_MAP = 320
"""The tag."""
CALLED = {5: "CMYK", 8: "CIELAB"}
"""Colours that are not read and that libvips converts."""
ALPHA: dict[tuple[int, ...], Alpha] = {(1,): "premultiplied", (2,): "straight"}
"""Meaning of the ExtraSamples tag where there is one extra sample (TIFF 6.0 section 18)."""


def check_coding(page: Any, address: str) -> None:
    """Refuse colours and codecs that would decode to something other than grey or RGB samples."""
    codec, photometric = int(page.compression), int(page.photometric)
    planar = int(page.tags.valueof(284, default=INTERLEAVED))
    if planar not in (INTERLEAVED, SEPARATE):
        raise InputError(
            f"{address}: PlanarConfiguration is {planar}, which says nothing of where samples lie; 1 (interleaved) and 2 (separate) are read. "
            "The file is damaged; export it again."
        )
    if page.compression != 1 and page.compression not in tifffile.TIFF.DECOMPRESSORS:
        raise NoGridError(f"{address}: TIFF compression {codec} is not supported")
    if codec == JPEG_2000_YCBCR:
        raise NoGridError(f"{address}: JPEG 2000 in YCbCr (compression {codec}) is converted to RGB by OpenSlide only")
    if photometric == YCBCR and codec not in (6, JPEG):
        raise NoGridError(f"{address}: YCbCr colours without JPEG compression (compression {codec})")
    if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR):
        name = getattr(page.photometric, "name", str(photometric))
        known = CALLED.get(photometric, f"{name} (PhotometricInterpretation {photometric})")
        converts = f"Convert it to RGB: vips colourspace {shlex.quote(address)} 'rgb.tif[tile,pyramid,compression=deflate,bigtiff]' srgb"
        way_out = converts if photometric in CALLED else "Export it again as RGB from what made it."
        raise InputError(f"{address}: colours are {known}; grey, palettes, RGB and YCbCr are read. {way_out}")
    if photometric == PALETTE:
        palette_of(page, address)


def palette_of(page: Any, address: str) -> bytes:
    """Red, green and blue of each number that a sample can be, by the ColorMap tag, as libtiff has them. Raises InputError."""
    numbers, levels = 2 ** bits_of(page), color_map(page)
    if len(levels) != 3 * numbers or np.dtype(page.dtype).kind not in "ub":
        told = f"a ColorMap of {len(levels)} values" if len(levels) else "no ColorMap"
        raise InputError(
            f"{address}: samples are numbers of {numbers} colours, but the file has {told} where {3 * numbers} belong. "
            "The file is damaged; export it again."
        )
    # Entries have 16 bits; writers that put 8 there are told by no entry that needs more.
    eight = (levels // 256 if (levels > 255).any() else levels).astype(np.uint8)
    return eight.reshape(3, numbers).T.tobytes()


def color_map(page: Any) -> NDArray[np.uint16]:
    """All reds, all greens and all blues of the ColorMap tag; empty where there is none."""
    return np.asarray(page.tags.valueof(COLOR_MAP, default=()), np.uint16).ravel()


def sample_rule(page: Any, channels: tuple[int, ...] | None, choices: Choices, nodata: Nodata = None) -> SampleRule:
    """How this page's samples, in all or each of which `nodata` stands for nothing, become RGB; what cannot be known is noted in `choices`."""
    samples, window = int(page.samplesperpixel), None if choices.options.normalise is not None else choices.window(choices.numbers)
    invert = int(page.photometric) == WHITE_IS_ZERO
    dtype, bits = np.dtype(page.dtype) if page.dtype is not None else np.dtype("V"), bits_of(page)
    # Where channels or values are asked for, it is the numbers themselves that are meant.
    numbered = (
        int(page.photometric) == PALETTE and channels is None and choices.options.channels is None and choices.options.normalise is None
    )
    palette = palette_of(page, choices.address) if numbered else b""
    if not numbered:
        choices.values(dtype, bits)
    if channels is not None:
        if samples > 1:
            choices.refuse(f"each channel page has {samples} samples a pixel", "", "")
        return SampleRule(None, window, invert=invert, nodata=nodata, values=choices.band_values(channels, dtype, bits))
    colours = 3 if int(page.photometric) in (RGB, YCBCR) else 1
    extra = tuple(int(code) for code in page.extrasamples)
    if choices.options.channels is not None or choices.options.normalise is not None:
        chosen = choices.channels(samples, "axis S")
        values, nodata = choices.band_values(chosen, dtype, bits), nodata_in(nodata, chosen)
        place = next((k for k, code in enumerate(extra) if (code,) in ALPHA), None)
        if place is None:
            return SampleRule(chosen, window, invert=invert, nodata=nodata, values=values)
        alpha = ALPHA[extra[place : place + 1]]
        return SampleRule.of_chosen(chosen, window, alpha, colours + place, invert=invert, nodata=nodata, values=values)
    nodata = nodata_in(nodata, range(colours))
    if samples == colours + 1 and extra in ALPHA:
        return SampleRule(None, window, ALPHA[extra], invert, nodata, palette)
    if samples != colours:
        unsaid = {2: "second", 4: "fourth"}.get(samples)
        choices.channels(samples, f"axis S (samples of a pixel, the {unsaid} not said to be alpha)" if unsaid else "axis S")
    return SampleRule(None, window, invert=invert, nodata=nodata, palette=palette)


def bits_of(page: Any) -> int:
    """Bits of the widest sample."""
    bits = page.bitspersample
    return max(bits) if isinstance(bits, tuple) else int(bits)
