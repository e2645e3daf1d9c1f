"""Claim: the windowed context costs what its windows cost, whichever way the grid is passed, in memory that the height does not change.

    python -m benchmarks.bench_context [--only schedules memory kernels slides] [--json]

`schedules`: time and peak memory of row bands and halo shards against the dense oracle over growing grids, each in a process of its own,
and how much halo shards compute twice, counted, against theory. `memory`: the whole program over 16 px tokens of slides of growing height.
`kernels` (CUDA): windowed attention against dense attention, and a whole context, bfloat16. `slides`: GigaPath's slide encoder over slides of
10,000 to 600,000 tiles in fp32, memory beside its projection, and on CUDA beside torch's dense attention.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.slide_encoders import encode_run
from tilestream.models.context import ContextTransformer
from tilestream.models.context_streaming import Rect, RowBands, TokenBand, mix_rect
from tilestream.models.windows import attend_windows
from tilestream.stages.hardware import peak_memory

MIB = 1024**2
SECTIONS = ("schedules", "memory", "kernels", "slides")
BAND_ROWS = 16


def grid_rows(first: int, end: int, width: int, dim: int) -> TokenBand:
    """Tokens of full rows; the same for the same rows, made without the rest of the grid."""
    row, col = (a.flatten() for a in torch.meshgrid(torch.arange(first, end), torch.arange(width), indexing="ij"))
    tokens = (row * 1009 + col * 31).float()[:, None] * torch.linspace(0.01, 1.0, dim)
    return TokenBand(tokens.sin_(), row, col, end)


class Counted(ContextTransformer):
    """Counts the tokens that each layer is given."""

    mixed = 0

    def mix(self, layer: int, tokens: torch.Tensor, tok_row: torch.Tensor, tok_col: torch.Tensor) -> torch.Tensor:
        self.mixed += len(tokens)
        return super().mix(layer, tokens, tok_row, tok_col)


@torch.inference_mode()
def schedule_run(name: str, height: int, width: int, shape: dict[str, int], shard_rows: int) -> dict[str, float]:
    """One schedule over one grid in this process: seconds, peak memory above what there was, a digest of the result, tokens mixed."""
    torch.set_num_threads(2)
    model = Counted(**shape)
    model(*_parts(grid_rows(0, 8, 64, shape["dim"])), 4.0)  # warm
    model.mixed, before, digest = 0, peak_memory(), 0.0
    start = time.perf_counter()
    if name == "dense":
        digest = float(model(*_parts(grid_rows(0, height, width, shape["dim"])), 4.0).sum(dtype=torch.float64))
    elif name == "row_bands":
        rows = range(0, height, BAND_ROWS)
        bands = (grid_rows(row, min(row + BAND_ROWS, height), width, shape["dim"]) for row in rows)
        digest = sum(float(band.tokens.sum(dtype=torch.float64)) for band in RowBands(model, 4.0).run(bands))
    else:
        for row in range(0, height, shard_rows):
            wanted = Rect(row, 0, min(row + shard_rows, height), width)
            found = mix_rect(model, wanted, lambda r: _parts(grid_rows(max(0, r.row), min(height, r.row_end), width, shape["dim"])), 4.0)
            digest += float(found[0].sum(dtype=torch.float64))
    return {
        "seconds": time.perf_counter() - start,
        "added_mib": (peak_memory() - before) / MIB,
        "digest": digest,
        "mixed": model.mixed / (height * width * shape["depth"]),
    }


def alone(section: str, call: dict[str, object]) -> dict[str, float]:
    """What one call comes to in a process of its own."""
    told = json.dumps({"section": section, "call": call})
    done = subprocess.run([sys.executable, "-m", "benchmarks.bench_context", "--one", told], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{told} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _parts(band: TokenBand) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return band.tokens, band.tok_row, band.tok_col


def theory(height: int, shape: dict[str, int], shard_rows: int) -> float:
    """Token layers of halo shards over those of the grid: each layer needs half a window more on either side than the next."""
    half, depth, total = shape["window"] // 2, shape["depth"], 0
    for row in range(0, height, shard_rows):
        low, high = row, min(row + shard_rows, height)
        for layer in reversed(range(depth)):
            shift = half if layer % 2 else 0
            low = (low + shift) // (2 * half) * 2 * half - shift
            high = -(-(high + shift) // (2 * half)) * 2 * half - shift
            total += min(high, height) - max(low, 0)
    return total / (height * depth)


def schedules(sizes: list[list[int]], shape: dict[str, int], shard_rows: int, rounds: int) -> list[dict[str, object]]:
    """Each schedule over each grid, in turns."""
    rows = []
    for height, width in sizes:
        names = ["dense", "row_bands", "halo_shards"] if height * width <= 2**20 else ["row_bands"]
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                call = {"name": name, "height": height, "width": width, "shape": shape, "shard_rows": shard_rows}
                seen[name].append(alone("schedules", call))
        spec = ContextTransformer(**shape).spec
        for name, runs in seen.items():
            row = {"schedule": name, "height": height, "width": width} | {k: median(r[k] for r in runs) for k in runs[0]}
            row["over_dense"] = row["seconds"] / median(r["seconds"] for r in seen["dense"]) if "dense" in seen else float("nan")
            row["theory"] = theory(height, shape, shard_rows) if name == "halo_shards" else 1.0
            row["bound_mib"] = (
                spec.state_bytes(width, BAND_ROWS * width) if name == "row_bands" else spec.whole_bytes(height * width)
            ) / MIB
            rows.append(row)
    return rows


def memory(width: int, heights: list[int], dim: int) -> list[dict[str, float]]:
    """The whole program with patch tokens, a process a slide."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for height in heights:
            address = f"sample://he?width={width}&height={height}"
            subprocess.run([sys.executable, "-m", "tilestream", "inspect", address], check=True, capture_output=True)
            config = {
                "slides": address, "output": f"{folder}/{height}", "tiles": {"size": 224, "level": 0, "tissue": "none"},
                "encoder": {"name": "patch_embed", "args": {"dim": dim}}, "context": {"window": 8, "depth": 4, "heads": 4},
                "compute": {"scheduler": "inline", "shard_tiles": 1024},
            }  # fmt: skip
            path = Path(folder) / f"{height}.yaml"
            path.write_text(json.dumps(config))  # JSON is YAML
            done = subprocess.run([sys.executable, "-m", "tilestream", "run", str(path)], check=False, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"the run on {height} rows ended with {done.returncode}:\n{done.stderr}")
            told = json.loads((Path(folder) / str(height) / "run.json").read_text())
            rows.append(
                {"height": height, "tokens": told["tiles"] * 196, "peak_mib": told["peak_bytes"] / MIB, "projected_mib": told["projected_bytes"] / MIB, "seconds": told["seconds"]}
            )  # fmt: skip
    return rows


