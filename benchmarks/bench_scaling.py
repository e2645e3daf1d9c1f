"""Claim: several devices work as one: n of them embed nearly n times as many tiles a second, one slide or many, and a person waits that much less.

    python -m benchmarks.bench_scaling [--devices 1 2 4] [--only one-vit-l twelve-vit-s ...] [--limit 570] [--set KEY=VALUE] [--json]
    python -m benchmarks.bench_scaling --device cpu --devices 1 2 [--tiles 400] [--slides 12]

Each run is the whole command in a fresh process, over one large made slide or over twelve smaller ones; first with empty caches of compilers and of
our own (cold), then with those that it left (warm). On CUDA a run sees the first n devices and n devices' share of the cores, and is told nothing
of workers; on a processor devices are workers. Runs are printed as they end; none is begun that would not end within `--limit` seconds.

  wall, first     seconds of the command, and until its first shard was committed
  steady          tiles/s from when as many shards were committed as there are devices to the end of the last one
  scaling, waits  steady over that of the fewest devices, and wall over theirs, of the same case and caches
  busy            part of the time in which tiles were in work that a device computed
  host, projected GiB of the worker that took most, and what the plan said; model: GiB of its weights in the run's number format
  equal           whether all rows have the bytes of the fewest devices' run; largest difference where not
then the parts of the wall clock, what its start went into and of that what the worker took that was asked first, and the share of each stage in devices times seconds while tiles were in work: more than one goes on at a time.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np

import tilestream
from benchmarks.bench_start import TILE, Ran, make_slide, run_command
from tilestream.stages.hardware import count_cuda

GIB = 1024**3
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
EMBEDDING = ("computing", "reading", "writing")
"""Parts of the wall clock in which tiles are in work."""

RESERVE = 5.0
"""Seconds of the limit that are kept for the end."""


@dataclass(frozen=True)
class Case:
    """Slides and what embeds them."""

    encoder: str
    large: bool
    """One large slide; otherwise several of a quarter of its tiles."""


ENCODERS = {
    "cuda": {"vit-l": "vit_large_patch16_224", "vit-s": "vit_small_patch16_224"},
    "cpu": {"tiny": "tilestream-tiny"},
}
LARGE_TILES = {"cuda": 182**2, "cpu": 16**2}
"""Of the large slide: one of 40,960 px on CUDA."""

CASES = {
    device: {
        f"{count}-{short}": Case(encoder, large) for short, encoder in names.items() for count, large in (("one", True), ("twelve", False))
    }
    for device, names in ENCODERS.items()
}


def make_slides(case: Case, folder: Path, chosen: argparse.Namespace) -> list[Path]:
    """The slides of a case, made where they are not there yet."""
    side = isqrt(chosen.tiles - 1) + 1
    if case.large:
        return [make_slide(folder, side * TILE)]
    return [make_slide(folder, side // 2 * TILE, number) for number in range(chosen.slides)]


def run_case(case: Case, devices: int, folder: Path, slides: list[Path], chosen: argparse.Namespace, seconds: float) -> Ran:
    """One run on so many devices with the caches in `folder`, ended after so many seconds."""
    config = {
        "slides": [str(path) for path in slides], "output": {"path": str(folder / "out"), "save": ["tiles"]},
        "tiles": {"size": TILE, "level": 0, "tissue": "none"}, "encoder": case.encoder, "pool": "none",
        "compute": {"device": chosen.device, "memory_limit": "64GiB"},
    }  # fmt: skip
    environment, cores = {}, sorted(os.sched_getaffinity(0))
    if chosen.device == "cuda":
        there = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(chosen.there)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(there[:devices])
        cores = cores[: max(1, len(cores) * devices // chosen.there)]
    else:
        config["compute"] |= {"scheduler": "local", "workers": devices}
    return run_command(config, folder, chosen.set, environment=environment, cores=cores, limit=seconds)


def describe(ran: Ran, devices: int) -> dict[str, Any]:
    """The figures of a run by itself."""
    record, shards = ran.record, ran.shards
    embedding = sum(record["seconds_by_part"][part] for part in EMBEDDING)
    spent = {stage: seconds / devices / embedding for stage, seconds in record["seconds_by_stage"].items()}
    encoder = record["encoder"]
    return {
        "workers": record["workers"], "batch": encoder["batch"], "tiles": record["new_tiles"], "wall": ran.seconds, "first": ran.first,
        "steady": steady(shards, devices) or record["tiles_per_second"], "busy": spent.get("compute", 0.0), "parts": ran.parts, "starting": ran.starting, "shares": spent,
        "host": record["peak_bytes"] / GIB, "projected": record["projected_bytes"] / GIB,
        "model": encoder["parameters"] * BYTES[encoder["precision"]] / GIB, "bound": record["bound"],
    }  # fmt: skip


def steady(shards: list[tuple[float, int]], devices: int) -> float:
    """Tiles a second after each device had its first shard, from (time, tiles) of all in order of time; 0 where there are too few."""
    if len(shards) <= devices or shards[-1][0] <= shards[devices - 1][0]:
        return 0.0
    return sum(tiles for _, tiles in shards[devices:]) / (shards[-1][0] - shards[devices - 1][0])


def read_rows(output: Path) -> dict[str, np.ndarray]:
    """(n, dim) rows as they are stored, by slide."""
    return {path.stem: np.asarray(tilestream.open(path).embeddings[:]) for path in sorted(output.glob("*.zarr"))}


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """0 where all rows have equal bytes; else the largest difference between two numbers."""
    assert one.keys() == other.keys()
    if all(one[name].tobytes() == other[name].tobytes() for name in one):
        return 0.0
    return max(float(np.nanmax(np.abs(one[name].astype(np.float32) - other[name].astype(np.float32)), initial=0)) for name in one)


def measure(names: list[str], folder: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all cases while there is time for them; each is printed as it ends."""
    end = time.perf_counter() + chosen.limit - RESERVE
    rows: list[dict[str, Any]] = []
    for name in names:
        slides = make_slides(CASES[chosen.device][name], folder, chosen) if time.perf_counter() < end else []
        rows_of_fewest: dict[str, np.ndarray] = {}
        for caches in chosen.caches:
            fewest: dict[str, Any] = {}
            for devices in chosen.devices:
                own = folder / f"{name}{devices}"
                own.mkdir(exist_ok=True)
                expected = max((row["wall"] for row in rows if row["case"] == name), default=0.0)
                if (left := end - time.perf_counter()) < expected:
                    print(f"{name} on {devices} {caches}: left out, it would not end within the limit", flush=True)
                    continue
                try:
                    ran = run_case(CASES[chosen.device][name], devices, own, slides, chosen, left)
                except subprocess.TimeoutExpired:
                    print(f"{name} on {devices} {caches}: ended by the limit", flush=True)
                    return rows
                row = {"case": name, "devices": devices, "caches": caches, **describe(ran, devices)}
                fewest = fewest or row
                row |= {"scaling": row["steady"] / fewest["steady"], "waits": row["wall"] / fewest["wall"]}
                stored = read_rows(own / "out")
                rows_of_fewest = rows_of_fewest or stored
                row["difference"] = difference(rows_of_fewest, stored)
                rows.append(row)
                if not chosen.json:
                    print_row(row)
        for devices in chosen.devices:
            shutil.rmtree(folder / f"{name}{devices}", ignore_errors=True)
    return rows


