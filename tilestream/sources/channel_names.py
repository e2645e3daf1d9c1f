"""Channels by the names that a file gives them: which number each has, and how they are listed."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from tilestream.errors import InputError

MOST_LISTED = 60
"""Channels that are listed in a message."""


def list_channels(names: Sequence[str]) -> str:
    """Numbers and names in words: `0: red, 1: green, 2 without a name`; "" where none has a name."""
    if not any(names):
        return ""
    listed = [f"{number}: {name}" if name else f"{number} without a name" for number, name in enumerate(names[:MOST_LISTED])]
    return ", ".join(listed) + (f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else "")


def number_channels(wanted: Sequence[int | str], names: Sequence[str], address: str) -> tuple[int, ...]:
    """The numbers of channels that are wanted by number or by name; capitals matter only where two names differ in nothing else.

    Raises
    ------
    InputError
        A name is none of the file's, or that of several channels.
    """
    return tuple(each if isinstance(each, int) else _number(each, names, address) for each in wanted)


def _number(name: str, names: Sequence[str], address: str) -> int:
    if not any(names):
        raise InputError(
            f"{address}: source.channels: {name!r}, but the file does not name its channels. Give numbers, 0 to {len(names) - 1}."
        )
    same = [number for number, known in enumerate(names) if known == name]
    alike = same or [number for number, known in enumerate(names) if known.casefold() == name.casefold()]
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise InputError(
            f"{address}: source.channels: {name!r} is the name of channels {', '.join(map(str, alike))}. Give the number of one."
        )
    by_folded = {known.casefold(): known for known in names if known}
    near = get_close_matches(name.casefold(), by_folded, n=1)
    hint = f" Did you mean {by_folded[near[0]]!r}?" if near else ""
    raise InputError(f"{address}: source.channels: {name!r} is none of its channels, which are {list_channels(names)}.{hint}")
