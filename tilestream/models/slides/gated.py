"""Slide encoders that are a gated attention over tiles (Ilse et al. 2018, arXiv:1802.04712): the weighted mean of what tiles become, streamed.

Each has the names of its authors' file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from tilestream.models.heads.bags import Bag, BagRows, stream_bag
from tilestream.models.patch_embed import BlankLinear, freeze
from tilestream.models.slides.base import Encoded, SlideEncoder, TileBlock
from tilestream.models.slides.specs import GatedSpec


class Gate(nn.ModuleDict):
    """The logit w · (tanh(V h) * sigmoid(U h)) of each row (n, width)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(
            {
                "attention_a": nn.Sequential(BlankLinear(width, hidden), nn.Tanh()),
                "attention_b": nn.Sequential(BlankLinear(width, hidden), nn.Sigmoid()),
                "attention_c": BlankLinear(hidden, 1),
            }
        )

    def forward(self, h: Tensor) -> Tensor:
        """(n,)."""
        out: Tensor = self["attention_c"](self["attention_a"](h) * self["attention_b"](h))
        return out[:, 0]


class GatedEncoder(Bag, SlideEncoder):
    """A gated attention as a slide encoder; memory is that of a block. Weights are whatever lay in memory until a file's are loaded.

    Parameters
    ----------
    spec : GatedSpec
    """

    def __init__(self, spec: GatedSpec) -> None:
        super().__init__()
        self.spec, self.inputs = spec, spec.inputs
        self.dim = self.outputs = spec.dim
        self.attentions = spec.heads

    def encode(self, blocks: Iterable[TileBlock], tiles: int, check: Callable[[], None] = lambda: None) -> Encoded:  # it streams
        """The vector of a slide; there are no contextual tokens."""

        def rows() -> Iterator[BagRows]:
            for block in blocks:
                check()
                yield BagRows(block.vectors, block.row.double(), block.col.double())

        return Encoded(stream_bag(self, rows)[0], None)

    def answer(self, asked: Tensor) -> Tensor:
        return asked


class FeatherEncoder(GatedEncoder):
    """Feather (MIL-Lab): h = ReLU(W x), and the weighted mean of h."""

    ignored_weights = ("classifier",)

    def __init__(self, spec: GatedSpec) -> None:
        super().__init__(spec)
        self.patch_embed = nn.Sequential(BlankLinear(spec.inputs, spec.width), nn.ReLU())
        self.global_attn = Gate(spec.width, spec.gate)
        freeze(self)

    def attend(self, number: int, asked: Tensor, rows: BagRows) -> tuple[Tensor, Tensor]:
        h = self.patch_embed(rows.x)
        return self.global_attn(h)[None], h[None]


class ChiefEncoder(GatedEncoder):
    """CHIEF (Wang et al. 2024, Nature 634, 970-978): logits of h = ReLU(W x), and the weighted mean of x itself."""

    kept_weights = "attention_net."
    """How names begin that are its own: the published file holds a classifier and a branch for text beside them."""

    def __init__(self, spec: GatedSpec) -> None:
        super().__init__(spec)
        self.attention_net = nn.ModuleDict({"0": BlankLinear(spec.inputs, spec.width), "3": Gate(spec.width, spec.gate)})
        freeze(self)

    def attend(self, number: int, asked: Tensor, rows: BagRows) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.attention_net["0"](rows.x))
        return self.attention_net["3"](h)[None], rows.x[None]


class MadeleineEncoder(GatedEncoder):
    """MADELEINE (Jaume et al. 2024, arXiv:2408.02859): three layers widen a tile to all heads, each with an attention of its own; their means are projected.

    The channels of a head are each `heads` apart, before and after.
    """

    ignored_weights = ("token_projector",)

    def __init__(self, spec: GatedSpec) -> None:
        super().__init__(spec)
        widths = [spec.inputs, spec.width, spec.width, spec.width * spec.heads]
        layers = [part for a, b in pairwise(widths) for part in (BlankLinear(a, b), nn.LayerNorm(b), nn.GELU(), nn.Identity())]
        gates = nn.ModuleList(Gate(spec.width, spec.gate) for _ in range(spec.heads))
        self.wsi_embedders = nn.ModuleDict({"pre_attn": nn.Sequential(*layers), "attn": gates})
        self.projector = BlankLinear(spec.width * spec.heads, spec.dim)
        freeze(self)

    def attend(self, number: int, asked: Tensor, rows: BagRows) -> tuple[Tensor, Tensor]:
        h = self.wsi_embedders["pre_attn"](rows.x).unflatten(1, (-1, self.spec.heads)).permute(2, 0, 1)  # (heads, n, width)
        gates = self.wsi_embedders["attn"]
        assert isinstance(gates, nn.ModuleList)
        return torch.stack([gate(part) for gate, part in zip(gates, h, strict=True)]), h

    def take(self, number: int, asked: Tensor, pooled: Tensor) -> Tensor:
        return pooled.T.flatten()

    def answer(self, asked: Tensor) -> Tensor:
        out: Tensor = self.projector(asked)
        return out


FAMILIES: dict[str, type[GatedEncoder]] = {"feather": FeatherEncoder, "chief": ChiefEncoder, "madeleine": MadeleineEncoder}
"""By `GatedSpec.family`."""
