"""What the config is made of: kinds of values and their parsers, what is not available yet, and the parts that take several forms."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)  # fmt: skip

from tilestream.config.local_files import COPY_FIRST, expand_path, named_url
from tilestream.config.restart import NAME, stage_called

LARGEST = 2**31 - 1
"""Largest whole number that any key takes."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class ValueRefusedError(ValueError):
    """A value that a key does not take; the words go behind the key's name."""


def composed(text: str) -> str:
    """A text with its letters and their accents written as one: file systems and programs differ in that, and people see no difference (NFC of Unicode)."""
    return unicodedata.normalize("NFC", text)


def yaml_word(value: object) -> str:
    """A value as one would write it in the config, shortened to one line."""
    words = _flow_from_value(value)
    return words if len(words) <= 80 else f"{words[:77]}..."


def _flow_from_value(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow_from_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_flow_from_value(inner)}' for key, inner in value.items())}}}"
    return repr(value)


def bytes_from_text(value: object) -> int:
    """Bytes from a whole number, or from a number with a unit: `4GiB` is 4 * 2**30, `500 MB` is 500 * 10**6."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?) ?([kmgt]i?|)b?", value.strip().lower()) if isinstance(value, str) else None
    count = int(float(match[1]) * _UNITS[match[2]]) if match else value
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count < 2**63:
        raise ValueRefusedError(f"{yaml_word(value)} is not a size of memory; write 4GiB, 500 MB, or a whole number of bytes of 1 or more")
    return count


def _auto_or_count(value: object) -> object:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST):
        raise ValueRefusedError(f"{yaml_word(value)} is neither auto nor a whole number of 1 or more")
    return value


def _auto_or_switch(value: object) -> object:
    if value != "auto" and not isinstance(value, bool):
        raise ValueRefusedError(f"{yaml_word(value)} is not one of auto, true, false")
    return value


def _check_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value):
        raise ValueRefusedError(f"{yaml_word(value)} is not one of auto, cpu, cuda, cuda:N (e.g. cuda:1)")
    return value


def _tuple_from_list(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _pair_from_list(value: object) -> object:
    if isinstance(value, list | tuple) and value and all(isinstance(each, list | tuple) for each in value):
        return tuple(_pair_from_list(each) for each in value)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueRefusedError(f"{yaml_word(value)} is not two numbers, e.g. [0, 4095]")
    return tuple(value)


def _tuple_from_one(value: object) -> object:
    return (os.fspath(value),) if isinstance(value, str | os.PathLike) else _tuple_from_list(value)


def _text_from_path(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _expand(path: str) -> str:
    try:
        return expand_path(path)
    except ValueError as error:
        raise ValueRefusedError(str(error)) from error


def _refuse_url(path: str) -> str:
    if url := named_url(path):
        raise ValueRefusedError(f"{url!r} is a URL, but this key takes a path of this machine. {COPY_FIRST}")
    return path


def _not_empty(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not all(value):
        raise ValueRefusedError("empty; write a path, a glob such as slides/*.svs, a list of them, or a CSV with a column path")
    return tuple(_expand(path) for path in value)


def _check_window(value: tuple[Any, ...]) -> tuple[Any, ...]:
    for low, high in value if isinstance(value[0], tuple) else (value,):
        if not low < high:
            raise ValueRefusedError(f"[{low:g}, {high:g}] is empty; the first number must be below the second")
    return value


def _check_sides(value: tuple[int, ...]) -> tuple[int, ...]:
    if not value or any(b % a or b <= a for a, b in pairwise(value)):
        raise ValueRefusedError(f"{list(value)}, but each side must be a larger multiple of the one before, e.g. [16, 256]")
    return value


def _check_channels(value: tuple[int | str, ...]) -> tuple[int | str, ...]:
    if not value:
        raise ValueRefusedError("empty; write one channel (grey) or three (red, green, blue), or with source.normalise any number")
    return value


def _number_or_name(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "" or (isinstance(value, int) and not 0 <= value <= LARGEST):
        raise ValueRefusedError(f"{yaml_word(value)} is neither the number of a channel, from 0 on, nor its name")
    return value


def _check_plain(value: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueRefusedError(f"holds something that is not plain data: {error}") from error
    return value


Text = Annotated[str, Field(min_length=1)]
PathText = Annotated[str, BeforeValidator(_text_from_path), Field(min_length=1), AfterValidator(_expand)]
LocalPath = Annotated[PathText, AfterValidator(_refuse_url)]
Paths = Annotated[tuple[str, ...], BeforeValidator(_tuple_from_one), AfterValidator(_not_empty)]
Switch = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=1, le=LARGEST)]
Index = Annotated[int, Strict(), Field(ge=0, le=LARGEST)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Window = Annotated[
    tuple[Number, Number] | tuple[tuple[Number, Number], ...], BeforeValidator(_pair_from_list), AfterValidator(_check_window)
]
Channel = Annotated[int | str, BeforeValidator(_number_or_name)]
Channels = Annotated[tuple[Channel, ...], BeforeValidator(_tuple_from_list), AfterValidator(_check_channels)]
Sides = Annotated[tuple[Count, ...], BeforeValidator(_tuple_from_list), AfterValidator(_check_sides)]
Names = Annotated[tuple[Text, ...], BeforeValidator(_tuple_from_one)]
Device = Annotated[str, AfterValidator(_check_device)]
Arguments = Annotated[dict[str, Any], AfterValidator(_check_plain)]
AutoCount = Annotated[int | Literal["auto"], BeforeValidator(_auto_or_count)]
AutoSwitch = Annotated[bool | Literal["auto"], BeforeValidator(_auto_or_switch)]
Bytes = Annotated[int, BeforeValidator(bytes_from_text), WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]})]
Saved = Annotated[tuple[Literal["tiles", "slide", "windows", "tokens"], ...], BeforeValidator(_tuple_from_list), Field(min_length=1)]


class Section(BaseModel):
    """Base of the config's parts: frozen, no unknown keys, null means absent."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True)

    section: ClassVar[str] = ""
    """Dotted key of this part, with a dot behind it; empty for the whole."""

    @classmethod
    def written_out(cls, data: Any) -> Any:
        """The mapping that a shorthand stands for; anything else as it came."""
        return data

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, data: Any) -> Any:
        data = cls.written_out(data)
        if not isinstance(data, Mapping):
            return data
        known = {name for key, field in cls.model_fields.items() for name in (key, field.alias)}
        return {key: value for key, value in data.items() if value is not None or key not in known}


