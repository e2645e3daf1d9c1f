"""What a worker found out of a head before anything was computed with it."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tilestream.config.heads import Head
from tilestream.store.heads.columns import Answer

if TYPE_CHECKING:
    from torch import nn

    from tilestream.encoders.heads.head_file import Fitted
    from tilestream.models.heads.blending import Blend


@dataclass(frozen=True)
class DenseFacts:
    """How a head that segments is run over pixels, or over tokens."""

    size: int
    """Side of a patch, px."""
    margin: int
    """Border of a patch that its neighbours own, px."""
    stride: int
    """Px a side that become one output px."""
    blend: Blend
    """How patches meet; crop where output in the core does not depend on what lies outside the patch."""
    exact: bool
    """Whether that is so: then the output is what one pass over the whole image would give."""
    batch: int
    """Patches that the model gets at once."""
    bytes: int
    """What a batch takes beside the weights."""
    up: int = 0
    """Output px a side for each token, where it reads tokens; then `size` and `margin` are in tokens: those of a tile, and those that are seen beyond one."""

    @property
    def recipe(self) -> dict[str, Any]:
        """What of it decides numbers."""
        return {
            "size": self.size,
            "margin": self.margin,
            "stride": self.stride,
            "blend": self.blend,
            **({"up": self.up} if self.up else {}),
        }


@dataclass(frozen=True)
class HeadFacts:
    """A head of a run: what the config says of it, and what it says of itself. Small, and the same for all workers."""

    name: str
    head: Head
    """As the config has it, its model's address absolute."""
    answer: Answer
    digest: str
    """SHA-256 over its weights, or its file."""
    bytes: int
    """What a worker holds while it works with it, beyond the rows or pixels in work: weights, and what a batch takes."""
    fitted: Fitted | None = None
    """What it was fitted on, where it says so."""
    size: int | None = None
    """Side of the patches that it takes, px; None for any."""
    mpp: float | None = None
    """µm/px that it was made for; None where it does not say."""
    overlap: int | None = None
    """How far its patches overlap, px."""
    context: int = 0
    """Px a side of a patch of a detector that serve as surroundings only."""
    streams: bool = True
    """Whether a head of a slide takes its rows in blocks; else all rows are in memory at once."""
    on_processor: bool = False
    """Whether it computes on the processor wherever the encoder does: ONNX."""
    untrained: bool = False
    """Whether its weights are random."""
    notes: tuple[str, ...] = ()
    """What a person should know of it."""
    dense: DenseFacts | None = None
    """Of a head that segments."""
    code: str | None = None
    """SHA-256 over the code of the module of a `module:factory`."""

    @property
    def recipe(self) -> dict[str, Any]:
        """What of it decides numbers, as a store keeps it."""
        told = {"size": self.size, "mpp": self.mpp, "overlap": self.overlap, "context": self.context or None}
        own = {f"own_{key}": value for key, value in told.items() if value is not None}
        dense = {} if self.dense is None else {"patches": self.dense.recipe}
        return {"answer": asdict(self.answer) | {"classes": list(self.answer.classes)}, "weights_sha256": self.digest, **own, **dense}


def asks_for_positions(module: nn.Module) -> bool:
    """Whether a head of a slide that takes all rows at once has an argument `positions` in its `forward`: (n, 2) float32 y, x in µm."""
    return "positions" in inspect.signature(module.forward).parameters
