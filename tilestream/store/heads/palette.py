"""Colours of classes, the same wherever they are shown."""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]

FIRST: tuple[Colour, ...] = (
    (213, 94, 0), (0, 114, 178), (0, 158, 115), (230, 159, 0), (204, 121, 167), (86, 180, 233), (240, 228, 66), (136, 34, 85),
)  # fmt: skip
"""Of the first classes, after Okabe and Ito, which people of every colour vision tell apart; those after them go round the colour circle by the golden angle."""


def class_colours(count: int) -> list[Colour]:
    """(count,) red, green, blue of each class."""
    more = range(len(FIRST), count)
    turned = [colorsys.hsv_to_rgb(k * 0.381966 % 1.0, 0.75, 0.85) for k in more]
    return [*FIRST[:count], *((round(r * 255), round(g * 255), round(b * 255)) for r, g, b in turned)]
