"""Values of bands in float32: what is read is what rasterio reads, (value - mean) / std, NaN where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr

import tilestream
from tests.support.encoders import BandCorners
from tests.support.range_server import serving
from tests.support.rasters import NORTH_UP, OVERLAPPING, cut, merged, write_raster
from tests.support.runs import config, opened
from tests.support.viewing import viewed
from tilestream.config.load import load_config
from tilestream.errors import ConfigError, InputError
from tilestream.sources import open_image
from tilestream.sources.bands import sample_of
from tilestream.viewer.pixels import Images, Look

RNG = np.random.default_rng(11)
NODATA = 3
DEEP = RNG.integers(4, 5000, (300, 420, 5)).astype(np.uint16)
DEEP[90:140, 180:280, :3] = NODATA
MEANS, STDS = [1000.0, 2000, 1500, 900, 800], [500.0, 700, 600, 300, 250]
FIVE: dict[str, Any] = {"channels": (0, 1, 2, 3, 4), "normalise": {"mean": MEANS, "std": STDS}}
WHOLE = (0, 0, 300, 420)


def values_of(path: Path, bands: tuple[int, ...] = (0, 1, 2, 3, 4), overview: int | None = None) -> Any:
    with rasterio.open(path, **({} if overview is None else {"overview_level": overview})) as file:
        samples = np.moveaxis(file.read().astype(np.float64), 0, -1)[..., list(bands)]
        there = np.moveaxis(file.read_masks(), 0, -1)[..., list(bands)] > 0
    return np.where(there, (samples - np.array(MEANS)[list(bands)]) / np.array(STDS)[list(bands)], np.nan)


def assert_values(found: Any, wanted: Any) -> None:
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"interleave": "band"}, {"compress": "deflate", "predictor": 2}, {"tiled": False, "blockysize": 16}]
)
def test_values_are_those_that_rasterio_reads(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write_raster(tmp_path / "a.tif", DEEP, nodata=NODATA, **options)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2])
    with open_image(path, **FIVE) as image:
        assert_values(image.read(WHOLE), values_of(path))
        assert_values(image.read((0, 0, 150, 210), 1), values_of(path, overview=0))
        assert_values(image.to_dask(0)[50:200, 100:300].compute(), values_of(path)[50:200, 100:300])
        over = image.read((280, 400, 40, 40))
        assert np.isnan(over[20:]).all()
        assert np.isnan(over[:, 20:]).all()
        assert not np.isnan(over[:20, :20]).any()


@pytest.mark.parametrize("nodata", [NODATA, None])
def test_separate_bands_that_a_file_leaves_out_are_nodata_and_others_are_not_read(tmp_path: Path, nodata: int | None) -> None:
    made = np.full((128, 192, 5), nodata or 0, np.uint16)
    made[..., 1] = DEEP[:128, :192, 1]
    made[:64, 64:, 4] = DEEP[:64, 64:192, 4]
    path = write_raster(tmp_path / "a.tif", made, nodata=nodata, interleave="band", sparse_ok=True)
    picked = (4, 1)
    stats = {"mean": [MEANS[k] for k in picked], "std": [STDS[k] for k in picked]}
    with open_image(path, channels=picked, normalise=stats) as image:
        wanted = values_of(path, picked)
        assert np.isnan(wanted).any() == (nodata is not None)
        assert_values(image.read((0, 0, 128, 192)), wanted)
    with serving(tmp_path) as server, open_image(server.url("a.tif"), channels=(1,), normalise="none") as image:
        server.forget()
        with image.ahead(0, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]):
            assert_values(image.read((0, 0, 128, 192))[..., 0], np.where(made[..., 1] == (nodata or -1), np.nan, made[..., 1]))
        assert server.bytes_sent < 1.3 * made[..., 1].nbytes


def test_values_come_from_a_server_as_from_a_disk(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", DEEP, nodata=NODATA, compress="deflate")
    cut(DEEP, OVERLAPPING, tmp_path / "parts", nodata=NODATA)
    with serving(tmp_path) as server:
        (tmp_path / "parts.txt").write_text("".join(server.url(f"parts/{name}.tif") + "\n" for name in OVERLAPPING))
        for address in (server.url("a.tif"), f"mosaic://{tmp_path / 'parts.txt'}"):
            with open_image(address, **FIVE) as image:
                assert image.fetched
                assert_values(image.read(WHOLE), values_of(path))


@pytest.mark.parametrize("inside", [True, False])
def test_what_a_mask_leaves_out_is_no_value(tmp_path: Path, inside: bool) -> None:
    path = write_raster(tmp_path / "a.tif", DEEP)
    mask = np.full(DEEP.shape[:2], 255, np.uint8)
    mask[30:80, 40:200] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(path, "r+") as file:
        file.write_mask(mask)
    with open_image(path, **FIVE) as image:
        assert_values(image.read(WHOLE), values_of(path))
        picture = image.pictured()
        assert picture.read(WHOLE).dtype == np.uint8
        assert (picture.read((30, 40, 50, 160)) == 255).all()


@pytest.mark.parametrize("options", [{"nodata": NODATA}, {}])
def test_a_mosaic_gives_the_values_of_the_merged_file(tmp_path: Path, options: dict[str, Any]) -> None:
    paths = cut(DEEP, OVERLAPPING, tmp_path / "parts", **options)
    whole = merged(paths, tmp_path / "whole.tif")
    with open_image(f"mosaic://{tmp_path / 'parts'}", **FIVE) as found, open_image(whole, **FIVE) as wanted:
        assert_values(found.read(WHOLE), values_of(whole))
        np.testing.assert_array_equal(found.read(WHOLE), wanted.read(WHOLE))
        np.testing.assert_array_equal(found.pictured().read(WHOLE), wanted.pictured().read(WHOLE))


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [(None, "u2", None), (3, "u2", 3), (-9999, "u2", None), (-9999, "i2", -9999), (0.5, "u1", None), (float("nan"), "u2", None), (float("inf"), "i4", None),
     (-1.7976931348623157e308, "f4", -np.inf), (-9999, "f4", -9999)],
)  # fmt: skip
def test_nodata_is_a_sample_or_none_at_all(value: Any, kind: str, wanted: Any) -> None:
    assert sample_of(value, np.dtype(kind)) == wanted


def test_single_bands_of_stac_items_come_in_the_order_that_is_chosen(tmp_path: Path) -> None:
    assets = {}
    for number, name in enumerate(("blue", "green", "red", "nir", "swir16")):
        box = {"left": (0, 0, 300, 250), "right": (0, 200, 300, 420)}
        for side, path in zip(box, cut(DEEP[..., number : number + 1], box, tmp_path / name, nodata=NODATA), strict=True):
            assets.setdefault(side, {})[name] = {"href": str(path), "eo:bands": [{"name": name, "common_name": name}]}
    items = [{"type": "Feature", "id": side, "assets": each} for side, each in assets.items()]
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    whole = write_raster(tmp_path / "whole.tif", DEEP, nodata=NODATA)
    picked = (4, 0, 3, 2)
    stats = {"mean": [MEANS[k] for k in picked], "std": [STDS[k] for k in picked]}
    with open_image(tmp_path / "items.json", bands="file", channels=("swir16", "blue", "nir", "red"), normalise=stats) as image:
        assert_values(image.read(WHOLE), values_of(whole, picked))
        assert [band.name for band in image.info.bands] == ["swir16", "blue", "nir", "red"]


def test_pictures_show_red_green_and_blue(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", DEEP)
    said = {name: {"scale": 0.5, "mean": 500 + k, "std": 200} for k, name in enumerate(("nir", "red", "swir", "green", "blue"))}
    with open_image(path, bands=said, channels=("nir", "blue", "green", "red"), normalise="bands") as image:
        found = image.pictured().read(WHOLE).astype(int)
    wanted = [(DEEP[..., k] * 0.5 - (500 + k - 200)) / 400 * 255 for k in (1, 3, 4)]
    assert np.abs(found - np.clip(np.stack(wanted, -1), 0, 255)).max() <= 0.51
    with open_image(path, channels=(4, 1), normalise="none", window=(0, 1000)) as image:
        grey = image.pictured().read(WHOLE).astype(int)
        np.testing.assert_array_equal(image.read(WHOLE), DEEP[..., [4, 1]])
    assert np.abs(grey - np.clip(DEEP[..., [4, 4, 4]] / 1000 * 255, 0, 255)).max() <= 0.51


def test_notebook_and_viewer_take_it(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", DEEP[:200, :200], nodata=NODATA, transform=NORTH_UP)
    encoder = BandCorners(5).eval()
    with open_image(path, **FIVE) as image:
        tiles = tilestream.find_tiles(image, size=64, level=0, tissue="none")
        rows = tilestream.embed(image, tiles, encoder)
    stats = {"mean": MEANS, "std": STDS}
    given = config(
        path,
        tmp_path / "out",
        encoder={"name": "tests.support.encoders:band_corners", "args": {"bands": 5}},
        source={"channels": [0, 1, 2, 3, 4], "normalise": stats},
        tiles={"size": 64},
    )
    assert tilestream.run(given).exit_code == 0
    np.testing.assert_array_equal(opened(tmp_path / "out", "a").embeddings[:], rows)
    images, slide = Images(), viewed(tmp_path / "out" / "a.zarr")
    for look in (Look(), Look(channels=(3,), window=(0, 4000))):
        with images.using(0, slide, look) as (source, why):
            assert source is not None, why
            assert source.read((0, 0, 50, 60)).dtype == np.uint8


def refused_image(tmp_path: Path, kind: str) -> Path:
    if kind == "zarr":
        zarr.create_array(str(tmp_path / "a.zarr"), data=DEEP[..., 0])
        return tmp_path / "a.zarr"
    made = DEEP[:64, :64] + (1j if kind == "complex" else 0)
    return write_raster(tmp_path / "a.tif", made.astype(np.complex64) if kind == "complex" else made)


REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("deep", {"normalise": "prithvi"}, ConfigError, "'prithvi' is none of none, bands, prithvi-eo-2.*Did you mean prithvi-eo-2"),
    ("deep", {"normalise": {"mean": [1]}}, ConfigError, r"give one of none, bands, .*\{mean: \[...\], std: \[...\]\}"),
    ("deep", {"normalise": {"mean": [1, 2], "std": [1]}}, ConfigError, "2 means and 1 standard deviations"),
    ("deep", {"normalise": {"mean": [1], "std": [0]}}, ConfigError, r"std: \[0.0\], but each must be above 0"),
    ("deep", {"normalise": {"mean": [1], "std": ["x"]}}, ConfigError, r"std: \['x'\] is no list of numbers"),
    ("deep", {"channels": (0, 1), "normalise": {"mean": [1], "std": [1]}}, ConfigError, "1 means, but 2 channels"),
    ("deep", {"channels": (0, 9), "normalise": "none"}, InputError, r"source.channels: \[0, 9\], but axis S has indices 0 to 4"),
    ("deep", {"normalise": "none"}, InputError, "axis S is 5 long.*source: {channels"),
    ("deep", {"channels": (0,), "normalise": "prithvi-eo-2"}, ConfigError, "prithvi-eo-2 is of reflectance, but source.bands does not say"),
    ("deep", {"channels": (0,), "normalise": "bands"}, ConfigError, "source.bands says nothing of them"),
    ("deep", {"channels": (0,), "bands": "file", "normalise": "bands"}, InputError, "bands number 0: source.bands gives no mean and std"),
    ("deep", {"channels": (0,), "bands": "file", "normalise": "prithvi-eo-2"}, InputError, "number 0: it is for blue, green, red, nir08"),
    ("deep", {"channels": (0,), "normalise": "none", "icc": True}, ConfigError, "source.icc: true"),
    ("complex", {"channels": (0,), "normalise": "none"}, InputError, "samples are complex64"),
    (
        "zarr",
        {"channels": (0,), "normalise": "none", "window": (0, 1)},
        InputError,
        "source.normalise: is for GeoTIFF and other TIFF files",
    ),
]


@pytest.mark.parametrize(("kind", "choices", "error", "words"), REFUSED)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_what_cannot_be_is_refused(tmp_path: Path, kind: str, choices: dict[str, Any], error: type[Exception], words: str) -> None:
    path = refused_image(tmp_path, kind)
    with pytest.raises(error, match=words):
        open_image(path, **choices)


def test_a_config_says_it_and_its_recipe_says_what_presets_stand_for(tmp_path: Path) -> None:
    told = {"normalise": {"mean": [1, 2.5], "std": [3, 4]}, "channels": [4, "red"]}
    read = load_config(config("a.tif", tmp_path, source=told))
    assert load_config(read.model_dump(mode="json", by_alias=True)).source == read.source
    assert read.source.recorded()["normalise"] == {"mean": [1, 2.5], "std": [3, 4]}
    preset = load_config(config("a.tif", tmp_path, source={"bands": "hls-l30", "normalise": "prithvi-eo-2"})).source
    assert preset.channels == ("blue", "green", "red", "nir08", "swir16", "swir22")
    presets = preset.recorded()["presets"]
    assert presets["prithvi-eo-2"]["blue"] == [0.1087, 0.2248]
    assert presets["hls-l30"]["B02"] == [1e-4, 0]
    assert "presets" not in load_config(config("a.tif", tmp_path)).source.recorded()


CORNERS = "tests.support.encoders:band_corners"
CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"source": {"channels": [0, 1, 2, 3]}}, "source.channels: 4 channels, but it must be one .grey. or three.*source.normalise"),
    ({"source": {"normalise": "none"}}, "source.channels: missing. Write the bands that the encoder takes"),
    ({"source": {"normalise": {"mean": [1], "std": [1]}, "channels": [0, 1]}}, "source.normalise: 1 means for 2 channels"),
    ({"source": {"normalise": "clay-1.5-landsat"}}, "clay-1.5-landsat is of reflectance"),
    ({"source": {"bands": "nowhere.yaml"}}, r"source\.bands: nowhere\.yaml: cannot be read: No such file"),
    ({"source": {"bands": {"B1": {"std": 0}}}}, r"B1\.std: 0, but it must be above 0"),
    (
        {"source": {"normalise": "none", "channels": [0]}, "heads": {"cells": {"kind": "detect", "model": "x:y"}}},
        "cells reads pixels, which are colours, but source.normalise asks for values",
    ),
]


@pytest.mark.parametrize(("sections", "words"), CONFIGS)
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        load_config(config("a.tif", tmp_path, encoder=CORNERS, **sections))
    assert "source: source" not in str(refused.value)


ENCODERS: list[tuple[Any, dict[str, Any], str]] = [
    (CORNERS, {"channels": [0, 1, 2], "window": [0, 5000]}, "takes 6 bands, and tiles are colours"),
    (CORNERS, {"channels": [0, 1], "normalise": "none"}, "source.channels: 2 bands, but encoder .* takes 6"),
    ("tests.support.encoders:mean_rgb", {"channels": [0, 1], "normalise": "none"}, "2 bands, but encoder .* takes colours.*bands = 2"),
    ({"name": CORNERS, "args": {"bands": ["red", ""]}}, {"channels": [0, 1], "normalise": "none"}, r"has bands = \['red', ''\]"),
]


@pytest.mark.parametrize(("encoder", "source", "words"), ENCODERS)
def test_an_encoder_of_other_tiles_is_refused(tmp_path: Path, encoder: Any, source: dict[str, Any], words: str) -> None:
    path = write_raster(tmp_path / "a.tif", DEEP[:64, :64])
    with pytest.raises(ConfigError, match=words):
        tilestream.run(config(path, tmp_path / "out", encoder=encoder, source=source, tiles={"size": 64}))
