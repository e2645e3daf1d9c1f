"""Foreign HDF5 files, read within bounds: a damaged or hostile one is refused in our words, before it costs memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tilestream.config.local_files import refuse_special
from tilestream.errors import InputError, load_needed

HDF5_ERRORS = (OSError, RuntimeError, LookupError, TypeError, ValueError, OverflowError, AttributeError, SystemError)
"""What h5py raises on files that are damaged or not as it expects."""

MOST_TILES = 2**22
"""Tiles of a file: twenty times those of a slide of 100,000 x 100,000 px at 224 px."""

MOST_VALUES = 2**14
"""Values of a tile's features."""

MOST_CHUNK_BYTES = 64 * 1024**2
"""Largest chunk of a dataset: it is read whole."""

MOST_ATTRIBUTE_BYTES = 4096
"""Longest attribute that is read."""


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """An HDF5 file of somebody else's, open for reading.

    Raises
    ------
    ConfigError
        h5py is not installed.
    InputError
        It is no HDF5 file.
    """
    h5py = load_h5py()
    refuse_special(path)
    with hdf5_errors(str(path)):
        file = h5py.File(path, "r")
    with file:
        yield file


@contextmanager
def hdf5_errors(path: str) -> Iterator[None]:
    """What h5py raises on a damaged file as an InputError that names it."""
    try:
        yield
    except HDF5_ERRORS as error:
        words = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: is not a readable HDF5 file: {words}. Copy it again from its origin, or compute it again.") from error


def read_dataset(path: str, file: Any, name: str) -> Any:
    """A dataset of two dimensions whose values lie in the file, all of them.

    What a file declares costs nothing: a few kB may promise tables of any size, and name other files to read from. So nothing is read before
    every chunk is known to be there.

    Raises
    ------
    InputError
        It is not there, of another form, or not in the file.
    """
    h5py = load_h5py()
    link = file.get(name, getlink=True)
    found = file.get(name) if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.ndim != 2:
        form = "another file's" if isinstance(link, h5py.ExternalLink) else "no table of the file's own"
        raise InputError(f"{path}: {name} is {form}, but it must be a dataset of two dimensions. Compute the file again.")
    if found.dtype.kind not in "iuf" or found.dtype.itemsize > 8:
        raise InputError(f"{path}: {name} holds {found.dtype}, but it must hold plain numbers of at most 8 bytes.")
    if found.shape[0] > MOST_TILES or found.shape[1] > MOST_VALUES:
        raise InputError(f"{path}: {name} is {found.shape}, more than the {MOST_TILES} tiles of {MOST_VALUES} values that are read.")
    if not _is_stored(found):
        raise InputError(
            f"{path}: {name} says that it is {found.shape} {found.dtype}, but the file holds only part of that. Compute it again."
        )
    return found


def _is_stored(dataset: Any) -> bool:
    """Whether all values of a dataset lie in its own file, in chunks that fit into memory."""
    if dataset.is_virtual or dataset.external:
        return False
    if dataset.chunks is None:
        return bool(dataset.id.get_storage_size() >= dataset.nbytes)
    if prod(dataset.chunks) * dataset.dtype.itemsize > MOST_CHUNK_BYTES:
        return False
    return bool(dataset.id.get_num_chunks() >= prod(-(-n // side) for n, side in zip(dataset.shape, dataset.chunks, strict=True)))


def read_numbers(path: str, dataset: Any, names: tuple[str, ...], largest: int) -> dict[str, float]:
    """Those attributes of a dataset that are there and are one number.

    Raises
    ------
    InputError
        One is no number from 0 to `largest`.
    """
    told: dict[str, float] = {}
    for name in names:
        if name not in dataset.attrs:
            continue
        kept = dataset.attrs.get_id(name)
        if kept.get_space().get_simple_extent_npoints() != 1:
            continue
        value = dataset.attrs[name] if kept.dtype.kind in "iuf" else None
        number = math.nan if value is None else float(np.ravel(value)[0])
        if not 0 <= number <= largest:
            raise InputError(
                f"{path}: {name} is {'no number' if value is None else value}, but it must be a number from 0 to {largest}. Compute the file again."
            )
        told[name] = number
    return told


def read_word(dataset: Any, name: str) -> str:
    """A short text among the attributes; empty where there is none."""
    if name not in dataset.attrs or dataset.attrs.get_id(name).get_storage_size() > MOST_ATTRIBUTE_BYTES:
        return ""
    word = dataset.attrs[name]
    word = word.decode(errors="replace") if isinstance(word, bytes) else word
    return word[:200] if isinstance(word, str) else ""


def load_h5py() -> ModuleType:
    """The module h5py.

    Raises
    ------
    ConfigError
        It is not installed.
    """
    found: ModuleType = load_needed("reading and writing HDF5", "h5", "h5py")[0]
    return found
