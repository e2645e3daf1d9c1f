"""The slide encoder of GigaPath against outputs of the published module, and dilated attention against a dense transcription of the published steps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import SHARED
from tilestream.encoders.weight_files import load_weights
from tilestream.encoders.weights import apply_weights
from tilestream.models.slides import dilated
from tilestream.models.slides.dilated import dilated_attention
from tilestream.models.slides.longnet import LongNet
from tilestream.models.slides.specs import RELEASED, Branches, LongNetSpec

GIGAPATH = LongNetSpec(inputs=1536, dim=768, depth=12, heads=16, hidden=3072)


@pytest.fixture(scope="module")
def published():
    path = SHARED / "longnet_small.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} of the published module is not beside the repository")
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def small(published):
    branches = Branches(*(tuple(published[name].tolist()) for name in ("segments", "ratios")))
    model = LongNet(LongNetSpec(32, 64, 2, 16, 256, branches))
    model.load_state_dict({name.removeprefix("weights."): value for name, value in published.items() if name.startswith("weights.")})
    return model


def encoded(model, published):
    cell = (published["coords"].double() / 256).floor().long()
    x = model.begin(len(cell))
    x[1:] = model.place(published["features"], cell[:, 1], cell[:, 0])
    return model.layers(x)


def plain(query, key, value, segments, ratios):
    """(n, heads, d) as the published module computes it: everything padded with zeros, nothing masked, outputs cut to n from the left."""
    n, heads, _ = query.shape
    outs, lses = [], []
    for length, ratio in zip(segments, ratios, strict=True):
        segment = min(length, n)
        cut = [torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -n % segment)).unflatten(0, (-1, segment)) for x in (query, key, value)]
        cut = [torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -segment % ratio)) for x in cut]  # (f, g, heads, d)
        out, lse = torch.zeros_like(cut[0]), torch.zeros(cut[0].shape[:3], dtype=query.dtype)
        for head in range(heads):
            seen = slice(head // (heads // ratio), None, ratio)
            q, k, v = (x[:, seen, head] for x in cut)
            logits = q @ k.transpose(1, 2)
            out[:, seen, head] = torch.softmax(logits, dim=2) @ v
            lse[:, seen, head] = torch.logsumexp(logits, dim=2)
        outs.append(out.flatten(0, 1)[:n])
        lses.append(lse.masked_fill(lse == 0, -1e8).flatten(0, 1)[:n])
    weights = torch.softmax(torch.stack(lses), dim=0)
    return (weights[..., None] * torch.stack(outs)).sum(dim=0)


def exact(published):
    """Every output in float64, by the published formulas over the weights, features and coordinates of the case."""
    weights = {name.removeprefix("weights."): value.double() for name, value in published.items() if name.startswith("weights.")}
    segments, ratios = (published[name].tolist() for name in ("segments", "ratios"))

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name, eps=1e-5):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    angles = (published["coords"].double() / 256).floor().flip(1)[:, :, None] * 10_000.0 ** (-torch.arange(16, dtype=torch.float64) / 16)
    x = linear(published["features"].double(), "patch_embed.proj") + torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)
    x = torch.cat([weights["cls_token"][0], x])
    found = {"layer_0": x}
    for layer in range(2):
        at = f"encoder.layers.{layer}."
        query, key, value = (
            linear(norm(x, f"{at}self_attn_layer_norm"), f"{at}self_attn.{part}_proj").unflatten(1, (16, -1)) for part in "qkv"
        )
        attended = plain(query * query.shape[-1] ** -0.5, key, value, segments, ratios).flatten(1)
        x = x + linear(norm(attended, f"{at}self_attn.inner_attn_ln"), f"{at}self_attn.out_proj")
        hidden = torch.nn.functional.gelu(linear(norm(x, f"{at}final_layer_norm"), f"{at}ffn.fc1"))
        found[f"layer_{layer + 1}"] = x = x + linear(norm(hidden, f"{at}ffn.ffn_layernorm"), f"{at}ffn.fc2")
    found["last_path"] = norm(x, "encoder.layer_norm")
    return {
        f"{kind}_{name}": norm(x[1:].mean(dim=0) if kind == "mean_pooled" else x[0], "norm", 1e-6)
        for name, x in found.items()
        for kind in ("mean_pooled", "class_token")
    }


def test_every_layer_equals_the_published_module_mean_pooled_and_class_token(published):
    """Within 1e-6 of the formulas in float64, and of the published float32 outputs, as far as these are (up to 1.34e-6, where ours are within 7.6e-7)."""
    model = small(published)
    found = {}
    for layer, x in enumerate(encoded(model, published)):
        found |= {f"mean_pooled_layer_{layer}": model.pooled(x), f"class_token_layer_{layer}": model.pooled(x, "class")}
    found |= {"mean_pooled_last_path": model.pooled(x, last_path=True), "class_token_last_path": model.pooled(x, "class", last_path=True)}
    wanted = exact(published)
    assert found.keys() == wanted.keys()
    for name, expected in wanted.items():
        rounding = float((published[name].double() - expected).abs().max())
        assert rounding < 1.5e-6, name
        assert float((found[name].double() - expected).abs().max()) <= 1e-6, name
        assert float((found[name] - published[name]).abs().max()) <= 1e-6 + (rounding if rounding > 1e-6 else 0), name


def test_chunks_of_queries_and_rows_change_nothing(published, monkeypatch):
    model = small(published)
    *_, whole = encoded(model, published)
    whole = whole.clone()
    monkeypatch.setattr(dilated, "CHUNK_VALUES", 100)
    monkeypatch.setattr("tilestream.models.slides.longnet.ROWS_AT_ONCE", 7)
    *_, parts = encoded(model, published)
    assert torch.allclose(parts, whole, atol=2e-6)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 40, 61, 96, 130])
@pytest.mark.parametrize("segments", [(8, 16, 64), (7, 10, 50), (16, 30, 33)])
def test_dilated_attention_equals_the_published_steps_also_where_they_displace_segments(n, segments):
    ratios, generator = (1, 2, 4), torch.Generator().manual_seed(n)
    query, key, value = (torch.randn(n, 4, 6, dtype=torch.float64, generator=generator) for _ in range(3))
    expected = plain(query, key, value, segments, ratios)
    out = torch.full((n, 4, 6), torch.nan, dtype=torch.float64)
    for head in range(4):
        dilated_attention(query[:, head], key[:, head], value[:, head], head, 4, Branches(segments, ratios), out[:, head])
    assert torch.allclose(out, expected, atol=1e-12)


def test_the_released_lengths_are_the_published_formula_and_displace_only_beyond_185363_tokens():
    assert RELEASED.segments == tuple(int(2**k) for k in np.linspace(10, np.log2((262144 // 256) ** 2), 5))
    assert not RELEASED.displaces(185_363)
    assert RELEASED.displaces(185_364)


def test_positions_are_those_of_the_published_table():
    model = LongNet(LongNetSpec(4, 16, 0, 4, 8))
    model.patch_embed["proj"].weight.zero_()
    row, col = torch.tensor([0, 3, 999]), torch.tensor([0, 7, 998])
    omega = 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    halves = [torch.cat([(at[:, None] * omega).sin(), (at[:, None] * omega).cos()], dim=1) for at in (row, col)]
    assert torch.equal(model.place(torch.zeros(3, 4), row, col), torch.cat(halves, dim=1).float())


def published_names():
    """The shapes of slide_encoder.pth by name, as its authors' module has them."""
    names = {"cls_token": (1, 1, 768), "patch_embed.proj.weight": (768, 1536), "patch_embed.proj.bias": (768,)}
    for layer in range(12):
        at = f"encoder.layers.{layer}."
        for part in ("q", "k", "v", "out"):
            names |= {f"{at}self_attn.{part}_proj.weight": (768, 768), f"{at}self_attn.{part}_proj.bias": (768,)}
        for norm, width in (
            ("self_attn.inner_attn_ln", 768),
            ("self_attn_layer_norm", 768),
            ("final_layer_norm", 768),
            ("ffn.ffn_layernorm", 3072),
        ):
            names |= {f"{at}{norm}.{kind}": (width,) for kind in ("weight", "bias")}
        names |= {f"{at}ffn.fc1.weight": (3072, 768), f"{at}ffn.fc1.bias": (3072,)}
        names |= {f"{at}ffn.fc2.weight": (768, 3072), f"{at}ffn.fc2.bias": (768,)}
    return names | {f"{norm}.{kind}": (768,) for norm in ("encoder.layer_norm", "norm") for kind in ("weight", "bias")}


def test_names_and_shapes_are_those_of_the_published_file():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in LongNet(GIGAPATH, seed=None).state_dict().items()}
    assert shapes == published_names()
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 86_330_880


@pytest.mark.slow
def test_a_file_of_full_size_loads_under_its_published_names(tmp_path):
    state = {name: torch.full(shape, 0.01) for name, shape in published_names().items()}
    path = Path(tmp_path / "slide_encoder.pth")
    torch.save({"model": state}, path)
    model = LongNet(GIGAPATH, seed=None)
    apply_weights(model, load_weights(path), path, "pool")
    assert sum(value.numel() for value in model.parameters()) == 86_330_880
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
