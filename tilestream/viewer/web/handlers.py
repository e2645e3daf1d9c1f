"""Answers to requests: all are of numbers, never of paths, and what is slow is done by threads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from tornado.web import HTTPError, RequestHandler

from tilestream.errors import TilestreamError
from tilestream.viewer.answers import draw_answer_tile
from tilestream.viewer.catalogue import Catalogue
from tilestream.viewer.clusters import MOST_GROUPS
from tilestream.viewer.deepzoom import Area, encode_jpeg
from tilestream.viewer.drawing.changes import change_regions
from tilestream.viewer.neighbours import nearest, similarity
from tilestream.viewer.overlays import similarity_layer
from tilestream.viewer.pixels import AS_READ, Look
from tilestream.viewer.scatter import KINDS, place_points
from tilestream.viewer.slide import ViewedSlide
from tilestream.viewer.web.facts import layer_told, outputs_told, packed, places_told, slide_told
from tilestream.viewer.web.layers import SIMILARITY, make_layer
from tilestream.viewer.web.selection import selection_file

CROP_PX = 160
"""Side of a tile in the gallery, px."""

GALLERY = 12
"""Nearest tiles that are told of a slide."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='; "
    "img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: nothing that is not ours. The digest is that of the one style element that OpenSeadragon makes."""

KINDS_OF_FILE = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


@dataclass(frozen=True)
class Shared:
    """What all requests have in common."""

    catalogue: Catalogue
    readers: Executor
    """Reads pixels."""
    workers: Executor
    """Goes over embeddings."""
    slow: Executor
    """Does what takes longer than a person waits with a still hand."""
    annotations: Path | None


@cache
def client_file(name: str) -> bytes | None:
    """A file of the page; None where it has no such file."""
    folder = files("tilestream.viewer") / "client"
    for place in (folder, folder / "vendor"):
        if name in {each.name for each in place.iterdir() if each.is_file()}:
            return (place / name).read_bytes()
    return None


class _Gone(Exception):  # noqa: N818 - nobody is there to be told of an error
    """Whoever asked waits no more."""


class Handler(RequestHandler):
    """What every answer has."""

    def initialize(self, shared: Shared) -> None:
        self.shared = shared
        self.catalogue = shared.catalogue
        self.gone = False

    def on_connection_close(self) -> None:
        self.gone = True

    def set_default_headers(self) -> None:
        for name, value in (
            ("Content-Security-Policy", POLICY), ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"), ("Cache-Control", "no-cache"),
        ):  # fmt: skip
            self.set_header(name, value)
        self.clear_header("Server")

    async def by(self, pool: Executor, work: Callable[..., Any], *arguments: Any) -> Any:
        """The result of work that a thread does; its refusal is told with 400. What only answers, and nobody waits for any more, is not begun."""

        def begin() -> Any:
            if self.gone and self.request.method == "GET":
                raise _Gone
            return work(*arguments)

        try:
            return await asyncio.get_running_loop().run_in_executor(pool, begin)
        except (TilestreamError, OSError) as error:
            raise HTTPError(400, log_message=str(error).replace("%", "%%"), reason="refused") from error

    def write_error(self, status_code: int, **told: Any) -> None:
        """Words for people, of our own errors alone."""
        cause = told.get("exc_info", (None, None, None))[1]
        refused = getattr(cause, "__cause__", None)
        words = str(refused) if isinstance(refused, TilestreamError | OSError) else f"{status_code}: there is nothing here"
        self.tell({"problem": words})

    def log_exception(self, *_: Any) -> None:
        """The person who asked is told; nobody reads a log."""

    def tell(self, told: Any) -> None:
        """Answer with JSON."""
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(told, allow_nan=False))

    def slide(self, number: str) -> ViewedSlide:
        """A slide by its number; 404 where there is none that can be shown."""
        if int(number) >= len(self.catalogue) or self.catalogue.problem(int(number)) is not None:
            raise HTTPError(404)
        return self.catalogue.slide(int(number))

    def number(self, name: str, most: int, default: int | None = None) -> int:
        """A number of the query, 0 to `most`."""
        told = self.get_query_argument(name, None if default is None else str(default))
        if told is None or not (told.isascii() and told.isdigit() and len(told) < 10 and int(told) <= most):
            raise HTTPError(400)
        return int(told)

    def body(self) -> dict[str, Any]:
        """The JSON of a request; a page of another origin cannot send it without asking first."""
        if self.request.headers.get("Content-Type", "").partition(";")[0] != "application/json":
            raise HTTPError(415)
        try:
            told = json.loads(self.request.body)
        except ValueError as error:
            raise HTTPError(400) from error
        if not isinstance(told, dict):
            raise HTTPError(400)
        return told


