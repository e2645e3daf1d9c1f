"""Colours of classes, the same wherever they are shown."""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]

FIRST: tuple[Colour, ...] = (
    (230, 25, 75), (60, 120, 216), (60, 180, 75), (245, 160, 30), (145, 30, 180), (70, 190, 200), (240, 80, 200), (150, 110, 40),
)  # fmt: skip
"""Of the first classes; those after them go round the colour circle by the golden angle."""


def class_colours(count: int) -> list[Colour]:
    """(count,) red, green, blue of each class."""
    more = range(len(FIRST), count)
    turned = [colorsys.hsv_to_rgb(k * 0.381966 % 1.0, 0.75, 0.85) for k in more]
    return [*FIRST[:count], *((round(r * 255), round(g * 255), round(b * 255)) for r, g, b in turned)]
