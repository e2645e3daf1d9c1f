"""Pixels to patch tokens: normalising, cutting into patches, and an encoder that is one linear layer."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tilestream.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's red, green and blue, of 1."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of ImageNet's red, green and blue, of 1."""

LARGE = 50_000_000
"""Parameters from which on they are drawn at the same time: one after another, ViT-L's took 3 s and more."""

SEEDS_APART = 1_000_003
"""Between the seeds of two parameters of a large module."""

FILLING_THREADS = 16
"""Parameters drawn at the same time, at most."""

_FILLED_LATER = ContextVar("filled_later", default=False)

_WHITE = 255


def normalise_pixels(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """Scale pixels to [0, 1] and normalise each channel by fixed numbers, never by the tile's own.

    Parameters
    ----------
    images : (n, c, height, width) uint8
        RGB, on any device.
    mean, std : c floats
        Of pixels in [0, 1].
    dtype : torch.dtype
        Of the result; arithmetic is float32.

    Returns
    -------
    normalised : (n, c, height, width) dtype
        On the images' device.

    Raises
    ------
    TypeError
        Where the pixels are not uint8: floats of unknown range would be normalised wrongly without a word.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"Encoders take uint8 pixels, got {images.dtype}")
    factors = [1 / (255 * s) for s in std]
    offsets = [-m / s for m, s in zip(mean, std, strict=True)]
    # Factors stay Python numbers: as buffers they would be rounded with the weights, as fresh tensors each batch would wait for a copy.
    if len(set(factors)) == 1 and len(set(offsets)) == 1:
        return images.float().mul_(factors[0]).add_(offsets[0]).to(dtype)
    channels = [images[:, c].float().mul_(f).add_(o).to(dtype) for c, (f, o) in enumerate(zip(factors, offsets, strict=True))]
    return torch.stack(channels, dim=1)


def normalise_tiles(tiles: Tensor, pixels: tuple[tuple[float, ...], tuple[float, ...]], dtype: torch.dtype, *, bands: int) -> Tensor:
    """As `normalise_pixels` by a mean and standard deviation; tiles of `bands` bands are values, normalised already."""
    return tiles.to(dtype) if bands else normalise_pixels(tiles, *pixels, dtype)


def noise_tiles(count: int, side: int, bands: int) -> Tensor:
    """(count, 3, side, side) uint8, or (count, bands, side, side) float32; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    if bands:
        return torch.randn((count, bands, side, side), generator=generator)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def unfold_patches(images: Tensor, patch: int) -> Tensor:
    """Cut (n, c, height, width) into (n, rows * cols, c * patch * patch), row-major; sides must be multiples of `patch`."""
    n, c, height, width = images.shape
    rows, cols = height // patch, width // patch
    assert (rows * patch, cols * patch) == (height, width), "pad first: patches that do not fit would be dropped"
    cells = images.reshape(n, c, rows, patch, cols, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(n, rows * cols, c * patch * patch)


def pad_to_patches(images: Tensor, patch: int) -> Tensor:
    """Grow (n, c, height, width) uint8 with white at the bottom and right until both sides are multiples of `patch`."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % patch, 0, -height % patch), value=_WHITE)


class BlankLinear(nn.Linear):
    """A linear layer with whatever lay in its memory: `seeded_init` or a file fills it, and the global random state is not drawn from.

    To build it on `meta` and empty it from there takes a second longer: torch then loads its symbolic shapes, and sympy with them.
    """

    def reset_parameters(self) -> None:
        """Leave them."""


class BlankConv(nn.Conv2d):
    """A convolution likewise."""

    def reset_parameters(self) -> None:
        """Leave them."""


def seeded_init(module: nn.Module, seed: int, std: float | None = None) -> None:
    """Fill every parameter from a generator of its own, a large module's from one each; the global random state is neither read nor changed.

    Weights of linear layers and convolutions are normal, clipped at two standard deviations, and their biases 0; norms are left as
    built (1 and 0), as is layer scale; other parameters (tokens, tables) are such normals with 0.02.

    Parameters
    ----------
    module : nn.Module
        On the CPU. Parameters are filled in the order of `module.modules()`.
    seed : int
        Of the generator.
    std : float, optional
        Of linear weights; by default 1 / sqrt(inputs), which keeps the scale of activations.
    """
    if _FILLED_LATER.get():
        return
    drawn: list[tuple[Tensor, float]] = []
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            drawn.append((part.weight, std if std is not None else 1 / math.sqrt(part.weight[0].numel())))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif not isinstance(part, nn.LayerNorm) and not getattr(part, "keeps_init", False):
            drawn += [(parameter, 0.02) for parameter in part.parameters(recurse=False)]
    if sum(parameter.numel() for parameter, _ in drawn) < LARGE:
        generator = torch.Generator().manual_seed(seed)
        for parameter, spread in drawn:
            _fill_normal(parameter, spread, generator)
        return
    generators = [torch.Generator().manual_seed(seed + number * SEEDS_APART) for number in range(len(drawn))]
    with ThreadPoolExecutor(min(FILLING_THREADS, len(os.sched_getaffinity(0))), "filling") as pool:
        for _ in pool.map(_fill_normal, *zip(*drawn, strict=True), generators):
            pass


def _fill_normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():  # a thread does not know in which mode it was asked
        values = parameter.normal_(0, std, generator=generator).detach().numpy()
    np.clip(values, -2 * std, 2 * std, out=values)  # torch would start helpers in each of the threads


@contextmanager
def weights_follow() -> Iterator[None]:
    """Within it `seeded_init` fills nothing: a file gives every parameter of what is built."""
    before = _FILLED_LATER.set(True)
    try:
        yield
    finally:
        _FILLED_LATER.reset(before)


def freeze(module: nn.Module) -> None:
    """Put a module into inference: dropout off, no gradients."""
    module.eval().requires_grad_(requires_grad=False)


class PatchEmbed(nn.Module):
    """Encoder `patch_embed`: each patch of a tile becomes one token by a single linear layer.

    Pixels are normalised with ImageNet's mean and standard deviation. A tile whose side is not a multiple of the patch is padded
    with white, and the patches at its edge are kept. The state dict holds `proj.weight`, (dim, 3 * patch * patch), and `proj.bias`.

    Parameters
    ----------
    dim : int
        Channels of a token.
    patch : int
        Side of a patch, px.
    seed : int
        Of the random projection.

    Raises
    ------
    ConfigError
        Where `dim` or `patch` is not a positive integer.
    """

    tile_size = None
    mpp = None
    precisions = ("fp32", "bf16", "fp16")
    vector = "patch tokens"

    def __init__(self, dim: int = 192, patch: int = 16, seed: int = 0) -> None:
        super().__init__()
        for key, value in (("dim", dim), ("patch", patch)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"encoder.args.{key}: {value!r}, but it must be an integer of 1 or more.")
        self.dim = dim
        self.patch = patch
        self.proj = BlankLinear(3 * patch * patch, dim)
        seeded_init(self, seed)
        freeze(self)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) uint8 to (n, rows * cols, dim), row-major, in the weights' dtype.

        There are `ceil(height / patch)` rows and `ceil(width / patch)` columns.
        """
        padded = pad_to_patches(images, self.patch)
        pixels = normalise_pixels(padded, IMAGENET_MEAN, IMAGENET_STD, self.proj.weight.dtype)
        tokens: Tensor = self.proj(unfold_patches(pixels, self.patch))
        return tokens
