"""Bands by name, common name and wavelength; windows in the values that scale and offset make, per channel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml

from tests.support.rasters import OVERLAPPING, cut, merged, write_raster
from tests.support.runs import config
from tilestream.config.bands.band import PRESETS, Band
from tilestream.config.load import load_config
from tilestream.errors import ConfigError, InputError
from tilestream.sources import open_image
from tilestream.viewer.pixels import source_options

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 5000, (300, 420, 4)).astype(np.uint16)
"""Blue, green, red, nir, as a product of Sentinel-2 stores them."""


def eight_bit(values: Any, low: float, high: float) -> Any:
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def assert_same(found: Any, wanted: Any) -> None:
    """But for values that lie on the border of two grey levels, to the last bit of a float."""
    apart = np.abs(found.astype(int) - wanted)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.002


def described(path: Path, names: tuple[str, ...], **said: Any) -> Path:
    write_raster(path, DEEP)
    with rasterio.open(path, "r+") as file:
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)
            file.update_tags(number, ns="IMAGERY", **{key: value[number - 1] for key, value in said.items()})
    return path


@pytest.mark.parametrize("channels", [("red", "green", "nir"), ("B04", "B03", "B08"), ("665nm", "0.56um", "840 nm"), ("b4", 1, "NIR")])
def test_bands_are_known_by_their_product(tmp_path: Path, channels: Any) -> None:
    path = described(tmp_path / "a.tif", ("B02", "B03", "B04", "B08"))
    channels = tuple("B04" if each == "b4" else each for each in channels)
    with open_image(path, bands="sentinel-2-04.00", channels=channels, window=(0, 0.3)) as image:
        assert_same(image.read((0, 0, 300, 420)), eight_bit(DEEP[..., [2, 1, 3]] * 1e-4 - 0.1, 0, 0.3))


def test_what_a_file_says_of_its_bands_is_taken_where_that_is_asked_for(tmp_path: Path) -> None:
    path = described(tmp_path / "a.tif", ("b", "g", "r", "n"), CENTRAL_WAVELENGTH_UM=("0.49", "0.56", "0.665", "0.84"))
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (1e-4, 2e-4, 1e-4, 1e-4), (0, 0, -0.1, 0)
    windows = ((0, 0.4), (0, 0.8), (-0.05, 0.3))
    with open_image(path, bands="file", channels=("665nm", "560nm", "490nm"), window=windows) as image:
        found = image.read((0, 0, 300, 420))
    for k, (band, scale, offset) in enumerate(((2, 1e-4, -0.1), (1, 2e-4, 0), (0, 1e-4, 0))):
        assert_same(found[..., k], eight_bit(DEEP[..., band] * scale + offset, *windows[k]))
    with open_image(path, channels=("r", "g", "b"), window=((0, 5000), (0, 4000), (100, 300))) as image:  # samples as they are stored
        found = image.read((0, 0, 300, 420))
    for k, (band, window) in enumerate(((2, (0, 5000)), (1, (0, 4000)), (0, (100, 300)))):
        assert_same(found[..., k], eight_bit(DEEP[..., band].astype(float), *window))


def test_a_mosaic_and_stac_items_know_them_too(tmp_path: Path) -> None:
    paths = cut(DEEP, OVERLAPPING, tmp_path / "parts", nodata=0)
    judge = merged(paths, tmp_path / "whole.tif")
    said = {
        "B02": {"wavelength": 0.49},
        "B03": {"wavelength": 0.56},
        "B04": {"wavelength": 0.665, "scale": 1e-4, "offset": -0.1},
        "B08": None,
    }
    choices: dict[str, Any] = {"bands": said, "channels": ("B04",), "window": (0, 0.3)}
    with open_image(f"mosaic://{tmp_path / 'parts'}", **choices) as found, open_image(judge, **choices) as wanted:
        np.testing.assert_array_equal(found.read((0, 0, 300, 420)), wanted.read((0, 0, 300, 420)))
    for band, key in enumerate(("blue", "red", "nir")):
        write_raster(tmp_path / f"{key}.tif", DEEP[..., [0, 2, 3]][..., band : band + 1])
    assets = {
        key: {
            "href": f"{key}.tif",
            "eo:bands": [{"name": name, "center_wavelength": light}],
            "raster:bands": [{"scale": 1e-4, "offset": -0.1}],
        }
        for key, name, light in (("blue", "B02", 0.49), ("red", "B04", 0.665), ("nir", "B08", 0.842))
    }
    (tmp_path / "item.json").write_text(json.dumps({"type": "Feature", "id": "x", "assets": assets}))
    with open_image(tmp_path / "item.json", bands="file", channels=("840nm", "B04", "blue"), window=(0, 0.3)) as image:
        assert_same(image.read((0, 0, 300, 420)), eight_bit(DEEP[..., [3, 2, 0]] * 1e-4 - 0.1, 0, 0.3))


def test_presets_say_what_products_store() -> None:
    assert len(PRESETS["sentinel-2"]) == 12
    assert PRESETS["landsat-c2-l2"][3] == Band("SR_B4", "red", 0.655, 2.75e-5, -0.2)
    for bands in PRESETS.values():
        assert len({band.common for band in bands}) == len(bands)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"bands": "sentinel"}, ConfigError, "'sentinel' is none of file, sentinel-2.*Did you mean sentinel-2"),
    ({"bands": {"B04": {"scale": 0}}}, ConfigError, r"B04\.scale: is 0"),
    ({"bands": {"B04": {"gain": 2}}}, ConfigError, "B04: give common, mean, offset, scale, std, wavelength of the band"),
    ({"bands": "hls-l30", "channels": (0,), "window": (0, 1)}, InputError, "hls-l30 has 7 bands .* and the file has 4"),
    ({"bands": "file", "channels": ("665nm",), "window": (0, 1)}, InputError, "'665nm': no band lies within 20 nm of it; known are none"),
    ({"channels": (0, 1, 2), "window": ((0, 1), (0, 2))}, ConfigError, "source.window: 2 pairs for 3 channels"),
]


@pytest.mark.parametrize(("choices", "kind", "words"), REFUSED)
def test_what_cannot_be_is_refused(tmp_path: Path, choices: dict[str, Any], kind: type[Exception], words: str) -> None:
    path = write_raster(tmp_path / "a.tif", DEEP)
    with pytest.raises(kind, match=words):
        open_image(path, **choices)


def test_a_config_says_it_and_its_recipe_says_it_again(tmp_path: Path) -> None:
    told = {"bands": {"B04": {"scale": 1e-4, "offset": -0.1, "wavelength": 0.665}}, "channels": ["665nm"], "window": [[0, 0.3]]}
    read = load_config(yaml.safe_load(yaml.safe_dump(config("a.tif", tmp_path, source=told))))
    dumped = read.source.model_dump(mode="json")
    assert dumped["bands"] == {"B04": {"offset": -0.1, "scale": 1e-4, "wavelength": 0.665}}
    assert load_config(read.model_dump(mode="json", by_alias=True)).source == read.source

    class Stored:
        recipe, source, mpp = {"source": dumped}, {"address": "a.tif", "backend": "tiff"}, None

    options = source_options(Stored())  # type: ignore[arg-type]
    assert (options.bands, options.window) == ((Band("B04", "", 0.665, 1e-4, -0.1),), ((0, 0.3),))
    with pytest.raises(ConfigError, match=r"source\.bands: 'landsat' is none of file"):
        load_config(config("a.tif", tmp_path, source={"bands": "landsat"}))
