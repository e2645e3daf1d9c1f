"""Positions come from places: exact far from the origin, equal at every level."""

import torch

from tilestream.models.positions import RoPE2D, position_unit, sincos_2d, token_positions

FAR = 1_000_000


def encode(row, col, stride_px=224.0, mpp=0.5, dtype=torch.float32):
    y, x = token_positions(torch.tensor(row), torch.tensor(col), stride_px, mpp)
    return sincos_2d(y, x, 64, unit=position_unit(mpp), dtype=dtype)


def test_neighbours_stay_distinct_far_from_the_origin_even_in_bf16():
    with torch.autocast("cpu", torch.bfloat16):
        here, right, below = encode([FAR, FAR, FAR + 1], [FAR, FAR + 1, FAR], dtype=torch.bfloat16)
    assert (here - right).abs().max() > 0.05
    assert (here - below).abs().max() > 0.05
    exact = encode([FAR], [FAR])[0]
    assert (here.float() - exact).abs().max() < 0.01


def test_one_place_has_one_encoding_at_any_level():
    fine = encode([12], [20], stride_px=224.0, mpp=0.25)
    y = (12 + 0.5) * 224 * 0.25
    coarse_row = y / (224 * 0.5) - 0.5
    assert coarse_row == 5.75
    y, x = torch.tensor([y], dtype=torch.float64), torch.tensor([(20 + 0.5) * 56.0], dtype=torch.float64)
    assert torch.equal(fine, sincos_2d(y, x, 64, unit=position_unit(0.5)))
    level_0 = token_positions(torch.tensor([3]), torch.tensor([5]), 224.0, 0.25)
    level_1 = token_positions(torch.tensor([3]), torch.tensor([5]), 112.0, 0.5)
    assert level_0 == level_1


def test_y_and_x_have_channels_of_their_own():
    a, b = encode([3, 5], [5, 3])
    assert torch.equal(a[:32], b[32:])
    assert not torch.equal(a[:32], b[:32])


def test_rope_depends_on_the_difference_of_places_only():
    rope = RoPE2D(8, 16)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0)).expand(2, 1, 1, 64, 16)
    scores = (rope(q) @ rope(k).transpose(-1, -2))[0, 0].view(8, 8, 8, 8)
    assert torch.allclose(scores[0, 0, 2, 3], scores[4, 1, 6, 4], atol=1e-5)
    assert not torch.allclose(scores[0, 0, 2, 3], scores[0, 0, 3, 2], atol=1e-3)
