"""Tiles of pictures, the same tiles changed, and simple features of them, for the benchmarks of encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.pretrain.colour import ColourConfig, Recolour, jitter_stain

TILE = 224
"""Side of a tile, px."""

Encode = Callable[[Tensor], Tensor]
"""(n, 3, 224, 224) uint8 to (n, d) float32."""


def load_images(folder: Path, limit: int | None) -> tuple[np.ndarray, list[str]]:
    """(n, side, side, 3) uint8 and the class of each; `limit` is of images of a class."""
    paths = sorted(p for p in folder.iterdir() if "___" in p.name)
    names = [p.name.partition("___")[0] for p in paths]
    kept = [i for i, name in enumerate(names) if limit is None or names[:i].count(name) < limit]
    if not kept:
        raise FileNotFoundError(f"{folder}: no file with ___ in its name. Set --data to the folder of validation images.")
    pictures = []
    for i in kept:
        with Image.open(paths[i]) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    return np.stack(pictures), [names[i] for i in kept]


def cut_tiles(images: np.ndarray, shift: int = 0) -> tuple[Tensor, Tensor]:
    """Tiles that do not overlap, from the middle of each image, moved by `shift` px along both axes.

    (n, side, side, 3) uint8 to (n * t, 3, 224, 224) uint8 and the image of each.
    """
    n, side = images.shape[:2]
    count = side // TILE
    first = (side - count * TILE) // 2 + shift
    inner = torch.from_numpy(images[:, first : first + count * TILE, first : first + count * TILE])
    tiles = inner.reshape(n, count, TILE, count, TILE, 3).permute(0, 1, 3, 5, 2, 4).reshape(-1, 3, TILE, TILE)
    return tiles, torch.arange(n).repeat_interleave(count**2)


def halve_images(images: np.ndarray) -> np.ndarray:
    """Images at half scale by the mean of 2 x 2 px."""
    n, h, w, c = images.shape
    return np.round(images.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))).astype(np.uint8)


def grey_tiles(tiles: Tensor) -> Tensor:
    """Tiles whose three channels are their luma."""
    luma = (tiles.float() * torch.tensor([0.299, 0.587, 0.114], device=tiles.device)[:, None, None]).sum(dim=1, keepdim=True)
    return luma.round().to(torch.uint8).expand(-1, 3, -1, -1)


def quarter_tiles(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """The four quarters of each image, brought to 224 px by Pillow's bilinear filter, which averages where it shrinks.

    (n, side, side, 3) uint8 to (4 * n, 3, 224, 224) uint8 and the image of each.
    """
    half = images.shape[1] // 2
    quarters = [image[y : y + half, x : x + half] for image in images for y in (0, half) for x in (0, half)]
    shrunk = [np.asarray(Image.fromarray(quarter).resize((TILE, TILE), Image.Resampling.BILINEAR)) for quarter in quarters]
    return torch.from_numpy(np.stack(shrunk)).permute(0, 3, 1, 2).contiguous(), torch.arange(len(images)).repeat_interleave(4)


def change_stain(tiles: Tensor, factor: float, offset: float, seed: int) -> Tensor:
    """(n, 3, side, side) uint8 with the amount of each stain of each tile changed by up to a part, `factor`, and by up to an optical density.

    The changes are drawn on the CPU, alike for every device.
    """
    generator = torch.Generator().manual_seed(seed)
    factors, offsets = (torch.rand(2, len(tiles), 3, generator=generator) * 2 - 1).to(tiles.device)
    recolour = Recolour(ColourConfig()).to(tiles.device)
    changed = [
        jitter_stain(part.float() / 255, *recolour.stain_change(1 + factor * f, offset * o))
        for part, f, o in zip(tiles.split(64), factors.split(64), offsets.split(64), strict=True)
    ]
    return (torch.cat(changed) * 255).round().to(torch.uint8)


def colour_histogram(tiles: Tensor) -> dict[str, Tensor]:
    """Square roots of the parts of pixels in 8 x 8 x 8 bins of red, green and blue: their cosine is Bhattacharyya's coefficient."""
    cell = (tiles.long() // 32).flatten(2)  # (n, 3, pixels)
    cell = cell[:, 0] * 64 + cell[:, 1] * 8 + cell[:, 2]
    counts = torch.zeros(len(tiles), 512, device=tiles.device)
    counts.scatter_add_(1, cell, torch.ones(cell.shape, device=tiles.device))
    return {"colour histogram": (counts / cell.shape[1]).sqrt()}


def encode_tiles(encoder: nn.Module, batch: int) -> Encode:
    """An encoder of the package over batches."""

    @torch.inference_mode()
    def encode(tiles: Tensor) -> Tensor:
        return torch.cat([encoder(part).float() for part in tiles.split(batch)])

    return encode


def channel_histogram(tiles: Tensor) -> Tensor:
    """Square roots of the parts of pixels in 16 bins of each channel, joined: (n, 48)."""
    cell = (tiles.long() // 16).flatten(2)
    counts = torch.zeros(*cell.shape[:2], 16, device=tiles.device).scatter_add_(2, cell, torch.ones(cell.shape, device=tiles.device))
    return (counts / cell.shape[2]).sqrt().flatten(1)
