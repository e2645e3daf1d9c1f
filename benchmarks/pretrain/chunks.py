"""The pictures to learn from: decoded once, kept as bytes on the device."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

EXCLUDED = ("ost", "ost-2")
"""Sources whose licence is not confirmed."""


def source_from_name(path: Path) -> str:
    """Source of a chunk, the part of its name after the last underscore: `00019_cmu-2.jpg` to `cmu-2`."""
    return path.stem.rpartition("_")[2]


def find_chunks(folder: Path, excluded: tuple[str, ...] = EXCLUDED) -> list[Path]:
    """Chunks of a folder in the order of their names, without those of the excluded sources.

    Raises
    ------
    FileNotFoundError
        Where none is left.
    """
    paths = [p for p in sorted(folder.glob("*.jpg")) if source_from_name(p) not in excluded]
    if not paths:
        raise FileNotFoundError(
            f"{folder}: no .jpg of a source other than {', '.join(excluded) or 'none'}. Set --data to the folder of chunks."
        )
    return paths


def count_sources(paths: list[Path]) -> dict[str, int]:
    """How many chunks each source has."""
    return dict(sorted(Counter(source_from_name(p) for p in paths).items()))


def load_chunks(paths: list[Path], device: torch.device) -> Tensor:
    """Decode pictures of one size to (n, 3, side, side) uint8 on the device."""
    with ThreadPoolExecutor() as pool:
        pictures = list(pool.map(_decode, paths))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().to(device)


def _decode(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def halve_chunks(chunks: Tensor) -> Tensor:
    """Chunks at half scale by the mean of 2 x 2 px: (n, 3, side, side) to (n, 3, side / 2, side / 2) uint8."""
    parts = [F.avg_pool2d(part.float(), 2).round_().to(torch.uint8) for part in chunks.split(64)]
    return torch.cat(parts)
