"""HIPT's hierarchy (Chen et al. 2022, arXiv:2206.02647): tiles of 256 px become tokens of regions of 4,096 px, each region a class token, the slide their mean.

Regions lie on the absolute grid. Tiles that are not there are absent: they are masked, not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tilestream.models.patch_embed import BlankLinear, freeze
from tilestream.models.slides.base import Encoded, SlideEncoder, TileBlock
from tilestream.models.slides.specs import RegionSpec


class RegionEncoder(SlideEncoder):
    """A vision transformer whose patches are the tiles of a region; parameters have the names of the published file.

    Memory bound: `RegionSpec.bytes`: the tokens of all tiles, narrower than their vectors, and some regions at once, always as many.
    """

    def __init__(self, spec: RegionSpec) -> None:
        super().__init__()
        self.spec, self.inputs, self.dim = spec, spec.inputs, spec.dim
        self.phi = nn.Sequential(BlankLinear(spec.inputs, spec.dim), nn.GELU())
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, spec.table**2 + 1, spec.dim))
        self.blocks = nn.ModuleList(RegionBlock(spec.dim, spec.heads) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.dim, eps=1e-6)
        freeze(self)

    def encode(self, blocks: Iterable[TileBlock], tiles: int, check: Callable[[], None] = lambda: None) -> Encoded:  # it streams
        """The mean of the slide's regions, each counted once."""
        side, tokens, row, col = self.spec.side, list[Tensor](), list[Tensor](), list[Tensor]()
        for block in blocks:
            tokens.append(self.phi(block.vectors))
            row.append(block.row)
            col.append(block.col)
        rows, cols = torch.cat(row), torch.cat(col)
        wide = int(cols.max()) // side + 1
        region, inverse = torch.unique((rows // side) * wide + cols // side, return_inverse=True)
        cell = (rows % side) * side + cols % side
        found, all_tokens = self.cls_token.new_zeros(self.dim, dtype=torch.float64), torch.cat(tokens)
        for first in range(0, len(region), self.spec.at_once):
            check()
            count = min(self.spec.at_once, len(region) - first)
            here = ((inverse >= first) & (inverse < first + count)).nonzero()[:, 0]
            at = (inverse[here] - first, cell[here])
            grid = all_tokens.new_zeros(self.spec.at_once, side**2, self.dim)
            there = torch.zeros(self.spec.at_once, side**2, dtype=torch.bool)
            grid[at], there[at] = all_tokens[here], True
            found += self.encode_regions(grid, there.to(grid.device))[:count].sum(dim=0, dtype=torch.float64)
        return Encoded((found / len(region)).float(), None)

    def encode_regions(self, tokens: Tensor, there: Tensor) -> Tensor:
        """(r, dim) normed class token of regions (r, side * side, dim), row-major, of which those tiles count that are `there`, (r, side * side)."""
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.positions()
        keys = F.pad(there, (1, 0), value=True)[:, None, None]  # (r, 1, 1, 1 + side * side)
        for block in self.blocks:
            x = block(x, keys)
        out: Tensor = self.norm(x[:, 0])
        return out

    def positions(self) -> Tensor:
        """(1, 1 + side * side, dim), bicubic from the table, by a factor a tenth of a cell too large, as published."""
        side, table = self.spec.side, self.spec.table
        if side == table:
            return self.pos_embed
        cells = self.pos_embed[:, 1:].unflatten(1, (table, table)).permute(0, 3, 1, 2)
        wide = F.interpolate(cells, scale_factor=((side + 0.1) / table,) * 2, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], wide.flatten(2).transpose(1, 2)], dim=1)


class RegionBlock(nn.Module):
    """One block, norms before each part."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": BlankLinear(dim, 3 * dim), "proj": BlankLinear(dim, dim)})
        self.mlp = nn.ModuleDict({"fc1": BlankLinear(dim, 4 * dim), "fc2": BlankLinear(4 * dim, dim)})

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """(r, n, dim) from tokens of that shape; keys that are False are not seen."""
        query, key, value = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        x = x + self.attn["proj"](seen.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return out
