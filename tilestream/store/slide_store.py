"""The output of one slide: a Zarr v3 group that AnnData opens, written shard by shard, and its completion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray

from tilestream.errors import IncompleteError
from tilestream.store.anndata_tables import ARRAY, CATEGORICAL, create_table, write_categories, write_plain, write_strings
from tilestream.store.blocks import BLOCKS_AHEAD, map_blocks
from tilestream.store.folder import Folder
from tilestream.store.layout import STATUSES, Layout, TileColumns, WindowGrid, tile_names
from tilestream.store.ownership import MARK, claim

T = TypeVar("T")

FORMAT = 1
"""Version of this layout; a store of another version is refused."""

TILES, SLIDE = "tables/tiles", "tables/slide"
ATTENTION = f"{TILES}/obsm/attention"
THUMBNAIL, TISSUE = "thumbnail.png", "tissue.png"
LEDGER, COMPLETE = ".tilestream/shards", ".tilestream/complete.json"
_REMADE = (f"{SLIDE}/", f"{ATTENTION}/", "windows/", "overview.png")
"""Objects that finishing a slide writes anew."""

OWN_FOLDERS = (TILES, SLIDE, "windows", "tokens")
OWN_FILES = ("zarr.json", "tables/zarr.json", "overview.png", THUMBNAIL, TISSUE)
"""With `.tilestream`, all that is ours in a store. What else people put there is left alone: not checked, not deleted."""

DROPPING, SEALED = ".tilestream/dropping.json", "sealed"


class SlideStore:
    """One slide's group. Each object has one writer: the driver creates, a shard's task fills, the driver completes."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

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
        """Write everything but the embeddings, and last the attributes that say so; an earlier attempt is replaced.

        Raises
        ------
        ConfigError
            Something lies there that is not ours.
        """
        self.clear()
        root = zarr.create_group(self.folder.store)
        tables = root.create_group("tables")
        slide = self.folder.address.rsplit("/", 1)[-1].removesuffix(".zarr")
        names = tile_names(slide, columns.row, columns.col)
        same = {"slide": slide, **attributes.get("listed", {})}
        tiles = create_table(tables, "tiles", layout.dim, _obs(columns), uns, names, ["status", *same])
        for column, value in same.items():
            write_categories(tiles.require_group("obs"), column, np.zeros(layout.tiles, np.int8), [value])
        _embedding_array(tiles, "X", layout, (layout.dim,))
        status = tiles.require_group("obs").create_group("status", attributes=dict(CATEGORICAL))
        status.create_array(
            "codes", shape=(layout.tiles,), dtype="int8", fill_value=-1, attributes=ARRAY, config={"write_empty_chunks": True},
            chunks=(layout.chunk_rows,), shards=(layout.shard_tiles,), dimension_names=["tile"],
        )  # fmt: skip
        write_strings(status, "categories", list(STATUSES))
        if layout.context_dim:
            _embedding_array(tiles.require_group("obsm"), "context", layout, (layout.context_dim,))
        if layout.tokens:
            _embedding_array(root, "tokens", layout, (layout.tokens, layout.dim))
        for grid in windows:
            root.require_group("windows").create_array(
                str(grid.side), shape=(grid.rows, grid.cols, grid.dim), chunks=(1, grid.cols, grid.dim), dtype=layout.dtype, fill_value=np.nan,
                config={"write_empty_chunks": True}, dimension_names=["row", "col", "feature"], attributes={"side_tokens": grid.side, "side_l0_px": grid.l0_side},
            )  # fmt: skip
        for key, data in objects.items():
            self.folder.put(key, data)
        on_map = places or {}  # by group: what conventions of other programs say of where it lies
        tiles.attrs.update(on_map.get(TILES, {}))
        root.attrs.update({**on_map.get("", {}), "tilestream": {"format": FORMAT, "layout": vars(layout), **attributes}})

    def clear(self) -> None:
        """Mark the folder as ours, and remove all else that is ours in it; cut short, what remains counts as never created.

        Raises
        ------
        ConfigError
            Something lies there that is not ours.
        """
        claim(self.folder)
        for name in (COMPLETE, *OWN_FILES):
            self.folder.delete(name)
        for name in OWN_FOLDERS:
            self.folder.delete_all(name)
        for key in self.folder.names(".tilestream"):
            if key != MARK:
                self.folder.delete(key)

    @property
    def attributes(self) -> dict[str, Any] | None:
        """What `create` wrote last, or None where it never finished."""
        raw = self.folder.get("zarr.json")
        found = json.loads(raw).get("attributes", {}).get("tilestream") if raw else None
        return found if isinstance(found, dict) else None

    @property
    def layout(self) -> Layout:
        """The shapes that the store was created with."""
        attributes = self.attributes
        if attributes is None:
            raise IncompleteError(f"{self.folder.address} is not a tilestream store, or its creation was cut short. Run the command again.")
        return Layout(**attributes["layout"])

    # -- filling ----------------------------------------------------------------------------------------------------

    def array(self, path: str) -> zarr.Array[Any]:
        """One array of the group, for reading and for whole-shard writing."""
        return zarr.open_array(self.folder.store, path=path, mode="r+").with_config({"write_empty_chunks": True})

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
        keys = []
        for path, values in arrays.items():
            array = self.array(path)
            key = "/".join([path, "c", str(number), *("0" for _ in array.shape[1:])])
            self.folder.delete(key)  # else zarr reads the old object, torn as it may be, before it replaces it
            array[rows] = values
            self.folder.flush(key)
            keys.append(key)
        self._record(stage, number, keys, record)

    def _record(self, stage: str, number: int, keys: list[str], record: dict[str, Any]) -> None:
        entry = {"objects": {key: self._checksum(key) for key in keys}, **record}
        self.folder.put(f"{LEDGER}/{stage}-{number:06d}.json", json.dumps(entry).encode())

    def _checksum(self, key: str) -> str | None:
        data = self.folder.get(key)
        return None if data is None else hashlib.blake2b(data, digest_size=16).hexdigest()

    def ledger(self, stage: str = "tiles") -> dict[int, dict[str, Any]]:
        """Entries of the shards that are committed, by shard number."""
        entries = {}
        for key in self.folder.names(LEDGER):
            name = key.rsplit("/", 1)[-1]
            if name.startswith(f"{stage}-") and (raw := self.folder.get(key)):
                entries[int(name[len(stage) + 1 : -5])] = json.loads(raw)
        return entries

    @property
    def stages(self) -> list[str]:
        """Stages with entries in the ledger."""
        return sorted({key.rsplit("/", 1)[-1].rsplit("-", 1)[0] for key in self.folder.names(LEDGER)})

    def blocks(self, path: str) -> Iterator[NDArray[np.float32]]:
        """The rows of an array in order, (n, d) float32, in blocks that do not depend on how rows were cut into shards.

        `BLOCKS_AHEAD` more are read while the caller works on one.
        """
        return self.map_blocks(path, lambda rows: rows)

    def map_blocks(
        self,
        path: str,
        work: Callable[[NDArray[np.float32]], T],
        skip: int = 0,
        *,
        block_rows: int | None = None,
        threads: int = BLOCKS_AHEAD,
    ) -> Iterator[T]:
        """What `work` makes of each block of `block_rows` rows, `BLOCK_ROWS` by default, in their order; it is called by the threads that read.

        After each block, `skip` blocks are left out.
        """
        return map_blocks(self.array(path), work, skip, block_rows=block_rows, threads=threads)

    # -- completion -------------------------------------------------------------------------------------------------

    def write_slide_vector(self, vector: NDArray[np.float32], slide_id: str) -> None:
        """Write tables/slide: X (1, d) float32."""
        tables = zarr.open_group(self.folder.store, path="tables", mode="r+")
        if "slide" in tables:
            del tables["slide"]
        slide = create_table(tables, "slide", len(vector), {}, {}, [slide_id])
        slide.create_array("X", data=vector[None].astype(np.float32), chunks=(1, max(1, len(vector))), attributes=ARRAY)

    def write_attention(self, shares: NDArray[np.float32]) -> None:
        """Write tables/tiles/obsm/attention (n, heads) float32."""
        group = zarr.open_group(self.folder.store, path=f"{TILES}/obsm", mode="r+")
        if "attention" in group:
            del group["attention"]
        write_plain(group, "attention", shares)

    def drop(self, paths: list[str]) -> None:
        """Remove arrays that were needed on the way only, with their entries in the ledger; cut short, it goes on when called again."""
        self.folder.put(DROPPING, json.dumps(paths).encode())
        for path in paths:
            self.folder.delete_all(path)
        for key in self.folder.names(LEDGER):
            entry = json.loads(self.folder.get(key) or b"{}")
            kept = {name: checksum for name, checksum in entry["objects"].items() if not name.startswith(tuple(f"{p}/" for p in paths))}
            if len(kept) < len(entry["objects"]):
                self.folder.put(key, json.dumps({**entry, "objects": kept}).encode())

    @property
    def dropping(self) -> list[str]:
        """Arrays whose removal was begun."""
        found: list[str] = json.loads(self.folder.get(DROPPING) or b"[]")
        return found

    def seal(self) -> None:
        """Take the checksums of all objects that no shard's entry holds: metadata, positions, pictures, the slide's vector."""
        known = {f"{LEDGER}/{SEALED}-000000.json", DROPPING, COMPLETE, MARK}
        known |= {key for stage in self.stages if stage != SEALED for entry in self.ledger(stage).values() for key in entry["objects"]}
        others = [key for key in self._own_names() if key not in known and not key.startswith(f"{LEDGER}/")]
        self.folder.flush_all(others)  # zarr leaves metadata to the system: a finished slide survives a power cut
        self._record(SEALED, 0, others, {})

    def _own_names(self) -> list[str]:
        own = tuple(f"{name}/" for name in (*OWN_FOLDERS, ".tilestream"))
        return [key for key in self.folder.names() if key in OWN_FILES or key.startswith(own)]

    def complete(self, summary: dict[str, Any]) -> None:
        """Write the completion mark: the last object of a slide, with a digest over its objects' checksums."""
        mark = {"digest": self._digest(), **summary}
        self.folder.put(COMPLETE, json.dumps(mark, indent=1).encode())

    @property
    def completion(self) -> dict[str, Any] | None:
        """The completion mark, or None for a slide that is not finished."""
        raw = self.folder.get(COMPLETE)
        return json.loads(raw) if raw else None

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for key in self.folder.names(LEDGER):
            raw = self.folder.get(key)
            for name, checksum in sorted(json.loads(raw or b"{}").get("objects", {}).items()):
                digest.update(f"{name}={checksum}\n".encode())
        return digest.hexdigest()

    def forget_damaged(self) -> int:
        """Remove the ledger's entries whose objects are not as they were written, so that they are done again; returns how many."""
        lost = 0
        for key in self.folder.names(LEDGER):
            try:
                objects = json.loads(self.folder.get(key) or b"").get("objects", {})
            except ValueError:  # the entry itself was cut short
                objects = {key: ""}
            if any(self._checksum(name) != checksum for name, checksum in objects.items()):
                self.folder.delete(key)
                lost += 1
        return lost

    def repair(self) -> str:
        """Make a damaged slide unfinished, so that the next run redoes what is damaged and nothing else; says what that is."""
        self.folder.delete(COMPLETE)
        sealed = self.ledger(SEALED).get(0, {"objects": {}})["objects"]
        basic = [name for name, checksum in sealed.items() if not name.startswith(_REMADE) and self._checksum(name) != checksum]
        if basic:
            self.clear()
            return f"{basic[0]} is damaged, on which all else rests: the slide is started over"
        return f"{self.forget_damaged()} parts are done again"

    def damage(self) -> list[str]:
        """What is wrong with a finished slide, object by object; empty where all bytes are as they were written."""
        mark = self.completion
        if mark is None:
            return ["not finished: the completion mark is missing"]
        found = [] if mark["digest"] == self._digest() else ["the ledger does not match the completion mark"]
        for stage in self.stages:
            for entry in self.ledger(stage).values():
                for key, checksum in entry["objects"].items():
                    seen = self._checksum(key)
                    if seen != checksum:
                        found.append(f"{key}: {'missing' if seen is None else 'bytes differ from what was written'}")
        return found


def _obs(columns: TileColumns) -> dict[str, NDArray[Any]]:
    return {"row": columns.row, "col": columns.col, "y": columns.y, "x": columns.x, "tissue": columns.tissue, "spatial": _centres(columns)}


def _centres(columns: TileColumns) -> NDArray[np.float64]:
    """(n, 2) x, y of the tile centres in level-0 px: AnnData's order."""
    half = columns.l0_extent / 2
    return np.stack([columns.x + half, columns.y + half], axis=1).astype(np.float64)


def _embedding_array(group: zarr.Group, name: str, layout: Layout, trailing: tuple[int, ...]) -> None:
    """An array of one row a tile; unwritten rows read as NaN, never as zero."""
    group.create_array(
        name, shape=(layout.tiles, *trailing), dtype=layout.dtype, fill_value=np.nan, attributes=ARRAY, config={"write_empty_chunks": True},
        chunks=(layout.chunk_rows, *trailing), shards=(layout.shard_tiles, *trailing),
        dimension_names=["tile", *(["token"] if len(trailing) == 2 else []), "feature"],
    )  # fmt: skip
