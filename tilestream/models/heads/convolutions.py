"""A small head over pixels, of convolutions alone: it sees little beyond a pixel, so that a slide in patches gives what the whole slide would."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvolutionHead(nn.Module):
    """Pixels to a logit of each class for each square of 4 px a side.

    Parameters
    ----------
    dim : int
        Channels of a pixel.
    outputs : int
        Classes.
    hidden : int
        Channels between.
    mpp : float, optional
        µm/px that it is for.
    """

    stride = 4

    def __init__(self, dim: int, outputs: int, hidden: int = 24, mpp: float | None = None) -> None:
        super().__init__()
        self.mpp = mpp
        layers: list[nn.Module] = [nn.Conv2d(dim, hidden, 5, 2, 2), nn.ReLU(), nn.Conv2d(hidden, hidden, 3, 2, 1), nn.ReLU()]
        for dilation in (1, 2, 3):
            layers += [nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(hidden, outputs, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, dim, h, w), 0 to 255, to (n, outputs, h / 4, w / 4)."""
        out: Tensor = self.layers(pixels.to(torch.float32) / 127.5 - 1)
        return out
