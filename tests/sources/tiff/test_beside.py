"""World files and .aux.xml beside a raster place it, and say of its bands, what rasterio takes of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
import tifffile
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

from tests.support.range_server import serving
from tests.support.rasters import NORTH_UP, PICTURE, write_raster
from tests.support.s3_server import leading_to
from tilestream.errors import OutageError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import Source, SourceOptions
from tilestream.sources.storage import fetching

WORLD = "10\n0\n0\n-10\n500005\n4999995\n"
PLACE = "<GeoTransform>500000, 10, 0, 5000000, 0, -10</GeoTransform>"
WKT = f"<SRS>{pyproj.CRS.from_epsg(32633).to_wkt('WKT1_GDAL').replace('<', '&lt;')}</SRS>"
OWN = {"crs": "EPSG:32634", "transform": Affine(20, 0, 1000, 0, -20, 2000)}


def aux(*words: str) -> str:
    return f"<PAMDataset>{''.join(words)}</PAMDataset>"


def band(number: int, *words: str) -> str:
    return f'<PAMRasterBand band="{number}">{"".join(words)}</PAMRasterBand>'


def every(*words: str) -> str:
    return "".join(band(number, *words) for number in (1, 2, 3))


def make_plain(path: Path) -> None:
    if path.suffix.lower() in (".tif", ".tiff"):
        tifffile.imwrite(path, PICTURE, photometric="rgb", tile=(64, 64), metadata=None)
    else:
        Image.fromarray(PICTURE).save(path)


def judged(path: Path) -> Any:
    """Transform (None where there is none), CRS, nodata, descriptions, as rasterio has them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            place = None if file.transform == Affine.identity() else tuple(file.transform)[:6]
            return place, file.crs, file.nodatavals, file.descriptions


def assert_placed(source: Source, path: Path) -> None:
    place, crs, _, _ = judged(path)
    geo = source.info.geo
    assert (geo is None) == (place is None)
    if geo is not None:
        assert geo.transform == pytest.approx(place, rel=1e-12)
        assert bool(geo.crs) == (crs is not None)
        assert crs is None or pyproj.CRS.from_user_input(geo.crs).equals(pyproj.CRS.from_user_input(crs), ignore_axis_order=True)
        side = None if crs is None else abs(place[0]) * 1e6
        assert source.info.mpp == (side if side is None else pytest.approx(side))


NAMES = [
    *(("a.tif", name, WORLD) for name in ("a.tfw", "a.TFW", "a.tifw", "a.wld", "a.WLD", "a.twf", "a.tif.tfw", "b.tfw")),
    *(("a.tiff", name, WORLD) for name in ("a.tfw", "a.tiffw", "a.tffw", "a.wld")),
    *(("a.TIF", name, WORLD) for name in ("a.tfw", "a.TFW")),
    *(("a.png", name, WORLD) for name in ("a.pgw", "a.pngw", "a.wld")),
    *(("a.jpg", name, WORLD) for name in ("a.jgw", "a.jpgw")),
    *(("a.jp2", name, WORLD) for name in ("a.j2w", "a.jp2w", "a.wld")),
    *(("a.tif", "a.tfw", text) for text in (WORLD.replace("-10", "-10,5"), "\n10\n\n0\n0\n-10\n1\n2\nmore", "8\n6\n6\n-8\n5e5\n5e6\n")),
    *(("a.tif", "a.tfw", text) for text in ("10 0 0 -10 1 2", "word\n" * 6, "", "0\n0\n0\n0\n1\n2\n", "\xff\xfe" * 9)),
    *(("a.tif", "a.tif.aux.xml", aux(*words)) for words in ((PLACE,), (WKT,), (PLACE, WKT), ("<SRS>EPSG:32633</SRS>", PLACE))),
    *(("a.png", "a.png.aux.xml", aux(*words)) for words in ((PLACE,), (PLACE, WKT))),
    *(("a.tif", name, aux(PLACE, WKT)) for name in ("a.aux.xml", "a.tiff.aux.xml")),
    *(("a.tif", "a.tif.aux.xml", text) for text in ("words", "", aux("<GeoTransform>1,2,3</GeoTransform>"), "<PAMDataset>")),
]


