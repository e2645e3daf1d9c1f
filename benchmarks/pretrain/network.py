"""What is trained: the package's vision transformer with gradients, on views of any size, and the heads that losses see."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tilestream.models.vit import VisionTransformer


def resample_positions(vit: VisionTransformer, side: int) -> Tensor:
    """(1, 1 + side * side, dim): the table of positions, its patches resampled bicubically to `side` along each axis."""
    table, prefix = vit.pos_embed.detach(), vit.config.prefix
    if side == vit.config.side:
        return table.clone()
    grid = table[:, prefix:].unflatten(1, (vit.config.side, vit.config.side)).permute(0, 3, 1, 2)  # (1, dim, own side, own side)
    grid = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :prefix], grid.flatten(2).transpose(1, 2)], dim=1)


class Backbone(nn.Module):
    """The vision transformer with gradients, and positions for each size of view.

    The table of positions stays fixed, so that one table serves every size and the exported weights need no resampling.

    Parameters
    ----------
    vit : VisionTransformer
        With a class token, no registers, and positions `sincos`; its parameters are trained in place.
    sides : sequence of int
        Patches along the sides of the views.
    """

    def __init__(self, vit: VisionTransformer, sides: tuple[int, ...]) -> None:
        super().__init__()
        assert vit.config.prefix == 1, "class token and nothing else before the patches"
        self.vit = vit
        vit.requires_grad_(requires_grad=True)
        vit.pos_embed.requires_grad_(requires_grad=False)
        for side in sides:
            self.register_buffer(f"positions_{side}", resample_positions(vit, side), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, px, px) normalised pixels to (n, dim) and (n, patches, dim): class token and patches of `VisionTransformer.forward_features`."""
        vit = self.vit
        patches = vit.patch_embed(pixels)
        positions: Tensor = getattr(self, f"positions_{pixels.shape[-1] // vit.patch}")
        tokens = torch.cat([vit.cls_token.expand(len(pixels), -1, -1), patches], dim=1) + positions
        tokens = vit.norm(vit.blocks(vit.norm_pre(tokens)))
        return tokens[:, 0], tokens[:, 1:]


def build_expander(dim: int, width: int = 2048) -> nn.Sequential:
    """Three linear layers with batch norm and ReLU between (VICReg, arXiv:2105.04906, section 4)."""

    def norm() -> nn.BatchNorm1d:
        return nn.BatchNorm1d(width, track_running_stats=False)

    return nn.Sequential(
        nn.Linear(dim, width), norm(), nn.ReLU(),
        nn.Linear(width, width), norm(), nn.ReLU(),
        nn.Linear(width, width, bias=False),
    )  # fmt: skip
