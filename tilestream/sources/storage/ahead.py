"""Ranges that are fetched ahead of those who read them: many at once, neighbours together, and bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np

from tilestream.sources.storage.answers import Answer
from tilestream.sources.storage.fetching import request_pool
from tilestream.sources.storage.ranges import LARGEST_REQUEST, WASTE, Numbers, requests_of

AHEAD_BYTES = 64 * 1024**2
"""Bytes of one list that are under way or wait to be read, at most: while a window is read, the next one comes."""

KEPT_BYTES = 16 * 1024**2
"""Bytes of pieces that were read and that the next list wants too."""

MOST_BYTES = AHEAD_BYTES + LARGEST_REQUEST + KEPT_BYTES
"""Most bytes that one list makes be held."""

WHOLE_BYTES = 128 * 1024**2
"""The same of objects that are asked for whole, each reckoned as the most that it may have until it has come."""

WHOLE_AT_ONCE = 6
"""Objects that are asked for whole under way at once, about: they fill a line, and what is read first does not share it with all that comes later."""

FIRST_BYTES = 4 * 1024**2
"""Bytes of a list that are asked for before the first answer has come, and twice as many as came behind it: all share the line, and what is read first would come last."""

READ_FIRST = 64
"""Pieces whose requests are sent at once however many they are: as long as one of them is missing, nobody decodes."""


Unpack = Callable[[bytes | bytearray], Sequence[tuple[int, int, bool]]]
"""Of the bytes of a whole object, the pieces that a list wants: place, bytes, and whether the next list wants it too. Raises nothing."""

Add = Callable[[Sequence[int], Sequence[int], Sequence[bool], Sequence[int], float], None]
"""Adds ranges to a list: where they start, their bytes, whether the next list wants them too, numbers that say what is read before what, and the share of unwanted bytes."""


@dataclass(eq=False)
class _Plan:
    """What one list has to fetch."""

    most: int
    """Bytes that may be held."""
    again: set[int] = field(default_factory=set)
    """Places of pieces that the next list wants too."""
    unread: set[int] = field(default_factory=set)
    """Places of pieces that it has not read."""
    waiting: deque[_Request] = field(default_factory=deque)
    sent: set[_Request] = field(default_factory=set)
    held: int = 0
    """Bytes of requests that were sent and not read to their end."""
    under_way: int = 0
    """Bytes of requests that were sent and have not come to their end."""
    allowed: int = FIRST_BYTES
    """Bytes that may be under way."""
    grows: bool = True
    """Whether more may be as more has come."""


@dataclass(eq=False)
class _Request:
    """A range of the object that holds pieces, and who still wants them."""

    plan: _Plan
    """The list that fetches it."""
    number: int
    """Those of a list are sent in the order of their numbers."""
    start: int
    end: int
    lengths: dict[int, int]
    """Bytes of each piece, by its place."""
    wanted: dict[int, int]
    """How often each piece that was not read to its end, by its place, is still to be read."""
    unpack: list[tuple[_Plan, Unpack]] = field(default_factory=list)
    """Of an object that is fetched whole, as one piece until it came: the lists that want parts of it."""
    answer: Answer | None = None
    came: threading.Event | None = field(init=False)
    """Set once it is known which parts of the object are wanted."""
    size: int = field(init=False)
    """Bytes that it takes; of an object whose size is not known, at most, until it came."""

    @property
    def base(self) -> int:
        """The place of the first byte; that of an object that is fetched whole lies one before."""
        return self.start + bool(self.unpack)

    def __post_init__(self) -> None:
        self.size = self.end - self.start
        self.came = threading.Event() if self.unpack else None


class RangesAhead:
    """Ranges by `stream(start, end)`, which gives them part by part, ahead of who reads them. Safe to share between threads.

    Memory bound
    ------------
    Of each `ahead`: `AHEAD_BYTES`, of objects that are asked for whole `WHOLE_BYTES`, and what threads wait for that is not in its turn, one request each; of all together `KEPT_BYTES`.
    """

    def __init__(self, stream: Callable[[int, int], Iterator[bytes]]) -> None:
        self._stream = stream
        self._requests: dict[int, _Request] = {}
        """By the place of a piece: the request that holds it."""
        self._plans: list[_Plan] = []
        """Of the lists in work, the one that began first before the others."""
        self._kept: OrderedDict[int, tuple[int, bytes]] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget what is held."""
        with self._lock:
            self._requests.clear()
            self._kept.clear()
            self._kept_bytes = 0

    def read(self, start: int, count: int) -> bytes:
        """A range from what is under way or was kept, else by a request of its own."""
        with self._lock:
            request = self._requests.get(start)
            if request is not None and start + count <= request.end:
                answer = request.answer or self._send(request)
            elif (kept := self._kept.get(start)) is not None and kept[0] == count:
                return kept[1]
            else:
                request = None
        if request is None:
            return b"".join(self._stream(start, start + count))
        data = answer.take(start - request.base, count)
        with self._lock:
            self._took(request, start, data)
        return data

    def read_end(self, start: int, count: int) -> bytes | None:
        """The last bytes of an object that is fetched whole at the place `start`; None where none is."""
        with self._lock:
            request = self._requests.get(start)
            if request is None or request.came is None:
                return None
            answer = request.answer or self._send(request)
        request.came.wait()
        return answer.end(count)

    @contextmanager
    def ahead(self, starts: Sequence[int], counts: Sequence[int], again: Sequence[bool] = ()) -> Iterator[None]:
        """Fetch ranges ahead, in the order given, while the block runs; those that the next list asks for `again` stay, as far as there is room."""
        with self.wholes_ahead({}, {}) as add:
            add(starts, counts, again, range(len(starts)), WASTE)
            yield

    @contextmanager
    def wholes_ahead(self, whole: Mapping[int, Unpack], order: Mapping[int, tuple[int, int]]) -> Iterator[Add]:
        """Fetch objects whole ahead while the block runs, which may add ranges to the list, to be fetched as `ahead` does.

        `order` has for the place of each object a number, which says what is read before what, and the most bytes that it may have.
        """
        plan = _Plan(AHEAD_BYTES)
        if whole:
            plan.most, plan.allowed, plan.grows = WHOLE_BYTES, WHOLE_AT_ONCE * max(most for _, most in order.values()), False

        def add(starts: Sequence[int], counts: Sequence[int], again: Sequence[bool], order: Sequence[int], waste: float) -> None:
            places, first, times = np.unique(np.asarray(starts, np.int64), return_index=True, return_counts=True)
            # Pieces that have their bytes in common are asked for once and kept.
            plan.again |= {*places[times > 1].tolist(), *(start for start, wanted in zip(starts, again, strict=False) if wanted)}
            first = np.sort(first)
            number = np.asarray(order, np.int64)[first]
            with self._lock:
                self._plan(plan, np.asarray(starts, np.int64)[first], np.asarray(counts, np.int64)[first], number, whole, waste)
                self._fill(plan)

        with self._lock:
            self._plans.append(plan)
        try:
            add(list(order), [most for _, most in order.values()], (), [number for number, _ in order.values()], WASTE)
            yield add
        finally:
            with self._lock:
                self._plans.remove(plan)
                self._forget(plan)

    def _plan(self, plan: _Plan, starts: Numbers, counts: Numbers, order: Numbers, whole: Mapping[int, Unpack], waste: float) -> None:
        """Make requests of the ranges that nobody has asked for."""
        for start in starts.tolist():
            if (request := self._requests.get(start)) is None:
                continue
            if start in whole:
                request.unpack.append((plan, whole[start]))
            if start not in request.wanted:  # it came, and its pieces are known
                assert request.answer is not None, "it is held"
                self._want(request, plan, whole[start](request.answer.whole()))
                continue
            request.wanted[start] += 1
            plan.unread.add(start)
        new = np.array([start not in self._requests and start not in self._kept for start in starts.tolist()], bool)
        new &= counts > 0
        starts, counts, order = starts[new], counts[new], order[new]
        places, sizes, numbers, first = starts.tolist(), counts.tolist(), order.tolist(), 0
        plan.unread |= set(places)
        near = np.flatnonzero([start not in whole for start in places])
        groups = [near[group].tolist() for group in requests_of(starts[near], counts[near], waste, first=plan.grows)]
        groups += [[k] for k, start in enumerate(places) if start in whole]
        for group in groups:
            lengths = {places[k]: sizes[k] for k in group}
            begin, end, number = min(lengths), max(places[k] + sizes[k] for k in group), min(group)
            first += (end - begin) * (number < READ_FIRST)
            unpack = [(plan, whole[begin])] if begin in whole else []
            request = _Request(plan, numbers[number], begin, end, lengths, dict.fromkeys(lengths, 1), unpack)
            self._requests |= dict.fromkeys(lengths, request)
            plan.waiting.append(request)
        plan.waiting = deque(sorted(plan.waiting, key=attrgetter("number")))
        if plan.grows:
            plan.allowed = max(plan.allowed, first)

    def _fill(self, plan: _Plan) -> None:
        """Send what fits."""
        while plan.waiting:
            size = plan.waiting[0].size
            if (plan.held and plan.held + size > plan.most) or (plan.under_way and plan.under_way + size > plan.allowed):
                return
            request = plan.waiting.popleft()
            if request.wanted:
                if request.answer is None:
                    self._send(request)
                plan.sent.add(request)
                plan.held += request.size

    def _send(self, request: _Request) -> Answer:
        request.answer = answer = Answer()
        request.plan.under_way += request.size
        request_pool().submit(self._receive, request, answer)
        return answer

    def _receive(self, request: _Request, answer: Answer) -> None:
        answer.receive(self._stream(request.start, request.end))
        plan = request.plan
        with self._lock:
            plan.under_way -= request.size
            plan.allowed += request.size * plan.grows
            size = min(request.size, answer.length)
            plan.held -= (request.size - size) * (request in plan.sent)
            request.size = size
            if request.unpack:
                self._unpack(request, answer)
            if plan in self._plans:
                self._fill(plan)
        if request.came is not None:
            request.came.set()

    def _unpack(self, request: _Request, answer: Answer) -> None:
        """Of an object that came whole, want the pieces that it was asked for, instead of itself."""
        place = request.start
        if self._requests.get(place) is not request:  # nobody waits for it any more
            return
        request.end = request.base + answer.length
        del request.wanted[place]
        for plan, pieces in request.unpack:
            if plan in self._plans:
                plan.unread.discard(place)
                self._want(request, plan, pieces(answer.whole()))
        if not request.wanted:
            self._end(request)

    def _want(self, request: _Request, plan: _Plan, pieces: Sequence[tuple[int, int, bool]]) -> None:
        """Have a list want pieces of an object that came."""
        for start, length, again in pieces:
            holder = self._requests.setdefault(start, request)
            holder.lengths[start] = length
            holder.wanted[start] = holder.wanted.get(start, 0) + 1
            plan.unread.add(start)
            if again:
                plan.again.add(start)

    def _took(self, request: _Request, start: int, data: bytes) -> None:
        """A piece was read: keep it, or let go of it, and of its request behind the last one."""
        if request.wanted.get(start, 0) > 1 or any(start in plan.again for plan in self._plans):
            self._keep(start, request.lengths.get(start, len(data)), data)
        reader = next((plan for plan in self._plans if start in plan.unread), None)  # the list that began first
        if reader is not None:
            reader.unread.remove(start)
            self._want_less(request, start)

    def _want_less(self, request: _Request, start: int) -> None:
        """One reader less for a piece."""
        left = request.wanted.get(start, 0) - 1
        if left > 0:
            request.wanted[start] = left
            return
        request.wanted.pop(start, None)
        if self._requests.get(start) is request:
            del self._requests[start]
        if not request.wanted:
            self._end(request)

    def _end(self, request: _Request) -> None:
        """Let go of a request's bytes, and send what they made room for."""
        request.answer = None
        plan = request.plan
        if request.unpack and self._requests.get(request.start) is request:
            del self._requests[request.start]
        if request in plan.sent:
            plan.sent.remove(request)
            plan.held -= request.size
            if plan in self._plans:
                self._fill(plan)

    def _keep(self, start: int, count: int, data: bytes) -> None:
        if start in self._kept:
            return
        self._kept[start] = count, data
        self._kept_bytes += len(data)
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1][1])

    def _forget(self, plan: _Plan) -> None:
        """Let go of what a list that has ended asked for; pieces that came and that another list waits for are kept."""
        for start in plan.unread:
            if (request := self._requests.get(start)) is not None:
                self._want_less(request, start)
        for request in (*plan.sent, *plan.waiting):
            answer = request.answer
            for start in (*request.wanted, *([request.start] if request.unpack else ())):
                at, count = start - request.base, request.lengths[start]
                known = not request.unpack or at >= 0
                if known and answer is not None and answer.has(at, count):
                    self._keep(start, count, answer.take(at, count))
                if self._requests.get(start) is request:
                    del self._requests[start]
            request.answer = None
