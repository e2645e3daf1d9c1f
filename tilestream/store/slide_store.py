"""The output of one slide: a Zarr v3 group that AnnData opens, written shard by shard, and stage by stage."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync

from tilestream.errors import IncompleteError
from tilestream.store.anndata_tables import (
    ARRAY,
    CATEGORICAL,
    CHECKED,
    create_table,
    row_array,
    write_categories,
    write_strings,
)
from tilestream.store.blocks import map_blocks, read_rows
from tilestream.store.folder import Folder
from tilestream.store.heads.columns import head_of_stage, head_places, row_paths, shape_files
from tilestream.store.layout import BLOCKS_AHEAD, SLIDE, STATUSES, TILES, Layout, TileColumns, WindowGrid, context_place, tile_names
from tilestream.store.ledger import BASE, COMPLETE, FENCE, HOME, LEDGER, stage_of
from tilestream.store.ownership import MARK, claim
from tilestream.store.records import Sums, checksum, pack, sums_of, unpack
from tilestream.store.stage_arrays import OBS, OBS_COLUMNS, OVERVIEW, LaterStages, obs_columns
from tilestream.store.zarr_chunks import encode_shard

T = TypeVar("T")

FORMAT = 2
"""Version of this layout; a store of another version is refused."""

ROWS, CODES = f"{TILES}/X", f"{TILES}/obs/status/codes"
THUMBNAIL, TISSUE = "thumbnail.png", "tissue.png"
DROPPING = f"{HOME}/dropping.json"
ASIDE = f"{HOME}/aside"
"""Rows of shards that are not whole yet: no part of the slide, and gone once their shard is committed."""

OWN_FOLDERS = (TILES, SLIDE, "windows", "tokens")
OWN_FILES = ("zarr.json", "tables/zarr.json", OVERVIEW, THUMBNAIL, TISSUE)
"""With `.tilestream`, all that is ours in a store. What else people put there is left alone: not checked, not deleted."""

ROW_ARRAYS = (ROWS, CODES, "tokens")
"""Arrays of one row a tile, whose objects are shards."""


class SlideStore(LaterStages):
    """One slide's group. Each object has one writer: the driver creates, a shard's task fills, the driver completes."""

    # -- creation ---------------------------------------------------------------------------------------------------

    def create(
        self,
        layout: Layout,
        columns: TileColumns,
        attributes: dict[str, Any],
        *,
        uns: dict[str, Any],
        objects: dict[str, bytes],
        windows: Iterable[WindowGrid] = (),
        places: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Write everything but the embeddings, durably, and last the record that says so; an earlier attempt is replaced.

        Raises
        ------
        ConfigError
            Something lies there that is not ours.
        """
        self.clear()
        made = Folder.in_memory(self.folder.address)  # in a store, each step of zarr's asks for all groups above it
        tables = zarr.create_group(made.store).create_group("tables")
        slide = self.folder.address.rsplit("/", 1)[-1].removesuffix(".zarr")
        names = tile_names(slide, columns.row, columns.col)
        same = {"slide": slide, **attributes.get("listed", {})}
        tiles = create_table(tables, "tiles", layout.dim, obs_columns(columns), uns, names, ["status", *same])
        for column, value in same.items():
            write_categories(tiles.require_group("obs"), column, np.zeros(layout.tiles, np.int8), [value])
        row_array(tiles, "X", layout, (layout.dim,))
        status = tiles.require_group("obs").create_group("status", attributes=dict(CATEGORICAL))
        status.create_array(
            "codes", shape=(layout.tiles,), dtype="int8", fill_value=-1, attributes=ARRAY, config={"write_empty_chunks": True},
            chunks=(layout.chunk_rows,), shards=(layout.shard_tiles,), compressors=CHECKED, dimension_names=["tile"],
        )  # fmt: skip
        write_strings(status, "categories", list(STATUSES))
        if layout.tokens:
            row_array(zarr.open_group(made.store), "tokens", layout, (layout.tokens, layout.dim))
        on_map = places or {}  # by group: what conventions of other programs say of where it lies
        if TILES in on_map:
            tiles.attrs.update(on_map[TILES])
        found = {key: made.get(key) or b"" for key in made.names() if key != "zarr.json"} | objects
        self.folder.set_all(found)
        self.folder.flush_all(list(found))
        self._write_base(sums_of(found), {"format": FORMAT, "layout": vars(layout), **attributes}, dict(on_map.get("", {})))
        self.make_arrays(windows, anew=True)

    def clear(self) -> None:
        """Mark the folder as ours, and remove all else that is ours in it but the fence; cut short, what remains counts as never created.

        Raises
        ------
        ConfigError
            Something lies there that is not ours.
        """
        claim(self.folder)
        for head in self.heads:
            self.drop_head(head)
        there = self.folder.names()
        for name in (COMPLETE, BASE, *OWN_FILES):
            if name in there:
                self.folder.delete(name)
        for name in OWN_FOLDERS:
            if self.folder.local is not None or any(key.startswith(f"{name}/") for key in there):  # empty folders go as well
                self.folder.delete_all(name)
        for key in there:
            if key.startswith(f"{HOME}/") and key not in (MARK, FENCE, COMPLETE, BASE):
                self.folder.delete(key)
        self.folder.sweep()
        self._base.clear()

    def own_names(self, there: Iterable[str] | None = None) -> list[str]:
        """Names of the objects of the slide, without our records of them; of those that are `there`, where that was asked already."""
        own = tuple(f"{name}/" for name in (*OWN_FOLDERS, *(place for name in self.heads for place in head_places(name))))
        shapes = {key for name in self.heads for key in shape_files(name)}
        files = {*OWN_FILES, *shapes, *(["labels/zarr.json"] if self.heads else [])}
        return [key for key in (self.folder.names() if there is None else there) if key in files or key.startswith(own)]

    def _write_base(self, objects: Sums, attributes: dict[str, Any], others: dict[str, Any]) -> None:
        """Write the record of what lies in the store, and the attributes once more as Zarr's readers see them."""
        root = _root(attributes, others)
        objects.pop(OBS, None)  # it changes with the heads
        objects = {**objects, "zarr.json": [len(root), checksum(root)]}
        self.put_base({"attributes": attributes, "others": others, "objects": objects})
        self.folder.put("zarr.json", root)

    def adopt(self, attributes: dict[str, Any], windows: Iterable[WindowGrid] = ()) -> None:
        """Take other recipes for the stages that follow the tiles: what those stages made under the ones before no longer counts."""
        base = self.base
        assert base is not None, "a store is mended before it is added to"
        self.folder.delete(COMPLETE)
        before, after = self.stage_recipes, attributes["stages"]
        changed = {stage for stage in after if before.get(stage) != after[stage]}
        self.forget(changed)
        gone = before.keys() - after
        for key in [key for key in self.folder.names(LEDGER) if stage_of(key) in gone]:
            self.folder.delete(key)
        for head in filter(None, map(head_of_stage, changed & before.keys())):  # what others put where a new one goes is not ours
            self.drop_head(head)
        for stage in gone:
            self.drop_stage(stage)
        self._write_base(base["objects"], {**base["attributes"], **attributes}, base["others"])
        self.make_arrays(windows)

    def mend(self, make: Callable[[SlideStore], object]) -> bool:
        """Write metadata that is lost or damaged again, from what `make` creates, if that is the same byte for byte; whether all is well now."""
        base = self.base
        if base is not None:
            if self.sums(["zarr.json"]).get("zarr.json") != base["objects"]["zarr.json"]:
                self.folder.put("zarr.json", _root(base["attributes"], base["others"]))
            if self.sums(list(base["objects"])) == base["objects"]:
                return True
        elif self.folder.names(LEDGER) and not self.folder.exists(f"{ROWS}/zarr.json"):
            return False  # dropped, perhaps: it must not be made anew, without its rows
        made = SlideStore(Folder.in_memory(self.folder.address))
        make(made)
        anew = made.base
        assert anew is not None, "it was made just now"
        wanted = {key: seen for key, seen in anew["objects"].items() if key != "zarr.json"}
        there = self.sums(list(wanted))
        known = there if base is None else base["objects"]
        if any(seen != known.get(key, seen) for key, seen in wanted.items()):
            return False
        for key in [key for key, seen in wanted.items() if there.get(key) != seen and (base is None or key in known)]:
            self.folder.put(key, made.folder.get(key) or b"")
        if base is None:
            self._write_base(wanted, anew["attributes"], anew["others"])
        return True

    @property
    def attributes(self) -> dict[str, Any] | None:
        """What the store was created with, or None where it never was; a record that is damaged is stood in for by the group's own attributes."""
        if (base := self.base) is not None:
            found: dict[str, Any] = base["attributes"]
            return found
        try:
            told = json.loads(self.folder.get("zarr.json") or b"{}")["attributes"]["tilestream"]
        except (ValueError, KeyError, TypeError):
            return None
        return told if isinstance(told, dict) else None

    @property
    def layout(self) -> Layout:
        """The shapes that the store was created with."""
        attributes = self.attributes
        if attributes is None:
            raise IncompleteError(f"{self.folder.address} is not a tilestream store, or its creation was cut short. Run the command again.")
        return Layout(**attributes["layout"])

    @property
    def columns(self) -> TileColumns:
        """The tiles that the rows are of, as they were decided when the store was created."""
        row, col, y, x, tissue = (read_rows(self.folder, f"{TILES}/obs/{name}") for name in OBS_COLUMNS)
        return TileColumns(row, col, y, x, tissue, math.nan)

    # -- filling ----------------------------------------------------------------------------------------------------

    def array(self, path: str) -> zarr.Array[Any]:
        """One array of the group, for reading and for whole-shard writing."""
        return _open_array(self.folder, path)

    def write_shard(self, shard: int, arrays: dict[str, NDArray[Any]], record: dict[str, Any], *, stage: str = "tiles") -> None:
        """Write one shard of each array, then its entry in the ledger, which commits it.

        Parameters
        ----------
        shard : int
            Number of the shard.
        arrays : dict
            Rows of the shard by path in the group, e.g. `tables/tiles/X`.
        record : dict
            Counts and seconds, kept in the ledger.
        stage : str
            Which pass over the shards this is: tiles or context.
        """
        self.write_rows(stage, shard, self.layout.rows(shard), arrays, record)

    def write_rows(self, stage: str, number: int, rows: slice, arrays: dict[str, NDArray[Any]], record: dict[str, Any]) -> None:
        """Write rows that are object `number` of each array, then their entry in the ledger, which commits them."""
        with self.committing():
            objects = dict(self._encoded(path, number, rows, values) for path, values in arrays.items())
            self.folder.set_all(objects)
            for key in objects:
                self.folder.flush(key)
            self._look()
            self.record(stage, number, sums_of(objects), record)
        if stage == "tiles":
            self.forget_aside(number)

    def _encoded(self, path: str, number: int, rows: slice, values: NDArray[Any]) -> tuple[str, bytes | Buffer]:
        """Name and bytes of object `number` of an array, which holds these rows; in a store, zarr would read the old object first."""
        key = "/".join([path, "c", str(number), *("0" for _ in values.shape[1:])])
        about = self.folder.get(f"{path}/zarr.json") or b""
        if (encoded := encode_shard(json.loads(about), rows, values)) is not None:
            return key, encoded
        made = Folder.in_memory(self.folder.address)
        made.set_all({f"{path}/zarr.json": about})
        _open_array(made, path)[rows] = values
        data = sync(made.store.get(key, default_buffer_prototype()))
        assert data is not None, "empty chunks are written"
        return key, data

    def names_aside(self, shard: int) -> list[str]:
        """Names of the objects that hold rows of a shard that is not whole yet."""
        return [key for key in self.folder.names(ASIDE) if key.startswith(f"{ASIDE}/{shard:06}-")]

    def forget_aside(self, shard: int) -> None:
        """Remove rows of a shard that are not part of it yet."""
        for key in self.names_aside(shard):
            self.folder.delete(key)

    def commit_objects(self, stage: str, number: int, objects: Mapping[str, bytes], record: dict[str, Any]) -> None:
        """Write objects whole and durably, then their entry in the ledger, which commits them."""
        with self.committing():
            for key, data in objects.items():
                self.folder.put(key, data)
            self._look()
            self.record(stage, number, sums_of(objects), record)

    def blocks(self, path: str) -> Iterator[NDArray[np.float32]]:
        """The rows of an array in order, (n, d) float32, in blocks that do not depend on how rows were cut into shards.

        `BLOCKS_AHEAD` more are read while the caller works on one.
        """
        return self.map_blocks(path, lambda rows, _: rows)

    def map_blocks(
        self,
        path: str,
        work: Callable[[NDArray[np.float32], int], T],
        skip: int = 0,
        *,
        block_rows: int | None = None,
        threads: int = BLOCKS_AHEAD,
    ) -> Iterator[T]:
        """`map_blocks` of an array."""
        return map_blocks(self.array(path), work, skip, block_rows=block_rows, threads=threads)

    # -- finishing --------------------------------------------------------------------------------------------------

    def drop(self, paths: list[str]) -> None:
        """Remove arrays that were needed on the way only, with their entries in the ledger; cut short, it goes on when called again."""
        prefixes = tuple(f"{path}/" for path in paths)
        with self.committing():
            self.folder.put(DROPPING, pack({"paths": paths}))
            for path in paths:
                self.folder.delete_all(path)
            for key in self.folder.names(LEDGER):
                entry = unpack(self.folder.get(key)) or {"objects": {}}
                kept = {name: seen for name, seen in entry["objects"].items() if not name.startswith(prefixes)}
                if len(kept) < len(entry["objects"]):
                    self.folder.put(key, pack({**entry, "objects": kept}))
            base = self.base
            assert base is not None, "it was created"
            objects = {name: seen for name, seen in base["objects"].items() if not name.startswith(prefixes)}
            self.put_base({**base, "objects": objects})

    @property
    def dropping(self) -> list[str]:
        """Arrays whose removal was begun."""
        found: list[str] = (unpack(self.folder.get(DROPPING)) or {"paths": []})["paths"]
        return found

    def seal(self) -> None:
        """Make durable what no entry of the ledger holds: metadata, pictures, the slide's vector."""
        if self.folder.local is not None:
            self.folder.flush_all(self.own_names())  # zarr leaves metadata to the system: a finished slide survives a power cut

    def complete(self, told: dict[str, Any]) -> dict[str, Any]:
        """Write the completion mark, the last object of a slide, and return it."""
        self._base.clear()  # a worker has perhaps dropped arrays
        there = self.folder.names()
        if self.folder.local is not None or any(key.startswith(f"{ASIDE}/") for key in there):
            self.folder.delete_all(ASIDE)
        contexts = (context_place(stage) for stage in self.stage_recipes if stage.partition("-")[0] == "context")
        rows = (*ROW_ARRAYS, *contexts, *(path for name in self.heads for path in row_paths(name)))
        unanswered = self.unanswered
        lacking = {"unanswered": unanswered} if unanswered else {}
        return self.write_completion({"tiles": self.layout.tiles, **lacking, **told}, self.own_names(there), rows)


def _open_array(folder: Folder, path: str) -> zarr.Array[Any]:
    return zarr.open_array(folder.store, path=path, mode="r+", zarr_format=3).with_config({"write_empty_chunks": True})


def _root(attributes: dict[str, Any], others: dict[str, Any]) -> bytes:
    """The metadata of the store's root group: our attributes, and those of other conventions."""
    told = {"zarr_format": 3, "node_type": "group", "attributes": {**others, "tilestream": attributes}}
    return json.dumps(told, indent=2, sort_keys=True).encode()
