"""One sample slide in each format that is read over a network: the same pixels, and where the format allows it the same JPEG streams."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import tifffile
import zarr
from numpy.typing import NDArray
from simplejpeg import encode_jpeg

from benchmarks.bench_dicom import write_dicom
from tilestream.geometry import Region
from tilestream.sources.base import SourceOptions
from tilestream.sources.made.slide import ensure_sample
from tilestream.sources.tiff.source import TiffSource

BAND = 2048
"""Rows of pixels that are in memory at once; also the side of a shard."""

MPP = 0.5
JPEG: dict[str, Any] = {"photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2)}


def _streams(slide: TiffSource, level: int) -> Iterator[bytes]:
    """The JPEG streams of a level, row-major."""
    grid = slide.segment_grid(level)
    for cell in range(grid.rows * grid.cols):
        stream = slide.encoded_segment(level, *divmod(cell, grid.cols))
        assert stream is not None, "a sample has all of its tiles"
        yield stream


def _bands(slide: TiffSource, rows: int = BAND) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Top row and (h, w, 3) pixels of each band of level 0."""
    size = slide.info.size
    for top in range(0, size.height, rows):
        yield top, slide.read_region(0, Region(top, 0, min(rows, size.height - top), size.width))


def write_svs(slide: TiffSource, path: Path) -> None:
    """The sample as it is."""
    shutil.copyfile(slide.info.address, path)


def write_ome_tiff(slide: TiffSource, path: Path) -> None:
    """A pyramid in SubIFDs, as Bio-Formats and QuPath write it."""
    levels = slide.info.levels
    with tifffile.TiffWriter(path, ome=True) as tif:
        for k, level in enumerate(levels):
            facts = {"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP} if k == 0 else None
            own: dict[str, Any] = {"subifds": len(levels) - 1, "metadata": facts} if k == 0 else {"subfiletype": 1, "metadata": None}
            shape, grid = (level.size.height, level.size.width, 3), slide.segment_grid(k)
            tif.write(_streams(slide, k), shape=shape, dtype=np.uint8, tile=(grid.height, grid.width), **own, **JPEG)


def write_strips(slide: TiffSource, path: Path) -> None:
    """Strips of 8 rows across the slide, as file tiles of NDPI are."""
    size = slide.info.size
    with tifffile.TiffWriter(path) as tif:
        strips = (
            encode_jpeg(band[y : y + 8], quality=85, colorsubsampling="444") for _, band in _bands(slide) for y in range(0, len(band), 8)
        )
        coding = {**JPEG, "subsampling": (1, 1)}
        tif.write(strips, shape=(size.height, size.width, 3), dtype=np.uint8, rowsperstrip=8, metadata=None, **coding)


def write_cog(slide: TiffSource, path: Path) -> None:
    """A cloud-optimised GeoTIFF by GDAL: directories first, then overviews, then the finest level."""
    rasterio.shutil.copy(slide.info.address, path, driver="COG", compress="JPEG", blocksize=512)


def write_one_dicom(slide: TiffSource, path: Path) -> None:
    """One file with a basic offset table."""
    size = slide.info.size
    write_dicom(path, np.broadcast_to(np.uint8(0), (size.height, size.width, 3)), list(_streams(slide, 0)), slide.segment_grid(0).height)


def _zarr_writer(shard: int | None) -> Callable[[TiffSource, Path], None]:
    def write(slide: TiffSource, path: Path) -> None:
        size = slide.info.size
        group = zarr.open_group(path, mode="w")
        shards = None if shard is None else (shard, shard, 3)
        array = group.create_array("0", shape=(size.height, size.width, 3), chunks=(256, 256, 3), shards=shards, dtype=np.uint8)
        for top, pixels in _bands(slide):
            array[top : top + len(pixels)] = pixels
        axes: list[Any] = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"] + [{"name": "c", "type": "channel"}]
        place: list[Any] = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [MPP, MPP, 1.0]}]}]
        group.attrs.update({"ome": {"version": "0.5", "multiscales": [{"name": "made", "axes": axes, "datasets": place}]}})

    return write


FORMATS: dict[str, tuple[str, Callable[[TiffSource, Path], None]]] = {
    "svs": ("slide.svs", write_svs),
    "ome-tiff": ("slide.ome.tif", write_ome_tiff),
    "strips": ("strips.tif", write_strips),
    "cog": ("cog.tif", write_cog),
    "dicom": ("slide.dcm", write_one_dicom),
    "zarr sharded": ("sharded.zarr", _zarr_writer(BAND)),
    "zarr": ("chunks.zarr", _zarr_writer(None)),
}
"""File name and writer of each format."""


def write_formats(side: int, folder: Path, formats: list[str]) -> dict[str, Path]:
    """Paths of a sample of that side in each format, written into the folder."""
    found = {}
    with TiffSource(str(ensure_sample(f"sample://he?width={side}&height={side}&mpp={MPP}")), SourceOptions()) as slide:
        for name in formats:
            file, write = FORMATS[name]
            found[name] = folder / file
            write(slide, found[name])
    return found
