"""Planes of one image that their pages code in ways of their own: each page read by itself is the judge, and the pictures that were written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from tilestream.errors import InputError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.tiff.source import TiffSource

H, W = 256, 320
PLANES = np.stack([(np.sin(np.mgrid[:H, :W][0] / 9 + k) + np.cos(np.mgrid[:H, :W][1] / 13 - k)) * 60 + 128 for k in range(3)]).astype(
    np.uint8
)
OME = (
    '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels '
    f'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{W}" SizeY="{H}" SizeC="3" SizeZ="1" SizeT="1">'
    + "".join(f'<Channel ID="Channel:0:{k}" SamplesPerPixel="1"/>' for k in range(3))
    + '<TiffData IFD="0" PlaneCount="3"/></Pixels></Image></OME>'
)
CODINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deflate": {"compression": "deflate"},
    "predicted": {"compression": "deflate", "predictor": 2},
    "lzw": {"compression": "lzw"},
    "jpeg": {"compression": "jpeg", "compressionargs": {"level": 90}},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "other tiles": {"tile": (128, 32)},
    "strips": {"tile": None, "rowsperstrip": 16},
    "white is 0": {"photometric": "miniswhite"},
}


def write_planes(path: Path, codings: list[dict[str, Any]], orders: list[tuple[int, ...]] | None = None) -> Path:
    """Three planes, each coded in its own way, with SubIFDs at these parts of its scale."""
    with tifffile.TiffWriter(path, ome=False) as tif:
        for k, (plane, coding) in enumerate(zip(PLANES, codings, strict=True)):
            how: dict[str, Any] = {"tile": (64, 64), "photometric": "minisblack", "metadata": None, **coding}
            order = orders[k] if orders else ()
            tif.write(plane, subifds=len(order), description=OME if not k else None, **how)
            for factor in order:
                tif.write(np.ascontiguousarray(plane[::factor, ::factor]), subfiletype=1, **how)
    return path


def read_level(source: Any, level: int = 0) -> NDArray[Any]:
    size = source.info.levels[level].size
    found: NDArray[Any] = source.read_region(level, Region(0, 0, size.height, size.width))
    return found


@pytest.mark.parametrize(("first", "others"), list(itertools.product(CODINGS, CODINGS)))
def test_each_plane_is_decoded_as_its_own_page_says(tmp_path: Path, first: str, others: str) -> None:
    path = write_planes(tmp_path / "a.tif", [CODINGS[first], CODINGS[others], CODINGS[others]])
    alone = [tifffile.imread(path, key=k) for k in range(3)]
    for k, expected in enumerate(alone):
        with open_source(str(path), SourceOptions(channels=(k,))) as source:
            np.testing.assert_array_equal(read_level(source)[..., 0], expected)
    with open_source(str(path), SourceOptions(channels=(2, 0, 1))) as source:
        np.testing.assert_array_equal(read_level(source), np.stack([alone[k] for k in (2, 0, 1)], -1))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_planes_that_are_laid_out_in_other_ways_are_refused(tmp_path: Path, layout: str, *, turned: bool) -> None:
    path = write_planes(tmp_path / "a.ome.tif", [LAYOUTS[layout], {}, {}] if turned else [{}, LAYOUTS[layout], LAYOUTS[layout]])
    if layout != "strips":  # of another number, at which tifffile stops
        with TiffSource(str(path), SourceOptions(channels=(0,))) as source:
            expected = tifffile.imread(path, key=0)
            found = read_level(source)[..., 0]
            np.testing.assert_array_equal(found, 255 - expected if turned and layout == "white is 0" else expected)
    with pytest.raises(InputError, match=r"its planes are pictures of several kinds.*Export them alike, or convert the whole to OME-Zarr"):
        open_source(str(path), SourceOptions(channels=(1,)))


def _tables_and_scans(plane: NDArray[np.uint8], level: int) -> tuple[bytes, list[bytes]]:
    """Quantisation tables as the JPEGTables tag has them, and the streams of the tiles without them."""
    tables, scans = b"", []
    for y, x in itertools.product(range(0, H, 64), range(0, W, 64)):
        data = imagecodecs.jpeg8_encode(plane[y : y + 64, x : x + 64], level=level)
        tables, kept, at = b"", data[:2], 2
        while data[at + 1] != 0xDA:
            length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if data[at + 1] == 0xDB:
                tables += data[at : at + length]
            else:
                kept += data[at : at + length]
            at += length
        scans.append(kept + data[at:])
    return b"\xff\xd8" + tables + b"\xff\xd9", scans


def test_each_plane_has_its_own_jpeg_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=False) as tif:
        for k, level in enumerate((95, 40, 10)):
            tables, scans = _tables_and_scans(PLANES[k], level)

            def encoded(scans: list[bytes] = scans) -> Iterator[bytes]:
                yield from scans

            tif.write(
                encoded(), shape=(H, W), dtype=np.uint8, tile=(64, 64), photometric="minisblack", compression="jpeg", metadata=None,
                description=OME if not k else None, extratags=[(347, 7, len(tables), tables, True)],
            )  # fmt: skip
    for k in range(3):
        with open_source(str(path), SourceOptions(channels=(k,))) as source:
            assert np.abs(read_level(source)[..., 0].astype(int) - PLANES[k]).mean() < 6
    with open_source(str(path), SourceOptions(channels=(0, 1, 2))) as source:
        assert np.abs(np.moveaxis(read_level(source), -1, 0).astype(int) - PLANES).mean(axis=(1, 2)).max() < 6


ORDERS: list[list[tuple[int, ...]]] = [
    [(2, 4, 8), (4, 2, 8), (8, 4, 2)],
    [(8, 4, 2), (2, 4, 8), (2, 8, 4)],
    [(2, 4), (2,), (4,)],
    [(2, 4), (), ()],
    [(), (2, 4), (4, 2)],
    [(2,), (2, 4), (4, 2)],
]


@pytest.mark.parametrize("coding", ["plain", "deflate"])
@pytest.mark.parametrize("orders", ORDERS)
@pytest.mark.parametrize("channels", [(0, 1, 2), (0,), (1,), (2,)])
def test_levels_of_planes_belong_together_by_size(
    tmp_path: Path, coding: str, orders: list[tuple[int, ...]], channels: tuple[int, ...]
) -> None:
    path = write_planes(tmp_path / "a.ome.tif", [CODINGS[coding]] * 3, orders)
    shared = {1, *set.intersection(*(set(orders[k]) for k in channels))}
    with open_source(str(path), SourceOptions(channels=channels)) as source:
        found = [round(level.downsample) for level in source.info.levels]
        assert set(found) == shared
        for level, factor in enumerate(found):
            expected = np.moveaxis(PLANES[list(channels), ::factor, ::factor], 0, -1)
            np.testing.assert_array_equal(read_level(source, level), np.broadcast_to(expected, (*expected.shape[:2], 3)))
