"""The output of one unit of a head that segments, while it is filled."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from tilestream.models.heads.blending import Piece
from tilestream.models.heads.patch_grid import BlockGrid
from tilestream.stages.heads.dense_model import probabilities
from tilestream.stages.heads.facts import DenseFacts, HeadFacts
from tilestream.store.heads.columns import Answer
from tilestream.store.heads.labels import Block, LabelImage


class DenseCanvas(Protocol):
    """Where everything lies of one head on one slide."""

    dense: DenseFacts
    answer: Answer
    blocks: BlockGrid
    image: LabelImage


def label_image(facts: HeadFacts, shape: tuple[int, int], blocks: BlockGrid, l0_step: float, mpp: float | None) -> LabelImage:
    """What a head leaves of a slide whose finest level has a shape, px, and `l0_step` level-0 px from pixel to pixel."""
    answer, keeps = facts.answer, "probabilities" in facts.head.save
    if answer.task == "classification":
        return LabelImage(facts.name, *shape, blocks.side, blocks.chunk, l0_step, mpp, answer.classes, probabilities=keeps)
    channels = answer.classes or tuple(f"channel {k}" for k in range(answer.outputs))
    return LabelImage(facts.name, *shape, blocks.side, blocks.chunk, l0_step, mpp, channels, answer.outputs)


def pixel_bytes(facts: HeadFacts) -> int:
    """Bytes of an output px, before compression."""
    if facts.answer.task != "classification":
        return 4 * facts.answer.outputs
    return 1 + len(facts.answer.classes) * ("probabilities" in facts.head.save)


class UnitImage:
    """The output of one unit while it is filled, on the device."""

    def __init__(self, canvas: DenseCanvas, unit: int, device: torch.device) -> None:
        self.canvas, self.unit, self.device = canvas, unit, device
        stripe, row = canvas.blocks.place(unit)
        image, side = canvas.image, canvas.blocks.side
        self.y, self.x = row * side, stripe * canvas.blocks.blocks * side
        self.end = self.y + side
        self._height = min(self.end, image.height) - self.y
        self._width = min(self.x + canvas.blocks.blocks * side, image.width) - self.x
        self._values: Tensor | None = None
        self._likely: Tensor | None = None

    def add(self, piece: Piece) -> None:
        """Take the part of a piece that is the unit's."""
        y, x = piece.y - self.y, piece.x - self.x
        height, width = piece.computed.shape
        low_y, low_x = max(0, -y), max(0, -x)
        high_y, high_x = min(height, self._height - y), min(width, self._width - x)
        if high_y <= low_y or high_x <= low_x:
            return
        inner = (slice(low_y, high_y), slice(low_x, high_x))
        place = (slice(y + low_y, y + high_y), slice(x + low_x, x + high_x))
        values, computed = piece.values[:, inner[0], inner[1]], piece.computed[inner]
        image, answer = self.canvas.image, self.canvas.answer
        if image.channels:
            self._values = self._made(self._values, (image.channels,), torch.float32, math.nan)
            self._values[:, place[0], place[1]] = torch.where(computed, values, torch.nan)
            return
        self._values = self._made(self._values, (), torch.uint8, 0)
        self._values[place] = torch.where(computed, labels_of(values, answer), 0)
        if image.probabilities:
            likely = probabilities(values, answer) if self.canvas.dense.blend == "crop" else values
            self._likely = self._made(self._likely, (answer.columns,), torch.uint8, 0)
            self._likely[:, place[0], place[1]] = torch.where(computed, (likely * 255).round(), 0).to(torch.uint8)

    def blocks(self) -> tuple[dict[Block, NDArray[Any]], dict[Block, NDArray[Any]]]:
        """What was computed, block by block, and the probabilities; nothing where nothing was."""
        return self._cut(self._values), self._cut(self._likely)

    def _made(self, there: Tensor | None, lead: tuple[int, ...], dtype: torch.dtype, fill: float) -> Tensor:
        return torch.full((*lead, self._height, self._width), fill, dtype=dtype, device=self.device) if there is None else there

    def _cut(self, values: Tensor | None) -> dict[Block, NDArray[Any]]:
        if values is None:
            return {}
        found, side = values.cpu().numpy(), self.canvas.blocks.side
        return {
            (row, col): found[..., : self._height, start : start + side]
            for (row, col), start in zip(self.canvas.blocks.blocks_of(self.unit), range(0, self._width, side), strict=True)
        }


def labels_of(values: Tensor, answer: Answer) -> Tensor:
    """(h, w) uint8 the class, counted from 1, of (c, h, w) logits or probabilities."""
    if answer.outputs == 1 and len(values) == 1:
        return ((values[0] > 0) + 1).to(torch.uint8)
    return (values.argmax(0) + 1).to(torch.uint8)
