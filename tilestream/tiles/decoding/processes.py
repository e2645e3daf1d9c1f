"""Decoding in processes of their own, into memory that a device copies from.

A device eats tiles faster than one interpreter can hand out their pieces: sixteen threads that decode 256 px pieces of 0.2 ms each ask
for its lock 160,000 times a second, beside those that plan, launch and write. Here each process has a lock of its own; this one sends it
some pieces at a time, and pixels come back through shared memory. Linux only (memfd_create(2), SOCK_SEQPACKET in unix(7)).
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError, InterruptedRunError, OutageError, ReadError
from tilestream.sources.base import ImageAddress, Source
from tilestream.sources.open_images import OpenImages
from tilestream.tiles.decoding.signals import kept_from_children
from tilestream.tiles.decoding.turns import Turns

CHILD_BYTES = 64 * 1024**2
"""What a process holds beside the shared memory: an interpreter, numpy, and the indices of two slides."""

KNOWN_MEMORIES = 16
"""Shared memories that a process keeps mapped."""

OPEN_SOURCES = 2
"""Images that a process keeps open."""

MESSAGE_BYTES = 1 << 16
"""Longest message; a unit's places and outcomes take a few hundred bytes."""

REASON_CHARACTERS = 1000
"""Of each reason why a piece failed."""

YIELDS = "yields"
"""Of the command of a decoder that leaves its core to whoever wakes up."""

NEEDED = (
    "simplejpeg", "openslide", "PIL.ImageCms", "tilestream.sources.containers", "tilestream.sources.picture", "tilestream.sources.tiff.source",
    "tilestream.sources.tiff.chain",
)  # fmt: skip
"""What most images need to be opened."""

Decoded = int | ReadError | None
"""The number of a decoded piece; why there is none; None for background."""


def start_child(command: Sequence[str], number: int) -> subprocess.Popen[bytes]:
    """Start an interpreter that imports what this one does, has its file descriptor `number`, and leaves signals to this one.

    Raises
    ------
    InterruptedRunError
        The system has no room for another process.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        with kept_from_children():
            return subprocess.Popen(command, pass_fds=[number], stdin=subprocess.DEVNULL, env=environment)  # noqa: S603  # our own interpreter
    except OSError as error:
        raise InterruptedRunError(
            f"a process that decodes cannot be started on {os.uname().nodename}: {error.strerror}. What is finished is kept. Free memory, or raise the "
            "number of processes that may be (ulimit -u; pids.max of a container), then run the same command again."
        ) from error


class SharedPixels:
    """Memory of `size` bytes that processes share; given back when it is closed or forgotten."""

    _number = 0

    def __init__(self, size: int) -> None:
        SharedPixels._number += 1
        self.number = SharedPixels._number
        """Never used again in this process."""
        self.fd = os.memfd_create("tilestream-pieces", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self.bytes: NDArray[np.uint8] = np.frombuffer(mmap.mmap(self.fd, size), np.uint8)
        """(size,)."""

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # not made, or the interpreter is ending
            os.close(self.fd)


class DecodeProcesses:
    """Processes that decode pieces of images. A process that dies is replaced; a piece on which that happens twice has failed.

    Parameters
    ----------
    count : int
        Number of processes.
    command : sequence of str
        What runs in them, for tests; the number of a socket is added, and whether it yields.
    """

    def __init__(self, count: int, command: Sequence[str] = (sys.executable, "-m", "tilestream.tiles.decoding.processes")) -> None:
        self.count = count
        self._command = tuple(command)
        self._yields = True
        """Whether decoders leave their cores to whoever wakes up; not where others would leave them nothing."""
        self._free: queue.LifoQueue[_Child] = queue.LifoQueue()
        self._closed = threading.Event()
        self._free.put(self._start())
        self._starting = threading.Thread(target=self._start_others, name="start-decoders", daemon=True)
        self._starting.start()

    def _start_others(self) -> None:
        """Start all but the first: each takes a while, in which this process builds its encoder. Where the system has no room, there are fewer."""
        with contextlib.suppress(InterruptedRunError):
            for _ in range(self.count - 1):
                if self._closed.is_set():
                    return
                self._free.put(self._start())

    def _start(self) -> _Child:
        return _Child(self._command, yields=self._yields)

    def decode(
        self, image: ImageAddress, level: int, places: NDArray[np.int64], first: int, into: SharedPixels, shape: tuple[int, ...]
    ) -> list[Decoded]:
        """Decode the pieces at (k, 2) `places`, row and column, into numbers `first` on of `into`, seen as `shape` (n, height, width, 3).

        Blocks until a process is free and done. Outcomes come in the order of places. Raises OutageError where the image's storage does not answer.
        """
        request = (image, level, places.tolist(), first, shape)
        found = self._ask(request, into)
        if found is not None:
            return found
        return [outcome for number, place in enumerate(places, first) for outcome in self._alone(image, level, place, number, into, shape)]

    def close(self) -> None:
        """End the processes that are not at work."""
        self._closed.set()
        self._starting.join()
        with contextlib.suppress(queue.Empty):
            while True:
                self._free.get_nowait().close()

    def _alone(
        self, image: ImageAddress, level: int, place: NDArray[np.int64], number: int, into: SharedPixels, shape: tuple[int, ...]
    ) -> list[Decoded]:
        """One piece of a unit whose process died."""
        found = self._ask((image, level, [place.tolist()], number, shape), into)
        row, col = place.tolist()
        return found or [ReadError(f"{image.address}: level {level}, file tile ({row}, {col}): the decoder ended its process, twice")]

    def _ask(self, request: tuple[Any, ...], into: SharedPixels) -> list[Decoded] | None:
        """Outcomes of a request; None where its process died, which is then replaced."""
        child = self._free.get()
        try:
            answer, starved = child.ask(request, into)
        except OSError:
            answer, starved = None, False
        self._yields = self._yields and not starved
        try:
            if answer is None:
                child.close()
                child = self._start()
            elif child.yields and not self._yields:
                with contextlib.suppress(InterruptedRunError):  # slow is better than none
                    other = self._start()
                    child.close()
                    child = other
        finally:
            self._free.put(child)  # be it dead: whoever is given that tries as well
        for found in answer or ():
            if isinstance(found, OutageError):
                raise found
        return answer


class _Child:
    """One process, and this one's end of the socket to it."""

    def __init__(self, command: tuple[str, ...], *, yields: bool) -> None:
        self.yields = yields
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._known: dict[int, None] = {}
        with theirs:
            number = theirs.fileno()
            try:
                self._process = start_child([*command, str(number), YIELDS if yields else ""], number)
            except BaseException:
                self._socket.close()
                raise

    def ask(self, request: tuple[Any, ...], into: SharedPixels) -> tuple[list[Any] | None, bool]:
        """Send a request and wait for its outcomes, and whether the process hardly had a turn; None where it ended. Raises OSError likewise."""
        message = pickle.dumps((into.number, *request))
        if into.number in self._known:
            self._socket.send(message)
        else:
            _remember(self._known, into.number, None, KNOWN_MEMORIES)
            socket.send_fds(self._socket, [message], [into.fd])
        answer = self._socket.recv(MESSAGE_BYTES)
        return pickle.loads(answer) if answer else (None, False)  # noqa: S301  # written by our own process

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


