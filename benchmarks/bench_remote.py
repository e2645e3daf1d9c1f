"""How near a slide on a server comes to the speed of the line or of the local disk, whichever is lower, and in how few requests.

    python -m benchmarks.bench_remote [--formats svs ...] [--tiles 2000] [--steady 8000] [--latency 0.03] [--gbit 1] [--threads 2] [--tiffslide PYTHON] [--rounds 3] [--json]

The slide is a sample in each format; tiles are read as the program reads them, in shards of 2,048, the first `--tiles` of all and of 40 % in blobs, which
has large pieces of tissue, or small ones (`--blobs 6`). The server is a process of its own on this machine that waits `--latency` seconds before each answer
and paces all answers together to `--gbit`: it stands in for `tc netem`, which needs a kernel module; it takes 1 to 10 % of a core. A new connection costs
no more than another request, which favours who opens many.

local     tiles/s from the disk.   line     tiles/s at which the line carries the bytes that the tiles need.
share     tiles/s over the lower of both; 0.8 is the aim. The first wait for the server is in it, which is much of the 0.2 s that 2,000 tiles take.
steady    the same of up to `--steady` tiles, as many as the slide has, of which the next shard is begun while one is read, as a run does.
open     seconds to open the slide, which are not in the tiles/s.
bytes     bytes asked for over those that reading from the disk takes of the files, each once; requests for 1,000 tiles; the opening is counted.
tiffslide with fsspec over HTTP, by the Python of an environment that holds it (it caps zarr); of the SVS, fewer tiles, for it is slow. Rounds alternate.
"""

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.remote_formats import FORMATS, write_formats
from tilestream.geometry import TileGrid
from tilestream.sources import open_source
from tilestream.sources.base import Source, SourceOptions
from tilestream.sources.storage.local import LocalBytes
from tilestream.stages.hardware import settle_allocator
from tilestream.stages.worker_settings import LANES
from tilestream.store import zarr_chunks
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.tile_reader import TileReader

TILE, SHARD, SIDE = 224, 2048, 16384
Places = tuple[NDArray[np.int64], NDArray[np.int64]]
Row = dict[str, Any]

RIVAL = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
import tiffslide
url, threads, places = sys.argv[1], int(sys.argv[2]), [tuple(map(int, each.split(","))) for each in sys.argv[3:]]
slide = tiffslide.TiffSlide(url)
with ThreadPoolExecutor(threads) as pool:
    start = time.perf_counter()
    list(pool.map(lambda place: slide.read_region(place, 0, (224, 224), as_array=True), places))
    print(time.perf_counter() - start)
