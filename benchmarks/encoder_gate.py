"""What an encoder must show before it comes with the package: numbers of frozen features on pictures that nobody trained on.

The protocol: each picture's four quarters, brought to 224 px, are the tiles. 20 nearest neighbours in cosine, none of the tile's own picture,
vote with weights of exp(cosine / 0.07). Linear probes are fitted in five folds of pictures, four times. Every number has the interval of 95
of 100 bootstraps over pictures. What is drawn is drawn from the seed: a second run prints the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.probing import Accuracy, bootstrap_accuracy, cross_validate, stratified_folds
from benchmarks.tile_features import change_stain, channel_histogram, colour_histogram, encode_tiles, grey_tiles, quarter_tiles
from tilestream.encoders.catalogue import EncoderSpec
from tilestream.encoders.registry import build_encoder
from tilestream.models.efficientnet_lite import EfficientNetLite

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Of a vote, and what its cosines are divided by (DINO, Caron et al. 2021, arXiv:2104.14294)."""
STAIN_FACTOR, STAIN_OFFSET = 0.2, 0.2
"""How far the amounts of haematoxylin, eosin and a third stain are changed: by a part, and by an optical density."""
THRESHOLDS = {"knn": 0.89, "same picture": 0.60, "stain shift": 0.98, "participation": 10.0}
"""Of an encoder in the box, on tiles in colour."""


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
    near, index = cosines.masked_fill(image[:, None] == image, -2).topk(NEIGHBOURS, dim=1)
    votes = torch.zeros(len(unit), int(labels.max()) + 1, device=unit.device, dtype=unit.dtype)
    votes.scatter_add_(1, labels[index], torch.exp((near - 1) / TEMPERATURE))
    nearest = cosines.fill_diagonal_(-2).argmax(dim=1)
    found = (F.normalize(shifted, dim=1) @ unit.T).argmax(dim=1)
    right = {
        "knn": votes.argmax(dim=1) == labels,
        "same picture": image[nearest] == image,
        "stain shift": found == torch.arange(len(unit), device=unit.device),
    }
    rows = {key: asdict(bootstrap_accuracy(by_picture(value, image, len(classes)), seed)) for key, value in right.items()}
    probed = cross_validate(features, labels, image, stratified_folds(classes, 5, 4, seed))["probe"]
    return {
        **rows,
        "probe": asdict(bootstrap_accuracy(probed, seed)),
        "participation": asdict(measure_participation(features, image, seed)),
    }


def by_picture(right: Tensor, image: Tensor, pictures: int) -> np.ndarray:
    """(n,) of tiles to their mean in each picture, (pictures,)."""
    count = torch.bincount(image, minlength=pictures).clamp_min(1)
    return (torch.zeros(pictures, device=image.device).index_add_(0, image, right.float()) / count).cpu().double().numpy()


def measure_participation(features: Tensor, image: Tensor, seed: int, draws: int = 2000) -> Accuracy:
    """(sum of variances)^2 / sum of squared variances along principal directions, with its interval over pictures.

    With G the products of the tiles and w the share of each in a draw, the variances add up to `w diag(G) - wGw`, and their squares to
    `w (G * G) w - 2 w (Gw)^2 + (wGw)^2`: all draws are two products of matrices, whatever the number of features.
    """
    values = features.double() - features.double().mean(dim=0)
    pictures = int(image.max()) + 1
    drawn = torch.from_numpy(np.random.default_rng(seed).integers(pictures, size=(draws, pictures)))
    times = torch.zeros(draws, pictures, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
    times = torch.cat([torch.ones(1, pictures, dtype=torch.float64), times]).to(image.device)  # the first draw is each picture once
    share = F.normalize(times[:, image], p=1, dim=1)  # (draws + 1, n)
    gram = values @ values.T  # (n, n)
    mean = share @ gram
    length = (share * mean).sum(dim=1)
    variances = share @ gram.diagonal() - length
    squares = (share * (share @ gram.square())).sum(dim=1) - 2 * (share * mean.square()).sum(dim=1) + length.square()
    number = (variances.square() / squares).cpu().numpy()
    low, high = np.quantile(number[1:], [0.025, 0.975])
    return Accuracy(float(number[0]), float(low), float(high))


def hold_to_gate(
    encoders: list[str], images: np.ndarray, names: list[str], device: torch.device, seed: int, *, formats: bool
) -> dict[str, Any]:
    """The gate's rows for encoders by name, histograms and an untrained network, in colour and in grey."""
    known = sorted(set(names))
    classes = np.array([known.index(name) for name in names])
    tiles, image = quarter_tiles(images)
    tiles, image = tiles.to(device), image.to(device)
    shifted = change_stain(tiles, STAIN_FACTOR, STAIN_OFFSET, seed)
    batch = 256 if device.type == "cuda" else 16
    builds = {name: partial(build_encoder, EncoderSpec(name)) for name in encoders} | {"untrained network": EfficientNetLite}
    ways = {"histogram 3 x 16": channel_histogram, "histogram 8 x 8 x 8": lambda shown: colour_histogram(shown)["colour histogram"]}
    ways |= {name: encode_tiles(build().to(device), batch) for name, build in builds.items()}
    rows = []
    for name, encode in ways.items():
        for colour, shown, changed in (("colour", tiles, shifted), ("grey", grey_tiles(tiles), grey_tiles(shifted))):
            row = measure_gate(encode(shown), encode(changed), image, classes, seed)
            rows.append({"features": name, "colour": colour, **row, "passes": passes_gate(row)})
    if not formats:
        return {"gate": rows}
    return {"gate": rows, "formats": {name: measure_formats(build, tiles[:batch]) for name, build in builds.items() if name in encoders}}


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
