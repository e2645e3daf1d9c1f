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
    """The vision transformer with gradients, a token for hidden patches, and positions for each size of view.

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
        self.mask_token = nn.Parameter(torch.zeros(vit.config.dim))
        for side in sides:
            self.register_buffer(f"positions_{side}", resample_positions(vit, side), persistent=False)

    def forward(self, pixels: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(n, 3, px, px) normalised pixels and (n, patches) bool, true where hidden, to (n, dim) and (n, patches, dim).

        These are the class token and the patches of `VisionTransformer.forward_features`, where nothing is hidden.
        """
        vit = self.vit
        patches = vit.patch_embed(pixels)
        if mask is not None:
            patches = torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches)
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


class PrototypeHead(nn.Module):
    """A three-layer perceptron to unit vectors, and their cosines with learned prototypes (DINO, arXiv:2104.14294, appendix C).

    Parameters
    ----------
    dim, width, bottleneck : int
        Channels that come in, of the hidden layers, and of the unit vectors.
    prototypes : int
        Cosines that come out.
    """

    def __init__(self, dim: int, width: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.perceptron = nn.Sequential(
            nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, bottleneck)
        )  # fmt: skip
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for part in self.perceptron:
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        nn.init.normal_(self.prototypes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., dim) to (..., prototypes) cosines, in float32: low temperatures magnify what rounding leaves."""
        vectors = self.perceptron(tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            return F.linear(F.normalize(vectors.float(), dim=-1), F.normalize(self.prototypes, dim=-1))


def build_predictor(dim: int) -> nn.Sequential:
    """Two linear layers with GELU between, from a hidden patch's token to what it should be."""
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
