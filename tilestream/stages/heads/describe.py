"""Heads in a worker: loaded once, and described to the plan before anything is computed with them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import torch
from torch import nn

from tilestream.config.heads import Head
from tilestream.encoders.factories import factory_file
from tilestream.encoders.heads.address import factory_code
from tilestream.encoders.heads.load import load_head
from tilestream.encoders.heads.loaded import LoadedHead, module_bytes
from tilestream.errors import ConfigError, UnfitWorkerError, user_code
from tilestream.models.heads.bags import Bag, BagRows
from tilestream.models.heads.objects.detect_grid import batch_of
from tilestream.models.heads.objects.detections import find_objects, split_outputs
from tilestream.stages.hardware import pick_device
from tilestream.stages.heads.describe_dense import check_classes, describe_decoder, describe_dense, refuse_probabilities
from tilestream.stages.heads.facts import HeadFacts, asks_for_positions
from tilestream.store.heads.columns import Answer

T = TypeVar("T")

LOADED = 8
"""Heads that a worker keeps."""

LAYERS = 3
"""Layers' inputs and outputs that lie in memory at once, about: as many as the largest one's are counted."""

UNSEEN = 128
"""Bytes for each pixel of a patch that a layer of a graph takes whose layers are not seen: those of 32 channels at full size."""

PROBED = 4
"""Rows or patches that a head is tried on."""


@dataclass(frozen=True)
class HeadsAsked:
    """What a worker is asked of heads."""

    heads: tuple[tuple[str, Head], ...]
    """By name; addresses of models are absolute."""
    dim: int
    """Channels of rows."""
    tile: int
    """Side of a tile, px."""
    device: str
    """As `compute.device` has it."""
    batch: int
    """Patches that a head gets at once."""
    tokens: int = 1
    """Patch tokens of a tile; 1 where the encoder gives one vector."""
    vector_dim: int | None = None
    """Channels of the slide's vector, where it is not that of rows."""

    def seen_by(self, head: Head) -> HeadsAsked:
        """The same with the channels of what a head reads."""
        return self if self.vector_dim is None or head.input != "vector" else replace(self, dim=self.vector_dim)


_LOCK = threading.Lock()


@lru_cache(maxsize=LOADED)
def _loaded(
    name: str, head: Head, device: torch.device, digest: str, code: str | None
) -> LoadedHead:  # digests tell files that changed apart
    found = load_head(head, name)
    if factory_code(head.model) != code:
        raise UnfitWorkerError(
            f"a worker has another head {name} than the run's first one: the code of {head.model} ({factory_file(head.model)}) is another there. "
            "Put the same file there, or leave this worker out."
        )
    if digest and found.digest != digest:
        raise UnfitWorkerError(
            f"a worker has another head {name} than the run's first one: {head.model} has weights {found.digest[:12]} there, not {digest[:12]}. "
            "Put the same file there, or leave this worker out."
        )
    return replace(found, module=found.module.to(device))


def head_for(facts: HeadFacts, device: torch.device) -> LoadedHead:
    """The head of this process, on its device."""
    with _LOCK:
        return _loaded(facts.name, facts.head, device, facts.digest, facts.code)


@torch.inference_mode()
def describe_heads(asked: HeadsAsked) -> tuple[HeadFacts, ...]:
    """Load every head, try it on a few rows or patches, and say what the plan must know of it.

    Raises
    ------
    ConfigError, InputError
        As `load_head`; or what a head gives is not what its kind gives.
    """
    return tuple(replace(_describe(name, head, asked.seen_by(head)), code=factory_code(head.model)) for name, head in asked.heads)


