"""The small segmenter in the box, fitted on sample slides, whose tissue is known: it shows the line, and means nothing on real tissue.

    python -m benchmarks.fit_sample_segmenter [--out tilestream/encoders/heads/box] [--steps 700]

`tilestream-sample-segment` names the kind of tissue of each 4 x 4 µm: a few convolutions on pixels of 1 µm. Every number that is drawn has a seed; the
file comes out the same on one machine, and may differ in last bits on another.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import tilestream
from tilestream.encoders.heads.head_file import HeadAbout, build_model, write_head
from tilestream.sources.made.histology import KINDS
from tilestream.sources.made.slide import sample_labels

TRAIN, TEST = (1, 2, 3), (7, 8)
"""Seeds of the slides."""

MPP, L0_MPP, STRIDE, CROP, BATCH = 1.0, 0.25, 4, 192, 4


def address_of(seed: int) -> str:
    """The sample slide of a seed."""
    return f"sample://he?width=8192&height=6144&seed={seed}"


def read_slide(seed: int) -> tuple[Tensor, Tensor]:
    """(3, h, w) uint8 at 1 µm/px, and (h / 4, w / 4) the kind of each output pixel."""
    from tilestream.geometry import Region

    image = tilestream.open_image(address_of(seed))
    factor = MPP / L0_MPP
    number, level = next((k, level) for k, level in enumerate(image.info.levels) if level.downsample == factor)
    pixels = image.read(Region(0, 0, level.size.height, level.size.width), number)
    labels, cell = sample_labels(address_of(seed))
    out = int(cell / factor) // STRIDE
    kinds = np.kron(labels, np.ones((out, out), np.uint8))[: pixels.shape[0] // STRIDE, : pixels.shape[1] // STRIDE]
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1), torch.from_numpy(kinds.astype(np.int64))


def fit(model: nn.Module, slides: list[tuple[Tensor, Tensor]], steps: int) -> None:
    """Fit on crops of the slides; kinds that are rare count as much as others."""
    counts = torch.bincount(torch.cat([kinds.flatten() for _, kinds in slides]), minlength=len(KINDS)).float()
    loss = nn.CrossEntropyLoss((counts.mean() / counts.clamp(min=1)).sqrt())
    solver = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(solver, 6e-3, total_steps=steps)
    rng = np.random.default_rng(0)
    for step in range(steps):
        crops = [cut(*slides[int(rng.integers(len(slides)))], rng) for _ in range(BATCH)]
        found = loss(model(torch.stack([pixels for pixels, _ in crops])), torch.stack([kinds for _, kinds in crops]))
        solver.zero_grad()
        found.backward()
        solver.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {float(found.detach()):.3f}", flush=True)


def cut(pixels: Tensor, kinds: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A crop at a place that is a whole output pixel."""
    out = CROP // STRIDE
    y, x = (int(rng.integers(side - out + 1)) for side in kinds.shape)
    return pixels[:, y * STRIDE : y * STRIDE + CROP, x * STRIDE : x * STRIDE + CROP], kinds[y : y + out, x : x + out]


def score(found: NDArray[np.int64], kinds: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy of pixels, and intersection over union of each kind."""
    told = {"accuracy": float((found == kinds).mean())}
    for number, name in enumerate(KINDS):
        a, b = found == number, kinds == number
        told[f"iou_{name}"] = float((a & b).sum() / max(1, (a | b).sum()))
    return {**told, "mean_iou": float(np.mean([told[f"iou_{name}"] for name in KINDS]))}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Fit, write, and return how good it is on slides that it has not seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tilestream/encoders/heads/box"))
    parser.add_argument("--steps", type=int, default=700)
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    about = HeadAbout("segment", "convolution", "pixels", 3, len(KINDS), classes=KINDS, arguments={"hidden": 24, "mpp": MPP})
    model = build_model(about)
    fit(model, [read_slide(seed) for seed in TRAIN], asked.steps)
    with torch.inference_mode():
        pairs = [(model(pixels[None])[0].argmax(0).numpy(), kinds.numpy()) for pixels, kinds in map(read_slide, TEST)]
    told = score(np.concatenate([a.ravel() for a, _ in pairs]), np.concatenate([b.ravel() for _, b in pairs]))
    on = f"sample slides of seeds {TEST[0]} to {TEST[-1]}, fitted on seeds {TRAIN[0]} to {TRAIN[-1]}"
    notes = "Fitted on made tissue (sample://he). It shows the line, and means nothing on real tissue."
    write_head(
        asked.out / "tilestream-sample-segment.safetensors",
        model,
        HeadAbout(**{**vars(about), "metrics": {**told, "on": on}, "notes": notes}),
    )
    print(json.dumps(told, indent=1))
    return told


if __name__ == "__main__":
    main()
