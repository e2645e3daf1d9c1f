"""Claims: no process of a run takes more memory than the plan projects, the projection is near, and memory does not follow the image.

    python -m benchmarks.bench_memory [--only jpeg context ...] [--quick] [--device cuda] [--part 1/3] [--limit 220] [--json]

Each row is a run of the whole program in fresh processes, on made images. Its peak is the high-water mark of resident memory (VmHWM) of
the process that drives or of a worker with its children, whichever is higher; its projection is what the plan said before a pixel was read.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import memory_images as images

MIB = 1024**2

LOOSEST = {True: 1.5, False: 2.0}
"""Projection over peak that is claimed: for more than `MANY` tiles, and for fewer."""

MANY = 1000

CHILD = """
import json, sys

def main(config):
    import tilestream
    from tilestream.runner.reporter import Reporter
    from tilestream.stages.hardware import peak_memory

    class Keeper(Reporter):
        parts = {}
        def planned(self, plan, projection, remaining):
            self.parts = {name: value for name, value in vars(projection).items() if isinstance(value, int)}

    keeper = Keeper()
    summary = tilestream.run(config, reporter=keeper)
    print(json.dumps({"driver": peak_memory(), "worker": summary.peak_bytes, "projected": summary.projected_bytes, "device": summary.device,
                      "tiles": sum(slide.tiles for slide in summary.slides), "parts": keeper.parts, "finished": summary.exit_code}))

if __name__ == "__main__":
    main(sys.argv[1])
