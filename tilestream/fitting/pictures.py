"""Pages of reports, and their pictures from the slides' thumbnails: a tile in its surroundings, a slide under its attention."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from string import Template

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tilestream.store.slide import Slide
from tilestream.store.slide_store import THUMBNAIL

SIDE = 192
"""Longest side of a picture, px."""

LOOKED_AT = np.array([230, 90, 0], np.float64)
"""RGB laid over tiles, the more attention the stronger."""


def fill_page(name: str, **parts: str | int) -> str:
    """A page of ours with its style and parts filled in."""
    assets = files("tilestream.fitting").joinpath("assets")
    style, page = (assets.joinpath(found).read_text(encoding="utf-8") for found in ("fit.css", name))
    return Template(page).substitute(style=style, **parts)


def tile_picture(slide: Slide, row: int) -> str:
    """HTML: the place of a tile and its neighbours on the thumbnail; "" where there is none."""
    small = _thumbnail(slide)
    if small is None:
        return ""
    scale = small.height / slide.size.height
    y, x = (float(slide.read_column(name)[row]) * scale for name in ("y", "x"))
    side = max(1.0, slide.l0_extent * scale)
    around = Image.new(
        "RGB", (round(3 * side), round(3 * side)), "white"
    )  # what lies outside the image is white, as it was for the encoder
    around.paste(small, (-round(x - side), -round(y - side)))
    return _html(around)


def slide_picture(slide: Slide, shares: NDArray[np.float64] | None = None) -> str:
    """HTML: the thumbnail, tiles in orange by their shares (n,) of the attention where these are given; "" where there is none."""
    small = _thumbnail(slide)
    if small is None:
        return ""
    small.thumbnail((2 * SIDE, 2 * SIDE))
    if shares is not None and np.isfinite(shares).any():
        pixels = np.asarray(small, np.float64)
        scale = pixels.shape[0] / slide.size.height
        strength = np.nan_to_num(shares / np.nanmax(shares)) * 0.75
        cover = np.zeros((*pixels.shape[:2], 1))
        side = slide.l0_extent * scale
        tops, lefts = (slide.read_column(name) * scale for name in ("y", "x"))
        for top, left, share in zip(tops.tolist(), lefts.tolist(), strength.tolist(), strict=True):
            part = cover[round(top) : max(round(top) + 1, round(top + side)), round(left) : max(round(left) + 1, round(left + side))]
            np.maximum(part, share, out=part)
        small = Image.fromarray((pixels + (LOOKED_AT - pixels) * cover).round().astype(np.uint8))
    return _html(small)


def _thumbnail(slide: Slide) -> Image.Image | None:
    raw = slide.folder.get(THUMBNAIL)
    if raw is None:
        return None
    with Image.open(io.BytesIO(raw)) as picture:
        return picture.convert("RGB")


def _html(picture: Image.Image) -> str:
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
