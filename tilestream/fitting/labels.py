"""Labels as they are written in tables: classes in their order, numbers, deaths; and which of them nothing can be learned from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tilestream.config.fit_schema import FitConfig
from tilestream.errors import ConfigError, InputError
from tilestream.fitting.tables import number

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

DIED = {
    "1": True,
    "true": True,
    "yes": True,
    "dead": True,
    "deceased": True,
    "0": False,
    "false": False,
    "no": False,
    "alive": False,
    "living": False,
}
"""What a column of events may say, case ignored."""


def find_classes(config: FitConfig, cells: Sequence[str]) -> tuple[tuple[str, ...], Ints]:
    """The classes in their order, and each cell's.

    Raises
    ------
    ConfigError, InputError
        There are fewer than two, some are the same but for case, or they look like numbers.
    """
    target, there = config.target, in_order(cells)
    of = f"{target.column} of {target.slides}" if target.slides else f"{target.obs} of the list of slides"
    if unseen := [name for name in target.classes if name not in there]:
        raise ConfigError(f"target.classes: no slide has {unseen[0]!r} as {of}. Write it as it stands there, or leave it out.")
    classes = target.classes or tuple(there)
    if len(there) < 2:
        raise InputError(f"{of} is {there[0]!r} for all {len(cells)} slides, but it takes two classes to learn from.")
    refuse_alike(there, of)
    many = len(there) > 20 and len(there) > len(cells) / 3
    if many or (len(there) > max(2, len(cells) / 2) and all(map(_is_number, there))):
        raise InputError(
            f"{of} has {len(there)} classes for {len(cells)} slides ({', '.join(there[:4])}, ...). Are these numbers? Then set target.regression to true."
        )
    return classes, np.array([classes.index(cell) for cell in cells], np.int64)


def refuse_alike(names: Iterable[str], of: str, otherwise: str = "") -> None:
    """Refuse names that people take for one, and that would count as two. Raises ConfigError."""
    alike: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        alike.setdefault(str(number(name, "")) if _is_number(name) else " ".join(name.casefold().split()), []).append(name)
    if twice := next((found for found in alike.values() if len(found) > 1), None):
        raise ConfigError(
            f"{of} {'has' if not otherwise else 'are'} {' and '.join(map(repr, twice))}, which differ only in case, in spaces or in how a number is written"
            f"{f': {otherwise}' if otherwise else ''}. Write them alike."
        )


def in_order(names: Iterable[str]) -> list[str]:
    """Different names, sorted: by value where all are numbers, for grade 10 comes after 9, and the order is what quadratic kappa weighs by."""
    found = sorted(set(names))
    return sorted(found, key=lambda name: number(name, "")) if all(map(_is_number, found)) else found


def _is_number(cell: str) -> bool:
    try:
        number(cell, "")
    except InputError:
        return False
    return True


def check_numbers(value: Floats, what: str) -> None:
    """Refuse numbers that are all one. Raises InputError."""
    if len(value) and (value == value[0]).all():
        raise InputError(f"{what} is {value[0]:g} for all {len(value)} slides: there is nothing to predict.")


def check_survival(time: Floats, died: NDArray[np.bool_], names: Sequence[str]) -> None:
    """Refuse times and deaths of which nothing can be learned. Raises InputError."""
    if (time < 0).any():
        raise InputError(f"the time of {names[int(np.argmax(time < 0))]} is below 0.")
    if died.sum() < 2:
        raise InputError(f"{int(died.sum())} deaths among {len(died)} slides: nothing can be learned of survival.")


def read_event(cell: str, what: str) -> bool:
    """Whether a cell says that the patient died. Raises InputError."""
    found = DIED.get(cell.casefold().removesuffix(".0"))
    if found is None:
        raise InputError(f"{what} is {cell!r}, but it must be one of {', '.join(DIED)}.")
    return found
