"""Which bands of which file become the colours, or the values, of a mosaic."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tilestream.config.bands.band import Band
from tilestream.config.urls.objects import is_url, lost_or_refused
from tilestream.errors import InputError, OutageError
from tilestream.sources.bands import Nodata, nodata_in
from tilestream.sources.base import SourceOptions
from tilestream.sources.files import NoGridError
from tilestream.sources.mosaic.parts import Listed, Part
from tilestream.sources.sample_values import Alpha, Choices, SampleRule
from tilestream.sources.storage.contract import ByteSource
from tilestream.sources.storage.opened import open_bytes
from tilestream.sources.tiff.index import TiffIndex
from tilestream.sources.tiff.source import TiffSource

ANYTHING = SourceOptions(channels=(0,), window=(0, 1))
"""Opens a file whatever its bands and samples are: what is taken of them is chosen for the whole."""


@dataclass(frozen=True)
class Taken:
    """What is read of one part."""

    bands: tuple[int, ...]
    """Of the file."""
    columns: tuple[int, ...]
    """Where they go among the bands that come out; of an alpha that is only looked at, none."""
    nodata: Nodata
    """Of all `columns`, or of each."""
    alpha: bool = False
    """Whether the last of `bands` says where the image is."""
    own: bool = False
    """Whether the file's own colours are those of the mosaic where it alone shows."""


@dataclass(frozen=True)
class ChosenBands:
    """What is read of all parts, and how it becomes colours."""

    listed: Listed
    """Less the files of which nothing is wanted."""
    taken: dict[int, Taken]
    """By the identity of the part."""
    rule: SampleRule
    kind: np.dtype[Any]
    """Of the samples."""
    count: int
    """Bands that come out."""
    bands: tuple[Band, ...]
    """That are there."""
    chosen: tuple[Band, ...] = ()
    """Those whose values are read; none where pixels are colours."""


def choose_bands(listed: Listed, opened: dict[str, TiffSource], address: str, options: SourceOptions) -> ChosenBands:
    """Open the files that are wanted, into `opened`, and say what is read of each. Raises InputError."""
    if any(part.bands is not None for part in listed.parts):
        if _as_they_are(listed, opened):
            listed = replace(listed, parts=tuple(replace(part, bands=None) for part in listed.parts))
        else:
            return _band_by_band(listed, opened, address, options)
    return _side_by_side(listed, opened, options)


def _open(path: str, opened: dict[str, TiffSource], options: SourceOptions) -> TiffSource:
    if path not in opened:
        remote = _bytes_at(path) if is_url(path) else None
        try:
            opened[path] = TiffSource(path, options, remote)
        except NoGridError as error:
            raise InputError(
                f"{str(error).rstrip('.')}; the files of a mosaic are tiled or striped TIFF. Convert it: gdal_translate -of COG."
            ) from error
    return opened[path]


def _bytes_at(address: str) -> ByteSource:
    """The bytes of an object; where access to it is refused, that is told as of a single image."""
    try:
        return open_bytes(address)
    except OutageError as error:
        told = lost_or_refused(error, address, error)
    raise told  # of its own: what came of an outage is taken for one


def _as_they_are(listed: Listed, opened: dict[str, TiffSource]) -> bool:
    """Whether every part gives all bands of its file in their order."""
    if any((band.scale, band.offset) != (1, 0) for band in listed.bands):
        return False
    counts = {len(part.bands) if part.bands == tuple(range(len(part.bands or ()))) else 0 for part in listed.parts}
    if len(counts) != 1 or 0 in counts:
        return False
    indexed = [_open(part.path, opened, ANYTHING).index for part in listed.parts]
    same = {_samples(index) for index in indexed} == counts and (
        listed.alpha is None or {_alpha_of(each) for each in indexed} == {listed.alpha}
    )
    for source in opened.values():
        source.close()
    opened.clear()
    return same


def _samples(index: TiffIndex) -> int:
    return index.levels[0].pages[0].samples


def _alpha_of(index: TiffIndex) -> int | None:
    """Which sample of a file opened for `ANYTHING` is alpha."""
    return None if index.rule.alpha == "none" or index.rule.channels is None else index.rule.channels[-1]


def _side_by_side(listed: Listed, opened: dict[str, TiffSource], options: SourceOptions) -> ChosenBands:
    """Every file has all bands, and its own alpha; the first says what they mean."""
    first: TiffIndex | None = None
    taken: dict[int, Taken] = {}
    for part in listed.parts:
        index = _open(part.path, opened, options).index
        first = first or index
        _refuse_other_samples((listed.parts[0].path, first), (part.path, index))
        bands = index.rule.channels or tuple(range(_samples(index)))
        nodata, itself = nodata_in(_said(part, index), bands), index.nodata is not None or part.stated is None
        own = (part.own_nodata and itself and listed.nodata is None) or (nodata == index.rule.nodata == listed.nodata)
        taken[id(part)] = Taken(bands, tuple(range(len(bands))), nodata, part.masked and index.rule.alpha != "none", own)
    assert first is not None, "a mosaic has a file"
    assert first.kind is not None, "a rule is made for known samples"
    bands = taken[id(listed.parts[0])].bands
    colours, count = bands if first.rule.alpha == "none" else bands[:-1], len(bands)
    return ChosenBands(
        listed,
        taken,
        replace(first.rule, channels=None, nodata=nodata_in(listed.nodata, colours)),
        first.kind,
        count,
        first.bands,
        first.chosen,
    )