"""
"""The program, which says what it took; a script of its own, so that nothing of the benchmark is in its memory."""

Maker = Callable[[Path], str]
"""Writes an image into a folder, once, and gives its address."""


@dataclass(frozen=True)
class Case:
    """One row: an image and what the config says of it."""

    name: str
    image: Maker
    config: dict[str, Any] = field(default_factory=dict)
    """Sections over those of `BASE`."""
    quick: bool = False
    prepare: Callable[[Path], dict[str, Any]] | None = None
    """Writes further inputs into a folder and gives the sections that name them."""


BASE: dict[str, dict[str, Any]] = {
    "tiles": {"size": 224, "level": 0, "tissue": "none"},
    "encoder": {"name": "benchmarks.encoders:mean_rgb"},
    "pool": {"name": "mean"},
    "compute": {"scheduler": "inline", "shard_tiles": 1024, "memory_limit": "64GiB"},
}


def wide(dim: int) -> dict[str, Any]:
    """An encoder of so many features that costs nothing."""
    return {"name": "benchmarks.encoders:wide", "args": {"dim": dim}}


def context(**options: Any) -> dict[str, Any]:
    """A context section."""
    return {"window": 8, "depth": 2, "heads": 8, **options}


def weights_of_context(dim: int, depth: int) -> Callable[[Path], dict[str, Any]]:
    """A context with weights from a file."""
    return lambda folder: {"context": context(depth=depth, weights=images.context_weights(folder, dim, depth))}


def weights_of_pool(dim: int, hidden: int) -> Callable[[Path], dict[str, Any]]:
    """A learned pool with weights from a file."""
    return lambda folder: {"pool": {"name": "gated_attention", "weights": images.pool_weights(folder, dim, hidden)}}


def mask(mib: int) -> Callable[[Path], dict[str, Any]]:
    """Tissue from a GeoJSON of so many MiB."""
    return lambda folder: {"tiles": {"tissue": {"method": "mask", "mask": images.geojson(folder, mib), "min_fraction": 0.0}}}


JPEG = images.sample(8192, 8192)
SMALL = images.sample(3072, 3072)
WINDOW = {"source": {"window": [0, 4095]}}
CHANNELS = {"source": {"window": [0, 4095], "channels": [0, 10, 29]}}
BATCH_32 = {"compute": {"batch_size": 32}}

CASES = [
    Case("jpeg", JPEG),
    Case("jpeg drawn in the run", images.undrawn_sample(3072, 3072)),
    Case("jpeg 4x as large", images.sample(16384, 16384)),
    Case("jpeg vit-tiny", SMALL, {"encoder": {"name": "tilestream-tiny", "precision": "fp32"}}),
    Case("jpeg vit-small", SMALL, {"encoder": {"name": "vit_small_patch16_224", "precision": "fp32"}}),
    Case("jpeg vit-base weights", SMALL, prepare=lambda folder: {"encoder": {"name": "vit_base_patch16_224", "precision": "fp32", "weights": images.vit_weights(folder)}}),
    Case("jpeg batch 1", JPEG, {"compute": {"batch_size": 1}}),
    Case("jpeg batch 256", JPEG, {"compute": {"batch_size": 256}}),
    Case("jpeg dim 1536", JPEG, {"encoder": wide(1536)}),
    Case("jpeg tile 96", JPEG, {"tiles": {"size": 96}, "compute": {"shard_tiles": 2048}}),
    Case("jpeg tile 512", JPEG, {"tiles": {"size": 512}}),
    Case("jpeg tile 1024", JPEG, {"tiles": {"size": 1024}, "compute": {"batch_size": 4}}),
    Case("jpeg tile 4096", images.sample(16384, 16384), {"tiles": {"size": 4096}, "compute": {"batch_size": 1}}),
    Case("jpeg overlap", JPEG, {"tiles": {"stride": 112}}),
    Case("jpeg averaged", images.sample(16384, 16384), {"tiles": {"level": None, "mpp": 0.45}}),
    Case("jpeg averaged 1024", JPEG, {"tiles": {"size": 1024, "level": None, "mpp": 0.45}, "compute": {"batch_size": 4}}),
    Case("jpeg otsu", images.sample(16384, 16384), {"tiles": {"tissue": "otsu"}}),
    Case("jpeg threads 8", JPEG, {"compute": {"threads": 8}}),
    Case("jpeg isolate", JPEG, {"compute": {"isolate": True}}),
    Case("jpeg workers auto", JPEG, {"compute": {"scheduler": "local"}}),
    Case("jpeg workers 1", JPEG, {"compute": {"scheduler": "local", "workers": 1}}),
    Case("jpeg workers 2", JPEG, {"compute": {"scheduler": "local", "workers": 2}}),
    Case("openslide", JPEG, {"source": {"backend": "openslide"}}),
    Case("openslide averaged", images.sample(16384, 16384), {"source": {"backend": "openslide"}, "tiles": {"level": None, "mpp": 0.45}}),
    Case("tiff deflate", images.tiff("uint8", 8192, 256)),
    Case("tiff uint16", images.tiff("uint16", 8192, 256), WINDOW),
    Case("tiff uint16 tile 4096", images.tiff("uint16", 8192, 4096), WINDOW | {"tiles": {"size": 4096}, "compute": {"batch_size": 1}}),
    Case("tiff uint16 file tile 4096", images.tiff("uint16", 8192, 4096), WINDOW),
    Case("tiff float32", images.tiff("float32", 8192, 1024), {"source": {"window": [0, 1]}}),
    Case("tiff strips", images.tiff("uint8", 8192, 0)),
    Case("zarr", images.zarr("uint8", 3, 8192, 512)),
    Case("zarr uint16", images.zarr("uint16", 3, 8192, 512), {"source": {"window": [0, 4095], "channels": [0, 1, 2]}}),
    Case("zarr 30 channels", images.zarr("uint16", 30, 4096, 1024), CHANNELS),
    Case("zarr 30 channels, one a chunk", images.zarr("uint16", 30, 4096, 1024, one_a_chunk=True), CHANNELS),
    Case("zarr 30 channels, chunks of 2048", images.zarr("uint16", 30, 4096, 2048), CHANNELS),
    Case("zarr float32 tile 4096", images.zarr("float32", 3, 8192, 1024), {"source": {"window": [0, 1], "channels": [0, 1, 2]}, "tiles": {"size": 4096}, "compute": {"batch_size": 1}}),
    Case("context dense", JPEG, {"encoder": wide(384), "context": context(schedule="dense")}),
    Case("context row bands", JPEG, {"encoder": wide(384), "context": context(schedule="row_bands")}),
    Case("context halo shards", JPEG, {"encoder": wide(384), "context": context(schedule="halo_shards"), "compute": {"shard_tiles": 256}}),
    Case("context dim 1024 depth 8", SMALL, {"encoder": wide(1024), "context": context(depth=8)}),
    Case("context dim 1024 depth 24", SMALL, {"encoder": wide(1024), "context": context(depth=24)}),
    Case("context dim 1024 depth 12, a file's weights", SMALL, {"encoder": wide(1024)}, prepare=weights_of_context(1024, 12)),
    Case("context window 16", JPEG, {"encoder": wide(384), "context": context(window=16, schedule="row_bands")}),
    Case("context of patch tokens", images.sample(4096, 4096), {"encoder": {"name": "patch_embed"}, "context": context(heads=6), "tiles": {"size": 224}}),
    Case("context of patch tokens, stored", SMALL, {"encoder": {"name": "patch_embed"}, "context": context(heads=6, schedule="dense")}),
    Case("pool of 512 MiB", SMALL, {"encoder": wide(4096)}, prepare=weights_of_pool(4096, 16384)),
    Case("geojson 16 MiB", JPEG, prepare=mask(16)),
    Case("geojson 60 MiB", JPEG, prepare=mask(60)),
    Case("small: jpeg", images.sample(2048, 2048), quick=True),
    Case("small: zarr 30 channels", images.zarr("uint16", 30, 2048, 1024), CHANNELS, quick=True),
    Case("small: context dim 1024 depth 4", images.sample(2048, 2048), {"encoder": wide(1024), "context": context(depth=4)}, quick=True),
]  # fmt: skip


def measure(case: Case, device: str, folder: Path) -> dict[str, Any]:
    """Run one case and return what it took, in MiB."""
    work = folder / case.name.replace(" ", "-").replace(",", "")
    work.mkdir()
    sections = {name: dict(values) for name, values in BASE.items()}
    for further in (case.config, case.prepare(folder) if case.prepare else {}, {"compute": {"device": device}}):
        for name, values in further.items():
            sections[name] = {**sections.get(name, {}), **values}
    sections["tiles"] = {key: value for key, value in sections["tiles"].items() if value is not None}
    config = {"slides": case.image(folder), "output": str(work / "out"), **sections}
    path, program = work / "config.yaml", work / "program.py"
    path.write_text(json.dumps(config))  # JSON is YAML
    program.write_text(CHILD)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, str(program), str(path)], check=False, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"{case.name}: the run ended with {done.returncode}:\n{done.stderr[-3000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    if told["finished"] != 0 or not told["tiles"]:
        sys.exit(f"{case.name}: the run ended with {told['finished']}, {told['tiles']} tiles:\n{done.stderr[-3000:]}")
    peak = max(told["driver"], told["worker"])
    return {
        "case": case.name,
        "tiles": told["tiles"],
        "projected_mib": told["projected"] / MIB,
        "peak_mib": peak / MIB,
        "ratio": told["projected"] / peak,
        "limit": LOOSEST[told["tiles"] > MANY],
        "device": told["device"],
        "parts_mib": {name: round(value / MIB) for name, value in told["parts"].items() if value >= MIB},
    }


def holds(row: dict[str, Any]) -> bool:
    """Whether a row keeps both claims."""
    return 1 <= row["ratio"] <= row["limit"]


def print_row(row: dict[str, Any]) -> None:
    """One line, as soon as it is known."""
    parts = ", ".join(f"{name} {value}" for name, value in row["parts_mib"].items())
    mark = "  " if holds(row) else "! "
    print(
        f"{mark}{row['case']:<44} {row['tiles']:>6} {row['projected_mib']:>9.0f} {row['peak_mib']:>9.0f} {row['ratio']:>6.2f}  {parts}",
        flush=True,
    )


def print_end(rows: list[dict[str, Any]]) -> None:
    """The worst rows, and whether memory follows the image."""
    least, most = min(rows, key=lambda row: row["ratio"]), max(rows, key=lambda row: row["ratio"] / row["limit"])
    print(
        f"nearest to its projection: {least['case']}, {least['ratio']:.2f}; loosest: {most['case']}, {most['ratio']:.2f} of at most {most['limit']}"
    )
    print(f"{sum(map(holds, rows))} of {len(rows)} rows keep both claims, on {rows[0]['device']}")
    peaks = {row["case"]: row["peak_mib"] for row in rows}
    if {"jpeg", "jpeg 4x as large"} <= set(peaks):
        print(f"peak of an image of four times the pixels: {peaks['jpeg 4x as large'] / peaks['jpeg']:.3f} of the smaller one's")


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="cases whose name holds one of these")
    parser.add_argument("--quick", action="store_true", help="three cases")
    parser.add_argument("--device", default="cpu", help="compute.device of all runs")
    parser.add_argument("--images", type=Path, help="folder where made images are kept; default: one that is deleted")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no case is begun")
    parser.add_argument(
        "--part", default="1/1", metavar="I/N", help="every N-th case from the I-th (1-based): one machine may end within minutes"
    )
    chosen = parser.parse_args(arguments)
    cases = [case for case in CASES if case.quick or not chosen.quick]
    cases = [case for case in cases if not chosen.only or any(word in case.name for word in chosen.only)]
    part, parts = map(int, chosen.part.split("/"))
    cases, began = cases[part - 1 :: parts], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        if not chosen.json:
            print(f"  {'case':<44} {'tiles':>6} {'projected':>9} {'peak MiB':>9} {'ratio':>6}  parts of the projection, MiB")
        for case in cases:
            if time.monotonic() - began > chosen.limit:
                print(f"not begun within {chosen.limit:g} s: {case.name}", file=sys.stderr)
                continue
            with images.kept_in(chosen.images or Path(folder)):
                rows.append(measure(case, chosen.device, Path(folder)))
            if not chosen.json:
                print_row(rows[-1])
    if chosen.json:
        print(json.dumps(rows, indent=1))
    elif rows:
        print_end(rows)
    return rows


if __name__ == "__main__":
    main()
