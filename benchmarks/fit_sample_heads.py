"""The small heads in the box, fitted on sample slides, whose tissue is known: they show the line, and mean nothing on real tissue.

    python -m benchmarks.fit_sample_heads [--folder FOLDER] [--out tilestream/encoders/heads/box]

`tilestream-sample-tissue` names the kind of tissue of each tile: one linear layer. `tilestream-sample-blood` says whether a slide holds red cells: gated
attention over its tiles, fitted on bags of a slide's tiles with and without those that show any. Both read tilestream-lite on tiles of 224 px at 0.5 µm/px.
Every number that is drawn has a seed, and sums are in one thread: the files come out the same on one machine; another processor may differ in last bits.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import tilestream
from tilestream.encoders.heads.head_file import Fitted, HeadAbout, build_model, write_head
from tilestream.models.heads.bags import Bag, BagRows
from tilestream.sources.made.histology import KINDS
from tilestream.sources.made.slide import sample_labels
from tilestream.store.slide import Slide

TRAIN, TEST = (1, 2, 3, 4, 5, 6), (7, 8)
"""Seeds of the slides."""

TILE, MPP = 224, 0.5
BLOOD = KINDS.index("blood")
SEEN = 0.3
"""Part of a tile that is blood from which on the tile shows blood; with less than a tenth of that it shows none, and between it is left out of bags."""


def address_of(seed: int) -> str:
    """The sample slide of a seed."""
    return f"sample://he?width=8192&height=6144&seed={seed}"


def embed(folder: Path, seed: int) -> tuple[Tensor, NDArray[np.float64], Fitted]:
    """(n, 688) vectors of a sample slide's tiles, (n, kinds) part of each that is of a kind, and what they are of."""
    config = {
        "slides": address_of(seed), "output": str(folder), "tiles": {"size": TILE, "mpp": MPP}, "encoder": {"name": "tilestream-lite", "precision": "fp32"},
        "compute": {"scheduler": "inline", "device": "cpu"}, "pool": "none",
    }  # fmt: skip
    done = tilestream.run(config)
    assert done.exit_code == 0, done.to_json()
    slide = tilestream.open(folder / f"{done.slides[0].id}.zarr")
    labels, cell = sample_labels(address_of(seed))
    encoder = slide.recipe["encoder"]
    fitted = Fitted(encoder["name"], encoder["weights_sha256"], encoder["precision"], TILE, MPP)
    return torch.from_numpy(np.asarray(slide.embeddings[:], np.float32)), kinds_of(slide, labels, cell), fitted


def kinds_of(slide: Slide, labels: NDArray[np.uint8], cell: int) -> NDArray[np.float64]:
    """(n, kinds) part of each tile that is of a kind, by the cells whose middle it covers."""
    middles = [(np.arange(side) + 0.5) * cell for side in labels.shape]
    parts = np.zeros((slide.layout.tiles, len(KINDS)))
    for number, (y, x) in enumerate(slide.positions):
        rows, cols = ((axis >= start) & (axis < start + slide.l0_extent) for axis, start in zip(middles, (y, x), strict=True))
        parts[number] = np.bincount(labels[np.ix_(rows, cols)].ravel(), minlength=len(KINDS))
    return parts / parts.sum(axis=1, keepdims=True)


