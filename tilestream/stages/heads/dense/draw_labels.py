"""The picture of a head that segments: the slide beside its label image in the colours of the classes, with the share that each has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tilestream.stages.heads.draw_objects import SlideDots, compose
from tilestream.stages.slide_task import SlideTask
from tilestream.store.heads.labels import LabelImage
from tilestream.store.heads.palette import class_colours
from tilestream.store.slide_store import THUMBNAIL, SlideStore

LARGEST = 2048
"""Longest side of the level that is drawn, px."""

NOTHING = (238, 238, 238)
"""Colour of what was not computed."""


def draw_labels(task: SlideTask, store: SlideStore, image: LabelImage) -> bytes:
    """PNG, from the finest level that is small enough.

    Memory bound: that level, and the picture.
    """
    level = next((k for k, sides in enumerate(image.levels) if max(sides) <= LARGEST), len(image.levels) - 1)
    left = SlideDots.on(store.folder.get(THUMBNAIL), task.grid.l0_size, len(image.classes), 0).pixels
    labels: NDArray[np.uint8] = np.asarray(store.array(f"{image.path}/{level}")[:])
    step = image.l0_step * 2**level
    row, col = (
        np.minimum(((np.arange(count) + 0.5) * (l0 / count) / step).astype(np.int64), side - 1)
        for count, l0, side in zip(left.shape, (task.grid.l0_size.height, task.grid.l0_size.width), labels.shape, strict=False)
    )
    colours = np.array([NOTHING, *class_colours(len(image.classes))], np.uint8)
    counts = np.sum(
        [np.bincount(line, minlength=len(colours))[1:] for line in labels], axis=0
    )  # of all at once, bincount takes 8 bytes a pixel
    shares = [f"{name} {share:.1%}" for name, share in zip(image.classes, counts / max(1, counts.sum()), strict=True)]
    title = f"{task.slide}: label image of head {image.head}, {image.l0_step:g} px of the slide a px"
    return compose(left, Image.fromarray(colours[labels[row[:, None], col]]), title, shares, "label image; shares are of what was computed")
