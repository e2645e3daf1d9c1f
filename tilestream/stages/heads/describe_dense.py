"""What the plan must know of a head that segments: how far it sees, and so how its patches lie and meet."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TypeVar

import torch

from tilestream.config.heads import Head
from tilestream.encoders.heads.loaded import LoadedHead, module_bytes
from tilestream.errors import ConfigError, user_code
from tilestream.models.heads.blending import Blend
from tilestream.models.heads.reach import Reach, measure_reach
from tilestream.models.heads.token_decoder import measure_token_reach
from tilestream.stages.hardware import resident_memory
from tilestream.stages.heads.dense_model import DenseModel, dense_threads
from tilestream.stages.heads.facts import DenseFacts, HeadFacts
from tilestream.store.heads.columns import Answer
from tilestream.store.heads.labels import MOST_CLASSES

T = TypeVar("T")

SIZE = 1024
"""Side of a patch, px, where neither the config nor the model says."""

OVERLAP = 0.25
"""Of a patch, where neither says, and the model sees further than a quarter of it."""

SHARES = 1e-3
"""How far the sum of shares in half precision may be from one."""

BATCH_PIXELS = {"cpu": 1 << 18, "cuda": 1 << 23}
"""Pixels of a batch, about: a CPU gains nothing from more."""


def describe_dense(name: str, head: Head, loaded: LoadedHead, device: torch.device, *, on_processor: bool = False) -> HeadFacts:
    """Probe a dense model, on its device.

    Raises
    ------
    ConfigError
        It is no dense model, or not in inference mode; or size and overlap do not suit it.
    """
    size = head.size or loaded.size or SIZE
    with user_code(f"heads.{name}.model: {head.model}", f"patches of {size} px", passing=(ConfigError,)), dense_threads(device):
        try:
            reach = measure_reach(loaded.module, size)
        except ValueError as error:
            raise ConfigError(f"heads.{name}.model: {head.model} cannot segment: {error}.") from error
    overlap = loaded.overlap if head.overlap is None else head.overlap
    margin, exact = _choose_margin(name, size, overlap, reach)
    blend: Blend = head.blend or ("crop" if exact or margin == 0 else "hann")
    exact = exact and blend == "crop"
    check_classes(name, head, loaded, reach.channels)
    if loaded.task == "classification" and len(loaded.classes) > MOST_CLASSES:
        raise ConfigError(f"heads.{name}.classes: {len(loaded.classes)}, but a label image holds {MOST_CLASSES}. Give a model of fewer.")
    with user_code(f"heads.{name}.model: {head.model}", f"a patch of {size} px"), dense_threads(device):
        noise = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        refuse_probabilities(name, head, loaded, loaded.module(noise.to(device)), 1)
    alone = exact and device.type == "cpu"  # as one pass: for several images other convolutions may be taken, whose last bits differ
    batch = 1 if alone else max(1, BATCH_PIXELS[device.type] // size**2)
    answer = Answer(loaded.task, reach.channels, loaded.classes)
    model = DenseModel(loaded.module, answer, device, "auto", as_logits=False, what=f"heads.{name}.model: {head.model}", whose="grey")
    taken, _ = _peak_of(lambda: model.warm(batch, size), device)
    dense = DenseFacts(size, margin, reach.stride, blend, exact, batch, taken)
    seen = (
        f"sees {reach.margin} px beyond a pixel"
        if reach.margin is not None
        else f"sees further than a quarter of a patch of {size} px, or everything"
    )
    met = "equals one pass over the whole image" if exact else f"patches meet over {2 * margin} px ({blend})"
    return HeadFacts(
        name, head, answer, loaded.digest, module_bytes(loaded.module), size=size, mpp=head.mpp or loaded.mpp, overlap=2 * margin,
        on_processor=on_processor, untrained=loaded.untrained, notes=(*loaded.notes, f"{seen}; {met}"), dense=dense,
    )  # fmt: skip


def describe_decoder(name: str, head: Head, loaded: LoadedHead, dim: int, tokens: int, device: torch.device) -> HeadFacts:
    """Probe a head that segments from patch tokens, on its device.

    Raises
    ------
    ConfigError
        The encoder gives no square of tokens, or the head is no decoder of its tokens.
    """
    key, side = f"heads.{name}.model: {head.model}", math.isqrt(tokens)
    if tokens < 2 or side * side != tokens:
        gives = "one vector" if tokens < 2 else f"{tokens} tokens, which are no square,"
        raise ConfigError(
            f"heads.{name}.input: {head.input}, but the encoder gives {gives} a tile. Ask it for patch tokens, or set input to pixels."
        )
    with user_code(key, f"maps of tokens of {dim} features"), dense_threads(device):
        try:
            taken, reach = _peak_of(lambda: measure_token_reach(loaded.module, dim), device)
        except ValueError as error:
            raise ConfigError(f"{key} cannot segment from tokens: {error}.") from error
    check_classes(name, head, loaded, reach.channels)
    dense = DenseFacts(side, reach.margin, 1, "crop", exact=True, batch=1, bytes=taken, up=reach.up)
    note = f"sees {reach.margin} tokens beyond one, and gives {reach.up} px a side for each; equals one pass over the whole map"
    return HeadFacts(
        name, head, Answer(loaded.task, reach.channels, loaded.classes), loaded.digest, module_bytes(loaded.module), loaded.fitted,
        untrained=loaded.untrained, notes=(*loaded.notes, note), dense=dense,
    )  # fmt: skip


def check_classes(name: str, head: Head, loaded: LoadedHead, outputs: int) -> None:
    """Refuse names of classes that are not as many as a model has. Raises ConfigError."""
    classes = loaded.classes
    wanted = max(2, outputs) if loaded.task == "classification" else outputs
    if loaded.task == "classification" and len(classes) != wanted:
        raise ConfigError(
            f"heads.{name}.classes: {head.model} gives {outputs} {'logit' if outputs == 1 else 'logits'}, but "
            f"{f'{len(classes)} classes are named' if classes else 'its classes have no names'}. Name {wanted} of them."
        )


def refuse_probabilities(name: str, head: Head, loaded: LoadedHead, out: torch.Tensor, dim: int) -> None:
    """Refuse answers to noise that are shares of one along `dim`: softmax would be taken of them once more. Raises ConfigError."""
    if loaded.task != "classification" or out.numel() == 0 or out.shape[dim] < 2:
        return
    if bool((out >= 0).all()) and bool(((out.double().sum(dim) - 1).abs() < SHARES).all()):
        raise ConfigError(
            f"heads.{name}.model: {head.model} gives probabilities, which add up to one, but logits are wanted: softmax is taken of them here. "
            "Leave its last softmax out, or return the logarithm of what it gives."
        )


def _choose_margin(name: str, size: int, overlap: int | None, reach: Reach) -> tuple[int, bool]:
    """The margin of patches, and whether the model sees no further."""
    if overlap is None and reach.margin is not None:
        margin = reach.margin
    else:
        wanted = int(size * OVERLAP) if overlap is None else overlap
        margin = wanted // 2 // reach.period * reach.period
        if overlap is not None and (2 * margin != overlap or 2 * overlap > size):
            raise ConfigError(
                f"heads.{name}.overlap: {overlap} px, but it must be a multiple of {2 * reach.period}, and at most half of the size, {size}. "
                f"Set it to {min(2 * margin, size // 4 // reach.period * reach.period * 2)}, or leave it out."
            )
    if (size - 2 * margin) % reach.period:
        raise ConfigError(
            f"heads.{name}.size: {size} px, but the model works in steps of {reach.period} px. Set it to {size // reach.period * reach.period}."
        )
    return margin, reach.margin is not None and margin >= reach.margin


def _peak_of(work: Callable[[], T], device: torch.device) -> tuple[int, T]:
    """Bytes by which memory rises while `work` is done, and what it gives."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        found = work()
        return torch.cuda.max_memory_allocated(device) - before, found
    before, most, done = resident_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.001):
            most = max(most, resident_memory())

    watcher = threading.Thread(target=watch, name="memory", daemon=True)
    watcher.start()
    try:
        found = work()
    finally:
        done.set()
        watcher.join()
    return max(0, most - before), found
