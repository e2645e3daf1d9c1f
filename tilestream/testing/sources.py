"""The behaviour that every source has, whatever it reads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from tilestream.geometry import Region, Size, downsample_from_sizes
from tilestream.sources import open_source
from tilestream.sources.base import Source, SourceOptions

Image = NDArray[np.uint8]


def random_regions(size: Size, seed: int, count: int = 12, side: int = 300) -> list[Region]:
    """Regions inside, across the edges of, and outside an image of `size`, single pixels among them."""
    rng = np.random.default_rng(seed)
    fixed = [
        Region(0, 0, 1, 1),
        Region(size.height - 1, size.width - 1, 1, 1),
        Region(-5, -7, 20, 30),
        Region(-9, 3, 4, 4),
        Region(size.height - 10, size.width - 10, 25, 25),
        Region(size.height + 3, 0, 2, 2),
    ]
    corners = rng.integers((-20, -20), (size.height, size.width), (count, 2)).tolist()
    sides = rng.integers(1, side, (count, 2)).tolist()
    return fixed + [Region(y, x, h, w) for (y, x), (h, w) in zip(corners, sides, strict=True)]


def cut(image: Image, region: Region) -> Image:
    """A region of an image in memory, white outside."""
    out = np.full((region.height, region.width, 3), 255, np.uint8)
    inside = region.clipped(Size(*image.shape[:2]))
    if inside is not None:
        y, x = inside.px_y - region.px_y, inside.px_x - region.px_x
        part = image[inside.px_y : inside.px_y + inside.height, inside.px_x : inside.px_x + inside.width]
        out[y : y + inside.height, x : x + inside.width] = part
    return out


class SourceSuite:
    """What every source keeps, whatever it reads: inherit it and give the fixtures `path` and `reference`.

    Attributes
    ----------
    options : SourceOptions
        How the source is opened.
    """

    options: ClassVar[SourceOptions] = SourceOptions()

    @pytest.fixture(scope="class")
    @classmethod
    def path(cls) -> Path:
        """The image that the source opens."""
        pytest.fail("a suite of a source has a fixture `path`")

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls) -> Image:
        """All of level 0, (h, w, 3) uint8, read by something else than the source."""
        pytest.fail("a suite of a source has a fixture `reference`")

    @pytest.fixture(scope="class")
    @classmethod
    def source(cls, path: Path) -> Iterator[Source]:
        """The source under test, opened as a run opens it."""
        with open_source(str(path), cls.options) as source:
            yield source

    def test_info_is_consistent(self, source: Source, path: Path, reference: Image) -> None:
        """Sizes, downsamples, resolution and fingerprint agree with each other and with the reference."""
        info = source.info
        assert info.address == str(path)
        assert (info.size.height, info.size.width) == reference.shape[:2]
        assert info.levels[0].downsample == 1.0
        downsamples = [level.downsample for level in info.levels]
        assert downsamples == sorted(set(downsamples))
        for level in info.levels:
            assert level.downsample == pytest.approx(downsample_from_sizes(info.size, level.size), rel=1e-6)
        assert info.reason.startswith(info.backend)
        assert len(info.fingerprint) == 32
        assert (info.mpp is None) == (info.mpp_source == "")

    def test_regions_equal_the_reference_inside_and_are_white_outside(self, source: Source, reference: Image) -> None:
        """Regions inside, across and outside the image."""
        for region in random_regions(source.info.size, seed=1):
            pixels = source.read_region(0, region)
            assert pixels.shape == (region.height, region.width, 3)
            assert pixels.dtype == np.uint8
            np.testing.assert_array_equal(pixels, cut(reference, region), err_msg=str(region))

    def test_segments_tile_each_level_once_and_equal_regions(self, source: Source) -> None:
        """File tiles put together are the level."""
        for k, level in enumerate(source.info.levels):
            grid = source.segment_grid(k)
            if grid is None:
                pytest.skip("this backend reads regions only")
            assert (grid.rows, grid.cols) == (-(-level.size.height // grid.height), -(-level.size.width // grid.width))
            whole = source.read_region(k, Region(0, 0, level.size.height, level.size.width))
            built = np.zeros_like(whole)
            for row in range(grid.rows):
                for col in range(grid.cols):
                    top, left = row * grid.height, col * grid.width
                    space = built[top : top + grid.height, left : left + grid.width]
                    piece = source.read_segment(k, row, col)
                    space[:] = 255 if piece is None else piece[: space.shape[0], : space.shape[1]]
            np.testing.assert_array_equal(built, whole)

    def test_dask_equals_the_reference(self, source: Source, reference: Image) -> None:
        """The dask array of level 0 is the image."""
        array = source.to_dask(0)
        assert array.shape == reference.shape
        np.testing.assert_array_equal(array.compute(scheduler="threads"), reference)

    def test_eight_threads_read_what_one_reads(self, source: Source, reference: Image) -> None:
        """One source serves many threads."""
        regions = random_regions(source.info.size, seed=2, count=42, side=200)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda region: source.read_region(0, region), regions))
        for region, pixels in zip(regions, results, strict=True):
            np.testing.assert_array_equal(pixels, cut(reference, region))

    def test_fingerprint_is_stable_and_follows_the_bytes(self, source: Source, path: Path, tmp_path: Path) -> None:
        """A copy has the same fingerprint, a changed file another one."""
        with open_source(str(path), self.options) as again:
            assert again.info.fingerprint == source.info.fingerprint
        copy = tmp_path / path.name
        if path.is_dir():
            shutil.copytree(path, copy)
            victim = min(p for p in copy.rglob("*") if p.is_file() and p.suffix != ".json" and not p.name.startswith("."))
        else:
            victim = Path(shutil.copyfile(path, copy))
        with open_source(str(copy), self.options) as moved:
            assert moved.info.fingerprint == source.info.fingerprint
        with victim.open("ab") as file:
            file.write(b"\0")
        with open_source(str(copy), self.options) as changed:
            assert changed.info.fingerprint != source.info.fingerprint

    def test_close_may_be_called_twice(self, path: Path) -> None:
        """Closing is idempotent."""
        source = open_source(str(path), self.options)
        source.close()
        source.close()
