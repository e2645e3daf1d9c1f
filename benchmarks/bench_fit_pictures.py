"""Question: how well do heads of `fit` tell tissues apart, by the encoders in the box and by colours alone?

    python -m benchmarks.bench_fit_pictures [--data DIR] [--encoders tilestream-tiny tilestream-lite histogram] [--shots 5] [--draws 5] [--json]

Each image (class before `___` in the name) is a slide: `run` cuts it into tiles of 224 px and embeds them, `fit` learns the class of its tiles. `linear` is
judged over five folds; `prototypes` learns from so many images a class and is judged on all others, for several draws. The class of an image is that of the
highest mean probability of its tiles. Intervals are 95 % of bootstraps over images. Classes may differ in stain for reasons that are not tissue, which is
what the histogram sees.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import tilestream
from benchmarks.probing import bootstrap_accuracy

TILE = 224


def embed(images: list[Path], folder: Path, encoder: str) -> Path:
    """The output of a run over the images."""
    out = folder / encoder
    name = "benchmarks.encoders:histogram" if encoder == "histogram" else encoder
    done = tilestream.run(
        {
            "slides": [str(path) for path in images], "output": {"path": str(out), "dtype": "float32"}, "encoder": {"name": name, "precision": "fp32"},
            "tiles": {"size": TILE, "level": 0, "tissue": "none", "edge": "drop"}, "compute": {"scheduler": "inline", "device": "cpu"}, "pool": "none",
        }
    )  # fmt: skip
    assert done.exit_code == 0, done.to_json()
    return out


def write_table(path: Path, ids: list[str], shots: int | None, seed: int) -> None:
    """The class of each image; with `shots`, so many of a class, drawn, are for learning and the rest for testing."""
    chance = np.random.default_rng(seed)
    names = [slide.partition("___")[0] for slide in ids]
    train: set[str] = set()
    for name in sorted(set(names)):
        of_class = [slide for slide, own in zip(ids, names, strict=True) if own == name]
        train |= set(chance.permutation(of_class)[:shots].tolist()) if shots else set()
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [[slide, own, "train" if slide in train else "test"] for slide, own in zip(ids, names, strict=True)]
        csv.writer(file).writerows([["slide", "tissue", "part"], *rows])


def judge(out: Path, folder: Path, model: str, shots: int | None, seed: int) -> dict[str, bool]:
    """Whether each image that was held out got its class."""
    write_table(folder / "labels.csv", list(tilestream.open(out).ids), shots, seed)
    tilestream.fit(
        {
            "embeddings": str(out), "target": {"slides": str(folder / "labels.csv"), "column": "tissue"},
            "head": {"name": "tissue", "kind": "classify", "model": model}, "save": str(folder / "tissue.safetensors"),
            "split": {"seed": seed, **({"column": "part"} if shots else {"folds": 5})},
        }
    )  # fmt: skip
    with (folder / "tissue-predictions.csv").open(encoding="utf-8") as file:
        return {row["slide"]: row["label"] == row["predicted"] for row in csv.DictReader(file)}


def measure(data: Path, encoders: list[str], shots: int, draws: int, limit: int | None) -> list[dict[str, Any]]:
    """A row for each encoder and head."""
    names = sorted(path for path in data.iterdir() if "___" in path.name)
    kept = [
        path
        for i, path in enumerate(names)
        if limit is None or [p.name.partition("___")[0] for p in names[:i]].count(path.name.partition("___")[0]) < limit
    ]
    if not kept:
        raise FileNotFoundError(f"{data}: no file with ___ in its name. Set --data to the folder of validation images.")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for encoder in encoders:
            start = time.perf_counter()
            out = embed(kept, Path(temporary), encoder)
            seconds = time.perf_counter() - start
            for model, few in (("linear", None), ("prototypes", shots)):
                found = [judge(out, Path(temporary), model, few, seed) for seed in range(draws if few else 1)]
                images = sorted(set().union(*found))
                right = np.array([np.mean([draw[image] for draw in found if image in draw]) for image in images])
                about = {"encoder": encoder, "head": model, "images a class": few or "all but a fold", "images": len(images)}
                rows.append({**about, **asdict(bootstrap_accuracy(right, 0)), "embedding_seconds": seconds})
    return rows


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("shared/data/histology/validation"), help="folder of the images")
    parser.add_argument("--encoders", nargs="+", default=["tilestream-tiny", "tilestream-lite", "histogram"])
    parser.add_argument("--shots", type=int, default=5, help="images a class that few-shot heads learn from")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--images", type=int, help="at most so many images of a class")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    rows = measure(asked.data, asked.encoders, asked.shots, asked.draws, asked.images)
    if asked.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            interval = f"{100 * row['mean']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
            print(f"{row['encoder']:<16} {row['head']:<11} learned from {row['images a class']!s:<15} accuracy of images {interval}")
    return rows


if __name__ == "__main__":
    main()
