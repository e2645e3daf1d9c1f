"""A store is written by processes that die before and after the Nth system call of their writing, then by one that ends; are its bytes those of an undisturbed one?

`python -m tests.support.dying_writers FOLDER FIRST STEP COUNT` prints how many died, and fails at the first store that ends otherwise.
"""

import itertools
import os
import pathlib
import shutil
import sys

import numpy as np
import zarr  # noqa: F401  # before the forks, and nothing of it is used but by them

from tests.support.stores import begin_store
from tilestream.store.layout import context_place
from tilestream.store.slide_store import CODES, ROWS, SlideStore

CALLS = [
    (os, "fsync"),
    (os, "open"),
    (os, "rename"),
    (pathlib.Path, "replace"),
    (pathlib.Path, "open"),
    (pathlib.Path, "unlink"),
    (pathlib.Path, "mkdir"),
    (shutil, "rmtree"),
]
"""Everything by which a store comes to lie on a disk."""

SHARDS, ROWS_A_SHARD = 3, 8


def make(store):
    begin_store(
        store, rows=4, cols=6, shard_tiles=ROWS_A_SHARD, stages={"tiles": "t", "context": "c", "pool": "p", "picture": "t"}, context=6
    )


def write(folder, token):
    """Begin or go on, to the end: what a run does to a store."""
    store = SlideStore(folder, token)
    store.raise_fence()
    if store.attributes is None or not (store.folder.sweep() or store.mend(make)):
        make(store)
    else:
        store.forget_damaged()
        store.make_arrays()
    random = np.random.default_rng(0)
    for shard in range(SHARDS):
        rows = random.standard_normal((ROWS_A_SHARD, 6)).astype(np.float32)
        if shard not in store.ledger():
            store.write_shard(shard, {ROWS: rows, CODES: np.zeros(ROWS_A_SHARD, np.int8)}, {"counts": {"ok": ROWS_A_SHARD}})
        if shard not in store.ledger("context"):
            store.write_shard(shard, {context_place("context"): rows * 2}, {}, stage="context")
    if not store.ledger("pool"):
        store.write_pool(np.ones(6, np.float32), "a", np.ones((SHARDS * ROWS_A_SHARD, 1), np.float32))
    if not store.ledger("picture"):
        store.write_picture(b"picture")
    store.complete({})


def die_at(step):
    """Make every call of `CALLS` count twice, and the process end at the count `step`."""
    seen = itertools.count(1)  # of all threads

    def counted(call):
        def count(*arguments, **options):
            if next(seen) == step:
                os._exit(9)
            found = call(*arguments, **options)
            if next(seen) == step:
                os._exit(9)
            return found

        return count

    for owner, name in CALLS:
        setattr(owner, name, counted(getattr(owner, name)))


def in_a_process(work):
    """The exit status of a process of its own that does the work."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying(folder, step):
    die_at(step)
    write(folder, "first")


def contents(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def main(place, first, step, count):
    from tilestream.store.folder import Folder

    place = pathlib.Path(place)
    assert in_a_process(lambda: write(Folder(str(place / "whole" / "a.zarr")), "t")) == 0
    whole, died = contents(place / "whole"), 0
    for number in range(count):
        output = place / str(number)
        status = in_a_process(lambda at=first + number * step, output=output: dying(Folder(str(output / "a.zarr")), at))
        if status == 0:
            break
        assert status == 9, f"step {first + number * step}: {status}"
        died += 1
        assert in_a_process(lambda output=output: write(Folder(str(output / "a.zarr")), "second")) == 0, (
            f"after step {first + number * step}"
        )
        assert contents(output) == whole, f"step {first + number * step}: other bytes"
        shutil.rmtree(output)
    print(died)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
