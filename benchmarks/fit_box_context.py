"""The context in the box, fitted on sample slides and on mosaics of histology pictures, which tilestream-lite embeds.

    python -m benchmarks.fit_box_context --pictures FOLDER [--slides SLIDE ...] [--folder embeddings/box_context] [--out contexts]

A mosaic is 24 x 24 tiles wide. It is cut into regions with curved borders, and each is one picture, continued by reflection: neighbouring tiles show the
same picture, as neighbours in tissue do, and a border is a border of kinds. Beside the stores lie GeoJSON files with the kind of each region, and of the
tissue of sample slides.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

import tilestream
from tilestream.sources.made.histology import KINDS
from tilestream.sources.made.slide import sample_labels

NAME = "tilestream-lite-context"

SAMPLES, MOSAICS = 6, 12
"""How many of each. The last quarter of each is held out; its mosaics show pictures that the others do not."""

PASSES = 70
"""Times that each tile is learned from."""

TILE, MPP, SIDE, SITES, CELL = 224, 0.5, 24, 14, 32
"""Of a tile, px and µm/px; of a mosaic, tiles a side and regions; of a cell of its regions, px."""

SOURCES = ("tcga", "tcga-2", "dsb", "gcp")
"""Pictures that are used, by the part of their name after the underscore."""


def address_of(seed: int) -> str:
    """The sample slide of a seed."""
    return f"sample://he?width=12288&height=8192&seed={seed}"


def draw_regions(rng: np.random.Generator) -> NDArray[np.int64]:
    """(cells, cells) number of the region at each cell: the nearest of some sites, in coordinates that waves have bent."""
    cells = SIDE * TILE // CELL
    y, x = (np.mgrid[:cells, :cells] + 0.5) / cells
    for _ in range(3):
        angle, waves, phase = rng.uniform(0, 2 * np.pi), rng.uniform(1, 3), rng.uniform(0, 2 * np.pi)
        bend = 0.05 * np.sin(2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y) + phase)
        y, x = y + bend * np.cos(angle), x - bend * np.sin(angle)
    site = rng.uniform(0, 1, (SITES, 2))
    nearest: NDArray[np.int64] = np.argmin((y[..., None] - site[:, 0]) ** 2 + (x[..., None] - site[:, 1]) ** 2, axis=-1)
    return nearest


def make_mosaic(path: Path, pictures: list[Path], seed: int) -> NDArray[np.int64]:
    """Write one as a tiled TIFF; (cells, cells) number of the region at each cell."""
    rng = np.random.default_rng([seed, 7])
    regions, side = draw_regions(rng), SIDE * TILE
    chosen = [pictures[int(k)] for k in rng.choice(len(pictures), SITES, replace=False)]
    canvas = np.zeros((side, side, 3), np.uint8)
    for number, name in enumerate(chosen):
        pixels = np.asarray(Image.open(name).convert("RGB"))
        bent = [np.pad(np.arange(n), (0, 2 * n + side), mode="symmetric")[int(rng.integers(2 * n)) :][:side] for n in pixels.shape[:2]]
        mask = np.kron(regions == number, np.ones((CELL, CELL), np.bool_))
        canvas[mask] = pixels[np.ix_(*bent)][mask]
    tifffile.imwrite(path, canvas, tile=(TILE, TILE), photometric="rgb", compression="jpeg", compressionargs={"level": 92},
                     resolution=(1e4 / MPP, 1e4 / MPP), resolutionunit="CENTIMETER")  # fmt: skip
    return regions


def write_regions(path: Path, labels: NDArray[np.integer], names: list[str], cell: float) -> None:
    """GeoJSON of a map of cells in level-0 px: a rectangle for each run of one kind in a row."""
    features = []
    for kind in np.unique(labels).tolist():
        boxes = []
        for row in range(len(labels)):
            edges = np.flatnonzero(np.diff(np.pad((labels[row] == kind).astype(np.int8), 1)))
            for left, right in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
                x, y, right_x, low_y = left * cell, row * cell, right * cell, (row + 1) * cell
                boxes.append([[[x, y], [right_x, y], [right_x, low_y], [x, low_y], [x, y]]])
        features.append({
            "type": "Feature", "properties": {"objectType": "annotation", "classification": {"name": names[kind]}},
            "geometry": {"type": "MultiPolygon", "coordinates": boxes},
        })  # fmt: skip
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")


def embed(slides: list[str], output: Path, tissue: str) -> None:
    """Embed slides, those that are there already left as they are."""
    done = tilestream.run({
        "slides": slides, "output": str(output), "tiles": {"size": TILE, "mpp": MPP, "tissue": tissue}, "pool": "none",
        "encoder": {"name": "tilestream-lite", "precision": "fp32"}, "compute": {"scheduler": "inline", "device": "cpu"},
    })  # fmt: skip
    assert done.exit_code == 0, done.to_json()


def config_of(folder: Path, out: Path, device: str) -> dict[str, Any]:
    """What `fit` is told."""
    held = [f"mosaic{seed:02d}" for seed in range(MOSAICS * 3 // 4, MOSAICS)] + [
        f"*seed{seed}" for seed in range(SAMPLES * 3 // 4, SAMPLES)
    ]
    others = [str(folder / "other")] if (folder / "other").exists() else []  # real slides are held out, all of them
    held += [slide.id for output in others for slide in tilestream.open(output)]
    return {
        "embeddings": [str(folder / "pictures"), str(folder / "samples"), *others], "target": {"masked": {"passes": PASSES}, "annotations": str(folder / "regions")},
        "split": {"held_out": held}, "save": str(out / f"{NAME}.safetensors"), "device": device,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Make, embed and annotate them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="folder of pictures named <number>_<source>.jpg, 512 px a side")
    parser.add_argument("--slides", nargs="*", default=[], help="slides of tissue that are held out beside the made ones")
    parser.add_argument("--folder", type=Path, default=Path("embeddings/box_context"))
    parser.add_argument("--out", type=Path, default=Path("contexts"), help="folder of the context, its report and its metrics")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args(arguments)
    for name in ("mosaics", "regions"):
        (asked.folder / name).mkdir(parents=True, exist_ok=True)
    pictures = sorted(path for path in asked.pictures.glob("*.jpg") if path.stem.split("_")[-1] in SOURCES)
    held = MOSAICS * 3 // 4
    for seed in range(MOSAICS):  # no picture is on both sides
        path = asked.folder / "mosaics" / f"mosaic{seed:02d}.tif"
        if path.exists():
            continue
        regions = make_mosaic(path, [p for k, p in enumerate(pictures) if (k % 4 == 3) == (seed >= held)], seed)
        write_regions(asked.folder / "regions" / f"{path.stem}.geojson", regions, [f"{path.stem} {n}" for n in range(SITES)], CELL)
    embed([str(asked.folder / "mosaics" / "*.tif")], asked.folder / "pictures", "none")
    for seed in range(SAMPLES):
        embed([address_of(seed)], asked.folder / "samples", "otsu")
    for slide in tilestream.open(asked.folder / "samples"):
        labels, cell = sample_labels(slide.source["address"])
        write_regions(asked.folder / "regions" / f"{slide.id}.geojson", labels, list(KINDS), cell)
    if asked.slides:
        embed(list(asked.slides), asked.folder / "other", "otsu")
    fitted = tilestream.fit(config_of(asked.folder, asked.out, asked.device), tell=print)
    print(*fitted.lines, sep="\n")


if __name__ == "__main__":
    main()
