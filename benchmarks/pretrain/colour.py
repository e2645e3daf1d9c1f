"""Changes of colour and sharpness, for a whole batch at once, each picture with numbers of its own.

`Recolour.draw` draws the numbers; `Recolour.forward` is a function of tensors alone, so that it can be compiled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.pretrain.geometry import draw_uniform

STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical densities of red, green and blue of haematoxylin, eosin and DAB (Ruifrok and Johnston 2001, Anal Quant Cytol Histol 23:291)."""
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_RADIUS = 3
"""Of the blur, px."""

# Annex K of ITU-T T.81 (JPEG), row by row.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92), (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99), (47, 66, 99, 99, 99, 99, 99, 99),
    (99,) * 8, (99,) * 8, (99,) * 8, (99,) * 8,
)  # fmt: skip


@dataclass(frozen=True)
class ColourConfig:
    """How far colours and sharpness go; each number is the largest change unless it says otherwise."""

    stain_factor: float = 0.35
    """Of the amount of each stain, as a part of it (Tellez et al. 2019, arXiv:1902.06543)."""
    stain_offset: float = 0.06
    """Of the amount of each stain, in units of optical density."""
    brightness: float = 0.25
    """As a part."""
    contrast: float = 0.25
    """As a part."""
    saturation: float = 0.4
    """As a part."""
    hue: float = 0.35
    """Turn of the chroma plane, radian."""
    grey: float = 0.2
    """Chance of a picture without colour."""
    sharpness: float = 0.5
    """Chance of a picture that is blurred or sharpened."""
    blur: float = 1.5
    """Largest standard deviation of the blur, px."""
    noise: float = 0.03
    """Largest standard deviation of the noise, of pixels in [0, 1]."""
    jpeg: float = 0.4
    """Chance of a picture with the losses of JPEG."""

    def scaled(self, factor: float) -> ColourConfig:
        """Changes of colour `factor` times as far; sharpness, noise and JPEG as they are."""
        names = ("stain_factor", "stain_offset", "brightness", "contrast", "saturation", "hue", "grey")
        return replace(self, **{name: getattr(self, name) * factor for name in names})


class Changes(NamedTuple):
    """Drawn numbers for n pictures."""

    stain: Tensor
    """(n, 3, 3) applied to optical densities."""
    stain_offset: Tensor
    """(n, 3) added to them."""
    chroma: Tensor
    """(n, 3, 3) applied to colours."""
    contrast: Tensor
    """(n,) factor about the picture's mean."""
    kernel: Tensor
    """(n, 7) weights of the blur along an axis."""
    sharpen: Tensor
    """(n,) from -1, blurred, over 0, as it is, to above, sharpened."""
    noise: Tensor
    """(n,) standard deviation."""
    step: Tensor
    """(n,) factor of the JPEG tables; 0 for pictures without."""