class Kept(Section):
    """Base of what a store may keep several of, side by side under names."""

    kind: ClassVar[str]
    """The stage that makes it."""

    kept_as: Annotated[str, Field(pattern=f"^{NAME}$")] | None = Field(default=None, alias="as")
    """A name under which it is kept beside others of its kind: a context in `obsm/context-<name>` of the tiles, a vector in `obsm/pool-<name>` of the slide.
    Without a name it takes the place of the one without a name before it; a pool has the name of its context where it has none of its own."""

    @property
    def stage(self) -> str:
        """What its stage, its recipe and its array are called in a store."""
        return stage_called(self.kind, self.kept_as)


class Tissue(Section):
    """Which tiles are kept."""

    section: ClassVar[str] = "tiles.tissue."

    mask: LocalPath | None = None
    """Drawn polygons in level-0 px (GeoJSON, also .gz; XML of ASAP or ImageScope) or a PNG of the whole image (any scale; not black is tissue): one
    file, a folder with `<slide id>.geojson` and the like, or a pattern such as `masks/{slide}.geojson`. The column `mask` of a slide list goes before it.
    Relative to the working directory."""
    include: Names = ()
    """Classes of the polygons that are tissue, case ignored, `*` for any letters; empty for all that are not excluded."""
    exclude: Names = ("Ignore*",)
    """Classes of polygons that are cut out of the tissue."""
    in_bounds: Switch = False
    """Whether polygons count from the corner of OpenSlide's bounds, as QuPath does for slides that have them."""
    function: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    """`module:function` that gives a mask for a thumbnail."""
    method: Literal["otsu", "none", "mask", "function"] = "otsu"
    """How tissue is found; `otsu` takes the glass's colour and brightness from the image, `none` keeps every tile."""
    min_fraction: Fraction = 0.1
    """Smallest part of a tile that must be tissue, 0 to 1."""
    min_area_um2: NotNegative = 10_000.0
    """Smallest piece of tissue that counts, in µm²; smaller ones are taken for dust."""
    pens: Switch = False
    """Whether colours of marker pens are kept out of the tissue."""
    ground: Literal["auto", "bright", "dark"] = "auto"
    """What tissue lies on, for `otsu`: bright glass, or the dark ground of fluorescence; auto tells it by the flat parts of the image."""

    @classmethod
    def written_out(cls, data: Any) -> Any:
        """`otsu`, `none`, `module:function` and `{mask: path}` with their method."""
        if isinstance(data, str):
            if data not in ("otsu", "none") and not re.fullmatch(r"[\w.]+:\w+", data):
                raise ValueRefusedError(
                    f"{yaml_word(data)} is not one of otsu, none, 'module:function', {{method: otsu, min_fraction: 0.1, ...}}, {{mask: tissue.geojson}}"
                )
            return {"method": "function", "function": data} if ":" in data else {"method": data}
        if isinstance(data, Mapping) and data.get("method") is None:
            method = next((key for key in ("mask", "function") if data.get(key) is not None), "otsu")
            return {**data, "method": method}
        return data

    @field_validator("ground")
    @classmethod
    def _check_ground(cls, ground: str, info: ValidationInfo) -> str:
        method = info.data.get("method", "otsu")
        if ground != "auto" and method != "otsu":
            raise ValueRefusedError(
                f"{ground}, but only the method otsu looks for a ground, and tiles.tissue.method is {method}. Leave it out"
            )
        return ground

    @field_validator("exclude")
    @classmethod
    def _check_exclude(cls, exclude: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        both = sorted({name.casefold() for name in exclude} & {name.casefold() for name in info.data.get("include", ())})
        if both:
            raise ValueRefusedError(f"{both[0]} stands in tiles.tissue.include as well. Leave it out of one of them")
        return exclude

    @field_validator("method")
    @classmethod
    def _check_method(cls, method: str, info: ValidationInfo) -> str:
        for key in ("mask", "function"):
            given = info.data.get(key) is not None
            if given and method != key:
                raise ValueRefusedError(
                    f"{method}, but tiles.tissue.{key} is given, which only the method {key} uses. Leave one of them out"
                )
            if method == key and key in info.data and not given:
                raise ValueRefusedError(f"{method} needs tiles.tissue.{key}")
        return method
