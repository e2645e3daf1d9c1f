"""The images of the slides that are looked at: few open at once, or the stored thumbnail where an image is not there."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tilestream.config.bands.given import bands_from_config
from tilestream.config.bands.statistics import statistics_from_config
from tilestream.errors import TilestreamError
from tilestream.interop.recorded_image import open_recorded
from tilestream.sources.base import Source, SourceOptions
from tilestream.sources.made.slide import drawn_sample
from tilestream.store.slide import Slide
from tilestream.store.slide_store import THUMBNAIL

SOURCES_OPEN = 4
"""Images that are open at once, when nobody reads from more."""

CHOICES = ("z", "t", "channels", "window", "bands", "normalise", "scene", "icc")
"""Keys of the recipe's `source` section that decide which pixels an image has."""


@dataclass(frozen=True)
class Look:
    """How an image is looked at, where that is not how its tiles were read."""

    channels: tuple[int, ...] | None = None
    """One (grey) or three (red, green, blue) of its channels; None for those that the tiles were made of."""
    window: tuple[float, float] | None = None
    """Sample values that are black and white; None for those of the tiles."""


AS_READ = Look()


@dataclass
class _Held:
    source: Source | None
    """None where the image cannot be opened."""
    why: str
    """Why it cannot; "" where it can."""
    users: int = 0
    dropped: bool = False
    """Whether it is closed when its last user goes."""


class Images:
    """The images of slides by number, opened when they are first read from.

    Memory bound: `SOURCES_OPEN` images, more only while more are read from at the same moment.
    """

    def __init__(self, roots: Sequence[str] = ()) -> None:
        self.roots = roots
        """Below which images are opened, whoever made the store."""
        self._held: OrderedDict[tuple[int, Look], _Held] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def using(self, number: int, slide: Slide, look: Look = AS_READ) -> Iterator[tuple[Source | None, str]]:
        """The image of a slide, which stays open inside the block, or None and why there is none."""
        with self._lock:
            held = self._held.get((number, look))
            if held is None:
                held = self._held[number, look] = _Held(*_open(slide, self.roots, look))
            self._held.move_to_end((number, look))
            held.users += 1
            idle = [key for key, other in self._held.items() if not other.users]
            for key in idle[: max(0, len(self._held) - SOURCES_OPEN)]:
                _close(self._held.pop(key))
        try:
            yield held.source, held.why
        finally:
            with self._lock:
                held.users -= 1
                if held.dropped and not held.users:
                    _close(held)

    def distrust(self, number: int, look: Look = AS_READ) -> None:
        """Open the image anew the next time: some readers answer with their first error ever after. Called by one who uses it."""
        with self._lock:
            held = self._held.pop((number, look), None)
            if held is not None:
                held.dropped = True

    def close(self) -> None:
        """Close all images; nobody may be reading."""
        for held in self._held.values():
            _close(held)
        self._held.clear()


def _close(held: _Held) -> None:
    if held.source is not None:
        held.source.close()


def _open(slide: Slide, roots: Sequence[str], look: Look) -> tuple[Source | None, str]:
    """The image with the choices that the recipe holds, or why it cannot be shown."""
    address = slide.source["address"]
    if address.startswith("sample://"):  # opening it would draw the slide anew
        try:
            if drawn_sample(address) is None:
                return None, f"{address} is not drawn any more."
        except TilestreamError as error:
            return None, str(error)
    try:
        source = open_recorded(slide, source_options(slide, look), roots)
    except (TilestreamError, OSError) as error:
        return None, str(error)
    if source.info.size != slide.size:
        found = source.info.size
        source.close()
        return (
            None,
            f"{address} is {found.height} x {found.width} px, but the store was made of {slide.size.height} x {slide.size.width} px.",
        )
    return source.pictured(), ""


def source_options(slide: Slide, look: Look = AS_READ) -> SourceOptions:
    """The choices that a slide's image was read with, but for those of the look."""
    chosen = slide.recipe.get("source") or {}
    kept: dict[str, Any] = {
        key: tuple(chosen[key]) if isinstance(chosen[key], list) else chosen[key] for key in CHOICES if chosen.get(key) is not None
    }
    if "window" in kept and isinstance(kept["window"][0], list):
        kept["window"] = tuple(map(tuple, kept["window"]))
    if "bands" in kept:
        kept["bands"] = bands_from_config(kept["bands"])
    if "normalise" in kept:
        kept["normalise"] = None if look.channels is not None else statistics_from_config(kept["normalise"])
    kept |= {key: chosen for key, chosen in (("channels", look.channels), ("window", look.window)) if chosen is not None}
    backend = slide.source.get("backend")
    local = "://" not in slide.source["address"]
    return SourceOptions(
        backend=backend if local and backend in ("tiff", "openslide", "zarr") else "auto",
        mpp=slide.mpp,
        **kept,
    )


def stored_thumbnail(slide: Slide) -> Image.Image | None:
    """The thumbnail in the store, RGB, stretched over the whole image; None where there is none."""
    raw = slide.folder.get(THUMBNAIL)
    if raw is None:
        return None
    try:
        with Image.open(io.BytesIO(raw)) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError):
        return None


def blank(height: int, width: int) -> Image.Image:
    """A picture of white."""
    return Image.fromarray(np.full((height, width, 3), 255, np.uint8))
