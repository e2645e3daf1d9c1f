"""A dense model at work: batches of patches in, what it says of each pixel out, in the order in which they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tilestream.errors import user_code
from tilestream.models.heads.blending import Patch
from tilestream.models.heads.reach import check_output
from tilestream.stages.hardware import pick_precision
from tilestream.stages.heads.answers import NOT_FINITE
from tilestream.stages.worker import DEVICE_ERRORS
from tilestream.store.heads.columns import Answer
from tilestream.store.layout import NONFINITE
from tilestream.tiles.tile_reader import Failure

IN_FLIGHT = 2
"""Batches launched on a device before the results of the first are looked at."""

LEAST_THREADS = 2
"""With one thread torch takes other convolutions for small batches than for large ones, and their last bits differ."""


@dataclass(frozen=True)
class PixelPatch:
    """A patch before the model."""

    row: int
    col: int
    pixels: Tensor | Failure
    """(size, size, 3) uint8 on the device; or why there are none."""


@contextmanager
def dense_threads(device: torch.device) -> Iterator[None]:
    """Threads with which a patch gives the same bits in whatever batch, and as part of whatever image."""
    before = torch.get_num_threads()
    if device.type == "cpu" and before < LEAST_THREADS:
        torch.set_num_threads(LEAST_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class DenseModel:
    """A model on its device.

    Parameters
    ----------
    module : nn.Module
        (n, 3, size, size) uint8 to (n, outputs, h, w).
    answer : Answer
        What its outputs are.
    device : torch.device
    precision : str
        As `encoder.precision`; auto is fp32 on a CPU, and fp16 is bf16.
    as_logits : bool
        Whether logits stay logits, and are no probabilities yet.
    what, whose : str
        The model, and the slide that it is run on, for errors.
    """

    def __init__(
        self, module: nn.Module, answer: Answer, device: torch.device, precision: str, *, as_logits: bool, what: str, whose: str
    ) -> None:
        self.module, self.answer, self.device, self.as_logits = module, answer, device, as_logits
        self.what, self.whose = what, whose
        given = "bf16" if precision == "fp16" else precision  # beside an encoder of fp16: whose results leave its range are lost
        self._dtype = torch.float32 if device.type == "cpu" and precision == "auto" else pick_precision(given, device)
        if device.type == "cuda":
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(self, patches: Iterable[PixelPatch], batch: int, failed: dict[tuple[int, int], Failure]) -> Iterator[Patch]:
        """What the model makes of patches, in their order; those without pixels or with values that are not finite have none, and are in `failed`."""
        flight: deque[tuple[list[PixelPatch], Tensor | None, _Flags | None]] = deque()
        for group in _groups(patches, batch):
            flight.append((group, *self._launch(group, batch)))
            if len(flight) >= (IN_FLIGHT if self.device.type == "cuda" else 1):
                yield from _land(*flight.popleft(), failed)
        while flight:
            yield from _land(*flight.popleft(), failed)

    def warm(self, batch: int, size: int) -> None:
        """Run a batch of grey patches."""
        grey = torch.full((size, size, 3), 200, dtype=torch.uint8, device=self.device)
        for _ in self.run([PixelPatch(0, k, grey) for k in range(batch)], batch, {}):
            pass

    def _launch(self, group: list[PixelPatch], batch: int) -> tuple[Tensor | None, _Flags | None]:
        """(n, c, h, w) values of those that have pixels, on the device, and whether they are finite."""
        pixels = [patch.pixels for patch in group if isinstance(patch.pixels, Tensor)]
        if not pixels:
            return None, None
        filled = [*pixels, *(torch.zeros_like(pixels[0]) for _ in range(batch - len(pixels)))]  # always one shape
        inputs = torch.stack(filled).permute(0, 3, 1, 2)
        cast: AbstractContextManager[object] = nullcontext()
        if self._dtype is not torch.float32:
            cast = torch.autocast(self.device.type, self._dtype)
        else:
            inputs = inputs.contiguous()
        places = f"{self.whose}: patches ({group[0].row}, {group[0].col}) to ({group[-1].row}, {group[-1].col})"
        with torch.inference_mode(), cast, user_code(self.what, places, passing=DEVICE_ERRORS):
            out = self.module(inputs)
            check_output(out, pixels[0].shape[0])
        out = out[: len(pixels)].float()
        flags = _Flags(torch.isfinite(out).flatten(1).all(1))
        return (out if self.as_logits else probabilities(out, self.answer)), flags


class _Flags:
    """(n,) bool that come to the host as soon as they are known: to wait for them is not to wait for what was launched behind them."""

    def __init__(self, found: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._found = found
        if found.is_cuda:
            self._found = torch.empty(found.shape, dtype=torch.bool, pin_memory=True)
            self._found.copy_(found, non_blocking=True)
            self._event = torch.cuda.current_stream(found.device).record_event()

    def read(self) -> list[bool]:
        """Wait for them."""
        if self._event is not None:
            self._event.synchronize()
        flags: list[bool] = self._found.tolist()
        return flags


def probabilities(logits: Tensor, answer: Answer) -> Tensor:
    """(..., classes, h, w) of (..., outputs, h, w): softmax over several logits, sigmoid of a single one; values of no classes as they are."""
    if answer.task != "classification":
        return logits
    if answer.outputs == 1:
        second = torch.sigmoid(logits)
        return torch.cat([1 - second, second], dim=-3)
    return torch.softmax(logits, dim=-3)


def _groups(patches: Iterable[PixelPatch], batch: int) -> Iterator[list[PixelPatch]]:
    """Patches in lists that hold `batch` with pixels; the last one may hold fewer."""
    group: list[PixelPatch] = []
    count = 0
    for patch in patches:
        group.append(patch)
        count += isinstance(patch.pixels, Tensor)
        if count == batch:
            yield group
            group, count = [], 0
    if group:
        yield group


def _land(group: list[PixelPatch], values: Tensor | None, finite: _Flags | None, failed: dict[tuple[int, int], Failure]) -> Iterator[Patch]:
    good = iter([] if finite is None else finite.read())
    number = 0
    for patch in group:
        found = None
        if isinstance(patch.pixels, Failure):
            failed[patch.row, patch.col] = patch.pixels
        else:
            assert values is not None
            if next(good):
                found = values[number]
            else:
                failed[patch.row, patch.col] = Failure(NOT_FINITE, NONFINITE)
            number += 1
        yield Patch(patch.row, patch.col, found)
