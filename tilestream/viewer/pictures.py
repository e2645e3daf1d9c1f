"""The three figures of a panel in Bokeh: the slide, the gallery, the scatter. Data units of the slide are level-0 px, y counted down from 0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from bokeh.core.property.descriptors import UnsetValueError
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    Div,
    HoverTool,
    LassoSelectTool,
    Metric,
    PanTool,
    Range1d,
    ScaleBar,
    TileRenderer,
    WheelZoomTool,
    WMTSTileSource,
)
from bokeh.plotting import figure
from numpy.typing import NDArray

from tilestream.geometry import Size
from tilestream.viewer.assets import read_asset
from tilestream.viewer.overlays import Overlay
from tilestream.viewer.slide import Floats

GALLERY = 6
"""Tiles in a row of the gallery."""

CROP = 0.94
"""Side of a tile of the gallery, of the place that it has."""

TILE_SIDE = 256
"""Side at which a tile of the zoom is drawn, at most; it has twice the pixels, which keeps it sharp down to half of that and on fine screens."""

Hits = list[tuple[int, int, float]]
"""Number of the slide, number of the tile, cosine."""


class Pictures:
    """The figures and the data behind them."""

    def __init__(self, ranges: tuple[Range1d, Range1d]) -> None:
        self.unit = 1.0
        """What the scale bar counts for a level-0 px."""
        self.readout = Div(text="&nbsp;", name="position")
        self.image, self.lit, self.marked, self.shown, self.points = (
            ColumnDataSource(data={key: [] for key in keys}, name=f"{name} data")
            for name, keys in {
                "overlay": ("image", "x", "y", "dw", "dh"), "lit": ("image", "x", "y", "dw", "dh"), "marked": ("x", "y", "side"),
                "gallery": ("url", "x", "y", "right", "bottom", "words", "slide", "number", "tile"), "points": ("x", "y", "colour", "tile"),
            }.items()
        )  # fmt: skip
        self.objects: TileRenderer | None = None
        """Only where objects are laid: tiles that never come would keep the page from being done."""
        self.slide = self._slide(ranges)
        self.gallery = self._gallery()
        self.scatter = self._scatter()

    def _slide(self, ranges: tuple[Range1d, Range1d]) -> figure:
        found = figure(
            x_range=ranges[0], y_range=ranges[1], tools=[PanTool(), WheelZoomTool(zoom_on_axis=False)], toolbar_location=None,
            sizing_mode="stretch_both", min_height=300, background_fill_color="#f4f4f6", name="slide",
        )  # fmt: skip
        found.toolbar.active_scroll = found.tools[1]
        found.axis.visible = False
        found.grid.visible = False
        found.min_border = 0
        self.tiles = found.add_tile(WMTSTileSource(url=""), smoothing=True)
        where = {"x": "x", "y": "y", "dw": "dw", "dh": "dh", "anchor": "top_left", "origin": "top_left"}
        self.overlay = found.image_rgba(image="image", source=self.image, global_alpha=0.5, **where)
        found.image_rgba(image="image", source=self.lit, global_alpha=0.75, **where)
        for colour, width in (("white", 4), ("black", 2)):
            found.rect(x="x", y="y", width="side", height="side", source=self.marked, fill_alpha=0, line_color=colour, line_width=width)
        self.bar_range = Range1d(0, 1)
        self.bar = ScaleBar(range=self.bar_range, location="bottom_left", background_fill_alpha=0.8, **_units(None))
        found.add_layout(self.bar)
        self.follow_zoom = CustomJS(args={"seen": found.x_range, "bar": self.bar_range, "unit": 1.0}, code=read_asset("scale_bar.js"))
        found.x_range.js_on_change("start", self.follow_zoom)
        found.x_range.js_on_change("end", self.follow_zoom)
        self.follow_mouse = CustomJS(args={"box": self.readout, "mpp": 0.0}, code=read_asset("position.js"))
        found.js_on_event("mousemove", self.follow_mouse)
        return found

    def _gallery(self) -> figure:
        found = figure(
            x_range=Range1d(0, GALLERY), y_range=Range1d(0, 2.6), tools="", toolbar_location=None, height=215, sizing_mode="stretch_width",
            title="nearest tiles: of this slide above, of the output's others below", name="gallery",
        )  # fmt: skip
        found.axis.visible = False
        found.grid.visible = False
        found.image_url(url="url", x="x", y="y", w=CROP, h=CROP, anchor="top_left", source=self.shown)
        found.text(x="x", y="y", text="words", y_offset=-2, text_font_size="11px", source=self.shown)
        places = found.quad(left="x", right="right", top="y", bottom="bottom", fill_alpha=0, line_alpha=0, source=self.shown)
        found.add_tools(HoverTool(renderers=[places], tooltips=[("slide", "@slide"), ("tile", "@tile"), ("cosine", "@words")]))
        return found

    def _scatter(self) -> figure:
        lasso = LassoSelectTool(continuous=False)
        found = figure(
            tools=[lasso, "wheel_zoom", "reset"], min_height=300, sizing_mode="stretch_both", title="embeddings", name="scatter",
        )  # fmt: skip
        found.toolbar.active_drag = lasso
        found.toolbar.logo = None
        found.axis.visible = False
        found.scatter(
            "x", "y", size=4, fill_color="colour", line_color=None, fill_alpha=0.7, nonselection_fill_alpha=0.08, source=self.points
        )
        return found

    # -- the slide --------------------------------------------------------------------------------------------------

    def set_image(self, tiles: WMTSTileSource, size: Size, mpp: float | None, *, move: bool) -> None:
        """Show another image; `move` shows all of it."""
        self.tiles.tile_source = tiles
        self.unit = mpp or 1.0
        self.bar.update(**_units(mpp))
        self.follow_zoom.args = {"seen": self.slide.x_range, "bar": self.bar_range, "unit": self.unit}
        self.follow_mouse.args = {"box": self.readout, "mpp": mpp or 0.0}
        if move:
            self._look(size.height / 2, size.width / 2, float(size.width), float(size.height))

    def centre(self, l0_y: float, l0_x: float, l0_width: float) -> None:
        """Look at a place, `l0_width` level-0 px across."""
        self._look(l0_y, l0_x, l0_width, 0.0)

    def _look(self, y: float, x: float, width: float, height: float) -> None:
        try:
            ratio = self.slide.inner_height / self.slide.inner_width
        except (UnsetValueError, ZeroDivisionError):  # the page is not laid out yet; the browser will keep pixels square
            ratio = height / width
        width = max(width, height / ratio)
        height = width * ratio
        self.bar_range.update(start=(x - width / 2) * self.unit, end=(x + width / 2) * self.unit)
        self.slide.x_range.update(start=x - width / 2, end=x + width / 2)
        self.slide.y_range.update(start=-y - height / 2, end=-y + height / 2)

    def clear(self) -> None:
        """Take away what belongs to the slide before."""
        for source in (self.image, self.lit, self.marked, self.shown, self.points):
            source.data = {key: [] for key in source.data}
        self.points.selected.indices = []

    def set_overlay(self, overlay: Overlay | None) -> None:
        """Lay a picture over the slide, or none."""
        self.image.data = _image_data(overlay)

    def set_objects(self, tiles: WMTSTileSource | None) -> None:
        """Lay objects over the slide, tile by tile, or none."""
        others = [drawn for drawn in self.slide.renderers if drawn is not self.objects]
        alpha = self.overlay.glyph.global_alpha
        self.objects = None if tiles is None else TileRenderer(tile_source=tiles, smoothing=True, alpha=alpha)
        self.slide.renderers = others if self.objects is None else [others[0], self.objects, *others[1:]]

    def set_lit(self, overlay: Overlay) -> None:
        """Light up the tiles of a selection."""
        self.lit.data = _image_data(overlay)

    def set_opacity(self, alpha: float) -> None:
        """Opacity of the overlay, 0 to 1."""
        self.overlay.glyph.global_alpha = alpha
        if self.objects is not None:
            self.objects.alpha = alpha

    def mark(self, l0_y: float, l0_x: float, l0_side: float) -> None:
        """Draw a frame around a tile whose top-left is at this place."""
        self.marked.data = {"x": [l0_x + l0_side / 2], "y": [-l0_y - l0_side / 2], "side": [l0_side]}

    # -- gallery and scatter ----------------------------------------------------------------------------------------

    def set_gallery(self, own: Hits, others: Hits, name: Callable[[int], str]) -> None:
        """Show tiles of this slide above, of others below."""
        rows = [(hit, k + 0.03, 2.3) for k, hit in enumerate(own)] + [(hit, k + 0.03, 1.05) for k, hit in enumerate(others)]
        self.shown.data = {
            "url": [f"/crops/{hit[0]}/{hit[1]}.jpg" for hit, _, _ in rows],
            "x": [x for _, x, _ in rows], "y": [y for _, _, y in rows],
            "right": [x + CROP for _, x, _ in rows], "bottom": [y - CROP for _, _, y in rows],
            "words": [f"{hit[2]:.3f}" for hit, _, _ in rows], "slide": [name(hit[0]) for hit, _, _ in rows],
            "number": [hit[0] for hit, _, _ in rows], "tile": [hit[1] for hit, _, _ in rows],
        }  # fmt: skip

    def in_gallery(self, x: float, y: float) -> tuple[int, int] | None:
        """Slide and tile at a place in the gallery, or None."""
        data = self.shown.data
        for k, (left, top) in enumerate(zip(data["x"], data["y"], strict=True)):
            if left <= x <= left + CROP and top - CROP <= y <= top:
                return data["number"][k], data["tile"][k]
        return None

    def set_points(self, tiles: NDArray[np.int64], where: Floats, colours: NDArray[np.uint8], words: str) -> None:
        """Fill the scatter: number, place (m, 2) and RGBA (m, 4) of each tile."""
        self.points.selected.indices = []
        rgba = np.ascontiguousarray(colours).view(np.uint32)[:, 0] if len(colours) else np.empty(0, np.uint32)
        self.points.data = {"x": where[:, 0], "y": where[:, 1], "colour": _css(rgba), "tile": tiles.astype(np.int32)}
        self.scatter.title.text = f"embeddings, {len(tiles):,} tiles: {words}. Draw a lasso."

    def tiles_of_points(self, points: list[int]) -> NDArray[np.int64]:
        """Numbers of the tiles of points."""
        return np.asarray(self.points.data["tile"], np.int64)[np.asarray(points, np.int64)]


BAR_TICKS = [1, 2, 5, 10, 20, 50, 100, 200, 500]


def _image_data(overlay: Overlay | None) -> dict[str, list[object]]:
    if overlay is None:
        return {"image": [], "x": [], "y": [], "dw": [], "dh": []}
    where = overlay.extent
    return {"image": [overlay.rgba], "x": [where.l0_x], "y": [-where.l0_y], "dw": [where.l0_width], "dh": [where.l0_height]}


def _units(mpp: float | None) -> dict[str, object]:
    """What the scale bar counts in: µm and mm where the resolution is known, else px."""
    if mpp is None:
        return {"unit": "px", "dimensional": Metric(base_unit="px", include=["px"], ticks=BAR_TICKS)}
    return {"unit": "µm", "dimensional": Metric(base_unit="m", include=["µm", "mm"], ticks=BAR_TICKS)}


def _css(rgba: NDArray[np.uint32]) -> list[str]:
    """Colours as #rrggbb."""
    names = {int(value): f"#{value & 255:02x}{value >> 8 & 255:02x}{value >> 16 & 255:02x}" for value in np.unique(rgba)}
    return [names[value] for value in rgba.tolist()]
