"""fp16 and bf16 against fp32: the least cosine over tiles of real tissue, and tiles a second of the encoder alone.

    python -m benchmarks.bench_formats [--encoders tilestream-tiny vit_base_patch16_224 ...] [--data DIR] [--tiles 256] [--device auto]

`precision: auto` takes fp16 on a GPU: it must be nearer to fp32 than bf16 there, and not slower.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.encoder_gate import measure_formats
from tilestream.encoders.catalogue import EncoderSpec
from tilestream.encoders.registry import build_encoder
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions

ENCODERS = ("tilestream-tiny", "tilestream-lite", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224")


def read_tiles(data: Path, count: int, side: int) -> Tensor:
    """(n, 3, side, side) uint8 cut from the pictures in a folder and below it, at most `count`; from a sample slide where there are none."""
    tiles: list[np.ndarray] = []
    for path in sorted(data.rglob("*.jpg")) + sorted(data.rglob("*.png")):
        picture = np.asarray(Image.open(path).convert("RGB"))
        for y in range(0, picture.shape[0] - side + 1, side):
            tiles += [picture[y : y + side, x : x + side] for x in range(0, picture.shape[1] - side + 1, side)]
        if len(tiles) >= count:
            break
    if not tiles:
        across = math.ceil(math.sqrt(count))
        with open_source(f"sample://he?width={across * side}&height={across * side}", SourceOptions()) as slide:
            tiles = [slide.read((k // across * side, k % across * side, side, side)) for k in range(count)]
    return torch.from_numpy(np.stack(tiles[:count])).permute(0, 3, 1, 2).contiguous()


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Measure, print, and return the rows of each encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=ENCODERS, help="names; bare ones have random weights")
    parser.add_argument("--data", type=Path, default=Path("shared/data/histology"), help="folder of pictures of tissue")
    parser.add_argument("--tiles", type=int, default=256)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    chosen = parser.parse_args(arguments)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if chosen.device == "auto" else chosen.device
    tiles = read_tiles(chosen.data, chosen.tiles, 224).to(device)
    print(torch.cuda.get_device_name() if device.startswith("cuda") else "cpu", f"{len(tiles)} tiles")
    found = {}
    for name in chosen.encoders:
        found[name] = measure_formats(lambda name=name: build_encoder(EncoderSpec(name)), tiles)  # type: ignore[misc]
        for row in found[name]:
            far = f"1 - cosine {1 - row['cosine']:.1e}"
            print(f"{name:<24} {row['format']}: {far}, finite {row['finite']}, {row['tiles/s']:.0f} tiles/s", flush=True)
    return found


if __name__ == "__main__":
    main()
