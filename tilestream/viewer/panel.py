"""One slide on the page: the deep zoom with its overlays, the gallery, the scatter, and what a click, a lasso and the sliders do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.events import DocumentReady, Tap
from bokeh.models import Div, Range1d, Select, Slider, WMTSTileSource
from numpy.typing import NDArray

from tilestream.store.layout import STATUSES
from tilestream.viewer.answers import CLASSES, DENSITY, LABELS, OBJECTS, class_counts, class_overlay, density_overlay, head_overlays
from tilestream.viewer.catalogue import Catalogue, Output
from tilestream.viewer.clusters import cluster
from tilestream.viewer.deepzoom import Zoom
from tilestream.viewer.drawing.tools import Drawing
from tilestream.viewer.neighbours import nearest, similarity
from tilestream.viewer.overlays import (
    MIXED,
    PALETTE,
    STATUS_COLOURS,
    Colours,
    Overlay,
    attention_overlay,
    cluster_colours,
    component_colours,
    lit_colours,
    mixed_overlay,
    mixed_vectors,
    on_places,
    similarity_overlay,
    status_colours,
    status_words,
    tissue_overlay,
    window_overlay,
    window_sides,
)
from tilestream.viewer.pictures import GALLERY, TILE_SIDE, Pictures
from tilestream.viewer.scatter import sample_rows, umap_points
from tilestream.viewer.slide import Floats, PlaceMap, ViewedSlide

STATUS, TISSUE, EMBEDDINGS, CLUSTERS, SIMILARITY, ATTENTION, WINDOWS, NOTHING = (
    "tiles and status", "tissue", "embeddings", "clusters", "similarity", "attention", "windows", "none",
)  # fmt: skip
TILES_ACROSS = 10
"""Tiles that are seen side by side after going to one."""


class Panel:
    """What is shown of one output. Slow work is done by `workers`, one job after the other, and its result laid in by the document's thread."""

    def __init__(
        self,
        doc: Document,
        catalogue: Catalogue,
        output: Output,
        ranges: tuple[Range1d, Range1d],
        workers: Executor,
        annotations: Path | None = None,
    ) -> None:
        self.doc, self.catalogue, self.output, self.workers = doc, catalogue, output, workers
        self.number = output.first.number
        self.shown = False
        """Whether the slide can be shown at all."""
        self.ready = False
        """Whether the page is there: what takes longer than the first picture waits for it."""
        self.turn = 0
        """Counts slides and clicks: results of earlier ones are dropped."""
        self.similar: Floats | None = None
        self.on_click: Callable[[float, float], None] = self.click
        self.pictures = Pictures(ranges)
        self.choose_slide = Select(title="slide", options=[(str(e.number), e.id) for e in output.entries], width=220, name="choose slide")
        self.choose_overlay = Select(title="overlay", options=[STATUS], value=STATUS, width=150, name="choose overlay")
        self.opacity = Slider(title="opacity", start=0, end=1, step=0.05, value=0.5, width=110, name="opacity")
        self.groups = Slider(title="clusters", start=2, end=20, step=1, value=6, width=110, name="k")
        self.points = Select(title="scatter", options=["PCA", "UMAP"], value="PCA", width=90, name="choose points")
        self.title, self.legend = Div(name="title", width_policy="max"), Div(name="legend")
        self.drawing = None if annotations is None else Drawing(annotations, self.pictures.slide, self._selected)
        self.pictures.slide.on_event(Tap, lambda event: None if self.drawing and self.drawing.busy else self.on_click(-event.y, event.x))
        self.pictures.gallery.on_event(Tap, lambda event: self.follow(event.x, event.y))
        self.pictures.points.selected.on_change("indices", lambda _attr, _old, new: self.light(new))
        self.choose_overlay.on_change("value", lambda _attr, _old, _new: self.draw())
        self.choose_slide.on_change("value", lambda _attr, _old, new: self.show(int(new)) if int(new) != self.number else None)
        self.opacity.on_change("value", lambda _attr, _old, new: self.pictures.set_opacity(new))
        self.groups.on_change("value_throttled", lambda _attr, _old, _new: self.regroup())
        self.points.on_change("value", lambda _attr, _old, _new: self.scatter())
        if self.drawing is not None:  # who draws looks at tissue
            self.choose_overlay.update(options=[STATUS, NOTHING], value=NOTHING)
        self.show(self.number)
        doc.on_event(DocumentReady, lambda _event: self.begin())

    @property
    def slide(self) -> ViewedSlide:
        """The slide that is shown."""
        return self.catalogue.slide(self.number)

    # -- what is shown ----------------------------------------------------------------------------------------------

    def show(self, number: int, tile: int | None = None) -> None:
        """Show another slide of the output, and go to a tile of it."""
        self.turn += 1
        self.number, self.similar = number, None
        self.catalogue.refresh(number)
        self.choose_slide.value = str(number)
        self.shown = False  # what clearing sets off has nothing to act on
        self.pictures.clear()
        problem = self.catalogue.problem(number)
        self.shown = problem is None
        if problem is not None:
            self.title.text = f"<b>{escape(self._name(number))}</b> cannot be shown: {escape(problem)}"
            return
        slide, zoom = self.slide, Zoom(self.slide.size)
        with self.catalogue.zoom.images.using(number, slide) as (_, why):
            gone = f'<div class="ts-missing">The image cannot be read, the stored thumbnail is shown: {escape(why)}</div>' if why else ""
        self.title.text = f"<b>{escape(slide.id)}</b> <span>{escape(slide.words)}</span>{gone}"
        self.pictures.set_image(_tile_source(f"/tiles/{number}/{{Z}}/{{X}}/{{Y}}.jpg", zoom), slide.size, slide.mpp, move=tile is None)
        self.places = slide.places()
        kinds = [STATUS, TISSUE, *([EMBEDDINGS, CLUSTERS, SIMILARITY] if slide.embedded else []), *head_overlays(slide)]
        kinds += [] if slide.attention is None else [ATTENTION]
        kinds += [*mixed_vectors(slide), *(f"{WINDOWS} {side}" for side in window_sides(slide))]
        self.choose_overlay.options = [*kinds, NOTHING]
        if self.choose_overlay.value not in self.choose_overlay.options:
            self.choose_overlay.value = STATUS
        self.draw()
        self.scatter()
        if self.drawing is not None:
            self.drawing.show(slide.id)
        if tile is not None:
            self.go(tile)
            self.click(*self._centre(tile))

    def draw(self, kind: str | None = None) -> None:
        """Lay the chosen overlay over the slide; `kind` chooses it."""
        if not self.shown:
            return
        if kind not in (None, self.choose_overlay.value):
            self.choose_overlay.value = kind  # which draws
            return
        self.pictures.set_objects(self._object_tiles())
        turn, slide, chosen, k, places = self.turn, self.slide, self.choose_overlay.value, int(self.groups.value), self.places
        similar = self.similar

        def make() -> Overlay | None:
            return make_overlay(slide, places, chosen, k, similar)

        def lay(made: tuple[Overlay | None, str]) -> None:
            overlay, words = made
            if turn == self.turn and chosen == self.choose_overlay.value and k == int(self.groups.value):
                self.pictures.set_overlay(overlay)
                self.legend.text = words

        def make_both() -> tuple[Overlay | None, str]:
            overlay = make()
            return overlay, legend(chosen, slide, k, overlay)

        if chosen in (STATUS, NOTHING, SIMILARITY):
            lay(make_both())
        else:
            self.later(make_both, lay)

    def regroup(self) -> None:
        """Group the tiles anew, and show the groups on the slide and in the scatter."""
        self.draw(CLUSTERS)
        self.scatter()

    def begin(self) -> None:
        """The first picture is there: do what takes longer."""
        self.ready = True
        self.scatter()

    def scatter(self) -> None:
        """Fill the scatter with the tiles, or an even sample of them."""
        if not (self.ready and self.shown):
            return
        slide, number, kind, k = self.slide, self.number, self.points.value, int(self.groups.value)
        if not slide.good.any():
            self.pictures.set_points(np.empty(0, np.int64), np.empty((0, 2), np.float32), np.empty((0, 4), np.uint8), "no tiles")
            return

        def make() -> tuple[NDArray[np.int64], Floats, NDArray[np.uint8], str]:
            scores = slide.scores()
            rows = sample_rows(slide.good, kind)
            where, words = (scores[rows, :2].astype(np.float32), "PCA") if kind == "PCA" else umap_points(scores[rows])
            return rows, where, cluster_colours(cluster(scores, k))[rows], words

        def lay(found: tuple[NDArray[np.int64], Floats, NDArray[np.uint8], str]) -> None:
            if number == self.number and k == int(self.groups.value) and kind == self.points.value:
                self.pictures.set_points(*found)

        self.later(make, lay)

    # -- what a person does -----------------------------------------------------------------------------------------

    def click(self, l0_y: float, l0_x: float) -> None:
        """Mark the tile at a place, show how like it the others are, and its nearest ones; those of other slides follow."""
        if not self.shown:
            return
        slide, tile = self.slide, self.slide.tile_at(l0_y, l0_x)
        if tile is None or not slide.good[tile]:
            self.legend.text = "no tile with an embedding is here"
            return
        self.turn += 1
        turn = self.turn
        self.pictures.mark(float(slide.y[tile]), float(slide.x[tile]), slide.l0_extent)
        query = slide.embedding(tile)
        self.similar = similarity(slide, query)
        self.draw(SIMILARITY)
        own = [(self.number, int(k), float(self.similar[k])) for k in nearest(self.similar, GALLERY, tile)]
        self.pictures.set_gallery(own, [], self._name)
        others = [e.number for e in self.output.entries if e.number != self.number]

        def search(found: list[tuple[int, int, float]], numbers: list[int]) -> None:
            if not numbers or turn != self.turn:
                return
            number = numbers[0]

            def scan() -> list[tuple[int, int, float]]:
                if turn != self.turn or self.catalogue.problem(number) is not None:
                    return []
                other = self.catalogue.slide(number)
                if other.layout.dim != slide.layout.dim:
                    return []
                similar = similarity(other, query)
                return [(number, int(k), float(similar[k])) for k in nearest(similar, GALLERY)]

            def add(more: list[tuple[int, int, float]]) -> None:
                best = sorted([*found, *more], key=lambda entry: -entry[2])[:GALLERY]
                if turn == self.turn:
                    self.pictures.set_gallery(own, best, self._name)
                    search(best, numbers[1:])

            self.later(scan, add)

        search([], others)

    def follow(self, x: float, y: float) -> None:
        """Go to the tile of the gallery at a place in it."""
        found = self.pictures.in_gallery(x, y)
        if found is None:
            return
        number, tile = found
        if number == self.number:
            self.go(tile)
        else:
            self.show(number, tile)

    def light(self, points: list[int]) -> None:
        """Light up the tiles of points of the scatter on the slide."""
        if not self.shown:
            return
        lit = self.pictures.tiles_of_points(points)
        self.pictures.set_lit(on_places(self.places, lit_colours(self.slide.layout.tiles, lit), ""))
        if len(lit):
            self.legend.text = f"{len(lit):,} tiles selected"

    def go(self, tile: int) -> None:
        """Bring a tile into the middle."""
        self.pictures.centre(*self._centre(tile), TILES_ACROSS * self.slide.l0_extent)

    # -- helpers ----------------------------------------------------------------------------------------------------

    def later(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Have `work` done by a worker, and `then` called with its result by the document's thread; an error is told in the legend."""

        def done() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - of whatever kind: a person looks at the page, not at a log
                words = f"{type(error).__name__}: {error}"
                self.doc.add_next_tick_callback(lambda: setattr(self.legend, "text", escape(words)))
                return
            self.doc.add_next_tick_callback(lambda: then(result))

        self.workers.submit(done)

    def _object_tiles(self) -> WMTSTileSource | None:
        """Where the objects or labels of the chosen overlay come from, tile by tile; None where it has none."""
        chosen = self.choose_overlay.value
        if not chosen.startswith((OBJECTS, LABELS)):
            return None
        head = sorted(self.slide.heads).index(chosen.partition(": ")[2])
        return _tile_source(f"/objects/{self.number}/{head}/{{Z}}/{{X}}/{{Y}}.png", Zoom(self.slide.size))

    def _selected(self) -> tuple[ViewedSlide, NDArray[np.int64]]:
        """The slide, and its tiles that are selected in the scatter."""
        return self.slide, self.pictures.tiles_of_points(self.pictures.points.selected.indices) if self.shown else np.empty(0, np.int64)

    def _centre(self, tile: int) -> tuple[float, float]:
        half = self.slide.l0_extent / 2
        return float(self.slide.y[tile]) + half, float(self.slide.x[tile]) + half

    def _name(self, number: int) -> str:
        return next(entry.id for entry in self.output.entries if entry.number == number)


def _tile_source(url: str, zoom: Zoom) -> WMTSTileSource:
    """Tiles of a deep zoom, as Bokeh asks for them."""
    return WMTSTileSource(
        url=url, tile_size=TILE_SIDE, min_zoom=0, max_zoom=zoom.deepest, attribution="", wrap_around=False,
        x_origin_offset=0, y_origin_offset=zoom.l0_side, initial_resolution=zoom.l0_side / TILE_SIDE,
    )  # fmt: skip


def make_overlay(slide: ViewedSlide, places: PlaceMap, chosen: str, k: int, similar: Floats | None) -> Overlay | None:
    """The overlay of a name; None where there is nothing to lay."""

    def on_tiles(colours: Colours, words: str) -> Overlay:
        return on_places(places, colours, words)

    if chosen.startswith(WINDOWS):
        return window_overlay(slide, int(chosen.rpartition(" ")[2]))
    if chosen.startswith(MIXED):
        return mixed_overlay(slide, chosen, places)
    for begins, lay in ((CLASSES, class_overlay), (DENSITY, density_overlay)):
        if chosen.startswith(begins):
            return lay(slide, places, chosen.removeprefix(begins))
    makers: dict[str, Callable[[], Overlay | None]] = {
        TISSUE: lambda: tissue_overlay(slide, places),
        EMBEDDINGS: lambda: on_tiles(component_colours(slide.scores(), slide.good), "first three principal components as colours"),
        CLUSTERS: lambda: on_tiles(cluster_colours(cluster(slide.scores(), k)), ""),
        ATTENTION: lambda: attention_overlay(slide, places),
        SIMILARITY: lambda: None if similar is None else similarity_overlay(similar, places),
        STATUS: lambda: on_tiles(status_colours(slide.status), status_words(slide.status)),
    }
    return makers[chosen]() if chosen in makers else None


def legend(chosen: str, slide: ViewedSlide, k: int, overlay: Overlay | None) -> str:
    """HTML: what the colours mean."""
    if chosen == SIMILARITY and overlay is None:
        return "click a tile"
    if chosen == CLUSTERS:
        return "".join(_patch(PALETTE[g % len(PALETTE)], str(g + 1)) for g in range(k))
    if chosen == STATUS:
        present = [(code, name) for code, name in enumerate(STATUSES) if (slide.status == code).any()]
        return "".join(_patch(STATUS_COLOURS[code], f"{name} {int((slide.status == code).sum()):,}") for code, name in present)
    if chosen.startswith((CLASSES, OBJECTS, LABELS)):
        return "".join(_patch(colour, words) for colour, words in class_counts(slide, chosen))
    return escape(overlay.words) if overlay is not None else ""


def _patch(rgb: tuple[int, ...], words: str) -> str:
    return f'<span style="margin-right:10px"><i style="display:inline-block;width:10px;height:10px;background:rgb{rgb}"></i> {escape(words)}</span>'
