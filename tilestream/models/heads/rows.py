"""Heads that answer for each row alone: (n, d) to (n, outputs) logits, or values of a regression."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tilestream.models.patch_embed import BlankLinear, freeze, seeded_init

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Of the k nearest neighbours as DINO counts them (Caron et al. 2021, arXiv:2104.14294)."""

LEAST_LENGTH = 1e-12
"""Below it a vector has no direction."""


class LinearHead(nn.Module):
    """One linear layer: the state dict holds `fc`, dim to outputs.

    Parameters
    ----------
    dim, outputs : int
        Channels of a row, and logits.
    seed : int
        Of the weights until others are loaded.
    """

    def __init__(self, dim: int, outputs: int, seed: int = 0) -> None:
        super().__init__()
        self.dim, self.outputs = dim, outputs
        self.fc = BlankLinear(dim, outputs)
        seeded_init(self, seed)
        freeze(self)

    def forward(self, x: Tensor) -> Tensor:
        """(n, dim) to (n, outputs)."""
        out: Tensor = self.fc(x)
        return out


class MLPHead(nn.Module):
    """Two linear layers with a GELU between: `fc1`, dim to hidden, and `fc2`, hidden to outputs.

    Parameters
    ----------
    dim, outputs, hidden : int
        Channels of a row, logits, and channels between.
    seed : int
        Of the weights until others are loaded.
    """

    def __init__(self, dim: int, outputs: int, hidden: int = 256, seed: int = 0) -> None:
        super().__init__()
        self.dim, self.outputs, self.hidden = dim, outputs, hidden
        self.fc1, self.fc2 = BlankLinear(dim, hidden), BlankLinear(hidden, outputs)
        seeded_init(self, seed)
        freeze(self)

    def forward(self, x: Tensor) -> Tensor:
        """(n, dim) to (n, outputs)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class NearestHead(nn.Module):
    """The k nearest of labelled rows by cosine, each with weight exp(similarity / temperature); logits are logarithms of the classes' shares.

    The state dict holds `rows`, (m, dim), and `labels`, (m,) int64. Where `k` rows or fewer are there, all count.

    Parameters
    ----------
    dim, outputs, examples : int
        Channels of a row, classes, and labelled rows.
    k : int
        Neighbours.
    temperature : float
        Of the weights.
    """

    rows: Tensor
    labels: Tensor

    def __init__(self, dim: int, outputs: int, examples: int, k: int = NEIGHBOURS, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        self.dim, self.outputs, self.examples, self.k, self.temperature = dim, outputs, examples, k, temperature
        self.register_buffer("rows", torch.zeros(examples, dim))
        self.register_buffer("labels", torch.zeros(examples, dtype=torch.int64))
        freeze(self)

    def forward(self, x: Tensor) -> Tensor:
        """(n, dim) to (n, outputs); -inf for classes without a neighbour."""
        similar = unit_rows(x) @ unit_rows(self.rows).T  # (n, m)
        near, which = similar.topk(min(self.k, self.examples), dim=1)
        weights = torch.exp((near - near[:, :1]) / self.temperature)
        shares = weights.new_zeros(len(x), self.outputs).scatter_add_(1, self.labels[which], weights)
        return torch.log(shares / weights.sum(dim=1, keepdim=True))


class PrototypeHead(nn.Module):
    """The cosine between a row and each class's mean, both centred (SimpleShot, Wang et al. 2019, arXiv:1911.04623): for few examples.

    The state dict holds `centre`, (dim,), and `prototypes`, (outputs, dim): means of centred rows of length 1.

    Parameters
    ----------
    dim, outputs : int
        Channels of a row, and classes.
    temperature : float
        What the cosines are divided by.
    """

    centre: Tensor
    prototypes: Tensor

    def __init__(self, dim: int, outputs: int, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        self.dim, self.outputs, self.temperature = dim, outputs, temperature
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("prototypes", torch.zeros(outputs, dim))
        freeze(self)

    def forward(self, x: Tensor) -> Tensor:
        """(n, dim) to (n, outputs)."""
        return unit_rows(x - self.centre) @ unit_rows(self.prototypes).T / self.temperature


def unit_rows(x: Tensor) -> Tensor:
    """(n, d), each row of length 1."""
    return F.normalize(x, dim=1, eps=LEAST_LENGTH)
