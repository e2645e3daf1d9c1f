"""Views of chunks: crops with their own place, magnification, rotation and mirror image, all of a batch in one `grid_sample`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class ViewConfig:
    """Which views a sample has. Views of one sample lie around one anchor and have nearly one magnification."""

    global_px: int = 224
    """Side of a global view, px; the tile of the encoder."""
    local_px: int = 96
    """Side of a local view, px."""
    global_views: int = 2
    """Global views of a sample."""
    local_views: int = 4
    """Local views of a sample."""
    zoom: float = 1.4
    """Largest magnification, px of a view per px of its chunk. Half of the samples are drawn between zoom / 2 and zoom from chunks at
    full scale, the others from chunks at half scale, so that the least is zoom / 4 and no view skips pixels."""
    zoom_jitter: float = 1.25
    """Largest factor between the magnifications of a view and of its sample."""
    spread: float = 0.4
    """Largest distance, along each axis, of a global view's centre from the anchor, in sides of a global view."""


def draw_uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform float32 numbers on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def draw_crops(n: int, side: int, config: ViewConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the affine maps from view to chunk coordinates, both in [-1, 1].

    Parameters
    ----------
    n : int
        Samples.
    side : int
        Side of the chunks that are cut, px.
    config : ViewConfig
        Sizes and ranges.
    generator : torch.Generator
        On the device of the result.

    Returns
    -------
    to_global : (n, global_views, 2, 3) float32
    to_local : (n, local_views, 2, 3) float32
    """
    zoom = torch.exp(draw_uniform((n, 1), math.log(config.zoom / 2), math.log(config.zoom), generator))
    field = config.global_px / zoom / side  # (n, 1) half a global view, in half chunks
    anchor = draw_uniform((n, 1, 2), -1, 1, generator) * (1 - field).clamp_min(0)[..., None]
    found = []
    for views, px in ((config.global_views, config.global_px), (config.local_views, config.local_px)):
        jitter = math.log(config.zoom_jitter)
        half = px / (zoom * torch.exp(draw_uniform((n, views), -jitter, jitter, generator))) / side  # (n, views)
        reach = 2 * config.spread if px == config.global_px else 0.8
        centre = anchor + draw_uniform((n, views, 2), -1, 1, generator) * reach * field[..., None]
        room = (1 - half).clamp_min(0)[..., None]
        found.append(_affine_maps(half, torch.minimum(torch.maximum(centre, -room), room), generator))
    return found[0], found[1]


def _affine_maps(half: Tensor, centre: Tensor, generator: torch.Generator) -> Tensor:
    """(n, v) half sides and (n, v, 2) centres to (n, v, 2, 3), with a mirror image of half and a turn of each.

    Half of the turns are multiples of a right angle, which keep the chunk's sharpness; the others are any.
    """
    shape = tuple(half.shape)
    turn = draw_uniform(shape, 0, 4, generator)
    turn = torch.where(draw_uniform(shape, 0, 1, generator) < 0.5, turn.floor(), turn) * (math.pi / 2)
    mirror = torch.where(draw_uniform(shape, 0, 1, generator) < 0.5, -1.0, 1.0)
    cos, sin = half * turn.cos(), half * turn.sin()
    first = torch.stack([mirror * cos, -sin, centre[..., 0]], dim=-1)
    second = torch.stack([mirror * sin, cos, centre[..., 1]], dim=-1)
    return torch.stack([first, second], dim=-2)


def cut_crops(chunks: Tensor, maps: Tensor, px: int) -> Tensor:
    """Sample views bilinearly; beyond the chunk's edge it is mirrored.

    Parameters
    ----------
    chunks : (n, 3, side, side) float32
        One for each sample.
    maps : (n, v, 2, 3) float32
        From `draw_crops`.
    px : int
        Side of a view.

    Returns
    -------
    views : (n, v, 3, px, px) float32
    """
    n, v = maps.shape[:2]
    grid = F.affine_grid(maps.flatten(0, 1), [n * v, 3, px, px], align_corners=False)
    grid = grid.reshape(n, v * px, px, 2)  # the views of a chunk below one another: a chunk is read in place
    views = F.grid_sample(chunks, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return views.reshape(n, 3, v, px, px).transpose(1, 2)


def skip_masks(n: int, side: int, generator: torch.Generator) -> None:
    """Draw the numbers of n masks of side x side patches: tilestream-tiny comes again, bit for bit, from the stream that they were drawn from."""
    for shape in ((n, 1, max(side // 3, 1), max(side // 3, 1)), (n, side**2)):
        torch.randn(shape, generator=generator, device=generator.device)
