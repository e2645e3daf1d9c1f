"""The outputs that are looked at, and their slides by number."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from tilestream.errors import ConfigError, TilestreamError
from tilestream.store.slide_store import SlideStore
from tilestream.store.verify import find_stores
from tilestream.viewer.deepzoom import DeepZoom
from tilestream.viewer.pixels import Images
from tilestream.viewer.slide import BlockCache, ViewedSlide


@dataclass(frozen=True)
class Entry:
    """One slide of an output."""

    number: int
    """Its place among the slides of all outputs: what addresses of tiles hold, so that they can name nothing else."""
    id: str
    store: SlideStore


@dataclass(frozen=True)
class Output:
    """One output that was named."""

    address: str
    entries: tuple[Entry, ...]
    first: Entry
    """The slide that is shown first."""


class Catalogue:
    """Slides of some outputs, opened when they are first looked at. Safe to share between threads.

    Raises
    ------
    InputError
        There is no output.
    ConfigError
        No output has the slide that was asked for.
    """

    def __init__(self, addresses: list[str], slide: str | None = None) -> None:
        self.outputs: list[Output] = []
        self._entries: list[Entry] = []
        self._open: dict[int, ViewedSlide] = {}
        self._lock = threading.Lock()
        self.cache = BlockCache()
        self.zoom = DeepZoom(Images())
        for address in addresses:
            self.outputs.append(self._find(address, slide))
        if slide is not None and not any(entry.id == slide for output in self.outputs for entry in output.entries):
            known = ", ".join(entry.id for entry in self._entries[:8])
            raise ConfigError(f"--slide: {slide} is in none of {', '.join(addresses)}. There are {known}.")

    def _find(self, address: str, slide: str | None) -> Output:
        entries = []
        for name, store in find_stores(address).items():
            entries.append(Entry(len(self._entries), name.removesuffix(".zarr"), store))
            self._entries.append(entries[-1])
        wanted = [entry for entry in entries if entry.id == slide]
        first = wanted[0] if wanted else next((entry for entry in entries if self.problem(entry.number) is None), entries[0])
        return Output(address, tuple(entries), first)

    def __len__(self) -> int:
        return len(self._entries)

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
                found = self._open[number] = ViewedSlide(entry.id, entry.store, self.cache)
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
                self.cache.forget(found.store.folder.address)
                del self._open[number]
