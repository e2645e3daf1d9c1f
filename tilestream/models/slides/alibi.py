"""A transformer over tile tokens in which a logit falls with the distance of two tiles (ALiBi, Press et al. 2022, arXiv:2108.12409, in two dimensions), as
MOOZY's slide encoder is built; written from the published description. Its parameters have the names of the authors' file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tilestream.models.patch_embed import BlankLinear, freeze
from tilestream.models.slides.base import Encoded, SlideEncoder, TileBlock
from tilestream.models.slides.specs import CHUNK_VALUES, CUDA_CHUNK_VALUES, CUDA_ROWS_AT_ONCE, HEADS_AT_ONCE, ROWS_AT_ONCE, AlibiSpec


def alibi_slopes(heads: int) -> list[float]:
    """Slopes of heads: powers of two, geometric from 2 ** (-8 / heads) on; of other numbers, those of the power below and every second of the one above."""
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8 * k / power) for k in range(1, power + 1)]
    return slopes + [2.0 ** (-4 * k / power) for k in range(1, 2 * power + 1, 2)][: heads - power]


class AlibiEncoder(SlideEncoder):
    """Class token, registers and tiles through blocks in which all see all; the vector is the normed class token.

    Memory bound: `AlibiSpec.bytes`. Queries pass in chunks; no table of all distances is ever made.

    Parameters
    ----------
    spec : AlibiSpec
    qk_norm, layer_scale : bool
        Whether queries and keys are normed, and whether what a part adds is scaled by channel.
    """

    ignored_weights = ("mask_token", "pos_bias.")

    def __init__(self, spec: AlibiSpec, *, qk_norm: bool = True, layer_scale: bool = False) -> None:
        super().__init__()
        self.spec, self.inputs, self.dim = spec, spec.inputs, spec.dim
        self.input_proj = nn.Sequential(BlankLinear(spec.inputs, spec.dim), nn.GELU())
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, spec.registers, spec.dim))
        self.blocks = nn.ModuleList(AlibiBlock(spec, qk_norm=qk_norm, layer_scale=layer_scale) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.dim)
        freeze(self)

    def encode(self, blocks: Iterable[TileBlock], tiles: int, check: Callable[[], None] = lambda: None) -> Encoded:
        """The vector of a slide, and the normed tokens of its tiles."""
        first = 1 + self.spec.registers
        x = self.cls_token.new_empty(first + tiles, self.dim)
        place = x.new_zeros(first + tiles, 2)
        x[0], x[1:first], start = self.cls_token[0, 0], self.register_tokens[0], first
        for block in blocks:
            end = start + len(block.vectors)
            x[start:end] = self.input_proj(block.vectors)
            place[start:end] = torch.stack([block.row, block.col], dim=1).to(place)
            start = end
        for layer in self.blocks:
            layer(x, place, first, check)
        for part in x.split(ROWS_AT_ONCE):
            part.copy_(self.norm(part))
        return Encoded(x[0].clone(), x[first:])


class AlibiBlock(nn.Module):
    """One block, norms before each part."""

    def __init__(self, spec: AlibiSpec, *, qk_norm: bool, layer_scale: bool) -> None:
        super().__init__()
        self.heads, dim = spec.heads, spec.dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (BlankLinear(dim, dim) for _ in range(4))
        self.q_norm, self.k_norm = (nn.LayerNorm(dim // spec.heads) if qk_norm else nn.Identity() for _ in range(2))
        self.fc1, self.fc2 = BlankLinear(dim, spec.hidden), BlankLinear(spec.hidden, dim)
        self.ls_attn, self.ls_mlp = (Scale(dim) if layer_scale else nn.Identity() for _ in range(2))
        self.pos_bias = Slopes(spec.heads)

    def forward(self, x: Tensor, place: Tensor, first: int, check: Callable[[], None]) -> None:
        """Change tokens (n, dim) in place; the `first` ones are no tiles and as near to all others as can be. `place` is (n, 2) in tiles."""
        attended, width = torch.empty_like(x), x.shape[1] // self.heads
        for start in range(0, self.heads, HEADS_AT_ONCE):
            heads = range(start, min(start + HEADS_AT_ONCE, self.heads))
            query, key, value = self._project(x, slice(heads.start * width, heads.stop * width), width)
            for k, head in enumerate(heads):
                self._attend(query[k], key[k], value[k], head, place, first, attended[:, head * width : (head + 1) * width], check)
            del query, key, value
        for part, found in zip(x.split(self._rows(x)), attended.split(self._rows(x)), strict=True):
            check()
            part.add_(self.ls_attn(self.out_proj(found)))
            part.add_(self.ls_mlp(self.fc2(F.gelu(self.fc1(self.norm2(part))))))

    @staticmethod
    def _rows(x: Tensor) -> int:
        return ROWS_AT_ONCE if x.device.type == "cpu" else CUDA_ROWS_AT_ONCE

    def _project(self, x: Tensor, channels: slice, width: int) -> tuple[Tensor, ...]:
        """Queries, scaled, keys and values (heads, n, width) of some heads."""
        found = [x.new_empty((channels.stop - channels.start) // width, len(x), width) for _ in range(3)]
        start = 0
        for part in x.split(self._rows(x)):
            normed = self.norm1(part)
            for whole, layer, norm in zip(
                found, (self.q_proj, self.k_proj, self.v_proj), (self.q_norm, self.k_norm, nn.Identity()), strict=True
            ):
                made = F.linear(normed, layer.weight[channels], layer.bias[channels]).unflatten(1, (-1, width))
                whole[:, start : start + len(part)] = norm(made).transpose(0, 1)
            start += len(part)
        found[0] *= width**-0.5
        return tuple(found)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, head: int, place: Tensor, first: int, out: Tensor, check: Callable[[], None]
    ) -> None:
        """The attention of one head into `out` (n, width), in chunks of queries."""
        budget = CHUNK_VALUES if query.device.type == "cpu" else CUDA_CHUNK_VALUES
        rows, slope = max(1, budget // len(key)), self.pos_bias.slopes[head, 0]
        for start in range(0, len(query), rows):
            check()
            end = min(start + rows, len(query))
            distance = torch.hypot(*(place[start:end, None, axis] - place[None, :, axis] for axis in (0, 1)))
            distance[: max(0, first - start)] = 0
            distance[:, :first] = 0
            logits = torch.addmm(distance.mul_(slope), query[start:end], key.T)
            out[start:end] = torch.softmax(logits, dim=1) @ value


class Slopes(nn.Module):
    """What a logit loses, or by sign gains, for each tile of distance, by head; the file may hold learned ones."""

    slopes: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", -torch.tensor(alibi_slopes(heads))[:, None])


class Scale(nn.Module):
    """A factor for each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def alibi_options(state: Mapping[str, Tensor]) -> dict[str, bool]:
    """Which norms and scales a file's blocks have."""
    return {
        "qk_norm": any(key.endswith("blocks.0.q_norm.weight") for key in state),
        "layer_scale": any(key.endswith("blocks.0.ls_attn.gamma") for key in state),
    }
