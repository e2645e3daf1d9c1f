"""Tissue is found where it is, nowhere else, and how much of a tile it fills is exact."""

import numpy as np
import pytest
from PIL import Image

from tests.support.images import make_image
from tilestream.config.schema import Tissue
from tilestream.errors import ConfigError, ReadError
from tilestream.geometry import Level, Region, Size, TileGrid
from tilestream.sources.base import SegmentGrid, SlideInfo, Source
from tilestream.tiles import tissue as tissues
from tilestream.tiles.thumbnail import Thumbnail, read_thumbnail
from tilestream.tiles.tissue import tile_fractions

PINK, GLASS = (200, 120, 170), (243, 242, 243)


class Pyramid(Source):
    """Levels in memory; reading a row of `broken` fails."""

    def __init__(self, *levels, mpp=0.5, broken=()):
        self.levels, self.broken, self.read_from = levels, broken, []
        height, width = levels[0].shape[:2]
        described = tuple(Level(Size(*p.shape[:2]), (height / p.shape[0] + width / p.shape[1]) / 2) for p in levels)
        self.info = SlideInfo("memory", "test", "", described, mpp, "test")

    def _read(self, level, region):
        self.read_from.append(level)
        if any(region.px_y <= row < region.px_y + region.height for row in self.broken):
            raise ReadError("broken")
        return self.levels[level][region.px_y : region.px_y + region.height, region.px_x : region.px_x + region.width]

    def close(self):
        pass


