"""Pools are associative states: however the tiles are split, the vector is that of one pass."""

import pytest
import torch

from tilestream.errors import ConfigError
from tilestream.models.pooling import GatedAttentionPool, QueriesPool, make_pool


def tiles(n=50, dim=12, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["mean", "max", "mean+max", "gated_attention", "queries"])
@pytest.mark.parametrize("cuts", [(25,), (1, 2, 3), (49,), (10, 10, 30)])
def test_any_split_equals_one_shot(name, cuts):
    pool, x = make_pool(name, 12), tiles()
    parts = [pool.state(part) for part in torch.tensor_split(x, cuts)]
    left = pool.identity()
    for part in parts:
        left = pool.merge(left, part)
    right = pool.identity()
    for part in reversed(parts):
        right = pool.merge(part, right)
    whole = pool.result(pool.state(x))
    assert torch.allclose(pool.result(left), whole, atol=1e-12)
    assert torch.allclose(pool.result(right), whole, atol=1e-12)


def test_mean_and_max_are_what_they_say():
    x = tiles()
    assert torch.allclose(make_pool("mean", 12).result(make_pool("mean", 12).state(x)), x.double().mean(dim=0))
    assert torch.equal(make_pool("max", 12).result(make_pool("max", 12).state(x)), x.double().max(dim=0).values)
    both = torch.cat([x.double().mean(dim=0), x.double().max(dim=0).values])
    assert torch.allclose(make_pool("mean+max", 12).result(make_pool("mean+max", 12).state(x)), both)


def test_gated_attention_is_a_softmax_in_float64_even_for_huge_logits():
    pool, x = GatedAttentionPool(12), tiles()
    for factor in (1.0, 1e4 / pool.logits(x.double()).abs().max().item()):
        with torch.no_grad():
            for name, parameter in pool.named_parameters():
                if "w." in name:
                    parameter.mul_(factor)
        logits = pool.logits(x.double()).double()
        expected = torch.softmax(logits[:, 0], 0) @ x.double()
        state = pool.identity()
        for part in x.split(7):
            state = pool.merge(state, pool.state(part))
        assert torch.allclose(pool.result(state), expected, atol=1e-9)
        assert torch.isfinite(pool.result(state)).all()


@pytest.mark.parametrize("name", ["mean", "max", "mean+max", "gated_attention", "queries"])
def test_no_tiles_give_nan_and_failed_tiles_do_not_count(name):
    pool, x = make_pool(name, 12), tiles()
    assert torch.isnan(pool.result(pool.identity())).all()
    keep = torch.arange(50) % 3 > 0
    x[~keep] = torch.nan
    assert torch.equal(pool.result(pool.state(x, keep)), pool.result(pool.state(x[keep])))


def test_queries_are_a_softmax_each():
    pool, x = QueriesPool(12, queries=3, hidden=8), tiles()
    logits = pool.logits(x.double())
    expected = torch.softmax(logits, dim=0).T @ x.double()
    state = pool.merge(pool.state(x[:20]), pool.state(x[20:]))
    assert pool.result(state).shape == (36,)
    assert torch.allclose(pool.result(state), expected.flatten(), atol=1e-12)


@pytest.mark.parametrize("pool", [GatedAttentionPool(12), QueriesPool(12, queries=3)])
def test_shares_of_all_tiles_sum_to_1_and_make_the_vector(pool):
    x = tiles().double()
    state = pool.merge(pool.state(x[:7]), pool.state(x[7:]))
    shares = torch.cat([pool.attention(pool.logits(part), state) for part in x.split(9)])
    assert torch.allclose(shares.sum(dim=0), torch.ones(pool.heads, dtype=torch.float64), atol=1e-12)
    assert torch.allclose((shares.T @ x).flatten(), pool.result(state), atol=1e-12)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"queries": torch.zeros(2, 8)}, "key.weight"),
        ({"queries": torch.zeros(2, 8), "key.weight": torch.zeros(8, 11), "key.bias": torch.zeros(8)}, r"key.weight is \(8, 11\)"),
        ({"queries": torch.zeros(8), "key.weight": torch.zeros(8, 12), "key.bias": torch.zeros(8)}, "queries is"),
    ],
)
def test_weights_of_another_shape_are_refused(weights, words):
    with pytest.raises(ConfigError, match=words):
        make_pool("queries", 12, weights)
