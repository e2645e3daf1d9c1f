"""Where a run spends what it spends on truth: claims, fences, checksums, ledger and fsync, each timed where it is called, while the run works.

Wall clocks of a busy machine are off by tenths; the processor's time of a thread, and counts of calls, are not.
"""

import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, Self
from unittest import mock

from tilestream.stages.worker import Worker
from tilestream.store import folder, ledger, records, slide_store
from tilestream.store.folder import Folder
from tilestream.store.ledger import Ledger
from tilestream.store.lock import Claims
from tilestream.store.slide_store import SlideStore

CALLS: dict[str, list[tuple[Any, str]]] = {
    "claims": [(Claims, "take"), (Claims, "release"), (Claims, "_sign")],
    "fence": [(Ledger, "_look"), (Ledger, "raise_fence"), (Ledger, "committing")],
    "checks": [(Folder, "sum"), (slide_store, "sums_of"), (ledger, "pack"), (ledger, "unpack"), (records, "checksum")],
    "ledger": [(Ledger, "record")],
    "fsync": [(Folder, "flush"), (Folder, "flush_all"), (folder, "_sync")],
}
"""What belongs to each part; what a part calls of another one counts there."""

ON_FILES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir"}
"""Events of the interpreter that stand for a system call on files; fsync is none of them, and counted where it is called."""


@dataclass
class Spent:
    """What went into one part."""

    processor: float = 0.0
    """Seconds of the threads that called it."""
    wall: float = 0.0
    """Seconds, waiting included, of who called; not those of threads that help, which are counted where they are waited for."""
    calls: int = 0
    file_calls: int = 0
    """System calls on files."""


@dataclass
class Parts:
    """While it is entered, the parts of every run in this process are counted.

    `processor` and `wall` are those of the process from the first tile that is asked for to the last shard that is committed.
    """

    spent: dict[str, Spent] = field(default_factory=lambda: defaultdict(Spent))
    shards: int = 0
    _first: tuple[float, float] | None = None
    _last: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        self._here, self._lock, self._stack = threading.local(), threading.Lock(), ExitStack()

    def __enter__(self) -> Self:
        for part, calls in CALLS.items():
            for owner, name in calls:
                self._put(owner, name, self._timed(part, getattr(owner, name)))
        fsync, write, embed = os.fsync, SlideStore.write_shard, Worker.embed_tiles

        def counted(descriptor: int) -> None:
            self.hear("fsync")
            fsync(descriptor)

        def written(store: SlideStore, *given: Any, **named: Any) -> None:
            write(store, *given, **named)
            with self._lock:
                self.shards += 1
                self._last = (time.process_time(), time.perf_counter())

        def asked(worker: Worker, *given: Any, **named: Any) -> Any:
            self._first = self._first or (time.process_time(), time.perf_counter())
            return embed(worker, *given, **named)

        self._put(os, "fsync", counted)
        self._put(SlideStore, "write_shard", written)
        self._put(Worker, "embed_tiles", asked)
        _watch(self)
        return self

    def __exit__(self, *_: object) -> None:
        _watch(None)
        self._stack.close()

    @property
    def processor(self) -> float:
        """Seconds of all cores while shards were in work."""
        return self._last[0] - self._first[0] if self._first else 0.0

    @property
    def wall(self) -> float:
        """Seconds while shards were in work."""
        return self._last[1] - self._first[1] if self._first else 0.0

    def told(self) -> dict[str, dict[str, float]]:
        """Of each part what it took for a shard, and its share."""
        shards = max(1, self.shards)
        return {
            part: {
                "processor_ms": 1000 * spent.processor / shards, "wall_ms": 1000 * spent.wall / shards,
                "calls": spent.calls / shards, "file_calls": spent.file_calls / shards,
                "processor_share": spent.processor / self.processor, "wall_share": spent.wall / self.wall,
            }
            for part, spent in ((part, self.spent[part]) for part in CALLS)
        }  # fmt: skip

    def _put(self, owner: Any, name: str, stand_in: Any) -> None:
        self._stack.enter_context(mock.patch.object(owner, name, stand_in))

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            self.begin(part)
            try:
                found = call(*given, **named)
            finally:
                self.end()
            return _TimedBlock(self, part, found) if isinstance(found, AbstractContextManager) else found

        return timed

    def begin(self, part: str) -> None:
        """The clock of this thread goes to `part` from here."""
        stack: list[str] = self._here.__dict__.setdefault("parts", [])
        self._here.helps = threading.current_thread().name.startswith("ThreadPoolExecutor")  # a pool without a name is one of a moment
        self._book(stack)
        stack.append(part)
        with self._lock:
            self.spent[part].calls += 1

    def end(self) -> None:
        """The clock goes back to the part that called, or to none."""
        stack: list[str] = self._here.parts
        self._book(stack)
        stack.pop()

    def _book(self, stack: list[str]) -> None:
        now = (time.thread_time(), time.perf_counter())
        if stack:
            since = self._here.since
            with self._lock:
                self.spent[stack[-1]].processor += now[0] - since[0]
                self.spent[stack[-1]].wall += 0.0 if self._here.helps else now[1] - since[1]
        self._here.since = now

    def hear(self, name: str) -> None:
        """A system call counts for the part in which it is made."""
        stack = getattr(self._here, "parts", None)
        if stack and (name in ON_FILES or name == "fsync"):
            self.spent[stack[-1]].file_calls += 1


@dataclass
class _TimedBlock:
    """A block whose entry and exit count for a part; what is within does not."""

    parts: Parts
    part: str
    block: AbstractContextManager[Any]

    def __enter__(self) -> Any:
        return self._spend(self.block.__enter__)

    def __exit__(self, *error: object) -> Any:
        return self._spend(lambda: self.block.__exit__(*error))

    def _spend(self, call: Callable[[], Any]) -> Any:
        self.parts.begin(self.part)
        try:
            return call()
        finally:
            self.parts.end()


_watching: Parts | None = None
_hooked = False


def _watch(parts: Parts | None) -> None:
    """Hear of system calls; the interpreter lets go of no hook, so there is one, which hears of nobody at times."""
    global _watching, _hooked  # noqa: PLW0603
    _watching = parts
    if not _hooked:
        _hooked = True
        sys.addaudithook(lambda name, _: _watching.hear(name) if _watching is not None else None)
