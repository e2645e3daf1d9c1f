"""Features in HDF5, as TRIDENT and CLAM store them, and as their downstream tools read them.

Both hold `features` (n, d) float32 and `coords` (n, 2) int64: x, y of a tile's top-left in level-0 px. They differ in the attributes.
Sources: https://github.com/mahmoodlab/TRIDENT and https://github.com/mahmoodlab/CLAM (descriptions of their outputs).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tilestream.buffers import read_at
from tilestream.errors import InputError
from tilestream.interop.target import Target, Written
from tilestream.sources.hdf5_file import load_h5py
from tilestream.store.slide import Slide

CHUNK_ROWS = 256
"""Rows of an HDF5 chunk."""

UM_MAGNIFICATION = 10.0
"""µm/px times magnification: 20x is 0.5 µm/px."""


def write_trident(slide: Slide, target: Target) -> Written:
    """`features` and `coords` with the attributes of TRIDENT's feature files.

    `coords` has patch_size and overlap in px at the target resolution, patch_size_level0 in level-0 px, both magnifications as the whole
    numbers nearest to 10 / (µm/px), level0_width and level0_height in px, name and savetodir; `features` has name, savetodir and encoder.

    Raises
    ------
    InputError
        The slide has no resolution, or one so coarse that no magnification can be stated.
    """
    found = slide.mpp and round(UM_MAGNIFICATION / (slide.mpp * slide.scale))
    if slide.mpp is None or not found:
        resolution = "no resolution" if slide.mpp is None else f"tiles of {slide.mpp * slide.scale:g} µm/px"
        raise InputError(
            f"{slide.id}: the slide has {resolution}, and TRIDENT's files state a magnification of at least 1. "
            "Use --to clam-h5, or embed the slide with source.mpp."
        )
    place = {"name": slide.id, "savetodir": str(target.path.parent)}
    coords = {
        "patch_size": slide.tile,
        "patch_size_level0": round(slide.l0_extent),
        "level0_magnification": round(UM_MAGNIFICATION / slide.mpp),
        "target_magnification": found,
        "overlap": slide.tile - round(slide.stride),
        "level0_width": slide.size.width,
        "level0_height": slide.size.height,
        **place,
    }
    return _write(slide, target, coords, {**place, "encoder": slide.encoder})


def write_clam(slide: Slide, target: Target) -> Written:
    """`features` and `coords` with the attributes of CLAM's files.

    `coords` has patch_level, the level that was read, and patch_size, the side of a tile in px of that level; where tiles were shrunk
    further, custom_downsample is the ratio of patch_size to what the encoder saw.
    """
    downsample = float(slide.source["downsample"])
    attributes: dict[str, Any] = {"patch_size": round(slide.l0_extent / downsample), "patch_level": int(slide.source["level"])}
    ratio = slide.scale / downsample
    if round(slide.l0_extent / downsample) != slide.tile:
        attributes["custom_downsample"] = round(ratio) if abs(ratio - round(ratio)) < 0.01 else ratio
    return _write(slide, target, attributes, {})


def _write(slide: Slide, target: Target, coords_attributes: dict[str, Any], features_attributes: dict[str, Any]) -> Written:
    """Write both datasets block by block."""
    written, dim = Written.without_failed(slide), int(slide.vectors().shape[1])
    count = written.tiles
    with target.writing() as path, new_hdf5(path) as (file, storage):
        chunk = max(1, min(CHUNK_ROWS, count))
        features = file.create_dataset("features", (count, dim), np.float32, chunks=(chunk, dim), maxshape=(None, dim))
        coords = file.create_dataset("coords", (count, 2), np.int64, chunks=(chunk, 2), maxshape=(None, 2))
        file.attrs["l0_extent"] = slide.l0_extent  # px of level 0, as it is: their attributes are whole numbers
        features.attrs.update(features_attributes)
        coords.attrs.update(coords_attributes)
        start = 0
        for places, values in slide.good_blocks():
            end = start + len(values)
            features[start:end], coords[start:end] = values, places
            storage.check()
            start = end
    return written


@contextmanager
def new_hdf5(path: Path) -> Iterator[tuple[Any, Storage]]:
    """A new HDF5 file to write to, and what tells whether its storage failed, which ends the block with an OSError at the latest.

    Memory bound: that of h5py; once the storage has failed, what is still written, so `check` after each block of rows.

    Raises
    ------
    ConfigError
        h5py is not installed.
    OSError
        The storage is full, or failed.
    """
    h5py = load_h5py()
    with path.open("w+b", buffering=0) as raw:
        storage = Storage(raw, path)
        with h5py.File(storage, "w") as file:
            yield file, storage
        storage.check()


class Storage(io.RawIOBase):
    """A file on a disk for HDF5, which never hears that a write failed: it would give up the file half closed, and the process would crash as it ends.

    What cannot be written is kept in memory, so that HDF5 reads it back and closes the file in peace; `check` tells us.
    """

    def __init__(self, raw: io.FileIO, path: Path) -> None:
        self.raw, self.path = raw, path
        self.place = self.end = 0
        self.error: OSError | None = None
        self._unwritten: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raise the first failure."""
        if self.error is not None:
            raise OSError(self.error.errno, self.error.strerror, str(self.path)) from self.error

    def seek(self, place: int, whence: int = 0) -> int:
        self.place = place + (0, self.place, self.end)[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        held = read_at(self.raw.fileno(), len(view), self.place)
        view[:] = held + bytes(len(view) - len(held))
        for start, data in self._unwritten:
            first, last = max(start, self.place), min(start + len(data), self.place + len(view))
            if first < last:
                view[first - self.place : last - self.place] = data[first - start : last - start]
        self.place += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self.error is None:
                done += os.pwrite(self.raw.fileno(), view[done:], self.place + done)
        except OSError as error:
            self.error = error
        if done < len(view):
            self._unwritten.append((self.place + done, bytes(view[done:])))
        self.place += len(view)
        self.end = max(self.end, self.place)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self.end = self.place if size is None else size
        try:
            self.raw.truncate(self.end)
        except OSError as error:
            self.error = self.error or error
        return self.end
