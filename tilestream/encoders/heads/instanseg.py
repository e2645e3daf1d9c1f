"""InstanSeg's programs, `instanseg:FILE.pt`: TorchScript that finds the objects of a patch, its own post-processing in it.

A TorchScript file is a program: to load it is to run code of whoever made it, and so it is never loaded for its ending, but for this name alone. The package
`instanseg-torch` gives such files.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tilestream.encoders.heads.address import PROGRAM
from tilestream.encoders.heads.loaded import LoadedHead
from tilestream.errors import InputError, user_code

MPP = 0.5
"""µm/px that the published programs for brightfield were made for."""

OVERLAP = 80
"""How far patches overlap in InstanSeg's own sliding window, px."""

LEAST, MOST = 0.001, 0.999
"""Shares of a channel's values that become 0 and 1."""

Found = tuple[Tensor, Tensor, Tensor, Tensor]
"""Boxes (m, 4) y0, x0, y1, x1, scores (m,), classes (m,), and the instances (h, w), which are 1 to m."""


class InstanSegHead(nn.Module):
    """The program, and what comes before and after it: each channel of a patch from its own least to its own most, and labels as instances.

    Of a program that gives nuclei and cells, the nuclei are taken. It says how sure it is of no object: every score is 1.
    """

    classes = ("nucleus",)

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, pixels: Tensor) -> list[Found]:
        """Objects of each patch (n, 3, h, w) uint8."""
        labels: Tensor = self.program(spread_values(pixels.float()))
        if not (
            isinstance(labels, Tensor) and labels.ndim == 4 and labels.shape[0] == len(pixels) and labels.shape[2:] == pixels.shape[2:]
        ):
            raise ValueError(
                f"gives {getattr(labels, 'shape', type(labels).__name__)} for patches {tuple(pixels.shape)}, but (n, 1 or 2, h, w) labels are wanted"
            )
        return [instances_of(part[0]) for part in labels.cpu()]


def spread_values(pixels: Tensor) -> Tensor:
    """(n, c, h, w) pixels, each channel of each patch scaled so that its 0.1 and 99.9 percentiles are 0 and 1."""
    flat = pixels.flatten(2).cpu().numpy()
    low, high = (torch.from_numpy(np.quantile(flat, share, axis=2)).to(pixels)[..., None, None] for share in (LEAST, MOST))
    return (pixels - low) / (high - low).clamp(min=1e-3)


def instances_of(labels: Tensor) -> Found:
    """The objects of a label image (h, w), 0 for none; NaN makes the patch one that failed."""
    from scipy import ndimage

    if not bool(torch.isfinite(labels.float()).all()):
        return torch.full((1, 4), torch.nan), torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.zeros(labels.shape, dtype=torch.int64)
    values, numbered = np.unique(labels.numpy().astype(np.int64), return_inverse=True)
    numbered = numbered.reshape(labels.shape)
    if not len(values) or values[0] != 0:
        numbered = numbered + 1
    boxes = [[rows.start, cols.start, rows.stop, cols.stop] for rows, cols in ndimage.find_objects(numbered)]
    count = len(boxes)
    found = torch.tensor(boxes, dtype=torch.float32).reshape(count, 4)
    return found, torch.ones(count), torch.zeros(count, dtype=torch.int64), torch.from_numpy(numbered)


def load_instanseg(model: str, name: str) -> LoadedHead:
    """The head of a program.

    Raises
    ------
    InputError
        There is no such file.
    CodeError
        It is no TorchScript program.
    """
    path = Path(model.removeprefix(PROGRAM))
    if not path.is_file():
        raise InputError(
            f"heads.{name}.model: {path} does not exist. Save a program of the package instanseg-torch there (torch.jit.save), and write {PROGRAM}FILE.pt."
        )
    with user_code(f"heads.{name}.model: {model}", "loading its program"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is given up by torch; InstanSeg has nothing else
        program = torch.jit.load(str(path), map_location="cpu").eval()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    notes = (
        f"{path.name} is a TorchScript program: it runs code of whoever made it",
        "brightness is scaled patch by patch, so that an object in the overlap of two may look otherwise in each",
    )
    return LoadedHead(
        InstanSegHead(program),
        "detection",
        InstanSegHead.classes,
        digest,
        kind="detect",
        input="pixels",
        mpp=MPP,
        overlap=OVERLAP,
        notes=notes,
    )
