"""Claim: on CUDA nobody waits for a compiler: an encoder runs at once, compiles while it runs, and the next process finds the kernels.

    python -m benchmarks.bench_compile [--encoder vit_large_patch16_224] [--side 4096] [--slides 4] [--json]

Two fresh processes, the first with an empty cache, the second with what the first one left. Each prints
  ready           seconds from the encoder on the device to its first batch, uncompiled, choice of the batch included
  batch           tiles a batch
  eager           tiles/s uncompiled
  while_compiling tiles/s uncompiled while a thread compiles
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
from typing import Any


def measure(encoder: str, side: int, slides: int) -> dict[str, Any]:
    """One process's figures."""
    import torch

    from tilestream.encoders.catalogue import EncoderSpec
    from tilestream.encoders.registry import build_encoder
    from tilestream.stages.encoding.device import DeviceEncoder

    device = torch.device("cuda")
    module = build_encoder(EncoderSpec(encoder)).to(device, torch.bfloat16)
    torch.cuda.synchronize()
    start = time.perf_counter()
    runner = DeviceEncoder(module, encoder, 224, None, device)
    tiles = torch.randint(0, 256, (runner.batch, 224, 224, 3), dtype=torch.uint8, device=device)

    @torch.inference_mode()
    def rate(go_on: Any, *, compiled: bool = False) -> float:
        count, begin = 0, time.perf_counter()
        while go_on(count, time.perf_counter() - begin):
            runner(tiles, compiled=compiled)
            torch.cuda.synchronize()
            count += len(tiles)
        return count / (time.perf_counter() - begin)

    rate(lambda count, _: count == 0)
    row: dict[str, Any] = {"ready": time.perf_counter() - start, "batch": runner.batch}
    row["eager"] = rate(lambda _, seconds: seconds < 2)
    thread = threading.Thread(target=runner.compile)
    start = time.perf_counter()
    thread.start()
    row["while_compiling"] = rate(lambda *_: thread.is_alive())
    row["compile"] = time.perf_counter() - start
    row["compiled"] = 0.0
    if runner.compile():
        rate(lambda count, _: count == 0, compiled=True)
        row["compiled"] = rate(lambda _, seconds: seconds < 2, compiled=True)
        with torch.inference_mode():
            ways = runner(tiles), runner(tiles, compiled=True)
        row["equal_bits"] = torch.equal(*ways)
        row["largest_difference"] = float((ways[0].float() - ways[1].float()).abs().max())
    row["notes"] = runner.notes
    return row | run_slides(encoder, side, slides)


def run_slides(encoder: str, side: int, slides: int) -> dict[str, Any]:
    """The program over several slides."""
    import tilestream
    from tilestream.runner import compiling
    from tilestream.store.folder import Folder
    from tilestream.store.slide_store import SlideStore

    compiling.COMPILE_SECONDS = 1e-3
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "slides": [f"sample://he?width={side}&height={side}&seed={seed}" for seed in range(slides)], "output": folder,
            "tiles": {"size": 224, "level": 0, "tissue": "none"}, "encoder": {"name": encoder, "precision": "bf16"}, "pool": "none",
            "compute": {"device": "cuda", "scheduler": "inline", "memory_limit": "64GiB"},
        }  # fmt: skip
        start = time.perf_counter()
        summary = tilestream.run(config)
        stores = [SlideStore(Folder(f"{folder}/{slide.id}.zarr")) for slide in summary.slides]
        begun = [(store.attributes or {})["compiled"] for store in stores]
        return {"exit_code": summary.exit_code, "run": time.perf_counter() - start, "begun_compiled": begun, "tiles": summary.new_tiles}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="vit_large_patch16_224")
    parser.add_argument("--side", type=int, default=4096, help="of the made slides, px")
    parser.add_argument("--slides", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        row = measure(chosen.encoder, chosen.side, chosen.slides)
        print("\n" + json.dumps(row), flush=True)
        return [row]
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        given = ["--encoder", chosen.encoder, "--side", str(chosen.side), "--slides", str(chosen.slides)]
        for turn in ("empty cache", "kept cache"):
            command = [sys.executable, "-m", "benchmarks.bench_compile", "--one", *given]
            environment = {**os.environ, "XDG_CACHE_HOME": cache}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            rows.append({"turn": turn, **json.loads(done.stdout.splitlines()[-1])})
    if chosen.json:
        print(json.dumps(rows))
    for row in () if chosen.json else rows:
        print(
            "\n".join(f"{key:>18}: {value:.4g}" if isinstance(value, float) else f"{key:>18}: {value}" for key, value in row.items()), "\n"
        )
    return rows


if __name__ == "__main__":
    main()
