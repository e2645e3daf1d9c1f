"""How well features tell classes apart: nearest neighbours and a linear probe, split by image, with intervals over images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class Accuracy:
    """A part of tiles that got their class right, and where it lies in 95 of 100 bootstraps over images."""

    mean: float
    low: float
    high: float


def stratified_folds(classes: np.ndarray, folds: int, repeats: int, seed: int) -> np.ndarray:
    """Which fold tests each image: in each repeat each class is dealt evenly, in a drawn order.

    Parameters
    ----------
    classes : (images,) int
        Class of each image.
    folds, repeats, seed : int
        Parts of a repeat, repeats, and the seed of the dealing.

    Returns
    -------
    fold : (repeats, images) int64
    """
    drawn = np.random.default_rng(seed)
    found = np.empty((repeats, len(classes)), dtype=np.int64)
    for repeat in found:
        for label in np.unique(classes):
            members = drawn.permutation(np.flatnonzero(classes == label))
            repeat[members] = (np.arange(len(members)) + drawn.integers(folds)) % folds
    return found


def knn_predict(train: Tensor, train_labels: Tensor, test: Tensor, k: int, classes: int) -> Tensor:
    """Class that most of the k nearest in cosine have; of equally many, the class whose neighbours are nearer.

    Parameters
    ----------
    train, train_labels : (n, d) float, (n,) int64
        Where neighbours are looked for; all of them where n is below k.
    test : (m, d) float
        Features to classify.
    k, classes : int
        Neighbours, and how many classes there are.

    Returns
    -------
    labels : (m,) int64
    """
    cosines = F.normalize(test, dim=1) @ F.normalize(train, dim=1).T  # (m, n)
    near, index = cosines.topk(min(k, len(train)), dim=1)
    votes = torch.zeros(len(test), classes, device=test.device, dtype=test.dtype)
    # One vote weighs more than all the differences of similarity together.
    votes.scatter_add_(1, train_labels[index], 1 + (near + 1) / (4 * k))
    return votes.argmax(dim=1)


def fit_probe(train: Tensor, weights: Tensor, labels: Tensor, classes: int, decay: float = 1e-2, iterations: int = 100) -> Tensor:
    """Multinomial logistic regressions on the same features, one for each row of weights, fitted together by L-BFGS.

    Parameters
    ----------
    train : (n, d) float
        Features.
    weights : (f, n) float
        1 where a feature is used in this fit, else 0.
    labels : (n,) int64
        Classes of the features.
    classes : int
        How many there are.
    decay : float
        Half of it times the squares of all weights, features having variance 1, is added to the mean cross-entropy.
    iterations : int
        At most.

    Returns
    -------
    coefficients : (f, d + 1, classes) float
        For raw features; the last row is the intercept.
    """
    share = weights / weights.sum(dim=1, keepdim=True)  # (f, n)
    middle = train.mean(dim=0)
    centred = train - middle  # features whose mean is far above their spread would lose digits
    mean = share @ centred  # (f, d)
    spread = (share @ centred**2 - mean**2).clamp_min(0).sqrt()
    scale = 1 / spread.clamp_min(1e-6 + 1e-3 * spread.amax(dim=1, keepdim=True))  # features that hardly vary are not blown up
    slope = torch.zeros(len(weights), train.shape[1], classes, device=train.device, dtype=train.dtype, requires_grad=True)
    intercept = torch.zeros(len(weights), 1, classes, device=train.device, dtype=train.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([slope, intercept], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")
    targets = labels.repeat(len(weights))

    def raw_coefficients() -> tuple[Tensor, Tensor]:
        """Of centred features: (f, d, classes) and (f, 1, classes)."""
        raw = slope * scale[..., None]
        return raw, intercept - mean[:, None] @ raw

    def closure() -> Tensor:
        optimiser.zero_grad()
        raw, offset = raw_coefficients()
        # One product for all fits: the features are read once.
        logits = (centred @ raw.transpose(0, 1).flatten(1)).unflatten(1, (len(weights), classes)).transpose(
            0, 1
        ) + offset  # (f, n, classes)
        losses = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none").reshape(share.shape)
        loss = (losses * share).sum() + decay / 2 * slope.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        raw, offset = raw_coefficients()
        return torch.cat([raw, offset - (middle @ raw)[:, None]], dim=1)


def probe_predict(coefficients: Tensor, features: Tensor) -> Tensor:
    """(f, d + 1, classes) of `fit_probe` and (n, d) to (f, n) int64 classes."""
    return (features.double() @ coefficients[:, :-1].double() + coefficients[:, -1:].double()).argmax(dim=2)


def cross_validate(features: Tensor, labels: Tensor, image: Tensor, fold: np.ndarray, k: int = 20) -> dict[str, np.ndarray]:
    """Part of each image's tiles that get their class right when the image is in no training set, as a mean over repeats.

    Parameters
    ----------
    features : (n, d) float
        Of tiles.
    labels : (n,) int64
        Classes of the tiles, from 0.
    image : (n,) int64
        The image that each tile is from.
    fold : (repeats, images) int
        From `stratified_folds`.
    k : int
        Neighbours.

    Returns
    -------
    right : dict of str to (images,) float64
        For `knn` and `probe`.
    """
    classes, parts = int(labels.max()) + 1, int(fold.max()) + 1
    tested = torch.from_numpy(fold).to(features.device)[:, None, image] == torch.arange(parts, device=features.device)[:, None]
    tested = tested.flatten(0, 1)  # (repeats * parts, n)
    probed = probe_predict(fit_probe(features, (~tested).to(features.dtype), labels, classes), features)
    right = {"knn": torch.zeros(len(features), device=features.device), "probe": ((probed == labels) & tested).sum(dim=0).float()}
    for test in tested:
        near = knn_predict(features[~test], labels[~test], features[test], k, classes)
        right["knn"][test] += (near == labels[test]).float()
    count = torch.bincount(image, minlength=fold.shape[1]).clamp_min(1)
    return {
        key: (torch.zeros(fold.shape[1], device=image.device).index_add_(0, image, value) / count / len(fold)).cpu().double().numpy()
        for key, value in right.items()
    }


def bootstrap_accuracy(right: np.ndarray, seed: int, draws: int = 2000) -> Accuracy:
    """(images,) parts that are right to their mean and the interval of the means of images drawn with replacement."""
    drawn = np.random.default_rng(seed).integers(len(right), size=(draws, len(right)))
    low, high = np.quantile(right[drawn].mean(axis=1), [0.025, 0.975])
    return Accuracy(float(right.mean()), float(low), float(high))
