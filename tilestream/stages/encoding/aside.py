"""Rows of shards that are not whole yet, beside the slide that they will be part of: what was embedded when a run ended."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.store.records import checksum
from tilestream.store.slide_store import ASIDE, SlideStore

SUM = 32
"""Length of the checksum that comes before the rest."""


def keep_aside(store: SlideStore, shard: int, rows: NDArray[np.int64], arrays: Mapping[str, NDArray[Any]], told: dict[str, Any]) -> None:
    """Put rows of a shard where the next one who works on it finds them.

    Parameters
    ----------
    store : SlideStore
        The slide's.
    shard : int
        Number of the shard.
    rows : (m,) int64
        Which of its rows.
    arrays : dict
        (m, ...) values by path in the store.
    told : dict
        What else is known of them.
    """
    packed, head = io.BytesIO(), json.dumps({"paths": list(arrays), "recipe": store.stage_recipes.get("tiles"), **told})
    columns: dict[str, Any] = {f"values{k}": values for k, values in enumerate(arrays.values())}
    np.savez(packed, head=np.array(head), rows=rows, **columns)
    data = packed.getvalue()
    with store.committing():
        store.folder.put(f"{ASIDE}/{shard:06}-{len(rows)}-{os.urandom(4).hex()}.npz", checksum(data).encode() + data)


def set_aside(store: SlideStore, shard: int) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]], dict[str, Any]]]:
    """What `keep_aside` was given of a shard, under the present recipe; what is damaged reads as missing."""
    for key in store.names_aside(shard):
        raw = store.folder.get(key) or b""
        if checksum(raw[SUM:]).encode() != raw[:SUM]:
            continue
        with np.load(io.BytesIO(raw[SUM:]), allow_pickle=False) as packed:
            told = json.loads(str(packed["head"]))
            if told["recipe"] == store.stage_recipes.get("tiles"):
                yield packed["rows"], {path: packed[f"values{k}"] for k, path in enumerate(told["paths"])}, told


def tiles_aside(store: SlideStore, done: Container[int]) -> dict[int, int]:
    """How many tiles of each shard that is not done are embedded and wait for the rest of it."""
    found: dict[int, int] = {}
    for key in store.folder.names(ASIDE):
        shard, count, _ = key.rsplit("/", 1)[-1].split("-")
        if int(shard) not in done:
            found[int(shard)] = found.get(int(shard), 0) + int(count)
    return found
