"""Mean and standard deviation of bands over what an encoder was trained on, by the bands' common names.

They are of values, not of samples: of surface reflectance where `source.bands` names a product, as the encoders' authors state them for samples as stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from tilestream.config.types import ValueRefusedError

NONE, OF_BANDS = "none", "bands"
"""Instead of a preset: values as they are, and what is said of each band by `source.bands`."""

Statistics = Mapping[str, tuple[float, float]]


def _of(scale: float, offset: float, names: str, means: tuple[float, ...], stds: tuple[float, ...]) -> Statistics:
    """What is stated for samples, of their values."""
    pairs = zip(means, stds, strict=True)
    return {name: (round(mean * scale + offset, 9), round(std * scale, 9)) for name, (mean, std) in zip(names.split(), pairs, strict=True)}


STATISTICS: Mapping[str, Statistics] = {
    "prithvi-eo-2": _of(
        1e-4, 0, "blue green red nir08 swir16 swir22",
        (1087, 1342, 1433, 2734, 1958, 1363), (2248, 2179, 2178, 1850, 1242, 1049),
    ),
    "clay-1.5-sentinel-2": _of(
        1e-4, 0, "blue green red rededge071 rededge075 rededge078 nir nir08 swir16 swir22",
        (1105, 1355, 1552, 1887, 2422, 2630, 2743, 2785, 2388, 1835), (1809, 1757, 1888, 1870, 1732, 1697, 1742, 1648, 1470, 1379),
    ),
    "clay-1.5-landsat": _of(
        2.75e-5, -0.2, "red green blue nir08 swir16 swir22",
        (13705, 13310, 12474, 17801, 14615, 12701), (9578, 9408, 10144, 8277, 5300, 4522),
    ),
    "clay-1.5-naip": _of(1, 0, "red green blue nir", (110.16, 115.41, 98.15, 139.04), (47.23, 39.82, 35.43, 49.86)),
}  # fmt: skip
"""By name, in the order in which the encoder was trained on the bands. Of NAIP, values are its samples."""

OF_SAMPLES = frozenset({"clay-1.5-naip"})
"""Those of values that are samples as they are stored; all others are of reflectance."""


def statistics_from_config(value: object) -> str | tuple[tuple[float, float], ...]:
    """A preset, `bands`, `none`, or a pair for each channel of `{mean: [...], std: [...]}`. Raises ValueRefusedError."""
    known = (NONE, OF_BANDS, *STATISTICS)
    if isinstance(value, str):
        if value not in known:
            near = get_close_matches(value, known, n=1)
            raise ValueRefusedError(f"{value!r} is none of {', '.join(known)}{f'. Did you mean {near[0]}?' if near else ''}")
        return value
    if isinstance(value, tuple) and value and all(isinstance(each, tuple) and len(each) == 2 for each in value):
        value = {"mean": [mean for mean, _ in value], "std": [std for _, std in value]}
    if not isinstance(value, Mapping) or set(value) != {"mean", "std"}:
        raise ValueRefusedError(f"give one of {', '.join(known)}, or {{mean: [...], std: [...]}} with a number for each of source.channels")
    means, stds = (_numbers(key, value[key]) for key in ("mean", "std"))
    if len(means) != len(stds):
        raise ValueRefusedError(f"{len(means)} means and {len(stds)} standard deviations; give one of both for each of source.channels")
    if any(std <= 0 for std in stds):
        raise ValueRefusedError(f"std: {list(stds)}, but each must be above 0")
    return tuple(zip(means, stds, strict=True))


def _numbers(key: str, value: object) -> tuple[float, ...]:
    good = isinstance(value, list | tuple) and len(value) > 0
    if not good or any(isinstance(each, bool) or not isinstance(each, int | float) or not abs(each) < float("inf") for each in value):  # type: ignore[attr-defined]
        raise ValueRefusedError(f"{key}: {value!r} is no list of numbers")
    return tuple(float(each) for each in value)  # type: ignore[attr-defined]


def channels_of(normalise: str | tuple[tuple[float, float], ...] | None) -> tuple[str, ...] | None:
    """The bands that a preset is for, which are taken where no others are chosen; None of anything else."""
    return tuple(STATISTICS[normalise]) if isinstance(normalise, str) and normalise in STATISTICS else None


def unsaid(normalise: str | tuple[tuple[float, float], ...] | None, *, bands: bool) -> str:
    """Why values cannot be made where `source.bands` does not say what samples mean, in words behind the key; "" where they can."""
    if bands or not isinstance(normalise, str) or normalise == NONE or normalise in OF_SAMPLES:
        return ""
    if normalise == OF_BANDS:
        return "bands, but source.bands says nothing of them. Give a mapping of names with mean and std, or a file of it"
    return f"{normalise} is of reflectance, but source.bands does not say what makes it of samples. Give a product, such as hls-s30, or a mapping with scale and offset"


def _written(normalise: Any) -> object:
    """As in a config."""
    if normalise is None or isinstance(normalise, str):
        return normalise
    return {"mean": [mean for mean, _ in normalise], "std": [std for _, std in normalise]}


Normalise = Annotated[
    Any,
    BeforeValidator(statistics_from_config),
    PlainSerializer(_written),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]}),
]
"""The key `source.normalise`."""
