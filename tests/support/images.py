"""Made images that look like stained tissue, and writers that put them into the formats that sources read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

Image = NDArray[np.uint8]

EOSIN, HAEMATOXYLIN, GLASS = (226, 150, 190), (96, 60, 140), (244, 242, 245)


def make_image(height: int, width: int, seed: int = 0) -> Image:
    """(height, width, 3) uint8 like H&E: smooth pink tissue on glass, dark nuclei, fine texture. The same for the same arguments."""
    rng = np.random.default_rng(seed)
    tissue = np.clip((_smooth(rng, height, width, 97) - 0.42) * 8, 0, 1)[..., np.newaxis]
    nuclei = tissue * np.clip((_smooth(rng, height, width, 9) - 0.62) * 10, 0, 1)[..., np.newaxis]
    texture = rng.normal(0, 3, (height, width, 1))
    pixels = np.asarray(GLASS) * (1 - tissue) + np.asarray(EOSIN) * tissue
    pixels = pixels * (1 - nuclei) + np.asarray(HAEMATOXYLIN) * nuclei + texture * (0.3 + tissue)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _smooth(rng: np.random.Generator, height: int, width: int, step: int) -> NDArray[np.float64]:
    """(height, width) in 0 to 1: random values every `step` px, linear between."""
    coarse = rng.random((height // step + 2, width // step + 2))
    y, x = np.arange(height) / step, np.arange(width) / step
    rows = np.stack([np.interp(y, np.arange(coarse.shape[0]), column) for column in coarse.T], axis=1)
    return np.stack([np.interp(x, np.arange(coarse.shape[1]), row) for row in rows])


def halve(image: Image) -> Image:
    """The image at half size: means of 2 x 2 pixels, an odd last row or column left out."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    blocks = image[:height, :width].reshape(height // 2, 2, width // 2, 2, *image.shape[2:])
    return np.rint(blocks.mean(axis=(1, 3))).astype(image.dtype)


def pyramid(image: Image, levels: int) -> list[Image]:
    """The image and `levels` - 1 halvings of it."""
    out = [image]
    for _ in range(levels - 1):
        out.append(halve(out[-1]))
    return out


def write_pyramid(
    path: Path,
    image: Image,
    *,
    tile: int | None = 256,
    compression: str | None = "jpeg",
    subsampling: tuple[int, int] | None = None,
    levels: int = 3,
    mpp: float | None = 0.5,
    quality: int = 85,
    **options: Any,
) -> Path:
    """A generic TIFF pyramid of reduced-resolution pages; `tile` None writes strips.

    For JPEG, `subsampling` (2, 2) is 4:2:0 and (1, 1) is 4:4:4, both YCbCr; `photometric="rgb", jpeg_rgb=True` stores RGB in
    JPEG without a colour transform. Other `options` go to tifffile.
    """
    jpeg_rgb = options.pop("jpeg_rgb", False)
    common: dict[str, Any] = {
        "compression": compression,
        "photometric": "rgb" if image.ndim == 3 and image.shape[-1] in (3, 4) else "minisblack",
    }
    if compression == "jpeg":
        common["compressionargs"] = {"level": quality}
        if jpeg_rgb:
            common["compressionargs"] |= {"outcolorspace": "rgb"}
        elif image.ndim == 3:
            common["subsampling"] = subsampling or (2, 2)
            common["photometric"] = "ycbcr"
    if tile is not None:
        common["tile"] = (tile, tile)
    if mpp is not None:
        common |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    common |= options
    bigtiff = common.pop("bigtiff", False)
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as tif:
        for k, pixels in enumerate(pyramid(image, levels)):
            tif.write(pixels, subfiletype=1 if k else 0, metadata=None, **common)
    return path


def write_svs(path: Path, image: Image, *, mpp: float = 0.25, tile: int = 240, levels: int = 2, **options: Any) -> Path:
    """An Aperio-like SVS: tiled level 0, striped thumbnail, tiled lower levels."""
    text = f"Aperio Image Library v12.0.0\n{image.shape[1]}x{image.shape[0]} ({tile}x{tile}) JPEG|AppMag = 40|MPP = {mpp}"
    jpeg: dict[str, Any] = {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 2), "metadata": None, **options}
    with tifffile.TiffWriter(path) as tif:
        first, *rest = pyramid(image, levels)
        tif.write(first, tile=(tile, tile), description=text, **jpeg)
        tif.write(halve(rest[-1] if rest else first), rowsperstrip=16, description=text, **jpeg)
        for pixels in rest:
            tif.write(pixels, tile=(tile, tile), description=text, **jpeg)
    return path


def write_ome_zarr(
    path: Path,
    image: NDArray[Any],
    *,
    version: str = "0.5",
    axes: str = "cyx",
    chunk: int = 128,
    shard: int | None = None,
    levels: int = 2,
    mpp: float | None = 0.5,
    unit: str | None = "micrometer",
) -> Path:
    """An OME-Zarr image; `image` is (h, w, 3) or (h, w), stored in the order of `axes` with length-1 axes added."""
    store = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    datasets = []
    for k, pixels in enumerate(pyramid(image, levels)):
        stored = _stored(pixels, axes)
        chunks = tuple(chunk if axis in "yx" else 1 for axis in axes)
        shards = tuple(shard if axis in "yx" else 1 for axis in axes) if shard else None
        array = store.create_array(str(k), shape=stored.shape, chunks=chunks, shards=shards, dtype=stored.dtype)
        array[:] = stored
        scale = [
            float((mpp or 1.0) * image.shape["yx".index(axis)] / pixels.shape["yx".index(axis)]) if axis in "yx" else 1.0 for axis in axes
        ]
        datasets.append({"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    kinds = {"t": "time", "c": "channel"}
    stated = [{"name": axis, "type": kinds.get(axis, "space")} | ({"unit": unit} if axis in "zyx" and unit else {}) for axis in axes]
    multiscales = [{"name": "made", "axes": stated, "datasets": datasets} | ({"version": "0.4"} if version == "0.4" else {})]
    store.attrs.update({"multiscales": multiscales} if version == "0.4" else {"ome": {"version": version, "multiscales": multiscales}})
    return path


def _stored(pixels: NDArray[Any], axes: str) -> NDArray[Any]:
    """(h, w, c) or (h, w) pixels with their axes in the order of `axes`."""
    own = "yxc" if pixels.ndim == 3 else "yx"
    ordered = pixels.transpose([own.index(axis) for axis in axes if axis in own])
    return ordered.reshape([ordered.shape[[a for a in axes if a in own].index(axis)] if axis in own else 1 for axis in axes])
