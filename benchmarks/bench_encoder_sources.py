"""Question: do features hold on sources that nothing was fitted on?

    python -m benchmarks.bench_encoder_sources [--encoders tilestream-lite tilestream-tiny] [--options] [--data DIR] [--json] [--device auto]

Sources of the pool are left out one at a time (`pool/`, source after `_` in the name). In each chunk of 512 px lie two tiles of 224 px side
by side, and one of the 448 px around both at half the scale. On the source left out:

- stain: the changed left tile finds itself among the source's left tiles;
- beside: the tile to its right is among the 5 nearest of the source's right tiles;
- scale probe: a linear probe for `half the scale`, fitted on the other sources.

Organs of `validation/` are left out the same way: cancer or not, by 20 nearest neighbours and by a linear probe, learned on quarters of the
pictures of the other organ; the two classes count alike. `order` is what no threshold decides: how often the probe puts a tile of cancer above
one of none. Rows in grey tell what is not stain, and those with the mean of each organ taken away what is not a shift between organs.

`--options` adds what was tried beyond the encoder in the box: whitening, by all features or by what a change of stain moves, projections and
directions of stain taken away, each fitted on the sources that are not left out, and two zooms of a tile. Intervals are 95 % of bootstraps over chunks or pictures; chunks of one slide
overlap, so that those of cmu and tcga, one slide each, are too narrow.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.encoder_gate import NEIGHBOURS, STAIN_FACTOR, STAIN_OFFSET, TEMPERATURE
from benchmarks.probing import bootstrap_accuracy, fit_probe, probe_predict
from benchmarks.tile_features import (
    TILE,
    Encode,
    change_stain,
    channel_histogram,
    colour_histogram,
    encode_tiles,
    grey_tiles,
    load_images,
    quarter_tiles,
)
from tilestream.encoders.catalogue import EncoderSpec
from tilestream.encoders.registry import build_encoder

SOURCES = ("cmu", "tcga", "ost", "dsb")
ORGANS = ("colon", "lung")
MOST = 60
"""Chunks of a source, evenly taken."""
BESIDE = 5
"""Nearest among which the tile beside is looked for."""


@dataclass(frozen=True)
class SourceFeatures:
    """Features of a source's chunks, (chunks, d) each."""

    left: Tensor
    right: Tensor
    stained: Tensor
    """Of the left tiles with their stain changed."""
    half: Tensor
    """Of both and what is around them at half the scale."""

    def apply(self, change: Callable[[Tensor], Tensor]) -> SourceFeatures:
        """All of them changed."""
        return SourceFeatures(*(change(part) for part in (self.left, self.right, self.stained, self.half)))


@dataclass(frozen=True)
class OrganFeatures:
    """Features of the tiles of one organ."""

    tiles: Tensor
    picture: Tensor
    cancer: Tensor
    """1 or 0 of each tile."""


def read_chunks(folder: Path, source: str) -> Tensor:
    """(chunks, 3, 512, 512) uint8, at most `MOST`."""
    paths = sorted(folder.glob(f"*_{source}.jpg"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no chunk of the source {source}. Set --data to the folder that has pool and validation.")
    kept = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(MOST, len(paths))).round().astype(int))]
    pictures = []
    for path in kept:
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def encode_source(chunks: Tensor, encode: Encode, seed: int) -> SourceFeatures:
    """Features of the tiles of each chunk."""
    first, middle = (chunks.shape[2] - 2 * TILE) // 2, (chunks.shape[2] - TILE) // 2
    left, right = (chunks[:, :, middle : middle + TILE, x : x + TILE] for x in (first, first + TILE))
    around = chunks[:, :, first : first + 2 * TILE, first : first + 2 * TILE].float()
    half = F.avg_pool2d(around, 2).round().to(torch.uint8)
    return SourceFeatures(
        *(encode(tiles.contiguous()) for tiles in (left, right, change_stain(left, STAIN_FACTOR, STAIN_OFFSET, seed), half))
    )


def encode_organ(images: np.ndarray, names: list[str], organ: str, encode: Encode) -> OrganFeatures:
    """Features of the quarters of an organ's pictures."""
    members = [i for i, name in enumerate(names) if name.startswith(organ)]
    tiles, picture = quarter_tiles(images[members])
    cancer = torch.tensor([not names[i].endswith("_n") for i in members]).long()
    return OrganFeatures(encode(tiles), picture, cancer[picture])