@pytest.mark.parametrize(("raster", "name", "text"), NAMES)
def test_a_raster_without_a_place_lies_where_rasterio_says(tmp_path: Path, raster: str, name: str, text: str) -> None:
    make_plain(tmp_path / raster)
    with open_source(str(tmp_path / raster), SourceOptions()) as source:
        alone = source.info.fingerprint
    (tmp_path / name).write_text(text, encoding="latin-1")
    with open_source(str(tmp_path / raster), SourceOptions()) as source:
        assert_placed(source, tmp_path / raster)
        assert (source.info.fingerprint == alone) == (source.info.properties.get("geo.beside") is None)
        assert source.info.geo is None or source.info.properties["geo.beside"] == name
    unread = [words for words in source.info.warnings if name in words]
    assert len(unread) == (text in ("10 0 0 -10 1 2", "word\n" * 6, "", "0\n0\n0\n0\n1\n2\n", "\xff\xfe" * 9, "words", "<PAMDataset>"))


@pytest.mark.parametrize("own", [OWN, {"crs": OWN["crs"], "transform": None}, {"crs": None, "transform": OWN["transform"]}])
@pytest.mark.parametrize("words", [None, (PLACE,), (WKT,), (PLACE, WKT), ("<Metadata/>",)])
@pytest.mark.parametrize("world", [False, True])
def test_of_several_places_that_counts_which_counts_for_rasterio(tmp_path: Path, own: Any, words: Any, world: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        path = write_raster(tmp_path / "a.tif", PICTURE, **own)
    if world:
        (tmp_path / "a.tfw").write_text(WORLD)
    if words is not None:
        (tmp_path / "a.tif.aux.xml").write_text(aux(*words))
    with open_source(str(path), SourceOptions()) as source:
        assert_placed(source, path)
        assert not source.info.warnings


NODATA = {
    "all the same": (None, every("<NoDataValue>7</NoDataValue>")),
    "other than its own": (0, every("<NoDataValue>7</NoDataValue>")),
    "its own in another place": (7, band(2, "<NoDataValue>7</NoDataValue>")),
    "none that a byte can be": (0, every("<NoDataValue>300</NoDataValue>")),
    "nan": (None, band(1, '<NoDataValue le_hex_equiv="000000000000F87F">nan</NoDataValue>')),
    "none": (7, every("<Description>x</Description>")),
}


@pytest.mark.parametrize("name", NODATA)
def test_nodata_is_what_rasterio_takes_for_it(tmp_path: Path, name: str) -> None:
    own, words = NODATA[name]
    picture = PICTURE.copy()
    picture[10:30, 40:90], picture[50:70, 40:90] = 7, 0
    path = write_raster(tmp_path / "a.tif", picture, nodata=own)
    (tmp_path / "a.tif.aux.xml").write_text(aux(words))
    (nodata,) = {repr(value) for value in judged(path)[2]}
    with open_source(str(path), SourceOptions()) as source, rasterio.open(path) as file:
        assert source.info.properties.get("geo.nodata", "None") == nodata.removesuffix(".0")
        hidden = (file.read_masks() == 0).all(axis=0)
        size = source.info.size
        found = source.read_region(0, Region(0, 0, size.height, size.width))
        np.testing.assert_array_equal(found, np.where(hidden[..., np.newaxis], 255, picture))
        assert not source.info.warnings


OF_BANDS = [(3, {2: 7}), (None, {1: 7, 2: 0}), (None, {3: 5}), (4, {1: 300}), (None, {1: 1, 2: 2, 3: 3}), (2, {1: 7, 2: 7, 3: 7})]
"""The file's own value, and of bands by number."""


@pytest.mark.parametrize("own", [None, "alpha", "separate"])
@pytest.mark.parametrize(("nodata", "said"), OF_BANDS)
def test_nodata_of_each_band_is_what_rasterio_takes_for_it(tmp_path: Path, nodata: Any, said: dict[int, int], own: Any) -> None:
    samples = np.random.default_rng(1).integers(0, 8, (130, 150, 4 if own == "alpha" else 3)).astype(np.uint8)
    if own == "alpha":
        samples[..., 3] = 255 * (samples[..., 3] > 2)
    path = write_raster(
        tmp_path / "a.tif", samples, nodata=nodata, **({"alpha": "yes"} if own == "alpha" else {"interleave": "band"} if own else {})
    )
    (tmp_path / "a.tif.aux.xml").write_text(aux(*(band(k, f"<NoDataValue>{value}</NoDataValue>") for k, value in said.items())))
    with rasterio.open(path) as file:
        known = file.nodatavals
        judge = (
            None if own == "alpha" else np.moveaxis(file.read_masks() > 0, 0, -1)
        )  # GDAL has alpha shadowed by nodata, and here both count
    outside = samples[..., 3] == 0 if own == "alpha" else np.zeros(samples.shape[:2], bool)
    valid = np.stack([np.ones(outside.shape, bool) if value is None else samples[..., k] != value for k, value in enumerate(known[:3])], -1)
    if judge is not None:
        np.testing.assert_array_equal(valid, judge)
    for channels in ((0, 1, 2), (2, 0), (1,)):
        with open_source(str(path), SourceOptions(channels=channels, normalise="none")) as source:
            wanted = np.where(valid & ~outside[..., np.newaxis], samples[..., :3].astype(np.float32), np.nan)[..., list(channels)]
            np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 130, 150)), wanted)
    for choice in (None, (2, 0, 1), (1,)):
        with open_source(str(path), SourceOptions(channels=choice)) as source:
            taken = list(choice or (0, 1, 2))
            hidden = outside | ~valid[..., taken].any(axis=-1)
            wanted = np.where(hidden[..., np.newaxis], 255, samples[..., taken])
            np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 130, 150)), np.broadcast_to(wanted, (130, 150, 3)))
            assert not source.info.warnings


