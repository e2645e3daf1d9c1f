"""The vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), with the parameter names and shapes of timm's `VisionTransformer`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tilestream.errors import ConfigError
from tilestream.models.patch_embed import BlankConv, BlankLinear, freeze, normalise_tiles, seeded_init, unfold_patches
from tilestream.models.positions import PatchRotation, sincos_2d
from tilestream.models.vit_config import ViTConfig, vector_words


class _PatchProjection(nn.Module):
    """The patch projection: a convolution's parameters, applied as one matrix product, which obeys the float32 setting of products."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = BlankConv(config.channels, config.dim, config.patch, config.patch, bias=not config.pre_norm)

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, channels, size, size) to (n, side * side, dim)."""
        weight = self.proj.weight
        return F.linear(unfold_patches(pixels, weight.shape[-1]), weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Self-attention among all tokens of a tile."""

    def __init__(self, dim: int, heads: int, rotation: PatchRotation | None = None, *, norm_eps: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.rotation = rotation
        self.q_norm, self.k_norm = (nn.Identity() if norm_eps is None else nn.LayerNorm(dim // heads, eps=norm_eps) for _ in range(2))
        self.qkv = BlankLinear(dim, 3 * dim)
        self.proj = BlankLinear(dim, dim)

    def forward(self, tokens: Tensor, wanted: int | None = None) -> Tensor:
        """(n, t, dim) to (n, t, dim), or to (n, wanted, dim), the first tokens alone, which still look at all."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, -1))  # (n, t, 3, heads, dim / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (n, heads, t, dim / heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotation is not None:
            q, k = self.rotation(q), self.rotation(k)
        mixed = F.scaled_dot_product_attention(q[:, :, :wanted], k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between, applied to each token alone."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = BlankLinear(dim, hidden)
        self.fc2 = BlankLinear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out


class GatedMlp(nn.Module):
    """SwiGLU: the first half of the hidden channels, through SiLU, gates the second."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = BlankLinear(dim, hidden)
        self.fc2 = BlankLinear(hidden // 2, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        gate, values = self.fc1(tokens).chunk(2, dim=-1)
        out: Tensor = self.fc2(F.silu(gate) * values)
        return out


class _LayerScale(nn.Module):
    """A factor for each channel."""

    keeps_init = True

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), value))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class _Block(nn.Module):
    """Norm, attention, norm, MLP, each half added to what came in."""

    def __init__(self, config: ViTConfig, rotation: PatchRotation | None) -> None:
        super().__init__()
        dim, scale = config.dim, config.layer_scale
        hidden = config.hidden or 4 * dim
        self.norm1 = nn.LayerNorm(dim, eps=config.eps)
        self.attn = Attention(dim, config.heads, rotation, norm_eps=config.eps if config.qk_norm else None)
        self.ls1 = nn.Identity() if scale is None else _LayerScale(dim, scale)
        self.norm2 = nn.LayerNorm(dim, eps=config.eps)
        self.mlp = GatedMlp(dim, hidden) if config.gated else Mlp(dim, hidden)
        self.ls2 = nn.Identity() if scale is None else _LayerScale(dim, scale)

    def forward(self, tokens: Tensor, wanted: int | None = None) -> Tensor:
        """(n, t, dim) to (n, t, dim), or to (n, wanted, dim), the first tokens alone."""
        tokens = tokens[:, :wanted] + self.ls1(self.attn(self.norm1(tokens), wanted))
        out: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return out


class VisionTransformer(nn.Module):
    """A plain pre-norm vision transformer; frozen and in eval mode as built.

    Names and shapes of the state dict are timm's, so that its checkpoints load strictly: `cls_token`, `reg_token`, `pos_embed`,
    `patch_embed.proj`, `norm_pre`, `blocks.N.{norm1, attn.qkv, attn.proj, ls1.gamma, norm2, mlp.fc1, mlp.fc2, ls2.gamma}`, `norm`.
    There is no classifier: `tilestream.encoders.weights.apply_weights` drops `head.*`. A checkpoint with `fc_norm.*` normalises after
    averaging and has other features than any that this model gives; it is refused, as every unexpected key is.

    Parameters
    ----------
    config : ViTConfig
    """

    precisions = ("fp32", "bf16", "fp16")
    """Number formats that it can be cast to."""
    ignored_weights = ("head.",)
    """Prefixes of a checkpoint's keys that loading drops."""
    reentrant = True
    """Threads may call it at the same time."""
    mpp: float | None = None
    """µm/px that the weights were trained at; None: any."""
    mpp_range: tuple[float, float] | None = None
    """Least and greatest µm/px that they serve; None: within 5 % of `mpp`."""
    bands: int | tuple[str, ...] = 0
    """Bands of a tile, by number or by name; 0 where tiles are colours."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.features
        self.vector = vector_words(config)
        self.patch, self.bands = config.patch, config.bands
        self.tile_size = config.tile or config.img_size
        self.patch_embed = _PatchProjection(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.dim)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.empty(1, config.registers, config.dim)) if config.registers else None
        self.norm_pre = nn.LayerNorm(config.dim, eps=config.eps) if config.pre_norm else nn.Identity()
        rotation = None
        if config.position == "rope":
            rotation = PatchRotation(config.side, config.dim // config.heads, config.rope_base, config.rope_places)
        self.blocks = nn.Sequential(*[_Block(config, rotation) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        length = config.side**2 + (config.prefix if config.embed_prefix else 0)
        self.pos_embed = nn.Parameter(torch.empty(1, length, config.dim)) if rotation is None else None
        self.projection = _projection(config)
        seeded_init(self, config.seed, std=0.02)
        if config.position == "sincos" and self.pos_embed is not None:
            self.pos_embed.data = _sincos_table(config, length)
        freeze(self)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, size, size) uint8, or (n, bands, size, size) float32, to (n, dim) in the weights' dtype, or to (n, side * side, dim) where the output is `tokens`.

        Raises
        ------
        ConfigError
            Where tiles have another size than the model was built for.
        """
        size, channels = self.tile_size, self.config.channels
        if tuple(images.shape[1:]) != (channels, size, size):
            shape = " x ".join(str(s) for s in images.shape[1:])
            fits = images.shape[-1] % self.config.patch == 0 and self.config.tile is None
            other = f", or encoder.args.img_size to {images.shape[-1]}: positions are then interpolated" if fits else ""
            raise ConfigError(
                f"tiles.size: the encoder takes {channels} x {size} x {size} px, got {shape}. Set tiles.size to {size}{other}."
            )
        if self.config.tile is not None:
            images = resize_tiles(images, self.config.resize or self.config.img_size, self.config.img_size, self.config.interpolation)
        dtype = self.patch_embed.proj.weight.dtype
        pixels = normalise_tiles(images, (self.config.mean, self.config.std), dtype, bands=self.config.bands)
        tokens = self.forward_features(pixels, 1 if self.config.output == "class" else None)
        out = self.projection(self._pool(tokens))
        return F.normalize(out, dim=-1) if self.config.unit_norm else out

    def forward_features(self, pixels: Tensor, wanted: int | None = None) -> Tensor:
        """(n, channels, size, size) normalised pixels to (n, prefix + side * side, dim) tokens after the last norm, or the first `wanted` of them.

        The last block computes no other token, which for the class token takes most of that block's work away.
        """
        tokens = self.patch_embed(pixels)
        prefix = [p.expand(len(tokens), -1, -1) for p in (self.cls_token, self.reg_token) if p is not None]
        if self.pos_embed is None:
            tokens = torch.cat([*prefix, tokens], dim=1)
        elif self.config.embed_prefix:
            tokens = torch.cat([*prefix, tokens], dim=1) + self.pos_embed
        else:
            tokens = torch.cat([*prefix, tokens + self.pos_embed], dim=1)
        tokens = self.norm_pre(tokens)
        *before, last = self.blocks
        for block in before:
            tokens = block(tokens)
        out: Tensor = self.norm(last(tokens, wanted))
        return out

    def _pool(self, tokens: Tensor) -> Tensor:
        """(n, prefix + side * side, dim), or the class token alone where no other is wanted, to the output that was asked for."""
        patches = tokens[:, self.config.prefix :]
        match self.config.output:
            case "class":
                return tokens[:, 0]
            case "mean":
                return patches.mean(dim=1)
            case "class+mean":
                return torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1)
            case _:
                return patches


