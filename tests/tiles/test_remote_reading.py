"""Tiles of slides on a web server: the pixels of the local file, few requests, few bytes beside those that are needed."""

from concurrent.futures import ThreadPoolExecutor
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pytest

from tests.support.images import make_image, write_ome_zarr, write_pyramid
from tests.support.range_server import serving
from tilestream.errors import InputError
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.storage import chunks
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.tile_reader import TileReader

CODECS = {
    "jpeg": {}, "rgb jpeg": {"photometric": "rgb", "jpeg_rgb": True}, "j2k": {"compression": "jpeg2000"}, "deflate": {"compression": "deflate", "predictor": True},
    "lzw": {"compression": "lzw"}, "none": {"compression": None}, "strips": {"tile": None, "rowsperstrip": 16, "compression": "lzw"}, "planes": {"compression": "deflate", "planarconfig": "separate", "photometric": "rgb"},
    "big": {"bigtiff": True},
}  # fmt: skip
SIDE = 4096
SHARD = 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("remote")
    small = make_image(300, 400, seed=3)
    for name, options in CODECS.items():
        planar = np.ascontiguousarray(small.transpose(2, 0, 1)) if name == "planes" else small
        write_pyramid(made / f"{name}.tif", planar, **{"tile": 64, "levels": 1 if name == "planes" else 2, **options})
    write_pyramid(made / "large.tif", np.tile(make_image(512, 512, seed=4), (6, 8, 1)), tile=64, levels=2)
    return made


@pytest.fixture
def server(folder):
    with serving(folder) as started:
        yield started


def read_tiles(source, y, x, tile=56, scale=1.0, shard=2048):
    """The pixels of every tile, read shard by shard."""
    found = np.empty((len(y), tile, tile, 3), np.uint8)
    with ThreadPoolExecutor(2) as pool:
        reader = TileReader(source, ReadSpec(0, 1.0, tile, scale), pool=pool, threads=2, batch=64)
        for start in range(0, len(y), shard):
            for batch in reader.read(y[start : start + shard], x[start : start + shard]):
                assert not batch.failed
                found[start + batch.index] = batch.pixels
    return found


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_tiles_are_those_of_the_local_file(server, folder, name, scale):
    y, x = (grid.ravel() for grid in np.meshgrid(np.arange(-20, 300, 50), np.arange(-20, 400, 50), indexing="ij"))
    with (
        open_source(server.url(f"{name}.tif"), SourceOptions()) as there,
        open_source(str(folder / f"{name}.tif"), SourceOptions()) as here,
    ):
        assert there.info.levels == here.info.levels
        np.testing.assert_array_equal(read_tiles(there, y, x, scale=scale), read_tiles(here, y, x, scale=scale))
        coarse = len(here.info.levels) - 1
        np.testing.assert_array_equal(there.read((10, 20, 99, 77), coarse), here.read((10, 20, 99, 77), coarse))


def test_a_slide_is_opened_in_few_requests(server):
    with open_source(server.url("large.tif"), SourceOptions()):
        assert server.requests <= 4


@pytest.mark.parametrize(("version", "shard"), [("0.4", None), ("0.5", None), ("0.5", 256)])
@pytest.mark.parametrize("axes", ["cyx", "yxc"])
def test_every_chunk_or_shard_of_a_zarr_is_read_once(tmp_path, version, shard, axes):
    image = make_image(700, 900, seed=6)
    write_ome_zarr(tmp_path / "a.zarr", image, version=version, shard=shard, axes=axes, chunk=64)
    y, x = (56 * places.ravel() for places in np.meshgrid(np.arange(13), np.arange(17), indexing="ij"))
    with open_source(str(tmp_path / "a.zarr"), SourceOptions()) as here:
        expected = read_tiles(here, y, x)
    with serving(tmp_path) as server, open_source(server.url("a.zarr"), SourceOptions()) as there:
        assert there.fetched
        server.forget()
        np.testing.assert_array_equal(read_tiles(there, y, x, shard=90), expected)
        asked = [(path, first) for path, first, _ in server.asked]
        assert len(asked) == len(set(asked))
        objects = [file for file in (tmp_path / "a.zarr" / "0").rglob("*") if file.is_file() and not file.name.startswith((".z", "zarr"))]
        assert {path for path, _ in asked} == {str(file.relative_to(tmp_path)) for file in objects}
        most = 1.0 if shard is None else 1.25  # of a shard, chunks that are there already may lie between two that are wanted
        assert server.bytes_sent <= most * sum(file.stat().st_size for file in objects)
        assert server.requests <= (len(objects) if shard is None else 5 * len(objects))


