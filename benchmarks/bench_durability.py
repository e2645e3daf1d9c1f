"""Claim: claims, fences, checksums, ledger and fsync together cost under 3 % of the speed of reading with an encoder that costs nothing.

    python -m benchmarks.bench_durability [--side 16384] [--rounds 5] [--verify-rows 1000000] [--json]

In one run, in turns: the whole program as it is, and the same without claims, fences, checksums, ledger and fsync. That difference is as noisy as the machine,
so each part is timed as well where it is called: processor time, waiting, and system calls on files, for a shard and as shares of what the process used and of
the time it took while shards were in work. Other threads read while one waits for the disk: the share of the processor is what reading loses, the share of the
wall is what it would lose if nothing went on meanwhile. And how long `verify` takes over an output of many rows, in seconds for each GB; and the whole program
with decoding in a child process (`compute.isolate`).
"""

import argparse
import json
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np

import tilestream
from benchmarks.commit_parts import Parts
from tilestream.sources.made.slide import ensure_sample
from tilestream.store.folder import Folder
from tilestream.store.layout import Layout, TileColumns
from tilestream.store.lock import Claims
from tilestream.store.slide_store import SlideStore


def program(side: int, output: Path, *, durable: bool, isolate: bool = False) -> float:
    """Tiles a second of one run, start-up excluded."""
    shutil.rmtree(output, ignore_errors=True)
    config = {
        "slides": f"sample://he?width={side}&height={side}", "output": {"path": str(output), "save": ["tiles"]},
        "tiles": {"size": 224, "level": 0, "tissue": "none"}, "encoder": "benchmarks.encoders:one_pixel", "pool": "none",
        "compute": {"scheduler": "inline", "isolate": isolate},
    }  # fmt: skip
    with ExitStack() as stack:
        if not durable:
            stack.enter_context(mock.patch.object(Folder, "flush"))
            stack.enter_context(mock.patch.object(Folder, "flush_all"))
            for module in ("records", "slide_store"):
                stack.enter_context(mock.patch(f"tilestream.store.{module}.checksum", return_value=""))
            stack.enter_context(mock.patch.object(SlideStore, "record"))
            stack.enter_context(mock.patch.object(SlideStore, "_look"))
            stack.enter_context(mock.patch.object(Claims, "take", return_value=""))
        return tilestream.run(config).tiles_per_second


def parts_of_a_run(side: int, output: Path, rounds: int) -> dict[str, dict[str, float]]:
    """What each part takes, the median of some runs, and all of them together."""
    told = []
    for _ in range(rounds):
        with Parts() as parts:
            program(side, output, durable=True)
        told.append(parts.told())
        told[-1]["together"] = {name: sum(part[name] for part in told[-1].values()) for name in told[-1]["fence"]}
    return {part: {name: median(run[part][name] for run in told) for name in told[0][part]} for part in told[0]}


def verify(rows: int, dim: int, folder: Path) -> dict[str, float]:
    """Seconds of `verify` over a made store."""
    store = SlideStore(Folder(str(folder / "a.zarr")))
    layout = Layout(rows, dim, 2048, "float16")
    row, col = np.divmod(np.arange(rows), 1000)
    store.create(
        layout,
        TileColumns(row, col, row * 224, col * 224, np.ones(rows, np.float32), 224.0),
        {"recipe": {}, "source": {}},
        uns={},
        objects={},
    )
    rng = np.random.default_rng(0)
    for shard in range(layout.shards):
        part = layout.rows(shard)
        values = rng.normal(size=(part.stop - part.start, dim)).astype(np.float16)
        store.write_shard(
            shard, {"tables/tiles/X": values, "tables/tiles/obs/status/codes": np.zeros(len(values), np.int8)}, {"counts": {}}
        )
    store.seal()
    store.complete({"tiles": rows, "counts": {}})
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    start = time.perf_counter()
    damage = store.damage()
    seconds = time.perf_counter() - start
    assert damage == [], damage[:3]
    start = time.perf_counter()
    tilestream.open(folder / "a.zarr")
    opening = time.perf_counter() - start
    return {"rows": rows, "gb": size / 1e9, "seconds": seconds, "seconds_per_gb": seconds / (size / 1e9), "open_seconds": opening}


def main(arguments: list[str] | None = None) -> dict[str, object]:
    """Measure, print, and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--verify-rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    ensure_sample(f"sample://he?width={chosen.side}&height={chosen.side}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program(chosen.side, folder / "out", durable=True)  # warm
        pairs = [[program(chosen.side, folder / "out", durable=durable) for durable in (True, False)] for _ in range(chosen.rounds)]
        parts = parts_of_a_run(chosen.side, folder / "out", chosen.rounds)
        apart = [program(chosen.side, folder / "out", durable=True, isolate=True) for _ in range(min(3, chosen.rounds))]
        shutil.rmtree(folder / "out")
        checked = verify(chosen.verify_rows, chosen.dim, folder)
    safe, bare = (median(pair[k] for pair in pairs) for k in (0, 1))
    found: dict[str, object] = {
        "durable": safe,
        "without": bare,
        "cost": median(1 - a / b for a, b in pairs),
        "parts": parts,
        "isolated": median(apart),
        "verify": checked,
    }
    if chosen.json:
        print(json.dumps(found, indent=1))
    else:
        print(
            f"tiles/s: {safe:.0f} with checksums, ledger and fsync, {bare:.0f} without; cost {found['cost']:.1%} (median of {chosen.rounds} pairs)"
        )
        for part, of in parts.items():
            print(
                f"{part:>9}: {of['processor_share']:.2%} of the processor's time ({of['processor_ms']:.2f} ms a shard), "
                f"{of['wall_share']:.2%} of the wall ({of['wall_ms']:.2f} ms), {of['calls']:.1f} calls, {of['file_calls']:.1f} system calls on files"
            )
        print(f"tiles/s: {found['isolated']:.0f} with compute.isolate, which costs {1 - median(apart) / safe:.0%}")
        print(
            f"verify: {checked['rows']} rows, {checked['gb']:.2f} GB in {checked['seconds']:.2f} s, {checked['seconds_per_gb']:.2f} s a GB; open with its check {checked['open_seconds']:.2f} s"
        )
    return found


if __name__ == "__main__":
    main()
