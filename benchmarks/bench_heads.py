"""Claim: a head classifies 1,000,000 stored tiles of 768 features in under 10 s on 2 cores.

    python -m benchmarks.bench_heads [--tiles 1000000] [--heads linear mlp ...] [--threads 2] [--folder FOLDER] [--json]

Tiles are the 16 px squares of a sample slide, their vectors the 768 values of their pixels; they are embedded once and kept in the folder. Then each head is
added to the store by a run of its own, with what a run takes besides: looking at the store, planning, writing, checksums. "read" is the time to read and
decode all rows alone. Files lie in the system's cache.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import tilestream
from tilestream.encoders.heads.head_file import HeadAbout, build_model, write_head
from tilestream.store.blocks import map_blocks

SIDE, DIM = 16, 768
CLASSES = ("background", "stroma", "epithelium", "lymphoid", "fat", "blood")

HEADS = {
    "linear": ("classify", {}),
    "mlp": ("classify", {"hidden": 256}),
    "prototypes": ("classify", {}),
    "knn": ("classify", {"examples": 1000}),
    "abmil": ("slide", {}),
    "transformer": ("slide", {}),
}
"""Kind and arguments of each model."""


class PixelRows(nn.Module):
    """(n, 3, 16, 16) uint8 to (n, 768): the pixels themselves."""

    dim = DIM

    def forward(self, tiles: Tensor) -> Tensor:
        return tiles.flatten(1).float() / 255


def pixel_rows() -> nn.Module:
    """The encoder."""
    return PixelRows()


def config_of(folder: Path, tiles: int, threads: int) -> dict:
    """The run that embeds about so many tiles."""
    side = SIDE * math.ceil(math.sqrt(tiles))
    return {
        "slides": f"sample://he?width={side}&height={side}&seed=1",
        "output": {"path": str(folder / f"rows{tiles}")},
        "tiles": {"size": SIDE, "level": 0, "tissue": "none"},
        "encoder": "benchmarks.bench_heads:pixel_rows",
        "pool": "none",
        "compute": {"scheduler": "inline", "device": "cpu", "threads": threads, "batch_size": 256},
    }


def make_head(folder: Path, model: str) -> tuple[str, str]:
    """A head with random weights: its kind and its file."""
    kind, arguments = HEADS[model]
    about = HeadAbout(kind, model, "tiles", DIM, len(CLASSES), classes=CLASSES, arguments=arguments)
    module = build_model(about)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.named_buffers():
            value.copy_(torch.arange(len(value)) % len(CLASSES) if name == "labels" else torch.rand(value.shape, generator=generator))
    write_head(folder / f"{model}.safetensors", module, about)
    return kind, str(folder / f"{model}.safetensors")


def measure(folder: Path, tiles: int, models: list[str], threads: int) -> list[dict]:
    """One row for reading alone, and one for each head."""
    torch.set_num_threads(threads)
    settings = config_of(folder, tiles, threads)
    tilestream.run(settings)
    slide = tilestream.open(next(Path(settings["output"]["path"]).glob("*.zarr")))
    rows = slide.layout.tiles
    start = time.perf_counter()
    for _ in map_blocks(slide.embeddings, lambda rows, _: rows):
        pass
    told = [{"head": "read", "tiles": rows, "seconds": time.perf_counter() - start, "computing": 0.0, "peak": 0, "projected": 0}]
    for model in models:
        kind, path = make_head(folder, model)
        name = f"{model}_{time.time_ns()}"
        start = time.perf_counter()
        done = tilestream.run({**settings, "heads": {name: {"kind": kind, "model": path}}})
        assert done.exit_code == 0, done.to_json()
        assert done.new_tiles == 0
        told.append(
            {
                "head": model,
                "tiles": rows,
                "seconds": time.perf_counter() - start,
                "computing": done.seconds_by_stage[f"head {name}"],
                "peak": done.peak_bytes,
                "projected": done.projected_bytes,
            }
        )
    return told


def main(arguments: list[str] | None = None) -> list[dict]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=1_000_000)
    parser.add_argument("--heads", nargs="*", default=["linear", "mlp", "abmil"], choices=list(HEADS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="kept for the next time; else a temporary one")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = measure(folder, asked.tiles, asked.heads, asked.threads)
    if asked.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(
                f"{row['head']:12} {row['tiles']:>9,} tiles {row['seconds']:7.2f} s, of them computing {row['computing']:7.2f} s; peak {row['peak'] / 2**20:6.0f} MiB, projected {row['projected'] / 2**20:6.0f}"
            )
    return rows


if __name__ == "__main__":
    main()
