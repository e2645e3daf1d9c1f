"""The tables of all encoders, of tiles and of slides. Imports no library that builds one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tilestream.encoders.catalogue import encoder_tables, entry_table, known_encoders
from tilestream.encoders.slides.presets import SLIDE_PRESETS, SlidePreset

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = {
    "name": "name", "dim": "dim", "tile_size": "tile px", "mpp": "µm/px", "gated": "gated", "tile_encoder": "tiles of", "licence": "licence",
    "trained": "trained on", "output": "output", "source": "source",
}  # fmt: skip
"""What the table of slide encoders shows, and what it is called there."""

NARROW = ("name", "dim", "tile_size", "mpp", "gated", "tile_encoder", "licence")
"""Those that fit into 80 letters."""

LEAST_WIDE = 140
"""Letters a line that all of them need."""


def slide_row(preset: SlidePreset) -> dict[str, Any]:
    """What is known of a slide encoder, its contract with tiles included."""
    return {
        "kind": "slide", "name": preset.name, "source": preset.repository, "file": preset.file, "dim": preset.dim, "inputs": preset.inputs,
        "tile_encoder": preset.tile_encoder, "tile_size": preset.tile, "mpp": preset.mpp, "overlap": 0, "places": preset.places,
        "output": preset.output, "licence": preset.licence, "gated": preset.gated, "trained": preset.trained, "through": preset.through, "note": preset.note,
    }  # fmt: skip


def encoder_rows() -> list[dict[str, Any]]:
    """All slide encoders that `pool.name` takes, then all encoders that `encoder.name` takes: who keeps one row a name has the tiles' then."""
    tiles = [{"kind": "tile", **asdict(entry)} for entry in known_encoders()]
    return [*(slide_row(preset) for preset in SLIDE_PRESETS.values()), *tiles]


def all_tables(width: int) -> list[Table]:
    """The tables of both kinds in lines of `width` letters."""
    rows = encoder_rows()
    tiles, slides = ([row for row in rows if row["kind"] == kind] for kind in ("tile", "slide"))
    keys = {key: COLUMNS[key] for key in (COLUMNS if width >= LEAST_WIDE else NARROW)}
    widest = max(len(row["name"]) for row in slides)
    return [*encoder_tables(tiles, width), entry_table("pool: encoders of slides, and the tiles that they are for", keys, slides, widest)]
