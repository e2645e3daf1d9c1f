"""A head by the address that a config gives, whatever made it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tilestream.config.heads import Head
from tilestream.encoders.heads.address import is_factory
from tilestream.encoders.heads.factory import load_factory
from tilestream.encoders.heads.head_file import Fitted, read_head
from tilestream.encoders.weights import weights_digest
from tilestream.errors import ConfigError, InputError
from tilestream.store.heads.columns import NOT_COMPUTED


@dataclass(frozen=True)
class LoadedHead:
    """A head that is ready for inference, on the CPU."""

    module: nn.Module
    """classify: rows (n, d), or pixels (n, 3, size, size) uint8, to (n, outputs); slide: a `Bag`, or rows (n, d) to (outputs,) and logits of attention."""
    task: str
    """classification, regression or risk."""
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
    stride: int = 1
    """Px of a patch for each px of what a dense head gives."""
    streams: bool = True
    """Whether a head of a slide takes its rows in blocks."""
    untrained: bool = False
    notes: tuple[str, ...] = ()


def load_head(head: Head, name: str) -> LoadedHead:
    """Load a head, and see that it is of the kind that the config says.

    Parameters
    ----------
    head : Head
        As the config has it.
    name : str
        Its name there, for errors.

    Raises
    ------
    ConfigError
        The model is of another kind, reads something else, or its classes are not known or of another number.
    InputError
        Its files cannot be read.
    """
    loaded = _load(head, name)
    for what, wanted, own in (("kind", head.kind, loaded.kind), ("input", head.input, loaded.input)):
        if own is not None and own != wanted:
            raise ConfigError(
                f"heads.{name}.{what}: {wanted}, but {head.model} is a head of {what} {own}. Set it to {own}, or give another model."
            )
    return _with_classes(loaded, head, name)


def _load(head: Head, name: str) -> LoadedHead:
    path = Path(head.model)
    if is_factory(head.model):
        module = load_factory(head.model, name)
        stated: dict[str, Any] = {key: getattr(module, key, None) for key in ("size", "mpp", "overlap")}
        task = "regression" if getattr(module, "regression", False) else "classification"
        return LoadedHead(
            module, task, tuple(getattr(module, "classes", ())), weights_digest(module), **stated, stride=int(getattr(module, "stride", 1)),
            dim=getattr(module, "dim", None), streams=hasattr(module, "attend"), untrained=bool(getattr(module, "untrained", False)),
        )  # fmt: skip
    if path.suffix == ".safetensors" and head.input != "pixels":
        module, about = read_head(path)
        return LoadedHead(
            module, about.task, about.classes, weights_digest(module), about.fitted, about.kind, about.input, about.dim,
        )  # fmt: skip
    if not path.exists():
        raise InputError(f"heads.{name}.model: {head.model} does not exist. Give a head's file or folder, or module:factory.")
    raise ConfigError(
        f"heads.{name}.model: {head.model} is no model that a head of kind {head.kind} on {head.input} can be. "
        "Give a .safetensors of tilestream fit, or module:factory."
    )


def _with_classes(loaded: LoadedHead, head: Head, name: str) -> LoadedHead:
    """The names of the classes: the config's where it gives any, else the model's."""
    classes = head.classes or loaded.classes
    if loaded.classes and head.classes and len(head.classes) != len(loaded.classes):
        raise ConfigError(
            f"heads.{name}.classes: {len(head.classes)} names, but {head.model} has {len(loaded.classes)} classes "
            f"({', '.join(loaded.classes[:5])}). Give as many, or leave them out."
        )
    if NOT_COMPUTED in classes:
        raise ConfigError(f"heads.{name}.classes: {NOT_COMPUTED!r} is what tiles without an answer get. Name the class otherwise.")
    return replace(loaded, classes=classes)


def file_digest(path: Path) -> str:
    """SHA-256, in hex, of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    tensors: list[torch.Tensor] = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