def _describe(name: str, head: Head, asked: HeadsAsked) -> HeadFacts:
    loaded = load_head(head, name)
    if loaded.dim is not None and head.input != "pixels" and loaded.dim != asked.dim:
        raise ConfigError(
            f"heads.{name}.model: {head.model} takes rows of {loaded.dim} features, but {head.input} have {asked.dim}. "
            "Fit it on the embeddings of this encoder."
        )
    size = head.size or loaded.size
    device = pick_device(asked.device)
    module = loaded.module.to(device)
    on_processor = any(getattr(part, "on_processor", False) for part in module.modules())
    device = torch.device("cpu") if on_processor else device
    if head.kind == "segment":
        placed = replace(loaded, module=module)
        if head.input != "pixels":
            return describe_decoder(name, head, placed, asked.dim, asked.tokens, device)
        return describe_dense(name, head, placed, device, on_processor=on_processor)
    with user_code(f"heads.{name}.model: {head.model}", f"{PROBED} {'patches' if head.input == 'pixels' else 'rows'} of noise"):
        if head.kind == "detect":
            outputs, largest = _measured(module, lambda: _probe_detector(module, loaded.classes, size or asked.tile, device))
            attention = 0
        else:
            (out, attention), largest = _measured(module, lambda: _probe(module, head, asked, size, device))
    if head.kind != "detect":
        outputs = out.shape[-1]
        refuse_probabilities(name, head, loaded, out, -1)
    if on_processor or any(map(_is_program, module.modules())):  # what its graph holds is not seen
        largest = max(largest, PROBED * (size or asked.tile) ** 2 * UNSEEN)
    batch = batch_of(size or asked.tile) if head.kind == "detect" else asked.batch
    activations = largest // PROBED * batch * LAYERS if head.input == "pixels" else 0
    if head.kind == "detect" and not loaded.classes:
        raise ConfigError(f"heads.{name}.classes: {head.model} does not name its classes. Name them here.")
    check_classes(name, head, loaded, outputs)
    kept = attention if head.kind == "slide" and "attention" in head.save else 0
    return HeadFacts(
        name, head, Answer(loaded.task, outputs, loaded.classes, kept), loaded.digest, 2 * module_bytes(loaded.module) + activations, loaded.fitted, size,
        head.mpp or loaded.mpp, loaded.overlap if head.overlap is None else head.overlap, loaded.context, loaded.streams, on_processor, loaded.untrained, loaded.notes,
    )  # fmt: skip


def _is_program(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _measured(module: nn.Module, run: Callable[[], T]) -> tuple[T, int]:
    """What `run` gives, and the bytes of the largest input and output of a layer meanwhile."""
    largest = 0

    def look(_: nn.Module, given: tuple[object, ...], out: object) -> None:
        nonlocal largest
        tensors = [value for value in (*given, out) if isinstance(value, torch.Tensor)]
        largest = max(largest, sum(value.numel() * max(4, value.element_size()) for value in tensors))

    hooks = [part.register_forward_hook(look) for part in module.modules() if not any(part.children()) and not _is_program(part)]
    try:
        return run(), largest
    finally:
        for hook in hooks:
            hook.remove()


def _probe(module: nn.Module, head: Head, asked: HeadsAsked, size: int | None, device: torch.device) -> tuple[torch.Tensor, int]:
    """(m, outputs) what a head answers, and columns of attention that it can give."""
    generator = torch.Generator().manual_seed(0)
    if head.input == "pixels":
        side = size or asked.tile
        pixels = torch.randint(0, 256, (PROBED, 3, side, side), dtype=torch.uint8, generator=generator)
        return _row_answers(module(pixels.to(device)), PROBED), 0
    rows = torch.randn(PROBED, asked.dim, generator=generator).to(device)
    if head.kind == "classify":
        return _row_answers(module(rows), PROBED), 0
    if isinstance(module, Bag):
        places = torch.arange(PROBED, dtype=torch.float64)
        out, _ = module(BagRows(rows, places, places))
        return out.reshape(1, -1), 0 if module.maximum else 1
    if head.input == "vector":
        return _row_answers(module(rows[:1]), 1), 0
    if asks_for_positions(module):
        found = module(rows, positions=torch.arange(2.0 * PROBED, device=device).reshape(PROBED, 2))
    else:
        found = module(rows)
    out = found[0] if isinstance(found, tuple) else found
    return out.reshape(1, -1), 1 if isinstance(found, tuple) else 0


def _probe_detector(module: nn.Module, classes: tuple[str, ...], side: int, device: torch.device) -> int:
    """Classes of a detector, which is tried on patches of noise."""
    pixels = torch.randint(0, 256, (PROBED, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    parts = split_outputs(module(pixels.to(device)), PROBED)
    find_objects(parts[0], len(classes), side, getattr(module, "find_objects", None))
    return len(classes)


def _row_answers(out: torch.Tensor, count: int) -> torch.Tensor:
    if out.ndim != 2 or len(out) != count or not out.is_floating_point():
        raise ValueError(f"gives {tuple(out.shape)} {out.dtype} for {count} of them, but ({count}, outputs) floats are wanted")
    return out
