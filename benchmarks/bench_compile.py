"""Claim: on CUDA nobody waits for a compiler: an encoder runs at once, compiles while it runs, and the next process finds the kernels.

    python -m benchmarks.bench_compile [--encoder vit_large_patch16_224] [--tiles 1024] [--slides 4] [--limit 570] [--json]

Two fresh processes, the first with an empty cache, the second with what the first one left. Figures are printed as they come; each process is ended
after half of what is left of the limit, and what it found by then counts. Each finds
  ready           seconds from the encoder on the device to its first batch, uncompiled, choice of the batch included
  batch           tiles a batch
  eager           tiles/s uncompiled
  while_compiling tiles/s uncompiled while a thread compiles; held_up: the longest that two batches came one after the other meanwhile, seconds
  compile         seconds that the thread took
  compiled        tiles/s compiled
  equal_bits      whether both ways give the same bits; largest_difference between them
and then runs the program over made slides as if compiling paid at once: slides, which of them began `compiled`, in order; its notes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

TILE = 224


def measure(encoder: str, side: int, slides: int) -> Iterator[dict[str, Any]]:
    """One process's figures, as they come."""
    import torch

    from tilestream.encoders.catalogue import EncoderSpec
    from tilestream.encoders.registry import build_encoder
    from tilestream.stages.encoding.device import DeviceEncoder

    device = torch.device("cuda")
    module = build_encoder(EncoderSpec(encoder)).to(device, torch.bfloat16)
    torch.cuda.synchronize()
    start = time.perf_counter()
    runner = DeviceEncoder(module, encoder, TILE, None, device)
    tiles = torch.randint(0, 256, (runner.batch, TILE, TILE, 3), dtype=torch.uint8, device=device)
    gaps: list[float] = []

    @torch.inference_mode()
    def rate(go_on: Callable[[int, float], bool], *, compiled: bool = False) -> float:
        count, begin = 0, time.perf_counter()
        gaps.clear()
        while go_on(count, (now := time.perf_counter()) - begin):
            runner(tiles, compiled=compiled)
            torch.cuda.synchronize()
            gaps.append(time.perf_counter() - now)
            count += len(tiles)
        return count / (time.perf_counter() - begin)

    rate(lambda count, _: count == 0)
    yield {"ready": time.perf_counter() - start, "batch": runner.batch}
    yield {"eager": rate(lambda _, seconds: seconds < 2)}
    thread = threading.Thread(target=runner.compile, daemon=True)
    start = time.perf_counter()
    thread.start()
    yield {"while_compiling": rate(lambda *_: thread.is_alive()), "held_up": max(gaps, default=0.0), "compile": time.perf_counter() - start}
    if runner.compile():
        rate(lambda count, _: count == 0, compiled=True)
        yield {"compiled": rate(lambda _, seconds: seconds < 2, compiled=True)}
        with torch.inference_mode():
            ways = runner(tiles), runner(tiles, compiled=True)
        yield {"equal_bits": torch.equal(*ways), "largest_difference": float((ways[0].float() - ways[1].float()).abs().max())}
    yield {"notes": runner.notes}
    yield run_slides(encoder, side, slides)


def run_slides(encoder: str, side: int, slides: int) -> dict[str, Any]:
    """The program over several slides."""
    import tilestream
    from benchmarks.bench_start import make_slide
    from tilestream.runner import compiling
    from tilestream.store.folder import Folder
    from tilestream.store.slide_store import SlideStore

    compiling.COMPILE_SECONDS = 1e-3
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "slides": [str(make_slide(Path(folder), side, number)) for number in range(slides)], "output": f"{folder}/out",
            "tiles": {"size": TILE, "level": 0, "tissue": "none"}, "encoder": {"name": encoder, "precision": "bf16"}, "pool": "none",
            "compute": {"device": "cuda", "scheduler": "inline", "memory_limit": "64GiB"},
        }  # fmt: skip
        start = time.perf_counter()
        summary = tilestream.run(config)
        stores = [SlideStore(Folder(f"{folder}/out/{slide.id}.zarr")) for slide in summary.slides]
        begun = [(store.attributes or {})["compiled"] for store in stores]
        return {"exit_code": summary.exit_code, "run": time.perf_counter() - start, "begun_compiled": begun, "tiles": summary.new_tiles}


def follow(command: Sequence[str], environment: Mapping[str, str], seconds: float, say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """What a process tells in lines of JSON until it ends, each said as it comes; `ended_after` where it had not ended by itself in so many seconds."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    row: dict[str, Any] = {}
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                say(found := json.loads(line))
                row |= found
    finally:
        timer.cancel()
        code = process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if code:
        say(found := {"ended_after": seconds} if late.is_set() else {"ended_with": code})
        row |= found
    return row


def print_figures(found: dict[str, Any]) -> None:
    """A line each."""
    for key, value in found.items():
        print(f"{key:>18}: {value:.4g}" if isinstance(value, float) else f"{key:>18}: {value}", flush=True)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="vit_large_patch16_224")
    parser.add_argument("--tiles", type=int, default=1024, help="about so many of each made slide")
    parser.add_argument("--slides", type=int, default=4)
    parser.add_argument("--limit", type=float, default=570.0, help="seconds within which it ends")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        row: dict[str, Any] = {}
        for found in measure(chosen.encoder, TILE * (isqrt(chosen.tiles - 1) + 1), chosen.slides):
            print(json.dumps(found), flush=True)
            row |= found
        return [row]
    rows = []
    end = time.perf_counter() + chosen.limit - 5
    with tempfile.TemporaryDirectory() as cache:
        given = ["--encoder", chosen.encoder, "--tiles", str(chosen.tiles), "--slides", str(chosen.slides)]
        for turns, turn in ((2, "empty cache"), (1, "kept cache")):
            command = [sys.executable, "-m", "benchmarks.bench_compile", "--one", *given]
            say = (lambda _: None) if chosen.json else print_figures
            say({"turn": turn})
            seconds = max(0.0, (end - time.perf_counter()) / turns)
            rows.append({"turn": turn, **follow(command, {**os.environ, "XDG_CACHE_HOME": cache}, seconds, say)})
    if chosen.json:
        print(json.dumps(rows))
    return rows


if __name__ == "__main__":
    main()
