"""Windows on the absolute grid: who sees whom, and nothing else matters."""

import pytest
import torch

from tilestream.errors import ConfigError
from tilestream.models.context import ContextTransformer
from tilestream.models.windows import pack_windows, window_partition, window_unpartition


def grid(rows, cols, missing=0.0, seed=0):
    row, col = (a.ravel() for a in torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"))
    keep = torch.rand(rows * cols, generator=torch.Generator().manual_seed(seed)) >= missing
    return row[keep], col[keep]


def tokens_for(row, dim=16, seed=1):
    return torch.randn(len(row), dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("shift", [0, 2])
def test_packing_and_unpacking_undo_each_other(missing, shift):
    row, col = grid(13, 9, missing)
    tokens = tokens_for(row)
    cells = pack_windows(row, col, 4, shift)
    back = torch.full_like(tokens, torch.nan)
    window_unpartition(window_partition(tokens, cells), cells, back)
    assert torch.equal(back, tokens)
    assert (cells >= 0).any(dim=1).all()


def reached(row, col, start, depth, window, shift):
    """Tokens that a change at `start` can reach, by following windows layer by layer."""
    seen = torch.zeros(len(row), dtype=torch.bool)
    seen[start] = True
    for layer in range(depth):
        s = window // 2 if shift and layer % 2 else 0
        key = (row + s) // window * 10_000 + (col + s) // window
        seen = torch.isin(key, key[seen])
    return seen


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_changing_one_token_changes_exactly_the_tokens_that_windows_connect(depth, shift, missing):
    row, col = grid(19, 14, missing)
    model = ContextTransformer(16, depth=depth, heads=2, window=4, shift=shift)
    tokens = tokens_for(row)
    start = len(row) // 2
    other = tokens.clone()
    other[start] = 3 * other[start].flip(0)
    changed = (model(tokens, row, col, 112.0) != model(other, row, col, 112.0)).any(dim=1)
    assert torch.equal(changed, reached(row, col, start, depth, 4, shift))


@pytest.mark.parametrize("position", ["sincos", "learned", "rope", "bias", "log_bias", "none"])
def test_neither_order_nor_company_matters(position):
    row, col = grid(17, 23, 0.3)
    model = ContextTransformer(16, depth=4, heads=2, window=4, position=position)
    tokens = tokens_for(row)
    dense = model(tokens, row, col, 112.0)
    order = torch.randperm(len(row), generator=torch.Generator().manual_seed(2))
    assert torch.equal(model(tokens[order], row[order], col[order], 112.0), dense[order])
    near = (row < 12 + model.halo) & (col < 12 + model.halo)
    inner = (row[near] < 12) & (col[near] < 12)
    assert torch.equal(model(tokens[near], row[near], col[near], 112.0)[inner], dense[near][inner])


@pytest.mark.parametrize(("dim", "heads", "position"), [(36, 3, "sincos"), (192, 3, "rope")])
def test_the_chunk_that_a_window_falls_in_does_not_matter(dim, heads, position):
    row, col = grid(42, 46, 0.2)
    model = ContextTransformer(dim, depth=1, heads=heads, window=4, position=position)
    tokens = tokens_for(row, dim)
    dense = model(tokens, row, col, 112.0)
    for first, last in ((8, 24), (20, 21), (36, 42)):  # of 12 windows a row, 64 a chunk
        band = (row >= first // 4 * 4) & (row < -(-last // 4) * 4)
        assert torch.equal(model(tokens[band], row[band], col[band], 112.0), dense[band])


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("window", [4, 5])
def test_the_halo_is_enough_and_not_too_much(depth, window):
    row, col = grid(11 * window, 2 * window)
    model = ContextTransformer(16, depth=depth, heads=2, window=window)
    tokens, first, last = tokens_for(row), 4 * window, 7 * window
    inner = (row >= first) & (row < last)
    dense = model(tokens, row, col)

    def with_border(border):
        held = (row >= first - border) & (row < last + border)
        return model(tokens[held], row[held], col[held])[inner[held]]

    assert torch.equal(with_border(model.halo), dense[inner])
    assert not torch.equal(with_border(model.halo - 1), dense[inner])


def test_far_tokens_cost_nothing_and_half_precision_stays_finite():
    row, col = torch.tensor([0, 1_000_000, -7]), torch.tensor([3, 1_000_000, 2_000_000])
    model = ContextTransformer(16, depth=2, heads=2, window=4).bfloat16()
    out = model(tokens_for(row), row, col, 8.0)
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


def test_no_tokens_give_no_tokens():
    none = torch.empty(0, dtype=torch.int64)
    assert ContextTransformer(16, depth=2, heads=2)(torch.empty(0, 16), none, none).shape == (0, 16)


def test_rows_and_columns_are_not_mixed_up():
    row, col = grid(6, 14)
    model = ContextTransformer(16, depth=2, heads=2, window=4)
    tokens = tokens_for(row)
    assert not torch.allclose(model(tokens, row, col, None), model(tokens, col, row, None), atol=1e-3)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"heads": 3}, "context.heads"),
        ({"window": 0}, "context.window"),
        ({"depth": 0}, "context.depth"),
        ({"position": "gps"}, "context.position"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(numbers, words):
    with pytest.raises(ConfigError, match=words):
        ContextTransformer(**{"dim": 16, "depth": 2, "heads": 2, "window": 4} | numbers)


@pytest.mark.parametrize("position", ["bias", "log_bias"])
def test_a_bias_depends_on_the_offset_alone(position):
    made = ContextTransformer(16, depth=1, heads=2, window=4, position=position, seed=3)
    bias = made.blocks[0].attn.bias()
    assert bias.shape == (2, 16, 16)
    assert torch.equal(bias[:, 0, 5], bias[:, 5, 10])  # one down, one right
    assert torch.equal(bias[:, 3, 2], bias[:, 15, 14])  # one left
    assert len(torch.unique(bias[0])) == 49  # offsets of -3 to 3 in both directions


@pytest.mark.parametrize("position", ["bias", "log_bias"])
def test_windows_with_a_bias_equal_the_formula(position):
    made = ContextTransformer(16, depth=1, heads=2, window=4, position=position, seed=3)
    attn = made.blocks[0].attn
    x, mask = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.ones(3, 16, dtype=torch.bool)
    mask[1, 4:9] = False
    q, k, v = attn.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-1, -2) / 8**0.5 + attn.bias()
    weights = logits.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1)
    expected = attn.proj((weights @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(attn(x, mask), expected, atol=1e-6)


def test_what_a_hidden_token_holds_does_not_matter():
    made = ContextTransformer(8, depth=2, heads=2, window=4, position="bias", width=16)
    row, col = (axis.ravel() for axis in torch.meshgrid(torch.arange(6), torch.arange(7), indexing="ij"))
    tokens, hidden = torch.randn(42, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(42, dtype=torch.bool)
    hidden[[3, 20]] = True
    others = torch.where(hidden[:, None], 100.0, tokens)

    def told(given, unseen):
        mixed = made.encode(given, row, col, None, unseen)
        for layer in range(made.depth):
            mixed = made.mix(layer, mixed, row, col)
        return made.finish(mixed)

    torch.testing.assert_close(told(tokens, hidden), told(others, hidden), atol=0, rtol=0)
    assert not torch.equal(told(tokens, None), told(others, None))
    torch.testing.assert_close(told(tokens, None), made(tokens, row, col), atol=0, rtol=0)


def test_a_width_standardises_and_comes_back_to_the_tokens_own_channels():
    made = ContextTransformer(8, depth=1, heads=2, window=4, position="bias", width=16)
    made.ends.mean.fill_(5.0)
    made.ends.spread.fill_(2.0)
    tokens = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    row, col = (axis.ravel() for axis in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"))
    plain = ContextTransformer(8, depth=1, heads=2, window=4, position="bias", width=16)
    torch.testing.assert_close(made(tokens * 2 + 5, row, col), plain(tokens, row, col))
    assert made(tokens, row, col).shape == (9, 8)
