"""What a pool knows of some tiles, and the rules that learn nothing: mean, maximum, and both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class PoolState:
    """What a pool knows of some tiles; float64 on the device of the tiles. Pools with logits have one of each for each head, (heads, ...)."""

    vector: Tensor
    """(d,): the sum, the maximum, or the sum weighted by exp(logit - top)."""
    weight: Tensor
    """(): the number of tiles, or the sum of exp(logit - top)."""
    top: Tensor
    """(): the greatest logit, -inf where there are no tiles; 0 for pools without logits."""


class Pool(Protocol):
    """What every pool offers."""

    def identity(self) -> PoolState:
        """State of no tiles."""
        ...

    def state(self, x: Tensor, keep: Tensor | None = None) -> PoolState:
        """State of tiles (n, d); `keep`, (n,) bool, is False for failed tiles, whose rows are NaN."""
        ...

    def merge(self, a: PoolState, b: PoolState) -> PoolState:
        """State of the tiles of both; merge in shard order for the same bits each time."""
        ...

    def result(self, state: PoolState) -> Tensor:
        """The vector (d,) float64 of a state; NaN for that of no tiles."""
        ...


class MeanPool:
    """Mean of the tile vectors.

    Parameters
    ----------
    dim : int
        Channels of a tile vector.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def identity(self) -> PoolState:
        """State of no tiles."""
        return PoolState(zeros(self.dim), zeros(), zeros())

    def state(self, x: Tensor, keep: Tensor | None = None) -> PoolState:
        """State of tiles (n, d); `keep`, (n,) bool, is False for failed tiles."""
        x = kept_rows(x, keep, self.dim)
        return PoolState(x.sum(dim=0), x.new_tensor(len(x)), x.new_zeros(()))

    def merge(self, a: PoolState, b: PoolState) -> PoolState:
        """State of the tiles of both."""
        return PoolState(a.vector + b.vector, a.weight + b.weight, a.top)

    def result(self, state: PoolState) -> Tensor:
        """(d,) float64; 0 / 0 is the NaN of no tiles."""
        return state.vector / state.weight


class MaxPool:
    """Maximum of each channel.

    Parameters
    ----------
    dim : int
        Channels of a tile vector.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def identity(self) -> PoolState:
        """State of no tiles."""
        return PoolState(torch.full((self.dim,), -torch.inf, dtype=torch.float64), zeros(), zeros())

    def state(self, x: Tensor, keep: Tensor | None = None) -> PoolState:
        """State of tiles (n, d); `keep`, (n,) bool, is False for failed tiles."""
        x = kept_rows(x, keep, self.dim)
        least = x.new_full((1, self.dim), -torch.inf)
        return PoolState(torch.cat([least, x]).amax(dim=0), x.new_tensor(len(x)), x.new_zeros(()))

    def merge(self, a: PoolState, b: PoolState) -> PoolState:
        """State of the tiles of both."""
        return PoolState(torch.maximum(a.vector, b.vector), a.weight + b.weight, a.top)

    def result(self, state: PoolState) -> Tensor:
        """(d,) float64."""
        return torch.where(state.weight > 0, state.vector, torch.nan)


class MeanMaxPool:
    """Mean of the tile vectors, then the maximum of each channel.

    Parameters
    ----------
    dim : int
        Channels of a tile vector.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.parts: tuple[Pool, Pool] = (MeanPool(dim), MaxPool(dim))

    def identity(self) -> PoolState:
        """State of no tiles."""
        return self._join([part.identity() for part in self.parts])

    def state(self, x: Tensor, keep: Tensor | None = None) -> PoolState:
        """State of tiles (n, d); `keep`, (n,) bool, is False for failed tiles."""
        return self._join([part.state(x, keep) for part in self.parts])

    def merge(self, a: PoolState, b: PoolState) -> PoolState:
        """State of the tiles of both."""
        return self._join([part.merge(*own) for part, *own in zip(self.parts, self._split(a), self._split(b), strict=True)])

    def result(self, state: PoolState) -> Tensor:
        """(2 * d,) float64."""
        return torch.cat([part.result(own) for part, own in zip(self.parts, self._split(state), strict=True)])

    @staticmethod
    def _join(states: list[PoolState]) -> PoolState:
        return PoolState(torch.cat([state.vector for state in states]), states[0].weight, states[0].top)

    @staticmethod
    def _split(state: PoolState) -> list[PoolState]:
        return [PoolState(vector, state.weight, state.top) for vector in state.vector.chunk(2)]


def kept_rows(x: Tensor, keep: Tensor | None, dim: int) -> Tensor:
    """The tiles that count, (m, dim) float64."""
    assert x.shape == (len(x), dim), f"tiles are (n, {dim}), got {tuple(x.shape)}"
    return (x if keep is None else x[keep]).double()


def zeros(*shape: int) -> Tensor:
    """In float64."""
    return torch.zeros(shape, dtype=torch.float64)
