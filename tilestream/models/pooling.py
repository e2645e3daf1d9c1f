"""Slide vectors as associative states: any split of the tiles, merged in any grouping, gives the vector of all of them.

A pool turns tile vectors into a state, merges two states, and turns a state into a vector. Sums are float64. The state of no tiles is
the identity of the merge, and its vector is NaN: nothing is not zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tilestream.errors import ConfigError
from tilestream.models.patch_embed import BlankLinear, freeze, seeded_init
from tilestream.models.plain_pools import MaxPool, MeanMaxPool, MeanPool, Pool, PoolState, kept_rows, zeros

BLOCK_VALUES = 1 << 22
"""Values of a gate that are computed at once: of a usual one of 128 channels, those of more rows than come in a block."""

POOLS = ("mean", "max", "mean+max", "gated_attention", "queries")

_LEARNED = ("gated_attention", "queries")

_GATE_KEYS = frozenset(f"attention_{name}.{kind}" for name in "vuw" for kind in ("weight", "bias"))


class SoftmaxPool(nn.Module, ABC):
    """Mean of the tile vectors weighted by the softmax of their logits, in k heads.

    Streamed as (greatest logit, sum of weights, weighted sum) of each head, so that no logit is too great. All of it is float64.

    Parameters
    ----------
    dim : int
        Channels of a tile vector.
    heads : int
        Softmaxes; the vector is what each gives, one behind the other.
    """

    def __init__(self, dim: int, heads: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.heads = heads

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Logits (n, heads) float64 of tiles (n, d) float64."""

    def identity(self) -> PoolState:
        """State of no tiles."""
        return PoolState(zeros(self.heads, self.dim), zeros(self.heads), zeros(self.heads) - torch.inf)

    def state(self, x: Tensor, keep: Tensor | None = None) -> PoolState:
        """State of tiles (n, d) on the weights' device; `keep`, (n,) bool, is False for failed tiles."""
        x = kept_rows(x, keep, self.dim)
        logits = self.logits(x)
        top = torch.cat([logits.new_full((1, self.heads), -torch.inf), logits]).amax(dim=0)
        weights = torch.exp(logits - top)
        return PoolState(weights.T @ x, weights.sum(dim=0), top)

    def merge(self, a: PoolState, b: PoolState) -> PoolState:
        """State of the tiles of both."""
        top = torch.maximum(a.top, b.top)
        # of no tiles, top is -inf and weight 0: the factor must not be exp(-inf + inf)
        factor_a, factor_b = (torch.where(s.weight > 0, torch.exp(s.top - top), 0.0) for s in (a, b))
        return PoolState(factor_a[:, None] * a.vector + factor_b[:, None] * b.vector, factor_a * a.weight + factor_b * b.weight, top)

    def result(self, state: PoolState) -> Tensor:
        """(heads * d,) float64; 0 / 0 is the NaN of no tiles."""
        return (state.vector / state.weight[:, None]).flatten()

    def attention(self, logits: Tensor, state: PoolState) -> Tensor:
        """(n, heads) float64: what share tiles of these logits have in the vector of a state that holds them; all shares sum to 1."""
        return torch.exp(logits - state.top) / state.weight


