"""How fast a context learns from stored embeddings, and in how much memory.

    python -m benchmarks.bench_masked [--tokens 1000000] [--side 250] [--dim 688] [--device cpu] [--memory 2GiB] [--folder embeddings/bench_masked]

Slides of side x side tiles are made of regions with a vector each, which fades into its neighbours', and noise; fit then learns from them as it does by default.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tilestream
from tilestream.geometry import Size
from tilestream.store.folder import Folder
from tilestream.store.layout import Layout, TileColumns
from tilestream.store.slide_store import SlideStore


def draw_field(seed: int, side: int, dim: int) -> NDArray[np.float16]:
    """(side * side, dim) tokens of one slide."""
    chance = np.random.default_rng(seed)
    kinds = np.random.default_rng(0).normal(size=(12, dim))
    sites, of = chance.uniform(0, side, (60, 2)), chance.integers(12, size=60)
    y, x = np.mgrid[:side, :side]
    apart = np.hypot(y.ravel()[:, None] - sites[:, 0], x.ravel()[:, None] - sites[:, 1])
    share = np.exp(-(apart - apart.min(axis=1, keepdims=True)) / 2)
    mixed = (share / share.sum(axis=1, keepdims=True)) @ kinds[of]
    return (mixed + chance.normal(size=mixed.shape)).astype(np.float16)


def write_slide(path: Path, values: NDArray[np.float16], side: int) -> None:
    """A finished store of them."""
    row, col = (places.ravel().astype(np.int64) for places in np.mgrid[:side, :side])
    size = Size(side * 224, side * 224)
    layout = Layout(len(values), values.shape[1], 2048, "float16")
    store = SlideStore(Folder(str(path)))
    about = {
        "address": path.name,
        "mpp": 0.5,
        "height": size.height,
        "width": size.width,
        "level": 0,
        "downsample": 1.0,
        "scale": 1.0,
        "fingerprint": path.name,
    }
    recipe = {
        "tiles": {"size": 224, "stride": 224, "edge": "pad"},
        "encoder": {"name": "made"},
        "output": {"save": ["tiles"], "dtype": "float16"},
    }
    columns = TileColumns(row, col, row * 224, col * 224, np.ones(len(row), np.float32), 224.0)
    store.create(layout, columns, {"recipe": recipe, "source": about}, uns={"slide": path.stem}, objects={})
    for shard in range(layout.shards):
        part = values[layout.rows(shard).start : layout.rows(shard).stop]
        store.write_shard(shard, {"tables/tiles/X": part, "tables/tiles/obs/status/codes": np.zeros(len(part), np.int8)}, {"counts": {}})
    store.seal()
    store.complete({"tiles": layout.tiles, "counts": {}})


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Make what is not there yet, fit, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--side", type=int, default=250, help="tiles along a side of a slide")
    parser.add_argument("--dim", type=int, default=688)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--passes", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=Path("embeddings/bench_masked"))
    asked = parser.parse_args(arguments)
    slides = max(2, round(asked.tokens / asked.side**2))
    for seed in range(slides):
        path = asked.folder / f"{asked.side}x{asked.dim}" / f"s{seed}.zarr"
        if not path.exists():
            write_slide(path, draw_field(seed, asked.side, asked.dim), asked.side)
    began = time.perf_counter()
    found = tilestream.fit(
        {
            "embeddings": [str(asked.folder / f"{asked.side}x{asked.dim}" / f"s{seed}.zarr") for seed in range(slides)],
            "target": {"masked": {} if asked.passes is None else {"passes": asked.passes}},
            "split": {"folds": max(2, slides)},
            "device": asked.device,
            "memory_limit": asked.memory,
            "save": str(asked.folder / "context.safetensors"),
        },
        tell=print,
    )
    told = {
        "tokens": slides * asked.side**2,
        "seconds": round(time.perf_counter() - began, 1),
        "peak GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print(*found.lines, json.dumps(told), sep="\n")
    return told


if __name__ == "__main__":
    main()
