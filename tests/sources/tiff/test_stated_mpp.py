"""What TIFF files say of their resolution, in all the ways in which they say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tifffile

from tests.support.images import make_image, write_pyramid, write_svs
from tilestream.config.schema import Tiles
from tilestream.errors import InputError
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.tiff.source import TiffSource
from tilestream.tiles.grid import make_grid


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp", "warning"),
    [
        ((40000, 40000), "CENTIMETER", 0.25, None),
        ((101600, 101600), "INCH", 0.25, None),
        ((40000, 40200), "CENTIMETER", (0.25 + 1e4 / 40200) / 2, None),
        ((72, 72), "INCH", None, "placeholder"),
        ((40000, 40000), "NONE", None, None),
        ((0, 0), "CENTIMETER", None, "is no resolution"),
        *(((dpi, dpi), "INCH", None, "placeholder") for dpi in (96, 150, 260, 300, 600, 1200, 2400, 4800)),
        *(((dpi / 2.54, dpi / 2.54), "CENTIMETER", None, "placeholder") for dpi in (72, 300, 600)),
        ((118, 118), "CENTIMETER", None, "placeholder"),
        ((2540, 2540), "INCH", 10.0, None),
        ((1000, 1000), "CENTIMETER", 10.0, None),
        ((50800, 50800), "INCH", 0.5, None),
    ],
)
def test_resolution_tags_count_where_a_scanner_could_mean_them(
    tmp_path: Path, resolution: Any, unit: str, mpp: float | None, warning: str | None
) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(64, 64), tile=64, levels=1, resolution=resolution, resolutionunit=unit)
    with TiffSource(str(path), SourceOptions()) as source:
        assert source.info.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-6))
        assert [warning in w for w in source.info.warnings] == ([True] if warning else [])
    with TiffSource(str(path), SourceOptions(mpp=0.7)) as source:
        assert (source.info.mpp, source.info.mpp_source) == (0.7, "config")


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(64, 64), tile=64, levels=1, resolution=(40000, 20000), resolutionunit="CENTIMETER")
    with pytest.raises(InputError, match=r"pixels are not square.*0\.25 µm/px in x and 0\.5 in y"):
        TiffSource(str(path), SourceOptions())
    with TiffSource(str(path), SourceOptions(mpp=0.3)) as source:
        assert source.info.mpp == 0.3


@pytest.mark.parametrize(
    ("stated", "mpp"), [("0.2521", 0.2521), ("0,2521", 0.2521), ("0", None), ("nan", None), ("-1", None), ("1e-7", None)]
)
def test_aperio_resolution_is_checked(tmp_path: Path, stated: Any, mpp: float | None) -> None:
    path = write_svs(tmp_path / "a.svs", make_image(100, 100), mpp=stated)
    with TiffSource(str(path), SourceOptions()) as source:
        assert source.info.mpp == mpp
        assert len(source.info.warnings) == (1 if stated != "0.2521" else 0)


HPA = "Aperio Image Library v8.2.43\n81713x37331 [70791,733 512x512] (0x0) RAW;Scan|AppMag = 20|MPP = 0.4970|OriginalWidth = 81713"


@pytest.mark.parametrize("writing", [{"rowsperstrip": 1}, {"rowsperstrip": 512}, {"tile": (64, 64)}])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_an_aperio_description_counts_whatever_the_layout(tmp_path: Path, writing: dict[str, Any], compression: str | None) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", make_image(128, 128), photometric="rgb", metadata=None, description=HPA, compression=compression, **writing
    )
    with open_source(str(tmp_path / "a.tif"), SourceOptions()) as source:
        assert source.info.mpp == 0.497
        assert source.info.properties["aperio.AppMag"] == "20"


def test_a_thumbnail_does_not_have_the_mpp_of_its_slide(tmp_path: Path) -> None:
    words = "Aperio Image Library v11.2.1\n46000x32914 -> 1024x733 - |AppMag = 20|MPP = 0.4990"
    tifffile.imwrite(tmp_path / "a.tif", make_image(128, 128), photometric="rgb", metadata=None, description=words)
    with open_source(str(tmp_path / "a.tif"), SourceOptions()) as source:
        assert source.info.mpp is None
        assert "of a larger image" in source.info.warnings[0]


@pytest.mark.parametrize(
    ("unit", "per_unit", "mpp"),
    [
        ("um", 4, 0.25),
        ("micron", 2, 0.5),
        ("\\u00B5m", 4, 0.25),
        ("nm", 0.004, 0.25),
        ("mm", 4000, 0.25),
        ("cm", 20000, 0.5),
        ("inch", 300, None),
        ("pixel", 4, None),
        ("", 4, None),
    ],
)
def test_imagej_says_its_unit(tmp_path: Path, unit: str, per_unit: float, mpp: float | None) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", make_image(64, 96), imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit} if unit else None
    )
    with open_source(str(tmp_path / "a.tif"), SourceOptions()) as source:
        assert source.info.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-4))


@pytest.mark.parametrize(("width", "mpp"), [(96, 0.2521), (48, None)])
def test_libvips_keeps_what_openslide_said_as_long_as_the_size_is_the_same(tmp_path: Path, width: int, mpp: float | None) -> None:
    pairs = {"openslide.mpp-x": 0.2521, "openslide.mpp-y": 0.2521, "openslide.level[0].width": 96}
    inner = "".join(f'<property><name>{name}</name><value type="VipsRefString">{value}</value></property>' for name, value in pairs.items())
    xml = f'<?xml version="1.0"?>\n<image xmlns="http://www.vips.ecs.soton.ac.uk//dzsave"><properties>{inner}</properties></image>'
    tifffile.imwrite(tmp_path / "a.tif", make_image(64, width), tile=(32, 32), photometric="rgb", metadata=None, description=xml)
    with open_source(str(tmp_path / "a.tif"), SourceOptions()) as source:
        assert source.info.mpp == mpp


@pytest.mark.parametrize("dpi", [72, 300, 600])
def test_openslide_gets_no_printing_resolution_through(tmp_path: Path, dpi: int) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(256, 256), levels=1, resolution=(dpi, dpi), resolutionunit="INCH")
    with open_source(str(path), SourceOptions(backend="openslide")) as source:
        assert source.info.mpp is None
        assert "placeholder" in source.info.warnings[0]


@pytest.mark.parametrize(("power", "words"), [(40, "It states AppMag = 40, which on most scanners is about 0.25"), (20, "about 0.5")])
def test_a_magnification_is_named_where_there_is_no_mpp(tmp_path: Path, power: int, words: str) -> None:
    told = f"Aperio Image Library v12\n96x64 (32x32) RAW|AppMag = {power}"
    tifffile.imwrite(tmp_path / "a.svs", make_image(64, 96), tile=(32, 32), photometric="rgb", metadata=None, description=told)
    with open_source(str(tmp_path / "a.svs"), SourceOptions()) as source, pytest.raises(InputError, match=words):
        make_grid(source.info, Tiles(size=32, mpp=0.5), "a")


@pytest.mark.parametrize(
    ("told", "per_cm", "mpp", "says"),
    [
        ({}, 20_000, 0.5, "the TIFF resolution tags"),
        ({}, 300 / 2.54, None, ""),
        ({"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}, 20_000, 0.25, "the OME metadata"),
        ({side: value for xy in "XY" for side, value in ((f"PhysicalSize{xy}", 1.0), (f"PhysicalSize{xy}Unit", "pixel"))}, 20_000, 0.5, "the TIFF resolution tags"),
        ({side: value for xy in "XY" for side, value in ((f"PhysicalSize{xy}", 0.01), (f"PhysicalSize{xy}Unit", "thou"))}, 20_000, 0.254, "the OME metadata"),
    ],
)  # fmt: skip
def test_resolution_tags_count_where_ome_is_silent(
    tmp_path: Path, told: dict[str, Any], per_cm: float, mpp: float | None, says: str
) -> None:
    resolution = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.ome.tif", make_image(64, 96), photometric="rgb", metadata={"axes": "YXS", **told}, **resolution)
    with open_source(str(tmp_path / "a.ome.tif"), SourceOptions()) as source:
        assert (source.info.mpp, source.info.mpp_source) == (None if mpp is None else pytest.approx(mpp), says)