class Nothing(Handler):
    """What every other address is answered by."""

    def prepare(self) -> None:
        raise HTTPError(404)


class Page(Handler):
    """The page and its files."""

    def get(self, name: str = "page.html") -> None:
        """A file of the page."""
        data = client_file(name)
        kind = KINDS_OF_FILE.get(name.rpartition(".")[2])
        if data is None or kind is None:
            raise HTTPError(404)
        self.set_header("Content-Type", f"{kind}; charset=utf-8")
        self.finish(data)


class Outputs(Handler):
    """/outputs.json."""

    def get(self) -> None:
        """Outputs and their slides."""
        self.tell(outputs_told(self.catalogue, drawing=self.shared.annotations is not None))


class Facts(Handler):
    """/slides/<slide>.json."""

    async def get(self, number: str) -> None:
        """Facts of a slide."""
        if int(number) >= len(self.catalogue):
            raise HTTPError(404)
        self.tell(await self.by(self.shared.readers, slide_told, self.catalogue, int(number)))


class Places(Handler):
    """/slides/<slide>/places."""

    async def get(self, number: str) -> None:
        """Where its tiles lie."""
        self.finish(await self.by(self.shared.workers, places_told, self.slide(number)))


class Layers(Handler):
    """/slides/<slide>/layer?key=&k=&of=&tile=: `k` groups; similar to a tile of the slide `of`, with the nearest tiles."""

    async def get(self, number: str) -> None:
        """One layer."""
        found = await self.by(self.shared.workers, self._make, self.slide(number))
        if found is None:
            raise HTTPError(404)
        self.finish(found)

    def _make(self, slide: ViewedSlide) -> bytes | None:
        key, k = self.get_query_argument("key"), self.number("k", MOST_GROUPS, 6)
        if key == SIMILARITY:
            return self._similar(slide)
        layer = make_layer(slide, key, max(1, k))
        return None if layer is None else layer_told(layer, {"key": key})

    def _similar(self, slide: ViewedSlide) -> bytes | None:
        of = self.slide(str(self.number("of", len(self.catalogue) - 1)))
        tile = self.number("tile", max(0, of.layout.tiles - 1))
        if not (of.layout.tiles and of.good[tile] and of.layout.dim == slide.layout.dim):
            return None
        similar = similarity(slide, of.embedding(tile))
        found = nearest(similar, GALLERY, tile if of is slide else None)
        told = [{"tile": int(each), "cosine": round(float(similar[each]), 4)} for each in found]
        return layer_told(similarity_layer(similar), {"key": SIMILARITY, "nearest": told})


class Points(Handler):
    """/slides/<slide>/points?kind=PCA|UMAP."""

    async def get(self, number: str) -> None:
        """Places of tiles in the scatter: float32 x, y, then int32 numbers of the tiles."""
        kind = self.get_query_argument("kind", "PCA")
        if kind not in KINDS:
            raise HTTPError(404)
        pool = self.shared.workers if kind == "PCA" else self.shared.slow
        rows, where = await self.by(pool, place_points, self.slide(number), kind)
        told = {"kind": kind, "points": len(rows)}
        self.finish(packed(told, where.astype("<f4"), rows.astype("<i4")))


class Selection(Handler):
    """/slides/<slide>/selection: {tiles, as, class} becomes a file."""

    async def post(self, number: str) -> None:
        """The file."""
        slide, told = self.slide(number), self.body()
        name, kind, data = await self.by(self.shared.workers, selection_file, slide, told)
        self.set_header("Content-Type", kind)
        self.set_header("Content-Disposition", f'attachment; filename="{name}"')
        self.finish(data)


