"""Classifiers of pixels: a model of another library between uint8 patches and logits, with that library's own normalisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tilestream.models.patch_embed import IMAGENET_MEAN, IMAGENET_STD, freeze, normalise_pixels
from tilestream.models.vit import resize_tiles


@dataclass(frozen=True)
class Preparation:
    """How a patch becomes the input of a model."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    """Of pixels in [0, 1]; subtracted."""
    std: tuple[float, ...] = IMAGENET_STD
    """What is then divided by."""
    resize: int | None = None
    """Side that patches are brought to first, px; None: they stay as they are."""
    interpolation: str = "bilinear"
    """bilinear or bicubic."""


class PixelClassifier(nn.Module):
    """(n, 3, size, size) uint8 to (n, outputs) logits.

    Parameters
    ----------
    model : nn.Module
        Takes normalised floats.
    preparation : Preparation
        Of patches.
    logits : callable
        The logits in what the model gives.
    """

    def __init__(self, model: nn.Module, preparation: Preparation, logits: Callable[[Any], Tensor] = lambda out: out) -> None:
        super().__init__()
        self.model, self.preparation, self._logits = model, preparation, logits
        freeze(self)

    def forward(self, patches: Tensor) -> Tensor:
        """(n, 3, size, size) uint8 to (n, outputs)."""
        how = self.preparation
        if how.resize is not None:
            patches = resize_tiles(patches, how.resize, how.resize, how.interpolation)
        dtype = next((value.dtype for value in self.model.parameters()), torch.float32)
        return self._logits(self.model(normalise_pixels(patches, how.mean, how.std, dtype)))
