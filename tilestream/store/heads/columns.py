"""Answers in the tables of a slide: probabilities and class of each tile, attention, and the slide's own answer.

All that is needed to make their arrays stands in the recipe of the head, so that they can be made again at any time, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tilestream.errors import OutputError
from tilestream.store.anndata_tables import ARRAY, CATEGORICAL, CHECKED, write_plain, write_strings
from tilestream.store.folder import Folder
from tilestream.store.layout import SLIDE, TILES, Layout

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


COUNTS = ("_count", "_per_mm2")
"""Columns of tiles of a head that detects, behind its name: objects whose middle lies in the tile, and that by area."""


def parts_place(name: str) -> str:
    """Where the objects of a head lie block by block until they are joined."""
    return f".tilestream/parts/{name}"


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
    counts = (f"{TILES}/obs/{name}{end}" for end in COUNTS)
    return (*tables, *counts, f"labels/{name}", parts_place(name))


def shape_files(name: str) -> tuple[str, ...]:
    """Files of the shapes of a head of this name."""
    return f"shapes/{name}.parquet", f"shapes/{name}.png"


def refuse_taken(folder: Folder, names: Iterable[str]) -> None:
    """Refuse new heads where something lies already that others put there. Raises OutputError."""
    for name in names:
        found = [place for place in head_places(name) if folder.names(place)] + [key for key in shape_files(name) if folder.exists(key)]
        if found:
            raise OutputError(
                f"{folder.address}/{found[0]} is there already, and no head of tilestream made it. Give the head {name} another name, or move that away."
            )


def row_paths(name: str) -> tuple[str, ...]:
    """Those whose objects are rows of tiles."""
    counts = (f"{TILES}/obs/{name}{end}" for end in COUNTS)
    return f"{TILES}/obsm/{name}", f"{TILES}/obs/{name}/codes", f"{TILES}/obsm/{name}_attention", *counts


def make_columns(root: zarr.Group, layout: Layout, heads: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Make the arrays of heads that classify tiles; the columns of `obs` that they add."""
    added = []
    for name, own in sorted(heads.items()):
        if own["kind"] == "detect":
            added += _make_counts(root, name, layout, answer_of(own))
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


def _make_counts(root: zarr.Group, name: str, layout: Layout, answer: Answer) -> list[str]:
    """Make the arrays of a head that detects, each one object; the columns of `obs` that they are."""
    rows = max(1, layout.tiles)
    shapes = {f"{TILES}/obsm/{name}": (layout.tiles, answer.columns), **{f"{TILES}/obs/{name}{end}": (layout.tiles,) for end in COUNTS}}
    for path, shape in shapes.items():
        group, _, last = path.rpartition("/")
        root.require_group(group).create_array(
            last, shape=shape, dtype="float32", fill_value=np.nan, config={"write_empty_chunks": True}, compressors=CHECKED,
            chunks=(rows, *shape[1:]), dimension_names=["tile", "class"][: len(shape)],
            attributes={**ARRAY, **({"classes": list(answer.classes)} if shape[1:] else {})},
        )  # fmt: skip
    return [f"{name}{end}" for end in COUNTS]


def count_objects(name: str, own: Mapping[str, Any], layout: Layout, counts: NDArray[np.float32], mm2: float | None) -> dict[str, bytes]:
    """The objects that hold the counts (n, C) of a head that detects, and what they come to on tiles of `mm2`."""
    made = Folder.in_memory("memory")
    root = zarr.create_group(made.store)
    _make_counts(root, name, layout, answer_of(own))
    total = counts.sum(axis=1)
    values = {f"{TILES}/obsm/{name}": counts, f"{TILES}/obs/{name}{COUNTS[0]}": total}
    values[f"{TILES}/obs/{name}{COUNTS[1]}"] = total / mm2 if mm2 else np.full_like(total, np.nan)
    for path, array in values.items():
        zarr.open_array(made.store, path=path, mode="r+").with_config({"write_empty_chunks": True})[...] = array
    return {key: made.get(key) or b"" for key in made.names() if any(key.startswith(f"{path}/c") for path in values)}


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