"""


@contextmanager
def served(folder: Path, latency: float, gbit: float) -> Iterator[tuple[str, Callable[[], Row]]]:
    """A server of a folder in a process of its own: its URL, and what tells what was asked of it since."""
    command = [sys.executable, "-m", "benchmarks.line_server", str(folder), str(latency), str(gbit * 1e9 / 8)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # our own
        assert process.stdout is not None, "it says its port"
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"

        def counts() -> Row:
            with urllib.request.urlopen(f"{url}/counts") as answer:  # our own
                told: Row = json.load(answer)
            return told

        try:
            yield url, counts
        finally:
            process.terminate()


def choose_places(source: Source, blobs: float) -> dict[str, Places]:
    """Top-left corners of tiles: all, and of 40 % in blobs, which are the larger the larger `blobs` is."""
    size = source.info.size
    grid = TileGrid(size, TILE, TILE, 1.0)
    rows, cols = size.height // TILE, size.width // TILE
    far = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(cols)[None])
    noise = np.fft.rfft2(np.random.default_rng(0).normal(size=(rows, cols)))
    field = np.fft.irfft2(noise * np.exp(-((far * blobs) ** 2)), (rows, cols))
    chosen = {"all tiles": np.ones((rows, cols), bool), "40 % in blobs": field >= np.quantile(field, 0.6)}
    return {name: (grid.l0_origins(row), grid.l0_origins(col)) for name, (row, col) in ((k, np.nonzero(v)) for k, v in chosen.items())}


def needed_bytes(path: str, places: Places) -> int:
    """Bytes of the files that reading the tiles from a disk takes once they are open, each range once."""
    taken: set[tuple[str, int, int]] = set()
    read, pread = LocalBytes.read, zarr_chunks._pread  # noqa: SLF001  # the two ways to a disk

    def noted(self: LocalBytes, start: int, count: int) -> bytes:
        taken.add((self.name, start, count))
        return read(self, start, count)

    def pnoted(name: str, offset: int, length: int | None) -> bytes | None:
        data = pread(name, offset, length)
        taken.add((name, offset, len(data or b"")))
        return data

    with patch.object(LocalBytes, "read", noted), patch.object(zarr_chunks, "_pread", pnoted):
        read_seconds(path, places, 1, taken.clear)
    return sum(count for _, _, count in taken)


def read_seconds(
    address: str, places: Places, threads: int, opened: Callable[[], object] = lambda: None, lanes: int = 1
) -> tuple[float, float]:
    """Seconds to open the slide, and to read tiles shard by shard, so many shards at once; `opened` is called between."""
    y, x = places
    began = time.perf_counter()
    with open_source(address, SourceOptions()) as source, ThreadPoolExecutor(threads) as pool:
        opened()
        start = time.perf_counter()
        reader = TileReader(source, ReadSpec(0, 1.0, TILE, 1.0), pool=pool, threads=threads, batch=64)

        def read(first: int) -> None:
            for batch in reader.read(y[first : first + SHARD], x[first : first + SHARD]):
                assert not batch.failed, "no tile fails"
                reader.buffers.give(batch.pixels)

        with ThreadPoolExecutor(lanes) as shards:
            list(shards.map(read, range(0, len(y), SHARD)))
        return start - began, time.perf_counter() - start


def rival_seconds(python: str, url: str, places: Places, threads: int) -> float:
    """Seconds in which tiffslide reads tiles, its opening not counted."""
    corners = [f"{x},{y}" for y, x in zip(*(each.tolist() for each in places), strict=True)]
    done = subprocess.run([python, "-c", RIVAL, url, str(threads), *corners], check=True, capture_output=True, text=True)  # the user's own
    return float(done.stdout)


def measure(chosen: argparse.Namespace) -> list[Row]:
    """One row for each format and choice of tiles."""
    rows: list[Row] = []
    with TemporaryDirectory() as folder, served(Path(folder), chosen.latency, chosen.gbit) as (url, counts):
        for name, path in write_formats(chosen.side, Path(folder), chosen.formats).items():
            with open_source(str(path), SourceOptions()) as here:
                choices = choose_places(here, chosen.blobs)
            rows += [{"format": name, "what": what, **_row(chosen, name, path, places, url, counts)} for what, places in choices.items()]
    return rows


def _first(places: Places, count: int) -> Places:
    return places[0][:count], places[1][:count]


def _steady(chosen: argparse.Namespace, path: Path, places: Places, url: str) -> float:
    """Tiles/s of a long list, over the lower of those from the disk and those that the line carries."""
    many = _first(places, chosen.steady)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(chosen.rounds):
        for each, address in zip(seconds, (str(path), f"{url}/{path.name}"), strict=True):
            each.append(read_seconds(address, many, chosen.threads, lanes=LANES)[1])
    line = needed_bytes(str(path), many) / (chosen.gbit * 1e9 / 8)
    return max(median(seconds[0]), line) / median(seconds[1])


def _row(chosen: argparse.Namespace, name: str, path: Path, chosen_places: Places, url: str, counts: Callable[[], Row]) -> Row:
    places = _first(chosen_places, chosen.tiles)
    tiles, needed, rivals = len(places[0]), needed_bytes(str(path), places), chosen.tiffslide if name == "svs" else ""
    seconds: dict[str, list[float]] = {"local": [], "open": [], "remote": [], "tiffslide": []}
    few = tuple(each[:: max(1, tiles // chosen.rival_tiles)][: chosen.rival_tiles] for each in places)
    asked: Row = {}
    rival: Row = {}
    for _ in range(chosen.rounds):
        seconds["local"].append(read_seconds(str(path), places, chosen.threads)[1])
        counts()
        for kind, spent in zip(("open", "remote"), read_seconds(f"{url}/{path.name}", places, chosen.threads), strict=True):
            seconds[kind].append(spent)
        asked = counts()
        if rivals:
            seconds["tiffslide"].append(rival_seconds(rivals, f"{url}/{path.name}", (few[0], few[1]), chosen.rival_threads))
            rival = counts()
    local, line, remote = tiles / median(seconds["local"]), tiles * chosen.gbit * 1e9 / 8 / needed, tiles / median(seconds["remote"])
    row = {
        "steady": _steady(chosen, path, chosen_places, url), "tiles": tiles, "local": local, "line": line, "remote": remote, "share": remote / min(local, line), "bytes": asked["bytes"] / needed,
        "requests": asked["requests"] / tiles * 1000, "at_once": asked["at_once"], "open": median(seconds["open"]), "seconds": seconds,
    }  # fmt: skip
    if rivals:
        speed, requests = len(few[0]) / median(seconds["tiffslide"]), rival["requests"] / len(few[0]) * 1000
        row |= {"tiffslide": speed, "tiffslide_requests": requests, "tiffslide_tiles": len(few[0])}
    return row


def show(rows: list[Row]) -> None:
    """The rows as a table."""
    print(
        f"{'format':<13} {'tiles':<14} {'local':>7} {'line':>7} {'remote':>7} {'share':>6} {'steady':>6} {'open s':>6} {'bytes':>6} {'requests':>8} {'tiffslide':>9} {'requests':>8}"
    )
    for row in rows:
        rival = f"{row['tiffslide']:>9.0f} {row['tiffslide_requests']:>8.0f}" if "tiffslide" in row else f"{'-':>9} {'-':>8}"
        print(
            f"{row['format']:<13} {row['what']:<14} {row['local']:>7.0f} {row['line']:>7.0f} {row['remote']:>7.0f} {row['share']:>6.2f} {row['steady']:>6.2f} {row['open']:>6.2f} {row['bytes']:>6.2f} "
            f"{row['requests']:>8.1f} {rival}"
        )
    print("tiles/s; bytes asked for over those needed; requests for 1,000 tiles")


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--blobs", type=float, default=24, help="width of the pieces of tissue in the second choice of tiles")
    parser.add_argument("--side", type=int, default=SIDE, help="side of the slide, px")
    parser.add_argument("--tiles", type=int, default=2000, help="tiles of each row of the table, at most")
    parser.add_argument("--steady", type=int, default=8000, help="tiles of the column `steady`, at most")
    parser.add_argument("--latency", type=float, default=0.03, help="seconds before each answer")
    parser.add_argument("--gbit", type=float, default=1.0, help="speed of the line, Gbit/s")
    parser.add_argument("--threads", type=int, default=2, help="threads that decode")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiffslide", default="", help="the Python of an environment with tiffslide, fsspec and aiohttp")
    parser.add_argument("--rival-tiles", type=int, default=100, help="tiles that tiffslide reads")
    parser.add_argument("--rival-threads", type=int, default=2, help="threads that tiffslide reads with")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    settle_allocator(computes=True)  # as a worker does before it reads
    rows = measure(chosen)
    if chosen.json:
        print(json.dumps(rows, indent=1))
    else:
        show(rows)
    return rows


if __name__ == "__main__":
    main()
