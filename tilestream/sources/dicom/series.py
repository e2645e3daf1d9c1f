"""Which files of a DICOM series make up which level of a slide, and which frame lies on which tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError
from tilestream.geometry import Level, Size, downsample_from_sizes
from tilestream.sources.base import SegmentGrid
from tilestream.sources.dicom.instance import FULL, INVERTED, SPARSE, Instance, read_instance
from tilestream.sources.dicom.listing import SeriesFiles
from tilestream.sources.sample_values import Choices
from tilestream.sources.storage.contract import ByteSource
from tilestream.sources.tiff.pages import same_aspect

ABSENT = -1
"""In place of the number of a file where a tile has no frame."""


@dataclass(frozen=True)
class FrameTable:
    """Which frame lies on each tile of a level."""

    files: NDArray[np.int16]
    """(rows * cols,) number of the file among those of the slide; `ABSENT` where there is no frame."""
    frames: NDArray[np.int32]
    """(rows * cols,) number of the frame in that file."""


@dataclass(frozen=True)
class DicomLevel:
    """One level: its grid, and the frames of each chosen optical path."""

    level: Level
    grid: SegmentGrid
    """In pixels of the level, after division by `reduce`."""
    tables: tuple[FrameTable, ...]
    reduce: int = 1
    """The part of the stored scale, as a denominator, at which frames are decoded."""


@dataclass(frozen=True)
class DicomSlide:
    """The slide that the files of a series make up."""

    instances: tuple[Instance, ...]
    """Those of its levels, finest first."""
    files: tuple[ByteSource, ...]
    """Their bytes."""
    levels: tuple[DicomLevel, ...]
    paths: int
    """Optical paths that the slide has; more than one are channels."""
    others: tuple[str, ...]
    """Files of the series that are no level, and what they are."""


def read_slide(address: str, files: SeriesFiles, choices: Choices) -> DicomSlide:
    """The slide that the files of a series are.

    Raises
    ------
    InputError
        One of its files is damaged, they contradict each other, or the options must choose.
    """
    read = [(read_instance(stored), stored) for stored in files.levels]
    read.sort(key=lambda pair: (-pair[0].size.height * pair[0].size.width, pair[0].file_name))
    instances = [found for found, _ in read]
    by_size: dict[Size, list[int]] = {}
    for number, found in enumerate(instances):
        by_size.setdefault(found.size, []).append(number)
    _refuse_mixed(instances)
    names = _path_names(instances)
    wanted = _choose_paths(choices, names)
    plane = _choose_plane(choices, instances)
    finest = instances[0].size
    levels: list[DicomLevel] = []
    for size, numbers in by_size.items():
        if not same_aspect(finest, size):
            named = ", ".join(instances[number].file_name for number in numbers)
            raise InputError(
                f"{address}: {named} is {size.height} x {size.width} px, which is no smaller {finest.height} x {finest.width} as {instances[0].file_name} is: "
                "the series has images of several regions. Put each with its levels into a folder of its own."
            )
        level = Level(size, downsample_from_sizes(finest, size) if levels else 1.0)
        if not levels or level.downsample > levels[-1].level.downsample:
            levels.append(_level(level, {number: instances[number] for number in numbers}, [names[k] for k in wanted], plane))
    return DicomSlide(tuple(instances), tuple(stored for _, stored in read), tuple(levels), len(names), files.others)


def _refuse_mixed(instances: list[Instance]) -> None:
    """Refuse levels whose samples are not of one kind. Raises InputError."""
    first = instances[0]
    for found in instances[1:]:
        mine, others = (
            f"{each.samples} x {each.bits_stored} bits {'inverted ' * (each.photometric == INVERTED)}a pixel" for each in (found, first)
        )
        if mine != others or found.bits != first.bits:
            raise InputError(
                f"{found.name}: {mine}, but {first.file_name} of the same series has {others}. Put files of different kinds into folders of their own."
            )


def _path_names(instances: list[Instance]) -> list[tuple[str, str]]:
    """Identifier and description of the optical paths of a slide, in the order in which its files name them."""
    known: dict[str, str] = {}
    for found in instances:
        for identifier, description in found.paths:
            known.setdefault(identifier, description)
    return list(known.items())


def _choose_paths(choices: Choices, names: list[tuple[str, str]]) -> tuple[int, ...]:
    if len(names) == 1:
        return (0,)
    described = [description or identifier for identifier, description in names]
    choices.name_channels(described if len(set(described)) == len(described) else [identifier for identifier, _ in names])
    return choices.channels(len(names), "the list of its optical paths")


def _planes_of(instances: list[Instance]) -> list[int]:
    """The focal planes of a slide: depths in nm where its frames state them, else numbers."""
    depths: set[int] = set()
    for found in instances:
        depths |= set(range(found.planes)) if found.places is None else set(np.unique(found.places[:, 2]).tolist())
    return sorted(depths)


def _choose_plane(choices: Choices, instances: list[Instance]) -> int:
    planes = _planes_of([found for found in instances if found.size == instances[0].size])
    return choices.index("of its focal planes", len(planes), "z")


def _level(level: Level, files: dict[int, Instance], paths: list[tuple[str, str]], plane: int) -> DicomLevel:
    """The grid of a level and its tables. Raises InputError where files contradict each other or frames are missing."""
    first = next(iter(files.values()))
    size, tile = level.size, first.tile
    grid = SegmentGrid(tile.height, tile.width, -(-size.height // tile.height), -(-size.width // tile.width))
    for found in files.values():
        if found.tile != tile:
            raise InputError(
                f"{found.name}: frames of {found.tile.height} x {found.tile.width} px, but {first.file_name} has the same level in frames of "
                f"{tile.height} x {tile.width}. Leave one of them out of the folder."
            )
    depths = _planes_of(list(files.values()))
    chosen = depths[min(plane, len(depths) - 1)]
    return DicomLevel(level, grid, tuple(_table(grid, files, identifier, chosen) for identifier, _ in paths))


def _table(grid: SegmentGrid, files: dict[int, Instance], identifier: str, depth: int) -> FrameTable:
    """Which frame of which file lies on each tile, for one optical path and focal plane."""
    table = FrameTable(np.full(grid.rows * grid.cols, ABSENT, np.int16), np.zeros(grid.rows * grid.cols, np.int32))
    for number, found in files.items():
        cells, frames = _cells(found, grid, identifier, depth)
        taken = table.files[cells]
        if len(np.unique(cells)) < len(cells) or (taken != ABSENT).any():
            with_it = next((files[int(other)].file_name for other in taken if other != ABSENT), found.file_name)
            raise InputError(
                f"{found.name}: places two frames on one tile of the level of {found.size.height} x {found.size.width} px (the other is in {with_it}). "
                "Are these focal planes, or two scans? Leave one of them out of the folder."
            )
        table.files[cells], table.frames[cells] = number, frames
    missing = int((table.files == ABSENT).sum())
    whole = [found for found in files.values() if found.places is None]
    if missing and whole:
        raise InputError(
            f"{whole[0].name}: {FULL}, but {missing} of the {grid.rows * grid.cols} tiles of its level of {whole[0].size.height} x {whole[0].size.width} px "
            f"have no frame. {'A part of the concatenation is not in the folder; add it' if whole[0].concatenation else 'Copy the file again from its origin'}."
        )
    return table


def _cells(found: Instance, grid: SegmentGrid, identifier: str, depth: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The tiles that frames of one optical path and focal plane lie on, and the numbers of those frames."""
    mine = [number for number, (name, _) in enumerate(found.paths) if name == identifier]
    tiles = grid.rows * grid.cols
    if found.places is None:
        numbers = found.first + np.arange(found.frames, dtype=np.int64)
        if int(numbers[-1]) >= tiles * found.planes * len(found.paths):
            raise InputError(
                f"{found.name}: {found.first + found.frames} frames, but {grid.rows} x {grid.cols} tiles in {found.planes} focal planes and "
                f"{len(found.paths)} optical paths are {tiles * found.planes * len(found.paths)}. The file is damaged; copy it again from its origin."
            )
        kept = (numbers // tiles % found.planes == depth) & np.isin(numbers // (tiles * found.planes), mine)
        return numbers[kept] % tiles, np.flatnonzero(kept)
    y, x, depths, paths = found.places.T
    if (y % grid.height).any() or (x % grid.width).any():
        raise InputError(
            f"{found.name}: {SPARSE} frames that lie on no grid of {grid.height} x {grid.width} px, which is not read. Export it as {FULL}."
        )
    rows, cols = y // grid.height, x // grid.width
    if (rows < 0).any() or (cols < 0).any() or (rows >= grid.rows).any() or (cols >= grid.cols).any():
        raise InputError(
            f"{found.name}: frames lie outside its {found.size.height} x {found.size.width} px. The file is damaged; copy it again."
        )
    kept = (depths == depth) & np.isin(paths, mine)
    return (rows * grid.cols + cols)[kept], np.flatnonzero(kept)
