"""Answers in the tables of a slide: probabilities and class of each tile, attention, and the slide's own answer.

All that is needed to make their arrays stands in the recipe of the head, so that they can be made again at any time, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tilestream.store.anndata_tables import ARRAY, CATEGORICAL, CHECKED, write_plain, write_strings
from tilestream.store.folder import Folder
from tilestream.store.layout import Layout

TILES, SLIDE = "tables/tiles", "tables/slide"

NOT_COMPUTED = "not computed"
"""The category, first of each column of classes, of a tile that failed or that no head has seen."""

UNIT_ROWS = 65_536
"""Rows of a unit of a head that reads stored rows, about: a second of work."""

WHOLE_CHUNK = 16_384
"""Rows of a shard up to which it is one chunk of a head's few columns."""


@dataclass(frozen=True)
class Answer:
    """What a head says, as its recipe keeps it."""

    task: str
    """classification, regression or risk."""
    outputs: int
    """Numbers of an answer."""
    classes: tuple[str, ...]
    """Names of the outputs of a classification, one more than outputs where a single one is the probability of the second; of a regression, of its values."""
    attention: int = 0
    """Columns of attention of each tile; 0 where the head has none, or they are not kept."""

    @property
    def columns(self) -> int:
        """Numbers that are stored: of a classification one probability a class."""
        return len(self.classes) if self.task == "classification" else self.outputs


def answer_of(own: Mapping[str, Any]) -> Answer:
    """The answer of a head by its recipe."""
    told = own["answer"]
    return Answer(told["task"], told["outputs"], tuple(told["classes"]), told.get("attention", 0))


def head_stage(name: str) -> str:
    """The name of a head's stage in the ledger and among the stages of a store."""
    return f"head-{name}"


def head_of_stage(stage: str) -> str | None:
    """The head whose stage this is; None for another one."""
    return stage.removeprefix("head-") if stage.startswith("head-") else None


def unit_rows(layout: Layout, read: str) -> int:
    """Rows of one unit of a head that classifies tiles: a shard's where it reads pixels, else those of some shards."""
    return layout.shard_tiles * (1 if read == "pixels" else max(1, UNIT_ROWS // layout.shard_tiles))


def row_units(layout: Layout, read: str) -> int:
    """Units of a head that classifies tiles."""
    return -(-layout.tiles // unit_rows(layout, read))


def rows_of_unit(layout: Layout, read: str, unit: int) -> slice:
    """The rows of a unit."""
    each = unit_rows(layout, read)
    return slice(unit * each, min((unit + 1) * each, layout.tiles))


def head_places(name: str) -> tuple[str, ...]:
    """All groups and arrays that a head of this name may have in a store, whatever its kind."""
    tables = (f"{TILES}/obsm/{name}", f"{TILES}/obs/{name}", f"{TILES}/obsm/{name}_attention", f"{SLIDE}/obsm/{name}")
    return (*tables, f"labels/{name}")


def row_paths(name: str) -> tuple[str, ...]:
    """Those whose objects are rows of tiles."""
    return f"{TILES}/obsm/{name}", f"{TILES}/obs/{name}/codes", f"{TILES}/obsm/{name}_attention"


def make_columns(root: zarr.Group, layout: Layout, heads: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Make the arrays of heads that classify tiles; the columns of `obs` that they add."""
    added = []
    for name, own in sorted(heads.items()):
        if own["kind"] != "classify":
            continue
        answer, rows = answer_of(own), unit_rows(layout, own["input"])
        if "probabilities" in own["save"] or answer.task != "classification":
            _column(root.require_group(f"{TILES}/obsm"), name, layout, rows, answer)
        if answer.task == "classification":
            column = root.require_group(f"{TILES}/obs").create_group(name, attributes=dict(CATEGORICAL))
            column.create_array(
                "codes", shape=(layout.tiles,), dtype=code_type(answer), fill_value=0, attributes=ARRAY, config={"write_empty_chunks": True},
                chunks=(_chunk(layout),), shards=(rows,), compressors=CHECKED, dimension_names=["tile"],
            )  # fmt: skip
            write_strings(column, "categories", [NOT_COMPUTED, *answer.classes])
            added.append(name)
    return added


def slide_answer(name: str, values: NDArray[np.float32], answer: Answer, shares: NDArray[np.float32] | None) -> dict[str, bytes]:
    """The objects of a head's answer for a slide: tables/slide/obsm/<head> (1, columns), and the share of each tile in it, (n, 1)."""
    made = Folder.in_memory("memory")
    root = zarr.create_group(made.store)
    about = {"task": answer.task, "classes": list(answer.classes)}
    place, attention = f"{SLIDE}/obsm/{name}", f"{TILES}/obsm/{name}_attention"
    root.require_group(f"{SLIDE}/obsm").create_array(name, data=values, chunks=values.shape, attributes={**ARRAY, **about})
    if shares is not None:
        write_plain(root.require_group(f"{TILES}/obsm"), f"{name}_attention", shares)
    return {key: made.get(key) or b"" for key in made.names() if key.startswith((f"{place}/", f"{attention}/"))}


def code_type(answer: Answer) -> str:
    """The type of a column of classes."""
    return "int8" if len(answer.classes) < 127 else "int16"


def _column(group: zarr.Group, name: str, layout: Layout, rows: int, answer: Answer) -> None:
    group.create_array(
        name, shape=(layout.tiles, answer.columns), dtype="float32", fill_value=np.nan, config={"write_empty_chunks": True}, compressors=CHECKED,
        chunks=(_chunk(layout), answer.columns), shards=(rows, answer.columns), dimension_names=["tile", "output"],
        attributes={**ARRAY, "task": answer.task, "classes": list(answer.classes)},
    )  # fmt: skip


def _chunk(layout: Layout) -> int:
    return layout.shard_tiles if layout.shard_tiles <= WHOLE_CHUNK else layout.chunk_rows
