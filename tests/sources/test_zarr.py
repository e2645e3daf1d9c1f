"""Zarr: OME-Zarr 0.4 and 0.5, plain arrays, and what an image must say of its axes."""

from __future__ import annotations

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs

from tests.support.images import make_image, write_ome_zarr
from tilestream.errors import InputError, ReadError
from tilestream.geometry import Region
from tilestream.sources.base import SegmentGrid, SourceOptions
from tilestream.sources.zarr import ZarrSource
from tilestream.store.zarr_chunks import chunk_reader
from tilestream.testing.sources import Image, SourceSuite

HEIGHT, WIDTH = 301, 414


class OmeZarrSuite(SourceSuite):
    writing: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_ome_zarr(tmp_path_factory.mktemp("zarr") / "made.zarr", make_image(HEIGHT, WIDTH, 6), **cls.writing)

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls) -> Image:
        return make_image(HEIGHT, WIDTH, 6)

    def test_says_what_the_metadata_says(self, source: ZarrSource) -> None:
        assert source.info.vendor == "ome-zarr"
        assert source.info.mpp == pytest.approx(0.5)
        assert source.segment_grid(0) == SegmentGrid(128, 128, 3, 4)
        assert len(source.info.levels) == 2


class TestOmeZarr05(OmeZarrSuite):
    pass


class TestOmeZarr04(OmeZarrSuite):
    writing: ClassVar = {"version": "0.4", "axes": "tczyx"}


class TestOmeZarr05Sharded(OmeZarrSuite):
    writing: ClassVar = {"shard": 256}


class TestOmeZarrChannelsLast(OmeZarrSuite):
    writing: ClassVar = {"axes": "yxc"}


class PlainSuite(SourceSuite):
    creating: ClassVar[dict[str, Any]] = {}
    order: ClassVar[tuple[int, ...]] = (0, 1, 2)

    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("zarr") / "plain.zarr"
        image = make_image(HEIGHT, WIDTH, 7).transpose(cls.order)
        zarr.create_array(path, data=image, **{"chunks": tuple(min(side, 100) for side in image.shape), **cls.creating})
        return path

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls) -> Image:
        return make_image(HEIGHT, WIDTH, 7)


class TestPlainV3(PlainSuite):
    pass


class TestPlainV2ChannelsFirst(PlainSuite):
    creating: ClassVar = {"zarr_format": 2}
    order: ClassVar = (2, 0, 1)


class TestPlainWithNames(PlainSuite):
    creating: ClassVar = {"dimension_names": ["x", "channel", "y"], "shards": (200, 3, 200)}
    order: ClassVar = (1, 2, 0)


class TestPlainGrey(PlainSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("zarr") / "grey.zarr"
        zarr.create_array(path, data=make_image(HEIGHT, WIDTH, 7)[..., 0], chunks=(64, 80))
        return path

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls) -> Image:
        return np.repeat(make_image(HEIGHT, WIDTH, 7)[..., :1], 3, axis=-1)


def fluorescence(path: Path, version: str = "0.5") -> np.ndarray:
    """A store of (t, c, z, y, x) = (2, 5, 3, 40, 50) uint16, and its values."""
    values = np.random.default_rng(0).integers(0, 4096, (2, 5, 3, 40, 50), np.uint16)
    write_ome_zarr(path, make_image(40, 50), axes="tczyx", levels=1, version=version)
    group = zarr.open_group(path, mode="r+")
    del group["0"]
    group.create_array("0", data=values, chunks=(1, 1, 1, 16, 16))
    return values


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_axes_and_values_must_be_chosen_and_are_then_read(tmp_path: Path, version: str) -> None:
    path = tmp_path / "f.zarr"
    values = fluorescence(path, version)
    words = (
        r"f\.zarr: axis t is 2 long; axis z is 3 long; samples are uint16; axis c is 5 long\. "
        r".*source: \{z: 0, t: 0, channels: \[0, 1, 2\], window: \[0, 4095\]\}"
    )
    with pytest.raises(InputError, match=words):
        ZarrSource(str(path), SourceOptions())
    options = SourceOptions(z=2, t=1, channels=(4, 1, 3), window=(0, 4095))
    with ZarrSource(str(path), options) as source:
        expected = np.rint(np.moveaxis(values[1, [4, 1, 3], 2], 0, -1).astype(float) * 255 / 4095).astype(np.uint8)
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 40, 50)), expected)
    with pytest.raises(InputError, match=r"source\.t: 2, but axis t has indices 0 to 1"):
        ZarrSource(str(path), SourceOptions(z=2, t=2, channels=(4,), window=(0, 4095)))
    with pytest.raises(InputError, match=r"source\.channels: \[5\], but axis c has indices 0 to 4"):
        ZarrSource(str(path), SourceOptions(z=2, t=0, channels=(5,), window=(0, 4095)))


