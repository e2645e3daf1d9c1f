"""Nuclei of known place, size and class drawn into pixels, and a detector that reads them back from what it is shown.

A nucleus is a disc whose pixels say which one it is: red and green its number, blue its class. Two never overlap. The detector finds connected
pixels of one number: of a nucleus that a patch cuts, it sees a part, as any detector would.
"""

import os
import time

import numpy as np
import torch
from scipy import ndimage
from torch import nn

CLASSES = ("tumour", "stroma", "immune")
BLUE = (40, 90, 140)


def place_nuclei(side, count, seed=0, *, least=3, largest=14, at=()):
    """(m, 3) y, x and radius of at most `count` discs that do not touch, those of `at` first; the image is side x side px."""
    rng = np.random.default_rng(seed)
    taken = np.zeros((side, side), bool)
    found = []
    wanted = [(*place, largest) for place in at]
    while len(found) < count:
        more = np.stack([rng.integers(0, side, count), rng.integers(0, side, count), rng.integers(least, largest + 1, count)], axis=1)
        for y, x, radius in [*wanted, *more.tolist()]:
            window = np.s_[max(0, y - radius - 2) : y + radius + 3, max(0, x - radius - 2) : x + radius + 3]
            if len(found) < count and not taken[window].any():
                found.append((y, x, radius))
                taken[window] = True
        wanted = []
    return np.array(found)


def draw_nuclei(side, nuclei, classes):
    """(side, side, 3) uint8 on white."""
    image = np.full((side, side, 3), 255, np.uint8)
    for number, ((y, x, radius), kind) in enumerate(zip(nuclei.tolist(), classes.tolist(), strict=True), start=1):
        y0, x0 = max(0, y - radius), max(0, x - radius)
        window = image[y0 : y + radius + 1, x0 : x + radius + 1]
        rows, cols = np.ogrid[y0 : y0 + window.shape[0], x0 : x0 + window.shape[1]]
        window[(rows - y) ** 2 + (cols - x) ** 2 <= radius**2] = (number // 250, number % 250, BLUE[kind])
    return image


class ReadNuclei(nn.Module):
    """The detector; `form` is what it gives of each object beside its box."""

    classes = CLASSES

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, pixels):
        return [self.read(patch.numpy().astype(np.int64)) for patch in pixels]

    def read(self, patch):
        number = np.where(np.isin(patch[2], BLUE), patch[0] * 250 + patch[1], 0)
        values, labels = np.unique(number, return_inverse=True)
        labels = labels.reshape(number.shape)
        boxes = [[rows.start, cols.start, rows.stop, cols.stop] for rows, cols in ndimage.find_objects(labels)]
        kinds = [BLUE.index(blue) for blue in ndimage.maximum(patch[2], labels, np.arange(1, len(values)))] if len(values) > 1 else []
        scores = torch.tensor([1 / (1 + value % 7) for value in values[values > 0]])
        found = (torch.tensor(boxes, dtype=torch.float32), scores, torch.tensor(kinds))
        return (*found, torch.from_numpy(labels)) if self.form == "instances" else found


def instances():
    return ReadNuclei("instances")


def boxes():
    return ReadNuclei("boxes")


class NotFinite(ReadNuclei):
    """Gives NaN where a patch shows the first nucleus."""

    def read(self, patch):
        found = super().read(patch)
        return (found[0] + float("nan"), *found[1:]) if ((patch[0] == 0) & (patch[1] == 1)).any() else found


def not_finite():
    return NotFinite("instances")


class Slow(ReadNuclei):
    """Takes its time, so that a run may be killed."""

    def forward(self, pixels):
        time.sleep(0.05 * len(pixels))
        return super().forward(pixels)


def slow():
    return Slow("instances")


class Flaky(NotFinite):
    """As `not_finite`, until the variable MENDED is set."""

    def read(self, patch):
        return ReadNuclei.read(self, patch) if "MENDED" in os.environ else super().read(patch)


def flaky():
    return Flaky("instances")
