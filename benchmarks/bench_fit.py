"""Claims: `fit` takes no more memory for more slides and tiles than projected; attention learns at least twice as fast as a plain loop over h5 bags.

    python -m benchmarks.bench_fit [--slides 10000] [--tiles 5000] [--dim 768] [--distinct 8] [--plain 200] [--models abmil mean linear] [--hidden 256]
        [--cold] [--folder FOLDER] [--json]

Slides are made: `--distinct` of them are written, the others are their files under other names (hard links) with a fingerprint of their own, so that the
disk holds little and memory all of what it would. Each model is fitted by the whole program in a process of its own, whose peak of resident memory (VmHWM)
is held to what it projected. Then one epoch of `abmil` is timed, and a plain PyTorch loop over the same vectors in h5 files of float32, of `--plain` slides:
"whole bags" learns from every tile of a slide, as CLAM does, "512 tiles" reads the bag and learns from 512 of its tiles, as STAMP does. Both train the same
network on three quarters of the slides, then judge it on whole slides of the rest, as an epoch of `fit` does, and hold no slide in memory. Files lie in the
system's cache, which a cohort of that size never does: `--cold` asks the system to forget them before each epoch (with `--distinct` as many as `--plain`).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

MIB = 1024**2

MODELS = {"abmil": "slide", "mean": "slide", "linear": "classify"}

CHILD = """
import json, sys, time

def main(config):
    import tilestream
    from tilestream.stages.hardware import peak_memory

    start = time.perf_counter()
    found = tilestream.fit(json.loads(config), tell=lambda words: print(words, file=sys.stderr))
    print(json.dumps({"peak": peak_memory(), "projected": found.memory.total, "seconds": time.perf_counter() - start}))

if __name__ == "__main__":
    main(sys.argv[1])
