"""Which bytes are asked for together: pieces that lie near each other in an object become one request, where little else lies between."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

WINDOW = 40 * 1024**2
"""Bytes of pieces that are looked over together: those of a shard of 2,000 tiles of JPEG, of which a row of file tiles is then one request."""

LARGEST_REQUEST = 4 * 1024**2
"""Bytes of one request, where a piece is not larger: several at once fill a line that one does not."""

WASTE = 0.22
"""Bytes between pieces that are fetched and not wanted, as a share of those that are."""

Numbers = NDArray[np.int64]


def windows(counts: Numbers) -> Iterator[slice]:
    """Runs of pieces in the order of reading, of `WINDOW` bytes or one piece."""
    ends = np.cumsum(counts)
    start, passed = 0, 0
    while start < len(counts):
        end = max(start + 1, int(np.searchsorted(ends, passed + WINDOW, "right")))
        yield slice(start, end)
        start, passed = end, int(ends[end - 1])


def join(starts: Numbers, counts: Numbers) -> list[NDArray[np.intp]]:
    """Numbers of the pieces of each request, in the order of their places.

    Of the gaps between neighbours the smallest are bridged first, as long as they are no more than `WASTE` of the bytes that are wanted.
    """
    order = np.argsort(starts, kind="stable")
    first, last = starts[order], starts[order] + counts[order]
    gaps = np.maximum(first[1:] - np.maximum.accumulate(last)[:-1], 0)
    narrow = np.argsort(gaps, kind="stable")
    bridged = np.zeros(len(gaps), bool)
    bridged[narrow[np.cumsum(gaps[narrow]) <= WASTE * int(counts.sum())]] = True
    groups: list[NDArray[np.intp]] = []
    for run in np.split(order, np.flatnonzero(~bridged) + 1):
        groups += _cut(run, starts, counts)
    return groups


def _cut(run: NDArray[np.intp], starts: Numbers, counts: Numbers) -> list[NDArray[np.intp]]:
    """A run of neighbours in parts of about equal bytes, none over `LARGEST_REQUEST` unless one piece is."""
    reach = starts[run] + counts[run] - starts[run[0]]
    parts = max(1, -(-int(reach[-1]) // LARGEST_REQUEST))
    number = np.minimum((reach - 1) * parts // max(1, int(reach[-1])), parts - 1)
    return [part for part in np.split(run, np.flatnonzero(np.diff(number)) + 1) if len(part)]
