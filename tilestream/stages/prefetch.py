"""Reading that runs ahead of computing: in a thread of its own, on a device in a stream of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from tilestream.stages.clock import Clock

T = TypeVar("T")

QUEUE_BATCHES = 2
"""Batches that wait between reading and computing."""


@contextmanager
def side_stream(device: torch.device) -> Iterator[torch.cuda.Stream | None]:
    """A CUDA stream of the calling thread's own, so that its work overlaps the encoder's, and need not wait for it; None on a CPU."""
    if device.type != "cuda":
        yield None
        return
    stream = torch.cuda.Stream(device, priority=-1)  # little work, which the encoder waits for
    with torch.cuda.stream(stream):
        yield stream


def read_ahead(batches: Iterator[T], clock: Clock) -> Generator[T, None, None]:
    """The same batches, read by a thread that runs up to `QUEUE_BATCHES` ahead. Closing the iterator stops the thread."""
    ready: queue.Queue[T | BaseException | None] = queue.Queue(QUEUE_BATCHES)
    stopped = threading.Event()

    def put(item: T | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            while not stopped.is_set():
                with clock.timed("read"):
                    batch = next(batches, None)
                if not put(batch) or batch is None:
                    return
        except Exception as error:  # noqa: BLE001  # carried to the thread that consumes, which raises it
            put(error)

    thread = threading.Thread(target=produce, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
