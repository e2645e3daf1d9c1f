"""Alpha in a VRT: what GDAL makes of it, as rasterio reads it, composited on white."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from tests.support.rasters import NORTH_UP, write_raster
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import Source, SourceOptions

HEIGHT, WIDTH, STEP = 96, 160, 70
COLOURS = ("Red", "Green", "Blue")
SIMPLE, COMPLEX, MASKED = ("SimpleSource", ""), ("ComplexSource", ""), ("ComplexSource", "<UseMaskBand>true</UseMaskBand>")


def make_file(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    samples[..., 3] = np.where(rng.random((HEIGHT, WIDTH)) < 0.3, 0, 255)
    samples[20:40, 30:120, 3] = 127
    samples[50:70, 30:140, 3] = 0
    write_raster(path, samples, photometric="RGB", alpha="YES")


def write_vrt(path: Path, bands: Sequence[tuple[str, Sequence[tuple[str, int, int]]]], kind: tuple[str, str]) -> Path:
    """A VRT of bands, each with the colour that it is said to be and its sources: file, band from 1 on, column."""
    element, more = kind
    size = f'xSize="{WIDTH}" ySize="{HEIGHT}"'
    words = [f'<VRTDataset rasterXSize="{WIDTH + STEP}" rasterYSize="{HEIGHT}"><SRS>EPSG:32633</SRS>']
    a, b, c, d, e, f, *_ = NORTH_UP
    words.append(f"<GeoTransform>{c},{a},{b},{f},{d},{e}</GeoTransform>")
    for number, (colour, sources) in enumerate(bands, 1):
        words.append(f'<VRTRasterBand dataType="Byte" band="{number}"><ColorInterp>{colour}</ColorInterp>')
        words += [
            f'<{element}><SourceFilename relativeToVRT="1">{file}</SourceFilename><SourceBand>{band}</SourceBand>'
            f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{x}" yOff="0" {size}/>{more}</{element}>'
            for file, band, x in sources
        ]
        words.append("</VRTRasterBand>")
    path.write_text("".join([*words, "</VRTDataset>"]))
    return path


def on_white(path: Path) -> NDArray[np.uint8]:
    """(h, w, c) uint8: what rasterio reads, its colours in the order red, green, blue under its alpha."""
    with rasterio.open(path) as file:
        samples = np.moveaxis(file.read(), 0, -1).astype(np.int64)
        said = [each.name for each in file.colorinterp]
    alpha = samples[..., said.index("alpha"), np.newaxis]
    colour = samples[..., [k for k, name in enumerate(said) if name != "alpha"]]
    made: NDArray[np.uint8] = ((colour * alpha + 127) // 255 + 255 - alpha).astype(np.uint8)
    return made


def whole(source: Source) -> Any:
    size = source.info.size
    return source.read_region(0, Region(0, 0, size.height, size.width))


def both(band: int) -> list[tuple[str, int, int]]:
    return [("a.tif", band, 0), ("b.tif", band, STEP)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rgba")
    make_file(folder / "a.tif", 1)
    make_file(folder / "b.tif", 2)
    with rasterio.open(folder / "b.tif") as file:
        write_raster(folder / "shape.tif", file.read(4)[..., np.newaxis])
        write_raster(folder / "plain.tif", np.moveaxis(file.read([1, 2, 3]), 0, -1))
    return folder


LAYOUTS = {
    "as they are": [*((name, both(k)) for k, name in enumerate(COLOURS, 1)), ("Alpha", both(4))],
    "turned round": [*((name, both(k)) for k, name in zip((3, 2, 1), COLOURS, strict=True)), ("Alpha", both(4))],
    "alpha first": [("Alpha", both(4)), *((name, both(k)) for k, name in enumerate(COLOURS, 1))],
    "grey": [("Gray", both(2)), ("Alpha", both(4))],
    "another band is alpha": [*((name, both(k)) for k, name in zip((1, 2, 4), COLOURS, strict=True)), ("Alpha", both(3))],
}


@pytest.mark.parametrize("kind", [SIMPLE, COMPLEX, MASKED], ids=["simple", "complex", "masked"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_band_that_a_vrt_calls_alpha_is_alpha(files: Path, layout: str, kind: tuple[str, str]) -> None:
    path = write_vrt(files / f"{layout}-{kind[0]}-{bool(kind[1])}.vrt", LAYOUTS[layout], kind)
    wanted = on_white(path)
    numbers = [number for number, (colour, _) in enumerate(LAYOUTS[layout]) if colour != "Alpha"]
    for channels in (None, tuple(numbers), (numbers[0],)):
        shown = wanted if channels is None or len(channels) > 1 else wanted[..., :1]
        with open_source(str(path), SourceOptions(channels=channels)) as source:
            np.testing.assert_array_equal(whole(source), np.broadcast_to(shown, (*shown.shape[:2], 3)))


def test_alpha_in_a_file_of_its_own_lies_on_the_colours_of_another(files: Path) -> None:
    bands = [(name, [("plain.tif", k, STEP)]) for k, name in enumerate(COLOURS, 1)]
    path = write_vrt(files / "apart.vrt", [*bands, ("Alpha", [("shape.tif", 1, STEP)])], SIMPLE)
    with open_source(str(path), SourceOptions()) as source:
        np.testing.assert_array_equal(whole(source), on_white(path))


def test_alpha_that_is_chosen_is_a_band_as_any_other(files: Path) -> None:
    path = write_vrt(files / "chosen.vrt", LAYOUTS["turned round"], SIMPLE)
    with rasterio.open(path) as file, open_source(str(path), SourceOptions(channels=(3,))) as source:
        np.testing.assert_array_equal(whole(source)[..., 0], file.read(4))


@pytest.mark.parametrize("layout", ["as they are", "turned round", "alpha first"])
@pytest.mark.parametrize("kind", [SIMPLE, MASKED], ids=["simple", "masked"])
def test_values_are_missing_where_alpha_is_nothing(files: Path, layout: str, kind: tuple[str, str]) -> None:
    path = write_vrt(files / f"values-{layout}-{bool(kind[1])}.vrt", LAYOUTS[layout], kind)
    numbers = tuple(number for number, (colour, _) in enumerate(LAYOUTS[layout]) if colour != "Alpha")
    with rasterio.open(path) as file:
        inside = file.read(next(k for k, each in enumerate(file.colorinterp, 1) if each.name == "alpha")) > 0
        wanted = np.where(inside[..., np.newaxis], np.moveaxis(file.read([k + 1 for k in numbers]), 0, -1), np.nan)
    with open_source(str(path), SourceOptions(channels=numbers, normalise="none")) as source:
        np.testing.assert_array_equal(whole(source), wanted)
        pictured = source.pictured()
        absent = whole(pictured)[~inside]
        assert (absent == 255).all()


@pytest.mark.parametrize("options", [{}, {"interleave": "band"}], ids=["pixel", "band"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_values_of_a_file_are_missing_where_rasterio_masks_them(tmp_path: Path, dtype: str, options: dict[str, str]) -> None:
    rng = np.random.default_rng(3)
    samples = rng.integers(1, np.iinfo(dtype).max, (HEIGHT, WIDTH, 4), dtype=dtype)
    samples[..., 3] *= rng.random((HEIGHT, WIDTH)) < 0.5
    path = write_raster(tmp_path / "a.tif", samples, photometric="RGB", alpha="YES", **options)
    with rasterio.open(path) as file:
        wanted = np.moveaxis(file.read([3, 1], masked=True).astype(np.float32).filled(np.nan), 0, -1)
    assert np.isnan(wanted).any()
    with open_source(str(path), SourceOptions(channels=(2, 0), normalise="none")) as source:
        np.testing.assert_array_equal(whole(source), wanted)
        assert (whole(source.pictured())[np.isnan(wanted[..., 0])] == 255).all()


def test_masks_count_where_the_vrt_asks_for_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for name in "ab":
        path = write_raster(tmp_path / f"{name}.tif", rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
        with rasterio.open(path, "r+") as file:
            mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
            mask[30:60, 20:90] = 0
            file.write_mask(mask)
    bands = [(name, both(k)) for k, name in enumerate(COLOURS, 1)]
    plain, asked = (write_vrt(tmp_path / f"{number}.vrt", bands, kind) for number, kind in enumerate((SIMPLE, MASKED)))
    with rasterio.open(plain) as file, open_source(str(plain), SourceOptions()) as source:
        np.testing.assert_array_equal(whole(source), np.moveaxis(file.read(), 0, -1))
    with rasterio.open(asked) as file, open_source(str(asked), SourceOptions()) as source:
        wanted, hidden = np.moveaxis(file.read(), 0, -1), np.zeros((HEIGHT, WIDTH + STEP), bool)
        hidden[30:60, 20:STEP] = hidden[30:60, WIDTH : STEP + 90] = True  # in both files, or in the only one
        hidden[30:60, STEP + 20 : 90] = True
        np.testing.assert_array_equal(whole(source), np.where(hidden[..., np.newaxis], 255, wanted))
        with open_source(str(plain), SourceOptions()) as other:
            assert source.info.fingerprint != other.info.fingerprint
