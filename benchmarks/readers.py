"""The contestants of `bench_reading`: each reads all tiles of a case, in one process, with a given number of threads.

A contestant is a context manager that takes a `Case`, a thread pool and its number of threads, opens what it needs, and yields a function
without arguments that reads everything once. To add one, write it and name it in `CONTESTANTS`.
"""

import importlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from benchmarks.pictures import OUR_SHARD, Case
from tilestream.sources import open_source
from tilestream.sources.base import Source, SourceOptions
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.tile_reader import TileReader

BATCH = 16
"""Tiles a batch, as the program has it on a CPU."""

Read = Callable[[], None]
Opener = Callable[[Case, ThreadPoolExecutor, int], AbstractContextManager[Read]]
TIFFS = frozenset({"jpeg", "jpeg2000", "deflate"})


@dataclass(frozen=True)
class Contestant:
    """One way to read."""

    name: str
    open: Opener
    needs: tuple[str, ...] = ()
    """Modules without which it is left out."""
    codecs: frozenset[str] = TIFFS | {"ome-zarr"}
    """Formats that it reads."""
    decode: Literal["cpu", "gpu"] = "cpu"
    """Where pixels are decoded; chosen by `--decode`."""

    def missing(self) -> str:
        """Why it cannot take part, or ""."""
        for module in self.needs:
            try:
                importlib.import_module(module)
            except (ImportError, OSError) as error:  # OSError: the Python part is there, its library is not
                return f"{module} cannot be imported ({error})"
        return ""


# -- the floor ----------------------------------------------------------------------------------------------------------


@contextmanager
def decode_floor(case: Case, pool: ThreadPoolExecutor, threads: int) -> Iterator[Read]:
    """Read the bytes of each file tile that the case needs and decode them, once; pixels go to a buffer that is used again."""
    with ExitStack() as stack:
        decode = _zarr_chunks(case) if case.picture.codec == "ome-zarr" else _tiff_tiles(case, stack)

        def run(part: list[tuple[int, int]]) -> None:
            for row, col in part:
                decode(row, col)

        parts = shares(case.file_tiles, threads)
        yield lambda: for_each(run, parts, pool, threads)


