"""Claim: tiles are read near the speed of the decoder, and many times faster than through OpenSlide and PIL.

    python -m benchmarks.bench_reading [--side 4096] [--rounds 5] [--threads 1 2] [--only jpeg] [--json]

One run, rounds interleaved, medians. A rate is output pixels a second. The floor decodes each file tile once into a buffer that is used
again, from bytes already in memory: nothing is copied, nothing is read. Readers that are not installed are left out, and named.
The images are one made slide, 4:2:0 JPEG of quality 85 and the same pixels in other codecs.
"""

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

from tilestream.geometry import Region
from tilestream.reading import PixelBuffers, TileReader
from tilestream.readspec import ReadSpec
from tilestream.sources.base import Source, SourceOptions, empty_pixels
from tilestream.sources.jpeg import decode_stream
from tilestream.sources.sample import ensure_sample
from tilestream.sources.tiff import TiffSource
from tilestream.sources.zarr import ZarrSource

SHARD, BATCH = 2048, 16
CODECS = {
    "jpeg": {"compression": "jpeg", "compressionargs": {"level": 85}, "photometric": "ycbcr", "subsampling": (2, 2)},
    "jpeg2000": {"compression": "jpeg2000", "compressionargs": {"level": 60}, "photometric": "rgb"},
    "deflate": {"compression": "deflate", "photometric": "rgb"},
}


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    codec: str
    file_tile: int
    tile: int
    threads: int


CASES = [
    *(
        Case("jpeg", f, t, n)
        for f, t in ((240, 224), (256, 224), (256, 256), (240, 256), (256, 512), (512, 224), (512, 512))
        for n in (1, 2)
    ),
    *(Case(codec, 256, 224, n) for codec in ("jpeg2000", "deflate", "ome-zarr") for n in (1, 2)),
]


def write_images(folder: Path, side: int, cases: list[Case]) -> dict[tuple[str, int], Source]:
    """The image of each codec and file tile, open."""
    with TiffSource(str(ensure_sample(f"sample://he?width={side}&height={side}")), SourceOptions()) as sample:
        pixels = sample.read_region(0, Region(0, 0, side, side))
    opened: dict[tuple[str, int], Source] = {}
    for codec, file_tile in dict.fromkeys((case.codec, case.file_tile) for case in cases):
        path = folder / f"{codec}-{file_tile}"
        if codec == "ome-zarr":
            zarr.create_array(path, shape=pixels.shape, chunks=(file_tile, file_tile, 3), dtype="u1")[:] = pixels
            opened[codec, file_tile] = ZarrSource(str(path), SourceOptions())
        else:
            path = path.with_suffix(".tif")
            tifffile.imwrite(
                path, pixels, tile=(file_tile, file_tile), metadata=None, resolution=(40_000, 40_000, "CENTIMETER"), **CODECS[codec]
            )
            opened[codec, file_tile] = TiffSource(str(path), SourceOptions())
    return opened