@pytest.mark.parametrize("bound", [0, chunks.WHOLE_BYTES])
def test_shards_that_are_missing_or_damaged_are_what_they_are_on_a_disk(tmp_path, monkeypatch, bound):
    """Whether shards are asked for whole or, where too many would be held, by their indices."""
    monkeypatch.setattr(chunks, "WHOLE_BYTES", bound)
    write_ome_zarr(tmp_path / "a.zarr", make_image(700, 900, seed=6), shard=256, chunk=64)
    (tmp_path / "a.zarr/0/c/1/0/1").unlink()
    damaged = tmp_path / "a.zarr/0/c/2/1/2"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    y, x = (56 * places.ravel() for places in np.meshgrid(np.arange(13), np.arange(17), indexing="ij"))

    def read(address):
        found, failed = np.zeros((len(y), 56, 56, 3), np.uint8), set()
        with open_source(address, SourceOptions()) as source, ThreadPoolExecutor(2) as pool:
            for batch in TileReader(source, ReadSpec(0, 1.0, 56, 1.0), pool=pool, threads=2, batch=64).read(y, x):
                fine = [k for k, tile in enumerate(batch.index.tolist()) if tile not in batch.failed]
                found[batch.index[fine]] = batch.pixels[fine]
                failed |= set(batch.failed)
        return found, failed

    expected, broken = read(str(tmp_path / "a.zarr"))
    with serving(tmp_path) as server:
        found, failed = read(server.url("a.zarr"))
        whole = {
            path for path, first, count in server.asked if first == 0 and (tmp_path / path).stat().st_size == count and "/0/c/" in path
        }
    assert 0 < len(broken) < len(y)
    assert failed == broken
    np.testing.assert_array_equal(found, expected)
    assert bool(whole) == bool(bound)


@pytest.mark.parametrize(("shard", "packing"), [(None, ZIP_STORED), (256, ZIP_STORED), (None, ZIP_DEFLATED)])
@pytest.mark.slow
def test_a_zarr_in_a_zip_file_is_read_by_ranges(tmp_path, shard, packing):
    write_ome_zarr(tmp_path / "a.zarr", make_image(700, 900, seed=6), shard=shard, chunk=64)
    with ZipFile(tmp_path / "a.zarr.zip", "w", packing) as file:
        for path in sorted((tmp_path / "a.zarr").rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(tmp_path / "a.zarr"))
    y, x = (56 * places.ravel() for places in np.meshgrid(np.arange(3), np.arange(17), indexing="ij"))
    with open_source(str(tmp_path / "a.zarr.zip"), SourceOptions()) as here:
        expected = read_tiles(here, y, x)
    with serving(tmp_path) as server, open_source(server.url("a.zarr.zip"), SourceOptions()) as there:
        np.testing.assert_array_equal(read_tiles(there, y, x), expected)
        assert server.bytes_sent < 0.9 * (tmp_path / "a.zarr.zip").stat().st_size
        (tmp_path / "a.zarr.zip").write_bytes(b"PK" + bytes(9999))
        with pytest.raises(InputError, match="changed while it was being read"):
            read_tiles(there, y + 300, x)
