"""Streamed equals whole: bands of rows and shards with a halo give, bit for bit, what one pass over the grid gives."""

import pytest
import torch

from tilestream.models.context import ContextTransformer
from tilestream.models.context_streaming import Rect, RowBands, TokenBand, input_rects, mix_rect

DIM, STRIDE = 16, 112.0


def model(depth=3, window=4, shift=True, position="sincos", **options):
    made = ContextTransformer(DIM, depth=depth, heads=2, window=window, shift=shift, position=position, seed=1, mlp_ratio=2, **options)
    made.chunk_windows = 8  # small, so that a grid has several chunks
    return made


def grid(rows=23, cols=19, missing=0.0, hole=None, seed=0, origin=(0, 0)):
    """Tokens of a grid, row by row, some of them absent."""
    make = torch.Generator().manual_seed(seed)
    row, col = (a.ravel() for a in torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"))
    keep = torch.rand(rows * cols, generator=make) >= missing
    if hole is not None:
        keep &= ~((row >= hole) & (row < rows - 2) & (col >= 2))
    tokens = torch.randn(rows * cols, DIM, generator=make)
    return tokens[keep], row[keep] + origin[0], col[keep] + origin[1]


def dense(made, tokens, row, col):
    with torch.inference_mode():
        return made(tokens, row, col, STRIDE)


def bands_of(tokens, row, col, height, first=0):
    """Bands of `height` rows; the last row of the grid ends the last one."""
    last = int(row.max()) + 1 if len(row) else first
    for start in range(first, last, height):
        mask = (row >= start) & (row < start + height)
        yield TokenBand(tokens[mask], row[mask], col[mask], min(start + height, last))


def run_bands(made, tokens, row, col, height):
    stream = RowBands(made, STRIDE)
    with torch.inference_mode():
        out = list(stream.run(bands_of(tokens, row, col, height)))
    assert torch.equal(torch.cat([b.tok_row for b in out]), row)
    assert torch.equal(torch.cat([b.tok_col for b in out]), col)
    return torch.cat([b.tokens for b in out]), stream


def reader(tokens, row, col):
    def read(rect):
        mask = rect.holds(row, col)
        return tokens[mask], row[mask], col[mask]

    return read


def run_halo(made, tokens, row, col, side, narrow=0):
    """The grid from shards of side x side; `narrow` leaves away so many tokens of the halo on each side."""
    out = torch.full((len(tokens), DIM), torch.nan)
    read = reader(tokens, row, col)

    def read_less(rect):
        if narrow:
            rect = Rect(rect.row + narrow, rect.col + narrow, rect.row_end - narrow, rect.col_end - narrow)
        return read(rect)

    for top in range(0, int(row.max()) + 1, side):
        for left in range(0, int(col.max()) + 1, side):
            rect = Rect(top, left, top + side, left + side)
            with torch.inference_mode():
                found, found_row, found_col = mix_rect(made, rect, read_less, STRIDE)
            place = rect.holds(row, col)
            assert torch.equal(row[place], found_row)
            assert torch.equal(col[place], found_col)
            out[place] = found
    return out


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("window", [4, 8])
@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("missing", [0.0, 0.1, 0.5, 0.95])
def test_bands_and_shards_equal_the_whole_bit_for_bit(depth, window, shift, missing):
    made = model(depth, window, shift)
    tokens, row, col = grid(missing=missing)
    expected = dense(made, tokens, row, col)
    for height in (1, window, 7):
        assert torch.equal(run_bands(made, tokens, row, col, height)[0], expected)
    for side in (window, 7, 64):
        assert torch.equal(run_halo(made, tokens, row, col, side), expected)


@pytest.mark.parametrize("position", ["learned", "rope", "bias", "log_bias", "none"])
def test_positions_do_not_depend_on_the_schedule(position):
    made = model(4, position=position)
    tokens, row, col = grid(missing=0.3)
    expected = dense(made, tokens, row, col)
    assert torch.equal(run_bands(made, tokens, row, col, 4)[0], expected)
    assert torch.equal(run_halo(made, tokens, row, col, 5), expected)


def test_a_hole_larger_than_the_receptive_field_is_crossed():
    made = model(4)
    tokens, row, col = grid(rows=60, cols=17, hole=12)
    expected = dense(made, tokens, row, col)
    assert torch.equal(run_bands(made, tokens, row, col, 4)[0], expected)
    assert torch.equal(run_halo(made, tokens, row, col, 8), expected)


def test_a_grid_far_from_the_origin_is_mixed_in_the_same_windows():
    made = model(3, position="none")
    tokens, row, col = grid()
    far = 4 * 250_000
    assert torch.equal(dense(made, tokens, row, col), dense(made, tokens, row + far, col + far))


def test_the_order_of_tokens_does_not_matter():
    made = model(4)
    tokens, row, col = grid(missing=0.4)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(3))
    assert torch.equal(dense(made, tokens[order], row[order], col[order]), dense(made, tokens, row, col)[order])


