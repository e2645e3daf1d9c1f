"""Bags are associative states: blocks of any size give what the whole gives, and that is what a plain softmax gives."""

import pytest
import torch
from torch import nn

from tilestream.models.heads.bags import AttentionBag, BagRows, PooledBag, TransformerBag, bag_attention, stream_bag, stream_bags

DIM = 12
BAGS = {
    "mean": lambda: PooledBag(DIM, 3),
    "max": lambda: PooledBag(DIM, 3, pool="max"),
    "abmil": lambda: AttentionBag(DIM, 3, hidden=16, gate=8),
    "transformer": lambda: TransformerBag(DIM, 3, width=16, depth=3, heads=2, latents=3),
}


def rows(n=57):
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(2, n, generator=generator, dtype=torch.float64) * 40_000
    return BagRows(torch.randn(n, DIM, generator=generator), *places)


def blocks(whole, size):
    parts = range(0, len(whole.x), size)
    return lambda: (BagRows(whole.x[k : k + size], whole.y_um[k : k + size], whole.x_um[k : k + size], whole.unit) for k in parts)


@torch.inference_mode()
@pytest.mark.parametrize("name", BAGS)
@pytest.mark.parametrize("size", [1, 10, 57])
def test_a_bag_in_blocks_is_the_bag_as_a_whole(name, size):
    bag, whole = BAGS[name](), rows()
    expected, logits = bag(whole)
    found, used, state = stream_bag(bag, blocks(whole, size))
    assert torch.allclose(found, expected, atol=1e-5)
    if not bag.maximum:
        shares = torch.cat(list(bag_attention(bag, used, state, blocks(whole, size))))
        assert torch.allclose(shares, torch.softmax(logits.double(), dim=1).mean(dim=0).float(), atol=1e-6)
        assert float(shares.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", BAGS)
@pytest.mark.parametrize("lengths", [(20, 20, 17), (1, 40, 16), (57,)])
def test_many_bags_at_once_are_each_bag_alone(name, lengths):
    bag, whole = BAGS[name]().requires_grad_(), rows()
    parts = [BagRows(*fields) for fields in zip(*(part.split(lengths) for part in (whole.x, whole.y_um, whole.x_um)), strict=True)]
    expected = torch.stack([bag(part)[0] for part in parts])
    wanted = torch.autograd.grad(expected.square().sum(), list(bag.parameters()), allow_unused=True)
    found = bag.forward_many(parts)
    got = torch.autograd.grad(found.square().sum(), list(bag.parameters()), allow_unused=True)
    assert torch.allclose(found, expected, atol=1e-5)
    for name_of, mine, theirs in zip(dict(bag.named_parameters()), got, wanted, strict=True):
        assert mine is theirs or torch.allclose(mine, theirs, atol=1e-4), name_of
    with torch.no_grad():
        together = stream_bags(bag, len(parts), lambda: ((k, part) for k, one in enumerate(parts) for part in blocks(one, 7)()))
        assert torch.equal(together, torch.stack([stream_bag(bag, blocks(part, 7))[0] for part in parts]))


@torch.inference_mode()
def test_gated_attention_is_that_of_the_paper():
    bag, whole = BAGS["abmil"](), rows()
    h = torch.relu(whole.x @ bag.embed.weight.T + bag.embed.bias)
    gate = torch.tanh(h @ bag.attention_v.weight.T + bag.attention_v.bias) * torch.sigmoid(
        h @ bag.attention_u.weight.T + bag.attention_u.bias
    )
    shares = torch.softmax(gate @ bag.attention_w.weight[0] + bag.attention_w.bias, dim=0)
    assert torch.allclose(bag(whole)[0], (shares @ h) @ bag.fc.weight.T + bag.fc.bias, atol=1e-5)


@torch.inference_mode()
def test_what_latents_read_is_torchs_own_attention():
    bag = TransformerBag(DIM, 3, width=16, depth=1, heads=2, latents=3)
    layer = bag.layers[0]
    theirs = nn.MultiheadAttention(16, 2, batch_first=True)
    theirs.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key_value.weight]))
    theirs.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.key_value.bias]))
    theirs.out_proj.load_state_dict(layer.out.state_dict())
    tiles = torch.randn(57, 16, generator=torch.Generator().manual_seed(0))
    logits, values = layer.read(bag.tokens, tiles)
    read = (torch.softmax(logits, dim=-1) @ values).permute(1, 0, 2).reshape(3, 16)
    seen = layer.norm_tiles(tiles)
    expected = theirs(layer.norm_latents(bag.tokens)[None], seen[None], seen[None], need_weights=False)[0][0]
    assert torch.allclose(layer.out(read), expected, atol=1e-5)


@torch.inference_mode()
def test_a_transformer_bag_knows_where_tiles_are_and_not_in_which_order_they_come():
    bag, whole = BAGS["transformer"](), rows()
    turned = torch.randperm(57, generator=torch.Generator().manual_seed(1))
    shuffled = BagRows(whole.x[turned], whole.y_um[turned], whole.x_um[turned])
    moved = BagRows(whole.x, whole.y_um.flip(0), whole.x_um)
    assert torch.allclose(bag(shuffled)[0], bag(whole)[0], atol=1e-5)
    assert not torch.allclose(bag(moved)[0], bag(whole)[0], atol=1e-4)


def test_a_bag_can_be_trained_whole_and_a_bag_of_nothing_has_no_answer():
    bag = BAGS["transformer"]().requires_grad_()
    bag(rows())[0].sum().backward()
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in bag.parameters())
    with torch.inference_mode():
        assert torch.isnan(stream_bag(bag, lambda: ())[0]).all()
    with pytest.raises(ValueError, match="multiple of 4 and of heads"):
        TransformerBag(DIM, 3, width=10)
