"""Files that are no slide, formats that are not read, and Zarr in ZIP files."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from tests.support.images import make_image, write_ome_zarr
from tilestream.config.slide_list import id_from_address
from tilestream.errors import InputError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.testing.sources import Image, SourceSuite

IMAGE = make_image(300, 420)


def pack(folder: Path, target: Path, *, within: str = "", how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", how) as file:
        for root, _, names in os.walk(folder):
            for name in names:
                file.write(os.path.join(root, name), os.path.join(within, os.path.relpath(os.path.join(root, name), folder)))  # noqa: PTH118
    return target


class TestZipped(SourceSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("zip")
        write_ome_zarr(folder / "a.zarr", IMAGE)
        return pack(folder / "a.zarr", folder / "a.ozx")

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, path: Path) -> Image:
        del path
        return IMAGE


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(("within", "how"), [("", zipfile.ZIP_STORED), ("", zipfile.ZIP_DEFLATED), ("image.ome.zarr", zipfile.ZIP_STORED)])
@pytest.mark.parametrize("name", ["a.ome.zarr.zip", "a.ozx", "a.zip"])
def test_zarr_in_a_zip_file_is_what_zarr_reads(tmp_path: Path, version: str, within: str, how: int, name: str) -> None:
    write_ome_zarr(tmp_path / "plain.zarr", IMAGE, version=version)
    path = pack(tmp_path / "plain.zarr", tmp_path / name, within=within, how=how)
    assert id_from_address(str(path)) == "a"
    with open_source(str(path), SourceOptions()) as source, open_source(str(tmp_path / "plain.zarr"), SourceOptions()) as plain:
        assert (source.info.levels, source.info.mpp) == (plain.info.levels, plain.info.mpp)
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 300, 420)), IMAGE)


def test_a_plain_array_by_zarrs_own_zip_store_is_read(tmp_path: Path) -> None:
    with zarr.storage.ZipStore(tmp_path / "a.zarr.zip", mode="w") as store:
        array = zarr.create_array(store, shape=IMAGE.shape, dtype="u1", chunks=(128, 128, 3), shards=(256, 256, 3))
        array[:] = IMAGE
    with open_source(str(tmp_path / "a.zarr.zip"), SourceOptions()) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 300, 420)), IMAGE)


def test_other_zip_files_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("readme.txt", "no image")
    with pytest.raises(InputError, match=r"is a ZIP file without Zarr metadata .* Unpack it"):
        open_source(str(tmp_path / "a.zip"), SourceOptions())
    (tmp_path / "cut.ozx").write_bytes((tmp_path / "a.zip").read_bytes()[:60])
    with pytest.raises(InputError, match=r"cannot be opened as Zarr in a ZIP file: .* Copy it again"):
        open_source(str(tmp_path / "cut.ozx"), SourceOptions())


def write_overview(path: Path, **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, make_image(120, 200), photometric="rgb", metadata=None, **more)
    path.write_bytes(path.read_bytes().ljust(200_000, b"\0") + b"SIS0".ljust(256, b"\0"))  # where the tag of Olympus leads
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.vsi", r"Olympus .* overview .* lies in _a_/stack\*/frame_t\*\.ets, which is not beside it\. .*bioformats2raw a\.vsi a\.zarr"),
        ("a.VSI", r"bioformats2raw a\.VSI a\.zarr"),
        ("frame_t.ets", r"pixels of an Olympus .* bioformats2raw slide\.vsi"),
        ("a.afi", r"Name the \.svs files"),
        ("a.ndpis", r"Name the \.ndpi files"),
        ("set.companion.ome", r"metadata of an OME-TIFF in several files"),
    ],
)
def test_parts_of_slides_are_refused_with_the_way_out(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_source(str(write_overview(tmp_path / name)), SourceOptions())


def test_an_olympus_container_names_its_pixels(tmp_path: Path) -> None:
    (tmp_path / "_a b_" / "stack1").mkdir(parents=True)
    (tmp_path / "_a b_" / "stack1" / "frame_t.ets").write_bytes(b"SIS")
    with pytest.raises(InputError, match=r"the slide lies in _a b_/stack1/frame_t\.ets"):
        open_source(str(write_overview(tmp_path / "a b.vsi")), SourceOptions())


def test_an_olympus_container_is_known_under_another_name(tmp_path: Path) -> None:
    tag = (33560, "I", 1, 200_000, True)
    with pytest.raises(InputError, match="Olympus"):
        open_source(str(write_overview(tmp_path / "a.tif", extratags=[tag], description="<OME-metadata not available>")), SourceOptions())
    (tmp_path / "_b_").mkdir()
    with pytest.raises(InputError, match="Olympus"):
        open_source(str(write_overview(tmp_path / "b.tif", extratags=[tag])), SourceOptions())
    with open_source(str(write_overview(tmp_path / "c.tif", extratags=[tag])), SourceOptions()) as source:
        assert source.info.size.width == 200


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.czi", "is Zeiss CZI.*bioformats2raw a.czi a.zarr"),
        ("a.isyntax", "is Philips iSyntax.*isyntax2raw"),
        ("a.lif", "is Leica LIF.*bioformats2raw"),
        ("a.sdpc", "is SQRAY SDPC.*Export it as SVS"),
        ("a.bmp", "is BMP.*Save it as PNG"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(bytes(range(256)) * 8)
    with pytest.raises(InputError, match=words):
        open_source(str(tmp_path / name), SourceOptions())


def test_libraries_say_nothing_on_the_terminal(slides: Path, tmp_path: Path) -> None:
    whole = (slides / "CMU-1-Small-Region.svs").read_bytes()
    (tmp_path / "cut.svs").write_bytes(whole[: len(whole) // 2])
    code = (
        "import sys; from tilestream.sources import open_source; from tilestream.sources.base import SourceOptions\n"
        "for path in sys.argv[1:]:\n"
        "    try: open_source(path, SourceOptions()).close()\n"
        "    except Exception as error: assert type(error).__name__ == 'InputError', error\n"
    )
    names = [str(slides / name) for name in ("unreadable.svs", "broken.svs", "zero_gi.tif", "unopenable.tiff")]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "cut.svs"), *names], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_a_program_that_listens_to_a_library_still_hears_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_source(str(write_overview(tmp_path / "a.tif")), SourceOptions()).close()
    logging.getLogger("tifffile").warning("heard")
    assert "heard" in caplog.text