def measure_source(sources: dict[str, SourceFeatures], out: str, seed: int) -> dict[str, Any]:
    """The numbers of the source left out."""
    tested = sources[out]
    self_found = _cosines(tested.stained, tested.left).argmax(dim=1) == torch.arange(len(tested.left))
    beside = _cosines(tested.left, tested.right).topk(min(BESIDE, len(tested.right)), dim=1).indices
    beside_found = (beside == torch.arange(len(tested.left))[:, None]).any(dim=1)
    known = [(part.left, part.half) for name, part in sources.items() if name != out]
    full, half = torch.cat([pair[0] for pair in known]), torch.cat([pair[1] for pair in known])
    labels = torch.arange(2).repeat_interleave(len(full))
    weights = torch.cat([torch.full((len(pair[0]),), 1 / len(pair[0])) for pair in known]).repeat(2)  # sources count alike
    probe = fit_probe(torch.cat([full, half]), weights[None], labels, 2)
    right = (probe_predict(probe, tested.left)[0] == 0).float() / 2 + (probe_predict(probe, tested.half)[0] == 1).float() / 2
    found = {"stain": self_found, "beside": beside_found, "scale probe": right}
    return {key: asdict(bootstrap_accuracy(value.double().numpy(), seed)) for key, value in found.items()}


def measure_organ(known: OrganFeatures, tested: OrganFeatures, seed: int) -> dict[str, Any]:
    """Cancer or not on one organ, learned on the other: the mean of the parts of both classes that are right, and how often cancer is put above none."""
    near, index = _cosines(tested.tiles, known.tiles).topk(min(NEIGHBOURS, len(known.tiles)), dim=1)
    count = torch.bincount(known.cancer, minlength=2)
    weight = torch.exp((near - 1) / TEMPERATURE) / count[known.cancer[index]]  # a class that is rarer has no fewer votes
    votes = torch.zeros(len(tested.tiles), 2).scatter_add_(1, known.cancer[index], weight.float())
    probe = fit_probe(known.tiles, (1 / count[known.cancer])[None], known.cancer, 2)
    slope = (probe[0, :, 1] - probe[0, :, 0]).double()
    predicted = {"knn": votes.argmax(dim=1), "probe": probe_predict(probe, tested.tiles)[0]}
    found = {key: _over_pairs((value == tested.cancer).double(), _mean_of_both, tested, seed) for key, value in predicted.items()}
    return {**found, "order": _over_pairs(tested.tiles.double() @ slope[:-1], _part_above, tested, seed)}


def _mean_of_both(cancer: Tensor, none: Tensor) -> Tensor:
    return (cancer.mean(dim=-1) + none.mean(dim=-1)) / 2


def _part_above(cancer: Tensor, none: Tensor) -> Tensor:
    return (cancer[..., :, None] - none[..., None, :]).sign().mean(dim=(-2, -1)) / 2 + 0.5


def _over_pairs(
    values: Tensor, compare: Callable[[Tensor, Tensor], Tensor], tested: OrganFeatures, seed: int, draws: int = 2000
) -> dict[str, float]:
    """The mean over all pairs of a picture of cancer and one of none; pictures are drawn within their class."""
    pictures = int(tested.picture.max()) + 1
    values, classes = values.reshape(pictures, -1), tested.cancer.reshape(pictures, -1)[:, 0]
    pairs = compare(values[classes == 1][:, None], values[classes == 0][None]).numpy()  # (cancer, none)
    random = np.random.default_rng(seed)
    none, cancer = (random.multinomial(count, np.full(count, 1 / count), size=draws) / count for count in pairs.shape[::-1])
    low, high = np.quantile(np.einsum("di,ij,dj->d", cancer, pairs, none, optimize=True), [0.025, 0.975])
    return {"mean": float(pairs.mean()), "low": float(low), "high": float(high)}


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def fit_whitening(parts: list[SourceFeatures], strength: float = 0.1, power: float = 0.5) -> Callable[[Tensor], Tensor]:
    """Centred, and each principal direction divided by its variance and `strength` of the mean variance, both to `power`."""
    values = _seen(parts)
    mean = values.mean(dim=0)
    directions, scale = _whitener(values - mean, strength, power)
    return lambda features: ((features.double() - mean) @ directions * scale).float()


