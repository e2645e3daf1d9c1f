"""Which backend reads what, in words, and errors that name every cause."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
import zarr

import tilestream.sources as module
from tests.sources.tiff.test_source import read_openslide
from tests.support.images import make_image, write_ome_zarr, write_pyramid
from tilestream.errors import ConfigError, InputError, ReadError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import Source, SourceOptions

AUTO = SourceOptions()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("CMU-1-Small-Region.svs", "tiff: regular grid of 240 x 240 JPEG tiles"),
        ("test3-DAPI-2-387.ndpi", "tiff: regular grid of 8 x 3968 JPEG strips"),
        ("cogeo.tif", "tiff: regular grid of 512 x 512 JPEG tiles"),
        ("RGB.byte.tif", "tiff: regular grid of 3 x 791 NONE strips"),
        ("gcp_jpeg.dcm", "dicom: regular grid of 256 x 256 JPEG frames"),
    ],
)
def test_backend_and_reason(slides: Path, name: str, reason: str) -> None:
    with open_source(str(slides / name), AUTO) as source:
        assert source.info.reason == reason


@pytest.mark.parametrize("name", ["test3-DAPI-2-387.ndpi", "gcp_jpeg.dcm", "boxes_0.dcm", "CMU-1-Small-Region.svs"])
def test_pixels_are_openslides(slides: Path, name: str) -> None:
    with open_source(str(slides / name), AUTO) as source:
        size = source.info.size
        region = Region(size.height // 3, size.width // 3, size.height - size.height // 3, min(700, size.width - size.width // 3))
        np.testing.assert_array_equal(source.read_region(0, region), read_openslide(slides / name, 0, region))


@pytest.mark.parametrize("name", ["unopenable.tiff", "broken.svs"])
def test_files_that_nobody_reads_name_both_causes(slides: Path, name: str) -> None:
    with pytest.raises(
        InputError, match=rf"{name}: no backend reads it\. tiff: .+ openslide: .+ Copy it again from its origin, or convert it"
    ):
        open_source(str(slides / name), AUTO)


def test_width_zero_is_refused(slides: Path) -> None:
    with pytest.raises(InputError, match=r"zero_gi\.tif: an image of 0 x 2 px has no pixels"):
        open_source(str(slides / "zero_gi.tif"), AUTO)


def test_opens_and_then_fails_to_read(slides: Path) -> None:
    with (
        open_source(str(slides / "unreadable.svs"), AUTO) as source,
        pytest.raises(ReadError, match=r"unreadable\.svs: level 0, file tile \(0, 0\)"),
    ):
        source.read_region(0, Region(0, 0, 16, 16))


def test_the_backend_can_be_forced(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(64, 64), tile=64, levels=1)
    with open_source(str(path), SourceOptions(backend="openslide")) as source:
        assert source.info.reason == "openslide: chosen by source.backend"
    with pytest.raises(InputError, match=r"a\.tif: cannot be opened as Zarr"):
        open_source(str(path), SourceOptions(backend="zarr"))
    with pytest.raises(ConfigError, match=r"source\.backend: 'tif' is none of auto, tiff, openslide, zarr"):
        open_source(str(path), SourceOptions(backend="tif"))


def test_folders_are_zarr_or_refused(tmp_path: Path) -> None:
    with open_source(str(write_ome_zarr(tmp_path / "image", make_image(64, 64))), AUTO) as source:
        assert source.info.reason == "zarr: OME-Zarr 0.5 in chunks of 1 x 128 x 128"
    zarr.create_array(tmp_path / "plain", data=make_image(64, 64), zarr_format=2)
    with open_source(str(tmp_path / "plain"), AUTO) as source:
        assert source.info.reason.startswith("zarr: Zarr v2 array in chunks of")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: is a folder without Zarr metadata"):
        open_source(str(tmp_path / "empty"), AUTO)
    with pytest.raises(InputError, match="empty: is a folder, not an image file"):
        open_source(str(tmp_path / "empty"), SourceOptions(backend="tiff"))


def test_missing_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.svs: no such file\. Check the path"):
        open_source(str(tmp_path / "absent.svs"), AUTO)
    (tmp_path / "empty.svs").touch()
    with pytest.raises(InputError, match=r"empty\.svs: the file is empty \(0 bytes\)"):
        open_source(str(tmp_path / "empty.svs"), AUTO)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"notes\.txt: no backend reads it"):
        open_source(str(tmp_path / "notes.txt"), AUTO)


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(InputError, match=r"ftp://host/a\.svs: no source for ftp:// addresses"):
        open_source("ftp://host/a.svs", AUTO)
    with pytest.raises(InputError, match="openslide reads local files only"):
        open_source("s3://bucket/a.svs", SourceOptions(backend="openslide"))


def test_sample_addresses_are_made_and_opened_as_tiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(64, 64), tile=64, levels=1)
    stand_in = ModuleType("tilestream.sources.made.slide")
    stand_in.ensure_sample = lambda address: path  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tilestream.sources.made.slide", stand_in)
    with open_source("sample://he?width=64&height=64", AUTO) as source:
        assert source.info.backend == "tiff"


def opened_by_plugin(address: str, options: SourceOptions) -> Source:
    raise InputError(f"plug-in opened {address}")


def test_plugins_are_asked_for_what_no_backend_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [EntryPoint(name, f"{__name__}:opened_by_plugin", module.PLUGINS) for name in ("czi", "idr", "tif")]
    monkeypatch.setattr(module, "entry_points", lambda group: [entry for entry in entries if entry.group == group])
    (tmp_path / "a.czi").write_bytes(b"ZISRAWFILE")
    with pytest.raises(InputError, match=r"plug-in opened .*a\.czi"):
        open_source(str(tmp_path / "a.czi"), AUTO)
    with pytest.raises(InputError, match="plug-in opened idr://6001240"):
        open_source("idr://6001240", AUTO)
    path = write_pyramid(tmp_path / "a.tif", make_image(64, 64), tile=64, levels=1)
    with open_source(str(path), AUTO) as source:
        assert source.info.backend == "tiff"


@pytest.mark.parametrize("backend", ["auto", "tiff", "openslide"])
def test_a_sample_is_read_by_the_backend_that_is_asked_for_and_opened_again_as_the_same(backend):
    with open_source("sample://he?width=512&height=512", SourceOptions(backend=backend)) as source:
        assert source.info.backend == ("tiff" if backend == "auto" else backend)
        again = source.opened_as
        with open_source(again.address, again.options) as other:
            assert other.info.fingerprint == again.fingerprint


@pytest.mark.parametrize("place", [0, 0.31, 0.5, 0.77, 1])
def test_one_byte_of_a_file_anywhere_is_another_image(tmp_path, place):
    path = write_pyramid(tmp_path / "a.tif", make_image(600, 700, 1), levels=1)
    with open_source(str(path), SourceOptions()) as source:
        before = source.info.fingerprint
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        offsets = tif.pages[0].dataoffsets
    at = offsets[0] + 700 + int(place * (offsets[-1] - offsets[0]))
    data[at] ^= 1
    path.write_bytes(data)
    with open_source(str(path), SourceOptions()) as source:
        assert source.info.fingerprint != before


def test_one_byte_of_a_zarr_chunk_is_another_image(tmp_path):
    array = zarr.create_array(tmp_path / "a.zarr", shape=(1024, 1024, 3), chunks=(256, 256, 3), dtype="u1", dimension_names=["y", "x", "c"])
    array[:] = make_image(1024, 1024, 1)
    with open_source(str(tmp_path / "a.zarr"), SourceOptions()) as source:
        before = source.info.fingerprint
    chunk = tmp_path / "a.zarr" / "c" / "2" / "1" / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with open_source(str(tmp_path / "a.zarr"), SourceOptions()) as source:
        assert source.info.fingerprint != before
