"""What the stages of a slide are told and what they answer: addresses and numbers, never pixels or embeddings."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tilestream.config.schema import Context, Pool, Windows
from tilestream.errors import InterruptedRunError, OutageError
from tilestream.geometry import Level, TileGrid
from tilestream.sources.base import ImageAddress
from tilestream.stages.encoding.children import children_lately
from tilestream.stages.hardware import peak_memory
from tilestream.stages.heads.facts import HeadFacts
from tilestream.stages.worker_settings import Digests, EncoderFacts, WorkerSettings
from tilestream.store.blocks import read_rows
from tilestream.store.folder import Folder
from tilestream.store.layout import TILES, context_place, pool_places
from tilestream.store.slide_store import ROWS, SlideStore
from tilestream.tiles.read_spec import ReadSpec

T = TypeVar("T")

STOP = threading.Event()
"""Set in the process that was asked to stop: shards in work end at their next batch."""


@dataclass(frozen=True)
class LineSettings:
    """What is the same for all slides of a run."""

    worker: WorkerSettings
    facts: EncoderFacts
    context: Context | None
    pool: Pool
    windows: Windows
    save: tuple[str, ...]
    """What is kept: tiles, slide, windows, tokens."""
    fail_tiles: bool
    """Whether one failed tile ends the slide."""
    heads: tuple[HeadFacts, ...] = ()
    """The heads of the run."""
    weights: Digests = ()
    """The files of weights of stages after the tiles, as they were when the run began."""

    @property
    def token_windows(self) -> Windows | None:
        """The window vectors that come of patch tokens, which pass by once; those of tile vectors are made of what is stored."""
        return self.windows if "windows" in self.save and self.facts.tokens > 1 else None


@dataclass(frozen=True)
class SlideTask:
    """One slide, as every stage needs to know it. Small: which tiles it has is in its store."""

    slide: str
    image: ImageAddress
    """With the fingerprint that it had when the slide was planned; another one now means that the file changed under the run."""
    store: str = field(repr=False)
    """Address of the slide's store."""
    token: str | None
    """What its fence must hold for anything to be committed."""
    spec: ReadSpec
    grid: TileGrid
    mpp: float | None
    """µm per level-0 pixel; None where the image has no scale."""
    schedule: str
    """How its context is passed: dense, row_bands or halo_shards; empty where there is none."""
    line: LineSettings
    head: str = ""
    """The head that the stage in work is of."""
    compiled: bool = False
    """Whether its tiles go through the compiled encoder, where they go through a CUDA device: settled when its store was made, to its end."""
    levels: tuple[Level, ...] = field(default=(), repr=False)
    """Of the image, for heads that read it at a resolution of their own."""

    @property
    def head_facts(self) -> HeadFacts:
        """What is known of that head."""
        return next(facts for facts in self.line.heads if facts.name == self.head)

    @property
    def read_by_head(self) -> str:
        """The array that it reads, where it reads no pixels."""
        read, line = self.head_facts.head.input, self.line
        if read == "vector":
            return pool_places(line.pool.stage)[0]
        return ROWS if read != "context" or line.context is None else context_place(line.context.stage)

    def open_store(self) -> SlideStore:
        """The slide's store, as a stage writes it."""
        return SlideStore(Folder(self.store), self.token)

    def read_places(self, store: SlideStore, rows: slice = slice(None)) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) rows and (n,) columns of the slide's tiles, as its store has them."""
        row, col = (read_rows(store.folder, f"{TILES}/obs/{name}", rows).astype(np.int64, copy=False) for name in ("row", "col"))
        return row, col

    @property
    def stride_um(self) -> float | None:
        """Step between tiles in µm; None where the image has no scale."""
        return None if self.mpp is None else self.grid.stride * self.grid.scale * self.mpp

    @property
    def title(self) -> str:
        """The slide in one line, for its picture."""
        size, mpp = self.grid.l0_size, "no scale" if self.mpp is None else f"{self.mpp * self.grid.scale:.3g} µm/px"
        return f"{self.slide}: {size.height} x {size.width} px (h x w), tiles of {self.grid.tile} px at {mpp}, {self.line.facts.name}"


@dataclass(frozen=True)
class Report:
    """What a stage did for some shards of a slide."""

    slide: str
    shards: range
    seconds: dict[str, float]
    """Seconds by what they went into."""
    counts: dict[str, int] = field(default_factory=dict)
    """Tiles that were embedded, by status."""
    errors: dict[int, str] = field(default_factory=dict)
    """Why tiles failed, by row of the output; at most 20 a shard."""
    peak_bytes: int = field(default_factory=lambda: peak_memory() + children_lately())
    """High-water mark of the worker's own resident memory so far, and what its children held lately."""
    worker: str = field(default_factory=lambda: f"{os.uname().nodename}:{os.getpid()}")
    """Process that did it."""
    earlier: int = 0
    """Tiles of those counts that an earlier run embedded, and set aside when it ended."""

    @property
    def fresh(self) -> int:
        """Tiles that this run embedded."""
        return sum(self.counts.values()) - self.earlier


def add_counts(counts: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    """The sum of two counts of tiles by status."""
    return {status: counts.get(status, 0) + more.get(status, 0) for status in counts | more}


def check_stopped() -> None:
    """End the work in hand where the process was asked to. Raises InterruptedRunError."""
    if STOP.is_set():
        raise InterruptedRunError("stopped")


PAUSES = (5.0, 15.0, 40.0)
"""Seconds before the second try and each one after it."""


def outlast_outages(work: Callable[[], T], forget: Callable[[], None], wait: Callable[[float], object] | None = None) -> T:
    """What `work` gives, which is tried again where the storage of an image does not answer.

    Parameters
    ----------
    work : callable
        Does nothing twice that it did once.
    forget : callable
        Called before each further try: handles from before an outage never work again.
    wait : callable, optional
        Given the seconds of a pause; otherwise it ends early where the process is asked to stop.

    Raises
    ------
    OutageError
        The last try failed as well.
    """
    for pause in PAUSES:
        try:
            return work()
        except OutageError:
            forget()
            (wait or STOP.wait)(pause)
            check_stopped()
    try:
        return work()
    except OutageError as error:
        raise OutageError(
            f"{error}; {len(PAUSES) + 1} tries in {sum(PAUSES):g} s on {os.uname().nodename}. No tile was given up, and what is finished is kept. "
            "Mend the disk, the share or the connection, then run the same command again."
        ) from error
