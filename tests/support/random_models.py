"""Models of other libraries with random weights that make every part of them count; the same each time."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.images import make_image
from tests.support.torchvision_ops import declare_missing_operators

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def library(name):
    """timm or transformers, or the test is left out."""
    declare_missing_operators()
    return pytest.importorskip(name, reason=f"{name} is not installed")


def tissue(side, count=2):
    """(n, 3, side, side) uint8 of made tissue."""
    pictures = [make_image(side, side, seed) for seed in range(1, count + 1)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def randomised(model, spread=0.05):
    """The model with drawn weights, norms and layer scales about 1, running statistics above 0."""
    generator = torch.Generator().manual_seed(0)
    fixed = {name for name, _ in model.named_buffers()}
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point() or (name in fixed and "running" not in name):
                continue
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
                continue
            value.normal_(0, spread if value.ndim > 1 else 0.2, generator=generator)
            if value.ndim == 1 and not name.endswith(("bias", "running_mean")):
                value.add_(1)
    return model.eval()


def normalised(tiles, mean=MEAN, std=STD):
    """(n, 3, side, side) uint8 to float32, by plain arithmetic."""
    mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (mean, std))
    return (tiles.float() / 255 - mean) / std


def save_hugging(model, folder, side, **processor):
    """A repository as the hub has it: weights, configuration, processor's settings."""
    model.save_pretrained(folder)
    settings = {"image_mean": MEAN, "image_std": STD, "size": {"height": side, "width": side}} | processor
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)


def through_pillow(tiles, side, crop, mode):
    """Tiles resized by Pillow and their centre taken, as torchvision's transforms do it."""
    resized = [np.asarray(Image.fromarray(t.permute(1, 2, 0).numpy()).resize((side, side), mode)) for t in tiles]
    start = round((side - crop) / 2)
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)[..., start : start + crop, start : start + crop]


def relative_error(found, expected):
    """Norm of the difference over the norm of what is expected."""
    return float((found - expected).norm() / expected.norm())
