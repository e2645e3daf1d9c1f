"""Slide encoders by name: what they are made of, and the contract of each with what it is given. Imports no library that computes.

Facts are from the authors' code and papers; weights of gated repositories were not opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tilestream.models.slides.specs import AlibiSpec, GatedSpec, LongNetSpec, RegionSpec, RemoteSpec, Spec


@dataclass(frozen=True)
class SlidePreset:
    """One slide encoder."""

    name: str
    repository: str
    """Hub repository that holds the weights, or the address of the page that says where they are."""
    file: str
    """Name of the weights file."""
    licence: str
    gated: bool
    """Whether its page must be accepted before its files can be fetched."""
    tile_encoder: str
    """The encoder, as `encoder.name` has it, whose vectors it was trained on."""
    tile: int
    """Side of its tiles, px."""
    mpp: float
    """µm/px of its tiles."""
    trained: str
    """What it was trained on."""
    output: str
    """What its vector is."""
    spec: Spec
    """Its shape."""
    options: frozenset[str] = frozenset()
    """Arguments that it takes."""
    note: str | None = None
    """What else a user should know."""

    @property
    def inputs(self) -> int:
        """Features of a tile."""
        return self.spec.inputs

    @property
    def cells(self) -> int | None:
        """Cells along a side of its table of positions; None where it has none."""
        return self.spec.cells if isinstance(self.spec, LongNetSpec) else None

    @property
    def dim(self) -> int:
        """Of its vector."""
        return self.spec.dim

    @property
    def placed(self) -> bool:
        """Whether places of tiles count."""
        return not isinstance(self.spec, GatedSpec) and not (isinstance(self.spec, RemoteSpec) and self.spec.call == "representations")

    @property
    def through(self) -> str:
        """`tilestream`, or `its own code`, which runs only with consent."""
        return "its own code" if isinstance(self.spec, RemoteSpec) else "tilestream"

    @property
    def has_tokens(self) -> bool:
        """Whether tiles become tokens that see each other over the whole slide."""
        return isinstance(self.spec, LongNetSpec | AlibiSpec)

    @property
    def places(self) -> str:
        """Unit and origin of the places of tiles, in words."""
        if not self.placed:
            return "none"
        limit = "" if self.cells is None else f", 0 to {self.cells - 1} a side"
        return f"cells of {self.tile} px at {self.mpp:g} µm/px from level-0 (0, 0){limit}"

    @property
    def on_hub(self) -> bool:
        """Whether the weights can be fetched from the hub."""
        return "://" not in self.repository

    @property
    def page(self) -> str:
        """Where the model is described and its terms are accepted."""
        return f"https://huggingface.co/{self.repository}" if self.on_hub else self.repository


_LONGNET_OPTIONS = frozenset({"layer", "output", "encoder_norm"})
_MEAN = "mean of the last layer's tokens, normed"

_GATED = "weighted mean of what tiles become"
_PC108 = "PC-108, slides of 108 classes, by classification"
_GIB = 1024**3
_NC_ND = "CC-BY-NC-ND-4.0"

_ALL = (
    SlidePreset(
        "gigapath", "prov-gigapath/prov-gigapath", "slide_encoder.pth", "Apache-2.0", True, "gigapath", 256, 0.5,
        "171,189 slides of Providence, by masked autoencoding", _MEAN, LongNetSpec(1536, 768, 12, 16, 3072), _LONGNET_OPTIONS,
        note="its card: deployed use is out of scope; its class token was not trained",
    ),
    SlidePreset(
        "gigapath-flash", "prov-gigapath/prov-gigapath-flash", "slide_encoder.pth", "Apache-2.0", True, "gigapath-flash", 256, 0.5,
        "see its page", _MEAN, LongNetSpec(384, 384, 12, 16, 1536), _LONGNET_OPTIONS, note="names in its file are taken to be those of gigapath",
    ),
    SlidePreset(
        "hipt-4k", "https://github.com/mahmoodlab/HIPT", "vit4k_xs_dino.pth", "Apache-2.0 with Commons Clause", False, "vit_small_patch16_224", 256, 0.5,
        "TCGA, by DINO", "mean of the class tokens of regions of 4,096 px", RegionSpec(384, 192, 6, 6),
        note="tiles: vit256_small_dino.pth of the same page as encoder.weights, encoder.args: {img_size: 256}",
    ),
    SlidePreset(
        "chief", "https://github.com/hms-dbmi/CHIEF", "CHIEF_pretraining.pth", "AGPL-3.0 (its authors' code)", False, "ctranspath", 256, 1.0,
        "60,530 slides of 19 sites, by classification and text", "weighted mean of the tiles' own vectors", GatedSpec(768, 768, "chief"),
    ),
    SlidePreset(
        "feather", "MahmoodLab/abmil.base.conch_v15.pc108-24k", "model.safetensors", _NC_ND, True, "conch-v1.5", 512, 0.5, _PC108, _GATED,
        GatedSpec(768, 512, "feather", gate=384),
    ),
    SlidePreset(
        "feather-uni2-h", "MahmoodLab/abmil.base.uni_v2.pc108-24k", "model.safetensors", _NC_ND, True, "uni2-h", 256, 0.5, _PC108, _GATED,
        GatedSpec(1536, 512, "feather", gate=384),
    ),
    SlidePreset(
        "feather-uni", "MahmoodLab/abmil.base.uni.pc108-24k", "model.safetensors", _NC_ND, True, "uni", 256, 0.5, _PC108, _GATED,
        GatedSpec(1024, 512, "feather", gate=384),
    ),
    SlidePreset(
        "madeleine", "MahmoodLab/madeleine", "model.pt", _NC_ND, True, "conch", 256, 1.0, "slides of breast and kidney in several stains, by alignment",
        "projection of the weighted means of its heads", GatedSpec(512, 512, "madeleine", gate=512, heads=4),
    ),
    SlidePreset(
        "moozy", "AtlasAnalyticsLab/MOOZY", "moozy.pt", "CC-BY-NC-SA-4.0", False, "lunit-vits8", 224, 0.5, "see its page", "class token, normed",
        AlibiSpec(384, 768, 6, 12, 3072, registers=4), note="its transformer over the slides of a case is not run",
    ),
    SlidePreset(
        "titan", "MahmoodLab/TITAN", "", _NC_ND, True, "conch-v1.5", 512, 0.5, "335,645 slides, by distillation and reports", "attention pool",
        RemoteSpec(768, 768, "patch_features", _GIB, pair_bytes=96), note="its code does not run with transformers 5",
    ),
    SlidePreset(
        "prism", "paige-ai/Prism", "", _NC_ND, True, "virchow", 224, 0.5, "587,196 slides with 195,344 reports", "class latent, normed",
        RemoteSpec(2560, 1280, "representations", 3 * _GIB),
    ),
    SlidePreset(
        "prism2", "paige-ai/Prism2", "", _NC_ND, True, "virchow2-cls", 224, 0.5, "see its page", "image embedding",
        RemoteSpec(1280, 2560, "representations", 16 * _GIB), note="called as prism is; its own interface was not seen",
    ),
    SlidePreset(
        "care", "Zipper-1/CARE", "", "CC-BY-NC-4.0 (code: MIT)", True, "conch-v1.5", 512, 0.5, "see its page", "slide embedding",
        RemoteSpec(768, 512, "embedding", _GIB), note="its code asks for transformers 4.57",
    ),
)  # fmt: skip

SLIDE_PRESETS: Mapping[str, SlidePreset] = {preset.name: preset for preset in _ALL}
"""Slide encoders by name."""