def test_blocks_that_a_file_leaves_out_are_what_each_band_says(tmp_path: Path) -> None:
    samples = np.full((128, 128, 3), 9, np.uint8)
    samples[:64, :64, 1], samples[:64, :64, 2] = 5, 0
    tifffile.imwrite(
        tmp_path / "a.tif", np.moveaxis(samples, -1, 0), photometric="rgb", planarconfig="separate", tile=(64, 64), metadata=None
    )
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        counts, offsets = tif.pages[0].tags[325], tif.pages[0].tags[324]
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tif:
        page = tif.pages[0].aspage()
        for name, tag in (("TileByteCounts", counts), ("TileOffsets", offsets)):
            page.tags[name].overwrite([0 if k in (4, 8) else value for k, value in enumerate(tag.value)])
    (tmp_path / "a.tif.aux.xml").write_text(aux(band(2, "<NoDataValue>5</NoDataValue>")))
    with open_source(str(tmp_path / "a.tif"), SourceOptions(channels=(0, 1, 2), normalise="none")) as source, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(tmp_path / "a.tif") as file:
            judge = np.moveaxis(np.where(file.read_masks() > 0, file.read().astype(np.float32), np.nan), 0, -1)
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 128, 128)), judge)


def test_bands_are_called_and_scaled_as_rasterio_says(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", PICTURE)
    told = [band(k, f"<Description>{name}</Description><Scale>{k}</Scale><Offset>-{k}</Offset>") for k, name in ((1, "nir"), (3, "swir"))]
    (tmp_path / "a.tif.aux.xml").write_text(aux(*told))
    with (
        rasterio.open(path) as file,
        open_source(str(path), SourceOptions(channels=("swir", "nir"), normalise="none", bands="file")) as source,
    ):
        assert [name for name, said in zip(source.info.channels, file.descriptions, strict=True) if said] == ["nir", "swir"]
        wanted = np.stack([file.read(k).astype(np.float32) * file.scales[k - 1] + file.offsets[k - 1] for k in (3, 1)], axis=-1)
        np.testing.assert_allclose(source.read_region(0, Region(0, 0, file.height, file.width)), wanted, rtol=1e-6)


def test_statistics_that_other_programs_leave_beside_it_change_nothing(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", PICTURE)
    with open_source(str(path), SourceOptions()) as source:
        before = source.info
    said = '<Metadata><MDI key="STATISTICS_MEAN">127.5</MDI></Metadata><Histograms><HistItem><HistMin>0</HistMin></HistItem></Histograms>'
    (tmp_path / "a.tif.aux.xml").write_text(aux(every(said)))
    with open_source(str(path), SourceOptions()) as source:
        assert source.info == before


def test_points_that_are_not_read_are_told(tmp_path: Path) -> None:
    make_plain(tmp_path / "a.tif")
    points = "".join(f'<GCP Id="" Pixel="{x}" Line="{y}" X="{x}" Y="{-y}"/>' for x, y in ((0, 0), (10, 0), (0, 10)))
    (tmp_path / "a.tif.aux.xml").write_text(aux(f'<GCPList Projection="EPSG:32633">{points}</GCPList>'))
    with open_source(str(tmp_path / "a.tif"), SourceOptions()) as source:
        assert source.info.geo is None
        assert [words for words in source.info.warnings if "ground control points, which are not read; gdalwarp" in words]


def test_what_declares_entities_is_not_parsed(tmp_path: Path) -> None:
    make_plain(tmp_path / "a.tif")
    (tmp_path / "a.tif.aux.xml").write_text(f'<!DOCTYPE x [<!ENTITY e "EPSG:32633">]>{aux("<SRS>&e;</SRS>", PLACE)}')
    with open_source(str(tmp_path / "a.tif"), SourceOptions()) as source:
        assert source.info.geo is None
        assert [words for words in source.info.warnings if "is no XML of GDAL's" in words]


def test_files_of_a_mosaic_lie_where_their_world_files_say(tmp_path: Path) -> None:
    for number, left in enumerate((0, 192)):
        tifffile.imwrite(tmp_path / f"{number}.tif", PICTURE[:128, left : left + 192], photometric="rgb", tile=(64, 64), metadata=None)
        (tmp_path / f"{number}.tfw").write_text(f"10\n0\n0\n-10\n{500005 + 10 * left}\n4999995\n")
    with open_source(f"mosaic://{tmp_path}", SourceOptions()) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 128, 384)), PICTURE[:128, :384])
        assert source.info.geo is not None
        assert source.info.geo.transform == (10, 0, 500000, 0, -10, 5000000)


