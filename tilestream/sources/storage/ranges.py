"""Which bytes are asked for together: pieces that lie near each other in an object become one request, where little else lies between."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

WINDOW = 40 * 1024**2
"""Bytes of pieces that are looked over together: those of a shard of 2,000 tiles of JPEG, of which a row of file tiles is then one request."""

LARGEST_REQUEST = 4 * 1024**2
"""Bytes of one request, where a piece is not larger: several at once fill a line that one does not."""

FIRST_REQUEST = 256 * 1024
"""Bytes of the first requests of a list, and of later ones as many as lie before them: what is read first is not to wait for what shares the line."""

WASTE = 0.25
"""Bytes between pieces that are fetched and not wanted, as a share of those that are, at most."""

NEAR = 2048
"""Bytes between pieces that are always bridged, within `WASTE`: a request of its own has as many in its headers."""

REQUESTS = 0.018
"""Requests for each piece that are few enough: wider gaps are bridged only until there are no more, for what lies in them is waited for too."""

Numbers = NDArray[np.int64]


def windows(starts: Numbers, counts: Numbers) -> Iterator[slice]:
    """Runs of pieces in the order of reading, of `WINDOW` bytes or one piece; less where an object, or a part of one, is behind it read to its end."""
    order = np.argsort(starts, kind="stable")
    apart = np.diff(starts[order], prepend=starts[order[:1]]) > LARGEST_REQUEST
    last = np.zeros(len(starts), np.int64)
    last[order] = np.repeat(
        np.maximum.reduceat(order, at := np.flatnonzero(apart | (np.arange(len(order)) == 0))), np.diff([*at, len(order)])
    )
    whole = np.flatnonzero(np.maximum.accumulate(last) == np.arange(len(starts))) + 1
    ends = np.cumsum(counts)
    start, passed = 0, 0
    while start < len(counts):
        end = max(start + 1, int(np.searchsorted(ends, passed + WINDOW, "right")))
        clean = int(whole[np.searchsorted(whole, end, "right") - 1]) if len(whole) and whole[0] <= end else 0
        end = clean if clean - start > (end - start) // 2 else end
        yield slice(start, end)
        start, passed = end, int(ends[end - 1])


def requests_of(starts: Numbers, counts: Numbers, waste: float = WASTE, *, first: bool = True) -> list[NDArray[np.intp]]:
    """Numbers of the pieces of each request, by the first of them to be read; pieces stand in the order of reading, `first` if nothing is read before them."""
    groups: list[NDArray[np.intp]] = []
    passed = np.cumsum(counts) - counts + (0 if first else LARGEST_REQUEST)
    for window in windows(starts, counts):
        runs = (run + window.start for run in join(starts[window], counts[window], waste))
        near = [part for run in runs for part in ([run] if len(run) == 1 else _cut(run, starts, counts, passed))]
        groups += sorted(near, key=lambda part: int(part.min()))
    return groups


def join(starts: Numbers, counts: Numbers, waste: float = WASTE) -> list[NDArray[np.intp]]:
    """Numbers of the pieces of each run of near neighbours, in the order of their places.

    Of the gaps between neighbours the smallest are bridged first, as long as they are no more than `waste` of the bytes that are wanted; no gap
    wider than `NEAR` is bridged where runs are few already.
    """
    order = np.argsort(starts, kind="stable")
    first, last = starts[order], starts[order] + counts[order]
    gaps = np.maximum(first[1:] - np.maximum.accumulate(last)[:-1], 0)
    narrow = np.argsort(gaps, kind="stable")
    affordable = int(np.searchsorted(np.cumsum(gaps[narrow]), waste * int(counts.sum()), "right"))
    near = int(np.searchsorted(gaps[narrow], NEAR, "right"))
    enough = max(near, len(gaps) + 1 - max(1, round(REQUESTS * len(order))))
    bridged = np.zeros(len(gaps), bool)
    bridged[narrow[: min(affordable, enough)]] = True
    return np.split(order, np.flatnonzero(~bridged) + 1)


def _cut(run: NDArray[np.intp], starts: Numbers, counts: Numbers, passed: Numbers) -> Iterator[NDArray[np.intp]]:
    """A run of neighbours in requests, none over `LARGEST_REQUEST` unless one piece is; `passed` are the bytes that are read before each piece.

    A run that is read from its beginning to its end starts small. Where reading goes to and fro (along columns of file tiles, whose rows lie
    one behind the other), each stretch that is read forwards is a request, for all of them are read at once; but not where stretches are short.
    """
    size = int((starts[run] + counts[run]).max() - starts[run[0]])
    back = np.flatnonzero(np.diff(run) < 0) + 1
    parts = np.split(run, back) if size > FIRST_REQUEST and len(back) < REQUESTS * len(run) else [run]
    for part in parts:
        forwards = int(np.ptp(part)) < 2 * len(part)
        ends, at = np.maximum.accumulate(starts[part] + counts[part]), 0
        while at < len(part):
            most = min(LARGEST_REQUEST, max(FIRST_REQUEST, int(passed[part[at]]))) if forwards else LARGEST_REQUEST
            end = max(at + 1, int(np.searchsorted(ends, starts[part[at]] + most, "right")))
            yield part[at:end]
            at = end
