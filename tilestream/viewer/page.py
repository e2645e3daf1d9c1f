"""The page: a panel for each output, side by side with one view, and the workers that serve them."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.models import Range1d

from tilestream.errors import without_credentials
from tilestream.viewer.assets import read_asset
from tilestream.viewer.catalogue import Catalogue
from tilestream.viewer.panel import Panel


def make_page(doc: Document, catalogue: Catalogue, workers: Executor, annotations: Path | None = None) -> None:
    """Fill a document: one panel an output; with a folder of annotations, what draws on their slides. All panels look at one place, and a click in one is a click in all."""
    doc.title = "tilestream: " + ", ".join(without_credentials(output.address) for output in catalogue.outputs)
    doc.template = read_asset("page.html")
    ranges = Range1d(0, 1, name="x"), Range1d(-1, 0, name="y")
    panels = [Panel(doc, catalogue, output, ranges, workers, annotations) for output in catalogue.outputs]

    def click_all(l0_y: float, l0_x: float) -> None:
        for panel in panels:
            panel.click(l0_y, l0_x)

    for panel in panels:
        panel.on_click = click_all
    alone = len(panels) == 1
    doc.add_root(row([_lay_out(panel, wide=alone) for panel in panels], sizing_mode="stretch_both", name="page"))


def _lay_out(panel: Panel, *, wide: bool) -> Any:
    """A panel: gallery and scatter beside the slide where there is room, else below."""
    several = len(panel.output.entries) > 1
    controls: list[Any] = [panel.choose_slide] if several else []
    controls += [panel.choose_overlay, panel.opacity, panel.groups, panel.points]
    drawing: list[Any] = []
    if panel.drawing is not None:
        drawing = [row(panel.drawing.widgets, sizing_mode="stretch_width"), panel.drawing.classes, panel.drawing.told]
    slide = column(
        panel.title, row(controls, sizing_mode="stretch_width"), *drawing, panel.legend, panel.pictures.slide, panel.pictures.readout, sizing_mode="stretch_both",
    )  # fmt: skip
    if wide:
        return row(
            slide,
            column(panel.pictures.gallery, panel.pictures.scatter, width=460, sizing_mode="stretch_height"),
            sizing_mode="stretch_both",
        )
    return column(slide, panel.pictures.gallery, panel.pictures.scatter, sizing_mode="stretch_both")