"""


def make_slides(folder: Path, slides: int, tiles: int, dim: int, distinct: int) -> Path:
    """Stores of two kinds of slides, every second of which has a tenth of its tiles shifted; and h5 files of the distinct ones."""
    import h5py

    out = folder / "out"
    if out.exists():
        return out
    side = -(-tiles // 50)
    (folder / "h5").mkdir(parents=True)
    for k in range(distinct):
        chance = np.random.default_rng(k)
        x = chance.standard_normal((side * 50, dim), np.float32)[:tiles].astype(np.float16)
        x[: tiles // 10, :4] += np.float16(k % 2)
        _write_store(folder / "made" / f"{k}.zarr", x, side)
        with h5py.File(folder / "h5" / f"{k}.h5", "w") as file:
            file.create_dataset("features", data=x.astype(np.float32), chunks=(256, dim))
    out.mkdir()
    for i in range(slides):
        _link(folder / "made" / f"{i % distinct}.zarr", out / f"s{i:05}.zarr", i)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["slide", "patient", "kind"], *([f"s{i:05}", f"p{i // 2:05}", "ab"[i % distinct % 2]] for i in range(slides))]
        )
    return out


def _write_store(path: Path, x: np.ndarray, side: int) -> None:
    """A finished store of these vectors, in 50 columns."""
    from tilestream.store.folder import Folder
    from tilestream.store.layout import Layout, TileColumns
    from tilestream.store.slide_store import SlideStore

    row, col = (places.ravel()[: len(x)].astype(np.int64) for places in np.mgrid[:side, :50])
    store = SlideStore(Folder(str(path)))
    layout = Layout(len(x), x.shape[1], 2048, "float16")
    recipe = {
        "tiles": {"size": 224, "stride": 224, "edge": "pad"}, "encoder": {"name": "made"}, "output": {"save": ["tiles"], "dtype": "float16"},
    }  # fmt: skip
    about = {
        "address": "made.svs", "mpp": 0.5, "height": side * 224, "width": 50 * 224, "level": 0, "downsample": 1.0, "scale": 1.0, "fingerprint": "image-00000",
    }  # fmt: skip
    columns = TileColumns(row, col, row * 224, col * 224, np.ones(len(x), np.float32), 224.0)
    store.create(layout, columns, {"recipe": recipe, "source": about}, uns={"slide": "made"}, objects={})
    for shard in range(layout.shards):
        part = layout.rows(shard)
        status = np.zeros(part.stop - part.start, np.int8)
        store.write_shard(shard, {"tables/tiles/X": x[part.start : part.stop], "tables/tiles/obs/status/codes": status}, {"counts": {}})
    store.seal()
    store.complete({"tiles": len(x), "counts": {}})


def _link(made: Path, to: Path, number: int) -> None:
    """The store under another name: its files are those of the first, but for the few that say which image it is."""
    from tilestream.store.ledger import BASE, COMPLETE
    from tilestream.store.records import checksum, pack, unpack

    for found in sorted(made.rglob("*")):
        place = to / found.relative_to(made)
        if found.is_dir():
            place.mkdir(parents=True)
        elif str(found.relative_to(made)) not in ("zarr.json", BASE, COMPLETE):
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(found, place)
    root = (made / "zarr.json").read_bytes().replace(b"image-00000", f"image-{number:05}".encode())
    base, complete = (unpack((made / name).read_bytes()) for name in (BASE, COMPLETE))
    assert base is not None
    assert complete is not None
    for record in (base, complete):
        record.pop("check", None)
    base["attributes"]["source"]["fingerprint"] = f"image-{number:05}"
    base["objects"]["zarr.json"] = complete["objects"]["zarr.json"] = [len(root), checksum(root)]
    packed = pack(base)
    complete["objects"][BASE] = [len(packed), checksum(packed)]
    for name, data in (("zarr.json", root), (BASE, packed), (COMPLETE, pack(complete))):
        (to / name).write_bytes(data)


def forget(*folders: Path) -> None:
    """Ask the system to let go of what its cache holds of the files below."""
    for path in (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_memory(folder: Path, out: Path, model: str, hidden: int) -> dict[str, Any]:
    """One fit in a process of its own."""
    args = {"epochs": 1, "hidden": hidden, "gate": hidden // 2} if model == "abmil" else {}
    config = {
        "embeddings": str(out), "target": {"slides": str(folder / "labels.csv"), "column": "kind"}, "split": {"folds": 2},
        "head": {"name": "kind", "kind": MODELS[model], "model": model, "args": args}, "save": str(folder / f"{model}.safetensors"),
        "memory_limit": "512MiB",
    }  # fmt: skip
    script = folder / "child.py"
    script.write_text(CHILD, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(config)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    print(done.stderr.strip(), file=sys.stderr)
    return {"row": f"fit {model}", **json.loads(done.stdout.splitlines()[-1])}


def measure_epoch(out: Path, slides: int, device: torch.device, *, cold: bool) -> dict[str, Any]:
    """Seconds of an epoch of `abmil` as `fit` trains it: bags of 512 tiles from three quarters of the slides, whole slides of some others judged."""
    import tilestream
    from tilestream.fitting.training.bags import Bags
    from tilestream.fitting.training.slide_models import train_slides

    cohort = [tilestream.open(path, verify=False) for path in sorted(out.iterdir())[:slides]]
    bags = Bags(cohort, "tiles", 0, device=device)
    cases = _cases(cohort)
    drawn, begun, ended = bags.draw, [], []

    def draw(*args: Any) -> Any:  # bags are drawn once for their mean and spread, then once an epoch
        if begun:
            ended.append(time.perf_counter())
        if cold:
            forget(out.parent / "made")
        begun.append(time.perf_counter())
        return drawn(*args)

    bags.draw = draw  # type: ignore[method-assign]
    train_slides("abmil", cases, np.ones(len(cohort), np.bool_), None, bags, {"epochs": 4}, 0)
    tiles = sum(slide.layout.tiles for slide in cohort)
    return {
        "row": "abmil of fit",
        "slides": len(cohort),
        "seconds_per_million": float(np.median(np.subtract(ended[1:], begun[1:-1]))) / tiles * 1e6,
    }


def _cases(slides: list[Any]) -> Any:
    from tilestream.fitting.targets import Cases

    n = len(slides)
    label = np.arange(n) % 2
    return Cases(
        tuple(slides), tuple(slide.id for slide in slides), False, np.arange(n), np.arange(n) % 2, "classes", ("a", "b"), label,
        np.full(n, np.nan), np.zeros(n, np.bool_), (),
    )  # fmt: skip


def measure_plain(
    folder: Path, slides: int, distinct: int, dim: int, device: torch.device, *, some: int | None, cold: bool
) -> dict[str, Any]:
    """The loop that people write: read a bag, learn from it or from some of its tiles, then judge whole bags."""
    import h5py

    torch.manual_seed(0)
    net = PlainAttention(dim).to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-4)
    chance = np.random.default_rng(0)
    if cold:
        forget(folder / "h5")
    start, tiles = time.perf_counter(), 0
    for i in range(slides):
        with h5py.File(folder / "h5" / f"{i % distinct}.h5") as file:
            x = torch.from_numpy(file["features"][:])
        tiles += len(x)
        label = torch.tensor([i % distinct % 2], device=device)
        if i % 4 == 0:
            with torch.no_grad():
                net(x.to(device))
            continue
        x = x if some is None else x[torch.from_numpy(chance.permutation(len(x))[:some])]
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x.to(device))[None], label).backward()
        optimiser.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    name = "whole bags" if some is None else f"{some} tiles"
    return {"row": f"plain loop, {name}", "slides": slides, "seconds_per_million": (time.perf_counter() - start) / tiles * 1e6}


class PlainAttention(nn.Module):
    """Gated attention (Ilse et al. 2018) as it is usually written, of the size that `fit` takes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, 256), nn.ReLU(), nn.Dropout(0.25))
        self.v = nn.Sequential(nn.Linear(256, 128), nn.Tanh())
        self.u = nn.Sequential(nn.Linear(256, 128), nn.Sigmoid())
        self.w, self.out = nn.Linear(128, 1), nn.Linear(256, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, d) to (2,) logits."""
        h = self.embed(x)
        share = torch.softmax(self.w(self.v(h) * self.u(h)), dim=0)
        logits: torch.Tensor = self.out((share * h).sum(dim=0))
        return logits


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=10_000)
    parser.add_argument("--tiles", type=int, default=5_000, help="of a slide")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--distinct", type=int, default=8, help="slides that are written; an even number")
    parser.add_argument("--plain", type=int, default=200, help="slides whose epoch is timed")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--hidden", type=int, default=256, help="channels of abmil while its memory is measured")
    parser.add_argument("--cold", action="store_true", help="time epochs with files that are in no cache")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="kept for the next time; else a temporary one")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    device = torch.device(asked.device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        out = make_slides(folder, asked.slides, asked.tiles, asked.dim, asked.distinct)
        rows = [measure_memory(folder, out, model, asked.hidden) for model in asked.models]
        timed = min(asked.plain, asked.slides)
        rows.append(measure_epoch(out, timed, device, cold=asked.cold))
        rows += [measure_plain(folder, timed, asked.distinct, asked.dim, device, some=some, cold=asked.cold) for some in (None, 512)]
    if asked.json:
        print(json.dumps(rows))
        return rows
    for row in rows:
        if "peak" in row:
            print(f"{row['row']:<24} peak {row['peak'] / MIB:6.0f} MiB, projected {row['projected'] / MIB:6.0f}; {row['seconds']:.0f} s")
        else:
            print(f"{row['row']:<24} {row['seconds_per_million']:.2f} s an epoch for a million tiles, {row['slides']} slides")
    return rows


if __name__ == "__main__":
    main()
