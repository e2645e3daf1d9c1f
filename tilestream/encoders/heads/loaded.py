"""What every loader of heads gives: a module that is ready for inference, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tilestream.config.heads import Head
from tilestream.encoders.heads.head_file import Fitted


@dataclass(frozen=True)
class HeadFolder:
    """A folder with a head in it."""

    path: Path
    config: dict[str, Any]
    """Its `config.json`."""
    head: Head
    """What the config of the run says of it."""
    name: str
    """Of the head, for errors."""
    weights: Path | None
    """Its file, where one is named."""

    @property
    def key(self) -> str:
        """Where errors point to."""
        return f"heads.{self.name}.model"


@dataclass(frozen=True)
class LoadedHead:
    """A head that is ready for inference, on the CPU."""

    module: nn.Module
    """classify: rows (n, d), or pixels (n, 3, size, size) uint8, to (n, outputs); slide: a `Bag`, or rows (n, d) to (outputs,) and logits of attention;
    detect: pixels to what `models.heads.objects.detections` reads."""
    task: str
    """classification, regression or risk; detection of objects."""
    classes: tuple[str, ...]
    """Names as the model has them; empty where it does not say."""
    digest: str
    """SHA-256 over its weights, or its file where they cannot be seen."""
    fitted: Fitted | None = None
    """What it was fitted on, where it says so."""
    kind: str | None = None
    """The kind of head that it is; None for any."""
    input: str | None = None
    """What it reads; None for anything."""
    dim: int | None = None
    """Channels of the rows that it takes; None for any."""
    size: int | None = None
    """Side of the patches that it takes, px; None for any."""
    mpp: float | None = None
    overlap: int | None = None
    """How far its patches overlap, px."""
    context: int = 0
    """Px a side of a patch of a detector that serve as surroundings only."""
    stride: int = 1
    """Px of a patch for each px of what a dense head gives."""
    streams: bool = True
    """Whether a head of a slide takes its rows in blocks."""
    untrained: bool = False
    notes: tuple[str, ...] = ()


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    tensors: list[torch.Tensor] = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
