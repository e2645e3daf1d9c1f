"""What an encoder must show before it comes with the package: numbers of frozen features on pictures that nobody trained on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.probing import Accuracy, bootstrap_accuracy, cross_validate, stratified_folds

NEIGHBOURS = 20
THRESHOLDS = {"knn": 0.89, "same picture": 0.60, "stain shift": 0.98, "participation": 10.0}
"""Of an encoder in the box, on tiles in colour."""

Encode = Callable[[Tensor], Tensor]
"""(n, 3, side, side) uint8 to (n, d) float32."""


def encode_tiles(encoder: nn.Module, batch: int) -> Encode:
    """An encoder of the package over batches."""

    @torch.inference_mode()
    def encode(tiles: Tensor) -> Tensor:
        return torch.cat([encoder(part).float() for part in tiles.split(batch)])

    return encode


def channel_histogram(tiles: Tensor) -> Tensor:
    """Square roots of the parts of pixels in 16 bins of each channel, joined: (n, 48)."""
    cell = (tiles.long() // 16).flatten(2)
    counts = torch.zeros(*cell.shape[:2], 16, device=tiles.device).scatter_add_(2, cell, torch.ones(cell.shape, device=tiles.device))
    return (counts / cell.shape[2]).sqrt().flatten(1)


def measure_gate(features: Tensor, shifted: Tensor, image: Tensor, classes: np.ndarray, seed: int) -> dict[str, Any]:
    """The numbers of one kind of features, each with the interval of 95 of 100 bootstraps over pictures.

    Parameters
    ----------
    features, shifted : (n, d) float
        Of tiles, and of the same tiles with their stain changed.
    image : (n,) int64
        Picture of each tile.
    classes : (pictures,) int
        Class of each picture.
    seed : int
        Of folds and bootstraps.

    Returns
    -------
    numbers : dict
        `knn` (20 nearest, the tile's own picture left out), `probe` (linear, folds of pictures), `same picture` (whose nearest other tile is
        of its picture), `stain shift` (whose changed self finds it among all tiles), and `participation`: the effective number of directions.
    """
    labels = torch.from_numpy(classes).to(image.device)[image]
    unit = F.normalize(features, dim=1)
    cosines = unit @ unit.T  # (n, n)
    others = cosines.masked_fill(image[:, None] == image[None], -2)
    near, index = others.topk(NEIGHBOURS, dim=1)
    votes = torch.zeros(len(unit), int(labels.max()) + 1, device=unit.device)
    votes.scatter_add_(1, labels[index], 1 + (near + 1) / (4 * NEIGHBOURS))  # of equally many, those that are nearer
    nearest = cosines.fill_diagonal_(-2).argmax(dim=1)
    found = (F.normalize(shifted, dim=1) @ unit.T).argmax(dim=1)
    right = {
        "knn": votes.argmax(dim=1) == labels,
        "same picture": image[nearest] == image,
        "stain shift": found == torch.arange(len(unit), device=unit.device),
    }
    rows = {key: asdict(bootstrap_accuracy(_by_picture(value, image, len(classes)), seed)) for key, value in right.items()}
    probed = cross_validate(features, labels, image, stratified_folds(classes, 5, 4, seed))["probe"]
    return {**rows, "probe": asdict(bootstrap_accuracy(probed, seed)), "participation": asdict(_participation(features, image, seed))}


def _by_picture(right: Tensor, image: Tensor, pictures: int) -> np.ndarray:
    count = torch.bincount(image, minlength=pictures).clamp_min(1)
    return (torch.zeros(pictures, device=image.device).index_add_(0, image, right.float()) / count).cpu().double().numpy()


def _participation(features: Tensor, image: Tensor, seed: int, draws: int = 200) -> Accuracy:
    """(sum of variances)^2 / sum of squared variances along principal directions, from the covariance without decomposing it."""
    values = features.double()
    pictures = int(image.max()) + 1
    drawn = np.random.default_rng(seed).integers(pictures, size=(draws, pictures))

    def number(weight: Tensor) -> float:
        share = weight / weight.sum()
        centred = values - share @ values
        covariance = centred.T @ (centred * share[:, None])
        return float(covariance.trace() ** 2 / covariance.square().sum())

    found = [number(torch.bincount(torch.from_numpy(row), minlength=pictures).double().to(image.device)[image]) for row in drawn]
    low, high = np.quantile(found, [0.025, 0.975])
    return Accuracy(number(torch.ones(len(values), dtype=torch.float64, device=image.device)), float(low), float(high))


def passes_gate(row: dict[str, Any]) -> bool:
    """Whether the numbers reach every threshold."""
    return all(row[key]["mean"] >= least for key, least in THRESHOLDS.items())


@torch.inference_mode()
def measure_formats(build: Callable[[], nn.Module], tiles: Tensor) -> list[dict[str, Any]]:
    """For fp32, bf16 and fp16: the least cosine with fp32, whether all is finite, and tiles/s of the encoder alone, after a first batch."""
    exact, rows = None, []
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        encoder = build().to(tiles.device).to(dtype)
        out = encoder(tiles).float()
        exact = out if exact is None else exact
        start = time.perf_counter()
        for _ in range(3):
            last = encoder(tiles)
        float(last.flatten()[0])  # waits for the device
        speed = 3 * len(tiles) / (time.perf_counter() - start)
        least = float(F.cosine_similarity(out.flatten(1), exact.flatten(1)).min())
        rows.append({"format": name, "cosine": least, "finite": bool(torch.isfinite(out).all()), "tiles/s": speed})
    return rows
