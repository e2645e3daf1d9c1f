"""Heads that answer for a whole slide: bags of rows, streamed as associative states, so that no slide need be in memory.

A bag goes over the rows once or several times. In each pass every row has a logit for each of k attentions, and a value; what a pass gives
is the mean of the values, weighted by the softmax of the logits, or their maximum. States of blocks merge in their order, in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tilestream.models.patch_embed import BlankLinear, freeze, seeded_init
from tilestream.models.positions import MICROMETRE_UNIT, sincos_2d


@dataclass(frozen=True)
class BagRows:
    """Rows of a bag, all of tiles that have a vector."""

    x: Tensor
    """(n, d)."""
    y_um: Tensor
    """(n,) float64 centre of the tile in µm; in grid units where the image has no scale."""
    x_um: Tensor
    unit: float = MICROMETRE_UNIT
    """Length that turns the fastest channel of a position by one radian."""


@dataclass(frozen=True)
class BagState:
    """What a pass knows of some rows, in k attentions; float64."""

    vector: Tensor
    """(k, v): the sum of values weighted by exp(logit - top), or their maximum."""
    weight: Tensor
    """(k,): the sum of exp(logit - top)."""
    top: Tensor
    """(k,): the greatest logit; -inf where there are no rows."""


class Bag(nn.Module, ABC):
    """A head of a slide; `forward` takes a bag whole, `stream_bag` takes it in blocks, with one result."""

    passes = 1
    """Times that it goes over the rows."""
    attentions = 1
    """Softmaxes of a pass."""
    maximum = False
    """Whether values are not averaged: the greatest of each channel counts."""
    alone = False
    """Whether rows are looked at without what their bag asks: there is one pass, which asks nothing, and `answer` takes what it gave, for many bags too."""
    dim: int
    outputs: int

    def start(self) -> Tensor:
        """What the first pass asks with."""
        return torch.empty(0)

    @abstractmethod
    def attend(self, number: int, asked: Tensor, rows: BagRows) -> tuple[Tensor, Tensor]:
        """Logits (k, n) and values (k, n, v) of rows in pass `number`."""

    def take(self, number: int, asked: Tensor, pooled: Tensor) -> Tensor:
        """What the next pass asks with, or the answer is made of, from the (k, v) that a pass gave."""
        return pooled.flatten()

    @abstractmethod
    def answer(self, asked: Tensor) -> Tensor:
        """(outputs,) logits, values, or a risk."""

    def forward(self, rows: BagRows) -> tuple[Tensor, Tensor]:
        """(outputs,) and the (k, n) logits of the attention of the last pass, of a bag in memory; gradients pass."""
        asked = self.start()
        logits = torch.empty(0)
        for number in range(self.passes):
            logits, values = self.attend(number, asked, rows)
            pooled = values.amax(dim=1) if self.maximum else torch.softmax(logits, dim=1)[:, None] @ values
            asked = self.take(number, asked, pooled.reshape(self.attentions, -1))
        return self.answer(asked), logits

    def forward_many(self, bags: Sequence[BagRows]) -> Tensor:
        """(b, outputs) of b bags in memory, what `forward` gives for each; gradients pass. Rows of all bags pass the layers at once where they can."""
        if not self.alone:
            return torch.stack([self.forward(rows)[0] for rows in bags])
        lengths = [len(rows.x) for rows in bags]
        x, y_um, x_um = (torch.cat(parts) for parts in zip(*((rows.x, rows.y_um, rows.x_um) for rows in bags), strict=True))
        together = BagRows(x, y_um, x_um, bags[0].unit)
        logits, values = self.attend(0, self.start(), together)  # (k, n of all), (k, n of all, v)
        if self.maximum:
            return self.answer(torch.stack([part.amax(dim=1).flatten() for part in values.split(lengths, dim=1)]))
        shares = torch.softmax(pad_sequence(logits.T.split(lengths), batch_first=True, padding_value=-torch.inf), dim=1)  # (b, n, k)
        padded = pad_sequence(values.transpose(0, 1).split(lengths), batch_first=True)  # (b, n, k, v)
        return self.answer(torch.einsum("bnk,bnkv->bkv", shares, padded).flatten(1))


class PooledBag(Bag):
    """The mean or the maximum of the rows, and a linear layer `fc`.

    Parameters
    ----------
    dim, outputs : int
        Channels of a row, and of the answer.
    pool : str
        mean or max.
    seed : int
        Of the weights until others are loaded.
    """

    alone = True

    def __init__(self, dim: int, outputs: int, pool: str = "mean", seed: int = 0) -> None:
        super().__init__()
        self.dim, self.outputs, self.pool = dim, outputs, pool
        self.maximum = pool == "max"
        self.fc = BlankLinear(dim, outputs)
        seeded_init(self, seed)
        freeze(self)

    def attend(self, number: int, asked: Tensor, rows: BagRows) -> tuple[Tensor, Tensor]:
        return rows.x.new_zeros(1, len(rows.x)), rows.x[None]

    def answer(self, asked: Tensor) -> Tensor:
        out: Tensor = self.fc(asked)
        return out


class AttentionBag(Bag):
    """Gated attention (Ilse et al. 2018, arXiv:1802.04712): h = ReLU(W x), logit w · (tanh(V h) * sigmoid(U h)), answer C of the weighted mean of h.

    The state dict holds `embed`, dim to hidden; `attention_v`, `attention_u`, hidden to gate; `attention_w`, gate to 1; and `fc`.

    Parameters
    ----------
    dim, outputs : int
        Channels of a row, and of the answer.
    hidden, gate : int
        Channels of h and of the gate.
    seed : int
        Of the weights until others are loaded.
    """

    alone = True

    def __init__(self, dim: int, outputs: int, hidden: int = 256, gate: int = 128, seed: int = 0) -> None:
        super().__init__()
        self.dim, self.outputs, self.hidden, self.gate = dim, outputs, hidden, gate
        self.embed = BlankLinear(dim, hidden)
        self.attention_v, self.attention_u = BlankLinear(hidden, gate), BlankLinear(hidden, gate)
        self.attention_w, self.fc = BlankLinear(gate, 1), BlankLinear(hidden, outputs)
        seeded_init(self, seed)
        freeze(self)

    def attend(self, number: int, asked: Tensor, rows: BagRows) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.embed(rows.x))  # (n, hidden)
        gate = torch.tanh(self.attention_v(h)) * torch.sigmoid(self.attention_u(h))
        return self.attention_w(gate).T, h[None]

    def answer(self, asked: Tensor) -> Tensor:
        out: Tensor = self.fc(asked)
        return out


class TransformerBag(Bag):
    """A small transformer with absolute positions whose latent tokens read all tiles, layer by layer (Jaegle et al. 2021, arXiv:2103.03206).

    Tiles are projected, their places in µm added as sines and cosines; in each layer the latents attend to all tiles, then to each other.
    A layer is one pass over the tiles, so that memory does not grow with their number.

    Parameters
    ----------
    dim, outputs : int
        Channels of a row, and of the answer.
    width, depth, heads, latents : int
        Channels, layers, attention heads, and latent tokens; heads divide the width, which is a multiple of 4.
    seed : int
        Of the weights until others are loaded.
    """

    def __init__(
        self, dim: int, outputs: int, *, width: int = 128, depth: int = 2, heads: int = 4, latents: int = 8, seed: int = 0
    ) -> None:
        super().__init__()
        if width % heads or width % 4:
            raise ValueError(f"width is {width}, but it must be a multiple of 4 and of heads, {heads}")
        self.dim, self.outputs, self.width, self.depth, self.heads, self.latents = dim, outputs, width, depth, heads, latents
        self.passes, self.attentions = depth, heads * latents
        self.embed = BlankLinear(dim, width)
        self.tokens = nn.Parameter(torch.zeros(latents, width))
        self.layers = nn.ModuleList(LatentLayer(width, heads) for _ in range(depth))
        self.norm, self.fc = nn.LayerNorm(width), BlankLinear(width, outputs)
        seeded_init(self, seed)
        freeze(self)

    def start(self) -> Tensor:
        return self.tokens

    def attend(self, number: int, asked: Tensor, rows: BagRows) -> tuple[Tensor, Tensor]:
        placed = self.embed(rows.x) + sincos_2d(rows.y_um, rows.x_um, self.width, unit=rows.unit).to(rows.x.device)
        logits, values = self._layer(number).read(asked, placed)  # (heads, latents, n), (heads, n, width / heads)
        return logits.flatten(0, 1), values.repeat_interleave(self.latents, dim=0)

    def take(self, number: int, asked: Tensor, pooled: Tensor) -> Tensor:
        heads = pooled.reshape(self.heads, self.latents, -1)
        return self._layer(number).forward(asked, heads.permute(1, 0, 2).reshape(self.latents, self.width))

    def answer(self, asked: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(asked).mean(dim=0))
        return out

    def _layer(self, number: int) -> LatentLayer:
        layer = self.layers[number]
        assert isinstance(layer, LatentLayer)
        return layer


class LatentLayer(nn.Module):
    """One layer of `TransformerBag`, before the norm of each part: latents read tiles, then each other, then pass a two-layer network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_latents, self.norm_tiles, self.norm_own, self.norm_mlp = (nn.LayerNorm(width) for _ in range(4))
        self.query, self.key_value, self.out = BlankLinear(width, width), BlankLinear(width, 2 * width), BlankLinear(width, width)
        self.own, self.own_out = BlankLinear(width, 3 * width), BlankLinear(width, width)
        self.fc1, self.fc2 = BlankLinear(width, 4 * width), BlankLinear(4 * width, width)

    def read(self, latents: Tensor, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (heads, latents, n) and values (heads, n, width / heads)."""
        query = self._split(self.query(self.norm_latents(latents)))
        key, value = (self._split(part) for part in self.key_value(self.norm_tiles(tiles)).chunk(2, dim=-1))
        return query @ key.transpose(1, 2) / query.shape[-1] ** 0.5, value

    def forward(self, latents: Tensor, read: Tensor) -> Tensor:
        """(latents, width) from themselves and what they read, of that shape."""
        latents = latents + self.out(read)
        query, key, value = (self._split(part) for part in self.own(self.norm_own(latents)).chunk(3, dim=-1))
        seen = F.scaled_dot_product_attention(query, key, value).transpose(0, 1).reshape(latents.shape)
        latents = latents + self.own_out(seen)
        out: Tensor = latents + self.fc2(F.gelu(self.fc1(self.norm_mlp(latents))))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(n, width) to (heads, n, width / heads)."""
        return x.reshape(len(x), self.heads, -1).transpose(0, 1)


Blocks = Callable[[], Iterable[BagRows]]
"""Goes over the rows of a bag anew each time, in blocks, always the same ones in one order."""


def stream_bag(bag: Bag, blocks: Blocks) -> tuple[Tensor, Tensor, BagState]:
    """The answer of a bag whose rows come in blocks: (outputs,), NaN for no rows; what its last pass asked with, and the state that it ended in.

    Memory bound: the state, and what `attend` makes of one block.
    """
    asked = used = bag.start()
    state = _no_rows()
    for number in range(bag.passes):
        used, state = asked, _no_rows()
        for rows in blocks():
            state = _merge(bag, state, _state(bag, *bag.attend(number, used, rows)))
        if not state.weight.numel():
            return torch.full((bag.outputs,), torch.nan), used, state
        asked = _taken(bag, number, used, state)
    return bag.answer(asked), used, state


def stream_bags(bag: Bag, count: int, blocks: Callable[[], Iterable[tuple[int, BagRows]]]) -> Tensor:
    """(count, outputs) answers of bags, none of them empty, whose blocks come in one stream, each with its bag's number: nobody waits between bags.

    Memory bound: a state for each bag, and what `attend` makes of one block.
    """
    asked = [bag.start()] * count
    for number in range(bag.passes):
        states = [_no_rows()] * count
        for k, rows in blocks():
            states[k] = _merge(bag, states[k], _state(bag, *bag.attend(number, asked[k], rows)))
        asked = [_taken(bag, number, used, state) for used, state in zip(asked, states, strict=True)]
    return torch.stack([bag.answer(used) for used in asked])


def bag_attention(bag: Bag, used: Tensor, state: BagState, blocks: Blocks) -> Iterator[Tensor]:
    """(n,) float32 share of each row in the answer, block by block, the mean over all attentions of the last pass; all shares sum to 1."""
    for rows in blocks():
        logits, _ = bag.attend(bag.passes - 1, used, rows)
        shares = torch.exp(logits.double() - state.top[:, None]) / state.weight[:, None]
        yield shares.mean(dim=0).float()


def _taken(bag: Bag, number: int, used: Tensor, state: BagState) -> Tensor:
    """What the pass after `number` asks with, or the answer is made of."""
    pooled = state.vector if bag.maximum else state.vector / state.weight[:, None]
    return bag.take(number, used, pooled.to(next(bag.parameters()).dtype))


def _no_rows() -> BagState:
    return BagState(*(torch.empty(0, dtype=torch.float64) for _ in range(3)))


def _state(bag: Bag, logits: Tensor, values: Tensor) -> BagState:
    logits = logits.double()
    top = logits.amax(dim=1)
    weights = torch.exp(logits - top[:, None])
    vector = values.amax(dim=1).double() if bag.maximum else (weights[:, None] @ values.double())[:, 0]
    return BagState(vector, weights.sum(dim=1), top)


def _merge(bag: Bag, a: BagState, b: BagState) -> BagState:
    if not a.weight.numel():
        return b
    top = torch.maximum(a.top, b.top)
    factor_a, factor_b = torch.exp(a.top - top), torch.exp(b.top - top)
    joined = torch.maximum(a.vector, b.vector) if bag.maximum else factor_a[:, None] * a.vector + factor_b[:, None] * b.vector
    return BagState(joined, factor_a * a.weight + factor_b * b.weight, top)
