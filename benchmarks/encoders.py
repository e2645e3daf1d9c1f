"""Encoders that cost nothing, so that a benchmark measures the rest of the line."""

import torch
from torch import Tensor, nn

from benchmarks.tile_features import colour_histogram
from tilestream.models.efficientnet_lite import EfficientNetLite
from tilestream.models.vit import VisionTransformer
from tilestream.models.vit_config import ViTConfig


class MeanRGB(nn.Module):
    """(n, 3, size, size) uint8 -> (n, 3) float32: each tile's mean colour."""

    dim = 3

    def forward(self, tiles: Tensor) -> Tensor:
        """Mean over the pixels of each tile."""
        return tiles.sum(dim=(2, 3), dtype=torch.int64).double().div(tiles.shape[2] * tiles.shape[3]).float()


class OnePixel(nn.Module):
    """(n, 3, size, size) uint8 -> (n, 3) float32: the first pixel, the least that an encoder can do."""

    dim = 3

    def forward(self, tiles: Tensor) -> Tensor:
        """Top-left pixel of each tile."""
        return tiles[:, :, 0, 0].float()


class Wide(nn.Module):
    """(n, 3, size, size) uint8 -> (n, dim) float32: some pixels, over and over, at the price of a copy."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, tiles: Tensor) -> Tensor:
        """The tile's pixels in order, as many as there are features, in -1 to 1."""
        return tiles.flatten(1)[:, : self.dim].float() / 128 - 1


def wide(dim: int = 1024) -> nn.Module:
    """For `encoder: {name: benchmarks.encoders:wide, args: {dim: 1536}}`."""
    return Wide(dim)


def mean_rgb() -> nn.Module:
    """For `encoder: benchmarks.encoders:mean_rgb`."""
    return MeanRGB()


def one_pixel() -> nn.Module:
    """For `encoder: benchmarks.encoders:one_pixel`."""
    return OnePixel()


def vit_huge(**options):
    """ViT-H/14: 630 million parameters, 1,280 features."""
    return VisionTransformer(ViTConfig(dim=1280, depth=32, heads=16, patch=14, **options))


def lite(**options):
    """The network of tilestream-lite with random weights, for machines that have not got its weights: as fast, and means nothing."""
    return EfficientNetLite(**options)


class ColourHistogram(nn.Module):
    """(n, 3, size, size) uint8 -> (n, 512) float32: what colours alone tell."""

    dim = 512

    def forward(self, tiles: Tensor) -> Tensor:
        """Square roots of the parts of pixels in 8 x 8 x 8 bins."""
        return colour_histogram(tiles)["colour histogram"]


def histogram() -> nn.Module:
    """For `encoder: benchmarks.encoders:histogram`."""
    return ColourHistogram()
