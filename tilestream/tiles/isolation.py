"""Reading in a child process, which may hang or die: the tile that does it is given up, and the others are read.

Pixels pass through a pipe, which costs more than decoding a tile in place; that is why `compute.isolate` is off by default.
"""

from __future__ import annotations

import copy
import importlib
import os
import select
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError, OutageError, ReadError, TilestreamError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import RGB, ImageAddress, PixelKind, Pixels, SegmentGrid, Source, SourceOptions
from tilestream.store.layout import TIMEOUT
from tilestream.tiles.decoding.processes import CHILD_BYTES, start_child
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.tile_reader import Failure, TileBatch, TileReader

PATIENCE = 60.0
"""Seconds that a child may take for one batch, or for one block of a thumbnail."""

START = 120.0
"""Seconds that a child may take to start and open its source."""

OPENER = "tilestream.sources:open_source"
"""`module:function` that opens a source."""


GROUP_BATCHES = 4
"""Batches that a child is asked for at once."""


def isolated_groups(batch: int) -> int:
    """Tiles that a child is asked for at once."""
    return GROUP_BATCHES * batch


def isolated_bytes(backend: str) -> int:
    """What a child holds beside pixels: an interpreter, numpy, the image's index; with other libraries than those of TIFF it is more."""
    return CHILD_BYTES * 3 // 2 if backend == "tiff" else 2 * CHILD_BYTES


@dataclass(frozen=True)
class Job:
    """What a child is told when it starts."""

    image: ImageAddress
    spec: ReadSpec
    threads: int
    batch: int
    opener: str = OPENER


