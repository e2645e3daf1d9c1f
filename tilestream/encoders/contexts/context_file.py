"""Our file of a context, which says its shape, what it was fitted on, and what it is worth."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilestream.config.schema import Context
from tilestream.encoders.own_files import read_own, write_own
from tilestream.errors import ConfigError

if TYPE_CHECKING:
    from tilestream.models.context import ContextTransformer

BOX = Path(__file__).parent / "box"
"""Folder of the contexts that come with the package, each a file of its name and a card."""

SHAPE = ("window", "depth", "heads", "shift", "position", "width")
"""Keys of a config's `context` that a file decides."""


@dataclass(frozen=True)
class FittedOn:
    """What a context was fitted on: nothing else may be given to it."""

    encoder: str
    """Name of the encoder; of imported embeddings as their file had it."""
    encoder_sha256: str | None
    """Over its weights in `precision`, as a store's recipe has it; None of imported embeddings, whose encoder is known by its name at most."""
    precision: str | None
    """fp32, bf16 or fp16; None of imported embeddings."""
    tile: int
    """Side of a tile, px."""
    stride: float
    """Step between tiles, px."""
    mpp: float | None
    """µm/px of a tile; None where its images had no scale."""


@dataclass(frozen=True)
class ContextAbout:
    """What a file says of its context."""

    dim: int
    """Numbers of a token."""
    window: int
    depth: int
    heads: int
    shift: bool
    position: str
    width: int
    """Numbers of a token between the layers."""
    fitted: FittedOn | None = None
    trained_on: dict[str, Any] = field(default_factory=dict)
    """Slides by name and digest, tokens, steps, seed."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """How well it tells hidden tokens of slides that it has not seen, and how well simpler ways do."""
    notes: tuple[str, ...] = ()
    """What a person should know of it."""

    def build(self) -> ContextTransformer:
        """The module, its weights those of a seed."""
        from tilestream.models.context import ContextTransformer

        return ContextTransformer(self.dim, self.depth, self.heads, self.window, shift=self.shift, position=self.position, width=self.width)


def context_names() -> list[str]:
    """Names of the contexts that come with the package, to be written as `context.weights`."""
    return sorted(path.stem for path in BOX.glob("*.safetensors"))


def context_path(weights: str) -> str:
    """The file that `context.weights` means: one of the package by its name, or a path as it is."""
    return str(BOX / f"{weights}.safetensors") if weights in context_names() else weights


def write_context(path: str | os.PathLike[str], model: ContextTransformer, about: ContextAbout) -> None:
    """Write a context in half precision; the same context gives the same bytes.

    Parameters
    ----------
    path : path
        `.safetensors`; a file that is there is replaced.
    model : ContextTransformer
        As `about.build()` makes it, with the weights to be kept.
    about : ContextAbout
        What its header says.
    """
    import torch

    # The spread of a channel may be smaller than half precision holds.
    state = {
        key: value.detach().cpu().to(torch.float32 if key in ("ends.mean", "ends.spread") else torch.float16).contiguous()
        for key, value in model.state_dict().items()
    }
    write_own(path, "context", about, state)


def read_context_about(path: str | os.PathLike[str]) -> ContextAbout | None:
    """`read_own` of a context."""
    return read_own(path, "context", ContextAbout, FittedOn)


def about_of(context: Context) -> ContextAbout | None:
    """What the file of a config's context says; None where there is no file, or it is none of ours."""
    if context.weights is None or not (path := Path(context_path(context.weights))).is_file() or path.suffix != ".safetensors":
        return None
    return read_context_about(path)


def settle_context(context: Context) -> Context:
    """A config's context with the shape that its file has.

    Raises
    ------
    ConfigError
        A key was given that says otherwise; names both values.
    InputError
        The file is damaged.
    """
    about = about_of(context)
    if about is None:
        return context
    for key in SHAPE:
        if key in context.model_fields_set and getattr(context, key) != getattr(about, key):
            raise ConfigError(
                f"context.{key}: {getattr(context, key)}, but {context.weights} was fitted with {getattr(about, key)}. Leave the key out, or fit a context with it."
            )
    return context.model_copy(update={key: getattr(about, key) for key in SHAPE})
