"""Weights to a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors in the order of their names: header length in 8 bytes, little-endian, JSON header, bytes without gaps.

    The file is complete or absent: it is written beside its place and then renamed.

    Parameters
    ----------
    path : Path
        Where to.
    state : mapping of str to Tensor
        float32, float16 or bfloat16, on any device.
    metadata : mapping of str to str, optional
        Kept in the header.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    parts: list[bytes] = []
    reached = 0
    for name, tensor in sorted(state.items()):
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [reached, reached + len(raw)]}
        parts.append(raw)
        reached += len(raw)
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)  # the data begin at a multiple of 8
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_bytes(b"".join([len(told).to_bytes(8, "little"), told, *parts]))
    unfinished.replace(path)
