"""Patches put together: weights are a partition of unity, and bytes do not depend on how the image is cut."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tilestream.models.heads.blending import Blend, Blender, Patch, ramp_weights
from tilestream.models.heads.patch_grid import BlockGrid, CoreRect, PatchGrid

CPU = torch.device("cpu")


def values_of(grid: PatchGrid, row: int, col: int, channels: int = 3) -> torch.Tensor:
    """Numbers that a patch has wherever and whenever it is computed."""
    seed = torch.Generator().manual_seed(int(row) * 1000 + int(col))
    return torch.randn(channels, grid.side, grid.side, generator=seed)


def blended(
    grid: PatchGrid,
    rect: CoreRect,
    blend: Blend,
    kept: NDArray[np.bool_],
    failed: tuple[tuple[int, int], ...] = (),
    constant: float | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The output of a rectangle in its place in the whole, and what of it was computed."""
    blender = Blender(grid, rect, blend, 3, CPU)
    needed = rect.needed(kept, blender.ring)

    def patches() -> Iterator[Patch]:
        for row, col in zip(*np.nonzero(needed), strict=True):
            values = values_of(grid, row, col) if constant is None else torch.full((3, grid.side, grid.side), constant)
            yield Patch(int(row), int(col), None if (row, col) in failed else values)

    out = np.full((3, grid.rows * grid.core, grid.cols * grid.core), np.nan, np.float32)
    computed = np.zeros(out.shape[1:], np.bool_)
    for piece in blender.run(patches(), needed):
        h, w = piece.computed.shape
        place = (slice(piece.y, piece.y + h), slice(piece.x, piece.x + w))
        assert not computed[place].any(), "no pixel is given twice"
        out[:, place[0], place[1]] = np.where(piece.computed, piece.values, np.nan)
        computed[place] = piece.computed
    return out, computed


def plain_sums(grid: PatchGrid, blend: Blend, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The same from a canvas of the whole image in float64."""
    along = ramp_weights(grid.side, 2 * grid.border, blend)
    weights = along[:, None] * along
    pad = grid.border
    sums = np.zeros((4, grid.rows * grid.core + 2 * pad, grid.cols * grid.core + 2 * pad))
    for row, col in zip(*np.nonzero(kept), strict=True):
        place = (slice(row * grid.core, row * grid.core + grid.side), slice(col * grid.core, col * grid.core + grid.side))
        sums[:3, place[0], place[1]] += values_of(grid, row, col).double().numpy() * weights
        sums[3, place[0], place[1]] += weights
    inner = sums[:, pad : sums.shape[1] - pad, pad : sums.shape[2] - pad]
    owned = np.kron(kept, np.ones((grid.core, grid.core), np.bool_)).astype(np.bool_)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(owned, inner[:3] / inner[3], np.nan)


@pytest.mark.parametrize("blend", ["hann", "cosine", "crop"])
@pytest.mark.parametrize(("side", "overlap"), [(64, 16), (64, 32), (10, 2), (1024, 256), (7, 0)])
def test_weights_of_neighbours_add_up_to_one(blend: Blend, side: int, overlap: int) -> None:
    weights = ramp_weights(side, overlap, blend)
    assert weights.min() >= 0
    assert np.abs(weights[side - overlap :] + weights[:overlap] - 1).max(initial=0) == 0
    assert (weights[overlap : side - overlap] == 1).all()


GRID = PatchGrid(70, 101, size=20, margin=4, stride=2)


@pytest.mark.parametrize("blend", ["hann", "cosine", "crop"])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.2])
def test_pixels_are_weighted_means_of_the_patches_that_reach_them(blend: Blend, share: float) -> None:
    kept = np.random.default_rng(int(share * 10)).random((GRID.rows, GRID.cols)) <= share
    out, computed = blended(GRID, CoreRect(0, GRID.rows, 0, GRID.cols), blend, kept)
    wanted = plain_sums(GRID, blend, kept)
    np.testing.assert_array_equal(computed, ~np.isnan(wanted[0]))
    np.testing.assert_allclose(out, wanted, atol=2e-6)


@pytest.mark.parametrize("blend", ["hann", "cosine", "crop"])
def test_a_constant_stays_one_at_edges_and_holes(blend: Blend) -> None:
    kept = np.random.default_rng(3).random((GRID.rows, GRID.cols)) < 0.7
    failed = tuple(zip(*np.nonzero(kept), strict=True))[2:5]
    out, computed = blended(GRID, CoreRect(0, GRID.rows, 0, GRID.cols), blend, kept, failed, constant=0.7)
    for row, col in failed:
        kept[row, col] = False
    np.testing.assert_array_equal(computed, np.kron(kept, np.ones((GRID.core, GRID.core), np.bool_)).astype(np.bool_))
    assert np.abs(out[:, computed] - 0.7).max() <= 1e-6


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_bytes_do_not_depend_on_how_the_image_is_cut(data: st.DataObject) -> None:
    stride = data.draw(st.sampled_from([1, 2]))
    margin = data.draw(st.integers(0, 3)) * stride
    size = (4 * margin if margin else stride) + data.draw(st.integers(0, 4)) * stride
    grid = PatchGrid(data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60)), size, margin, stride)
    blend: Blend = data.draw(st.sampled_from(["hann", "crop"]))
    kept = np.random.default_rng(data.draw(st.integers(0, 99))).random((grid.rows, grid.cols)) < data.draw(st.sampled_from([0.3, 0.8, 1.0]))
    whole, computed = blended(grid, CoreRect(0, grid.rows, 0, grid.cols), blend, kept)
    blocks = BlockGrid(grid, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)))
    together, seen = np.full_like(whole, np.nan), np.zeros_like(computed)
    start = 0
    while start < blocks.units:
        end = data.draw(st.integers(start + 1, blocks.units))
        for run in blocks.runs(range(start, end)):
            part, there = blended(grid, blocks.cores_of(run), blend, kept)
            together[:, there] = part[:, there]
            assert not (seen & there).any()
            seen |= there
        start = end
    np.testing.assert_array_equal(seen, computed)
    assert together.tobytes() == whole.tobytes()


def test_a_patch_of_the_ring_is_needed_only_beside_a_kept_core() -> None:
    kept = np.zeros((5, 5), np.bool_)
    kept[0, 0] = kept[1, 1] = kept[4, 4] = kept[1, 2] = True
    needed = CoreRect(0, 1, 0, 1).needed(kept, 1)
    assert np.argwhere(needed).tolist() == [[0, 0], [1, 1]]
    assert np.argwhere(CoreRect(0, 1, 0, 1).needed(kept, 0)).tolist() == [[0, 0]]


def test_blocks_cover_the_image_and_little_is_computed_twice() -> None:
    grid = PatchGrid(100_000, 80_000, size=1024, margin=128)
    blocks = BlockGrid.of(grid)
    assert 1500 <= blocks.side <= 2600
    assert blocks.side % blocks.chunk == 0
    assert 256 <= blocks.chunk <= 1024
    found = [place for unit in range(blocks.units) for place in blocks.blocks_of(unit)]
    assert sorted(found) == [(row, col) for row in range(blocks.rows) for col in range(blocks.cols)]
    across = blocks.cores * blocks.blocks
    assert (across + 2) / across < 1.15
    with pytest.raises(ValueError, match="quarter"):
        PatchGrid(10, 10, size=8, margin=3)
