"""Losses, in float32 whatever the autocast, each with the paper that it is from."""

from __future__ import annotations

import math

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
def sinkhorn_targets(logits: Tensor, iterations: int = 3) -> Tensor:
    """Spread rows over prototypes so that each prototype gets an equal share (Sinkhorn-Knopp; SwAV, arXiv:2006.09882, equation 3).

    (n, k) logits, divided by the temperature, to (n, k) probabilities, the rows summing to 1.
    """
    n, k = logits.shape
    shares = torch.exp(logits.float() - logits.float().amax(dim=1, keepdim=True))
    for _ in range(iterations):
        shares = shares / (shares.sum(dim=0, keepdim=True).clamp_min(1e-30) * k)
        shares = shares / (shares.sum(dim=1, keepdim=True).clamp_min(1e-30) * n)
    return shares / shares.sum(dim=1, keepdim=True).clamp_min(1e-30)


def cross_entropy(cosines: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Mean over rows of the cross-entropy between (n, k) targets and the softmax of (n, k) cosines / temperature."""
    return -(targets * F.log_softmax(cosines.float() / temperature, dim=-1)).sum(dim=-1).mean()


def distillation_loss(global_cosines: Tensor, local_cosines: Tensor | None, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each student view with the teacher's other global views (DINO, Caron et al. 2021, arXiv:2104.14294, equation 3).

    Parameters
    ----------
    global_cosines, local_cosines : (g, n, k), (l, n, k) or None
        Of the student.
    targets : (g, n, k)
        Of the teacher.
    temperature : float
        Of the student.
    """
    g = len(targets)
    pairs = [cross_entropy(global_cosines[i], targets[j], temperature) for i in range(g) for j in range(g) if i != j]
    if local_cosines is not None:
        # The cross-entropy is linear in the targets: their mean stands for all the pairs of a local view.
        pairs += [cross_entropy(view, targets.mean(dim=0), temperature) for view in local_cosines]
    return torch.stack(pairs).mean()


def koleo_loss(tokens: Tensor) -> Tensor:
    """Minus the mean log distance to the nearest neighbour on the sphere (KoLeo, Sablayrolles et al. 2019, arXiv:1806.03198).

    (n, d) class tokens of different samples to a scalar; used as in DINOv2 (arXiv:2304.07193).
    """
    unit = F.normalize(tokens.float(), dim=-1)
    with torch.no_grad():
        nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(dim=1)
    distance = (unit - unit[nearest]).square().sum(dim=1).add(1e-8).sqrt()
    return -torch.log(distance + 1e-8).mean()


def patch_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """Smooth L1 distance of predicted tokens from a teacher's, each channel standardised over the batch (data2vec, arXiv:2202.03555).

    Both are (n, d). Standardising over the batch leaves no reward for tokens that are all alike.
    """
    targets = targets.float()
    spread = targets.std(dim=0, keepdim=True).clamp_min(1e-3)
    return F.smooth_l1_loss(predicted.float(), (targets - targets.mean(dim=0, keepdim=True)) / spread)


@torch.no_grad()
def mean_entropy(probabilities: Tensor) -> Tensor:
    """Mean over rows of the entropy of (n, k) probabilities, as a part of that of a uniform row: 1 says nothing, 0 is certain."""
    entropy = torch.special.entr(probabilities).sum(dim=-1).mean()
    return entropy / math.log(probabilities.shape[-1])


@torch.no_grad()
def token_spread(tokens: Tensor) -> Tensor:
    """One minus the mean cosine of two of the (n, d) tokens: 0 where all point the same way."""
    return 1 - F.normalize(tokens.float(), dim=-1).mean(dim=0).square().sum()
