"""The outputs that are looked at, and their slides by number."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from tilestream.errors import ConfigError, TilestreamError
from tilestream.store.cohort import find_stores
from tilestream.store.folder import Folder
from tilestream.viewer.deepzoom import DeepZoom
from tilestream.viewer.pixels import Images
from tilestream.viewer.slide import BlockCache, ViewedSlide

SLIDES_BYTES = 512 * 1024**2
"""Columns and components of slides that stay open when nobody looks at them, bytes."""


@dataclass(frozen=True)
class Entry:
    """One slide of an output."""

    number: int
    """Its place among the slides of all outputs: what addresses of tiles hold, so that they can name nothing else."""
    id: str
    store: Folder


@dataclass(frozen=True)
class Output:
    """One output that was named."""

    address: str
    entries: tuple[Entry, ...]
    first: Entry
    """The slide that is shown first."""


class Catalogue:
    """Slides of some outputs, opened when they are first looked at. Safe to share between threads.

    Memory bound: `SLIDES_BYTES` of slides, or the one used last; and those of the cache and the zoom.

    Raises
    ------
    InputError
        There is no output.
    ConfigError
        No output has the slide that was asked for.
    """

    def __init__(self, addresses: list[str], slide: str | None = None, roots: Sequence[str] = ()) -> None:
        self.outputs: list[Output] = []
        self._entries: list[Entry] = []
        self._open: OrderedDict[int, ViewedSlide] = OrderedDict()
        self._lock = threading.Lock()
        self.cache = BlockCache()
        self.zoom = DeepZoom(Images(roots))
        for address in addresses:
            self.outputs.append(self._find(address, slide))
        if slide is not None and not any(entry.id == slide for output in self.outputs for entry in output.entries):
            known = ", ".join(entry.id for entry in self._entries[:8])
            raise ConfigError(f"--slide: {slide} is in none of {', '.join(addresses)}. There are {known}.")

    def _find(self, address: str, slide: str | None) -> Output:
        entries = []
        for name, store in find_stores(address).items():
            entries.append(Entry(len(self._entries), name, store))
            self._entries.append(entries[-1])
        wanted = [entry for entry in entries if entry.id == slide]
        first = wanted[0] if wanted else next((entry for entry in entries if self.problem(entry.number) is None), entries[0])
        return Output(address, tuple(entries), first)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, number: int) -> Entry:
        """What is known of a slide without opening it."""
        return self._entries[number]

    def slide(self, number: int) -> ViewedSlide:
        """A slide by its number.

        Raises
        ------
        TilestreamError
            Its store cannot be shown, with the reason.
        """
        with self._lock:
            found = self._open.get(number)
            if found is None:
                entry = self._entries[number]
                found = self._open[number] = ViewedSlide(entry.store, self.cache)
            self._open.move_to_end(number)
            while len(self._open) > 1 and sum(slide.nbytes for slide in self._open.values()) > SLIDES_BYTES:
                self._open.popitem(last=False)
            return found

    def problem(self, number: int) -> str | None:
        """Why a slide cannot be shown, or None."""
        try:
            self.slide(number)
        except (TilestreamError, OSError, KeyError, ValueError) as error:
            return str(error) or type(error).__name__
        return None

    def refresh(self, number: int) -> None:
        """Forget what is known of a slide that was still being written, so that it is looked at anew."""
        with self._lock:
            found = self._open.get(number)
            if found is not None and not found.finished:
                self.cache.forget(found.path)
                del self._open[number]
