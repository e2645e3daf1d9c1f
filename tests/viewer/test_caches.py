"""What the viewer keeps for the next look is bounded, and what was looked at last is kept."""

import threading

import numpy as np

from tests.support.stores import make_store
from tilestream.viewer import catalogue as catalogue_module
from tilestream.viewer.catalogue import Catalogue
from tilestream.viewer.slide import BlockCache

ROWS = 10
BLOCK = ROWS * 4 * 4
"""Bytes of a block of 10 rows of 4."""


class Counted:
    """An array that counts how often each part of it is read."""

    def __init__(self):
        self.reads = []

    def __getitem__(self, part):
        self.reads.append(part.start)
        return np.full((part.stop - part.start, 4), part.start, np.float32)


def look(cache, name, array, blocks):
    for start in range(0, blocks * ROWS, ROWS):
        assert (cache.read(name, array, slice(start, start + ROWS)) == start).all()


def test_the_slide_looked_at_last_takes_the_place_of_the_one_before(monkeypatch):
    monkeypatch.setattr("tilestream.viewer.slide.CACHE_BYTES", 3 * BLOCK)
    cache, old, new = BlockCache(), Counted(), Counted()
    look(cache, "old", old, 3)
    for _ in range(3):
        look(cache, "new", new, 2)
    assert new.reads == [0, 10]
    assert cache._bytes <= 3 * BLOCK


def test_a_slide_larger_than_the_cache_keeps_its_first_blocks(monkeypatch):
    monkeypatch.setattr("tilestream.viewer.slide.CACHE_BYTES", 3 * BLOCK)
    cache, large = BlockCache(), Counted()
    for _ in range(2):
        look(cache, "large", large, 5)
    assert large.reads == [0, 10, 20, 30, 40, 30, 40]


def test_bytes_are_counted_once_where_threads_read_the_same(monkeypatch):
    cache, together = BlockCache(), threading.Barrier(4)

    class Slow(Counted):
        def __getitem__(self, part):
            together.wait(30)
            return super().__getitem__(part)

    threads = [threading.Thread(target=cache.read, args=("x", Slow(), slice(0, ROWS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache._bytes == BLOCK
    cache.forget("x")
    assert cache._bytes == 0


def test_slides_that_nobody_looks_at_are_let_go(tmp_path, monkeypatch):
    for k in range(4):
        make_store(tmp_path / f"{k}.zarr")
    catalogue = Catalogue([str(tmp_path)])
    monkeypatch.setattr(catalogue_module, "SLIDES_BYTES", 2 * catalogue.slide(0).nbytes)
    for k in (0, 1, 2, 1, 3):
        assert catalogue.slide(k).id == str(k)
    assert list(catalogue._open) == [1, 3]
