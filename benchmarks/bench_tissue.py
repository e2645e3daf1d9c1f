"""How well tissue is found, on made thumbnails whose tissue is known: real tissue pasted on a glass of known colour.

    python -m benchmarks.bench_tissue [--data shared/data] [--cases 240] [--seed 0] [--rows] [--pictures DIR]

Each case takes the transmission of real histology pictures at 8 µm/px, fills a random shape with it, and looks at it through a glass with a tint, a lamp
with uneven light, a stain of some strength, in colour or in grey, or turns it into fluorescence; some have pen marks or parts that were never scanned.
The truth is the tissue of the untouched pictures in that shape: what lets through less than `STAINED` of the light, without small holes and specks. Printed are the median and the least IoU of three rules: the
package's, Otsu's threshold on saturation alone, and what the package did before (`former_rule`), and the cases below 0.8 that carry no warning.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.filters import threshold_otsu

from tilestream.config.schema import Tissue
from tilestream.tiles.thumbnail import Thumbnail
from tilestream.tiles.tissue import find_tissue, without_specks

UM_PER_PX = 8.0
LEAST_PX = 10_000 / UM_PER_PX**2

TINTS = {
    "neutral": (1, 1, 1), "yellow": (1, 0.97, 0.86), "bluish": (0.9, 0.95, 1), "pink": (1, 0.9, 0.95), "green": (0.93, 1, 0.94),
    "amber": (1, 0.93, 0.76), "violet": (0.95, 0.9, 1),
}  # fmt: skip
COLOURS = {"blue": (0, 0, 1), "green": (0, 1, 0), "red": (1, 0, 0), "grey": (1, 1, 1), "cyan": (0, 0.8, 1), "composite": None}

STAINED = 0.95
"""Light that an untouched picture of tissue lets through at most."""

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """What is varied."""

    seed: int
    kind: str
    """colour, grey or fluorescence."""
    fraction: float
    strength: float = 1.0
    tint: str = "neutral"
    level: float = 243.0
    light: str = "even"
    unscanned: str = ""
    pen: str = ""
    noise: float = 0.6
    quality: int = 0

    def __str__(self) -> str:
        return " ".join(
            f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in vars(self).items() if value != ""
        )


def make_cases(count: int, seed: int) -> Iterator[Case]:
    """Cases drawn at random, of every kind; the same for the same seed."""
    rng = np.random.default_rng(seed)

    def one(*among: Any) -> Any:
        return among[rng.integers(len(among))]

    for number in range(count):
        kind = ("colour", "colour", "grey", "fluorescence")[number % 4]
        case = Case(
            seed=seed * 1_000_000 + number, kind=kind, fraction=float(one(0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95)),
            light=one("even", "even", "slope", "vignette", "stitched"), noise=float(rng.uniform(0.2, 1.5)), quality=one(0, 0, 80, 92),
            unscanned=one("", "", "", "white", "black"),
        )  # fmt: skip
        if kind == "fluorescence":
            yield replace(
                case,
                tint=one(*COLOURS),
                level=float(one(0, 3, 12, 35, 60)),
                strength=float(one(0.15, 0.3, 0.6, 0.9)),
                light=one("even", case.light),
            )
        else:
            level = float(rng.uniform(150, 250) if number % 3 == 0 else rng.uniform(225, 255))
            pen = one("", "", "blue", "green") if kind == "colour" else ""
            yield replace(
                case,
                tint=one(*TINTS) if kind == "colour" else "neutral",
                level=level,
                strength=float(one(0.3, 0.5, 0.8, 1.0, 1.3)),
                pen=pen,
            )


# -- real tissue ------------------------------------------------------------------------------------------------------


def read_textures(data: Path) -> dict[str, list[Floats]]:
    """Transmissions (h, w, 3) of pictures at about 8 µm/px by their source: 1 where light passes as through the picture's own glass."""
    textures: dict[str, list[Floats]] = {}
    for path in sorted((data / "histology").glob("*/*.jpg")):
        source = path.stem.split("___")[0] if "___" in path.name else path.stem.split("_")[1]
        if source in ("dsb", "gcp"):
            continue  # cells on a dish, and mostly glass
        with Image.open(path) as picture:
            side = picture.width // (16 if not source.endswith("-2") else 8)
            small = np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BOX), np.float32)
        textures.setdefault(source, []).append(np.clip(small / max(200.0, float(np.quantile(small, 0.995))), 0.02, 1))
    slide = data / "slides" / "CMU-1-Small-Region.svs"
    if slide.is_file():
        from tilestream.sources import open_source
        from tilestream.sources.base import SourceOptions
        from tilestream.tiles.thumbnail import read_thumbnail

        with open_source(str(slide), SourceOptions()) as source_:
            textures["cmu slide"] = [np.clip(read_thumbnail(source_).pixels.astype(np.float32) / 243, 0.02, 1)]
    return textures