def _projection(config: ViTConfig) -> nn.Module:
    """Two layers behind the output, or nothing."""
    if config.projection is None:
        return nn.Identity()
    return nn.Sequential(BlankLinear(config.pooled, config.projection), nn.GELU(), BlankLinear(config.projection, config.projection))


def resize_tiles(images: Tensor, side: int, crop: int, interpolation: str) -> Tensor:
    """Resize (n, 3, size, size) uint8 to `side` with antialiasing, as Pillow does it, and take the centre: (n, 3, crop, crop) uint8."""
    if images.shape[-1] != side:
        if images.device.type == "cpu":
            images = F.interpolate(images, (side, side), mode=interpolation, antialias=True)
        else:
            images = F.interpolate(images.float(), (side, side), mode=interpolation, antialias=True).round_().clamp_(0, 255).to(torch.uint8)
    start = round((side - crop) / 2)  # as torchvision crops
    return images[..., start : start + crop, start : start + crop]


def _sincos_table(config: ViTConfig, length: int) -> Tensor:
    """(1, length, dim) encoding of the patches' grid indices; zeros for the tokens before them."""
    cell = torch.arange(config.side**2)
    table = torch.zeros(1, length, config.dim)
    table[0, length - len(cell) :] = sincos_2d(cell // config.side, cell % config.side, config.dim)
    return table


def vit_tiny_patch16_224(**options: Any) -> VisionTransformer:
    """ViT-Ti/16: 5.5 million parameters, 192 features; `options` are fields of `ViTConfig`."""
    return VisionTransformer(ViTConfig(dim=192, depth=12, heads=3, **options))


def vit_small_patch16_224(**options: Any) -> VisionTransformer:
    """ViT-S/16: 22 million parameters, 384 features; `options` are fields of `ViTConfig`."""
    return VisionTransformer(ViTConfig(dim=384, depth=12, heads=6, **options))


def vit_base_patch16_224(**options: Any) -> VisionTransformer:
    """ViT-B/16: 86 million parameters, 768 features; `options` are fields of `ViTConfig`."""
    return VisionTransformer(ViTConfig(dim=768, depth=12, heads=12, **options))


def vit_large_patch16_224(**options: Any) -> VisionTransformer:
    """ViT-L/16: 303 million parameters, 1024 features; `options` are fields of `ViTConfig`."""
    return VisionTransformer(ViTConfig(dim=1024, depth=24, heads=16, **options))
