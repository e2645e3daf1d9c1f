"""Micrometres per pixel from what files state: one rule for all backends about what counts as a statement.

A value that is not positive and finite is no statement. Where x and y differ by up to 1 % the mean is taken; beyond, pixels are
not square and the image is refused. Resolutions of pictures for printing are placeholders of image editors and cameras, not a scanner's statement:
a whole number of pixels an inch up to 4,800 (72, 96, 300, 600, 1,200 dpi), whatever unit it was written in, and anything beyond 100 µm/px.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tilestream.errors import InputError

SQUARE_TOLERANCE = 0.01
"""Relative difference of x and y up to which pixels count as square."""

PLACEHOLDER_MPP = 100.0
"""µm/px above which a generic TIFF's resolution tag is taken for a printing resolution."""

INCH = 25_400.0
"""Micrometres."""

MOST_DPI = 4800
"""Pixels an inch of the finest flatbed scanners and printers."""

USUAL_DPI = (72, 96, 100, 120, 150, 180, 200, 240, 250, 300, 350, 360, 400, 600, 720, 1200, 2400, 4800)
"""Placeholders that are known by their value where the unit is not the inch and rounding has blurred them."""

MICROMETRES = {
    "picometer": 1e-6,
    "pm": 1e-6,
    "angstrom": 1e-4,
    "å": 1e-4,
    "nanometer": 1e-3,
    "nm": 1e-3,
    "micrometer": 1.0,
    "micron": 1.0,
    "µm": 1.0,  # U+00B5, as OME writes it
    "μm": 1.0,  # U+03BC
    "um": 1.0,
    "millimeter": 1e3,
    "mm": 1e3,
    "centimeter": 1e4,
    "cm": 1e4,
    "decimeter": 1e5,
    "dm": 1e5,
    "thou": INCH / 1000,
    "inche": INCH,  # inches
    "inch": INCH,
    "in": INCH,
    "foot": 12 * INCH,
    "feet": 12 * INCH,
    "ft": 12 * INCH,
    "yard": 36 * INCH,
    "yd": 36 * INCH,
    "meter": 1e6,
    "m": 1e6,
    "kilometer": 1e9,
    "km": 1e9,
}
"""Micrometres per unit of length; names of OME-XML (UnitsLength) and of OME-Zarr (UDUNITS-2), lower case."""

LARGE = {"Mm": 1e12, "Pm": 1e21}
"""Micrometres per unit whose symbol is told from a small one's by its case alone."""


@dataclass(frozen=True)
class Resolution:
    """Resolution of level 0 and where it comes from."""

    mpp: float | None
    """µm per level-0 pixel; None when unknown."""
    source: str
    """Who says so, "" when nobody does."""
    warnings: tuple[str, ...] = ()


UNKNOWN = Resolution(None, "")

LEAST_MPP = 1e-5
"""µm/px that a file can mean: electron microscopes come to a tenth of a nanometre, ten times as much."""


def resolution_from_config(mpp: float) -> Resolution:
    """The resolution that the config states in place of the file's. Raises InputError where it is not positive and finite."""
    if not (math.isfinite(mpp) and mpp > 0):
        raise InputError(f"mpp: {mpp} given for an image; it must be a positive number of µm/px.")
    return Resolution(mpp, "config")


def resolution_from_file(address: str, x: float, y: float, source: str, *, limit: float = math.inf) -> Resolution:
    """The checked resolution of a file that states `x` and `y` µm/px; unknown, with a warning, where the numbers say nothing.

    Raises
    ------
    InputError
        x and y differ by more than 1 %.
    """
    if not all(math.isfinite(v) and v >= LEAST_MPP for v in (x, y)):
        return Resolution(None, "", (f"{source}: {y:g} x {x:g} µm/px (y, x) is no resolution; mpp is taken as unknown.",))
    if limit < math.inf and (min(x, y) > limit or is_placeholder(x)):
        return Resolution(
            None, "", (f"{source}: {x:.4g} µm/px ({INCH / x:.4g} dpi) is a placeholder for printing; mpp is taken as unknown.",)
        )
    if abs(x - y) > SQUARE_TOLERANCE * max(x, y):
        raise InputError(
            f"{address}: pixels are not square: {source} state {x:g} µm/px in x and {y:g} in y, more than 1 % apart. "
            "State the resolution in the mpp column of the slide list."
        )
    return Resolution((x + y) / 2, source)


def is_placeholder(mpp: float) -> bool:
    """Whether a resolution is that of a picture for printing: a whole number of pixels an inch that is no whole number of µm a pixel, or a usual one."""
    dpi = INCH / mpp
    if dpi > MOST_DPI * 1.001:
        return False
    whole_inch, whole_um = abs(dpi - round(dpi)) <= 1e-6 * dpi, abs(mpp - round(mpp)) <= 1e-6 * mpp
    return (whole_inch and not whole_um) or any(abs(dpi / usual - 1) <= 0.002 for usual in USUAL_DPI)


def magnification_words(properties: Mapping[str, str]) -> str:
    """What a file without a resolution says of its magnification, as a sentence with a space before it; empty where it says nothing."""
    for name in ("aperio.AppMag", "openslide.objective-power"):
        power, _ = parse_number(properties.get(name, ""))
        if math.isfinite(power) and power > 0:
            return f" It states {name.rpartition('.')[2]} = {power:g}, which on most scanners is about {10 / power:.3g} µm/px."
    return ""


def micrometres_from_unit(unit: str) -> float | None:
    """Micrometres per `unit`, or None where it is no length (pixel, reference frame, second)."""
    exact = unit.strip()
    if exact in LARGE:
        return LARGE[exact]
    word = exact.lower().replace("metre", "meter")
    return MICROMETRES.get(word, MICROMETRES.get(word.removesuffix("s")) if len(word) > 4 else None)  # microns, inches; ms are no length


def parse_number(text: str) -> tuple[float, tuple[str, ...]]:
    """A decimal number that may have a decimal comma, with a warning then; NaN where it is none."""
    warnings = (f"decimal comma in {text.strip()!r}, read as a point.",) if "," in text else ()
    try:
        return float(text.strip().replace(",", ".")), warnings
    except ValueError:
        return math.nan, warnings
