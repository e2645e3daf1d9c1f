"""GigaPath's slide encoder over growing slides, a process each: seconds, memory beside its projection, and on CUDA the same model with dense attention."""

import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.nn import functional as F  # noqa: N812

from tilestream.encoders.slides.presets import SLIDE_PRESETS
from tilestream.models.slides.base import TileBlock
from tilestream.models.slides.longnet import LongNet, LongNetLayer
from tilestream.models.slides.specs import LongNetSpec
from tilestream.stages.hardware import peak_memory
from tilestream.store.layout import BLOCK_ROWS

MIB, GIB = 1024**2, 1024**3

DENSE_TILES = 200_000
"""Beyond which dense attention takes minutes."""


def tile_blocks(tiles: int, width: int, device: torch.device) -> Iterator[TileBlock]:
    """Vectors on a square grid as the store gives them, block by block; the same ones each time."""
    side = int(tiles**0.5) + 1
    for start in range(0, tiles, BLOCK_ROWS):
        at = torch.arange(start, min(start + BLOCK_ROWS, tiles))
        vectors = torch.randn(len(at), width, generator=torch.Generator().manual_seed(start))
        yield TileBlock(vectors.to(device), at // side, at % side)


class DenseLayer(LongNetLayer):
    """The block with each token attending to all."""

    def forward(self, x, check=lambda: None):
        normed = self.self_attn_layer_norm(x)
        query, key, value = (self.self_attn[f"{name}_proj"](normed).unflatten(1, (self.heads, -1)).transpose(0, 1)[None] for name in "qkv")
        attended = F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).flatten(1)
        for part, found in zip(x.split(1 << 16), attended.split(1 << 16), strict=True):
            part.add_(self.self_attn["out_proj"](self.self_attn["inner_attn_ln"](found)))
            hidden = F.gelu(self.ffn["fc1"](self.final_layer_norm(part)))
            part.add_(self.ffn["fc2"](self.ffn["ffn_layernorm"](hidden)))


@torch.inference_mode()
def encode_run(tiles: int, layers: int, device: str) -> dict[str, float | str]:
    """One slide of so many tiles through GigaPath's slide encoder in this process, in fp32."""
    on = torch.device(device)
    cuda = on.type == "cuda"
    preset = SLIDE_PRESETS["gigapath"]
    spec = replace(preset.spec, depth=layers)
    module = LongNet(spec).to(on)
    module.encode(tile_blocks(300, spec.inputs, on), 300)  # warm
    started, before = _start(cuda), peak_memory()
    made = module.encode(tile_blocks(tiles, spec.inputs, on), tiles)
    found: dict[str, float | str] = {"tiles": tiles, "layers": layers, "device": torch.cuda.get_device_name() if cuda else "cpu"}
    found |= _ended(cuda, started)
    projected = spec.bytes(tiles, cuda=cuda)
    held = found["device_gib"] * GIB - spec.weight_bytes if cuda else peak_memory() - before
    found |= {
        "added_mib": held / MIB,
        "projected_mib": projected / MIB,
        "below": str(held <= projected),
        "process_mib": peak_memory() / MIB,
    }
    found["norm"] = float(made.vector.norm())
    if cuda and tiles <= DENSE_TILES:
        for name, dtype in (("dense_fp32", torch.float32), ("dense_bf16", torch.bfloat16)):
            found |= _dense(module, spec, tiles, on, name, dtype)
    return found


def _dense(module: LongNet, spec: LongNetSpec, tiles: int, device: torch.device, name: str, dtype: torch.dtype) -> dict[str, float]:
    """Seconds and GiB of the same model with dense attention; NaN where it does not fit."""
    dense = LongNet(spec, seed=None).to(device)
    dense.load_state_dict(module.state_dict())
    for number in range(spec.depth):
        dense.encoder["layers"][number].__class__ = DenseLayer
    dense = dense.to(dtype)
    x = torch.cat([dense.begin(0), *(module.place(b.vectors, b.row, b.col) for b in tile_blocks(tiles, spec.inputs, device))]).to(dtype)
    torch.cuda.empty_cache()
    started = _start(cuda=True)
    try:
        for _ in dense.layers(x):
            pass
        took = _ended(True, started)
    except torch.OutOfMemoryError:
        took = {"seconds": float("nan"), "device_gib": float("nan")}
    del x
    torch.cuda.empty_cache()
    return {f"{name}_s": took["seconds"], f"{name}_gib": took["device_gib"]}


def _start(cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    return time.perf_counter()


def _ended(cuda: bool, started: float) -> dict[str, float]:
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, **({"device_gib": torch.cuda.max_memory_allocated() / GIB} if cuda else {})}
