"""Tiles at random places, over the edges too, have the pixels of OpenSlide and tifffile, and no file tile is decoded in vain."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from tests.support.images import make_image, write_ome_zarr, write_pyramid, write_svs
from tilestream.geometry import Size, TileGrid
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.tile_reader import TileReader

HEIGHT, WIDTH = 836, 1084  # a multiple of 4: downsamples are whole, and OpenSlide takes whole places only
SMALL = 56
"""Side of the tiles whose file tiles are counted, px: 270 of them in the made image."""

JPEG = {
    "4:2:0": {"subsampling": (2, 2)},
    "4:2:2": {"subsampling": (2, 1)},
    "4:4:4": {"subsampling": (1, 1)},
    "rgb": {"jpeg_rgb": True},
}
OTHERS = {
    "deflate": {"compression": "deflate", "predictor": True},
    "lzw": {"compression": "lzw"},
    "zstd": {"compression": "zstd"},
    "jpeg2000": {"compression": "jpeg2000"},
    "none": {"compression": None},
    "strips": {"compression": "deflate", "tile": None, "rowsperstrip": 24},
    "jpeg strips": {"tile": None, "rowsperstrip": 32},  # which OpenSlide does not read
}


@pytest.fixture(scope="module")
def image():
    return make_image(HEIGHT, WIDTH, 1)


def random_places(size, downsample, tile, count=40, seed=0):
    """(n,) y and x, level-0 px, whole pixels of a level: anywhere in it, in its corners, and one pixel before its end."""
    rng = np.random.default_rng(seed)
    y, x = rng.integers(0, size.height, count), rng.integers(0, size.width, count)
    last_y, last_x = max(0, size.height - tile), max(0, size.width - tile)
    y = np.concatenate([y, [0, 0, last_y, last_y, size.height - 1, last_y + 1]])
    x = np.concatenate([x, [0, last_x, 0, last_x, size.width - 1, 0]])
    return (y * downsample).astype(np.int64), (x * downsample).astype(np.int64)


def read_tiles(source, level, tile, y, x, threads=2):
    """(n, tile, tile, 3) in the order asked for."""
    out = np.zeros((len(y), tile, tile, 3), np.uint8)
    spec = ReadSpec(level, source.info.levels[level].downsample, tile, source.info.levels[level].downsample)
    with ThreadPoolExecutor(threads) as pool:
        reader = TileReader(source, spec, pool=pool, threads=threads, batch=7)
        for batch in reader.read(y, x):
            assert not batch.failed
            out[batch.index] = batch.pixels
            reader.buffers.give(batch.pixels)
    return out


def white_outside(pixels, tile):
    """A tile from the part of it that lies inside the image."""
    out = np.full((tile, tile, 3), 255, np.uint8)
    out[: pixels.shape[0], : pixels.shape[1]] = pixels
    return out


def assert_equals_openslide(path: Path, tile: int):
    with open_source(str(path), SourceOptions(backend="tiff")) as source, openslide.OpenSlide(path) as slide:
        for level, found in enumerate(source.info.levels[:2]):
            size, number = found.size, slide.level_dimensions.index((found.size.width, found.size.height))
            if found.downsample != round(found.downsample):
                continue
            y, x = random_places(size, found.downsample, tile, seed=level)
            tiles = read_tiles(source, level, tile, y, x)
            for k, (l0_y, l0_x) in enumerate(zip(y.tolist(), x.tolist(), strict=True)):
                height = min(tile, size.height - round(l0_y / found.downsample))
                width = min(tile, size.width - round(l0_x / found.downsample))
                rgba = np.asarray(slide.read_region((l0_x, l0_y), number, (width, height)))
                expected = np.where(rgba[..., 3:] == 0, 255, rgba[..., :3])
                assert set(np.unique(rgba[..., 3])) <= {0, 255}
                assert np.array_equal(tiles[k], white_outside(expected, tile)), f"level {level}, tile at {l0_y}, {l0_x}"


@pytest.mark.parametrize("tile", [64, 224, 256])
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "test3-DAPI-2-387.ndpi"])
def test_real_jpeg_slides_equal_openslide(slides, name, tile):
    assert_equals_openslide(slides / name, tile)


@pytest.mark.parametrize("piece", [128, 240])
@pytest.mark.parametrize("kind", JPEG)
def test_made_jpeg_pyramids_equal_openslide(tmp_path, image, kind, piece):
    path = write_pyramid(tmp_path / "made.tif", image, **{"tile": piece, "levels": 2, **JPEG[kind]})
    assert_equals_openslide(path, 224)


def test_an_aperio_slide_equals_openslide(tmp_path, image):
    assert_equals_openslide(write_svs(tmp_path / "made.svs", image), 224)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_codecs_equal_tifffile(tmp_path, image, kind):
    path = write_pyramid(tmp_path / "made.tif", image, **{"tile": 128, "levels": 2, **OTHERS[kind]})
    assert_equals_array(path, [tifffile.imread(path, series=0, level=k) for k in range(2)])


def test_ome_zarr_equals_the_image(tmp_path, image):
    path = write_ome_zarr(tmp_path / "made.zarr", image, levels=1)
    assert_equals_array(path, [image])


def assert_equals_array(path, levels):
    with open_source(str(path), SourceOptions()) as source:
        for level, image in enumerate(levels):
            size, downsample = source.info.levels[level].size, source.info.levels[level].downsample
            y, x = random_places(size, downsample, 224, seed=level)
            tiles = read_tiles(source, level, 224, y, x)
            for k, (l0_y, l0_x) in enumerate(zip(y.tolist(), x.tolist(), strict=True)):
                top, left = round(l0_y / downsample), round(l0_x / downsample)
                assert np.array_equal(tiles[k], white_outside(image[top : top + 224, left : left + 224], 224))


@pytest.mark.parametrize("shard", [16, 50, 1000])
@pytest.mark.parametrize("piece", [64, 240, 256])
def test_random_tissue_decodes_no_more_file_tiles_than_it_must(tmp_path, image, piece, shard):
    """40 % of the tiles at random: 5 % over the least possible is what we promise, none over it is what we do."""
    path = write_pyramid(tmp_path / "made.tif", image, tile=piece, levels=1)
    row, col = TileGrid(Size(HEIGHT, WIDTH), SMALL, SMALL, 1.0, "drop").candidates()
    kept = np.random.default_rng(0).random(len(row)) < 0.4
    y, x = row[kept] * SMALL, col[kept] * SMALL
    decoded = []
    with open_source(str(path), SourceOptions(backend="tiff")) as source:
        original = source.read_segment

        def count(level, piece_row, piece_col, *rest, **more):
            decoded.append((piece_row, piece_col))
            return original(level, piece_row, piece_col, *rest, **more)

        source.read_segment = count
        least = 0
        for start in range(0, len(y), shard):
            some = slice(start, start + shard)
            read_tiles(source, 0, SMALL, y[some], x[some])
            least += len(
                {
                    (r, c)
                    for ty, tx in zip(y[some].tolist(), x[some].tolist(), strict=True)
                    for r in range(ty // piece, (ty + SMALL - 1) // piece + 1)
                    for c in range(tx // piece, (tx + SMALL - 1) // piece + 1)
                }
            )
    assert len(decoded) == least
