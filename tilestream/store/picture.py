"""A slide's picture, small: for notebooks and reports."""

from __future__ import annotations

import base64
import io
import json
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tilestream.errors import load_needed

NOTEBOOK_PX, NOTEBOOK_BYTES = 720, 200_000


def plot_axes(axes: Any = None, **figure: Any) -> Any:
    """Matplotlib axes: those given, or new ones.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    """
    modules = load_needed("plot", "plot", "matplotlib", *(["matplotlib.pyplot"] if axes is None else []))
    return modules[1].subplots(layout="constrained", **figure)[1] if axes is None else axes


def plot_picture(raw: bytes, axes: Any = None) -> Any:
    """Draw a picture into `plot_axes`, and return them."""
    axes = plot_axes(axes, figsize=(12, 6))
    axes.imshow(Image.open(io.BytesIO(raw)))
    axes.set_axis_off()
    return axes


def slide_html(title: str, words: str, raw: bytes | None, recipe: dict[str, Any]) -> str:
    """What a notebook shows of a slide: the picture, with words and recipe."""
    image = "" if raw is None else small_image(raw, NOTEBOOK_PX, NOTEBOOK_BYTES, "overview")
    text = escape(json.dumps(recipe, indent=1, ensure_ascii=False))
    return f"<div><b>{escape(title)}</b><br>{words}<br>{image}<details><summary>recipe</summary><pre>{text}</pre></details></div>"


def small_image(raw: bytes, side: int, most: int, words: str) -> str:
    """An `img` element of a picture, inline, at most `side` px a side and of about `most` bytes or fewer; empty for what is no picture."""
    try:
        with Image.open(io.BytesIO(raw)) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError):
        return ""
    picture.thumbnail((side, side))
    for quality in (80, 60, 40, 20):
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= most:
            break
    return (
        f'<img loading="lazy" decoding="async" width="{picture.width}" height="{picture.height}" alt="{escape(words, quote=True)}" '
        f'src="data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    )


def png_bytes(pixels: NDArray[Any]) -> bytes:
    """An (h, w, 3) or (h, w, 4) uint8 or (h, w) bool array as PNG."""
    if pixels.dtype == np.bool_:  # one bit a pixel
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=2)
        return buffer.getvalue()
    import imagecodecs

    # While it packs, others may have the interpreter, which Pillow keeps; a higher level takes up to twice as long for a twentieth less.
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=2, filter=imagecodecs.PNG.FILTER.UP))