class _Child:
    """A process with a source open, started when it is asked first and again after it was killed.

    An interpreter of its own, not one of `multiprocessing`: a worker of a cluster may have no children of that kind, and the caller's script
    is not run again.
    """

    def __init__(self, serve: Callable[[Connection, Any], None], job: object, address: str) -> None:
        self._serve, self._job, self._address = serve.__name__, job, address
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self.greeting: Any = None
        """What the child said when it was ready."""

    def pipe(self) -> Connection:
        """The way to the child. Raises InputError where the source is refused, or opening it makes the process hang or die."""
        if self._pipe is not None:
            return self._pipe
        ours, theirs = Pipe()
        with theirs:
            code = f"from tilestream.tiles.isolation import run_child; run_child({theirs.fileno()}, {self._serve!r})"
            try:
                self._process = start_child([sys.executable, "-c", code], theirs.fileno())
            except BaseException:
                ours.close()
                raise
        self._pipe = ours
        try:
            self._pipe.send(self._job)
            self.greeting = self.receive(START)
        except (EOFError, OSError) as error:
            self.kill()
            trouble = f"takes more than {START:g} s" if isinstance(error, TimeoutError) else "makes the reading process die"
            raise InputError(f"{self._address}: opening it {trouble}. The file is damaged; export it again or leave it out.") from error
        if isinstance(self.greeting, TilestreamError):
            self.kill()
            raise self.greeting
        return self._pipe

    def receive(self, patience: float) -> Any:
        """What the child says next. Raises TimeoutError, EOFError or OSError."""
        assert self._pipe is not None, "the child was asked something"
        if not self._pipe.poll(patience):
            raise TimeoutError
        return self._pipe.recv()

    def receive_pixels(self, shape: tuple[int, ...], pixel: PixelKind) -> Pixels:
        """An array that the child has begun to send."""
        assert self._pipe is not None, "the child was asked something"
        pixels = np.empty(shape, pixel.dtype)
        self._pipe.recv_bytes_into(pixels.reshape(-1).view(np.uint8).data)
        return pixels

    def kill(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


class IsolatedReader:
    """Reads tiles as `TileReader` does, in a child process that is replaced when it hangs or dies.

    The tiles of a group on which that happens are then read one by one; one that does it again is failed.

    Parameters
    ----------
    job : Job
    patience : float, optional
        Seconds that a batch may take; `PATIENCE` where it is not given.
    """

    def __init__(self, job: Job, patience: float | None = None) -> None:
        self.job = job
        self.patience = PATIENCE if patience is None else patience
        self._child = _Child(_serve_tiles, job, job.image.address)

    def read(self, l0_y: NDArray[np.int64], l0_x: NDArray[np.int64]) -> Iterator[TileBatch]:
        """Batches of tiles, each tile once: read, or failed with the reason.

        Raises
        ------
        InputError
            The child cannot open the source.
        OutageError
            The source's storage does not answer.
        """
        size = isolated_groups(self.job.batch)
        waiting = deque((np.arange(start, min(start + size, len(l0_y))), False) for start in range(0, len(l0_y), size))
        try:
            while waiting:
                group, again = waiting.popleft()
                left = set(group.tolist())
                trouble = ""
                try:
                    for batch in self._ask(group, l0_y, l0_x):
                        left -= set(batch.index.tolist())
                        yield batch
                except TimeoutError:  # an OSError, so it goes first
                    trouble = f"reading took more than {self.patience:g} s"
                except (EOFError, OSError):
                    trouble = "the reading process died"
                if not trouble:
                    continue
                self.close()
                if again:
                    yield self._give_up(group, trouble)
                else:
                    waiting.extendleft((np.array([tile]), True) for tile in sorted(left, reverse=True))
        finally:
            self.close()

    def close(self) -> None:
        """End the child."""
        self._child.kill()

    def _ask(self, group: NDArray[np.int64], l0_y: NDArray[np.int64], l0_x: NDArray[np.int64]) -> Iterator[TileBatch]:
        self._child.pipe().send((l0_y[group], l0_x[group]))
        while (head := self._child.receive(self.patience)) is not None:
            if isinstance(head, TilestreamError):
                raise head
            index, failed, shape = head
            pixels = self._child.receive_pixels(shape, self.job.spec.pixel)
            yield TileBatch(index=group[index], pixels=pixels, failed={int(group[k]): failure for k, failure in failed.items()})

    def _give_up(self, tile: NDArray[np.int64], trouble: str) -> TileBatch:
        side, pixel = self.job.spec.tile, self.job.spec.pixel
        failure = Failure(f"{trouble}, twice; the tile was given up (compute.isolate)", TIMEOUT)
        return TileBatch(index=tile, pixels=pixel.filled(side, side)[np.newaxis], failed={int(tile[0]): failure})


class IsolatedSource(Source):
    """An image that is opened and read in a child process, for what is done once for each slide: its facts and its thumbnail.

    A region on which the child hangs or dies cannot be read; the child is then replaced.

    Raises
    ------
    InputError
        The image is refused, or opening it makes the process hang or die.
    """

    def __init__(self, address: str, options: SourceOptions, opener: str = OPENER) -> None:
        self._child = _Child(_serve_regions, (address, options, opener), address)
        self._lock = threading.Lock()
        self.opened_with = options
        self._child.pipe()
        self.info, self.pixel, self._grids, self._held, self._ahead = self._child.greeting

    def pictured(self) -> IsolatedSource:
        if not self.pixel.bands:
            return self
        picture = copy.copy(self)
        picture.pixel, picture.info = RGB, replace(self.info, bands=())
        return picture

    def close(self) -> None:
        """End the child."""
        self._child.kill()

    def segment_grid(self, level: int) -> SegmentGrid | None:
        grid: SegmentGrid | None = self._grids[level]
        return grid

    def held_bytes(self, level: int, pixels: int) -> int:
        of_none, of_a_pixel = self._held[level]
        return int(of_none + of_a_pixel * pixels)

    def ahead_bytes(self, level: int) -> int:
        return int(self._ahead[level])

    def _read(self, level: int, region: Region) -> Pixels:
        with self._lock:
            try:
                self._child.pipe().send((level, region, self.pixel))
                problem = self._child.receive(PATIENCE)
                if problem is None:
                    return self._child.receive_pixels((region.height, region.width, self.pixel.channels), self.pixel)
            except (EOFError, OSError) as error:
                self._child.kill()
                trouble = f"took more than {PATIENCE:g} s" if isinstance(error, TimeoutError) else "made the reading process die"
                raise ReadError(f"{self.info.address}: level {level}: reading it {trouble}") from error
        raise problem


def open_image(address: str, options: SourceOptions, *, isolate: bool) -> Source:
    """The image, in this process or in a child."""
    return IsolatedSource(address, options) if isolate else open_source(address, options)


def run_child(number: int, serve: str) -> None:
    """The child: do what its first message says, by the name of a function here, over the socket of this number, until the parent goes away."""
    pipe = Connection(number)
    _follow_parent(number)
    globals()[serve](pipe, pipe.recv())


def _serve_tiles(pipe: Connection, job: Job) -> None:
    """Open the source, then read the tiles that are asked for."""
    source = _open_for(pipe, job.image.address, job.image.options, job.opener)
    if source is None:
        return
    pipe.send(None)
    with ThreadPoolExecutor(job.threads) as pool:
        while (asked := _next_question(pipe)) is not None:
            reader = TileReader(source, job.spec, pool=pool, threads=job.threads, batch=job.batch)
            try:
                for batch in reader.read(*asked):
                    pipe.send((batch.index, batch.failed, batch.pixels.shape))
                    pipe.send_bytes(np.ascontiguousarray(batch.pixels).data.cast("B"))
            except OutageError as error:
                pipe.send(error)
                return
            pipe.send(None)


def _serve_regions(pipe: Connection, job: tuple[str, SourceOptions, str]) -> None:
    """Open the source, then read the regions that are asked for."""
    source = _open_for(pipe, *job)
    if source is None:
        return
    levels = range(len(source.info.levels))
    held = [(fixed := source.held_bytes(level, 0), source.held_bytes(level, 1) - fixed) for level in levels]
    pipe.send(
        (source.info, source.pixel, [source.segment_grid(level) for level in levels], held, [source.ahead_bytes(level) for level in levels])
    )
    while (asked := _next_question(pipe)) is not None:
        try:
            level, region, pixel = asked
            pixels = (source if pixel == source.pixel else source.pictured()).read_region(level, region)
        except (ReadError, OutageError) as error:
            pipe.send(error)
            continue
        pipe.send(None)
        pipe.send_bytes(np.ascontiguousarray(pixels).data.cast("B"))


def _open_for(pipe: Connection, address: str, options: SourceOptions, opener: str) -> Source | None:
    """The source, or None after saying why there is none."""
    module, _, name = opener.partition(":")
    try:
        source: Source = getattr(importlib.import_module(module), name)(address, options)
    except (InputError, OutageError) as error:
        pipe.send(error)
        return None
    return source


def _next_question(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        return None


def _follow_parent(number: int) -> None:
    """End with the parent even where a decoder hangs: when the other end of the socket is closed."""
    hung_up = select.poll()
    hung_up.register(number, 0)

    def wait() -> None:
        hung_up.poll()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