class Drawn(Handler):
    """/slides/<slide>/regions: what is drawn on a slide, and changes of it."""

    async def get(self, number: str) -> None:
        """All regions."""
        await self._change(number, {"op": "none"})

    async def post(self, number: str) -> None:
        """A change."""
        await self._change(number, self.body())

    async def _change(self, number: str, told: dict[str, Any]) -> None:
        folder = self.shared.annotations
        if folder is None:
            raise HTTPError(404)
        slide = self.slide(number)
        self.tell(await self.by(self.shared.slow, change_regions, slide, folder, told))


class Pixels(Handler):
    """Pictures by numbers: /tiles/<slide>/<level>/<column>/<row>.jpg and /crops/<slide>/<tile>.jpg."""

    kind = "image/jpeg"

    async def get(self, *numbers: str) -> None:
        """Answer with JPEG; 404 for what no slide has."""
        slide = self.slide(numbers[0])
        data = await self.by(self.shared.readers, self._draw, int(numbers[0]), slide, [int(number) for number in numbers[1:]])
        if data is None:
            raise HTTPError(404)
        self.set_header("Content-Type", self.kind)
        self.set_header("Cache-Control", "private, max-age=600")
        self.finish(data)

    def _draw(self, number: int, slide: ViewedSlide, rest: list[int]) -> bytes | None:
        zoom = self.catalogue.zoom
        if len(rest) == 3:
            return zoom.tile(number, slide, (rest[0], rest[1], rest[2]), self._look())
        tile = rest[0]
        if tile >= slide.layout.tiles:
            return None
        area = Area(float(slide.y[tile]), float(slide.x[tile]), slide.l0_extent / CROP_PX, CROP_PX, CROP_PX)
        return encode_jpeg(zoom.picture(number, slide, area, self._look()))

    def _look(self) -> Look:
        """The channels and the range of values that the page has chosen, as numbers with commas between them."""
        channels, window = self.get_query_argument("channels", ""), self.get_query_argument("window", "")
        if not channels and not window:
            return AS_READ
        try:
            chosen = tuple(int(each) for each in channels.split(",") if each)
            low_high = tuple(float(each) for each in window.split(",") if each)
        except ValueError as error:
            raise HTTPError(400) from error
        if len(chosen) not in (0, 1, 3) or len(low_high) not in (0, 2) or not np.isfinite(low_high).all() or any(k < 0 for k in chosen):
            raise HTTPError(400)
        return Look(chosen or None, (low_high[0], low_high[1]) if low_high else None)


class Objects(Pixels):
    """Objects or labels by numbers: /objects/<slide>/<head>/<level>/<column>/<row>.png; heads are counted in the order of their names."""

    kind = "image/png"

    def _draw(self, number: int, slide: ViewedSlide, rest: list[int]) -> bytes | None:
        del number
        heads = sorted(slide.heads)
        return draw_answer_tile(slide, heads[rest[0]], (rest[1], rest[2], rest[3])) if rest[0] < len(heads) else None


def routes(shared: Shared) -> list[Any]:
    """Which address is answered by what."""
    n = r"([0-9]{1,9})"
    found: list[tuple[str, type[Handler]]] = [
        (r"/", Page), (r"/client/([a-z.]{1,40})", Page), (r"/outputs\.json", Outputs), (rf"/slides/{n}\.json", Facts),
        (rf"/slides/{n}/places", Places), (rf"/slides/{n}/layer", Layers), (rf"/slides/{n}/points", Points),
        (rf"/slides/{n}/selection", Selection), (rf"/slides/{n}/regions", Drawn), (rf"/tiles/{n}/{n}/{n}/{n}\.jpg", Pixels),
        (rf"/crops/{n}/{n}\.jpg", Pixels), (rf"/objects/{n}/{n}/{n}/{n}/{n}\.png", Objects),
    ]  # fmt: skip
    return [(pattern, handler, {"shared": shared}) for pattern, handler in found]
