"""What STAC items say that stands for nothing counts where the files do not say it themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rasterio.transform import Affine

from tests.support.rasters import NORTH_UP, write_raster
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions

HEIGHT, WIDTH, STEP = 70, 90, 50
SAYS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[Any, Any, Any]]] = {
    "nothing": ({}, {}, (None, None, None)),
    "each in raster:bands": ({"raster:bands": [{"nodata": 3}] * 3}, {}, (3, 3, 3)),
    "one each": ({"raster:bands": [{"nodata": 1}, {}, {"nodata": 2}]}, {}, (1, None, 2)),
    "in bands": ({"bands": [{"name": "a", "nodata": 0}, {"name": "b", "nodata": 0}, {"nodata": 0}]}, {}, (0, 0, 0)),
    "bands before raster:bands": ({"bands": [{"nodata": 1}, {}, {}], "raster:bands": [{"nodata": 5}] * 3}, {}, (1, 5, 5)),
    "bands before the asset": ({"bands": [{"nodata": 1}, {}, {}], "nodata": 2}, {}, (1, 2, 2)),
    "the asset": ({"nodata": 4}, {}, (4, 4, 4)),
    "the item": ({}, {"nodata": 4}, (4, 4, 4)),
    "the asset before the item": ({"nodata": 0}, {"nodata": 4}, (0, 0, 0)),
    "in words": ({"raster:bands": [{"nodata": "nan"}] * 3}, {}, (np.nan, np.nan, np.nan)),
    "odd": ({"raster:bands": [{"nodata": "none"}, 7, {"nodata": True}], "nodata": [1]}, {}, (None, None, None)),
}
"""What an asset says, what its item says, and what then stands for nothing in each band."""


def make(folder: Path, name: str, dtype: str, **options: Any) -> list[NDArray[Any]]:
    """The samples of a.tif and b.tif, and items that name them."""
    says, properties, _ = SAYS[name]
    rng, made = np.random.default_rng(0), []
    for number, letter in enumerate("ab"):
        samples = rng.integers(0, 6, (HEIGHT, WIDTH, 3)).astype(dtype)
        if dtype == "float32":
            samples[samples == 5] = np.nan
        write_raster(folder / f"{letter}.tif", samples, NORTH_UP @ Affine.translation(number * STEP, 0), **options)
        made.append(samples)
    items = [{"properties": properties, "assets": {"data": {"href": f"{letter}.tif", "type": "image/tiff", **says}}} for letter in "ab"]
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return made


def laid(made: list[NDArray[Any]], said: tuple[Any, ...]) -> NDArray[Any]:
    """(h, w, 3) float32, NaN where neither file has anything; the first lies on top."""
    whole = np.full((HEIGHT, WIDTH + STEP, 3), np.nan, np.float32)
    for number, samples in reversed(list(enumerate(made))):
        for band, nothing in enumerate(said):
            column, place = samples[..., band], whole[:, number * STEP : number * STEP + WIDTH, band]
            there = np.ones(column.shape, bool) if nothing is None else ~np.isnan(column) if np.isnan(nothing) else column != nothing
            place[there] = column[there]
    return whole


@pytest.mark.parametrize("name", SAYS)
def test_what_items_say_counts_where_files_say_nothing(tmp_path: Path, name: str) -> None:
    said = SAYS[name][2]
    wanted = laid(make(tmp_path, name, "float32" if name == "in words" else "uint8"), said)
    everything, path = Region(0, 0, HEIGHT, WIDTH + STEP), str(tmp_path / "items.json")
    for channels in ((0, 1, 2), (2, 0), (1,)):
        with open_source(path, SourceOptions(channels=channels, normalise="none")) as source:
            np.testing.assert_array_equal(source.read_region(0, everything), wanted[..., list(channels)])
    with open_source(path, SourceOptions(channels=(0, 1, 2), window=(0, 255))) as source:
        np.testing.assert_array_equal((source.read_region(0, everything) == 255).all(axis=-1), np.isnan(wanted).all(axis=-1))
        assert ("geo.nodata" in source.info.properties) == (said != (None, None, None))


def test_what_a_file_says_itself_counts_before_items(tmp_path: Path) -> None:
    wanted = laid(make(tmp_path, "each in raster:bands", "uint8", nodata=1), (1, 1, 1))
    with open_source(str(tmp_path / "items.json"), SourceOptions(channels=(0, 1, 2), normalise="none")) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, HEIGHT, WIDTH + STEP)), wanted)
        assert source.info.properties["geo.nodata"] == "1"


def test_assets_of_one_band_each_have_each_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 6, (HEIGHT, WIDTH, 2)).astype(np.uint8)
    assets: dict[str, Any] = {}
    for band, nothing in enumerate((2, 4)):
        write_raster(tmp_path / f"{band}.tif", samples[..., band : band + 1])
        assets[f"b{band}"] = {"href": f"{band}.tif", "type": "image/tiff", "raster:bands": [{"nodata": nothing}]}
    (tmp_path / "item.json").write_text(json.dumps({"assets": assets}))
    with open_source(str(tmp_path / "item.json"), SourceOptions(channels=("b1", "b0"), normalise="none")) as source:
        wanted = np.where(samples == (2, 4), np.nan, samples.astype(np.float32))[..., ::-1]
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, HEIGHT, WIDTH)), wanted)


def test_the_fingerprint_follows_what_counts_of_items(tmp_path: Path) -> None:
    found = {}
    for name in ("nothing", "the asset", "the item", "odd", "one each"):
        make(tmp_path, name, "uint8")
        with open_source(str(tmp_path / "items.json"), SourceOptions()) as source:
            found[name] = source.info.fingerprint
    assert found["nothing"] == found["odd"]
    assert found["the asset"] == found["the item"]
    assert len(set(found.values())) == 3
