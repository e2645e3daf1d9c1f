"""Options of commands whose words take several lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SlidesOption = Annotated[
    list[str] | None,
    typer.Option(help="Folder or URL of slides: needed for those of stores that others made, and for those that are not local files."),
]

AnnotationsOption = Annotated[
    Path | None,
    typer.Option(help="Folder of <slide id>.geojson: regions with classes are shown, and drawn by hand or from the scatter's lasso."),
]

FitSetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. head.model=mlp; may be repeated.")
]

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. tiles.mpp=0.25; may be repeated.")
]
