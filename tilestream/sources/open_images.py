"""The images that a process has open."""

from __future__ import annotations

import threading
import weakref

from tilestream.errors import InputError, outage
from tilestream.sources import open_source
from tilestream.sources.base import ImageAddress, Source

_ALL: weakref.WeakSet[OpenImages] = weakref.WeakSet()


def forget_all() -> None:
    """Let go of every image that this process has open."""
    for images in list(_ALL):
        images.clear()


class OpenImages:
    """Images by what opens them; those used last stay open. Safe to share between threads.

    Parameters
    ----------
    most : int
        Images that stay open.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        _ALL.add(self)
        self._open: dict[ImageAddress, Source] = {}
        """The one used last comes last."""
        self._lock = threading.Lock()

    def get(self, image: ImageAddress) -> Source:
        """The image, if it is still the one that was planned.

        Raises
        ------
        InputError
            The file changed, or cannot be opened any more.
        OutageError
            Its storage does not answer, or the file is gone: it was there when the slide was planned.
        """
        with self._lock:
            source = self._open.pop(image, None) or self._opened(image)
            self._open[image] = source
            while len(self._open) > self._most:
                del self._open[next(iter(self._open))]
            return source

    def forget(self, image: ImageAddress) -> None:
        """Open the image anew when it is asked for again. Who reads from it now keeps it."""
        with self._lock:
            self._open.pop(image, None)

    def clear(self) -> None:
        """Let go of all images."""
        with self._lock:
            self._open.clear()

    def _opened(self, image: ImageAddress) -> Source:
        try:
            source = open_source(image.address, image.options)
        except InputError as error:
            if (lost := outage(error, image.address, missing=True)) is not None:
                raise lost from error
            raise
        if image.fingerprint and source.info.fingerprint != image.fingerprint:
            source.close()
            raise InputError(f"{image.address} changed while it was being read. Run again with --restart once the file is whole.")
        return source
