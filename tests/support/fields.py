"""Stores of tokens that a formula gives: what neighbours tell of a token is then known."""

import numpy as np

from tests.support.stores import make_store
from tilestream.store.folder import Folder
from tilestream.store.slide_store import SlideStore

NOISE = 0.3
BOUND = 1 / (1 + NOISE**2)
"""R² of whoever knows a board's vector: its variance is 1, and the noise cannot be told."""


def board(seed, side=32, dim=4, square=8):
    """(side, side, dim): a vector drawn for each square of the field, its sign that of a chessboard's square, and noise."""
    chance = np.random.default_rng([seed, 5])
    y, x = np.mgrid[:side, :side]
    vectors = chance.normal(size=(side // square, side // square, dim)).repeat(square, axis=0).repeat(square, axis=1)
    return ((-1.0) ** (x + y))[..., None] * vectors + NOISE * chance.normal(size=(side, side, dim))


def noise(seed, side=16, dim=4):
    """(side, side, dim) in which no token tells anything of another."""
    return np.random.default_rng([seed, 6]).normal(size=(side, side, dim))


def write_fields(folder, fields, **facts):
    """A finished store of each field, (rows, cols, dim)."""
    for i, field in enumerate(fields):
        rows, cols, dim = field.shape
        make_store(folder / f"s{i}.zarr", rows, cols, dim=dim, fingerprint=f"image{i}", finish=False, **facts)
        store = SlideStore(Folder(str(folder / f"s{i}.zarr")))
        values = field.reshape(-1, dim).astype(np.float32)
        for start in range(0, len(values), 512):
            part = values[start : start + 512]
            store.write_shard(
                start // 512, {"tables/tiles/X": part, "tables/tiles/obs/status/codes": np.zeros(len(part), np.int8)}, {"counts": {}}
            )
        store.seal()
        store.complete({"tiles": len(values), "counts": {}})
    return str(folder)