def _tiff_tiles(case: Case, stack: ExitStack) -> Callable[[int, int], None]:
    import simplejpeg

    with tifffile.TiffFile(case.picture.path) as tif:
        page = tif.pages[0]
        offsets, counts, tables, codec = page.dataoffsets, page.databytecounts, page.jpegtables, int(page.compression)
    cols, side = -(-case.picture.side // case.picture.piece), case.picture.piece
    file = os.open(case.picture.path, os.O_RDONLY)
    stack.callback(os.close, file)
    local = threading.local()
    head = tables[:-2] if tables else b"\xff\xd8"
    decompress = tifffile.TIFF.DECOMPRESSORS[codec]

    def decode(row: int, col: int) -> None:
        if not hasattr(local, "buffer"):
            local.buffer = unaligned(side)
        cell = row * cols + col
        data = os.pread(file, counts[cell], offsets[cell])
        if case.picture.codec == "jpeg":
            simplejpeg.decode_jpeg(head + data[2:], "RGB", fastdct=False, fastupsample=False, buffer=local.buffer)
        elif case.picture.codec == "deflate":
            decompress(data, out=local.buffer.reshape(-1))
        else:  # the JPEG 2000 decoder has no use for a buffer: it copies into it
            decompress(data)

    return decode


def unaligned(side: int) -> NDArray[np.uint8]:
    """(side, side, 3) uint8 at 8 mod 32 bytes, where libjpeg-turbo's AVX2 path is fastest."""
    raw = np.empty(side * side * 3 + 64, np.uint8)
    start = (8 - raw.ctypes.data) % 32
    return raw[start : start + side * side * 3].reshape(side, side, 3)


def _zarr_chunks(case: Case) -> Callable[[int, int], None]:
    import imagecodecs

    root, local, size = case.picture.path / "0" / "c" / "0", threading.local(), case.picture.piece**2 * 3

    def decode(row: int, col: int) -> None:
        if not hasattr(local, "buffer"):
            local.buffer = bytearray(size)
        imagecodecs.zstd_decode((root / str(row) / str(col)).read_bytes(), out=local.buffer)

    return decode


# -- tilestream ---------------------------------------------------------------------------------------------------------


def _ours(backend: str) -> Opener:
    @contextmanager
    def opened(case: Case, pool: ThreadPoolExecutor, threads: int) -> Iterator[Read]:
        chosen = "zarr" if case.picture.codec == "ome-zarr" else backend
        with open_source(str(case.picture.path), SourceOptions(backend=chosen)) as source:
            reader = TileReader(source, ReadSpec(0, 1.0, case.tile, 1.0), pool=pool, threads=threads, batch=BATCH)
            yield lambda: read_shards(reader, *case.places)

    return opened


def read_shards(reader: TileReader, l0_y: NDArray[np.int64], l0_x: NDArray[np.int64], shard: int = OUR_SHARD) -> None:
    """Read a tile list shard by shard and give every buffer back at once."""
    for start in range(0, len(l0_y), shard):
        for batch in reader.read(l0_y[start : start + shard], l0_x[start : start + shard]):
            if batch.failed:
                raise RuntimeError(f"tiles failed: {batch.failed}")
            reader.buffers.give(batch.pixels)


# -- readers that take one tile at a time -------------------------------------------------------------------------------


def tile_by_tile(open_slide: Callable[[str], Any], read: Callable[[Any, int, int, int], NDArray[np.uint8]]) -> Opener:
    """A contestant from `open_slide(path)` and `read(slide, y, x, side)`. Each thread has a slide of its own: none waits for a lock."""

    @contextmanager
    def opened(case: Case, pool: ThreadPoolExecutor, threads: int) -> Iterator[Read]:
        local, slides = threading.local(), []

        def run(part: list[tuple[int, int]]) -> None:
            if not hasattr(local, "slide"):
                local.slide = open_slide(str(case.picture.path))
                slides.append(local.slide)
            for y, x in part:
                pixels = read(local.slide, y, x, case.tile)
                if pixels.shape[:2] != (case.tile, case.tile):
                    raise RuntimeError(f"got {pixels.shape} for a tile of {case.tile} px")

        parts = shares(list(zip(*(axis.tolist() for axis in case.places), strict=True)), threads)
        try:
            yield lambda: for_each(run, parts, pool, threads)
        finally:
            for slide in slides:
                if hasattr(slide, "close"):
                    slide.close()

    return opened


def _open_openslide(path: str) -> Any:
    import openslide

    return openslide.OpenSlide(path)


def _read_pil(slide: Any, y: int, x: int, side: int) -> NDArray[np.uint8]:
    return np.asarray(slide.read_region((x, y), 0, (side, side)).convert("RGB"))


def _open_tiffslide(path: str) -> Any:
    import tiffslide

    return tiffslide.TiffSlide(path)


def _read_tiffslide(slide: Any, y: int, x: int, side: int) -> NDArray[np.uint8]:
    return np.asarray(slide.read_region((x, y), 0, (side, side), as_array=True))


def _open_cucim(path: str) -> Any:
    import cucim

    return cucim.CuImage(path)


def _read_cucim(slide: Any, y: int, x: int, side: int) -> NDArray[np.uint8]:
    return np.asarray(slide.read_region(location=(x, y), size=(side, side), level=0))


def _open_pyvips(path: str) -> Any:
    import pyvips

    return pyvips.Image.tiffload(path)


def _read_pyvips(slide: Any, y: int, x: int, side: int) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = slide.crop(x, y, side, side).numpy()
    return pixels


def _open_zarr(path: str) -> Any:
    import zarr

    return zarr.open_array(f"{path}/0", mode="r")


def _read_zarr(array: Any, y: int, x: int, side: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.moveaxis(np.asarray(array[:, y : y + side, x : x + side]), 0, -1))


def shares(items: list[tuple[int, int]], threads: int) -> list[list[tuple[int, int]]]:
    """Runs of neighbours, four for each thread: long enough for a reader's cache, short enough to end together."""
    step = max(1, -(-len(items) // (4 * threads)))
    return [items[k : k + step] for k in range(0, len(items), step)]


def for_each(run: Callable[[Any], None], parts: list[Any], pool: ThreadPoolExecutor, threads: int) -> None:
    """Run all parts; without the pool where there is one thread."""
    if threads == 1:
        for part in parts:
            run(part)
        return
    for _ in pool.map(run, parts):
        pass


FLOOR, OURS, PIL = "decode floor", "tilestream", "openslide+pil"

CONTESTANTS = (
    Contestant(FLOOR, decode_floor, needs=("simplejpeg",)),
    Contestant(OURS, _ours("tiff")),
    Contestant(PIL, tile_by_tile(_open_openslide, _read_pil), needs=("openslide", "PIL"), codecs=TIFFS),
    Contestant("openslide raw", _ours("openslide"), needs=("openslide",), codecs=TIFFS),
    Contestant("zarr tile by tile", tile_by_tile(_open_zarr, _read_zarr), codecs=frozenset({"ome-zarr"})),
    Contestant("tiffslide", tile_by_tile(_open_tiffslide, _read_tiffslide), needs=("tiffslide",), codecs=TIFFS),
    Contestant("cucim", tile_by_tile(_open_cucim, _read_cucim), needs=("cucim",), codecs=TIFFS),
    Contestant("pyvips", tile_by_tile(_open_pyvips, _read_pyvips), needs=("pyvips",), codecs=TIFFS),
)
"""In the order of the table. A reader that decodes on the GPU goes here too, with `decode="gpu"`; `--decode gpu` or `both` then runs it."""


def count_reads(source: Source) -> list[tuple[int, int]]:
    """Make a source note (row, column) of each piece that it decodes, in the list that is returned."""
    decoded: list[tuple[int, int]] = []
    original = source.read_segment

    def read_segment(level: int, row: int, col: int, *rest: Any, **more: Any) -> Any:
        decoded.append((row, col))  # one bytecode of a list: safe between threads
        return original(level, row, col, *rest, **more)

    source.read_segment = read_segment  # type: ignore[method-assign]
    return decoded
