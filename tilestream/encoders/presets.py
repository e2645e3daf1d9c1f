"""Encoders of other people by name: what they are, where their weights lie, and what their authors feed them.

Facts are from each model's own card at `https://huggingface.co/<repository>` and from its code; where a card speaks of tiles of 256 px that
its transform makes 224 px, the tile is 256 px. Weights of presets that are plain vision transformers run on our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Pixels = tuple[tuple[float, float, float], tuple[float, float, float]]

IMAGENET: Pixels = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Pixels = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPTIMUS: Pixels = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
CLIP: Pixels = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HIBOU: Pixels = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
SATELLITE: Pixels = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))
RUDOLF: Pixels = ((0.7072, 0.5787, 0.7036), (0.2119, 0.2301, 0.1775))
LUNIT: Pixels = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))


@dataclass(frozen=True)
class Preset:
    """One encoder."""

    name: str
    repository: str
    """Hub repository that holds the weights."""
    file: str
    """Name of the weights file in it."""
    licence: str
    gated: bool
    """Whether its page must be accepted before its files can be fetched."""
    mpp: float | None
    """µm/px of its tiles; None: any."""
    precision: str
    """Number format that its authors run it in."""
    vit: Mapping[str, Any] | None
    """Fields of `ViTConfig`, or None for a model that is no plain vision transformer."""
    pixels: Pixels = IMAGENET
    """Mean and standard deviation that pixels are normalised with."""
    through: str = "tilestream"
    """`tilestream`: our vision transformer; else the encoder name that builds it, or `module:factory` for one that needs its authors' code."""
    weights_side: int | None = None
    """Patches along a side of the position table in the file, where it is not that of the tile: it is interpolated."""
    antialias: bool = False
    """Whether that interpolation is antialiased."""
    mpp_range: tuple[float, float] | None = None
    """Least and greatest µm/px that it serves; None: within 5 % of `mpp`."""
    other: Mapping[str, Any] = field(default_factory=dict)
    """`dim`, `tile` and `output` of a model that is no plain vision transformer."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the encoder that builds it, where `through` names one."""
    names: tuple[tuple[str, str], ...] = ()
    """Patterns and replacements of names in its file that are its own, before any other conversion."""
    asked: tuple[str, ...] = ()
    """Fields of `ViTConfig` that are told in code behind its gate only: `encoder.args` must have them."""
    bands: tuple[str, ...] = ()
    """The bands that it takes, by common name, in order; empty where it takes colours."""
    note: str | None = None
    """What else a user should know."""

    @property
    def page(self) -> str:
        """Where the model is described and its terms are accepted."""
        return f"https://huggingface.co/{self.repository}"


def _giant(**options: Any) -> dict[str, Any]:
    return {"dim": 1536, "depth": 40, "heads": 24, "patch": 14, "hidden": 8192, "gated": True, "layer_scale": 1e-5} | options


def _huge(**options: Any) -> dict[str, Any]:
    return {"dim": 1280, "depth": 32, "heads": 16, "patch": 14, "hidden": 6832, "gated": True, "layer_scale": 1e-5} | options


def _prithvi_600(**options: Any) -> dict[str, Any]:
    return {"dim": 1280, "depth": 32, "heads": 16, "patch": 14} | options


def _large(**options: Any) -> dict[str, Any]:
    return {"dim": 1024, "depth": 24, "heads": 16} | options


def _base(**options: Any) -> dict[str, Any]:
    return {"dim": 768, "depth": 12, "heads": 12} | options


def _small(**options: Any) -> dict[str, Any]:
    return {"dim": 384, "depth": 12, "heads": 6} | options


KAIKO, WAIV = "Kaiko non-commercial", "Waiv non-commercial"
ALL_SCALES = (0.25, 2.0)
"""µm/px of encoders that were trained at 0.25, 0.5, 1 and 2."""

_TIMM, _SAFE = "pytorch_model.bin", "model.safetensors"
_DINOV2 = {"patch": 14, "layer_scale": 1.0, "embed_prefix": False}
_DINOV3 = {"position": "rope", "registers": 4, "layer_scale": 1.0, "eps": 1e-5}
_RUDOLF = {
    "patch": 8, "registers": 8, "layer_scale": 1e-5, "position": "rope", "qk_norm": True, "embed_prefix": False, "output": "class+mean",
}  # fmt: skip
_PRITHVI = {"bands": 6, "eps": 1e-5, "position": "sincos", "output": "mean"}
HLS = ("blue", "green", "red", "nir08", "swir16", "swir22")
_RESIZED = {"tile": 256, "interpolation": "bilinear"}