def test_images_of_bioformats2raw_are_scenes(tmp_path: Path) -> None:
    root = tmp_path / "many.zarr"
    zarr.open_group(root, mode="w", attributes={"ome": {"version": "0.5", "bioformats2raw.layout": 3}})
    images = [make_image(60, 70, 1), make_image(50, 40, 2)]
    for k, image in enumerate(images):
        write_ome_zarr(root / str(k), image, levels=1)
    with pytest.raises(InputError, match=r"holds 2 images \(0: 'made' 60 x 70, 1: 'made' 50 x 40\)\. .*source: \{scene: 0\}"):
        ZarrSource(str(root), SourceOptions())
    with ZarrSource(str(root), SourceOptions(scene=1)) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 50, 40)), images[1])
    with pytest.raises(InputError, match=r"source\.scene: 2, but the store has scenes 0 to 1"):
        ZarrSource(str(root), SourceOptions(scene=2))


@pytest.mark.parametrize(
    ("unit", "side", "mpp"),
    [
        ("nanometer", 250.0, 0.25),
        ("millimeter", 5e-4, 0.5),
        (None, 0.5, None),
        ("second", 0.5, None),
        ("micrometer", 0.0, None),
        ("microns", 0.5, 0.5),
        ("micrometres", 0.5, 0.5),
        ("foot", 1 / 609_600, 0.5),
        ("picometer", 5e5, 0.5),
        ("ms", 0.5, None),
        ("Mm", 0.5, 5e11),
    ],
)
def test_resolution_needs_a_unit_of_length(tmp_path: Path, unit: str | None, side: float, mpp: float | None) -> None:
    path = write_ome_zarr(tmp_path / "a.zarr", make_image(64, 64), levels=1, mpp=side or None, unit=unit)
    if side == 0:
        group = zarr.open_group(path, mode="r+")
        ome = dict(group.attrs["ome"])
        ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] = [1, 0, 0]
        group.attrs["ome"] = ome
    with ZarrSource(str(path), SourceOptions()) as source:
        assert source.info.mpp == (None if mpp is None else pytest.approx(mpp))


def test_shapes_that_can_be_read_two_ways_are_refused(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=np.zeros((3, 20, 3), np.uint8))
    with pytest.raises(InputError, match=r"shape \(3, 20, 3\) does not say which axis is which\. .*dimension_names"):
        ZarrSource(str(tmp_path / "a.zarr"), SourceOptions())


def test_folders_without_an_image_are_refused(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w")
    with pytest.raises(InputError, match=r"holds no OME-Zarr image"):
        ZarrSource(str(tmp_path / "a.zarr"), SourceOptions())
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(InputError, match=r"b\.zarr: cannot be opened as Zarr"):
        ZarrSource(str(tmp_path / "b.zarr"), SourceOptions())


def test_missing_levels_and_damaged_metadata_are_refused(tmp_path: Path) -> None:
    path = write_ome_zarr(tmp_path / "a.zarr", make_image(64, 64))
    group = zarr.open_group(path, mode="r+")
    del group["1"]
    with pytest.raises(InputError, match="names an array '1' that is not in the store"):
        ZarrSource(str(path), SourceOptions())
    group.attrs["ome"] = {"multiscales": [{"axes": [{"name": "y"}]}]}
    with pytest.raises(InputError, match="the OME-Zarr metadata are malformed: datasets must be a list"):
        ZarrSource(str(path), SourceOptions())


def test_chunks_too_large_to_hold_are_refused(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(40000, 40000, 3), chunks=(20000, 20000, 3), dtype="uint8")
    with pytest.raises(InputError, match=r"a chunk of \(20000, 20000, 3\) uint8 is 1144 MiB, the limit is 256 MiB\. Rechunk"):
        ZarrSource(str(tmp_path / "a.zarr"), SourceOptions())


def test_a_damaged_chunk_fails_alone(tmp_path: Path) -> None:
    path = write_ome_zarr(tmp_path / "a.zarr", make_image(200, 200), levels=1, axes="yxc", chunk=100)
    (path / "0" / "c" / "0" / "1" / "1").write_bytes(b"no chunk")
    with ZarrSource(str(path), SourceOptions()) as source:
        with pytest.raises(ReadError, match=r"a\.zarr: level 0, 100 x 100 px at \(0, 100\): .+"):
            source.read_segment(0, 0, 1)
        assert source.read_segment(0, 0, 0).shape == (100, 100, 3)


def test_urls_are_read_through_an_object_store(tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    path = write_ome_zarr(tmp_path / "a.zarr", make_image(90, 80, 3), levels=1)
    with ZarrSource(path.as_uri(), SourceOptions()) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 90, 80)), make_image(90, 80, 3))


def test_urls_without_an_image_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    with pytest.raises(InputError, match=r"absent\.zarr: cannot be opened as Zarr: .+"):
        ZarrSource((tmp_path / "absent.zarr").as_uri(), SourceOptions())


