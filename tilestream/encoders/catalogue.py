"""The table of encoders: what each is, as far as it can be said without building it. Imports no library that builds one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from tilestream.encoders.factories import encoder_points
from tilestream.encoders.presets import HALF, IMAGENET, PRESETS, Pixels, Preset
from tilestream.models.lite_vectors import VECTORS
from tilestream.models.vit_config import ViTConfig, vector_words

if TYPE_CHECKING:
    from rich.table import Table

LITE = "tilestream-lite"
"""The encoder in the box: version 1, the middle of EfficientNet-Lite0 on the weights of a package that is installed with this one."""

TINY = "tilestream-tiny"
"""The former encoder in the box, for stores that name it."""

COLUMNS = {
    "name": "name", "dim": "dim", "tile_size": "tile px", "mpp": "µm/px", "output": "output", "precision": "precision", "normalisation": "normalisation",
    "licence": "licence", "gated": "gated", "source": "source",
}  # fmt: skip
"""What the table shows of an entry, and what it is called there."""

NARROW = ("name", "dim", "tile_size", "mpp", "gated", "licence")
"""Those that fit into 80 letters."""

GROUPS = (
    "in the package",
    "networks to bring weights for (encoder.weights)",
    "for pathology",
    "for any images",
    "for satellite images",
    "of installed packages",
)
"""Headings of the table, in order."""

EARTH = ("prithvi-", "clay-", "dinov3-l-sat")
"""How the names of presets begin that satellite images were used to train."""

GENERAL = ("dinov2-", "dinov3-", "resnet50")
"""How the names of presets begin that no slide was used to train."""

MAP_MPP = 1e4
"""µm/px from which on an image is a map."""

LICENCE_LETTERS = 24
"""Letters of a licence there."""

LEAST_WIDE = 140
"""Letters a line that all of them need."""

VITS = {"vit_tiny_patch16_224": 192, "vit_small_patch16_224": 384, "vit_base_patch16_224": 768, "vit_large_patch16_224": 1024}
"""Our bare vision transformers, and the features of each."""


@dataclass(frozen=True)
class EncoderSpec:
    """What the config says of the encoder."""

    name: str
    """A name of `known_encoders`, `timm:<model>`, `hf:<repository>`, or `module:factory`."""
    weights: str | None = None
    """A weights file, or a repository of the hub; None for the encoder's own, which for our bare ones are random."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Passed to the factory."""


@dataclass(frozen=True)
class EncoderEntry:
    """One row of the table of encoders; None where only building the encoder would tell."""

    name: str
    """As `encoder.name` has it."""
    source: str
    """`tilestream`, or the installed package that brings it."""
    dim: int | None = None
    """Features of a tile or token."""
    tile_size: int | None = None
    """Side of a tile, px; None also for any."""
    mpp: float | None = None
    """µm/px that it was trained at; None also for any."""
    mpp_range: tuple[float, float] | None = None
    """Least and greatest µm/px that it serves, where that is more than `mpp`."""
    normalisation: str | None = None
    """What is subtracted from, and divides, pixels in [0, 1]."""
    output: str | None = None
    """What the vector of a tile is."""
    precision: str | None = None
    """Number format that its authors run it in."""
    interpolation: str | None = None
    """How a tile is brought to the size of the network's input, where they differ."""
    licence: str | None = None
    """Of the code and, where it comes with any, the weights."""
    gated: bool = False
    """Whether its page must be accepted before its weights can be fetched."""
    note: str | None = None
    """What else a user should know."""
    bands: tuple[str, ...] = ()
    """Bands that it takes, by common name, in order; empty where it takes colours, or its arguments say which."""


def preset_entry(preset: Preset) -> EncoderEntry:
    """The row of a preset."""
    if preset.vit is None:
        dim, tile, output, interpolation = preset.other["dim"], preset.other["tile"], preset.other["output"], None
        source = f"{preset.repository} by {preset.through}"
    else:
        config = ViTConfig(**preset.vit)
        dim, tile = config.features, config.tile or config.img_size
        output = vector_words(config)
        interpolation = config.interpolation if config.tile else None
        source = preset.repository
    return EncoderEntry(
        preset.name, source, dim, tile, preset.mpp, preset.mpp_range, "source.normalise" if preset.bands or preset.through == "claymodel" else normalisation_words(preset.pixels), output, preset.precision,
        interpolation, preset.licence, preset.gated, preset.note, preset.bands,
    )  # fmt: skip