def kernels(rounds: int) -> list[dict[str, object]]:
    """Attention alone over 65,536 tokens, 12 heads of 64, windows of 16; and a context of depth 12, dim 768 over 391 x 391 tokens."""
    device, window, heads, width = torch.device("cuda"), 16, 12, 64
    count = 65_536 // window**2
    packed = torch.randn(3, count, heads, window**2, width, device=device, dtype=torch.bfloat16)
    dense = torch.randn(3, 1, heads, 65_536, width, device=device, dtype=torch.bfloat16)
    full = torch.ones(count, window**2, dtype=torch.bool, device=device)
    holes = torch.rand(count, window**2, device=device) < 0.7
    sides = {
        "dense SDPA": lambda: torch.nn.functional.scaled_dot_product_attention(*dense),
        "windows, all tokens there": lambda: attend_windows(*packed, None),
        "windows, key mask of ones": lambda: attend_windows(*packed, full),
        "windows, 30 % absent": lambda: attend_windows(*packed, holes),
    }
    with torch.inference_mode():
        times = {name: cuda_ms(call, rounds) for name, call in sides.items()}
        model = ContextTransformer(768, 12, heads, window).to(device, torch.bfloat16)
        row, col = (a.flatten() for a in torch.meshgrid(torch.arange(391), torch.arange(391), indexing="ij"))
        tokens = torch.randn(len(row), 768, device=device, dtype=torch.bfloat16)
        wall = []
        for _ in range(rounds):
            torch.cuda.synchronize()
            start = time.perf_counter()
            model(tokens, row, col, 128.0)
            torch.cuda.synchronize()
            wall.append((time.perf_counter() - start) * 1000)
    times["context, depth 12, dim 768, 152,881 tokens"] = median(wall)
    return [{"kernel": name, "ms": ms, "dense_over": times["dense SDPA"] / ms} for name, ms in times.items()]


def cuda_ms(call, rounds: int) -> float:
    """Median milliseconds on the device."""
    call()
    seen = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        seen.append(start.elapsed_time(end))
    return median(seen)


def table(rows: list[dict[str, object]]) -> None:
    """Print rows under their keys."""
    for k, row in enumerate(rows):
        if k == 0:
            print("  ".join(f"{key:>12}" for key in row))
        print("  ".join(f"{value:>12.4g}" if isinstance(value, float) else f"{value!s:>12}" for value in row.values()))


def main(arguments: list[str] | None = None) -> dict[str, list[dict[str, object]]]:
    """Measure, print, and return the rows of each section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=["schedules", "memory"])
    parser.add_argument("--sizes", type=int, nargs=2, action="append", metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--shard-rows", type=int, default=64)
    parser.add_argument("--heights", type=int, nargs="+", default=[16384, 32768, 65536], help="of the slides of `memory`, px")
    parser.add_argument("--width", type=int, default=16384, help="of the slides of `memory`, px")
    parser.add_argument("--tiles", type=int, nargs="+", default=[10_000, 50_000, 152_881, 600_000], help="of the slides of `slides`")
    parser.add_argument("--layers", type=int, default=12, help="of the slide encoder of `slides`; memory does not depend on it")
    parser.add_argument("--device", default="cpu", help="of `slides`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        one = json.loads(chosen.one)
        print(json.dumps((schedule_run if one["section"] == "schedules" else encode_run)(**one["call"])))
        return {}
    shape = {"dim": chosen.dim, "depth": chosen.depth, "heads": 4, "window": chosen.window}
    found: dict[str, list[dict[str, object]]] = {}
    if "schedules" in chosen.only:
        sizes = chosen.sizes or [[256, 256], [512, 512], [1024, 1024], [512, 6250], [1024, 6250]]
        found["schedules"] = schedules(sizes, shape, chosen.shard_rows, chosen.rounds)
    if "memory" in chosen.only:
        found["memory"] = memory(chosen.width, chosen.heights, chosen.dim)
    if "kernels" in chosen.only:
        found["kernels"] = kernels(max(chosen.rounds, 10))
    if "slides" in chosen.only:
        call = {"layers": chosen.layers, "device": chosen.device}
        found["slides"] = [alone("slides", {**call, "tiles": tiles}) for tiles in chosen.tiles]
    if chosen.json:
        print(json.dumps(found, indent=1))
        return found
    for name, rows in found.items():
        print(f"\n{name}")
        table(rows)
    return found


if __name__ == "__main__":
    main()