class BrokenPiece(Pyramid):
    """File tiles of 256 px, of which (1, 3) cannot be decoded."""

    def __init__(self, *levels, mpp, piece_broken=True):
        super().__init__(*levels, mpp=mpp)
        self.piece_broken, self.pieces_read = piece_broken, 0

    def segment_grid(self, level):
        size = self.info.levels[level].size
        return SegmentGrid(256, 256, -(-size.height // 256), -(-size.width // 256))

    def _read(self, level, region):
        for row in range(region.px_y // 256, -(-(region.px_y + region.height) // 256)):
            for col in range(region.px_x // 256, -(-(region.px_x + region.width) // 256)):
                self.pieces_read += 1
                if self.piece_broken and (row, col) == (1, 3):
                    raise ReadError("broken")
        return super()._read(level, region)


def find_tissue(thumbnail, tissue, um_per_px=None, **where):
    return tissues.find_tissue(thumbnail, tissue, um_per_px, **where).mask


def slide_with_square():
    """Glass with noise, and a pink square from (40, 60) to (120, 160)."""
    noise = np.random.default_rng(0).integers(-2, 3, (200, 300, 3))
    pixels = np.full((200, 300, 3), GLASS) + noise
    pixels[40:120, 60:160] = np.array(PINK) + noise[40:120, 60:160] * 10
    return pixels.clip(0, 255).astype(np.uint8)


def test_a_stained_square_is_found_and_the_glass_is_not():
    mask = find_tissue(Thumbnail(slide_with_square(), 16.0), Tissue(), 8.0)
    truth = np.zeros((200, 300), bool)
    truth[40:120, 60:160] = True
    assert (mask ^ truth).sum() < 30


@pytest.mark.parametrize("value", [GLASS, (255, 255, 255), (0, 0, 0), (128, 128, 128)])
def test_an_empty_image_has_no_tissue(value):
    noise = np.random.default_rng(0).integers(-2, 3, (100, 100, 3))
    assert not find_tissue(Thumbnail((np.array(value) + noise).clip(0, 255).astype(np.uint8), 16.0), Tissue(), 8.0).any()


def test_an_image_full_of_tissue_is_all_tissue():
    assert find_tissue(Thumbnail(make_image(300, 300, seed=1)[::3, ::3], 16.0), Tissue(min_area_um2=0), 8.0).mean() > 0.5
    pink = np.full((100, 100, 3), PINK) + np.random.default_rng(0).integers(-20, 21, (100, 100, 3))
    assert find_tissue(Thumbnail(pink.clip(0, 255).astype(np.uint8), 16.0), Tissue(), 8.0).all()


@pytest.mark.parametrize(("ground", "object_"), [(240, 90), (5, 160)], ids=["bright ground", "dark ground"])
def test_without_colour_grey_levels_decide(ground, object_):
    grey = np.full((120, 120, 3), ground, np.uint8)
    grey[30:70, 30:90] = object_
    mask = find_tissue(Thumbnail(grey, 16.0), Tissue(), 8.0)
    assert mask[35:65, 35:85].all()
    assert mask.sum() < 40 * 60 + 50


def test_small_pieces_are_dust():
    pixels = slide_with_square()
    pixels[180:184, 280:284] = PINK  # 32 µm a side at 8 µm/px
    assert not find_tissue(Thumbnail(pixels, 16.0), Tissue(min_area_um2=2000), 8.0)[170:].any()
    assert find_tissue(Thumbnail(pixels, 16.0), Tissue(min_area_um2=500), 8.0)[170:].any()


def test_pens_are_left_out_where_asked():
    pixels = slide_with_square()
    pixels[150:190, 200:290] = (30, 80, 200)
    pixels[10:30, 200:290] = (20, 150, 60)
    assert find_tissue(Thumbnail(pixels, 16.0), Tissue(), 8.0)[155:185, 205:285].all()
    mask = find_tissue(Thumbnail(pixels, 16.0), Tissue(pens=True), 8.0)
    assert not mask[150:].any()
    assert not mask[:30].any()
    assert mask[50:110, 70:150].all()


def test_the_thumbnail_comes_from_the_level_that_suffices():
    full = slide_with_square().repeat(8, 0).repeat(8, 1)
    source = Pyramid(full, full[::4, ::4], full[::32, ::32], mpp=1.0)
    thumbnail = read_thumbnail(source)
    assert set(source.read_from) == {1}
    assert thumbnail.downsample == 8
    assert np.array_equal(thumbnail.pixels, slide_with_square())


def test_a_piece_that_cannot_be_read_is_white_and_counted_and_the_rest_is_kept():
    full = slide_with_square().repeat(8, 0).repeat(8, 1)
    thumbnail = read_thumbnail(BrokenPiece(full, mpp=1.0))
    expected = slide_with_square()
    expected[32:64, 96:128] = 255
    assert thumbnail.unreadable == 32 * 32
    assert np.array_equal(thumbnail.pixels, expected)
    kept, whole = (find_tissue(Thumbnail(pixels, 8.0), Tissue(), 8.0) for pixels in (expected, slide_with_square()))
    assert not (kept ^ whole)[:31].any()
    assert not (kept ^ whole)[65:].any()


def test_an_image_that_cannot_be_read_at_all_is_white_and_counted():
    thumbnail = read_thumbnail(Pyramid(np.zeros((300, 500, 3), np.uint8), mpp=8.0, broken=range(300)))
    assert thumbnail.unreadable == 300 * 500
    assert (thumbnail.pixels == 255).all()


@pytest.mark.parametrize(("size", "mpp"), [((700, 1100), 1.1), ((513, 257), 2.7), ((90, 2000), 0.3)])
def test_blocks_of_any_size_give_the_same_thumbnail(monkeypatch, size, mpp):
    pixels = make_image(*size, seed=2)
    whole = read_thumbnail(Pyramid(pixels, mpp=mpp))
    monkeypatch.setattr("tilestream.tiles.thumbnail.BLOCK_BYTES", 15 * 100 * 100)
    monkeypatch.setattr("tilestream.tiles.thumbnail.PIECE", 48)
    blocks = Pyramid(pixels, mpp=mpp)
    assert np.array_equal(read_thumbnail(blocks).pixels, whole.pixels)
    assert len(blocks.read_from) > 4


def test_each_file_piece_is_read_once_where_the_level_is_all_there_is():
    source = BrokenPiece(np.zeros((1600, 2400, 3), np.uint8), mpp=1.0, piece_broken=False)
    read_thumbnail(source)
    assert source.pieces_read == 7 * 10


class Strips(Pyramid):
    """File tiles of eight rows across the whole image."""

    largest = 0

    def segment_grid(self, level):
        size = self.info.levels[level].size
        return SegmentGrid(8, size.width, -(-size.height // 8), 1)

    def _read(self, level, region):
        self.largest = max(self.largest, region.height * region.width)
        return super()._read(level, region)


def test_a_thumbnail_row_of_long_strips_is_not_read_at_once(monkeypatch):
    pixels = make_image(150, 6000, seed=2)
    whole = read_thumbnail(Strips(pixels, mpp=0.2))
    monkeypatch.setattr("tilestream.tiles.thumbnail.BLOCK_BYTES", 15 * 100 * 100)
    strips = Strips(pixels, mpp=0.2)
    thumbnail = read_thumbnail(strips)
    assert thumbnail.downsample == 40
    assert np.array_equal(thumbnail.pixels, whole.pixels)
    assert strips.largest == 8 * 6000


def test_a_thumbnail_is_bounded_however_coarse_the_image(monkeypatch):
    monkeypatch.setattr("tilestream.tiles.thumbnail.MOST_SIDE", 100)
    thumbnail = read_thumbnail(Pyramid(np.zeros((150, 330, 3), np.uint8), mpp=500_000.0))
    assert thumbnail.downsample == 4
    assert thumbnail.pixels.shape == (38, 83, 3)


def test_without_a_resolution_the_longest_side_is_bounded():
    thumbnail = read_thumbnail(Pyramid(np.zeros((100, 5000, 3), np.uint8), mpp=None))
    assert max(thumbnail.pixels.shape) <= 2500
    assert thumbnail.downsample == 2


@pytest.mark.parametrize("scale", [1.0, 1.37, 3.0])
def test_fractions_equal_counting(scale):
    rng = np.random.default_rng(3)
    mask = rng.random((30, 41)) < 0.4
    grid = TileGrid(Size(30 * 7 - 3, 41 * 7 - 5), 20, 13, scale)
    row, col = grid.candidates()
    got = tile_fractions(mask, 7.0, grid, row, col)
    fine = mask.repeat(70, 0).repeat(70, 1)[: 10 * grid.l0_size.height, : 10 * grid.l0_size.width]  # 10 samples a level-0 px
    for k in rng.integers(0, len(row), 25):
        y, x = (int(grid.l0_origins(index[k : k + 1])[0]) * 10 for index in (row, col))
        side = round(grid.l0_extent * 10)
        assert got[k] == pytest.approx(fine[y : y + side, x : x + side].sum() / side**2, abs=2e-3)


def test_a_png_mask_covers_the_whole_image(tmp_path):
    Image.fromarray(np.array([[0, 255], [0, 0]], np.uint8)).save(tmp_path / "m.png")
    mask = find_tissue(Thumbnail(np.zeros((40, 40, 3), np.uint8), 10.0), Tissue(), file=tmp_path / "m.png")
    assert mask[:20, 20:].all()
    assert mask.sum() == 400


def left_half(pixels, um_per_px):
    mask = np.zeros(pixels.shape[:2], bool)
    mask[:, : pixels.shape[1] // 2] = True
    return mask


def wrong_shape(pixels, um_per_px):
    return np.zeros((2, 2))


def test_a_function_decides():
    thumbnail = Thumbnail(np.zeros((10, 20, 3), np.uint8), 10.0)
    assert find_tissue(thumbnail, Tissue(method="function", function="tests.tiles.test_tissue:left_half")).sum() == 100
    with pytest.raises(ConfigError, match=r"tiles.tissue.function: .* gave \(2, 2\) float64, but it must give \(10, 20\) bool"):
        find_tissue(thumbnail, Tissue(method="function", function="tests.tiles.test_tissue:wrong_shape"))
    with pytest.raises(ConfigError, match=r"tiles.tissue.function: no.such:thing cannot be imported"):
        find_tissue(thumbnail, Tissue(method="function", function="no.such:thing"))


def test_reading_regions_reaches_over_the_image_in_white():
    assert (Pyramid(np.zeros((10, 10, 3), np.uint8)).read_region(0, Region(-5, -5, 5, 5)) == 255).all()


def test_what_cannot_be_read_counts_as_tissue():
    missing = np.zeros((200, 300), bool)
    missing[150:190, 200:290] = True
    mask = find_tissue(Thumbnail(slide_with_square(), 16.0, missing), Tissue(), 8.0)
    assert mask[missing].all()
    assert not mask[:30].any()
