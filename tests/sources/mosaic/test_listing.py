"""How mosaics are named: VRTs as GDAL writes and reads them, STAC items, folders and lists; what a VRT computes is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
from rasterio.shutil import copy
from rasterio.transform import Affine

from tests.sources.mosaic.test_source import whole
from tests.support.range_server import serving
from tests.support.rasters import ALIGNED, HOLED, NORTH_UP, OVERLAPPING, PICTURE, SOUTH_UP, cut, write_raster
from tilestream.config.slide_list import list_slides
from tilestream.errors import ConfigError, InputError
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions

SRS = rasterio.crs.CRS.from_epsg(32633).to_wkt()


def source(
    name: str, band: int, place: tuple[int, int, int, int], taken: tuple[int, int] = (0, 0), more: str = "", kind: str = "Simple"
) -> str:
    y, x, height, width = place
    rects = f'<SrcRect xOff="{taken[1]}" yOff="{taken[0]}" xSize="{width}" ySize="{height}"/><DstRect xOff="{x}" yOff="{y}" xSize="{width}" ySize="{height}"/>'
    return f'<{kind}Source><SourceFilename relativeToVRT="1">{name}</SourceFilename><SourceBand>{band}</SourceBand>{rects}{more}</{kind}Source>'


def vrt(
    size: tuple[int, int],
    bands: list[str],
    *,
    nodata: Any = None,
    transform: Affine = NORTH_UP,
    dtype: str = "Byte",
    names: Any = (),
    srs: str = SRS,
) -> str:
    a, b, c, d, e, f = tuple(transform)[:6]
    told = "" if nodata is None else f"<NoDataValue>{nodata}</NoDataValue>"
    made = "".join(
        f'<VRTRasterBand dataType="{dtype}" band="{k}">{f"<Description>{names[k - 1]}</Description>" if names else ""}{told}{sources}</VRTRasterBand>'
        for k, sources in enumerate(bands, 1)
    )
    return f'<VRTDataset rasterXSize="{size[1]}" rasterYSize="{size[0]}"><SRS dataAxisToSRSAxisMapping="1,2">{srs.replace("&", "&amp;").replace("<", "&lt;")}</SRS><GeoTransform>{c}, {a}, {b}, {f}, {d}, {e}</GeoTransform>{made}</VRTDataset>'


def place(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return box[0], box[1], box[2] - box[0], box[3] - box[1]


def as_rasterio_reads(path: Path, nodata: int | None = None) -> Any:
    with rasterio.open(path) as judge:
        pixels = np.moveaxis(judge.read(), 0, -1)
    if nodata is not None:
        pixels = np.where((pixels == nodata).all(axis=-1, keepdims=True), np.uint8(255), pixels)
    return pixels


@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP])
def test_a_vrt_is_what_gdal_reads_of_it(tmp_path: Path, transform: Affine) -> None:
    cut(PICTURE, OVERLAPPING, tmp_path / "parts", transform)
    for number, path in enumerate(sorted((tmp_path / "parts").iterdir())):
        with rasterio.open(path, "r+") as file:
            file.write(file.read() // 2 + 20 * np.uint8(number))
    bands = ["".join(source(f"parts/{name}.tif", band, place(box)) for name, box in OVERLAPPING.items()) for band in (1, 2, 3)]
    (tmp_path / "whole.vrt").write_text(vrt((300, 420), bands, transform=transform))
    with open_source(str(tmp_path / "whole.vrt"), SourceOptions()) as found, rasterio.open(tmp_path / "whole.vrt") as judge:
        np.testing.assert_array_equal(whole(found), np.moveaxis(judge.read(), 0, -1))
        assert found.info.geo is not None
        assert found.info.geo.transform == tuple(judge.transform)[:6]
        assert (found.info.geo.code, found.info.mpp) == ("EPSG:32633", 10e6)
        assert found.info.reason.startswith("mosaic: 4 files of a VRT, the last source of the VRT on top")


WKT = rasterio.crs.CRS.from_string("+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84 +units=us-ft").to_wkt()
PLACES = {
    "the files' own": ("EPSG:32633", NORTH_UP),
    "the files' own without a code": ('PROJCS["mine' + SRS[SRS.index('",GEOGCS[') : SRS.rindex(",AUTHORITY")] + "]", NORTH_UP),
    "another zone": ("EPSG:32634", NORTH_UP),
    "feet": ("EPSG:2263", NORTH_UP),
    "degrees": ("EPSG:4326", Affine(1e-4, 0, 12, 0, -1e-4, 45)),
    "without a code": (WKT, NORTH_UP),
    "parameters": ("+proj=utm +zone=31 +datum=WGS84 +units=m", NORTH_UP),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_vrt_lies_where_it_says_whatever_its_files_say(tmp_path: Path, name: str) -> None:
    cut(PICTURE, HOLED, tmp_path / "parts")
    srs, transform = PLACES[name]
    bands = ["".join(source(f"parts/{part}.tif", band, place(box)) for part, box in HOLED.items()) for band in (1, 2, 3)]
    path = tmp_path / "made" / "all.vrt"
    path.parent.mkdir()
    path.write_text(vrt(PICTURE.shape[:2], bands, transform=transform, srs=srs).replace("parts/", "../parts/"))
    link = tmp_path / "link.vrt"
    link.symlink_to(path)
    with rasterio.open(link) as judge:
        for address in (path, link):
            with open_source(str(address), SourceOptions()) as found:
                geo = found.info.geo
                assert geo is not None
                assert geo.transform == pytest.approx(tuple(judge.transform)[:6], rel=1e-12)
                assert pyproj.CRS.from_user_input(geo.crs).equals(pyproj.CRS.from_user_input(judge.crs), ignore_axis_order=True)
                side = None if judge.crs.is_geographic else pytest.approx(10e6 * judge.crs.linear_units_factor[1])
                assert found.info.mpp == side
                np.testing.assert_array_equal(whole(found)[:100, :150], as_rasterio_reads(link)[:100, :150])


@pytest.mark.parametrize("complex_too", [True, False])
def test_nodata_and_windows_of_a_vrt_are_gdals(tmp_path: Path, complex_too: bool) -> None:
    picture = PICTURE.copy()
    picture[60:180, 180:300] = 7
    cut(picture, OVERLAPPING, tmp_path, nodata=7)
    places = {"a": ((0, 0, 190, 250), (10, 0)), "b": ((5, 190, 100, 200), (20, 20)), "d": ((150, 200, 150, 220), (0, 0))}
    more, kind = ("<NODATA>7</NODATA>", "Complex") if complex_too else ("", "Simple")
    bands = ["".join(source(f"{name}.tif", band, at, taken, more, kind) for name, (at, taken) in places.items()) for band in (1, 2, 3)]
    (tmp_path / "whole.vrt").write_text(vrt((310, 430), bands, nodata=7))
    with open_source(str(tmp_path / "whole.vrt"), SourceOptions()) as found:
        np.testing.assert_array_equal(whole(found), as_rasterio_reads(tmp_path / "whole.vrt", 7))


def test_bands_of_their_own_files_are_one_image(tmp_path: Path) -> None:
    for band, name in enumerate(("B02", "B03", "B04", "B8A")):
        for half, x0 in (("w", 0), ("e", 256)):
            part = (PICTURE[:192, x0 : x0 + 164, min(band, 2)].astype(np.uint16) + band)[..., np.newaxis] * 10
            write_raster(tmp_path / f"{name}_{half}.tif", part, NORTH_UP @ Affine.translation(x0, 0), nodata=0)
    names = ("B02", "B03", "B04", "B8A")
    bands = ["".join(source(f"{name}_{half}.tif", 1, (0, x, 192, 164)) for half, x in (("w", 0), ("e", 256))) for name in names]
    (tmp_path / "stack.vrt").write_text(vrt((192, 420), bands, nodata=0, dtype="UInt16", names=names))
    copy(tmp_path / "stack.vrt", tmp_path / "stack.tif", driver="GTiff")
    items = [{"id": half, "assets": {name: {"href": f"./{name}_{half}.tif", "type": "image/tiff; application=geotiff", "eo:bands": [{"name": name, "common_name": common}]} for name, common in zip(names, ("blue", "green", "red", "nir08"), strict=True)} | {"thumb": {"href": "t.tif", "roles": ["thumbnail"]}, "meta": {"href": "m.xml"}}} for half in "we"]  # fmt: skip
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    options = SourceOptions(channels=("B04", "B03", "B02"), window=(0, 2600))
    with open_source(str(tmp_path / "stack.tif"), options) as judge:
        wanted = whole(judge)
        with open_source(str(tmp_path / "stack.vrt"), options) as found:
            np.testing.assert_array_equal(whole(found), wanted)
        for channels in (options.channels, ("red", "green", "blue"), (2, 1, 0)):
            with open_source(str(tmp_path / "items.json"), SourceOptions(channels=channels, window=(0, 2600))) as found:
                np.testing.assert_array_equal(whole(found), wanted)
                assert found.info.properties["channels"] == "0: B02, 1: B03, 2: B04, 3: B8A"
    with pytest.raises(InputError, match=r"bands is 4 long \(0: B02.*samples are uint16.*source: \{channels: .*, window: "):
        open_source(str(tmp_path / "items.json"), SourceOptions())
    for name in ("B02", "B03", "B04"):
        (tmp_path / f"{name}_e.tif").unlink()
    with open_source(str(tmp_path / "items.json"), SourceOptions(channels=("B8A",), window=(0, 2600))) as found:
        assert found.info.properties["mosaic.files"] == "2"


def test_stac_items_of_one_asset_lie_side_by_side(tmp_path: Path) -> None:
    cut(PICTURE, HOLED, tmp_path / "data")
    items = [{"id": name, "assets": {"image": {"href": f"data/{name}.tif"}}} for name in HOLED]
    (tmp_path / "items.json").write_text(json.dumps(items))
    with open_source(str(tmp_path / "items.json"), SourceOptions()) as found:
        for y0, x0, y1, x1 in HOLED.values():
            np.testing.assert_array_equal(whole(found)[y0:y1, x0:x1], PICTURE[y0:y1, x0:x1])
        assert (whole(found)[:100, 230:] == 255).all()
    (tmp_path / "items.json").write_text(json.dumps([{"id": "x", "assets": {"image": {"href": "ftp://host/x.tif"}}}]))
    with pytest.raises(InputError, match=r"an asset lies at ftp://host/x\.tif, where nothing is read"):
        open_source(str(tmp_path / "items.json"), SourceOptions())
    (tmp_path / "items.json").write_text("{}")
    with pytest.raises(InputError, match="holds no STAC items"):
        open_source(str(tmp_path / "items.json"), SourceOptions())


def test_files_on_a_server_are_read_as_those_on_a_disk(tmp_path: Path) -> None:
    cut(PICTURE, OVERLAPPING, tmp_path)
    with serving(tmp_path) as server:
        items = [{"id": name, "assets": {"image": {"href": server.url(f"{name}.tif")}}} for name in OVERLAPPING]
        (tmp_path / "items.json").write_text(json.dumps({"features": items}))
        (tmp_path / "list.txt").write_text("\n".join([server.url("a.tif"), "b.tif", server.url("c.tif"), "d.tif"]))
        for address in (str(tmp_path / "items.json"), f"mosaic://{tmp_path}/list.txt"):
            with open_source(address, SourceOptions()) as found:
                assert found.fetched
                assert found.ahead_bytes(0) > 0
                server.forget()
                np.testing.assert_array_equal(whole(found), PICTURE)
                assert 0 < server.requests <= 8  # of some 70 file tiles


WHOLE = (0, 0, 192, 256)
REFUSED = [
    ('<VRTDataset subClass="VRTWarpedDataset"/>', "is a VRTWarpedDataset"),
    (vrt((192, 256), [source("a.tif", 1, WHOLE, more="<ScaleRatio>2</ScaleRatio>", kind="Complex")]), "<ComplexSource> has <ScaleRatio>, which is not read"),
    (vrt((192, 256), ["<KernelFilteredSource/>"]), "<VRTRasterBand> has <KernelFilteredSource>"),
    (vrt((192, 256), [source("a.tif", 1, WHOLE).replace('ySize="192"/></', 'ySize="96"/></')]), "192 x 256 px are scaled to 96 x 256"),
    (vrt((192, 256), [source("a.tif", 1, WHOLE).replace('<DstRect xOff="0"', '<DstRect xOff="0.4"')]), "lie at 0.4 px, between pixels"),
    (vrt((192, 256), [source("/vsis3/bucket/a.tif", 1, WHOLE)]), "a source is /vsis3/bucket/a.tif, which is no file on a disk"),
    (vrt((192, 256), [source("a.tif", 1, WHOLE)]).replace("<VRTRasterBand", '<VRTRasterBand subClass="VRTDerivedRasterBand"', 1), "a band is a VRTDerivedRasterBand"),
    (vrt((192, 256), [source("a.tif", 9, WHOLE)]), "takes band 9 of .*a.tif, which has 3"),
    (vrt((500, 500), [source("a.tif", 1, (0, 0, 500, 500))]), r"takes 500 x 500 px at \(0, 0\) of .*a.tif, which has 192 x 256"),
    ('<!DOCTYPE a [<!ENTITY b "c">]><VRTDataset/>', "declares a document type"),
    ("<VRTDataset", "is no XML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_what_a_vrt_computes_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    cut(PICTURE, ALIGNED, tmp_path)
    (tmp_path / "x.vrt").write_text(text)
    with pytest.raises(InputError, match=words):
        open_source(str(tmp_path / "x.vrt"), SourceOptions())


def test_mosaics_stand_in_the_list_of_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides.csv").write_text("path,id\nmosaic://north/*.tif,n\nwest/all.vrt,\n")
    refs = list_slides(["mosaic://south/", "mosaic://north/20*/*.tif", "mosaic://lists/east.txt", "items.json", "slides.csv"])
    assert [(ref.id, ref.address) for ref in refs] == [
        ("south", f"mosaic://{tmp_path}/south"),
        ("north", f"mosaic://{tmp_path}/north/20*/*.tif"),
        ("east", f"mosaic://{tmp_path}/lists/east.txt"),
        ("items", f"{tmp_path}/items.json"),
        ("n", f"mosaic://{tmp_path}/north/*.tif"),
        ("all", f"{tmp_path}/west/all.vrt"),
    ]
    with pytest.raises(ConfigError, match="NOT_SET_HERE, which is not set"):
        list_slides(["mosaic://$NOT_SET_HERE/south"])


ODD_ITEMS = [
    ({"assets": [1, 2]}, "holds no STAC items, each with assets"),
    ({"assets": None}, "holds no STAC items, each with assets"),
    ({"assets": {"a": 5}}, "no asset that is a GeoTIFF"),
    ({"assets": {"a": {"href": 5, "type": "image/tiff"}}}, "the href of an asset is 5, and not where its file lies"),
    ({"assets": {"a": {"href": "", "type": "image/tiff"}}}, "the href of an asset is '', and not where its file lies"),
    ({"assets": {"a": {"href": ["a.tif"], "type": "image/tiff", "roles": 5}}}, r"the href of an asset is \['a.tif'\]"),
    ({"assets": {"a": {"href": "http://[::1/a.tif", "type": "image/tiff"}}}, r"http://\[::1/a.tif: is no address"),
]


@pytest.mark.parametrize(("item", "words"), ODD_ITEMS)
def test_odd_items_are_refused_in_words(tmp_path: Path, item: Any, words: str) -> None:
    path = tmp_path / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    with pytest.raises(InputError, match=words):
        open_source(str(path), SourceOptions())


@pytest.mark.parametrize("more", [{"roles": [{"x": 1}]}, {"roles": 5}, {"eo:bands": [1, 2]}, {"raster:bands": 3}, {"bands": {"a": 1}}])
@pytest.mark.parametrize("href", ["pic tures/%C3%BC%20x.tif", "pic%20tures/%C3%BC%20x.tif", "pic tures/ü x.tif", "50%25/a%20b.tif"])
def test_an_href_is_a_uri_or_a_path_and_what_else_is_odd_is_passed_over(tmp_path: Path, href: str, more: dict[str, Any]) -> None:
    folder, name = ("50%25", "a%20b.tif") if "50" in href else ("pic tures", "ü x.tif")
    (tmp_path / folder).mkdir()
    write_raster(tmp_path / folder / name, PICTURE)
    path = tmp_path / "item.json"
    path.write_text(json.dumps({"assets": {"data": {"href": href, "type": "image/tiff", **more}}}))
    with open_source(str(path), SourceOptions()) as found:
        np.testing.assert_array_equal(whole(found), PICTURE)


def test_what_signs_an_href_is_no_part_of_a_files_name_and_stays_hidden(tmp_path: Path) -> None:
    write_raster(tmp_path / "a b.tif", PICTURE)
    path = tmp_path / "item.json"
    for name, there in (("a%20b.tif", True), ("a b.tif", True), ("c.tif", False)):
        path.write_text(json.dumps({"assets": {"data": {"href": f"./{name}?sig=hush&x=1#hush", "type": "image/tiff"}}}))
        if there:
            with open_source(str(path), SourceOptions()) as found:
                np.testing.assert_array_equal(whole(found), PICTURE)
        else:
            with pytest.raises(InputError, match=r"c\.tif: no such file") as raised:
                open_source(str(path), SourceOptions())
            assert "hush" not in str(raised.value)
