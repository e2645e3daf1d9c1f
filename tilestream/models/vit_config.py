"""What a vision transformer is told: its shape, its pixels, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass

from tilestream.errors import ConfigError

POSITIONS = ("learned", "sincos", "rope")
ROPE_PLACES = ("centred", "index")
OUTPUTS = ("class", "mean", "class+mean", "tokens")

_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ViTConfig:
    """Shape and options of a `VisionTransformer`; every field but the first four is open to `encoder.args`.

    Raises
    ------
    ConfigError
        For values that no vision transformer has, each named as a key of `encoder.args`.
    """

    dim: int
    """Channels of a token."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads of a block; divides `dim`."""
    patch: int = 16
    """Side of a patch, px."""
    img_size: int = 224
    """Side of a tile, px; a multiple of `patch`."""
    class_token: bool = True
    """Whether a class token goes before the patches."""
    registers: int = 0
    """Register tokens between class token and patches (Darcet et al. 2024, arXiv:2309.16588)."""
    embed_prefix: bool = True
    """Whether `pos_embed` has entries for class and register tokens; DINOv2 with registers has none (timm: `no_embed_class`)."""
    pre_norm: bool = False
    """Whether a norm goes before the blocks and the patch projection has no bias, as in CLIP."""
    layer_scale: float | None = None
    """First value of the layer scale, or None for a model without (Touvron et al. 2021, arXiv:2103.17239; timm: `init_values`)."""
    position: str = "learned"
    """`learned`, or `sincos` for a fixed encoding of the patch's place, which loaded weights replace; `rope` turns queries and keys of
    patches by their place, as DINOv3 does it (Siméoni et al. 2025, arXiv:2508.10104)."""
    rope_base: float = 100.0
    """Of `rope`: each quarter of a head's channels has wavelengths that grow by nearly this factor."""
    rope_places: str = "centred"
    """Of `rope`: `centred`, patches lie from -1 to 1 along a side and the shortest wavelength is 1, as DINOv3 has it; `index`, the patch's number
    along a side is the angle of the shortest, in radians."""
    output: str = "class"
    """What a tile becomes: the class token, the mean of the patch tokens, both side by side, or every patch token."""
    hidden: int | None = None
    """Channels inside an MLP; four times `dim` where it is not given."""
    gated: bool = False
    """Whether MLPs are SwiGLU (Shazeer 2020, arXiv:2002.05202), half of whose `hidden` channels gate the others; else GELU."""
    qk_norm: bool = False
    """Whether queries and keys of each head are normalised."""
    projection: int | None = None
    """Features that two layers with a GELU between make of the output; None leaves it as it is."""
    unit_norm: bool = False
    """Whether the output is scaled to unit length."""
    eps: float = 1e-6
    """Added to variances by the norms."""
    tile: int | None = None
    """Side of the tiles that are given, px, where it is not `img_size`: they are resized, with antialiasing, as the authors do it."""
    resize: int | None = None
    """Side after resizing, px; of more than `img_size` the centre is taken. `img_size` where it is not given."""
    interpolation: str = "bicubic"
    """`bilinear` or `bicubic`: of resizing."""
    mean: tuple[float, ...] = _HALF
    """Subtracted from red, green and blue in [0, 1]."""
    std: tuple[float, ...] = _HALF
    """Divides red, green and blue after that."""
    bands: int = 0
    """Bands of tiles of values, which are taken as they are; 0 for red, green and blue."""
    seed: int = 0
    """Of the random weights."""

    def __post_init__(self) -> None:
        self._check_kinds()
        if self.img_size % self.patch:
            fits = max(self.img_size // self.patch, 1) * self.patch
            raise ConfigError(f"encoder.args.img_size: {self.img_size} is not a multiple of the patch, {self.patch} px. Set it to {fits}.")
        choices = {"position": POSITIONS, "rope_places": ROPE_PLACES, "output": OUTPUTS, "interpolation": ("bilinear", "bicubic")}
        for key, known in choices.items():
            if getattr(self, key) not in known:
                raise ConfigError(f"encoder.args.{key}: {getattr(self, key)!r}, but it must be one of {', '.join(known)}.")
        if self.bands and self.tile is not None:
            raise ConfigError(f"encoder.args.tile: {self.tile}, but tiles of {self.bands} bands are not resized. Leave it out.")
        if not self.class_token and "class" in self.output:
            raise ConfigError(f"encoder.args.output: {self.output!r} needs a class token. Set it to mean, or class_token to true.")
        self._check_normalisation()
        assert self.dim % self.heads == 0, "heads divide dim"

    def _check_kinds(self) -> None:
        for key in ("patch", "img_size", "registers", "bands"):
            value, least = getattr(self, key), int(key not in ("registers", "bands"))
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"encoder.args.{key}: {value!r}, but it must be an integer of {least} or more.")
        for key in ("hidden", "tile", "resize", "projection"):
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"encoder.args.{key}: {value!r}, but it must be an integer of 1 or more, or null.")
        for key in ("class_token", "embed_prefix", "pre_norm", "gated", "qk_norm", "unit_norm"):
            if not isinstance(getattr(self, key), bool):
                raise ConfigError(f"encoder.args.{key}: {getattr(self, key)!r}, but it must be true or false.")
        if isinstance(self.rope_base, bool) or not isinstance(self.rope_base, int | float) or self.rope_base <= 0:
            raise ConfigError(f"encoder.args.rope_base: {self.rope_base!r}, but it must be a number above 0.")
        scale = self.layer_scale
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float)):
            raise ConfigError(f"encoder.args.layer_scale: {scale!r}, but it must be a number, or null for a model without.")

    def _check_normalisation(self) -> None:
        for key in ("mean", "std"):
            values = getattr(self, key)
            if not isinstance(values, list | tuple) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
                raise ConfigError(f"encoder.args.{key}: {values!r}, but it must be three numbers: red, green, blue.")
            if key == "std" and min(values) <= 0:
                raise ConfigError(f"encoder.args.std: {values!r}, but all three must be above 0.")
            object.__setattr__(self, key, tuple(float(v) for v in values))

    @property
    def features(self) -> int:
        """Numbers of a tile, or of a token where tokens are the output."""
        return self.projection or self.pooled

    @property
    def pooled(self) -> int:
        """Numbers of what is taken of the tokens, before any projection."""
        return self.dim * (2 if self.output == "class+mean" else 1)

    @property
    def channels(self) -> int:
        """Numbers of a pixel."""
        return self.bands or 3

    @property
    def side(self) -> int:
        """Patches along a side of the tile."""
        return self.img_size // self.patch

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return int(self.class_token) + self.registers


def vector_words(config: ViTConfig) -> str:
    """What the vector of a tile is."""
    mean = "mean of the patch tokens"
    taken = {"class": "class token", "mean": mean, "class+mean": f"class token, {mean}", "tokens": "patch tokens"}[config.output]
    projected = f"projection of the {taken}" if config.projection else taken
    return f"{projected}, of unit length" if config.unit_norm else projected