def fit_stain_whitening(parts: list[SourceFeatures], strength: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Each direction divided by how far a change of stain moves tiles along it."""
    directions, scale = _whitener(_moved(parts), strength, 0.5)
    return lambda features: (features.double() @ directions * scale).float()


def _whitener(values: Tensor, strength: float, power: float) -> tuple[Tensor, Tensor]:
    variance, directions = torch.linalg.eigh(values.T @ values / len(values))
    return directions, (variance.clamp_min(0) + strength * variance.mean()) ** -power


def fit_projection(parts: list[SourceFeatures], dim: int = 256) -> Callable[[Tensor], Tensor]:
    """The first principal directions, not centred."""
    values = _seen(parts)
    directions = torch.linalg.eigh(values.T @ values)[1][:, -dim:]
    return lambda features: (features.double() @ directions).float()


def fit_stain_removal(parts: list[SourceFeatures], count: int = 8) -> Callable[[Tensor], Tensor]:
    """Without the directions along which a change of stain moves tiles most."""
    moved = _moved(parts)
    directions = torch.linalg.eigh(moved.T @ moved)[1][:, -count:]
    return lambda features: (features.double() - features.double() @ directions @ directions.T).float()


def fit_centring(parts: list[SourceFeatures]) -> Callable[[Tensor], Tensor]:
    """The mean taken away."""
    mean = _seen(parts).mean(dim=0)
    return lambda features: (features.double() - mean).float()


OPTIONS = {
    "centred": fit_centring,
    "whitened": fit_whitening,
    "half whitened": partial(fit_whitening, strength=1.0, power=0.25),
    "whitened by stain": fit_stain_whitening,
    "projected to 256": fit_projection,
    "without stain": fit_stain_removal,
}
"""What is fitted on sources to change features."""


def _seen(parts: list[SourceFeatures]) -> Tensor:
    return torch.cat([features for part in parts for features in (part.left, part.right, part.half)]).double()


def _moved(parts: list[SourceFeatures]) -> Tensor:
    return torch.cat([(part.stained - part.left).double() for part in parts])


def two_zooms(encode: Encode) -> Encode:
    """Features of a tile beside those of the same tile at 128 px."""
    return lambda tiles: torch.cat(
        [encode(tiles), encode(F.interpolate(tiles.float(), size=128, mode="area").round().to(torch.uint8))], dim=1
    )


def measure(folder: Path, encoders: list[str], options: bool, device: torch.device, seed: int) -> list[dict[str, Any]]:
    """A row for each kind of features and each source or organ that was left out."""
    chunks = {source: read_chunks(folder / "pool", source) for source in SOURCES}
    images, names = load_images(folder / "validation", None)
    ways: dict[str, Encode] = {
        "histogram 3 x 16": channel_histogram,
        "histogram 8 x 8 x 8": lambda tiles: colour_histogram(tiles)["colour histogram"],
    }
    for name in encoders:
        ways[name] = _on_device(build_encoder(EncoderSpec(name)).to(device), device)
    if options:
        ways[f"{encoders[0]}, two zooms"] = two_zooms(ways[encoders[0]])
    rows = []
    for name, encode in ways.items():
        sources = {source: encode_source(found, encode, seed) for source, found in chunks.items()}
        organs = {organ: encode_organ(images, names, organ, encode) for organ in ORGANS}
        rows += _rows(name, sources, organs, None, seed)
        rows += _organ_rows(f"{name}, organs centred", {organ: _centred(part) for organ, part in organs.items()}, seed)
        in_grey = partial(_in_grey, encode)
        rows += _organ_rows(f"{name}, grey", {organ: encode_organ(images, names, organ, in_grey) for organ in ORGANS}, seed)
        for option, fit in (OPTIONS if options and name == encoders[0] else {}).items():
            rows += _rows(f"{name}, {option}", sources, organs, fit, seed)
    return rows


def _rows(
    name: str, sources: dict[str, SourceFeatures], organs: dict[str, OrganFeatures], fit: Callable[..., Any] | None, seed: int
) -> list[dict[str, Any]]:
    rows = []
    for out in sources:
        change = fit([part for source, part in sources.items() if source != out]) if fit else torch.clone
        found = measure_source({source: part.apply(change) for source, part in sources.items()}, out, seed)
        rows.append({"features": name, "left out": out, **found})
    change = fit(list(sources.values())) if fit else torch.clone
    return rows + _organ_rows(name, {organ: replace(part, tiles=change(part.tiles)) for organ, part in organs.items()}, seed)


def _organ_rows(name: str, organs: dict[str, OrganFeatures], seed: int) -> list[dict[str, Any]]:
    pairs = (ORGANS[::-1], ORGANS)
    return [{"features": name, "left out": out, **measure_organ(organs[known], organs[out], seed)} for known, out in pairs]


def _centred(part: OrganFeatures) -> OrganFeatures:
    return replace(part, tiles=part.tiles - part.tiles.mean(dim=0))


def _in_grey(encode: Encode, tiles: Tensor) -> Tensor:
    return encode(grey_tiles(tiles))


def _on_device(encoder: nn.Module, device: torch.device) -> Encode:
    encode = encode_tiles(encoder, 256 if device.type == "cuda" else 16)
    return lambda tiles: encode(tiles.to(device)).cpu()


def _print(rows: list[dict[str, Any]]) -> None:
    for keys in (("stain", "beside", "scale probe"), ("knn", "probe", "order")):
        print(f"\n{'features':<38} {'left out':<9}" + "".join(f"{key:>24}" for key in keys))
        for row in rows:
            if keys[0] in row:
                cells = [f"{100 * row[key]['mean']:.1f} ({100 * row[key]['low']:.1f} to {100 * row[key]['high']:.1f})" for key in keys]
                print(f"{row['features']:<38} {row['left out']:<9}" + "".join(f"{cell:>24}" for cell in cells))


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["tilestream-lite", "tilestream-tiny"])
    parser.add_argument("--options", action="store_true", help="what was tried beyond the first of the encoders")
    parser.add_argument("--data", type=Path, default=Path("shared/data/histology"), help="folder of pool and validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if chosen.device == "auto" else chosen.device
    rows = measure(chosen.data, chosen.encoders, chosen.options, torch.device(wanted), chosen.seed)
    print(json.dumps(rows, indent=1)) if chosen.json else _print(rows)
    return rows


if __name__ == "__main__":
    main()
