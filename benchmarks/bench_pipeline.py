"""Claim: the whole program runs at nearly the speed of the bare encoder, and several times that of a plain loop.

    python -m benchmarks.bench_pipeline [--encoders vit_large_patch16_224 ...] [--side 40960] [--slides 4] [--baseline] [--json]

In one run, in turns: the bare encoder on random tiles that lie on the device, in the same number format and compiled alike; the whole
program on a made slide, or on several copies of it, start-up excluded: one slide goes before; and with `--baseline` a PyTorch DataLoader over OpenSlide + PIL tiles under autocast, with the
best of several numbers of workers. Prints ratios, seconds by stage, and peak memory of host and device.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

import tilestream
from tilestream.config.schema import Config
from tilestream.sources.made.slide import ensure_sample
from tilestream.stages.worker import Worker, worker_for
from tilestream.stages.worker_settings import worker_settings

MIB = 1024**2
TILE = 224


def config(encoder: str, slides: list[str], output: Path, chosen: argparse.Namespace) -> dict:
    """A run that keeps every tile and makes no slide vector."""
    return {
        "slides": slides, "output": {"path": str(output), "save": ["tiles"]}, "tiles": {"size": TILE, "level": 0, "tissue": "none"},
        "encoder": {"name": encoder, "precision": chosen.precision}, "pool": "none",
        "compute": {
            "scheduler": "local" if chosen.workers else "inline", "workers": chosen.workers or 1, "device": chosen.device, "threads": chosen.threads or "auto",
            "memory_limit": "64GiB", "compile": chosen.compile, "shard_tiles": chosen.shard_tiles,
        },
    }  # fmt: skip


def bare(worker: Worker, seconds: float) -> float:
    """Tiles a second of the encoder alone, over tiles that are on its device."""
    tiles = torch.randint(0, 256, (worker.batch, TILE, TILE, 3), dtype=torch.uint8, device=worker.device)
    count = 0
    with torch.inference_mode():
        for _ in range(3):
            worker.encode(tiles, lambda *_: "random tiles")
        _wait(worker)
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            for _ in range(4):
                worker.encode(tiles, lambda *_: "random tiles")
            _wait(worker)
            count += 4 * worker.batch
        return count / (time.perf_counter() - start)


def _wait(worker: Worker) -> None:
    if worker.device.type == "cuda":
        torch.cuda.synchronize(worker.device)


class Tiles(torch.utils.data.Dataset):
    """Tiles as common tools read them: OpenSlide, PIL, one at a time; each process opens the slide for itself."""

    def __init__(self, path: str, places: np.ndarray) -> None:
        self.path, self.places, self.slide = path, places, None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> torch.Tensor:
        import openslide

        if self.slide is None:
            self.slide = openslide.OpenSlide(self.path)
        y, x = self.places[index].tolist()
        pixels = np.asarray(self.slide.read_region((x, y), 0, (TILE, TILE)).convert("RGB"))
        return (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def plain(worker: Worker, encoder: torch.nn.Module, path: str, places: np.ndarray, processes: int, half: torch.dtype | None) -> float:
    """Tiles a second of a DataLoader and float32 weights under autocast."""
    loader = torch.utils.data.DataLoader(
        Tiles(path, places), batch_size=min(worker.batch, 64), num_workers=processes, pin_memory=worker.device.type == "cuda"
    )
    start, count = None, 0
    with torch.inference_mode(), torch.autocast(worker.device.type, dtype=half or torch.bfloat16, enabled=half is not None):
        for batch in loader:
            tokens = encoder.forward_features(batch.to(worker.device, non_blocking=True))
            tokens[:, 0].float().cpu()
            if start is None:  # the first batch pays for starting processes
                start = time.perf_counter()
            else:
                count += len(batch)
    return count / (time.perf_counter() - start)


def copies(path: str, count: int, folder: Path) -> list[str]:
    """The slide so many times."""
    found = [folder / f"slide{k}.tif" for k in range(count)]
    for copy in found:
        if not copy.exists():
            shutil.copyfile(path, copy)
    return list(map(str, found))


def measure(encoder: str, path: str, chosen: argparse.Namespace, folder: Path) -> dict[str, object]:
    """All sides for one encoder."""
    slides = copies(path, chosen.slides, folder)
    made = Config.model_validate(config(encoder, slides, folder / "out", chosen))
    worker = worker_for(worker_settings(made))
    shutil.rmtree(folder / "out", ignore_errors=True)
    tilestream.run(config(encoder, slides[:1], folder / "out", chosen))  # starts its decoders, and compiles what puts tiles together
    rates, programs, summary = [], [], None
    for _ in range(chosen.rounds):
        rates.append(bare(worker, chosen.seconds))
        shutil.rmtree(folder / "out", ignore_errors=True)
        summary = tilestream.run(config(encoder, slides, folder / "out", chosen))
        programs.append(summary.tiles_per_second)
    rates.append(bare(worker, chosen.seconds))
    row = {
        "encoder": encoder, "device": summary.device, "precision": str(worker.dtype).removeprefix("torch."), "batch": worker.batch, "tiles": summary.new_tiles,
        "bare": median(rates), "program": median(programs), "share": median(programs) / median(rates), "programs": [round(rate) for rate in programs],
        "bound": summary.bound,
        "seconds": {k: round(v, 3) for k, v in summary.seconds_by_stage.items()}, "wall": round(summary.embed_seconds, 3), "host_mib": summary.peak_bytes / MIB,
        "device_mib": torch.cuda.max_memory_allocated() / MIB if worker.device.type == "cuda" else 0, "notes": list(worker.notes),
    }  # fmt: skip
    if chosen.baseline:
        from tilestream.encoders.catalogue import EncoderSpec
        from tilestream.encoders.registry import build_encoder

        half = None if worker.device.type == "cpu" else torch.bfloat16
        plain_encoder = build_encoder(EncoderSpec(encoder)).to(worker.device)
        rng = np.random.default_rng(0)
        found = {}
        for processes in chosen.processes:
            places = rng.integers(0, chosen.side // TILE - 1, (chosen.baseline_tiles, 2)) * TILE
            found[processes] = plain(worker, plain_encoder, path, places, processes, half)
        best = max(found, key=found.get)
        row |= {"plain": found[best], "plain_processes": best, "over_plain": median(programs) / found[best]}
    return row


def main(arguments: list[str] | None = None) -> list[dict[str, object]]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--encoders", nargs="+", default=["vit_tiny_patch16_224", "vit_small_patch16_224"], help="also benchmarks.encoders:vit_huge"
    )
    parser.add_argument("--side", type=int, default=8192, help="of the made slide, px")
    parser.add_argument("--slides", type=int, default=1, help="how many of them")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", default="auto", type=lambda word: {"true": True, "false": False}.get(word, word))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--workers", type=int, help="worker processes; none: the program runs in this one")
    parser.add_argument("--shard-tiles", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement of the bare encoder")
    parser.add_argument("--baseline", action="store_true")
    parser.add_argument("--baseline-tiles", type=int, default=2000)
    parser.add_argument("--processes", type=int, nargs="+", default=[2], help="numbers of workers of the DataLoader that are tried")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    address = f"sample://he?width={chosen.side}&height={chosen.side}"
    subprocess.run([sys.executable, "-m", "tilestream", "inspect", address], check=True, capture_output=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(name, str(ensure_sample(address)), chosen, Path(folder)) for name in chosen.encoders]
    if chosen.json:
        print(json.dumps(rows, indent=1))
        return rows
    for row in rows:
        print(
            "\n"
            + "\n".join(f"{key:>16}: {value:.4g}" if isinstance(value, float) else f"{key:>16}: {value}" for key, value in row.items()),
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
