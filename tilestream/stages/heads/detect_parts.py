"""The objects of a detect head in a store: a part a unit, then the one file of all of them and what tiles count of them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tilestream.errors import InputError, ReadError
from tilestream.models.heads.objects.detect_grid import DetectGrid
from tilestream.models.heads.objects.in_tiles import TilePlaces, count_in_tiles
from tilestream.sources.open_images import OpenImages
from tilestream.stages.heads.draw_objects import SlideDots, compose, draw_close_up
from tilestream.stages.heads.facts import HeadFacts
from tilestream.stages.slide_task import SlideTask
from tilestream.store.heads.columns import count_objects, head_stage, parts_place
from tilestream.store.heads.shapes import CORNERS, ShapeRows, ShapesFile, join_parts, pack_part, picture_key, shapes_key
from tilestream.store.layout import TILES
from tilestream.store.ledger import entry_key
from tilestream.store.records import pack
from tilestream.store.slide_store import THUMBNAIL, SlideStore

FAILED = "failed_patches"
"""In the entry of a unit: rows, columns and causes of the patches that gave nothing."""

CAUSES = 20
"""Patches of a unit whose causes are kept."""


def part_key(head: str, unit: int) -> str:
    """Where the objects of a unit lie until they are joined."""
    return f"{parts_place(head)}/{unit:06d}.parquet"


def commit_part(store: SlideStore, facts: HeadFacts, unit: int, rows: ShapeRows, failed: dict[tuple[int, int], str]) -> None:
    """Write the objects of a unit, and its entry; a unit without any is its entry alone."""
    objects = {part_key(facts.name, unit): pack_part(rows, facts.answer.classes)} if len(rows) else {}
    told = [[row, col, words if k < CAUSES else ""] for k, ((row, col), words) in enumerate(sorted(failed.items()))]
    store.commit_objects(head_stage(facts.name), unit, objects, {"found": len(rows), "failed": len(failed), FAILED: told})


def reopen(store: SlideStore, head: str, units: int) -> None:
    """Make the ledger of a head whole: what was joined of units that are to be done again does not count, nor units whose parts are gone."""
    stage = head_stage(head)
    done = store.ledger(stage)
    if units in done and all(unit in done for unit in range(units)):
        store.folder.delete_all(parts_place(head))  # joining was cut short once it was committed
        return
    if units in done:
        store.folder.delete(entry_key(stage, units))
    for unit, entry in done.items():
        if entry.get("found") and not store.folder.exists(part_key(head, unit)):
            store.folder.delete(entry_key(stage, unit))


def join(task: SlideTask, store: SlideStore, grid: DetectGrid, unit: int, images: OpenImages) -> int:
    """Join the parts of all units, count what lies in each tile, draw a picture, and commit all as entry `unit`, the one behind the last; how many objects.

    Memory bound: a row group of a part, and the counts of all tiles.
    """
    facts, stage = task.head_facts, head_stage(task.head)
    entries = store.ledger(stage)
    tiles = tile_places(task, store)
    counts = np.zeros((len(tiles.l0_y), len(facts.answer.classes)), np.float32)
    number = {name: k for k, name in enumerate(facts.answer.classes)}
    dots = SlideDots.on(
        store.folder.get(THUMBNAIL), task.grid.l0_size, len(number), sum(entry.get("found", 0) for entry in entries.values())
    )
    by_class = np.zeros(len(number), np.int64)

    def count(group: Any) -> None:
        box = group["bbox"].combine_chunks()
        x0, y0, x1, y1 = (box.field(corner).to_numpy() for corner in CORNERS)
        names = group["class"].combine_chunks().dictionary_encode()
        codes = np.array([number[name] for name in names.dictionary.to_pylist()], np.int64)[names.indices.to_numpy()]
        middles = np.stack([y0 + y1, x0 + x1], axis=1) / 2
        count_in_tiles(tiles, middles, codes, counts)
        dots.add(middles, codes)
        by_class[:] += np.bincount(codes, minlength=len(by_class))

    failed = [(row, col) for entry in entries.values() for row, col, _ in entry.get(FAILED, [])]
    told = {"head": task.head, "slide": task.slide, "classes": list(facts.answer.classes), "mpp": task.mpp, FAILED: len(failed)}
    parts = [store.folder.file(part_key(task.head, k)) for k in range(unit) if entries[k].get("found")]
    with ExitStack() as writing:
        path: Path = writing.enter_context(store.folder.writing(shapes_key(task.head)))
        found = join_parts(parts, path, told, each=count)
        _forget_failed(counts, tiles, grid, failed)
        own = store.heads[task.head]
        objects = count_objects(task.head, own, store.layout, counts, _tile_mm2(task))
        close_up = _close_up(task, ShapesFile(path), counts, tiles, grid.scale, images) if found else None
        title = f"{task.slide}: {found:,} objects of head {task.head}"
        legend = [f"{name} {count:,}" for name, count in zip(facts.answer.classes, by_class.tolist(), strict=True)]
        objects[picture_key(task.head)] = compose(dots.pixels, close_up, title, legend, "where they lie densest")
        with store.committing():
            writing.close()
            for key, data in objects.items():
                store.folder.put(key, data)
            store.record(stage, unit, [shapes_key(task.head), *objects], {"found": found})
    _drop_parts(store, task.head)
    return found


def _close_up(
    task: SlideTask, file: ShapesFile, counts: NDArray[np.float32], tiles: TilePlaces, scale: float, images: OpenImages
) -> Image.Image | None:
    """The tile with the most objects; None where the image does not answer any more."""
    densest = int(np.argmax(np.nan_to_num(counts.sum(axis=1))))
    y, x = (float(place[densest]) + tiles.l0_extent / 2 for place in (tiles.l0_y, tiles.l0_x))
    try:
        return draw_close_up(images.get(task.image), file, y, x, scale)
    except (ReadError, InputError):
        return None


def tile_places(task: SlideTask, store: SlideStore) -> TilePlaces:
    """Where the tiles of the slide lie."""
    y, x = (np.asarray(store.array(f"{TILES}/obs/{name}")[:], np.int64) for name in "yx")
    return TilePlaces(y, x, task.grid.l0_extent)


def _tile_mm2(task: SlideTask) -> float | None:
    return None if task.mpp is None else (task.grid.l0_extent * task.mpp / 1000) ** 2


def _forget_failed(counts: NDArray[np.float32], tiles: TilePlaces, grid: DetectGrid, failed: list[tuple[int, int]]) -> None:
    """What tiles count that meet a patch which gave nothing is not known."""
    extent = grid.rows.size * grid.scale
    for row, col in failed:
        y, x = (float(grid.l0_origins(np.array([index]))[0]) for index in (row, col))
        counts[tiles.near(y, x, y + extent, x + extent)] = np.nan


def _drop_parts(store: SlideStore, head: str) -> None:
    """Remove what was joined, after its entries no longer name it."""
    stage, place = head_stage(head), f"{parts_place(head)}/"
    with store.committing():
        for unit, entry in store.ledger(stage).items():
            kept = {key: seen for key, seen in entry["objects"].items() if not key.startswith(place)}
            if len(kept) < len(entry["objects"]):
                store.folder.put(entry_key(stage, unit), pack({**entry, "objects": kept}))
        store.folder.delete_all(place.rstrip("/"))
