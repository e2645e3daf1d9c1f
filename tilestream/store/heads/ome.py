"""What OME-Zarr 0.5 says of an image and its labels: axes, places, colours and names.

Source: https://ngff.openmicroscopy.org/0.5/ (multiscales, axes, coordinateTransformations, labels, image-label).
Version 0.6 changes the coordinate systems; everything that is of 0.5 is in this module and in `interop.multiscale`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tilestream.store.heads.palette import class_colours

VERSION = "0.5"


@dataclass(frozen=True)
class Place:
    """Where the pixels of the finest level lie."""

    step: float
    """From pixel to pixel, in `unit`."""
    first: tuple[float, float]
    """y, x of the centre of pixel (0, 0) from the image's corner, in `unit`."""
    unit: str | None
    """micrometer, or None for level-0 px."""

    def transformations(self, level: int, axes: str) -> list[dict[str, Any]]:
        """Scale and translation of a level, each pixel of which is the mean of 2^level x 2^level of the finest."""
        step = self.step * 2**level
        middle = {axis: first + self.step * (2**level - 1) / 2 for axis, first in zip("yx", self.first, strict=True)}
        scale = [step if axis in "yx" else 1.0 for axis in axes]
        translation = [middle.get(axis, 0.0) for axis in axes]
        return [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]

    def axes(self, names: str) -> list[dict[str, str]]:
        """The axes, with their unit where there is one."""
        unit = {} if self.unit is None else {"unit": self.unit}
        return [{"name": "c", "type": "channel"} if name == "c" else {"name": name, "type": "space", **unit} for name in names]


OPACITY = 160
"""Of a class's colour, of 255."""


def image_label(names: Sequence[str]) -> dict[str, Any]:
    """Colours and names of labels 0, 1, ...; 0 is nothing, and cannot be seen."""
    colours = [[0, 0, 0, 0], *([*colour, OPACITY] for colour in class_colours(len(names) - 1))]
    return {
        "version": VERSION,
        "colors": [{"label-value": label, "rgba": rgba} for label, rgba in enumerate(colours)],
        "properties": [{"label-value": label, "class": name} for label, name in enumerate(names)],
    }