def fit_linear(x: Tensor, y: Tensor, penalty: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Weights (classes, d) and biases of a multinomial regression on standardised features, which are folded in."""
    mean, spread = x.mean(dim=0), x.std(dim=0) + 1e-6
    scaled = (x - mean) / spread
    weight = torch.zeros(len(KINDS), x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(KINDS), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        found = torch.nn.functional.cross_entropy(scaled @ weight.T + bias, y) + penalty * weight.square().sum()
        found.backward()
        return found

    solver.step(loss)
    folded = weight.detach() / spread
    return folded, bias.detach() - folded @ mean


def bags_of(x: Tensor, parts: NDArray[np.float64], rng: np.random.Generator, count: int) -> list[tuple[Tensor, int]]:
    """Bags of a slide's tiles, every other one without those that show blood, and with some of them otherwise."""
    with_blood, without = np.flatnonzero(parts[:, BLOOD] >= SEEN), np.flatnonzero(parts[:, BLOOD] < SEEN / 10)
    bags = []
    for number in range(count):
        chosen = rng.choice(without, rng.integers(len(without) // 4, len(without)), replace=False)
        if number % 2:
            chosen = np.concatenate([chosen, rng.choice(with_blood, rng.integers(2, len(with_blood)), replace=False)])
        bags.append((x[chosen], number % 2))
    return bags


def fit_bag(bag: Bag, bags: list[tuple[Tensor, int]], steps: int = 400) -> None:
    """Fit a bag on all bags, one after another in a drawn order."""
    bag.requires_grad_()
    solver = torch.optim.AdamW(bag.parameters(), lr=1e-3, weight_decay=1e-2)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x, label = bags[int(torch.randint(len(bags), (1,), generator=order))]
        loss = torch.nn.functional.cross_entropy(bag(rows_of(x))[0][None], torch.tensor([label]))
        solver.zero_grad()
        loss.backward()
        solver.step()
    bag.requires_grad_(False)


def rows_of(x: Tensor) -> BagRows:
    """A bag without places."""
    nowhere = torch.zeros(len(x), dtype=torch.float64)
    return BagRows(x, nowhere, nowhere)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Fit both heads, write them, and return how good they are on slides that they have not seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("embeddings/sample_heads"))
    parser.add_argument("--out", type=Path, default=Path("tilestream/encoders/heads/box"))
    asked = parser.parse_args(arguments)
    slides = {seed: embed(asked.folder, seed) for seed in (*TRAIN, *TEST)}
    torch.set_num_threads(1)
    fitted = slides[TRAIN[0]][2]
    x, parts = torch.cat([slides[seed][0] for seed in TRAIN]), np.concatenate([slides[seed][1] for seed in TRAIN])
    test_x, test_parts = torch.cat([slides[seed][0] for seed in TEST]), np.concatenate([slides[seed][1] for seed in TEST])
    on = f"sample slides of seeds {TEST[0]} to {TEST[-1]}, fitted on seeds {TRAIN[0]} to {TRAIN[-1]}"
    notes = "Fitted on made tissue (sample://he). It shows the line, and means nothing on real tissue."

    clear = parts.max(axis=1) >= 0.6
    weight, bias = fit_linear(x[clear].double(), torch.from_numpy(parts[clear].argmax(axis=1)))
    right = (test_x.double() @ weight.T + bias).argmax(dim=1).numpy() == test_parts.argmax(axis=1)
    pure = test_parts.max(axis=1) >= 0.9
    told = {
        "accuracy": float(right.mean()),
        "accuracy_of_pure_tiles": float(right[pure].mean()),
        "tiles": len(right),
        "pure_tiles": int(pure.sum()),
    }
    about = HeadAbout(
        "classify", "linear", "tiles", x.shape[1], len(KINDS), classes=KINDS, fitted=fitted, metrics={**told, "on": on}, notes=notes
    )
    module = build_model(about)
    module.load_state_dict({"fc.weight": weight.float(), "fc.bias": bias.float()})
    write_head(asked.out / "tilestream-sample-tissue.safetensors", module, about)

    rng = np.random.default_rng(0)
    bags = [bag for seed in TRAIN for bag in bags_of(*slides[seed][:2], rng, 40)]
    unseen = [bag for seed in TEST for bag in bags_of(*slides[seed][:2], rng, 40)]
    about = HeadAbout(
        "slide",
        "abmil",
        "tiles",
        x.shape[1],
        2,
        classes=("no blood", "blood"),
        arguments={"hidden": 64, "gate": 32},
        fitted=fitted,
        notes=notes,
    )
    bag = build_model(about)
    assert isinstance(bag, Bag)
    fit_bag(bag, bags)
    with torch.inference_mode():
        hits = [int(bag(rows_of(x))[0].argmax()) == label for x, label in unseen]
        shares = [torch.softmax(bag(rows_of(slides[seed][0]))[1][0], dim=0).numpy() for seed in TEST]
    on_blood = [float(share[slides[seed][1][:, BLOOD] >= SEEN].sum()) for share, seed in zip(shares, TEST, strict=True)]
    more = {"bag_accuracy": float(np.mean(hits)), "bags": len(hits), "attention_on_blood": min(on_blood)}
    write_head(asked.out / "tilestream-sample-blood.safetensors", bag, HeadAbout(**{**vars(about), "metrics": {**more, "on": on}}))
    print(json.dumps(told | more, indent=1))
    return told | more


if __name__ == "__main__":
    main()
