"""The label image of a head that segments: OME-Zarr 0.5 in `labels/<head>`, written block by block, and its pyramid.

A label is the number of a class, counted from 1; 0 is what was not computed. A head that gives values has an image of float channels
instead, NaN where it was not computed. A block is one Zarr shard of the finest level; one that holds nothing is no object at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray

from tilestream.store.anndata_tables import CHECKED
from tilestream.store.folder import Folder
from tilestream.store.heads.block_bytes import coarser_block, encode_block
from tilestream.store.heads.columns import NOT_COMPUTED, head_stage
from tilestream.store.heads.ome import VERSION, Place, image_label
from tilestream.store.slide_store import SlideStore
from tilestream.store.zarr_chunks import ChunkReader, chunk_reader

MOST_CLASSES = 255
"""Classes that fit beside 0 into a byte."""

SMALLEST = 512
"""Longest side, px, of the coarsest level."""

LABELS = "labels/zarr.json"
"""Names the label images of a slide."""

HANDS = 4
"""Threads that encode and write blocks of one unit, or level, at once: zstd and the disk leave the others alone."""

Given = TypeVar("Given")

Block = tuple[int, int]
"""Row and column of a block."""


@dataclass(frozen=True)
class LabelImage:
    """The shape of what a head leaves."""

    head: str
    height: int
    """Of the finest level, px."""
    width: int
    block: int
    """Side of a block, px."""
    chunk: int
    """Side of a chunk, px; divides the block's."""
    l0_step: float
    """Level-0 px from pixel to pixel."""
    mpp: float | None
    """µm per level-0 px; None where the slide does not say."""
    classes: tuple[str, ...]
    """Names of the classes, or of the channels."""
    channels: int = 0
    """Float channels; 0 for labels."""
    probabilities: bool = False
    """Whether the probability of each class is kept as well, in 255 steps."""

    @property
    def path(self) -> str:
        """Of its group in the store."""
        return f"labels/{self.head}"

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Height and width of each level, each half of the one before."""
        found = [(self.height, self.width)]
        while max(found[-1]) > SMALLEST:
            found.append((-(-found[-1][0] // 2), -(-found[-1][1] // 2)))
        return found

    @property
    def place(self) -> Place:
        """Where its pixels lie."""
        step = self.l0_step * (self.mpp or 1.0)
        return Place(step, (step / 2, step / 2), None if self.mpp is None else "micrometer")

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel of the finest level, and of its probabilities, before compression."""
        return 4 * self.channels if self.channels else 1 + (len(self.classes) if self.probabilities else 0)

    def stored_bytes(self, computed: int) -> int:
        """Bytes of an image of so many computed px, before compression: all levels, and the indices of shards."""
        blocks = -(-self.height // self.block) * -(-self.width // self.block)
        indices = 2 * blocks * max(1, len(self.classes)) * (16 * (self.block // self.chunk) ** 2 + 64)
        return computed * self.pixel_bytes + computed * (4 * self.channels or 1) // 2 + indices + 65536

    def metadata(self) -> dict[str, bytes]:
        """The metadata of its group and arrays, by key."""
        made = Folder.in_memory("labels")
        group = zarr.create_group(made.store, path=self.path, attributes={"ome": self._about()})
        lead: tuple[int, ...] = (self.channels,) if self.channels else ()
        for level, sides in enumerate(self.levels):
            self._array(group, str(level), lead, sides, "float32" if self.channels else "uint8", np.nan if self.channels else 0)
        if self.probabilities:
            self._array(group, "probabilities", (len(self.classes),), self.levels[0], "uint8", 0)
        return {key: made.get(key) or b"" for key in made.names(self.path)}

    def _array(self, group: zarr.Group, name: str, lead: tuple[int, ...], sides: tuple[int, int], dtype: str, fill: float) -> None:
        group.create_array(
            name, shape=(*lead, *sides), dtype=dtype, fill_value=fill, compressors=CHECKED, dimension_names=[*("c" for _ in lead), "y", "x"],
            chunks=(*(1 for _ in lead), self.chunk, self.chunk), shards=(*lead, self.block, self.block),
        )  # fmt: skip

    def _about(self) -> dict[str, Any]:
        axes = "cyx" if self.channels else "yx"
        datasets = [{"path": str(k), "coordinateTransformations": self.place.transformations(k, axes)} for k in range(len(self.levels))]
        image = {"name": self.head, "axes": self.place.axes(axes), "datasets": datasets, "type": "nearest"}
        about: dict[str, Any] = {"version": VERSION, "multiscales": [image]}
        if self.channels:
            return {**about, "omero": {"channels": [{"label": name} for name in self.classes]}}
        return {**about, "image-label": image_label([NOT_COMPUTED, *self.classes])}


def make_labels(store: SlideStore, image: LabelImage, heads: Sequence[str]) -> None:
    """Write the metadata of a label image, and the list of all of them, where they are not as they should be.

    `heads` are the names of the heads of the slide that have label images.
    """
    made = Folder.in_memory("labels")
    zarr.create_group(made.store, path="labels", attributes={"ome": {"version": VERSION, "labels": sorted(heads)}})
    for key, data in {LABELS: made.get(LABELS) or b"", **image.metadata()}.items():
        if data != store.folder.get(key):
            store.folder.put(key, data)


def write_unit(
    store: SlideStore,
    image: LabelImage,
    unit: int,
    blocks: Mapping[Block, NDArray[Any]],
    probabilities: Mapping[Block, NDArray[np.uint8]],
    told: dict[str, Any],
) -> None:
    """Write the blocks of a unit, each (..., block, block) or less at the image's edge, then its entry in the ledger, which commits them."""
    given = [(name, place, values) for name, found in (("0", blocks), ("probabilities", probabilities)) for place, values in found.items()]
    with store.committing():
        keys = _together(lambda each: _write_block(store, image, *each), given)
        store.record(head_stage(image.head), unit, keys, told)


def write_levels(store: SlideStore, image: LabelImage, unit: int, more: Callable[[], Mapping[str, bytes]] = dict) -> None:
    """Write the coarser levels, each every second pixel of the one before, and their entry in the ledger as that of `unit`; then what `more` makes of them, by key.

    Memory bound: two blocks and a chunk, `HANDS` times.
    """
    keys = []
    for level in range(1, len(image.levels)):
        finer = store.array(f"{image.path}/{level - 1}")
        keys += _together(partial(_write_coarser, store, image, level, finer, chunk_reader(finer)), _there(store, image, level))
    objects = more()
    with store.committing():
        for key, data in objects.items():
            store.folder.put(key, data)
        store.record(head_stage(image.head), unit, [*keys, *objects], {})


def _there(store: SlideStore, image: LabelImage, level: int) -> list[Block]:
    """The blocks of a level below which something is."""
    there = {key.rsplit("/c/", 1)[-1] for key in store.folder.names(f"{image.path}/{level - 1}/c")}
    lead = "0/" if image.channels else ""
    return [
        (row, col)
        for row, col in _blocks(image, level)
        if any(f"{lead}{2 * row + down}/{2 * col + right}" in there for down in (0, 1) for right in (0, 1))
    ]


def _write_coarser(store: SlideStore, image: LabelImage, level: int, finer: Any, reader: ChunkReader | None, place: Block) -> str:
    if reader is not None:
        values = coarser_block(reader, place, image.levels[level - 1], image.block, image.chunk, image.channels)
    else:
        (row, col), side = place, 2 * image.block
        values = np.asarray(finer[..., row * side : (row + 1) * side, col * side : (col + 1) * side])[..., ::2, ::2]
    with store.committing():
        return _write_block(store, image, str(level), place, values)


def _together(write: Callable[[Given], str], given: Sequence[Given]) -> list[str]:
    """The keys of what `HANDS` threads write, in order."""
    if len(given) < 2:
        return [write(each) for each in given]
    with ThreadPoolExecutor(HANDS, thread_name_prefix="blocks") as pool:
        return list(pool.map(write, given))


def _blocks(image: LabelImage, level: int) -> Iterator[Block]:
    height, width = image.levels[level]
    return ((row, col) for row in range(-(-height // image.block)) for col in range(-(-width // image.block)))


def _write_block(store: SlideStore, image: LabelImage, name: str, place: Block, values: NDArray[Any]) -> str:
    """Write one block durably; its key. Where it holds nothing there is no object."""
    lead = "0/" if values.ndim == 3 else ""
    key = f"{image.path}/{name}/c/{lead}{place[0]}/{place[1]}"
    data = encode_block(values, image.block, image.chunk, np.nan if image.channels else 0)
    if data is None:
        store.folder.delete(key)
    else:
        store.folder.put(key, data)
    return key