def test_threads_do_not_matter():
    made = model(4, 8)
    tokens, row, col = grid(missing=0.2)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(dense(made, tokens, row, col))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("shift", [True, False])
def test_the_halo_is_tight(depth, shift):
    made = model(depth, 4, shift)
    rects = input_rects(made, Rect(24, 24, 32, 32))
    assert rects[0] == Rect(24 - made.halo, 24 - made.halo, 32 + made.halo, 32 + made.halo)
    assert made.halo == (4 * (depth // 2) if shift else 0)
    tokens, row, col = grid(rows=56, cols=56)
    expected = dense(made, tokens, row, col)
    read, inner = reader(tokens, row, col), Rect(24, 24, 32, 32)
    with torch.inference_mode():
        assert torch.equal(mix_rect(made, inner, read, STRIDE)[0], expected[inner.holds(row, col)])
        if made.halo:
            less = mix_rect(made, inner, lambda r: read(Rect(r.row + 1, r.col + 1, r.row_end - 1, r.col_end - 1)), STRIDE)[0]
            assert not torch.equal(less, expected[inner.holds(row, col)])


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_token_changes_exactly_the_outputs_whose_field_it_lies_in(depth):
    made = model(depth)
    tokens, row, col = grid(rows=40, cols=36)
    changed = tokens.clone()
    here = int(torch.nonzero((row == 17) & (col == 14)))
    changed[here] = -changed[here]
    differs = (dense(made, changed, row, col) != dense(made, tokens, row, col)).any(dim=1)
    reached = {(17, 14)}
    for layer in range(depth):
        shift = made.layer_shift(layer)
        windows = {((r + shift) // 4, (c + shift) // 4) for r, c in reached}
        reached = {(r, c) for r, c in zip(row.tolist(), col.tolist(), strict=True) if ((r + shift) // 4, (c + shift) // 4) in windows}
    assert {(int(r), int(c)) for r, c in zip(row[differs], col[differs], strict=True)} == reached


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
@pytest.mark.parametrize("window", [4, 8])
def test_pending_rows_are_half_a_window_for_each_layer_but_the_first(depth, window):
    made = model(depth, window)
    _, stream = run_bands(made, *grid(rows=96, cols=5), window)
    assert stream.most_pending == made.lag == (depth - 1) * window // 2


def test_state_does_not_grow_with_height():
    made = model(4)
    held = []
    for rows in (40, 160):
        stream, most = RowBands(made, STRIDE), 0
        tokens, row, col = grid(rows=rows)
        with torch.inference_mode():
            given = taken = 0
            for band in stream.run(bands_of(tokens, row, col, 4)):
                taken += len(band.tokens)
                given = int((row < band.upto + made.lag + made.window).sum())
                most = max(most, given - taken)
        held.append(most)
    assert held[0] == held[1]
    assert held[0] * DIM * 8 < made.state_bytes(19)


def test_bands_that_go_back_are_refused():
    tokens, row, col = grid()
    first, second, *_ = bands_of(tokens, row, col, 4)
    with pytest.raises(ValueError, match="a band up to row 4 comes after one up to row 8; bands go from top to bottom"):
        list(RowBands(model(), STRIDE).run([second, first]))
    with pytest.raises(ValueError, match="2 tokens, 3 rows and 2 columns"):
        TokenBand(tokens[:2], row[:3], col[:2], 1)


def test_no_tokens_give_none():
    empty = torch.zeros(0, DIM), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    assert list(RowBands(model(), STRIDE).run([])) == []
    band = list(RowBands(model(), STRIDE).run([TokenBand(*empty, 9)]))
    assert sum(len(b.tokens) for b in band) == 0
