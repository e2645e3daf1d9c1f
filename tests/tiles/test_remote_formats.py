"""What each format asks of a server: few requests, few bytes beside those that are needed, and the pixels of the local file."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import rasterio.shutil
import tifffile
import zarr

from tests.support.images import make_image, pyramid, write_pyramid
from tests.support.range_server import serving
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.tile_reader import TileReader

TILE, SHARD = 56, 1000
JPEG = {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 2)}


@cache
def image():
    return np.tile(make_image(512, 512, seed=4), (5, 6, 1))


def write_ome_tiff(path):
    levels = pyramid(image(), 3)
    with tifffile.TiffWriter(path, ome=True) as tif:
        for k, pixels in enumerate(levels):
            own = {"subfiletype": 1, "metadata": None} if k else {"subifds": len(levels) - 1, "metadata": {"axes": "YXS"}}
            tif.write(pixels, tile=(64, 64), **own, **JPEG)


def write_cog(path):
    plain = path.with_suffix(".plain")
    write_pyramid(plain, image(), tile=64, levels=1)
    rasterio.shutil.copy(plain, path, driver="COG", compress="JPEG", blocksize=128)
    plain.unlink()


def write_shards(path):
    """Chunks in shards of 8 x 8, which zarr writes in Z-order."""
    group, (height, width, _) = zarr.open_group(path, mode="w"), image().shape
    array = group.create_array("0", shape=(height, width, 3), chunks=(64, 64, 3), shards=(512, 512, 3), dtype=np.uint8)
    array[:] = image()
    axes = [{"name": axis, "type": "space"} for axis in "yx"] + [{"name": "c", "type": "channel"}]
    place = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [0.5, 0.5, 1.0]}]}
    group.attrs.update({"ome": {"version": "0.5", "multiscales": [{"name": "made", "axes": axes, "datasets": [place]}]}})


def chunk_bytes(path):
    """Rows, columns and bytes of the chunks, by the indices at the ends of the shards."""
    rows, cols = image().shape[0] // 512, image().shape[1] // 512
    counts = np.zeros((rows, 8, cols, 8), np.int64)
    for row, col in np.ndindex(rows, cols):
        index = (path / f"0/c/{row}/{col}/0").read_bytes()[-16 * 64 - 4 : -4]
        counts[row, :, col] = np.frombuffer(index, "<u8").reshape(8, 8, 2)[..., 1]
    return 64, 64, counts.reshape(rows * 8, cols * 8)


WRITERS = {
    "shards.zarr": write_shards,
    "a.svs": lambda path: write_pyramid(path, image(), tile=64, levels=2),
    "a.ome.tif": write_ome_tiff,
    "cog.tif": write_cog,
    "strips.tif": lambda path: write_pyramid(path, image(), tile=None, rowsperstrip=8, levels=1, subsampling=(1, 1)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("formats")
    for name, write in WRITERS.items():
        write(made / name)
    return made


def read_tiles(address, y, x):
    """The pixels of every tile, read shard by shard."""
    found = np.empty((len(y), TILE, TILE, 3), np.uint8)
    with open_source(address, SourceOptions()) as source, ThreadPoolExecutor(2) as pool:
        reader = TileReader(source, ReadSpec(0, 1.0, TILE, 1.0), pool=pool, threads=2, batch=64)
        for start in range(0, len(y), SHARD):
            for batch in reader.read(y[start : start + SHARD], x[start : start + SHARD]):
                assert not batch.failed
                found[start + batch.index] = batch.pixels
    return found


def file_tile_bytes(path):
    """Height, width and bytes of the file tiles or strips, by what tifffile says of the finest level."""
    with tifffile.TiffFile(path) as file:
        page = file.series[0].levels[0].keyframe
        height, width = page.chunks[:2]
        rows, cols = -(-page.imagelength // height), -(-page.imagewidth // width)
        return height, width, np.array(page.databytecounts).reshape(rows, cols)


def needed_bytes(path, y, x):
    """Bytes of the pieces under the tiles."""
    height, width, counts = chunk_bytes(path) if path.suffix == ".zarr" else file_tile_bytes(path)
    needed = np.zeros(counts.shape, bool)
    for top, left in zip(y.tolist(), x.tolist(), strict=True):
        needed[top // height : (top + TILE - 1) // height + 1, left // width : (left + TILE - 1) // width + 1] = True
    return int(counts[needed].sum())


def choose_tiles(height, width, share):
    """Corners of all tiles, or of those in blobs."""
    rows, cols = height // TILE, width // TILE
    waves = np.fft.rfft2(np.random.default_rng(5).normal(size=(rows, cols)))
    far = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(cols)[None])
    field = np.fft.irfft2(waves * np.exp(-((far * 24) ** 2)), (rows, cols))
    return (TILE * places for places in np.nonzero(field >= np.quantile(field, 1 - share)))


def check(folder, name, share, most):
    with open_source(str(folder / name), SourceOptions()) as source:
        y, x = choose_tiles(source.info.size.height, source.info.size.width, share)
    expected, needed = read_tiles(str(folder / name), y, x), needed_bytes(folder / name, y, x)
    with serving(folder) as server:
        with open_source(server.url(name), SourceOptions()):
            opening = server.requests, server.bytes_sent
        server.forget()
        np.testing.assert_array_equal(read_tiles(server.url(name), y, x), expected)
        asked, sent = server.requests - opening[0], server.bytes_sent - opening[1]
    assert opening[0] <= 8
    assert sent <= most * needed
    assert asked <= 40 * len(y) / 1000


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("share", "most"), [(1.0, 1.1), (0.4, 1.3)])
def test_few_requests_and_few_bytes_beside_those_that_are_needed(folder, name, share, most):
    check(folder, name, share, most)


def test_a_real_ndpi_takes_few_requests_and_bytes(slides):
    path = slides / "test3-DAPI-2-387.ndpi"
    check(path.parent, path.name, 0.4, 1.1)  # strips across the slide: every one of them holds some tissue
