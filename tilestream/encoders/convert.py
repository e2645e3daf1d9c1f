"""State dicts of other libraries' vision transformers under the names of ours, which are timm's.

Known are timm's own names, those of DINOv2's code (Oquab et al. 2023, arXiv:2304.07193: `register_tokens`, `mlp.w12`, chunked `blocks`),
and those of Hugging Face's ViT, DINOv2 and DINOv2 with registers (`embeddings.*`, `encoder.layer.N.*` or `layer.N.*`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

ANCHORS = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight", "embeddings.patch_embeddings.weight")
"""Names of the patch projection, one of which every vision transformer has: what stands before it is no part of its names."""

_HUGGING = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"^(?:model\.)?(?:encoder\.)?layers?\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.attention\.o(?:ut)?_proj\.", ".attn.proj."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.fc2."),
    (r"\.attn\.q\.", ".attn.query."),
    (r"\.attn\.k\.", ".attn.key."),
    (r"\.attn\.v\.", ".attn.value."),
    (r"^layernorm\.", "norm."),
)
_DINOV2 = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"^(?:register_tokens|storage_tokens)$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_UNUSED = (
    *("mask_token", "embeddings.mask_token", "pooler.", "classifier.", "dino_head.", "ibot_head.", "head.", "decoder.", "rope_embed."),
    *("temporal_embed_enc.", "location_embed_enc."),  # of places and days that are not told, Prithvi adds nothing
)


def to_our_names(state: Mapping[str, Tensor], *, embed_prefix: bool) -> dict[str, Tensor]:
    """A state dict under our names; one that has them already comes back as it is, but for what inference never uses.

    Parameters
    ----------
    state : mapping of str to Tensor
        From a file.
    embed_prefix : bool
        Whether our model's `pos_embed` has entries for the tokens before the patches. Where not, an entry for the class token is added
        to the class token itself, which comes to the same.
    """
    hugging = any("embeddings.patch_embeddings" in key for key in state)
    rules = _HUGGING if hugging else _DINOV2
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if ".rope." in key:  # tables of angles, which are made from the shape
            continue
        name = key
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if not name.startswith(_UNUSED):
            found[name] = value
    for key in [key for key in found if key.endswith(".qkv.bias_mask")]:  # DINOv3's keys have no bias, whatever its file holds for them
        bias = key.removesuffix("_mask")
        queries, keys, values = found[bias].chunk(3)
        found[bias] = torch.cat([queries, torch.zeros_like(keys), values])
        del found[key]
    if not any(".mlp.gate_proj." in key for key in found):
        found = {key.replace(".mlp.up_proj.", ".mlp.fc1."): value for key, value in found.items()}
    found = _fuse(found)
    if not embed_prefix:
        _fold_class_position(found)
    return found


def take_first_frame(state: dict[str, Tensor], cells: int) -> None:
    """Make a model of pictures of one of several frames, in place: patches of one frame are flat, and positions are those of the first, class token and `cells` patches."""
    weight, table = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if weight is not None and weight.ndim == 5 and weight.shape[2] == 1:
        state["patch_embed.proj.weight"] = weight.squeeze(2)
        if table is not None and (table.shape[1] - 1) % cells == 0:
            state["pos_embed"] = table[:, : 1 + cells]


def resize_positions(state: dict[str, Tensor], side: int, prefix: int, *, antialias: bool) -> None:
    """Interpolate `pos_embed` in place to side x side patches, bicubic in float32; entries for `prefix` tokens before them stay."""
    table = state.get("pos_embed")
    if table is None:
        return
    before, cells = table[:, :prefix], table[:, prefix:]
    have = round(cells.shape[1] ** 0.5)
    if have == side or have * have != cells.shape[1]:
        return
    grid = cells.float().reshape(1, have, have, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False, antialias=antialias)
    state["pos_embed"] = torch.cat([before, grid.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)


_FUSED = {".attn.qkv.": (".attn.query.", ".attn.key.", ".attn.value."), ".mlp.fc1.": (".mlp.gate_proj.", ".mlp.up_proj.")}


def _fuse(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Projections that we have as one matrix and others as several: query, key and value; gate and values of a SwiGLU."""
    fused = dict(state)
    for key in [key for key in state if key.endswith(".attn.query.bias")]:  # DINOv3's keys have no bias
        fused.setdefault(key.replace(".query.", ".key."), torch.zeros_like(state[key]))
    for whole, parts in _FUSED.items():
        for key in [key for key in fused if parts[0] in key]:
            fused[key.replace(parts[0], whole)] = torch.cat([fused.pop(key.replace(parts[0], part)) for part in parts])
    return fused


def _fold_class_position(state: dict[str, Tensor]) -> None:
    table, token = state.get("pos_embed"), state.get("cls_token")
    if table is None or token is None:
        return
    cells = table.shape[1] - 1
    if round(cells**0.5) ** 2 == cells and round(table.shape[1] ** 0.5) ** 2 != table.shape[1]:
        state["cls_token"] = token + table[:, :1]
        state["pos_embed"] = table[:, 1:]