NODATA_7 = every("<NoDataValue>7</NoDataValue>")
OVER = {
    "place": {"a.tif.aux.xml": aux(PLACE, WKT)},
    "bands": {"a.tif.aux.xml": aux(band(2, "<Description>nir</Description>"), NODATA_7)},
    "world": {"a.tfw": WORLD},
    "crs and world": {"a.tif.aux.xml": '<?xml version="1.0"?>\n' + aux("<SRS>EPSG:32633</SRS>"), "a.tfw": WORLD},
    "both places": {"a.tif.aux.xml": aux(PLACE), "a.tfw": "8\n6\n6\n-8\n5e5\n5e6\n"},
    "no xml": {"a.tif.aux.xml": "<html>not there</html>", "a.tfw": "<html>not there</html>"},
    "nothing": {},
}


@pytest.mark.parametrize("way", ["http", "signed", "staged", "s3"])
@pytest.mark.parametrize("name", OVER)
def test_what_lies_beside_an_object_counts_as_beside_a_file(tmp_path: Path, name: str, way: str) -> None:
    (tmp_path / "web").mkdir()
    make_plain(tmp_path / "web" / "a.tif")
    options = SourceOptions(stage=str(tmp_path / "stage")) if way == "staged" else SourceOptions()

    def look(address: str) -> Any:
        with open_source(address, options) as source:
            size = source.info.size
            return source.info, source.read_region(0, Region(0, 0, size.height, size.width))

    with serving(tmp_path / "web") as server, leading_to(server.url("")):
        address = "s3://web/a.tif" if way == "s3" else server.url("a.tif", "?sig=hush" if way == "signed" else "")
        if way == "s3":
            server.folder = tmp_path
        before, _ = look(address)
        for file, text in OVER[name].items():
            (tmp_path / "web" / file).write_text(text)
        asked: list[str] = []
        server.fault = lambda _, path: asked.append(path.rpartition("/")[2]) or ""
        found, pixels = look(address)
        assert set(asked) <= {"a.tif", "a.tif.msk", "a.tif.aux.xml", "a.tfw"}
        assert max(asked.count(file) for file in set(asked) - {"a.tif"}) == (
            2 if way == "staged" and found.fingerprint != before.fingerprint else 1
        )
        with open_source(str(tmp_path / "web" / "a.tif"), SourceOptions()) as source:
            assert found.geo == source.info.geo
            assert found.channels == source.info.channels
            told = [key for key in source.info.properties if key.startswith("geo.")]
            assert {key: found.properties.get(key) for key in told} == {key: source.info.properties[key] for key in told}
            np.testing.assert_array_equal(pixels, source.read_region(0, Region(0, 0, *PICTURE.shape[:2])))
        assert (found.fingerprint == before.fingerprint) == (name in ("nothing", "no xml"))
        assert found.warnings == ()
        assert "hush" not in str(found.properties)