def made_textures() -> dict[str, list[Floats]]:
    """Textures where there are no pictures: noise in the colours of eosin and haematoxylin."""
    rng = np.random.default_rng(0)
    base = np.array([0.82, 0.5, 0.7], np.float32) + ndimage.gaussian_filter(rng.normal(0, 0.3, (64, 64, 3)), (1, 1, 0)).astype(np.float32)
    return {"made": [np.clip(base, 0.02, 0.95)]}


def _mosaic(pictures: list[Floats], shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """(h, w, 3) transmission: pictures of one source, side by side, turned and mirrored."""
    side = min(min(picture.shape[:2]) for picture in pictures)
    out = np.ones((shape[0] + side, shape[1] + side, 3), np.float32)
    for y in range(0, shape[0], side):
        for x in range(0, shape[1], side):
            picture = pictures[rng.integers(len(pictures))]
            top, left = (int(rng.integers(n - side + 1)) for n in picture.shape[:2])
            out[y : y + side, x : x + side] = np.rot90(picture[top : top + side, left : left + side], int(rng.integers(4)))
    return out[: shape[0], : shape[1]]


def _blobs(shape: tuple[int, int], fraction: float, rng: np.random.Generator) -> Mask:
    """A random shape that fills a fraction of the picture, in one or several pieces."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), float(rng.uniform(14, 45)), mode="wrap")
    return without_specks(field > np.quantile(field, 1 - fraction), 2 * LEAST_PX)


def _cleaned(mask: Mask) -> Mask:
    """A mask without holes and specks that are smaller than what counts."""
    disk = np.hypot(*np.mgrid[-2:3, -2:3]) <= 2
    closed = ndimage.binary_closing(np.pad(mask, 4, mode="edge"), disk)[4:-4, 4:-4]
    filled = ~without_specks(~closed, LEAST_PX)
    opened = ndimage.binary_opening(np.pad(filled, 4, mode="edge"), disk[1:4, 1:4])[4:-4, 4:-4]
    return without_specks(opened, LEAST_PX)


def _light(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """(h, w) how bright the lamp is, about 1."""
    y, x = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    if kind == "slope":
        angle = rng.uniform(0, 2 * np.pi)
        return (1 - 0.1 * (1 + np.cos(angle) * y + np.sin(angle) * x) / 2).astype(np.float32)
    if kind == "vignette":
        return (1 - rng.uniform(0.05, 0.15) * (y**2 + x**2) / 2).astype(np.float32)
    if kind == "stitched":  # each field of view is a little darker at its rim
        step = int(rng.integers(24, 60))
        rows, cols = (np.abs((np.arange(n) % step) / step * 2 - 1) for n in shape)
        return (1 - 0.03 * np.maximum(rows[:, None], cols[None]) ** 4).astype(np.float32)
    return np.ones(shape, np.float32)


def _unscanned(shape: tuple[int, int], rng: np.random.Generator) -> Mask:
    """Stairs along one side, as a scanner leaves them, or a frame."""
    out = np.zeros(shape, np.bool_)
    if rng.random() < 0.3:
        edge = int(rng.integers(8, shape[0] // 5))
        out[:edge] = out[-edge:] = True
        return out
    step = int(rng.integers(30, 90))
    for x in range(0, shape[1], step):
        out[: int(rng.integers(0, shape[0] // 3)), x : x + step] = True
    return out


def make_picture(case: Case, textures: dict[str, list[Floats]]) -> tuple[NDArray[np.uint8], Mask]:
    """The thumbnail of a case, and where its tissue is."""
    rng = np.random.default_rng(case.seed)
    shape = (int(rng.integers(280, 520)), int(rng.integers(280, 600)))
    source = sorted(textures)[rng.integers(len(textures))]
    through = _mosaic(textures[source], shape, rng)
    tissue = _blobs(shape, case.fraction, rng)
    passes = through.min(axis=2) if case.kind == "colour" else through.mean(axis=2)
    truth = _cleaned(tissue & (passes < STAINED))
    soft = ndimage.gaussian_filter(tissue.astype(np.float32), 0.6)[..., None]
    light = _light(case.light, shape, rng)[..., None]
    through = through**case.strength if case.kind != "fluorescence" else through
    if case.kind == "fluorescence":
        pixels = _glow(case, through, soft, light, rng)
    else:
        pixels = case.level * np.array(TINTS[case.tint], np.float32) * light * (1 - soft + soft * through)
        if case.kind == "grey":
            pixels = np.repeat(pixels @ np.array([0.3, 0.59, 0.11], np.float32)[:, None], 3, axis=2)
    noise = rng.normal(0, case.noise, (*shape, 3 if case.kind == "colour" else 1))
    noise = noise if case.kind != "fluorescence" else noise * (pixels.max(axis=(0, 1)) > 0)
    picture = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    if case.quality:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=case.quality)
        picture = np.array(Image.open(buffer))
    if case.pen:
        marks = _pen(shape, rng)
        picture[marks] = {"blue": (30, 60, 190), "green": (20, 140, 60)}[case.pen]
        truth &= ~marks
    if case.unscanned:
        parts = _unscanned(shape, rng)
        picture[parts] = 255 if case.unscanned == "white" else 0
        truth &= ~parts
    return picture, truth


def _glow(case: Case, through: Floats, soft: Floats, light: Floats, rng: np.random.Generator) -> Floats:
    """(h, w, 3) fluorescence: what absorbs shines."""
    signal = (1 - through.mean(axis=2, keepdims=True)) * 255 * case.strength
    colour = COLOURS[case.tint]
    if colour is None:  # three stains with places of their own
        signal = (1 - through) * 255 * case.strength
        colour = rng.uniform(0.3, 1, 3)
    return (case.level * light + signal * soft) * np.array(colour, np.float32)


def _pen(shape: tuple[int, int], rng: np.random.Generator) -> Mask:
    canvas = Image.new("1", shape[::-1])
    corners = [(int(rng.integers(shape[1])), int(rng.integers(shape[0]))) for _ in range(3)]
    ImageDraw.Draw(canvas).line(corners, fill=1, width=int(rng.integers(4, 9)))
    return np.asarray(canvas)


# -- rules ------------------------------------------------------------------------------------------------------------


def package_rule(picture: NDArray[np.uint8], *, pens: bool) -> tuple[Mask, tuple[str, ...]]:
    """What the package does."""
    found = find_tissue(Thumbnail(picture, 16.0), Tissue(pens=pens), UM_PER_PX)
    return found.mask, found.warnings


def otsu_rule(picture: NDArray[np.uint8], *, pens: bool) -> tuple[Mask, tuple[str, ...]]:
    """Otsu's threshold on HSV saturation, and nothing else."""
    high, low = picture.max(axis=2).astype(np.float32), picture.min(axis=2).astype(np.float32)
    saturation = (high - low) / np.maximum(high, 1)
    mask = saturation > threshold_otsu(saturation) if np.ptp(saturation) else saturation > 1
    return (mask & ~_pen_hues(picture) if pens else mask), ()


def _pen_hues(picture: NDArray[np.uint8]) -> Mask:
    """Strong greens and blues."""
    hue, saturation, _ = np.moveaxis(np.asarray(Image.fromarray(picture).convert("HSV")), 2, 0) / 255
    return (saturation > 0.35) & (hue >= 75 / 360) & (hue <= 255 / 360)


def former_rule(picture: NDArray[np.uint8], *, pens: bool) -> tuple[Mask, tuple[str, ...]]:
    """Otsu's threshold on saturation between 0.05 and 0.08; without colour, on the grey level, the side by majority."""
    high, low = picture.max(axis=2).astype(np.int32), picture.min(axis=2).astype(np.int32)
    saturation = (high - low) * 255 // np.maximum(high, 1)
    if np.quantile(saturation, 0.999) < 255 * 0.05:
        dark, bright = np.quantile(high, [0.001, 0.999])
        level = threshold_otsu(high) if np.ptp(high) else 255
        mask = np.zeros(high.shape, np.bool_)
        if bright - dark >= 12:
            mask = high <= level if bright > 128 and np.median(high) > level else high > level
    else:
        lit = saturation[high >= 30]
        level = min(threshold_otsu(lit) if lit.size and np.ptp(lit) else 255, 255 * 0.08)
        mask = (saturation > max(255 * 0.05, level)) & (high >= 30)
    if pens:
        mask &= ~_pen_hues(picture)
    return _cleaned(mask), ()


RULES: dict[str, Callable[..., tuple[Mask, tuple[str, ...]]]] = {
    "tilestream": package_rule, "Otsu on saturation": otsu_rule, "former rule": former_rule,
}  # fmt: skip


@dataclass(frozen=True)
class Score:
    """One rule on one case."""

    case: Case
    iou: float
    warnings: tuple[str, ...]


def score(rule: Callable[..., tuple[Mask, tuple[str, ...]]], case: Case, textures: dict[str, list[Floats]]) -> Score:
    """The overlap of what a rule finds with the truth; 1 where both are empty."""
    picture, truth = make_picture(case, textures)
    mask, warnings = rule(picture, pens=bool(case.pen))
    union = int((mask | truth).sum())
    return Score(case, int((mask & truth).sum()) / union if union else 1.0, warnings)


def summarise(scores: list[Score]) -> dict[str, float]:
    """Median and least IoU, cases below 0.8 without a warning, share of cases with one."""
    ious = np.array([one.iou for one in scores])
    silent = sum(one.iou < 0.8 and not one.warnings for one in scores)
    return {"median": float(np.median(ious)), "least": float(ious.min()), "p05": float(np.quantile(ious, 0.05)), "below 0.8": int((ious < 0.8).sum()),
            "of them silent": silent, "warned": sum(bool(one.warnings) for one in scores)}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Run the benchmark and print it; the figures of all cases by rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("TILESTREAM_TEST_DATA", "shared/data")
    parser.add_argument("--data", type=Path, default=Path(data), help="folder with histology/ and slides/; without them tissue is made")
    parser.add_argument("--cases", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--rows", action="store_true", help="print the cases below 0.9 and those with a warning")
    parser.add_argument("--pictures", type=Path, help="write the worst cases here: picture, truth, found")
    told = parser.parse_args(argv)
    textures = read_textures(told.data) or made_textures()
    cases = list(make_cases(told.cases, told.seed))
    print(f"{len(cases)} thumbnails, tissue of {', '.join(sorted(textures))}")
    figures = {}
    for name in told.rules:
        scores = [score(RULES[name], case, textures) for case in cases]
        figures[name] = summarise(scores)
        for kind in ("all", *dict.fromkeys(one.case.kind for one in scores)):
            told_of = summarise([one for one in scores if kind in ("all", one.case.kind)])
            print(f"{name:20} {kind:13} " + "  ".join(f"{key} {round(value, 3)}" for key, value in told_of.items()))
        if name == "tilestream":
            _show(scores, told.pictures, textures, rows=told.rows)
    return figures


def _show(scores: list[Score], folder: Path | None, textures: dict[str, list[Floats]], *, rows: bool) -> None:
    """The worst cases in words and pictures."""
    worst = sorted(scores, key=lambda one: one.iou)
    for one in worst if rows else ():
        if one.iou < 0.9 or one.warnings:
            print(f"   {one.iou:.3f} {one.case} {'; '.join(one.warnings)}")
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(worst[:24]):
        picture, truth = make_picture(one.case, textures)
        mask = package_rule(picture, pens=bool(one.case.pen))[0]
        panels = [picture, *(np.repeat(part[..., None] * np.uint8(255), 3, axis=2) for part in (truth, mask))]
        Image.fromarray(np.hstack(panels)).save(folder / f"{number:02}_{one.iou:.2f}_{one.case.kind}_{one.case.seed}.png")


if __name__ == "__main__":
    main()
