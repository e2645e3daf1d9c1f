"""Slide encoders against plain PyTorch written here: gated attentions, ALiBi, and regions; each takes a slide in blocks of any size."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from tilestream.config.vectors.pool import SLIDE_ENCODERS
from tilestream.encoders.slides.presets import SLIDE_PRESETS
from tilestream.models.patch_embed import seeded_init
from tilestream.models.slides import alibi
from tilestream.models.slides.alibi import AlibiEncoder, alibi_slopes
from tilestream.models.slides.base import TileBlock
from tilestream.models.slides.gated import FAMILIES
from tilestream.models.slides.regions import RegionEncoder
from tilestream.models.slides.specs import AlibiSpec, GatedSpec, RegionSpec


def tiles(n, width, seed=0, side=40):
    generator = torch.Generator().manual_seed(seed)
    cell = torch.randperm(side * side, generator=generator)[:n].sort().values
    return torch.randn(n, width, generator=generator), cell // side, cell % side


def cut(x, row, col, *cuts):
    return (TileBlock(x[a:b], row[a:b], col[a:b]) for a, b in pairwise([0, *cuts, len(x)]))


def filled(module, seed=3):
    seeded_init(module, seed, std=0.4)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.1)
    return module, module.state_dict()


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def gate(state, name, h):
    a = torch.tanh(linear(state, f"{name}.attention_a.0", h)) * torch.sigmoid(linear(state, f"{name}.attention_b.0", h))
    return torch.softmax(linear(state, f"{name}.attention_c", a)[:, 0], dim=0)


def feather(state, x):
    h = torch.relu(linear(state, "patch_embed.0", x))
    return gate(state, "global_attn", h) @ h


def chief(state, x):
    return gate(state, "attention_net.3", torch.relu(linear(state, "attention_net.0", x))) @ x


def madeleine(state, x, heads=3):
    for k in (0, 4, 8):
        x = linear(state, f"wsi_embedders.pre_attn.{k}", x)
        norm = (state[f"wsi_embedders.pre_attn.{k + 1}.{kind}"] for kind in ("weight", "bias"))
        x = F.gelu(F.layer_norm(x, x.shape[1:], *norm))
    each = x.reshape(len(x), -1, heads)
    means = torch.stack([gate(state, f"wsi_embedders.attn.{k}", each[:, :, k]) @ each[:, :, k] for k in range(heads)], dim=-1)
    return linear(state, "projector", means.reshape(-1))


@pytest.mark.parametrize(
    ("spec", "oracle"),
    [
        (GatedSpec(10, 8, "feather", width=8, gate=6), feather),
        (GatedSpec(10, 10, "chief", width=8, gate=6), chief),
        (GatedSpec(10, 8, "madeleine", width=8, gate=6, heads=3), madeleine),
    ],
)
def test_gated_attention_equals_plain_torch(spec, oracle):
    module, state = filled(FAMILIES[spec.family](spec))
    x, row, col = tiles(90, 10)
    expected = oracle({name: value.double() for name, value in state.items()}, x.double())
    for cuts in ((), (1, 40), (7, 8, 70)):
        found = module.encode(cut(x, row, col, *cuts), 90)
        assert found.tokens is None
        assert torch.allclose(found.vector.double(), expected, atol=1e-5)
        assert found.vector.shape == (spec.dim,)


def test_slopes_are_those_of_the_paper():
    assert alibi_slopes(8) == [2.0**-k for k in range(1, 9)]
    assert alibi_slopes(12) == [*(2.0**-k for k in range(1, 9)), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]


def normed(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def plain_alibi(state, spec, x, row, col):
    x = torch.cat([state["cls_token"][0], state["register_tokens"][0], F.gelu(linear(state, "input_proj.0", x))])
    first = 1 + spec.registers
    distance = torch.zeros(len(x), len(x), dtype=torch.float64)
    for i in range(len(row)):
        for j in range(len(row)):
            distance[first + i, first + j] = math.dist((int(row[i]), int(col[i])), (int(row[j]), int(col[j])))
    bias = -torch.tensor(alibi_slopes(spec.heads), dtype=torch.float64)[:, None, None] * distance
    for k in range(spec.depth):
        at, h = f"blocks.{k}", normed(state, f"blocks.{k}.norm1", x)
        q, key, v = (linear(state, f"{at}.{part}_proj", h).reshape(len(x), spec.heads, -1).transpose(0, 1) for part in "qkv")
        if f"{at}.q_norm.weight" in state:
            q, key = normed(state, f"{at}.q_norm", q), normed(state, f"{at}.k_norm", key)
        attended = torch.softmax(q @ key.transpose(1, 2) / q.shape[2] ** 0.5 + bias, dim=2) @ v
        made = linear(state, f"{at}.out_proj", attended.transpose(0, 1).reshape(x.shape))
        x = x + made * state.get(f"{at}.ls_attn.gamma", 1.0)
        made = linear(state, f"{at}.fc2", F.gelu(linear(state, f"{at}.fc1", normed(state, f"{at}.norm2", x))))
        x = x + made * state.get(f"{at}.ls_mlp.gamma", 1.0)
    return normed(state, "norm", x)


@pytest.mark.parametrize("options", [{"qk_norm": True}, {"qk_norm": False, "layer_scale": True}])
def test_alibi_equals_plain_torch_in_chunks_of_any_size(options, monkeypatch):
    spec = AlibiSpec(10, 24, 2, 12, 32, registers=2)
    module, _ = filled(AlibiEncoder(spec, **options))
    x, row, col = tiles(60, 10)
    module, x = module.double(), x.double()
    expected = plain_alibi(module.state_dict(), spec, x, row, col)
    for chunk in (1 << 22, 500):
        monkeypatch.setattr(alibi, "CHUNK_VALUES", chunk)
        found = module.encode(cut(x, row, col, 13), 60)
        assert torch.allclose(found.vector, expected[0], atol=1e-9)
        assert torch.allclose(found.tokens, expected[3:], atol=1e-9)


def plain_region(state, spec, tokens, cells):
    """One region, its tiles by cell, at its positions; absent ones left out altogether."""
    table = state["pos_embed"][0, 1:].reshape(spec.table, spec.table, -1).permute(2, 0, 1)[None]
    wide = (
        F.interpolate(table, scale_factor=((spec.side + 0.1) / spec.table,) * 2, mode="bicubic")[0].permute(1, 2, 0).reshape(-1, spec.dim)
    )
    x = torch.cat([state["cls_token"][0] + state["pos_embed"][0, :1], tokens + wide[cells]])
    for k in range(spec.depth):
        at = f"blocks.{k}"
        h = F.layer_norm(x, x.shape[1:], state[f"{at}.norm1.weight"], state[f"{at}.norm1.bias"], 1e-6)
        q, key, v = linear(state, f"{at}.attn.qkv", h).reshape(len(x), 3, spec.heads, -1).permute(1, 2, 0, 3)
        attended = torch.softmax(q @ key.transpose(1, 2) / q.shape[2] ** 0.5, dim=2) @ v
        x = x + linear(state, f"{at}.attn.proj", attended.transpose(0, 1).reshape(x.shape))
        h = F.layer_norm(x, x.shape[1:], state[f"{at}.norm2.weight"], state[f"{at}.norm2.bias"], 1e-6)
        x = x + linear(state, f"{at}.mlp.fc2", F.gelu(linear(state, f"{at}.mlp.fc1", h)))
    return F.layer_norm(x[0], x.shape[1:], state["norm.weight"], state["norm.bias"], 1e-6)


def test_regions_lie_on_the_absolute_grid_and_equal_plain_torch():
    spec = RegionSpec(10, 12, 2, 3, side=16, table=14, at_once=2)
    module, state = filled(RegionEncoder(spec))
    state = {name: value.double() for name, value in state.items()}
    x, row, col = tiles(300, 10)
    tokens = F.gelu(linear(state, "phi.0", x.double()))
    each = []
    for top in range(0, 40, 16):
        for left in range(0, 40, 16):
            here = (row >= top) & (row < top + 16) & (col >= left) & (col < left + 16)
            each.append(plain_region(state, spec, tokens[here], (row[here] - top) * 16 + col[here] - left))
    expected = torch.stack(each).mean(dim=0)
    for cuts in ((), (50, 51, 200)):
        assert torch.allclose(module.encode(cut(x, row, col, *cuts), 300).vector.double(), expected, atol=1e-5)


def test_presets_are_the_names_that_a_config_takes():
    assert tuple(SLIDE_PRESETS) == SLIDE_ENCODERS
    assert all(preset.spec.dim == preset.dim for preset in SLIDE_PRESETS.values())
