"""Drawing on the slide of a panel: a line by hand or corner by corner, tiles of the scatter's lasso; each has the class that is chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from bokeh.events import SelectionGeometry, Tap
from bokeh.models import Button, ColumnDataSource, CustomJS, Div, LassoSelectTool, PolySelectTool, RadioButtonGroup, TextInput
from bokeh.plotting import figure
from shapely.geometry import Point, Polygon, shape
from shapely.geometry.base import BaseGeometry

from tilestream.errors import InputError
from tilestream.viewer.assets import read_asset
from tilestream.viewer.drawing.regions import Regions, class_of, colour_of, squares
from tilestream.viewer.slide import ViewedSlide

MOVE, DRAW, POLYGON, ERASE = range(4)


class Drawing:
    """What draws, and what was drawn. The file is read anew before each change, so that two pages do not overwrite each other.

    Parameters
    ----------
    folder : Path
        Where `<slide id>.geojson` lies, or will.
    on : figure
        The slide.
    selected : callable
        Tiles that are selected in the scatter.
    """

    def __init__(self, folder: Path, on: figure, selected: Callable[[], tuple[ViewedSlide, Any]]) -> None:
        self.folder, self.selected = folder, selected
        self.slide_id = ""
        self.own: list[str] = []
        """Ids of what this page drew on the slide, which undo takes away."""
        self.source = ColumnDataSource({"xs": [], "ys": [], "colour": [], "name": []}, name="drawn data")
        on.patches("xs", "ys", fill_color="colour", fill_alpha=0.35, line_color="colour", line_width=2, source=self.source)
        lasso = LassoSelectTool(continuous=False, renderers=[], name="draw lasso")
        corners = PolySelectTool(renderers=[], name="draw corners")
        on.add_tools(lasso, corners)
        self.mode = RadioButtonGroup(labels=["move", "draw", "polygon", "erase"], active=MOVE, name="draw mode")
        switch = CustomJS(args={"pan": on.tools[0], "lasso": lasso, "corners": corners}, code=read_asset("draw_mode.js"))
        self.mode.js_on_change("active", switch)
        self.name = TextInput(title="new class", width=110, name="draw class")
        self.classes = RadioButtonGroup(labels=[], active=None, name="draw classes")
        self.label = Button(label="label the lasso", width=110, name="draw selection")
        self.undo = Button(label="undo", width=60, name="draw undo")
        self.told = Div(name="drawn")
        self.name.on_change("value", lambda _attr, _old, new: self._choose(new.strip()))
        self.label.on_click(self._label_selection)
        self.undo.on_click(self._undo)
        on.on_event(SelectionGeometry, self._drawn)
        on.on_event(Tap, self._erase)

    @property
    def widgets(self) -> list[Any]:
        """What stands in one row; the classes, of which there may be many, have one of their own."""
        return [self.mode, self.name, self.label, self.undo]

    @property
    def busy(self) -> bool:
        """Whether a click draws, and so is no question."""
        return int(self.mode.active or 0) != MOVE

    @property
    def path(self) -> Path:
        """The file of the slide that is shown."""
        return self.folder / f"{self.slide_id}.geojson"

    def show(self, slide_id: str) -> None:
        """Show what is drawn on another slide."""
        self.slide_id, self.own = slide_id, []
        self._change(lambda _regions: None)

    # -- what a person does -----------------------------------------------------------------------------------------

    def _choose(self, name: str) -> None:
        """Take a class, a new one or one that there is; what is drawn next has it."""
        if not name:
            return
        if name not in self.classes.labels:
            self.classes.labels = [*self.classes.labels, name]
        self.classes.active = self.classes.labels.index(name)
        self.name.value = ""
        if self.mode.active == MOVE:
            self.mode.active = DRAW

    def _drawn(self, event: SelectionGeometry) -> None:
        """Keep the outline that was closed."""
        told = event.geometry
        if event.final and told["type"] == "poly" and len(told["x"]) > 2:
            self._add(Polygon(np.stack([np.asarray(told["x"], float), -np.asarray(told["y"], float)], axis=1)))

    def _label_selection(self) -> None:
        """Keep the tiles that are selected in the scatter, as one region."""
        slide, tiles = self.selected()
        if len(tiles) == 0:
            self.told.text = "draw a lasso in the scatter first"
            return
        self._add(squares(slide.y[tiles], slide.x[tiles], slide.l0_extent))

    def _add(self, region: BaseGeometry) -> None:
        if self.classes.active is None:
            self.told.text = "write the name of a class first"
            return
        name = self.classes.labels[self.classes.active]

        def add(regions: Regions) -> None:
            key = regions.add(name, region)
            if key is not None:
                self.own.append(regions.features[key]["id"])

        self._change(add)

    def _undo(self) -> None:
        """Take away what was drawn last."""
        if self.own:
            last = self.own.pop()
            self._change(lambda regions: regions.remove([key for key, feature in regions.features.items() if feature.get("id") == last]))

    def _erase(self, event: Tap) -> None:
        """Take away what lies under a click, where erasing is chosen."""
        if self.mode.active == ERASE:
            at = Point(event.x, -event.y)
            self._change(
                lambda regions: regions.remove(
                    [key for key, found in regions.features.items() if shapely.covers(shape(found["geometry"]), at)]
                )
            )

    # -- what is shown ----------------------------------------------------------------------------------------------

    def _change(self, change: Callable[[Regions], None]) -> None:
        """Read the file, change what it holds, write it where that changed, and show it; an error is told in words."""
        try:
            regions = Regions.open(self.path)
            before = list(regions.features)
            change(regions)
            if list(regions.features) != before:
                regions.save()
        except (InputError, OSError) as error:
            self.told.text = escape(str(error))
            return
        self.classes.labels = list(dict.fromkeys([*self.classes.labels, *regions.classes]))
        rows = [(key, ring) for key in regions.features for ring in regions.outlines(key)]
        names = {key: class_of(feature) for key, feature in regions.features.items()}
        order = self.classes.labels
        self.source.data = {
            "xs": [ring[:, 0].tolist() for _, ring in rows], "ys": [(-ring[:, 1]).tolist() for _, ring in rows],
            "colour": ["#{:02x}{:02x}{:02x}".format(*colour_of(names[key], order)) for key, _ in rows], "name": [names[key] for key, _ in rows],
        }  # fmt: skip
        counts = ", ".join(f"{escape(name or 'no class')} {count}" for name, count in Counter(names.values()).items())
        self.told.text = f"{counts} in {escape(self.path.name)}" if names else "nothing is drawn: write the name of a class, then draw"