def corners(source: Source, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) y and x of the tiles that lie inside the image, row by row."""
    steps = np.arange(source.info.size.height // tile, dtype=np.int64) * tile
    y, x = np.meshgrid(steps, steps, indexing="ij")
    return y.ravel(), x.ravel()


def decode_all(source: Source, threads: int, pool: ThreadPoolExecutor) -> Callable[[], int]:
    """The floor: every piece once, and the number of pixels; for codecs without a stream of their own, `read_segment`."""
    grid = source.segment_grid(0)
    assert grid is not None
    cells = list(np.ndindex(grid.rows, grid.cols))
    streams = None
    if isinstance(source, TiffSource) and source.has_jpeg_streams(0):
        streams = [source.encoded_segment(0, row, col) for row, col in cells]

    def part(first: int) -> None:
        buffer = empty_pixels(grid.height, grid.width, 3)
        for number in range(first, len(cells), threads):
            if streams is None:
                source.read_segment(0, *cells[number])
            else:
                decode_stream(streams[number] or b"", buffer)

    def run() -> int:
        list(pool.map(part, range(threads)))
        return source.info.size.height * source.info.size.width

    return run


def read_tiles(source: Source, tile: int, threads: int, pool: ThreadPoolExecutor) -> Callable[[], int]:
    """Our reader over all tiles, in shards."""
    y, x = corners(source, tile)
    buffers = PixelBuffers()
    reader = TileReader(source, ReadSpec(0, 1.0, tile, 1.0), pool=pool, threads=threads, batch=BATCH, buffers=buffers)

    def run() -> int:
        for start in range(0, len(y), SHARD):
            for batch in reader.read(y[start : start + SHARD], x[start : start + SHARD]):
                assert not batch.failed
                buffers.give(batch.pixels)
        return len(y) * tile * tile

    return run


def one_by_one(source: Source, tile: int, threads: int, pool: ThreadPoolExecutor, make_read: Callable[[str], Any]) -> Callable[[], int]:
    """A reader of single regions, each thread with a handle of its own."""
    y, x = corners(source, tile)
    handles = [make_read(source.info.address) for _ in range(threads)]

    def part(first: int) -> None:
        for number in range(first, len(y), threads):
            handles[first](int(y[number]), int(x[number]), tile)

    def run() -> int:
        list(pool.map(part, range(threads)))
        return len(y) * tile * tile

    return run


def _openslide_pil(path: str) -> Any:
    slide = importlib.import_module("openslide").OpenSlide(path)
    return lambda y, x, tile: np.asarray(slide.read_region((x, y), 0, (tile, tile)).convert("RGB"))


def _openslide_raw(path: str) -> Any:
    source = importlib.import_module("tilestream.sources.openslide").OpenSlideSource(path, SourceOptions())
    return lambda y, x, tile: source.read_region(0, Region(y, x, tile, tile))


def _tiffslide(path: str) -> Any:
    slide = importlib.import_module("tiffslide").TiffSlide(path)
    return lambda y, x, tile: slide.read_region((x, y), 0, (tile, tile), as_array=True)


def _cucim(path: str) -> Any:
    slide = importlib.import_module("cucim").CuImage(path)
    return lambda y, x, tile: np.asarray(slide.read_region((x, y), (tile, tile), 0))


def _pyvips(path: str) -> Any:
    region = importlib.import_module("pyvips").Region.new(importlib.import_module("pyvips").Image.new_from_file(path))
    return lambda y, x, tile: region.fetch(x, y, tile, tile)


OTHERS = {"openslide+pil": _openslide_pil, "openslide raw": _openslide_raw, "tiffslide": _tiffslide, "cucim": _cucim, "pyvips": _pyvips}
NEEDS = {"openslide+pil": "openslide", "openslide raw": "openslide", "tiffslide": "tiffslide", "cucim": "cucim", "pyvips": "pyvips"}


def measure(case: Case, source: Source, rounds: int, others: dict[str, Any]) -> dict[str, Any]:
    """Median output MPix/s of each reader on one image."""
    with ThreadPoolExecutor(case.threads) as pool:
        runs = {
            "floor": decode_all(source, case.threads, pool),
            "tilestream": read_tiles(source, case.tile, case.threads, pool),
        }
        if case.codec == "jpeg":
            runs |= {name: one_by_one(source, case.tile, case.threads, pool, make) for name, make in others.items()}
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                pixels = run()
                if number:  # the first round warms caches
                    rates[name].append(pixels / (time.perf_counter() - start) / 1e6)
    found = {name: statistics.median(each) for name, each in rates.items()}
    ours = found["tilestream"]
    return {
        **vars(case),
        "mpix_per_second": found,
        "tiles_per_second": ours * 1e6 / case.tile**2,
        "floor_ratio": statistics.median(f / o for f, o in zip(rates["floor"], rates["tilestream"], strict=True)),
        "speedup": ours / found["openslide+pil"] if "openslide+pil" in found else None,
    }


def count_decodes(source: Source, kept: float, tile: int = 224) -> dict[str, float]:
    """File tiles decoded for a random part of the tiles, in shards, over the least possible."""
    y, x = corners(source, tile)
    keep = np.random.default_rng(0).random(len(y)) < kept
    y, x = y[keep], x[keep]
    grid = source.segment_grid(0)
    assert grid is not None
    decoded, least = 0, 0

    class Counting(type(source)):  # type: ignore[misc]
        def read_segment(self, *place: Any) -> Any:
            nonlocal decoded
            decoded += 1
            return super().read_segment(*place)

    with Counting(source.info.address, SourceOptions()) as counted, ThreadPoolExecutor(2) as pool:
        reader = TileReader(counted, ReadSpec(0, 1.0, tile, 1.0), pool=pool, threads=2, batch=BATCH)
        for start in range(0, len(y), 256):
            part = slice(start, start + 256)
            for _ in reader.read(y[part], x[part]):
                pass
            least += len(
                {(r, c) for a, b in zip(y[part], x[part], strict=True)
                 for r in range(a // grid.height, (a + tile - 1) // grid.height + 1)
                 for c in range(b // grid.width, (b + tile - 1) // grid.width + 1)}
            )  # fmt: skip
    return {"tiles": len(y), "decoded": decoded, "least": least, "ratio": decoded / least}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096, help="side of the image in px")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", help="only these; default 1 and 2")
    parser.add_argument("--only", nargs="+", help="only these codecs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    cases = [c for c in CASES if c.codec in (chosen.only or c.codec) and c.threads in (chosen.threads or (c.threads,))]
    cases += [Case(c.codec, c.file_tile, c.tile, n) for c in CASES if c.threads == 1 for n in chosen.threads or () if n > 2]
    others, missing = {}, []
    for name, make in OTHERS.items():
        try:
            importlib.import_module(NEEDS[name])
            others[name] = make
        except (ImportError, OSError):
            missing.append(name)
    with tempfile.TemporaryDirectory() as folder:
        sources = write_images(Path(folder), chosen.side, cases)
        rows = [measure(case, sources[case.codec, case.file_tile], chosen.rounds, others) for case in cases]
        sparse = {f"{codec} {side}": count_decodes(sources[codec, side], 0.4) for codec, side in sources if codec == "jpeg"}
        for source in sources.values():
            source.close()
    told = {"rows": rows, "decodes_at_40_percent": sparse, "left_out": missing}
    if chosen.json:
        print(json.dumps(told, indent=1))
        return told
    _print_table(rows)
    for name, found in sparse.items():
        print(f"40 % random tissue, {name} px file tiles: {found['decoded']} decoded, {found['least']} the least: {found['ratio']:.3f}")
    print(f"left out, not installed: {', '.join(missing) or 'nothing'}")
    return told


def _print_table(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'codec':>9} {'file':>5} {'tile':>5} {'thr':>4} {'MPix/s':>7} {'tiles/s':>8} {'floor/ours':>10} {'x PIL':>6} {'x 1 thr':>7}  others, MPix/s"
    )
    single = {(r["codec"], r["file_tile"], r["tile"]): r["tiles_per_second"] for r in rows if r["threads"] == 1}
    for row in rows:
        base = single.get((row["codec"], row["file_tile"], row["tile"]))
        rates = row["mpix_per_second"]
        rest = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items() if name != "tilestream")
        print(
            f"{row['codec']:>9} {row['file_tile']:>5} {row['tile']:>5} {row['threads']:>4} {rates['tilestream']:>7.0f} "
            f"{row['tiles_per_second']:>8.0f} {row['floor_ratio']:>10.2f} {row['speedup'] or float('nan'):>6.1f} "
            f"{row['tiles_per_second'] / base if base else float('nan'):>7.2f}  {rest}"
        )


if __name__ == "__main__":
    main()
