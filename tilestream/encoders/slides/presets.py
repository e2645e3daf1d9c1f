"""Slide encoders by name: what they are made of, and the contract of each with what it is given. Imports no library that computes.

Facts are from the authors' code and papers; weights of gated repositories were not opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tilestream.models.slides.specs import LongNetSpec


@dataclass(frozen=True)
class SlidePreset:
    """One slide encoder."""

    name: str
    repository: str
    """Hub repository that holds the weights."""
    file: str
    """Name of the weights file in it."""
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
    spec: LongNetSpec
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
        return self.spec.cells

    @property
    def places(self) -> str:
        """Unit and origin of the places of tiles, in words."""
        return f"cells of {self.tile} px at {self.mpp:g} µm/px from level-0 (0, 0), 0 to {self.spec.cells - 1} a side"

    @property
    def page(self) -> str:
        """Where the model is described and its terms are accepted."""
        return f"https://huggingface.co/{self.repository}"


_LONGNET_OPTIONS = frozenset({"layer", "output", "encoder_norm"})
_MEAN = "mean of the last layer's tokens, normed"

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
)  # fmt: skip

SLIDE_PRESETS: Mapping[str, SlidePreset] = {preset.name: preset for preset in _ALL}
"""Slide encoders by name."""