class GatedAttentionPool(SoftmaxPool):
    """Gated attention (Ilse et al. 2018, arXiv:1802.04712, equation 9): the logit of tile x is `w · (tanh(V x) * sigmoid(U x))`.

    The state dict holds `attention_v`, `attention_u`, (hidden, dim), and `attention_w`, (1, hidden), each with `weight` and `bias`.

    Parameters
    ----------
    dim : int
        Channels of a tile vector.
    hidden : int
        Channels of the gate; taken from the weights where they are given.
    seed : int
        Of random weights.
    weights : mapping of str to Tensor, optional
        A state dict.

    Raises
    ------
    ConfigError
        Naming `pool.weights`, where they are not the weights of this pool at this `dim`.
    """

    def __init__(self, dim: int, hidden: int = 128, seed: int = 0, weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(dim)
        if weights is not None:
            hidden = _hidden_from_weights(weights, dim)
        self.attention_v = BlankLinear(dim, hidden, dtype=torch.float64)
        self.attention_u = BlankLinear(dim, hidden, dtype=torch.float64)
        self.attention_w = BlankLinear(hidden, 1, dtype=torch.float64)
        if weights is None:
            seeded_init(self, seed)
        else:
            self.load_state_dict(dict(weights))
        freeze(self)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (n, 1) float64 of tiles (n, d) float64."""
        rows = max(1, BLOCK_VALUES // self.attention_v.out_features)
        return torch.cat([self._logits(block) for block in torch.split(x, rows)])

    def _logits(self, x: Tensor) -> Tensor:
        gate = torch.tanh(self.attention_v(x)).mul_(torch.sigmoid(self.attention_u(x)))  # (n, hidden)
        out: Tensor = self.attention_w(gate)
        return out


class QueriesPool(SoftmaxPool):
    """Learned queries that each attend to all tiles (Lee et al. 2019, arXiv:1810.00825, section 3.2, one head, values as they are).

    The logit of tile x for query q is `q · (K x) / sqrt(hidden)`. The state dict holds `queries`, (k, hidden), and `key`, dim to hidden,
    `weight` and `bias`.

    Parameters
    ----------
    dim : int
        Channels of a tile vector.
    queries, hidden : int
        Queries, and channels of each; taken from the weights where they are given.
    seed : int
        Of random weights.
    weights : mapping of str to Tensor, optional
        A state dict.

    Raises
    ------
    ConfigError
        Naming `pool.weights`, where they are not the weights of this pool at this `dim`.
    """

    def __init__(self, dim: int, queries: int = 1, hidden: int = 64, seed: int = 0, weights: Mapping[str, Tensor] | None = None) -> None:
        if weights is not None:
            queries, hidden = _queries_from_weights(weights, dim)
        super().__init__(dim, queries)
        self.queries = nn.Parameter(torch.zeros(queries, hidden, dtype=torch.float64))
        self.key = BlankLinear(dim, hidden, dtype=torch.float64)
        if weights is None:
            seeded_init(self, seed)
        else:
            self.load_state_dict(dict(weights))
        freeze(self)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (n, queries) float64 of tiles (n, d) float64."""
        out: Tensor = self.key(x) @ self.queries.T / self.queries.shape[1] ** 0.5
        return out


def make_pool(name: str, dim: int, weights: Mapping[str, Tensor] | None = None, seed: int = 0) -> Pool:
    """Build a pool by its name in the config.

    Parameters
    ----------
    name : str
        `mean`, `max`, `mean+max`, `gated_attention` or `queries`.
    dim : int
        Channels of a tile vector.
    weights : mapping of str to Tensor, optional
        State dict of a pool that has one; by default it is random.
    seed : int
        Of random weights.

    Returns
    -------
    pool : Pool

    Raises
    ------
    ConfigError
        Naming `pool.name` or `pool.weights`.
    """
    if name not in POOLS:
        raise ConfigError(f"pool.name: {name!r}, but it must be one of {', '.join(POOLS)}.")
    if name == "gated_attention":
        return GatedAttentionPool(dim, seed=seed, weights=weights)
    if name == "queries":
        return QueriesPool(dim, seed=seed, weights=weights)
    if weights is not None:
        raise ConfigError(f"pool.weights: {name} has none. Leave it out, or set pool.name to {' or '.join(_LEARNED)}.")
    plain: dict[str, type[MeanPool | MaxPool | MeanMaxPool]] = {"mean": MeanPool, "max": MaxPool, "mean+max": MeanMaxPool}
    return plain[name](dim)


def pool_bytes(name: str, weights: str | None, dim: int) -> int:
    """What a pool takes: its weights in float64, twice a file in float32, the file, and what it makes of some rows at once."""
    if name not in _LEARNED:
        return 0
    size = Path(weights).stat().st_size if weights is not None and Path(weights).is_file() else 128 * dim * 4 * 2
    hidden = size // (4 * dim * (2 if name == "gated_attention" else 1))
    return size * 3 + 6 * min(BLOCK_VALUES, 2048 * hidden) * 8


_Shape: TypeAlias = tuple[int, ...]


def _hidden_from_weights(weights: Mapping[str, Tensor], dim: int) -> int:
    if frozenset(weights) != _GATE_KEYS:
        raise ConfigError(f"pool.weights: keys are {sorted(weights)[:8]}, but a gated attention has {sorted(_GATE_KEYS)}.")
    shape: _Shape = tuple(weights["attention_v.weight"].shape)
    hidden = shape[0] if shape else 0
    expected: dict[str, _Shape] = {"attention_w.weight": (1, hidden), "attention_w.bias": (1,)}
    for name in ("attention_v", "attention_u"):
        expected |= {f"{name}.weight": (hidden, dim), f"{name}.bias": (hidden,)}
    for key, wanted in expected.items():
        if tuple(weights[key].shape) != wanted:
            raise ConfigError(f"pool.weights: {key} is {tuple(weights[key].shape)}, but tiles of {dim} features need {wanted}.")
    return hidden


def _queries_from_weights(weights: Mapping[str, Tensor], dim: int) -> tuple[int, int]:
    if set(weights) != {"queries", "key.weight", "key.bias"}:
        raise ConfigError(f"pool.weights: keys are {sorted(weights)[:8]}, but learned queries have ['key.bias', 'key.weight', 'queries'].")
    found = tuple(weights["queries"].shape)
    queries, hidden = found if len(found) == 2 else (0, 0)
    for key, wanted in {"queries": (queries, hidden), "key.weight": (hidden, dim), "key.bias": (hidden,)}.items():
        if tuple(weights[key].shape) != wanted or not queries:
            raise ConfigError(f"pool.weights: {key} is {tuple(weights[key].shape)}, but tiles of {dim} features need {wanted}.")
    return queries, hidden