_ALL = (
    Preset("uni", "MahmoodLab/UNI", _TIMM, "CC-BY-NC-ND-4.0", True, 0.5, "fp16", _large(layer_scale=1e-5, **_RESIZED)),
    Preset(
        "uni2-h", "MahmoodLab/UNI2-h", _TIMM, "CC-BY-NC-ND-4.0", True, 0.5, "bf16", _giant(depth=24, registers=8, embed_prefix=False, **_RESIZED)
    ),
    Preset("virchow", "paige-ai/Virchow", _TIMM, "Apache-2.0", True, 0.5, "fp16", _huge(output="class+mean")),
    Preset("virchow2", "paige-ai/Virchow2", _TIMM, "CC-BY-NC-ND-4.0", True, 0.5, "fp16", _huge(registers=4, output="class+mean"), mpp_range=ALL_SCALES),
    Preset(
        "virchow2-cls", "paige-ai/Virchow2", _TIMM, "CC-BY-NC-ND-4.0", True, 0.5, "fp16", _huge(registers=4), mpp_range=ALL_SCALES,
        note="Virchow2's class token alone, as PRISM2 takes it",
    ),
    Preset("gigapath", "prov-gigapath/prov-gigapath", _TIMM, "Apache-2.0", True, 0.5, "fp16", _giant(patch=16, tile=256, resize=256), note="its card: deployed use is out of scope"),
    Preset(
        "gigapath-flash", "prov-gigapath/prov-gigapath-flash", _TIMM, "Apache-2.0", True, 0.5, "fp16",
        _small(hidden=2048, gated=True, layer_scale=1e-5, tile=256, resize=256),
    ),
    Preset("mstar", "Wangyh/mSTAR", _TIMM, "CC-BY-NC-ND-4.0", True, 0.5, "fp16", _large(layer_scale=1e-5, **_RESIZED)),
    Preset(
        "openmidnight", "SophontAI/OpenMidnight", "teacher_checkpoint_load.pt", "Apache-2.0", True, None, "fp16",
        _giant(registers=4, embed_prefix=False), note="its authors state no µm/px; others run it at 0.5",
    ),
    Preset(
        "pathorchestra", "AI4Pathology/PathOrchestra", _TIMM, "CC-BY-NC-ND-4.0", True, 0.5, "fp16", None,
        through="timm:hf-hub:AI4Pathology/PathOrchestra", arguments={"init_values": 1e-5}, other={"dim": 1024, "tile": 224, "output": "class token"},
        note="pixels are normalised as its own configuration says",
    ),
    Preset(
        "prost40m", "waticlems/Prost40M", _SAFE, "see its page", False, 0.5, "fp32", None, through="timm:hf-hub:waticlems/Prost40M",
        other={"dim": 384, "tile": 224, "output": "class token"}, note="pixels are normalised as its own configuration says",
    ),
    Preset(
        "h-optimus-0", "bioptimus/H-optimus-0", _TIMM, "Apache-2.0", True, 0.5, "fp16", _giant(registers=4, embed_prefix=False), OPTIMUS
    ),
    Preset(
        "h-optimus-1", "bioptimus/H-optimus-1", _TIMM, "CC-BY-NC-ND-4.0", True, 0.5, "fp16", _giant(registers=4, embed_prefix=False), OPTIMUS
    ),
    Preset(
        "h0-mini", "bioptimus/H0-mini", _TIMM, "CC-BY-NC-ND-4.0", True, 0.5, "fp16",
        _base(patch=14, registers=4, embed_prefix=False, hidden=4096, gated=True, layer_scale=1e-5, output="class+mean"), OPTIMUS,
    ),
    Preset("phikon", "owkin/phikon", _SAFE, "Owkin non-commercial", False, 0.5, "fp32", _base(eps=1e-12, embed_prefix=False)),
    Preset("phikon-v2", "owkin/phikon-v2", _SAFE, "Owkin non-commercial", False, 0.5, "fp32", _large(layer_scale=1.0, embed_prefix=False)),
    Preset(
        "phaet", "wearewaiv/phaet", _SAFE, WAIV, True, 0.5, "fp32", _large(layer_scale=1.0, embed_prefix=False, unit_norm=True),
        note="Phikon-v2 tuned further; normalisation and µm/px are Phikon-v2's",
    ),
    Preset("hibou-b", "histai/hibou-b", _SAFE, "Apache-2.0", True, 0.5, "fp32", _base(registers=4, **_DINOV2), HIBOU, weights_side=16),
    Preset("hibou-l", "histai/hibou-L", _SAFE, "Apache-2.0", True, 0.5, "fp32", _large(registers=4, **_DINOV2), HIBOU, weights_side=16),
    Preset(
        "midnight-12k", "kaiko-ai/midnight", _SAFE, "MIT", False, 0.5, "fp16",
        _giant(layer_scale=1.0, embed_prefix=False, output="class+mean"), HALF, mpp_range=ALL_SCALES,
    ),
    Preset(
        "mascaret", "wearewaiv/mascaret", _SAFE, WAIV, True, 0.5, "fp32", _giant(layer_scale=1.0, embed_prefix=False, unit_norm=True), HALF,
        note="Midnight-12k tuned further; normalisation and µm/px are Midnight-12k's",
    ),
    Preset("kaiko-vits8", "1aurent/vit_small_patch8_224.kaiko_ai_towards_large_pathology_fms", _SAFE, KAIKO, False, 0.5, "fp32", _small(patch=8), HALF),
    Preset("kaiko-vitb8", "1aurent/vit_base_patch8_224.kaiko_ai_towards_large_pathology_fms", _SAFE, KAIKO, False, 0.5, "fp32", _base(patch=8), HALF),
    Preset("kaiko-vits16", "1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms", _SAFE, KAIKO, False, 0.5, "fp32", _small(), HALF),
    Preset("kaiko-vitb16", "1aurent/vit_base_patch16_224.kaiko_ai_towards_large_pathology_fms", _SAFE, KAIKO, False, 0.5, "fp32", _base(), HALF),
    Preset(
        "kaiko-vitl14", "1aurent/vit_large_patch14_reg4_224.kaiko_ai_towards_large_pathology_fms", _SAFE, KAIKO, False, 0.5, "fp32",
        _large(patch=14, registers=4, layer_scale=1e-5, embed_prefix=False), HALF, weights_side=37, antialias=True,
    ),
    Preset("lunit-vits8", "1aurent/vit_small_patch8_224.lunit_dino", _SAFE, "Lunit non-commercial", False, 0.5, "fp32", _small(patch=8), LUNIT, mpp_range=(0.25, 0.5)),
    Preset(
        "gpfm", "majiabo/GPFM", "GPFM.pth", "MIT on its hub page, CC-BY-NC-ND-4.0 in its code repository", False, 0.25, "fp16",
        _large(**_DINOV2, tile=512, interpolation="bilinear"), weights_side=16, note="the two places that state its licence disagree: ask its authors",
    ),
    Preset("dinov2-s", "facebook/dinov2-small", _SAFE, "Apache-2.0", False, None, "fp32", _small(**_DINOV2), weights_side=37),
    Preset("dinov2-b", "facebook/dinov2-base", _SAFE, "Apache-2.0", False, None, "fp32", _base(**_DINOV2), weights_side=37),
    Preset("dinov2-l", "facebook/dinov2-large", _SAFE, "Apache-2.0", False, None, "fp32", _large(**_DINOV2), weights_side=37),
    Preset(
        "dinov2-g", "facebook/dinov2-giant", _SAFE, "Apache-2.0", False, None, "fp32", _giant(layer_scale=1.0, embed_prefix=False), weights_side=37
    ),
    Preset("dinov3-s", "facebook/dinov3-vits16-pretrain-lvd1689m", _SAFE, "DINOv3", True, None, "fp32", _small(**_DINOV3)),
    Preset("dinov3-b", "facebook/dinov3-vitb16-pretrain-lvd1689m", _SAFE, "DINOv3", True, None, "fp32", _base(**_DINOV3)),
    Preset("dinov3-l", "facebook/dinov3-vitl16-pretrain-lvd1689m", _SAFE, "DINOv3", True, None, "fp32", _large(**_DINOV3)),
    Preset(
        "dinov3-l-sat", "facebook/dinov3-vitl16-pretrain-sat493m", _SAFE, "DINOv3", True, None, "fp32", _large(**_DINOV3), SATELLITE,
        note="trained on satellite pictures of 0.6 m a pixel",
    ),
    *(
        Preset(
            f"prithvi-eo-2{end}", f"ibm-nasa-geospatial/Prithvi-EO-2.0-{size}", f"Prithvi_EO_V2_{size.replace('-', '_')}.pt", "Apache-2.0", False, 30e6, "fp32",
            shape(**_PRITHVI), bands=HLS, note="source.normalise: prithvi-eo-2; one day, whose date and place are not told",
        )
        for end, size, shape in (
            ("", "300M", _large), ("-tl", "300M-TL", _large), ("-600", "600M", _prithvi_600), ("-600-tl", "600M-TL", _prithvi_600),
        )
    ),
    Preset(
        "clay-1.5", "made-with-clay/Clay", "v1.5/clay-v1.5.ckpt", "Apache-2.0", False, None, "fp32", None, through="claymodel",
        other={"dim": 1024, "tile": 256, "output": "class token"}, note="args.sensor: sentinel-2, landsat or naip; source.normalise: clay-1.5-<sensor>; needs the package claymodel",
    ),
    Preset(
        "resnet50", "timm/resnet50.a1_in1k", _SAFE, "Apache-2.0", False, None, "fp32", None, through="timm:resnet50.a1_in1k",
        other={"dim": 2048, "tile": 224, "output": "mean of the last map"},
    ),
    Preset(
        "conch", "MahmoodLab/conch", _TIMM, "CC-BY-NC-ND-4.0", True, 0.5, "fp32", None, through="module:factory",
        other={"dim": 512, "tile": 512, "output": "attention pool"},
    ),
    Preset(
        "conch-v1.5", "MahmoodLab/conchv1_5", _TIMM, "CC-BY-NC-ND-4.0", True, 0.5, "fp16", None, through="module:factory",
        other={"dim": 768, "tile": 512, "output": "attention pool"},
    ),
    Preset(
        "ctranspath", "jamesdolezal/CTransPath", "ctranspath.pth", "GPL-3.0", False, 1.0, "fp32", None, through="module:factory",
        other={"dim": 768, "tile": 256, "output": "mean of the last map"},
    ),
    Preset(
        "keep", "Astaxanthin/KEEP", _SAFE, "MIT", False, None, "fp16", _large(layer_scale=1e-5, projection=768, unit_norm=True),
        names=((r"^visual_head\.", "visual.projection."), (r"\.ls(\d)\.weight$", r".ls\1.gamma")), note="its authors state no µm/px",
    ),
    Preset(
        "plip", "vinid/plip", _TIMM, "MIT; its authors: for research", False, 0.5, "fp32", None, CLIP, through="hf:vinid/plip",
        other={"dim": 512, "tile": 224, "output": "projection of the class token after the last norm, not scaled to unit length"},
    ),
    Preset(
        "quiltnet", "wisdomik/QuiltNet-B-32", _TIMM, "MIT", False, 0.5, "fp32", None, CLIP, through="hf:wisdomik/QuiltNet-B-32",
        other={"dim": 512, "tile": 224, "output": "projection of the class token after the last norm, not scaled to unit length"},
    ),
    *(
        Preset(
            name, f"Aignostics/RudolfV-2{end}", _SAFE, "Aignostics, research only", True, 0.5, "fp32", shape(**_RUDOLF), RUDOLF, mpp_range=ALL_SCALES,
            asked=("rope_base", "rope_places"), note="its code is behind its gate: not compared with it, and how its patches are turned must be said",
        )
        for name, end, shape in (("rudolfv2", "", _giant), ("rudolfv2-b", "-B", _base), ("rudolfv2-s", "-S", _small))
    ),
    Preset(
        "musk", "xiangjx/musk", _SAFE, "CC-BY-NC-ND-4.0", True, 0.5, "fp16", None, HALF, through="module:factory",
        other={"dim": 1024, "tile": 384, "output": "class token"},
    ),
)  # fmt: skip

PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in _ALL}
"""Presets by name."""
