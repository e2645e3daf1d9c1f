"""The sections of `bench_reading` that are not about one reader's speed: the whole program, sparse tile lists, memory."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.pictures import needed_pieces
from benchmarks.readers import BATCH, count_reads, read_shards
from tilestream.geometry import Size, TileGrid
from tilestream.sources import open_source
from tilestream.sources.base import Source, SourceOptions
from tilestream.tiles.buffer_limits import count_open
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.tile_reader import TileReader

Row = dict[str, Any]
Tiles = tuple[NDArray[np.int64], NDArray[np.int64]]

MIB = 1024**2
TILE = 224
SPEC = ReadSpec(0, 1.0, TILE, 1.0)
KEPT = 0.4
SLACK = 8 * MIB
"""Bytes for the numbers of one shard's tiles and for pages of the decoder's own code."""


def sample(side: int) -> str:
    """Address of the made slide of a side in px."""
    return f"sample://he?width={side}&height={side}"


def all_tiles(side: int, edge: str = "pad") -> Tiles:
    """(n,) y and x of all tiles, level-0 px."""
    grid = TileGrid(Size(side, side), TILE, TILE, 1.0, "drop" if edge == "drop" else "pad")
    row, col = grid.candidates()
    return grid.l0_origins(row), grid.l0_origins(col)


# -- program ------------------------------------------------------------------------------------------------------------


def measure_program(chosen: argparse.Namespace, folder: Path) -> list[Row]:
    """One row for each number of threads."""
    places = all_tiles(chosen.side)
    with open_source(sample(chosen.side), SourceOptions()) as source:
        return [_program_row(chosen, folder, source, places, threads) for threads in chosen.threads]


def _program_row(chosen: argparse.Namespace, folder: Path, source: Source, places: Tiles, threads: int) -> Row:
    bare, runs = [], []
    rounds = max(1, min(3, chosen.rounds))
    with ThreadPoolExecutor(threads) as pool:
        reader = TileReader(source, SPEC, pool=pool, threads=threads, batch=BATCH)
        for number in range(rounds):
            start = time.perf_counter()
            read_shards(reader, *places, chosen.shard_tiles)
            bare.append(time.perf_counter() - start)
            runs.append(_run_program(chosen, folder / f"{threads}-{number}", threads))
    tiles = len(places[0])
    whole, shards = [run["program"] for run in runs], [run["shards"] for run in runs]
    middle = sorted(runs, key=lambda run: run["program"])[len(runs) // 2]
    return {
        "side": chosen.side,
        "tiles": tiles,
        "threads": threads,
        "reader_tiles_per_second": tiles / median(bare),
        "program_tiles_per_second": tiles / median(whole),
        "shards_tiles_per_second": tiles / median(shards),
        "program_ratio": median(a / b for a, b in zip(bare, whole, strict=True)),
        "shards_ratio": median(a / b for a, b in zip(bare, shards, strict=True)),
        "seconds": {"reader": bare, "program": whole, "shards": shards},
        "seconds_by_stage": middle["stages"],
    }


def _run_program(chosen: argparse.Namespace, output: Path, threads: int) -> Row:
    """Seconds of one run from its first shard on: all of it, up to the last shard, and by stage."""
    import tilestream
    from tilestream.runner.reporter import Reporter

    class Watch(Reporter):
        last_shard = slide = 0.0

        def shard_done(self, report: Any) -> None:
            self.last_shard = time.perf_counter()

        def slide_done(self, result: Any) -> None:
            self.slide = time.perf_counter()

    watch = Watch()
    config = {
        "slides": sample(chosen.side),
        "output": str(output),
        "tiles": {"size": TILE, "level": 0, "tissue": "none"},
        "encoder": "benchmarks.encoders:one_pixel",
        "pool": "none",
        "compute": {"scheduler": "inline", "threads": threads, "batch_size": BATCH, "shard_tiles": chosen.shard_tiles},
    }
    summary = tilestream.run(config, reporter=watch)
    if summary.exit_code:
        raise RuntimeError(f"the run on {chosen.side} px ended with {summary.exit_code}")
    finishing = watch.slide - watch.last_shard
    return {"program": summary.embed_seconds, "shards": summary.embed_seconds - finishing, "stages": summary.seconds_by_stage}


def show_program(rows: list[Row]) -> None:
    """Ratios to the bare reader, and where the time goes."""
    print(
        f"\n{'program':>8} {'tiles':>7} {'thr':>3} {'reader t/s':>10} {'program t/s':>11} {'ratio':>6} {'shards t/s':>10} {'ratio':>6}  seconds by stage"
    )
    for row in rows:
        # Stages of two lanes overlap: they add up to more than the wall clock.
        stages = ", ".join(
            f"{stage} {seconds:.2f}" for stage, seconds in sorted(row["seconds_by_stage"].items(), key=lambda item: -item[1])
        )
        print(
            f"{row['side']:>8} {row['tiles']:>7} {row['threads']:>3} {row['reader_tiles_per_second']:>10.0f} {row['program_tiles_per_second']:>11.0f} "
            f"{row['program_ratio']:>6.2f} {row['shards_tiles_per_second']:>10.0f} {row['shards_ratio']:>6.2f}  {stages}"
        )


# -- sparse -------------------------------------------------------------------------------------------------------------


def measure_sparse(chosen: argparse.Namespace, _: Path) -> list[Row]:
    """One row for each size of shard."""
    y, x = all_tiles(chosen.side, "drop")
    kept = np.random.default_rng(0).random(len(y)) < KEPT
    y, x = y[kept], x[kept]
    rows = []
    with open_source(sample(chosen.side), SourceOptions()) as source, ThreadPoolExecutor(max(chosen.threads)) as pool:
        grid = source.segment_grid(0)
        assert grid is not None, "a sample is a TIFF"
        decoded = count_reads(source)
        for shard in sorted({min(256, chosen.shard_tiles), chosen.shard_tiles}):
            decoded.clear()
            read_shards(TileReader(source, SPEC, pool=pool, threads=max(chosen.threads), batch=BATCH), y, x, shard)
            least = sum(len(needed_pieces(y[k : k + shard], x[k : k + shard], TILE, grid.height)) for k in range(0, len(y), shard))
            assert len(decoded) >= least, "the reader decodes past read_segment, where nobody counts"
            rows.append(
                {
                    "side": chosen.side,
                    "tiles": len(y),
                    "shard_tiles": shard,
                    "decoded": len(decoded),
                    "least": least,
                    "decoded_per_tile": len(decoded) / max(1, len(y)),
                    "excess": len(decoded) / max(1, least) - 1,
                }
            )
    return rows


def show_sparse(rows: list[Row]) -> None:
    """Decodes beside the fewest possible."""
    print(f"\n{'sparse':>8} {'tiles':>7} {'shard':>6} {'decoded':>8} {'least':>8} {'a tile':>7} {'excess':>7}")
    for row in rows:
        print(
            f"{row['side']:>8} {row['tiles']:>7} {row['shard_tiles']:>6} {row['decoded']:>8} {row['least']:>8} "
            f"{row['decoded_per_tile']:>7.2f} {row['excess']:>7.1%}"
        )


# -- memory -------------------------------------------------------------------------------------------------------------


def measure_memory(chosen: argparse.Namespace, _: Path) -> list[Row]:
    """One row for each side."""
    rows = []
    for side in chosen.sides:
        open_source(sample(side), SourceOptions()).close()  # made before it is measured
        call = [sys.executable, "-m", "benchmarks.reading_claims", str(side), str(max(chosen.threads)), str(chosen.shard_tiles)]
        done = subprocess.run(call, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"reading {side} px ended with {done.returncode}:\n{done.stderr}")
        rows.append(json.loads(done.stdout))
    return rows


def reading_bound(source: Source, places: Tiles, shard_tiles: int, threads: int) -> int:
    """Bytes that reading may hold: open batches and two more, what threads hold to decode, and slack."""
    grid = source.segment_grid(0)
    shards = [(places[0][k : k + shard_tiles], places[1][k : k + shard_tiles]) for k in range(0, len(places[0]), shard_tiles)]
    opened = max(count_open(SPEC, grid, source.info.size, y, x, batch=BATCH, threads=threads).batches for y, x in shards)
    return (opened + 2) * BATCH * TILE**2 * 3 + (threads + 1) * source.held_bytes(0, SPEC.cover**2) + SLACK


def read_alone(side: int, threads: int, shard_tiles: int) -> Row:
    """Read a whole slide and return what it added to this process's resident memory."""
    try:
        from tilestream.stages.hardware import settle_allocator

        settle_allocator(computes=True)  # as a worker does
    except ImportError:  # without torch
        pass
    places = all_tiles(side)
    with open_source(sample(side), SourceOptions()) as source, ThreadPoolExecutor(threads) as pool:
        reader = TileReader(source, SPEC, pool=pool, threads=threads, batch=BATCH)
        # Writing 5 sets the high-water mark back to what is resident now (proc(5)).
        Path("/proc/self/clear_refs").write_text("5")
        baseline = _resident("VmHWM")
        read_shards(reader, *places, shard_tiles)
        added, bound = _resident("VmHWM") - baseline, reading_bound(source, places, shard_tiles, threads)
    return {
        "side": side,
        "tiles": len(places[0]),
        "threads": threads,
        "image_mib": side * side * 3 / MIB,
        "baseline_mib": baseline / MIB,
        "added_mib": added / MIB,
        "bound_mib": bound / MIB,
    }


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def show_memory(rows: list[Row]) -> None:
    """What reading added beside its bound."""
    print(f"\n{'memory':>8} {'tiles':>7} {'thr':>3} {'image MiB':>10} {'before':>7} {'added':>7} {'bound':>7}")
    for row in rows:
        print(
            f"{row['side']:>8} {row['tiles']:>7} {row['threads']:>3} {row['image_mib']:>10.0f} {row['baseline_mib']:>7.0f} "
            f"{row['added_mib']:>7.1f} {row['bound_mib']:>7.1f}"
        )
    added = [row["added_mib"] for row in rows]
    print(
        f"largest over smallest: {max(added) / max(min(added), 1e-9):.2f}; below the bound: {all(r['added_mib'] <= r['bound_mib'] for r in rows)}"
    )


@dataclass(frozen=True)
class Claim:
    """A section of the benchmark."""

    measure: Callable[[argparse.Namespace, Path], list[Row]]
    show: Callable[[list[Row]], None]


CLAIMS = {
    "program": Claim(measure_program, show_program),
    "sparse": Claim(measure_sparse, show_sparse),
    "memory": Claim(measure_memory, show_memory),
}

if __name__ == "__main__":
    print(json.dumps(read_alone(*map(int, sys.argv[1:]))))
