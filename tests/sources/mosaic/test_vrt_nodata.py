"""What stands for nothing in the bands of a VRT, each by itself: values are missing, and pictures white, where rasterio masks them."""

from __future__ import annotations

from itertools import product
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

HEIGHT, WIDTH, STEP, FREE = 64, 96, 48, 20
KINDS = {"uint8": "Byte", "int16": "Int16", "float32": "Float32"}
SAID = [(None, None, None), (0, 0, 0), (0, 2, None), (4, 4, 4), (None, 1, 1), (300, 1, 2), (float("nan"), 0, None)]
OF_SOURCES = [(None, None, None), (0, 0, 0), (0, 2, None)]


@pytest.fixture(scope="module", params=[(dtype, own) for dtype in KINDS for own in (None, 1)], ids=lambda each: f"{each[0]}-{each[1]}")
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    dtype, own = request.param
    folder, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    for name in "ab":
        samples = rng.integers(0, 6, (HEIGHT, WIDTH, 3)).astype(dtype) - (np.dtype(dtype).kind != "u")
        write_raster(folder / f"{name}.tif", samples.astype(dtype), nodata=own)
    return folder, dtype


def write_vrt(folder: Path, dtype: str, order: tuple[int, ...], said: tuple[Any, ...], of_sources: tuple[Any, ...]) -> Path:
    a, b, c, d, e, f, *_ = NORTH_UP
    words = [f'<VRTDataset rasterXSize="{WIDTH + STEP + FREE}" rasterYSize="{HEIGHT}"><SRS>EPSG:32633</SRS>']
    words.append(f"<GeoTransform>{c},{a},{b},{f},{d},{e}</GeoTransform>")
    size = f'xSize="{WIDTH}" ySize="{HEIGHT}"'
    for number, (band, nodata, source) in enumerate(zip(order, said, of_sources, strict=True), 1):
        words.append(f'<VRTRasterBand dataType="{KINDS[dtype]}" band="{number}">')
        words.append("" if nodata is None else f"<NoDataValue>{nodata}</NoDataValue>")
        for name, x in (("a.tif", 0), ("b.tif", STEP)):
            words.append(f'<ComplexSource><SourceFilename relativeToVRT="1">{name}</SourceFilename><SourceBand>{band}</SourceBand>')
            words.append(f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{x}" yOff="0" {size}/>')
            words.append(f"{'' if source is None else f'<NODATA>{source}</NODATA>'}</ComplexSource>")
        words.append("</VRTRasterBand>")
    path = folder / "all.vrt"
    path.write_text("".join([*words, "</VRTDataset>"]))
    return path


def judged(path: Path, order: tuple[int, ...], of_sources: tuple[Any, ...]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """(h, w, 3) samples as rasterio reads them, and where it masks none and some file gives something: it takes what none gives for 0."""
    given = np.zeros((3, HEIGHT, WIDTH + STEP + FREE), bool)
    for name, x in (("a.tif", 0), ("b.tif", STEP)):
        with rasterio.open(path.with_name(name)) as file:
            for k, (samples, nothing) in enumerate(zip(file.read(list(order)), of_sources, strict=True)):
                given[k, :, x : x + WIDTH] |= np.ones(samples.shape, bool) if nothing is None else samples != nothing
    with rasterio.open(path) as file:
        samples, valid = file.read(), (file.read_masks() > 0) & given
    return np.moveaxis(samples, 0, -1), np.moveaxis(valid, 0, -1)


def whole(source: Source) -> Any:
    size = source.info.size
    return source.read_region(0, Region(0, 0, size.height, size.width))


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)], ids=["as_they_are", "turned_round"])
def test_each_band_has_its_own_value_for_nothing(files: tuple[Path, str], order: tuple[int, ...]) -> None:
    folder, dtype = files
    for said, of_sources in product(SAID, OF_SOURCES):
        path = write_vrt(folder, dtype, order, said, of_sources)
        samples, valid = judged(path, order, of_sources)
        for channels in ((0, 1, 2), (2, 0), (1,)):
            wanted = np.where(valid, samples.astype(np.float32), np.nan)[..., list(channels)]
            with open_source(str(path), SourceOptions(channels=channels, normalise="none")) as source:
                np.testing.assert_array_equal(whole(source), wanted, err_msg=f"{said} {of_sources} {channels}")
        for channels in ((2, 0, 1), (1,)):
            hidden = ~valid[..., list(channels)].any(axis=-1)
            with open_source(str(path), SourceOptions(channels=channels, window=(-1, 254))) as source:
                shown = np.where(valid, samples, 0)[..., list(channels)].astype(np.int64) + 1
                found, seen = whole(source), valid[..., list(channels)]
                assert (found[hidden] == 255).all()
                assert (found[..., : len(channels)][seen & ~hidden[..., np.newaxis]] == shown[seen & ~hidden[..., np.newaxis]]).all()


def test_values_and_their_picture_hide_the_same(files: tuple[Path, str]) -> None:
    folder, dtype = files
    path = write_vrt(folder, dtype, (1, 2, 3), (0, 2, 1), (None, None, None))
    _, valid = judged(path, (1, 2, 3), (None, None, None))
    with open_source(str(path), SourceOptions(channels=(2, 1, 0), normalise="none")) as source:
        np.testing.assert_array_equal(np.isnan(whole(source)), ~valid[..., ::-1])
        hidden = ~valid.any(axis=-1)
        assert hidden[:, : STEP + WIDTH].any()
        assert (whole(source.pictured())[hidden] == 255).all()
