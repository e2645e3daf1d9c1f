"""RudolfV-2 on our vision transformer equals a plain implementation of what is public of it; what is not must be said."""

import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from tests.support.random_models import normalised, randomised, relative_error, tissue
from tilestream.encoders.catalogue import EncoderSpec
from tilestream.encoders.preset_encoders import build_preset, preset_vit
from tilestream.encoders.presets import PRESETS
from tilestream.encoders.registry import build_encoder
from tilestream.errors import ConfigError

DEPTH = 2


def angles(side, quarter, base, places):
    """(side * side, 2 * quarter) what each channel of the first half of a head is turned by: row first, then column."""
    found = []
    for row in range(side):
        for col in range(side):
            line = []
            for place in (row, col):
                at = ((place + 0.5) / side * 2 - 1) * 2 * math.pi if places == "centred" else float(place)
                line += [at / base ** (k / quarter) for k in range(quarter)]
            found.append(line)
    return torch.tensor(found, dtype=torch.float64)


def plain(state, pixels, heads, gated, base, places):
    """Class token beside the mean of the patches: names as the authors' adapter in slide2vec reads them."""
    get = {key.removeprefix("model."): value for key, value in state.items()}
    x = F.conv2d(pixels, get["patch_embed.proj.weight"], get["patch_embed.proj.bias"], stride=8)
    side, dim = x.shape[-1], x.shape[1]
    before = torch.cat([get["cls_token"], get["register_tokens"]], dim=1).expand(len(x), -1, -1)
    x = torch.cat([before, x.flatten(2).transpose(1, 2)], dim=1)
    turn = torch.cat([torch.zeros(9, dim // heads // 2), angles(side, dim // heads // 4, base, places)])
    cos, sin = (part.repeat(1, 2).float() for part in (turn.cos(), turn.sin()))

    def norm(name, value):
        return F.layer_norm(value, value.shape[-1:], get[f"{name}.weight"], get[f"{name}.bias"], 1e-6)

    def turned(value):
        low, high = value.chunk(2, dim=-1)
        return value * cos + torch.cat([-high, low], dim=-1) * sin

    for block in range(DEPTH):
        at = f"blocks.{block}"
        qkv = F.linear(norm(f"{at}.norm1", x), get[f"{at}.attn.qkv.weight"], get[f"{at}.attn.qkv.bias"])
        q, k, v = qkv.reshape(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k = turned(norm(f"{at}.attn.q_norm", q)), turned(norm(f"{at}.attn.k_norm", k))
        mixed = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v
        mixed = F.linear(mixed.transpose(1, 2).flatten(2), get[f"{at}.attn.proj.weight"], get[f"{at}.attn.proj.bias"])
        x = x + get[f"{at}.ls1.gamma"] * mixed
        inner = F.linear(norm(f"{at}.norm2", x), get[f"{at}.mlp.fc1.weight"], get[f"{at}.mlp.fc1.bias"])
        if gated:
            gate, inner = inner.chunk(2, dim=-1)
            inner = F.silu(gate) * inner
        else:
            inner = F.gelu(inner)
        x = x + get[f"{at}.ls2.gamma"] * F.linear(inner, get[f"{at}.mlp.fc2.weight"], get[f"{at}.mlp.fc2.bias"])
    x = norm("norm", x)
    return torch.cat([x[:, 0], x[:, 9:].mean(dim=1)], dim=1)


@pytest.mark.parametrize(
    ("name", "dim"),
    [("rudolfv2-s", 768), pytest.param("rudolfv2-b", 1536, marks=pytest.mark.slow), pytest.param("rudolfv2", 3072, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("told", [{"rope_base": 100.0, "rope_places": "centred"}, {"rope_base": 10_000.0, "rope_places": "index"}])
def test_rudolfv2_equals_plain_arithmetic_from_a_file_of_its_names(name, dim, told, tmp_path):
    preset, tiles = PRESETS[name], tissue(224, count=1)
    made = randomised(preset_vit(preset, depth=DEPTH, **told))
    state = {f"model.{key.replace('reg_token', 'register_tokens')}": value for key, value in made.state_dict().items()}
    state["model.blocks.0.rope.inv_freq"] = torch.ones(16)
    torch.save(state, tmp_path / "rudolf.pth")
    ours = build_preset(preset, str(tmp_path / "rudolf.pth"), depth=DEPTH, **told)
    with torch.inference_mode():
        expected = plain(
            state, normalised(tiles, *preset.pixels), ours.config.heads, ours.config.gated, told["rope_base"], told["rope_places"]
        )
        found = ours(tiles)
        assert relative_error(found, expected) < 1e-5
        assert torch.equal(found, ours(tiles))
    assert (ours.dim, ours.mpp_range, ours.vector) == (dim, (0.25, 2.0), "class token, mean of the patch tokens")


def test_how_patches_are_turned_is_asked_for(tmp_path):
    weights = str(tmp_path / "rudolf.pth")
    with pytest.raises(ConfigError, match=r"encoder\.args\.rope_base: rudolfv2-s needs it.*Aignostics/RudolfV-2-S"):
        build_encoder(EncoderSpec("rudolfv2-s", weights))
    with pytest.raises(ConfigError, match=r"encoder\.args\.rope_places: rudolfv2-s needs it"):
        build_encoder(EncoderSpec("rudolfv2-s", weights, {"rope_base": 100}))
    with pytest.raises(ConfigError, match=r"encoder\.args\.rope_places: 'middle', but it must be one of centred, index"):
        preset_vit(PRESETS["rudolfv2-s"], depth=1, rope_places="middle")
    with pytest.raises(ConfigError, match=r"encoder\.args\.rope_base: 0, but it must be a number above 0"):
        preset_vit(PRESETS["rudolfv2-s"], depth=1, rope_base=0)
