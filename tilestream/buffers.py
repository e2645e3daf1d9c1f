"""Buffers for pixels that are used again: one for each thread and shape, or taken and given back. And the bytes that pixels are made of."""

from __future__ import annotations

import os
import threading

import numpy as np
from numpy.typing import NDArray


def empty_pixels(*shape: int) -> NDArray[np.uint8]:
    """An uninitialised uint8 array that starts 8 bytes past a 32-byte boundary: there libjpeg-turbo's AVX2 path writes measurably faster."""
    count = int(np.prod(shape))
    raw = np.empty(count + 32, np.uint8)
    offset = (8 - raw.ctypes.data) % 32
    return raw[offset : offset + count].reshape(shape)


def read_at(file: int, count: int, start: int) -> bytes:
    """`count` bytes of an open file from `start` on; fewer only where it ends.

    One pread(2) may give less than is there: what lies before a page that a failing disk does not read, whose error only the next call
    tells, or what a share sends at once.
    """
    data = os.pread(file, count, start)
    while data and len(data) < count:
        more = os.pread(file, count - len(data), start + len(data))
        if not more:
            break
        data += more
    return data


class ThreadBuffers(threading.local):
    """One reusable uint8 buffer for each thread and shape; at most four of them, the shapes of a level and its edges."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, ...], NDArray[np.uint8]] = {}

    def get(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The calling thread's buffer of `shape`; contents are whatever was left there."""
        if shape not in self._buffers:
            if len(self._buffers) >= 4:
                self._buffers.clear()
            self._buffers[shape] = empty_pixels(*shape)
        return self._buffers[shape]


class PixelBuffers:
    """Buffers that are used again: an allocator that keeps what threads free would hold several times the pixels in use."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, ...], list[NDArray[np.uint8]]] = {}
        self._whole: dict[int, NDArray[np.uint8]] = {}

    def take(self, *shape: int) -> NDArray[np.uint8]:
        """A buffer of `shape`; contents are whatever was left there."""
        try:
            return self._free[shape].pop()  # one bytecode of a list: safe between threads
        except (KeyError, IndexError):
            pixels = empty_pixels(*shape)
            self._whole[id(pixels.base)] = pixels
            return pixels

    def give(self, pixels: NDArray[np.uint8]) -> None:
        """Take a buffer (or the leading part of one) back; the caller must not touch it again. Others' buffers are left to them."""
        whole = self._whole.get(id(pixels.base))
        if whole is None:
            return
        self._free.setdefault(whole.shape, []).append(whole)


def gib(count: int) -> str:
    """Bytes in GiB, MiB or KiB, for people."""
    if count >= 1024**3:
        return f"{count / 1024**3:.2f} GiB"
    return f"{count / 1024**2:.0f} MiB" if count >= 1024**2 else f"{-(-count // 1024)} KiB"


def counted(count: int, thing: str) -> str:
    """A number of things, for people: `1 tile`, `2 tiles`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"