class Recolour(nn.Module):
    """Draws changes and applies them; its buffers are the constants of both, so that no step waits for a copy to the device.

    Parameters
    ----------
    config : ColourConfig
    """

    stains: Tensor
    unstain: Tensor
    yiq: Tensor
    rgb_from_yiq: Tensor
    ycc: Tensor
    rgb_from_ycc: Tensor
    cosines: Tensor
    table: Tensor

    def __init__(self, config: ColourConfig) -> None:
        super().__init__()
        self.config = config
        stains = F.normalize(torch.tensor(STAINS), dim=1)  # (stain, colour)
        yiq, ycc = torch.tensor(_YIQ).T, torch.tensor(_YCC).T  # (in, out), as `mix_channels` takes them
        k = torch.arange(8.0)
        cosines = torch.cos(math.pi / 8 * (k + 0.5) * k[:, None]) / 2  # (frequency, px)
        constants = {
            "stains": stains, "unstain": torch.linalg.inv(stains),
            "yiq": yiq, "rgb_from_yiq": torch.linalg.inv(yiq),
            "ycc": ycc, "rgb_from_ycc": torch.linalg.inv(ycc),
            "cosines": torch.cat([cosines[:1] / math.sqrt(2), cosines[1:]]),
            "table": torch.tensor((_LUMA, _CHROMA, _CHROMA), dtype=torch.float32),  # (3, 8, 8)
        }  # fmt: skip
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def stain_change(self, factor: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3) factors and offsets of the stains to (n, 3, 3) and (n, 3) of the optical densities."""
        return self.unstain @ (factor[..., None] * self.stains), offset @ self.stains

    def draw(self, n: int, generator: torch.Generator) -> Changes:
        """Draw the numbers for n pictures on the generator's device."""
        config = self.config

        def uniform(*shape: int, low: float = -1, high: float = 1) -> Tensor:
            return draw_uniform((n, *shape), low, high, generator)

        stain, offset = self.stain_change(1 + config.stain_factor * uniform(3), config.stain_offset * uniform(3))
        coloured = uniform(low=0) >= config.grey
        saturation, hue = (1 + config.saturation * uniform()) * coloured, config.hue * uniform()
        turn = torch.zeros(n, 3, 3, device=generator.device)
        turn[:, 0, 0] = 1
        turn[:, 1, 1] = turn[:, 2, 2] = saturation * hue.cos()
        turn[:, 1, 2] = saturation * hue.sin()
        turn[:, 2, 1] = -turn[:, 1, 2]
        chroma = self.yiq @ turn @ self.rgb_from_yiq * (1 + config.brightness * uniform())[:, None, None]
        taps = torch.arange(-_RADIUS, _RADIUS + 1, device=generator.device)
        sigma = uniform(low=0.3, high=config.blur)[:, None]
        kernel = torch.softmax(-((taps / sigma) ** 2) / 2, dim=1)
        sharpen = uniform(low=-1, high=0.8) * (uniform(low=0) < config.sharpness)
        quality = uniform(low=30, high=95)
        step = torch.where(quality < 50, 50 / quality, 2 - quality / 50) * (uniform(low=0) < config.jpeg)
        return Changes(stain, offset, chroma, 1 + config.contrast * uniform(), kernel, sharpen, config.noise * uniform(low=0), step)

    def forward(self, pictures: Tensor, changes: Changes, noise: Tensor) -> Tensor:
        """(n, 3, side, side) float32 in [0, 1] to the same, changed; `noise` is normal and has their shape. Sides are multiples of 8."""
        pictures = jitter_stain(pictures, changes.stain, changes.stain_offset)
        mean = pictures.mean(dim=(1, 2, 3), keepdim=True)
        pictures = (pictures - mean) * changes.contrast[:, None, None, None] + mean
        pictures = mix_channels(pictures, changes.chroma).clamp(0, 1)
        blurred = _blur_axis(_blur_axis(pictures, changes.kernel, 2), changes.kernel, 3)
        pictures = pictures + changes.sharpen[:, None, None, None] * (pictures - blurred)
        pictures = (pictures + changes.noise[:, None, None, None] * noise).clamp(0, 1)
        lossy = self.lose_as_jpeg(pictures, changes.step)
        return torch.where(changes.step[:, None, None, None] > 0, lossy, pictures)

    def lose_as_jpeg(self, pictures: Tensor, step: Tensor) -> Tensor:
        """Round the cosine transform of blocks of 8 x 8 px to multiples of JPEG's tables times `step`; colours are not subsampled.

        (n, 3, h, w) float32 in [0, 1] and (n,) to (n, 3, h, w) in [0, 1].
        """
        n, _, h, w = pictures.shape
        table = (self.table * step[:, None, None, None]).clamp_min(1)[:, :, None, None]  # (n, 3, 1, 1, 8, 8)
        ycc = mix_channels(pictures * 255 - 128, self.ycc.expand(n, 3, 3))
        blocks = ycc.reshape(n, 3, h // 8, 8, w // 8, 8).transpose(3, 4)  # (n, 3, h / 8, w / 8, 8, 8)
        waves = self.cosines @ blocks @ self.cosines.T
        waves = torch.round(waves / table) * table
        ycc = (self.cosines.T @ waves @ self.cosines).transpose(3, 4).reshape(n, 3, h, w)
        return ((mix_channels(ycc, self.rgb_from_ycc.expand(n, 3, 3)) + 128) / 255).clamp(0, 1)


def jitter_stain(pictures: Tensor, stain: Tensor, offset: Tensor) -> Tensor:
    """Change the amounts of the stains of (n, 3, side, side) float32 in [0, 1]; the other two are from `Recolour.stain_change`."""
    density = -torch.log(pictures.clamp_min(1 / 255))
    return torch.exp(-mix_channels(density, stain) - offset[..., None, None]).clamp(0, 1)


def mix_channels(pictures: Tensor, matrix: Tensor) -> Tensor:
    """(n, 3, h, w) by (n, 3 in, 3 out) to (n, 3, h, w), as sums of products that a compiler fuses with what stands around."""
    parts = [sum(pictures[:, c] * matrix[:, c, d, None, None] for c in range(3)) for d in range(3)]
    return torch.stack(parts, dim=1)


def _blur_axis(pictures: Tensor, kernel: Tensor, axis: int) -> Tensor:
    pad = (0, 0, _RADIUS, _RADIUS) if axis == 2 else (_RADIUS, _RADIUS, 0, 0)
    wide = F.pad(pictures, pad, mode="reflect")
    size = pictures.shape[axis]
    return sum(kernel[:, k, None, None, None] * wide.narrow(axis, k, size) for k in range(2 * _RADIUS + 1))
