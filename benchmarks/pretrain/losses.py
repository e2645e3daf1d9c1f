"""Losses, in float32 whatever the autocast, each with the paper that it is from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def variance_loss(embeddings: Tensor) -> Tensor:
    """Hinge on each channel's standard deviation over the batch, at 1 (VICReg, Bardes et al. 2022, arXiv:2105.04906, equation 1).

    (v, n, d) of v views to a scalar, the mean over views.
    """
    deviation = torch.sqrt(embeddings.var(dim=1) + 1e-4)
    return F.relu(1 - deviation).mean()


def covariance_loss(embeddings: Tensor) -> Tensor:
    """Squares of the covariances of different channels, summed and divided by d (VICReg, arXiv:2105.04906, equation 4).

    (v, n, d) of v views to a scalar, the mean over views.
    """
    _, n, d = embeddings.shape
    centred = embeddings - embeddings.mean(dim=1, keepdim=True)
    covariance = centred.transpose(1, 2) @ centred / (n - 1)  # (v, d, d)
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    return ((covariance**2).sum(dim=(1, 2)) - (diagonal**2).sum(dim=1)).mean() / d


def invariance_loss(global_embeddings: Tensor, local_embeddings: Tensor | None) -> Tensor:
    """Mean square distance of each view's embedding from those of the global views other than itself.

    VICReg (arXiv:2105.04906, equation 5) on the pairs of multi-crop (Caron et al. 2020, SwAV, arXiv:2006.09882, section 3.2).

    Parameters
    ----------
    global_embeddings : (g, n, d)
        Of g views of n samples.
    local_embeddings : (l, n, d) or None
        Of l smaller views of the same samples.
    """
    g = len(global_embeddings)
    pairs = [F.mse_loss(global_embeddings[i], global_embeddings[j]) for i in range(g) for j in range(i)]
    if local_embeddings is not None:
        pairs += [F.mse_loss(view, target) for view in local_embeddings for target in global_embeddings]
    return torch.stack(pairs).mean()


@torch.no_grad()
def token_spread(tokens: Tensor) -> Tensor:
    """One minus the mean cosine of two of the (n, d) tokens: 0 where all point the same way."""
    return 1 - F.normalize(tokens.float(), dim=-1).mean(dim=0).square().sum()
