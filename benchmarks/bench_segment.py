"""Segmentation of a slide: memory against its projection, disk, and speed beside a plain loop that holds a float canvas of the whole slide.

    python -m benchmarks.bench_segment --memory [--sides 16384 65536]
    python -m benchmarks.bench_segment --speed [--side 16384] [--device cuda]

`--memory` runs the small segmenter of the package in processes of their own. `--speed` runs a Unet of ResNet-34 (random weights, patches of 1,024 px that
overlap by a quarter) through tilestream and through a loop of OpenSlide, the model and a canvas in one process, and says how busy the device was: over the
whole command, start and probing of the model included, and `steady`, from the first unit that was committed to the last.
"""

import argparse
import importlib
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

import tilestream
from tilestream.config.load import load_config
from tilestream.models.heads.blending import ramp_weights
from tilestream.models.patch_embed import IMAGENET_MEAN, IMAGENET_STD, normalise_pixels
from tilestream.runner.plan_command import plan_slides
from tilestream.sources.made.slide import ensure_sample

SIZE, OVERLAP, CLASSES = 1024, 256, 6


class Unet34(nn.Module):
    """segmentation_models_pytorch's Unet of ResNet-34 with random weights."""

    def __init__(self) -> None:
        super().__init__()
        smp: Any = importlib.import_module("segmentation_models_pytorch")
        torch.manual_seed(0)
        self.classes = [f"class {k}" for k in range(CLASSES)]
        self.model = smp.Unet("resnet34", encoder_weights=None, classes=CLASSES)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) uint8 to (n, classes, h, w)."""
        out: torch.Tensor = self.model(normalise_pixels(pixels, IMAGENET_MEAN, IMAGENET_STD, torch.float32))
        return out


def unet34() -> nn.Module:
    """The factory that the config names."""
    return Unet34().eval()


def config(address: str, output: Path, head: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    """One head that segments, and nothing else."""
    return {
        "slides": address, "output": str(output), "tiles": {"size": 512, "mpp": 0.25, "tissue": "none"}, "pool": "none",
        "heads": {"kinds": {"kind": "segment", **head}}, "compute": {"scheduler": "inline", "device": device, "memory_limit": "64GiB"},
    }  # fmt: skip


def one_run(side: int) -> dict[str, Any]:
    """Peak memory, projection, disk and seconds of one slide; in this process."""
    with tempfile.TemporaryDirectory() as folder:
        given = config(
            f"sample://he?width={side}&height={side}&seed=0", Path(folder) / "out", {"model": "tilestream-sample-segment", "size": 512}
        )
        (slide,) = plan_slides(load_config(given)).slides
        done = tilestream.run(given)
        assert done.exit_code == 0, done.to_json()
        labels = next((Path(folder) / "out").glob("*.zarr")) / "labels"
        stored = sum(path.stat().st_size for path in labels.rglob("*") if path.is_file())
        return {
            "side": side, "peak_mib": done.peak_bytes >> 20, "projected_mib": slide.projection.total >> 20, "labels_mib": round(stored / 2**20, 2),
            "planned_labels_mib": round(slide.heads["kinds"] / 2**20, 2), "seconds": round(done.seconds, 1),
        }  # fmt: skip


def measure_memory(sides: list[int]) -> list[dict[str, Any]]:
    """A row for each side, each in a process of its own."""
    rows = []
    for side in sides:
        ensure_sample(f"sample://he?width={side}&height={side}&seed=0")
        code = f"import json; from benchmarks.bench_segment import one_run; print(json.dumps(one_run({side})))"
        told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(told.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    return rows


class Busy:
    """Share of time in which the device ran a kernel, as its driver samples it ten times a second."""

    def __init__(self, device: str) -> None:
        self.device, self.seen = device, list[tuple[float, int]]()
        self._watcher: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        if self.device == "cuda":
            asked = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100", "-i", "0"]
            self._watcher = subprocess.Popen(asked, stdout=subprocess.PIPE, text=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.terminate()
            self._watcher.wait()
            self._thread.join()

    def _watch(self) -> None:
        assert self._watcher is not None
        assert self._watcher.stdout is not None
        for line in self._watcher.stdout:
            if line.strip().isdigit():
                self.seen.append((time.time(), int(line)))

    def share(self, first: float = 0.0, last: float = math.inf) -> float:
        """Between two moments of the clock."""
        kept = [share for at, share in self.seen if first <= at <= last]
        return round(float(np.mean(kept)) / 100, 3) if kept else math.nan


def plain_loop(path: Path, device: str, rows: int | None = None) -> dict[str, Any]:
    """OpenSlide, the model, and float32 sums of the whole slide, as most pipelines do; the first `rows` rows of patches, where they are given."""
    import openslide

    slide, model = openslide.OpenSlide(str(path)), unet34().to(device)
    width, height = slide.dimensions
    step, start = SIZE - OVERLAP, time.perf_counter()
    canvas = np.zeros((CLASSES, height + SIZE, width + SIZE), np.float32)
    count = np.zeros(canvas.shape[1:], np.float32)
    along = ramp_weights(SIZE, OVERLAP, "hann").astype(np.float32)
    weights = along[:, None] * along
    patches = 0
    for y in range(0, height, step)[:rows]:
        for x in range(0, width, step):
            pixels = np.array(slide.read_region((x, y), 0, (SIZE, SIZE)).convert("RGB"))
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                out = model(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device)).float().softmax(1)[0].cpu().numpy()
            canvas[:, y : y + SIZE, x : x + SIZE] += out * weights
            count[y : y + SIZE, x : x + SIZE] += weights
            patches += 1
    canvas /= np.maximum(count, 1e-6)
    canvas.argmax(0).astype(np.uint8)
    seconds = time.perf_counter() - start
    return {"plain_patches": patches, "plain_seconds": round(seconds, 2), "plain_patches_s": round(patches / seconds, 2)}


def measure_speed(side: int, device: str, rows: int | None = None) -> dict[str, Any]:
    """Both ways on one slide, in this process."""
    address = f"sample://he?width={side}&height={side}&seed=0"
    path = ensure_sample(address)
    head = {"model": "benchmarks.bench_segment:unet34", "size": SIZE, "overlap": OVERLAP}
    with tempfile.TemporaryDirectory() as folder, Busy(device) as busy:
        done = tilestream.run(config(address, Path(folder) / "out", head, device))
        assert done.exit_code == 0, done.to_json()
        units = committed(Path(folder) / "out")
    patches, (first, _), (last, _) = sum(count for _, count in units), units[0], units[-1]
    with Busy(device) as plainly:
        plain = plain_loop(path, device, rows)
    steady = (patches - units[0][1]) / (last - first) if last > first else math.nan
    return {
        "side": side, "device": device, "patches": patches, "seconds": round(done.seconds, 2), "patches_s": round(patches / done.seconds, 2),
        "busy": busy.share(), "steady_patches_s": round(steady, 2), "steady_seconds": round(last - first, 2), "steady_busy": busy.share(first, last),
        "stages": {key: round(value, 2) for key, value in done.slides[0].seconds.items()}, **plain, "plain_busy": plainly.share(),
        "times_plain": round(patches / done.seconds / plain["plain_patches_s"], 2), "steady_times_plain": round(steady / plain["plain_patches_s"], 2),
    }  # fmt: skip


def committed(output: Path) -> list[tuple[float, int]]:
    """When units with patches were committed, first to last, and their patches: from the first one on, the line is warm."""
    entries = output.glob("*.zarr/.tilestream/shards/head-kinds-*.json")
    found = [(entry.stat().st_mtime, json.loads(entry.read_text()).get("patches", 0)) for entry in entries]
    return sorted(each for each in found if each[1])


def main(arguments: list[str] | None = None) -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--sides", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--side", type=int, default=16384)
    parser.add_argument("--rows", type=int, help="rows of patches of the plain loop; all of them where it is not given")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args(arguments)
    if asked.memory:
        measure_memory(asked.sides)
    if asked.speed:
        print(json.dumps(measure_speed(asked.side, asked.device, asked.rows), indent=1))


if __name__ == "__main__":
    main()