@pytest.mark.parametrize("way", ["http", "staged"])
def test_a_raster_that_has_a_place_is_not_asked_for_another(tmp_path: Path, way: str) -> None:
    (tmp_path / "web").mkdir()
    write_raster(tmp_path / "web" / "a.tif", PICTURE)
    (tmp_path / "web" / "a.tfw").write_text(WORLD)
    asked: list[str] = []
    options = SourceOptions(stage=str(tmp_path / "stage")) if way == "staged" else SourceOptions()
    with serving(tmp_path / "web") as server:
        server.fault = lambda _, path: asked.append(path) or ""
        with open_source(server.url("a.tif"), options) as source:
            assert source.info.geo is not None
            assert source.info.geo.transform == tuple(NORTH_UP)[:6]
    assert set(asked) == {"a.tif", "a.tif.aux.xml", "a.tif.msk"}
    assert max(asked.count(name) for name in ("a.tif.aux.xml", "a.tif.msk")) == 1


def test_a_copy_has_one_fingerprint_with_the_object_whatever_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    write_raster(tmp_path / "web" / "a.tif", PICTURE)
    (tmp_path / "web" / "a.tif.aux.xml").write_text(aux(NODATA_7))
    write_raster(tmp_path / "web" / "a.tif.msk", np.full((*PICTURE.shape[:2], 1), 255, np.uint8))
    with serving(tmp_path / "web") as server:
        there, copied = (open_source(server.url("a.tif"), SourceOptions(stage=stage)) for stage in (None, str(tmp_path / "stage")))
        with there, copied:
            assert there.info.fingerprint == copied.info.fingerprint
            assert there.info.properties["geo.nodata"] == copied.info.properties["geo.nodata"] == "7"


def test_an_outage_beside_an_object_is_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSES", (0.01,))
    make_plain(tmp_path / "a.tif")
    with serving(tmp_path) as server:
        server.fault = lambda _, path: "500" if path.endswith(".aux.xml") else ""
        with pytest.raises(OutageError, match=r"a\.tif\.aux\.xml: its storage does not answer"):
            open_source(server.url("a.tif"), SourceOptions())


@pytest.mark.parametrize("way", ["http", "staged"])
@pytest.mark.parametrize("sides", [(20000, 20000), (20000, 10000)])
def test_a_slide_that_states_its_pixels_size_is_asked_for_a_mask_alone(tmp_path: Path, sides: tuple[int, int], way: str) -> None:
    (tmp_path / "web").mkdir()
    tifffile.imwrite(
        tmp_path / "web" / "a.tif", PICTURE, tile=(64, 64), photometric="rgb", resolution=sides, resolutionunit=3, metadata=None
    )
    (tmp_path / "web" / "a.tfw").write_text(WORLD)
    asked: list[str] = []
    options = SourceOptions(mpp=0.25, stage=str(tmp_path / "stage") if way == "staged" else None)
    with serving(tmp_path / "web") as server:
        server.fault = lambda _, path: asked.append(path) or ""
        with open_source(server.url("a.tif"), options) as source:
            assert source.info.geo is None
            assert source.info.mpp == 0.25
    assert set(asked) == {"a.tif", "a.tif.msk"}