def test_http_is_read_through_an_object_store(tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    write_ome_zarr(tmp_path / "a.zarr", make_image(90, 80, 3), levels=1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with ZarrSource(f"http://127.0.0.1:{server.server_port}/a.zarr", SourceOptions()) as source:
            np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 90, 80)), make_image(90, 80, 3))
        with pytest.raises(InputError, match=r"absent\.zarr: cannot be opened as Zarr: .+"):
            ZarrSource(f"http://127.0.0.1:{server.server_port}/absent.zarr", SourceOptions())
    finally:
        server.shutdown()
        server.server_close()


CODINGS: dict[str, dict[str, Any]] = {
    "v3 zstd": {"compressors": zarr.codecs.ZstdCodec(level=3)},
    "v3 blosc": {"compressors": zarr.codecs.BloscCodec(cname="lz4", shuffle="bitshuffle")},
    "v3 gzip": {"compressors": zarr.codecs.GzipCodec()},
    "v3 raw": {"compressors": None},
    "v3 sharded": {"shards": (128, 192, 3)},
    "v3 index first": {"shards": {"shape": (128, 192, 3), "index_location": "start"}},
    "v2 zlib": {"zarr_format": 2, "compressors": numcodecs.Zlib()},
    "v2 blosc": {"zarr_format": 2, "compressors": numcodecs.Blosc()},
    "v2 raw": {"zarr_format": 2, "compressors": None},
}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_chunks_read_past_zarr_equal_zarrs_own(tmp_path: Path, coding: str, scheme: str) -> None:
    image = make_image(HEIGHT, WIDTH, 2)
    array = zarr.create_array(tmp_path / "a.zarr", shape=image.shape, chunks=(64, 96, 3), dtype="u1", fill_value=7, **CODINGS[coding])
    array[:256] = image[:256]  # the last row of chunks, or of shards, was never written
    with ZarrSource(f"{scheme}{tmp_path / 'a.zarr'}", SourceOptions()) as source:
        assert source._chunks[0] is not None
        for row, col in np.ndindex(source.segment_grid(0).rows, source.segment_grid(0).cols):
            expected = array[row * 64 : row * 64 + 64, col * 96 : col * 96 + 96]
            np.testing.assert_array_equal(source.read_segment(0, row, col), expected)


@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("shards", [None, (4, 6)])
def test_numbers_are_read_in_their_byte_order(tmp_path: Path, endian: str, shards: tuple[int, int] | None) -> None:
    values = np.arange(48, dtype="u2").reshape(8, 6) + 300
    codec = zarr.codecs.BytesCodec(endian=endian)
    array = zarr.create_array(tmp_path / "a.zarr", shape=values.shape, chunks=(2, 3), shards=shards, dtype="u2", serializer=codec)
    array[:] = values
    chunks = chunk_reader(zarr.open_array(tmp_path / "a.zarr", mode="r"))
    assert chunks is not None
    np.testing.assert_array_equal(chunks.chunk((3, 1)), values[6:8, 3:6])


def test_codecs_that_only_zarr_knows_are_left_to_zarr(tmp_path: Path) -> None:
    image = make_image(HEIGHT, WIDTH, 2)
    turned = {"filters": zarr.codecs.TransposeCodec(order=(1, 0, 2))}
    array = zarr.create_array(tmp_path / "a.zarr", shape=image.shape, chunks=(64, 96, 3), dtype="u1", **turned)
    array[:] = image
    with ZarrSource(str(tmp_path / "a.zarr"), SourceOptions()) as source:
        assert source._chunks[0] is None
        np.testing.assert_array_equal(source.read_segment(0, 1, 1), image[64:128, 96:192])


@pytest.mark.parametrize("damage", ["index", "cut", "size"])
def test_damaged_shards_fail_in_words(tmp_path: Path, damage: str) -> None:
    image = make_image(HEIGHT, WIDTH, 2)
    sides = {"chunks": (64, 96, 3), "shards": (128, 192, 3)} if damage != "size" else {"chunks": (64, 96, 3), "compressors": None}
    array = zarr.create_array(tmp_path / "a.zarr", shape=image.shape, dtype="u1", **sides)
    array[:] = image
    path = tmp_path / "a.zarr" / "c" / "0" / "0" / "0"
    raw = bytearray(path.read_bytes())
    raw[-10] ^= 0xFF
    path.write_bytes({"index": raw, "cut": raw[:20], "size": raw + b"more"}[damage])
    words = {"index": "index of shard c/0/0/0 is damaged", "cut": "has 20 bytes", "size": "18436 bytes where 18432 belong"}[damage]
    with ZarrSource(str(tmp_path / "a.zarr"), SourceOptions()) as source:
        with pytest.raises(ReadError, match=words):
            source.read_segment(0, 0, 0)
        np.testing.assert_array_equal(source.read_segment(0, 2, 2), image[128:192, 192:288])


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""
