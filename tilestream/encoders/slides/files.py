"""Where the weights of a slide encoder lie. Imports no library that computes."""

from __future__ import annotations

from tilestream.config.vectors.pool import OnePool
from tilestream.encoders.hub import fetch_file
from tilestream.encoders.slides.presets import SLIDE_PRESETS
from tilestream.errors import InputError


def slide_weights(pool: OnePool) -> str | None:
    """The weights file of a pool, from the authors' repository where it is a slide encoder and none is given; None where there is none.

    Raises
    ------
    InputError
        It cannot be fetched.
    """
    if pool.weights is not None or not pool.encodes:
        return pool.weights
    preset = SLIDE_PRESETS[pool.name]
    if not preset.file:
        return None  # a whole repository, which is fetched by hand
    way = f"or fetch {preset.file} on another machine and set pool.weights to its path"
    if not preset.on_hub:
        raise InputError(
            f"pool.weights: {preset.name} has its weights, {preset.file}, at {preset.page}. Fetch them and set pool.weights to their path."
        )
    try:
        return str(fetch_file(preset.repository, preset.file, way=way))
    except FileNotFoundError as error:
        raise InputError(
            f"{preset.repository} has no {preset.file} any more. Fetch its weights from {preset.page} and set pool.weights."
        ) from error
