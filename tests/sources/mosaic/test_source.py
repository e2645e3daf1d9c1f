"""A mosaic is the file that rasterio.merge makes, read by the same reader: pixels, places and levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import Affine

from tests.support.rasters import ALIGNED, HOLED, NORTH_UP, OVERLAPPING, PICTURE, QUARTERS, SOUTH_UP, TURNED, cut, merged, write_raster
from tilestream.errors import InputError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import Source, SourceOptions
from tilestream.testing.sources import SourceSuite


def whole(source: Source, level: int = 0) -> Any:
    size = source.info.levels[level].size
    return source.read_region(level, Region(0, 0, size.height, size.width))


def same_as_merged(address: str, judge: Path, **choices: Any) -> None:
    options = SourceOptions(**choices)
    with open_source(address, options) as found, open_source(str(judge), options) as wanted:
        assert found.info.size == wanted.info.size
        assert found.info.geo is not None
        assert wanted.info.geo is not None
        assert found.info.geo.transform == pytest.approx(wanted.info.geo.transform, rel=1e-12)
        assert found.info.geo.code == wanted.info.geo.code
        assert found.info.mpp == wanted.info.mpp
        np.testing.assert_array_equal(whole(found), whole(wanted))


@pytest.mark.parametrize("boxes", [QUARTERS, OVERLAPPING, ALIGNED], ids=["quarters", "overlapping", "aligned"])
@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP, TURNED], ids=["north_up", "south_up", "turned"])
def test_files_side_by_side_are_the_picture_that_they_were_cut_from(tmp_path: Path, boxes: Any, transform: Affine) -> None:
    cut(PICTURE, boxes, tmp_path / "parts", transform)
    with open_source(f"mosaic://{tmp_path / 'parts'}", SourceOptions()) as source:
        np.testing.assert_array_equal(whole(source), PICTURE)
        assert source.info.geo is not None
        assert source.info.geo.transform == pytest.approx(tuple(transform)[:6], rel=1e-12)
        pieces = source.segment_grid(0)
        assert pieces is not None
        assert (pieces.height == 64) == (boxes is ALIGNED)


LAEA = "+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84 +units=m"
UTM = "+proj=utm +zone=33 +datum=WGS84 +units=m +no_defs +type=crs"


@pytest.mark.parametrize(
    ("crs", "other", "transform"),
    [
        (LAEA, LAEA, NORTH_UP),
        ("EPSG:4326", "EPSG:4326", Affine(1e-4, 0, 12.5, 0, -1e-4, 45.5)),
        ("EPSG:4326", "EPSG:4326", Affine(1 / 3600, 0, -71, 0, 1 / 3600, -33)),
        ("EPSG:32633", UTM, NORTH_UP),
    ],
    ids=["wkt", "degrees", "degrees_south_up", "code_and_parameters"],
)
def test_a_crs_is_the_same_by_code_by_parameters_and_in_degrees(tmp_path: Path, crs: str, other: str, transform: Affine) -> None:
    cut(PICTURE, {name: box for name, box in QUARTERS.items() if name in "ab"}, tmp_path, transform, crs=crs)
    cut(PICTURE, {name: box for name, box in QUARTERS.items() if name in "cd"}, tmp_path, transform, crs=other)
    with open_source(f"mosaic://{tmp_path}", SourceOptions()) as source:
        np.testing.assert_array_equal(whole(source), PICTURE)
        assert source.info.mpp == (10e6 if crs != "EPSG:4326" else None)


@pytest.mark.parametrize("nodata", [None, 0, 255])
@pytest.mark.parametrize("turned_round", [False, True])
def test_where_files_lie_on_each_other_it_is_rasterios_merge(tmp_path: Path, nodata: int | None, turned_round: bool) -> None:
    rng = np.random.default_rng(0)
    paths = []
    for number, (name, (y0, x0, y1, x1)) in enumerate(OVERLAPPING.items()):
        part = np.clip(PICTURE[y0:y1, x0:x1].astype(int) + 10 * number, 0, 254).astype(np.uint8)
        if nodata is not None:  # single bands too: merging is band by band
            part[rng.random(part.shape) < 0.2] = nodata
            part[20:90, 30:120] = nodata
        paths.append(write_raster(tmp_path / f"{name}.tif", part, NORTH_UP @ Affine.translation(x0, y0), nodata=nodata))
    paths = paths[::-1] if turned_round else paths
    (tmp_path / "list.txt").write_text("# on top first\n" + "\n".join(path.name for path in paths))
    same_as_merged(f"mosaic://{tmp_path / 'list.txt'}", merged(paths, tmp_path / "whole.tif"))


def test_holes_are_white_and_known(tmp_path: Path) -> None:
    paths = cut(PICTURE, HOLED, tmp_path / "parts", nodata=0)
    judge = merged(paths, tmp_path / "whole.tif")
    same_as_merged(f"mosaic://{tmp_path / 'parts'}", judge)
    with open_source(f"mosaic://{tmp_path}/parts/*.tif", SourceOptions()) as source:
        assert source.info.parts == (Region(0, 0, 100, 150), Region(170, 230, 130, 190))


@pytest.mark.parametrize(
    "options", [{"compress": "jpeg", "photometric": "YCBCR"}, {"compress": "deflate", "interleave": "band"}, {"tiled": False}]
)
def test_every_kind_of_file_tile_is_put_together(tmp_path: Path, options: dict[str, Any]) -> None:
    paths = cut(PICTURE, ALIGNED, tmp_path / "parts", **options)
    with open_source(f"mosaic://{tmp_path / 'parts'}", SourceOptions()) as source:
        for path, (y0, x0, y1, x1) in zip(paths, ALIGNED.values(), strict=True):
            with open_source(str(path), SourceOptions()) as part:
                np.testing.assert_array_equal(whole(part), source.read_region(0, Region(y0, x0, y1 - y0, x1 - x0)))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_bands_and_a_window_are_chosen_as_of_one_file(tmp_path: Path, dtype: str) -> None:
    deep = np.concatenate([PICTURE, PICTURE[..., :2]], axis=-1).astype(dtype) * 40 + np.arange(5, dtype=dtype) * 7
    nodata = 0 if dtype == "uint16" else float("nan")
    deep[40:80, 200:300] = nodata
    paths = cut(deep, OVERLAPPING, tmp_path / "parts", nodata=nodata)
    same_as_merged(f"mosaic://{tmp_path / 'parts'}", merged(paths, tmp_path / "whole.tif"), channels=(3, 1, 0), window=(0, 9000))
    with pytest.raises(InputError, match=r"axis S is 5 long.*source: \{channels: \[0, 1, 2\], window: "):
        open_source(f"mosaic://{tmp_path / 'parts'}", SourceOptions())


def test_masks_and_alpha_let_the_file_below_show(tmp_path: Path) -> None:
    a, b = PICTURE[:200, :250], PICTURE[:200, 200:420]
    top = write_raster(tmp_path / "a.tif", a)
    with rasterio.open(top, "r+") as file:
        mask = np.full(a.shape[:2], 255, np.uint8)
        mask[50:150, 180:240] = 0
        file.write_mask(mask)
    write_raster(tmp_path / "b.tif", b, NORTH_UP @ Affine.translation(200, 0))
    judge = PICTURE[:200].copy()
    judge[50:150, 180:200] = 255
    with open_source(f"mosaic://{tmp_path}/*.tif", SourceOptions()) as source:
        np.testing.assert_array_equal(whole(source), judge)


def test_levels_that_all_files_have_are_levels_of_the_mosaic(tmp_path: Path) -> None:
    paths = cut(PICTURE, ALIGNED, tmp_path / "parts")
    for path in paths:
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2, 4, 8], Resampling.average)
    judge = merged(paths, tmp_path / "whole.tif")
    with rasterio.open(judge, "r+") as file:
        file.build_overviews([2, 4], Resampling.average)
    address = f"mosaic://{tmp_path / 'parts'}"
    with open_source(address, SourceOptions()) as found, open_source(str(judge), SourceOptions()) as wanted:
        assert [round(level.downsample) for level in found.info.levels] == [1, 2, 4, 8]
        assert [level.size for level in found.info.levels[:3]] == [level.size for level in wanted.info.levels]
        for level in (1, 2):
            np.testing.assert_array_equal(whole(found, level), whole(wanted, level))
    cut(PICTURE, QUARTERS, tmp_path / "odd")  # borders between pixels of such levels
    for path in (tmp_path / "odd").iterdir():
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2, 4], Resampling.average)
    with open_source(f"mosaic://{tmp_path / 'odd'}", SourceOptions()) as source:
        assert [round(level.downsample) for level in source.info.levels] == [1, 2]


REFUSED = [
    ({"crs": "EPSG:32634"}, {}, r"b.tif: its CRS is EPSG:32634, and that of .*a.tif is EPSG:32633.*gdalwarp -t_srs"),
    (
        {},
        {"transform": Affine(20, 0, 502_000, 0, -20, 5_000_000)},
        r"b.tif: a pixel is \(20, 0\) by \(0, -20\).*a.tif \(10, 0\).*gdalwarp -tr",
    ),
    ({}, {"transform": SOUTH_UP}, r"b.tif: a pixel is \(10, 0\) by \(0, 10\)"),
    ({}, {"transform": NORTH_UP @ Affine.translation(200.4, 0)}, r"b.tif: begins at row 0, column 200.4 of the grid of .*a.tif"),
    ({"crs": None}, {}, r"b.tif does not say where it lies on a map"),
]


@pytest.mark.parametrize(("options", "place", "words"), REFUSED)
def test_what_lies_on_another_grid_is_refused_with_both_values(tmp_path: Path, options: Any, place: Any, words: str) -> None:
    write_raster(tmp_path / "a.tif", PICTURE[:100, :200])
    write_raster(tmp_path / "b.tif", PICTURE[:100, 200:], **{"transform": NORTH_UP @ Affine.translation(200, 0), **place, **options})
    with pytest.raises(InputError, match=words):
        open_source(f"mosaic://{tmp_path}", SourceOptions())


def test_other_samples_and_no_place_are_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", PICTURE[:100, :200])
    write_raster(tmp_path / "b.tif", PICTURE[:100, 200:, :1], NORTH_UP @ Affine.translation(200, 0))
    with pytest.raises(InputError, match=r"b.tif: has 1 bands of uint8, without alpha, and .*a.tif has 3 bands"):
        open_source(f"mosaic://{tmp_path}", SourceOptions())
    (tmp_path / "b.tif").unlink()
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write_raster(tmp_path / "c.tif", PICTURE[:100, 200:], Affine.identity(), crs=None)
    with pytest.raises(InputError, match=r"c.tif does not say where it lies on a map"):
        open_source(f"mosaic://{tmp_path}", SourceOptions())
    with pytest.raises(InputError, match="names no file"):
        open_source(f"mosaic://{tmp_path}/*.none", SourceOptions())


def test_the_fingerprint_covers_every_file_and_the_order(tmp_path: Path) -> None:
    paths = cut(PICTURE, OVERLAPPING, tmp_path / "parts")

    def fingerprint(*order: Path) -> str:
        (tmp_path / "list.txt").write_text("\n".join(map(str, order)))
        with open_source(f"mosaic://{tmp_path / 'list.txt'}", SourceOptions()) as source:
            return source.info.fingerprint

    first = fingerprint(*paths)
    assert first == fingerprint(*paths)
    assert first != fingerprint(*paths[::-1])
    with rasterio.open(paths[2], "r+") as file:
        file.write(file.read() + 1)
    assert first != fingerprint(*paths)


class TestMosaic(SourceSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory: pytest.TempPathFactory) -> str:
        folder = tmp_path_factory.mktemp("mosaic")
        cut(PICTURE, OVERLAPPING, folder)
        return f"mosaic://{folder}"

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls) -> Any:
        return PICTURE

    @pytest.mark.skip("a mosaic is no file; see test_the_fingerprint_covers_every_file_and_the_order")
    def test_fingerprint_is_stable_and_follows_the_bytes(self) -> None:
        """Of one file."""
