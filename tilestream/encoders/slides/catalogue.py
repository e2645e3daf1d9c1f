"""The tables of all encoders, of tiles and of slides. Imports no library that builds one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tilestream.encoders.catalogue import encoder_table, known_encoders
from tilestream.encoders.slides.presets import SLIDE_PRESETS, SlidePreset

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = {
    "name": "pool", "dim": "dim", "tile_encoder": "tiles of", "tile_size": "tile px", "mpp": "µm/px", "licence": "licence", "gated": "gated",
    "trained": "trained on", "output": "output", "source": "source",
}  # fmt: skip
"""What the table of slide encoders shows, and what it is called there."""

NARROW = ("name", "dim", "tile_encoder", "tile_size", "mpp", "licence", "gated")
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


def encoder_tables(width: int) -> tuple[Table, Table]:
    """The tables of both kinds in lines of `width` letters."""
    from rich.table import Table

    rows = encoder_rows()
    slides = Table(box=None, pad_edge=False)
    keys = tuple(COLUMNS) if width >= LEAST_WIDE else NARROW
    for key in keys:
        slides.add_column(COLUMNS[key], no_wrap=key in ("name", "dim", "tile_size", "mpp", "gated"), overflow="fold")
    for row in rows:
        if row["kind"] == "slide":
            slides.add_row(*("-" if row[key] in (None, False) else "yes" if row[key] is True else str(row[key]) for key in keys))
    return encoder_table([row for row in rows if row["kind"] == "tile"], width), slides
