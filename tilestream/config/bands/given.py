"""What a config says of bands: a preset, `file`, or a mapping of names, which may stand in a YAML or JSON file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from tilestream.config.bands.band import FILE, PRESETS, Band
from tilestream.config.types import ValueRefusedError

KEYS = frozenset({"common", "wavelength", "scale", "offset", "mean", "std"})
"""What is said of a band beside its name."""

SUFFIXES = (".yaml", ".yml", ".json")
"""Of files of bands."""


def bands_from_config(value: object) -> str | tuple[Band, ...]:
    """A preset, `file`, or a mapping of names to what is said of each band. Raises ValueRefusedError."""
    if isinstance(value, str) and Path(value).suffix.lower() in SUFFIXES:
        value = _read(Path(value))
    if isinstance(value, str):
        if value != FILE and value not in PRESETS:
            near = get_close_matches(value, PRESETS, n=1)
            raise ValueRefusedError(f"{value!r} is none of {FILE}, {', '.join(PRESETS)}{f'. Did you mean {near[0]}?' if near else ''}")
        return value
    if isinstance(value, tuple) and all(isinstance(each, Band) for each in value):
        return value
    if not isinstance(value, Mapping) or not value:
        raise ValueRefusedError(f"give a preset ({', '.join(PRESETS)}), {FILE}, or a mapping of the names of bands, in their order")
    return tuple(_from_mapping(str(name), said) for name, said in value.items())


def _read(path: Path) -> object:
    """What a file of bands holds: what the config says does not change with it later."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        told = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        raise ValueRefusedError(f"{path}: cannot be read: {told}. It holds a mapping of the names of bands, as in the config") from error


def _from_mapping(name: str, said: object) -> Band:
    given: Any = {} if said is None else said
    if not isinstance(given, Mapping) or not set(given) <= KEYS:
        raise ValueRefusedError(f"{name}: give {', '.join(sorted(KEYS))} of the band, not {said!r}")
    for key, number in given.items():
        if key != "common" and (isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < float("inf")):
            raise ValueRefusedError(f"{name}.{key}: {number!r} is no number")
    if not isinstance(given.get("common", ""), str):
        raise ValueRefusedError(f"{name}.common: {given['common']!r} is no name")
    if given.get("scale") == 0:
        raise ValueRefusedError(f"{name}.scale: is 0, which makes one value of all samples")
    if given.get("std", 1) <= 0:
        raise ValueRefusedError(f"{name}.std: {given['std']!r}, but it must be above 0")
    return Band(name, **given)


def _written(bands: str | tuple[Band, ...]) -> object:
    """As in a config."""
    if isinstance(bands, str):
        return bands
    return {band.name: {key: getattr(band, key) for key in sorted(KEYS) if getattr(band, key) not in ("", None)} for band in bands}


Bands = Annotated[
    Any, BeforeValidator(bands_from_config), PlainSerializer(_written), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})
]
"""The key `source.bands`."""
