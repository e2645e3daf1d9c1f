"""Encoders for tests, named in configs as `tests.support.encoders:<factory>`."""

import time

import torch
from torch import Tensor, nn


class MeanRGB(nn.Module):
    """(n, 3, size, size) uint8 -> (n, 3) float32: the exact mean of each tile's pixels."""

    dim = 3

    def forward(self, tiles: Tensor) -> Tensor:
        return tiles.sum(dim=(2, 3), dtype=torch.int64).double().div(tiles.shape[2] * tiles.shape[3]).float()


class Corners(nn.Module):
    """(n, 3, size, size) uint8 -> (n, 12): the four corner pixels, which tell a shifted or turned tile apart."""

    dim = 12

    def forward(self, tiles: Tensor) -> Tensor:
        return tiles[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].flatten(1).float()


class NaNs(MeanRGB):
    """NaN for tiles whose mean red is odd after rounding."""

    def forward(self, tiles: Tensor) -> Tensor:
        mean = super().forward(tiles)
        return torch.where(mean[:, :1].round() % 2 == 1, torch.nan, mean)


class Trained(MeanRGB):
    """Declares what it was trained for."""

    tile_size = 256
    mpp = 0.5


def mean_rgb() -> nn.Module:
    return MeanRGB()


def corners() -> nn.Module:
    return Corners()


class SlowCorners(Corners):
    """Takes its time, so that a run can be killed in the middle."""

    def forward(self, tiles):
        time.sleep(0.02)
        return super().forward(tiles)


def slow_corners() -> nn.Module:
    return SlowCorners()


def nans() -> nn.Module:
    return NaNs()


def trained() -> nn.Module:
    return Trained()


def no_module() -> str:
    return "not a module"


def wrong_dim() -> nn.Module:
    module = MeanRGB()
    module.dim = 4
    return module
