"""Answers of heads as a reader of a slide's store finds them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError
from tilestream.store.heads.columns import NOT_COMPUTED, Answer, answer_of
from tilestream.store.layout import SLIDE, TILES

if TYPE_CHECKING:
    import pandas as pd
    import zarr

    from tilestream.geometry import TileGrid
    from tilestream.store.layout import Layout


class StoredHeads:
    """What a slide's store holds of heads; the part of `Slide` that reads it."""

    path: str
    recipe: dict[str, Any]
    layout: Layout

    if TYPE_CHECKING:

        def has(self, path: str) -> bool: ...

        def array(self, path: str) -> zarr.Array[Any]: ...

        def grid(self) -> TileGrid: ...

    @property
    def heads(self) -> dict[str, dict[str, Any]]:
        """The heads whose answers the slide has, and the recipe of each, by name."""
        found: dict[str, dict[str, Any]] = self.recipe.get("heads") or {}
        return found

    def head_answer(self, name: str) -> Answer:
        """What a head says: its task, the names of its classes. Raises InputError where there is no such head."""
        if name not in self.heads:
            raise InputError(f"{self.path} has no head {name!r}; it has {', '.join(self.heads) or 'none'}. Run with it under heads.")
        return answer_of(self.heads[name])

    def read_head(self, name: str) -> NDArray[np.float32]:
        """(n, classes) probabilities of each tile, or (1, classes) of the slide; of a regression or a risk the values. NaN where there is no answer.

        Raises
        ------
        InputError
            There is no such head, or it was told not to keep them.
        """
        self.head_answer(name)
        place = next((place for place in (f"{TILES}/obsm/{name}", f"{SLIDE}/obsm/{name}") if self.has(place)), None)
        if place is None:
            saved = ", ".join(self.heads[name]["save"]) or "nothing"
            raise InputError(
                f"{self.path} holds no probabilities of head {name}, which saved {saved}. Run with probabilities in heads.{name}.save."
            )
        return np.asarray(self.array(place)[:], np.float32)

    def read_head_map(self, name: str) -> NDArray[np.float32]:
        """(classes, rows, cols) answers of a head of tiles in the slide's grid, whose cells are one stride a side: where tiles overlap, the mean of those that
        reach into a cell, by area. NaN where none gave an answer. Raises InputError as `read_head`.
        """
        values, grid = self.read_head(name), self.grid()
        if self.heads[name]["kind"] != "classify":
            raise InputError(f"{self.path}: head {name} gives no answers for tiles (kind {self.heads[name]['kind']}). Use read_head.")
        row, col = (np.asarray(self.array(f"{TILES}/obs/{side}")[:], np.int64) for side in ("row", "col"))
        good = np.isfinite(values).all(axis=1)
        reach = max(1, math.ceil(grid.tile / grid.stride))
        sums = np.zeros((values.shape[1] + 1, grid.rows + reach, grid.cols + reach))
        shares = [min(1.0, grid.tile / grid.stride - k) for k in range(reach)]
        for down, height in enumerate(shares):
            for right, width in enumerate(shares):
                np.add.at(sums[-1], (row[good] + down, col[good] + right), height * width)
                for channel in range(values.shape[1]):
                    np.add.at(sums[channel], (row[good] + down, col[good] + right), height * width * values[good, channel])
        sums = sums[:, : grid.rows, : grid.cols]
        with np.errstate(invalid="ignore", divide="ignore"):
            found: NDArray[np.float32] = (sums[:-1] / sums[-1]).astype(np.float32)
        return found

    def read_head_classes(self, name: str) -> pd.Categorical:
        """(n,) class of each tile; `not computed` where the tile failed, or the head gave no answer. Raises InputError where it gives no classes of tiles."""
        import pandas as pd

        answer = self.head_answer(name)
        if not self.has(f"{TILES}/obs/{name}"):
            raise InputError(
                f"{self.path}: head {name} gives no classes of tiles (kind {self.heads[name]['kind']}, {answer.task}). Use read_head."
            )
        codes = np.asarray(self.array(f"{TILES}/obs/{name}/codes")[:])
        return pd.Categorical.from_codes(codes, categories=[NOT_COMPUTED, *answer.classes])

    def read_head_attention(self, name: str) -> NDArray[np.float32]:
        """(n,) share of each tile in the answer of a slide's head, NaN where a tile failed. Raises InputError where it kept none."""
        self.head_answer(name)
        place = f"{TILES}/obsm/{name}_attention"
        if not self.has(place):
            raise InputError(
                f"{self.path} holds no attention of head {name}. Run with attention in heads.{name}.save, and a model that has some."
            )
        return np.asarray(self.array(place)[:, 0], np.float32)