def normalisation_words(pixels: Pixels) -> str:
    """Mean and standard deviation in words."""
    mean, std = pixels
    named = {IMAGENET: "ImageNet", HALF: "mean 0.5, std 0.5"}
    return named.get(pixels, f"mean {', '.join(f'{v:.3g}' for v in mean)}; std {', '.join(f'{v:.3g}' for v in std)}")


def known_encoders() -> list[EncoderEntry]:
    """Our encoders, presets, then those of installed packages by name; no package is imported."""
    half = "mean 0.5, std 0.5"
    ours = [
        EncoderEntry(name, "tilestream", dim, 224, normalisation=half, output="class token", licence="Apache-2.0", note="untrained")
        for name, dim in VITS.items()
    ]
    patches = EncoderEntry(
        "patch_embed", "tilestream", 192, normalisation="ImageNet", output="patch tokens", licence="Apache-2.0", note="untrained"
    )
    others = [EncoderEntry(point.name, point.dist.name if point.dist else point.value) for point in encoder_points().values()]
    lite = EncoderEntry(
        LITE, "tilestream, in the package", 688, normalisation="(pixel - 127) / 128", output=VECTORS["mean+std"], precision="fp32",
        licence="Apache-2.0", note="version 1; sides of tiles are multiples of 32 px",
    )  # fmt: skip
    tiny = EncoderEntry(
        TINY, "tilestream, in the package", 192, 224, 0.5, (0.25, 2.0), half, "class token", "fp32", licence="Apache-2.0",
        note="for stores that name it",
    )  # fmt: skip
    return [lite, *ours, patches, tiny, *(preset_entry(preset) for preset in PRESETS.values()), *others]


def group_of(name: str) -> str:
    """The heading under which the table has an encoder."""
    if name in (LITE, TINY):
        return GROUPS[0]
    if name in VITS or name == "patch_embed":
        return GROUPS[1]
    if name not in PRESETS:
        return GROUPS[5]
    if name.startswith(EARTH):
        return GROUPS[4]
    return GROUPS[3 if name.startswith(GENERAL) else 2]


def encoder_tables(rows: Sequence[Mapping[str, Any]], width: int) -> list[Table]:
    """Entries in groups, as tables that can be read in lines of `width` letters, one line each."""
    keys = {key: COLUMNS[key] for key in (COLUMNS if width >= LEAST_WIDE else NARROW)}
    grouped = {group: [row for row in rows if group_of(row["name"]) == group] for group in GROUPS}
    return [
        entry_table(f"encoder: {group}", keys, found, max(len(row["name"]) for row in rows)) for group, found in grouped.items() if found
    ]


def _word(key: str, value: object) -> str:
    """What a cell says; a pixel on a map's scale is told in metres."""
    if key == "mpp" and isinstance(value, float) and value >= MAP_MPP:
        return f"{value / 1e6:g} m"
    return "-" if value in (None, False) else "yes" if value is True else str(value)


def entry_table(title: str, keys: Mapping[str, str], rows: Iterable[Mapping[str, Any]], name_width: int) -> Table:
    """Rows of one kind below their heading; columns of several tables stand below each other."""
    from rich.table import Table

    narrow = "source" not in keys
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    least = {"name": name_width, "dim": 5, "tile_size": 7, "mpp": 5, "gated": 5}
    for key, head in keys.items():
        table.add_column(
            head,
            no_wrap=key in least,
            overflow="fold",
            min_width=least.get(key),
            max_width=14 if narrow and key == "tile_encoder" else None,
        )
    for row in rows:
        words = [_word(key, row[key]) for key in keys]
        table.add_row(
            *(
                shorten(word, LICENCE_LETTERS, placeholder=" ...") if narrow and key == "licence" else word
                for key, word in zip(keys, words, strict=True)
            )
        )
    return table
