"""Question: does the small encoder tell tissues apart better than colours do, and how far do its features follow stain, compression and pose?

    python -m benchmarks.bench_encoder_quality --gate tilestream-lite tilestream-tiny [--formats] [--data DIR] [--json] [--device auto]
    python -m benchmarks.bench_encoder_quality --weights encoder.safetensors

`--gate` holds encoders by name to what one in the box must show (`benchmarks.encoder_gate`), beside colour histograms and an untrained
network; `--formats` adds bf16 and fp16 against fp32 on this device. `--weights` measures a ViT-Ti that was just pretrained:

Images (class before `___` in the name) are cut into tiles of 224 px that do not overlap, at their own scale and at half of it. Splits are
by image, five folds four times; 20 nearest neighbours in cosine and a logistic regression classify single tiles; intervals are 95 % of
bootstraps over images. Classes may differ in stain for reasons that are not tissue, which a histogram sees: the grey rows tell how much.

Robustness is the mean cosine between the features of a tile and those of the tile changed, `centred` after the mean of all tiles is taken
away; beside it stands the cosine with another image's tile. The changes of stain are of the family that the pretraining draws from, so
that this row flatters an encoder that saw them.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from benchmarks.encoder_gate import hold_to_gate
from benchmarks.probing import bootstrap_accuracy, cross_validate, stratified_folds
from benchmarks.tile_features import TILE, change_stain, colour_histogram, cut_tiles, grey_tiles, halve_images, load_images
from tilestream.encoders.weights import apply_weights, load_weights
from tilestream.models.patch_embed import normalise_pixels
from tilestream.models.vit import VisionTransformer, vit_tiny_patch16_224

FOLDS, REPEATS = 5, 4
TASKS = {"all": "", "colon": "colon", "lung": "lung"}
"""Classes of a task begin with these letters."""

Features = Callable[[Tensor], dict[str, Tensor]]
"""(n, 3, 224, 224) uint8 to the named features, each (n, d) float32."""


def vit_features(vit: VisionTransformer, prefix: str, batch: int) -> Features:
    """Class token, mean of the patches, and both side by side, each of the two then of length 1."""

    @torch.inference_mode()
    def compute(tiles: Tensor) -> dict[str, Tensor]:
        parts = []
        for part in tiles.split(batch):
            tokens = vit.forward_features(normalise_pixels(part, vit.config.mean, vit.config.std, torch.float32))
            parts.append(torch.stack([tokens[:, 0], tokens[:, vit.config.prefix :].mean(dim=1)], dim=1))
        first, mean = torch.cat(parts).unbind(dim=1)
        both = torch.cat([F.normalize(first, dim=1), F.normalize(mean, dim=1)], dim=1)
        return {f"{prefix} class": first, f"{prefix} mean": mean, f"{prefix} both": both}

    return compute


def build_encoders(weights: Path | None, device: torch.device) -> list[Features]:
    """The histogram, the encoder as drawn, and the encoder with weights."""
    batch = 256 if device.type == "cuda" else 16
    drawn = vit_tiny_patch16_224(position="sincos")
    found = [colour_histogram, vit_features(drawn.to(device), "untrained", batch)]
    if weights is not None:
        trained = vit_tiny_patch16_224()
        apply_weights(trained, load_weights(weights), weights)
        found.append(vit_features(trained.to(device), "encoder", batch))
    return found


def measure_accuracy(
    images: np.ndarray, names: list[str], encoders: list[Features], device: torch.device, seed: int
) -> list[dict[str, Any]]:
    """A row for each scale, colour, features and task."""
    rows = []
    for scale, pictures in (("native", images), ("half", halve_images(images))):
        if pictures.shape[1] < TILE:
            continue
        tiles, image = cut_tiles(pictures)
        tiles, image = tiles.to(device), image.to(device)
        for colour, shown in (("colour", tiles), ("grey", grey_tiles(tiles))):
            for encoder in encoders:
                for key, features in encoder(shown).items():
                    about = {"scale": scale, "colour": colour, "features": key}
                    rows += [{**about, **row} for row in _accuracy_of_tasks(features.clone(), image, names, seed)]
    return rows


def _accuracy_of_tasks(features: Tensor, image: Tensor, names: list[str], seed: int) -> list[dict[str, Any]]:
    rows = []
    for task, begin in TASKS.items():
        members = [i for i, name in enumerate(names) if name.startswith(begin)]
        known = sorted({names[i] for i in members})
        if len(known) < 2:
            continue
        classes = np.array([known.index(names[i]) for i in members])
        number = torch.full((len(names),), -1, device=image.device)
        number[torch.tensor(members, device=image.device)] = torch.arange(len(members), device=image.device)
        inside = number[image] >= 0
        own = number[image[inside]]
        labels = torch.from_numpy(classes).to(image.device)[own]
        right = cross_validate(features[inside], labels, own, stratified_folds(classes, FOLDS, REPEATS, seed))
        rows.append(
            {"task": task, "tiles": int(inside.sum()), **{key: asdict(bootstrap_accuracy(value, seed)) for key, value in right.items()}}
        )
    return rows


def change_tiles(images: np.ndarray, kept: Tensor, device: torch.device, seed: int) -> dict[str, Tensor]:
    """The kept tiles of the images, as they are and changed in each way."""
    clean = cut_tiles(images)[0][kept].to(device)
    return {
        "as it is": clean,
        "stain": change_stain(clean, 0.2, 0.03, seed),
        "JPEG 50": torch.stack([_through_jpeg(tile) for tile in clean.cpu()]).to(device),
        "shift 1 px": cut_tiles(images, shift=1)[0][kept].to(device),
        "mirrored": clean.flip(3),
        "turned 90°": clean.rot90(1, (2, 3)),
    }


def _through_jpeg(tile: Tensor) -> Tensor:
    """(3, side, side) uint8 written as JPEG of quality 50 and read again."""
    file = io.BytesIO()
    Image.fromarray(tile.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=50)
    with Image.open(file) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def measure_robustness(images: np.ndarray, encoders: list[Features], device: torch.device, seed: int) -> list[dict[str, Any]]:
    """A row for each kind of features and change, on two tiles of each image."""
    count = (images.shape[1] // TILE) ** 2
    first = torch.arange(len(images)) * count
    kept = torch.stack([first, first + count // 2], dim=1).flatten()
    changed = change_tiles(images, kept, device, seed)
    rows = []
    for encoder in encoders:
        found = {change: encoder(tiles) for change, tiles in changed.items()}
        for key, clean in found["as it is"].items():
            others = {change: features[key] for change, features in found.items() if change != "as it is"}
            others["another image"] = clean.roll(len(clean) // 2 // 2 * 2, dims=0)
            middle = clean.mean(dim=0)
            for change, features in others.items():
                plain = F.cosine_similarity(clean, features).mean()
                centred = F.cosine_similarity(clean - middle, features - middle).mean()
                rows.append({"features": key, "change": change, "cosine": float(plain), "centred": float(centred)})
    return rows


def _print_gate(found: dict[str, Any]) -> None:
    keys = ("knn", "probe", "same picture", "stain shift", "participation")
    print(f"{'features':<20} {'colour':<7}" + "".join(f"{key:>22}" for key in keys) + "  passes")
    for row in found["gate"]:
        numbers = []
        for key in keys:
            scale = 1 if key == "participation" else 100
            mean, low, high = (scale * row[key][part] for part in ("mean", "low", "high"))
            numbers.append(f"{mean:.1f} ({low:.1f} to {high:.1f})")
        print(f"{row['features']:<20} {row['colour']:<7}" + "".join(f"{number:>22}" for number in numbers) + f"  {row['passes']}")
    for name, rows in found.get("formats", {}).items():
        for row in rows:
            print(f"{name:<20} {row['format']}: cosine {row['cosine']:.6f}, finite {row['finite']}, {row['tiles/s']:.0f} tiles/s")


def _print_tables(found: dict[str, Any]) -> None:
    print(f"{'scale':<7} {'colour':<7} {'task':<6} {'tiles':>5}  {'features':<18} {'20-NN %':>22} {'linear probe %':>22}")
    for row in found["accuracy"]:
        numbers = [f"{100 * a['mean']:.1f} ({100 * a['low']:.1f} to {100 * a['high']:.1f})" for a in (row["knn"], row["probe"])]
        print(
            f"{row['scale']:<7} {row['colour']:<7} {row['task']:<6} {row['tiles']:>5}  {row['features']:<18} {numbers[0]:>22} {numbers[1]:>22}"
        )
    print(f"\n{'features':<18} {'change':<14} {'cosine':>7} {'centred':>8}")
    for row in found["robustness"]:
        print(f"{row['features']:<18} {row['change']:<14} {row['cosine']:>7.4f} {row['centred']:>8.4f}")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="encoder.safetensors; without it the others alone are measured")
    parser.add_argument("--gate", nargs="+", metavar="ENCODER", help="encoders by name that are held to the gate")
    parser.add_argument("--formats", action="store_true", help="with --gate: bf16 and fp16 against fp32 on this device")
    parser.add_argument("--data", type=Path, default=Path("shared/data/histology/validation"), help="folder of the images")
    parser.add_argument("--images", type=int, help="at most so many images of a class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if chosen.device == "auto" else chosen.device
    device = torch.device(wanted)
    images, names = load_images(chosen.data, chosen.images)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    if chosen.gate:
        held = {
            "device": name,
            "images": len(images),
            **hold_to_gate(chosen.gate, images, names, device, chosen.seed, formats=chosen.formats),
        }
        print(json.dumps(held, indent=1)) if chosen.json else _print_gate(held)
        return held
    encoders = build_encoders(chosen.weights, device)
    found = {
        "device": name,
        "images": len(images),
        "accuracy": measure_accuracy(images, names, encoders, device, chosen.seed),
        "robustness": measure_robustness(images, encoders, device, chosen.seed),
    }
    if chosen.json:
        print(json.dumps(found, indent=1))
    else:
        _print_tables(found)
    return found


if __name__ == "__main__":
    main()