def _remember(known: dict[Any, Any], key: Any, value: Any, most: int) -> None:
    """Add to a dict that forgets what was added first."""
    while len(known) >= most:
        known.pop(next(iter(known)))
    known[key] = value


def serve(number: int, *, yields: bool = False) -> None:
    """What a process does: decode what is asked for through socket `number` until the other end closes; with `yields`, when nobody else wants the core."""
    asked = socket.socket(fileno=number)
    turns = Turns(yields=yields)
    # zarr imports cupy where it is installed, 180 MB a process; pieces are decoded on the host.
    sys.modules.setdefault("cupy", None)  # type: ignore[arg-type]
    for name in NEEDED:  # while nobody waits yet
        with contextlib.suppress(ImportError, OSError):  # whoever needs it says so
            importlib.import_module(name)
    memories: dict[int, NDArray[np.uint8]] = {}
    images = OpenImages(OPEN_SOURCES)
    while True:
        message, fds, _, _ = socket.recv_fds(asked, MESSAGE_BYTES, 1)
        if not message:
            return
        memory, image, level, places, first, shape = pickle.loads(message)  # noqa: S301  # written by our own process
        for fd in fds:
            _remember(memories, memory, np.frombuffer(mmap.mmap(fd, 0), np.uint8), KNOWN_MEMORIES)
            os.close(fd)
        pixels = memories[memory][: np.prod(shape)].reshape(shape)
        found: list[Decoded | OutageError]
        try:
            source = images.get(image)
            found = [_decode(source, level, row, col, piece, pixels[piece]) for piece, (row, col) in enumerate(places, first)]
        except OutageError as error:
            images.forget(image)
            found = [OutageError(str(error)[:REASON_CHARACTERS])]
        except InputError as error:
            found = [ReadError(str(error)[:REASON_CHARACTERS])] * len(places)
        asked.send(pickle.dumps((found, turns.starved())))


def _decode(source: Source, level: int, row: int, col: int, number: int, out: NDArray[np.uint8]) -> Decoded:
    """`number`, once the piece is in `out`; the reason where it failed; None where the file holds no bytes for it."""
    try:
        pixels = source.read_segment(level, row, col, out)
    except ReadError as error:
        return ReadError(str(error)[:REASON_CHARACTERS])
    if pixels is None:
        return None
    if pixels is not out:
        out[: pixels.shape[0], : pixels.shape[1]] = pixels
    return number


if __name__ == "__main__":
    serve(int(sys.argv[1]), yields=sys.argv[2] == YIELDS)
