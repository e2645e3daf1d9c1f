"""Which level serves a resolution, and how far a slide may be from it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilestream.config.schema import Tiles
from tilestream.errors import InputError
from tilestream.geometry import Level, Size
from tilestream.sources.base import SlideInfo
from tilestream.tiles.grid import coarser_than_asked, make_grid


def info(mpp: float, downsamples: tuple[float, ...] = (1.0, 4.0)) -> SlideInfo:
    levels = tuple(Level(Size(round(4000 / d), round(5000 / d)), d) for d in downsamples)
    return SlideInfo("a.svs", "tiff", "tiff: made", levels, mpp, "the file")


def tiles(mpp: float, **more: object) -> Tiles:
    return Tiles(size=224, mpp=mpp, **more)


@pytest.mark.parametrize("mpp", [0.25, 0.2501, 0.2527, 0.2624, 0.2625])
def test_a_slide_up_to_five_percent_coarser_is_taken_pixel_for_pixel(mpp: float) -> None:
    grid, spec = make_grid(info(mpp), tiles(0.25), "a")
    assert (grid.scale, spec.scale, spec.level, spec.resampled) == (1.0, 1.0, 0, False)
    assert grid.l0_origins(np.arange(4)).tolist() == [0, 224, 448, 672]
    told = coarser_than_asked(info(mpp), grid, tiles(0.25))
    assert bool(told) == (mpp > 0.251)
    assert all(f"{mpp:.4g}" in words and "tiles.mpp_tolerance 0.05" in words for words in told)


@pytest.mark.parametrize(("mpp", "tolerance"), [(0.264, 0.05), (0.2527, 0.0), (0.5, 0.05), (0.2527, 0.01)])
def test_a_slide_beyond_the_tolerance_is_refused(mpp: float, tolerance: float) -> None:
    with pytest.raises(InputError, match=r"% coarser; tiles.mpp_tolerance is .* Set tiles.mpp to"):
        make_grid(info(mpp), tiles(0.25, mpp_tolerance=tolerance), "a")


@given(st.floats(0.1, 0.25, exclude_max=True), st.floats(0, 0.5))
def test_a_finer_slide_keeps_its_exact_scale(mpp: float, tolerance: float) -> None:
    grid, _ = make_grid(info(mpp), tiles(0.25, mpp_tolerance=tolerance), "a")
    assert grid.scale == 0.25 / mpp
    assert coarser_than_asked(info(mpp), grid, tiles(0.25)) == () or grid.scale == 1.0
