"""The slide encoder of GigaPath (Xu et al. 2024, Nature 630, 181-188): a LongNet over tile vectors, with the cell of each tile in a 2D table as its position.

A parameter has the name that the published file gives it, so a file loads as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tilestream.models.patch_embed import BlankLinear, freeze, seeded_init
from tilestream.models.positions import sincos_2d
from tilestream.models.slides.base import Encoded, SlideEncoder, TileBlock
from tilestream.models.slides.dilated import dilated_attention
from tilestream.models.slides.specs import CUDA_ROWS_AT_ONCE, HEADS_AT_ONCE, ROWS_AT_ONCE, LongNetSpec


class LongNet(SlideEncoder):
    """Tile vectors in blocks to the tokens of each layer.

    Order: tokens keep the order of the tiles, the class token before them; which tokens form a segment depends on it.

    Memory bound: `LongNetSpec.bytes`. The vectors of tiles pass by in blocks and are projected at once.

    Parameters
    ----------
    spec : LongNetSpec
    layer : int, optional
        Block whose tokens the vector is made of, 0 for what the first one gets; the last one where it is not given.
    output : str
        `mean` of the tiles' tokens, or `class` token.
    encoder_norm : bool
        Whether tokens of the last block pass the encoder's own norm first, as they do where the published module gives no inner layers.
    seed : int, optional
        Of random weights; None leaves memory as it is, for others to be loaded.

    Raises
    ------
    ValueError
        There is no such layer or output.
    """

    def __init__(
        self, spec: LongNetSpec, *, layer: int | None = None, output: str = "mean", encoder_norm: bool = False, seed: int | None = 0
    ) -> None:
        super().__init__()
        self.spec, self.inputs, self.dim, self.cells = spec, spec.inputs, spec.dim, spec.cells
        self.layer, self.output, self.encoder_norm = spec.depth if layer is None else layer, output, encoder_norm
        if not 0 <= self.layer <= spec.depth:
            raise ValueError(f"layer is {layer}, but there are 0 to {spec.depth}")
        if output not in ("mean", "class"):
            raise ValueError(f"output is {output!r}, but it must be mean or class")
        if encoder_norm and self.layer != spec.depth:
            raise ValueError(f"encoder_norm is true, but only the last layer, {spec.depth}, passes that norm, and layer is {layer}")
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.dim))
        self.patch_embed = nn.ModuleDict({"proj": BlankLinear(spec.inputs, spec.dim)})
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(LongNetLayer(spec) for _ in range(spec.depth)), "layer_norm": nn.LayerNorm(spec.dim)}
        )
        self.norm = nn.LayerNorm(spec.dim, eps=1e-6)
        if seed is not None:
            seeded_init(self, seed)
        freeze(self)

    def place(self, vectors: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """(m, dim) tokens of tiles: (m, inputs) vectors, and (m,) int64 cells of the table."""
        place = sincos_2d(row, col, self.spec.dim).to(vectors.device)
        token: Tensor = self.patch_embed["proj"](vectors) + place
        return token

    def begin(self, tokens: int) -> Tensor:
        """(tokens + 1, dim) for the tokens of that many tiles, the class token in the first row, whose place is all zeros."""
        x = torch.empty(tokens + 1, self.spec.dim, device=self.cls_token.device)
        x[0] = self.cls_token[0, 0]
        return x

    def layers(self, x: Tensor, check: Callable[[], None] = lambda: None) -> Iterator[Tensor]:
        """The tokens (n + 1, dim) before the first block and after each one; `x` is changed in place. `check` may end the work by raising."""
        yield x
        blocks = self.encoder["layers"]
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            block(x, check)
            yield x

    def encode(self, blocks: Iterable[TileBlock], tiles: int, check: Callable[[], None] = lambda: None) -> Encoded:
        """The vector of a slide, and the tokens that it is made of."""
        x, start = self.begin(tiles), 1
        for block in blocks:
            x[start : start + len(block.vectors)] = self.place(block.vectors, block.row, block.col)
            start += len(block.vectors)
        for number, _ in enumerate(self.layers(x, check)):
            if number == self.layer:
                break
        return Encoded(self.pooled(x, self.output, last_path=self.encoder_norm), x[1:])

    def pooled(self, x: Tensor, output: str = "mean", *, last_path: bool = False) -> Tensor:
        """(dim,) of the tokens of a layer: the normed mean of all tiles' or the normed class token.

        With `last_path` tokens pass the encoder's own norm first, which those of inner layers never do.
        """
        rows = x[:1] if output == "class" else x[1:]
        total = torch.zeros(self.spec.dim, dtype=torch.float64, device=x.device)
        for part in rows.split(ROWS_AT_ONCE):
            total += (self.encoder["layer_norm"](part) if last_path else part).sum(dim=0, dtype=torch.float64)
        found: Tensor = self.norm((total / len(rows)).float())
        return found


class LongNetLayer(nn.Module):
    """One block, norms before each part, and a norm within each of them before its last layer."""

    def __init__(self, spec: LongNetSpec) -> None:
        super().__init__()
        self.heads, self.branches = spec.heads, spec.branches
        dim, hidden = spec.dim, spec.hidden
        linear = {f"{name}_proj": BlankLinear(dim, dim) for name in ("k", "v", "q", "out")}
        self.self_attn = nn.ModuleDict({**linear, "inner_attn_ln": nn.LayerNorm(dim)})
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.ffn = nn.ModuleDict({"fc1": BlankLinear(dim, hidden), "fc2": BlankLinear(hidden, dim), "ffn_layernorm": nn.LayerNorm(hidden)})
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, check: Callable[[], None] = lambda: None) -> None:
        """Change tokens (n, dim) in place."""
        attended = torch.empty_like(x)
        width = x.shape[1] // self.heads
        for first in range(0, self.heads, HEADS_AT_ONCE):
            heads = range(first, min(first + HEADS_AT_ONCE, self.heads))
            query, key, value = self._project(x, slice(heads.start * width, heads.stop * width), width)
            for k, head in enumerate(heads):
                check()
                out = attended[:, head * width : (head + 1) * width]
                dilated_attention(query[k], key[k], value[k], head, self.heads, self.branches, out)
            del query, key, value
        rows = ROWS_AT_ONCE if x.device.type == "cpu" else CUDA_ROWS_AT_ONCE
        for part, found in zip(x.split(rows), attended.split(rows), strict=True):
            check()
            part.add_(self.self_attn["out_proj"](self.self_attn["inner_attn_ln"](found)))
            hidden = F.gelu(self.ffn["fc1"](self.final_layer_norm(part)))
            part.add_(self.ffn["fc2"](self.ffn["ffn_layernorm"](hidden)))

    def _project(self, x: Tensor, channels: slice, width: int) -> tuple[Tensor, ...]:
        """Queries, scaled, keys and values (heads, n, width) of some heads."""
        found = [x.new_empty((channels.stop - channels.start) // width, len(x), width) for _ in range(3)]
        rows, start = ROWS_AT_ONCE if x.device.type == "cpu" else CUDA_ROWS_AT_ONCE, 0
        for part in x.split(rows):
            normed = self.self_attn_layer_norm(part)
            for whole, name in zip(found, ("q_proj", "k_proj", "v_proj"), strict=True):
                layer = self.self_attn[name]
                assert isinstance(layer, nn.Linear)
                made = F.linear(normed, layer.weight[channels], layer.bias[channels])
                if name == "q_proj":
                    made *= width**-0.5
                whole[:, start : start + len(part)] = made.unflatten(1, (-1, width)).transpose(0, 1)
            start += len(part)
        return tuple(found)