def _refuse_other_samples(base: tuple[str, TiffIndex], other: tuple[str, TiffIndex]) -> None:
    (first, a), (path, b) = base, other
    told = [f"{_samples(index)} bands of {index.kind}, {_colours(index.rule)}" for index in (a, b)]
    if told[0] != told[1]:
        raise InputError(
            f"{path}: has {told[1]}, and {first} has {told[0]}; all files of a mosaic have the same. Make a mosaic for each, or convert one: gdal_translate."
        )
    if len(a.levels[0].pages) > 1 or len(b.levels[0].pages) > 1:
        raise InputError(
            f"{path}: its channels lie in pages of their own, which is not read in a mosaic. Convert it: gdal_translate -of COG."
        )


def _colours(rule: SampleRule) -> str:
    alpha = "without alpha" if rule.alpha == "none" else f"{rule.alpha} alpha"
    window = "" if rule.window is None else f", samples {rule.window} from black to white"
    values = "" if rule.values is None else f", values of samples {rule.values.linear}"
    palette = f", numbers of {len(rule.palette) // 3} colours ({hashlib.sha256(rule.palette).hexdigest()[:8]})" if rule.palette else ""
    return f"{alpha}{', 0 is white' if rule.invert else ''}{window}{values}{palette}"


def _said(part: Part, index: TiffIndex) -> Nodata:
    """What stands for nothing in the bands of a file."""
    if not part.own_nodata:
        return part.nodata
    return part.stated if index.nodata is None else index.nodata


def _band_by_band(listed: Listed, opened: dict[str, TiffSource], address: str, options: SourceOptions) -> ChosenBands:
    """Files have single bands of the whole, or in another order."""
    count = max(len(part.bands or ()) for part in listed.parts)
    choices = Choices(address, options)
    choices.know_bands(listed.bands if len(listed.bands) == count else (Band(),) * count)
    colours = tuple(band for band in range(count) if band != listed.alpha)
    said = choices.options.channels is not None or choices.options.normalise is not None or len(colours) not in (1, 3)
    chosen = choices.channels(count, "bands") if said else colours
    over = () if listed.alpha is None or listed.alpha in chosen else (listed.alpha,)
    alpha: Alpha = "straight" if over else "none"
    taken: dict[int, Taken] = {}
    wanted: list[Part] = []
    first: tuple[str, TiffIndex] | None = None
    for part in listed.parts:
        pairs = [(band, column) for column, each in enumerate((*chosen, *over)) if (band := (part.bands or ())[each]) is not None]
        if not pairs:
            continue
        index = _open(part.path, opened, ANYTHING).index
        first = first or (part.path, index)
        if index.kind != first[1].kind:
            raise InputError(
                f"{part.path}: has samples of {index.kind}, and {first[0]} of {first[1].kind}; all files of a mosaic have the same. Convert one: gdal_translate -ot."
            )
        if max(band for band, _ in pairs) >= _samples(index):
            raise InputError(f"{address}: takes band {max(band for band, _ in pairs) + 1} of {part.path}, which has {_samples(index)}.")
        own = _alpha_of(index)
        looked_at = () if own is None or not part.masked or pairs[-1][0] == own else (own,)
        if over and pairs[-1] == (own, len(chosen)):
            alpha = index.rule.alpha
        bands, columns = (tuple(numbers) for numbers in zip(*pairs, strict=True))
        nodata = nodata_in(_said(part, index), bands)
        taken[id(part)] = Taken((*bands, *looked_at), columns, nodata, own is not None and part.masked)
        wanted.append(part)
    if first is None:
        raise InputError(f"{address}: no file holds the bands {list(chosen)}.")
    assert first[1].kind is not None, "samples of an opened file are known"
    kind = first[1].kind
    choices.values(kind, kind.itemsize * 8)
    choices.settle()
    if not said and first[1].properties["tiff.photometric"] == "palette":
        raise InputError(
            f"{first[0]}: its samples are numbers of colours, of which bands of a VRT with a scale or in another order make no picture. "
            "Make a VRT of the colours: gdalbuildvrt, of files that gdal_translate -expand rgb made."
        )
    values = choices.band_values(chosen, kind, kind.itemsize * 8)
    rule = SampleRule(
        None, choices.window(chosen) if values is None else None, alpha, nodata=nodata_in(listed.nodata, chosen), values=values
    )
    valued = () if values is None else tuple(choices.bands[number] for number in chosen)
    return ChosenBands(replace(listed, parts=tuple(wanted)), taken, rule, kind, len(chosen) + len(over), choices.bands, valued)