def print_row(row: dict[str, Any]) -> None:
    """The lines of a run."""
    equal = "yes" if row["difference"] == 0 else f"no, {row['difference']:.2g}"
    print(
        f"{row['case']} on {row['devices']} {row['caches']}: wall {row['wall']:.1f} s, first {row['first']:.1f} s, steady {row['steady']:.0f} tiles/s, "
        f"scaling {row['scaling']:.2f}, waits {row['waits']:.2f}, busy {row['busy']:.0%}, "
        f"host {row['host']:.2f} of projected {row['projected']:.2f} GiB, model {row['model']:.2f}, batch {row['batch']}, equal {equal}"
    )
    print(f"    wall: {', '.join(f'{part} {taken:.2f}' for part, taken in row['parts'].items())}")
    print(f"    starting: {', '.join(f'{part} {taken:.2f}' for part, taken in row['starting'].items())}")
    print(f"    stages: {', '.join(f'{stage} {share:.0%}' for stage, share in row['shares'].items())}; {row['bound']}", flush=True)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=CASES, help="cuda where there is one")
    parser.add_argument("--devices", type=int, nargs="+", metavar="N", help="1 and all; on a processor 1 and 2")
    parser.add_argument("--only", nargs="+", metavar="CASE", help=f"of {', '.join([*CASES['cuda'], *CASES['cpu']])}")
    parser.add_argument(
        "--caches", nargs="+", choices=("cold", "warm"), default=["cold", "warm"], help="warm alone needs a cold run before"
    )
    parser.add_argument("--tiles", type=int, help="about so many tiles of the large slide; each smaller one has a quarter")
    parser.add_argument("--slides", type=int, default=12, help="smaller ones")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the runs")
    parser.add_argument("--limit", type=float, default=570.0, help="seconds within which it ends")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    chosen.there = count_cuda() if chosen.device != "cpu" else 0
    chosen.device = chosen.device or ("cuda" if chosen.there else "cpu")
    chosen.devices = sorted(set(chosen.devices or [1, chosen.there or 2]))
    chosen.tiles = chosen.tiles or LARGE_TILES[chosen.device]
    if chosen.device == "cuda" and chosen.devices[-1] > chosen.there:
        parser.error(f"--devices: {chosen.devices[-1]}, but this machine has {chosen.there} CUDA devices")
    names = chosen.only or list(CASES[chosen.device])
    if unknown := [name for name in names if name not in CASES[chosen.device]]:
        parser.error(f"--only: {unknown[0]} is none of {', '.join(CASES[chosen.device])}")
    with tempfile.TemporaryDirectory() as name:
        rows = measure(names, Path(name), chosen)
    if chosen.json:
        print(json.dumps(rows))
    return rows


if __name__ == "__main__":
    main()
