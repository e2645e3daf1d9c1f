"""What the command `report` does: one HTML file for a cohort, without a server, a network or a script from elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np

from tilestream import __version__
from tilestream.buffers import counted
from tilestream.config.local_files import refuse_url
from tilestream.errors import ConfigError, IncompleteError, InputError, without_credentials
from tilestream.interop.target import Target
from tilestream.store.cohort import find_stores
from tilestream.store.folder import Folder
from tilestream.store.layout import nothing_kept
from tilestream.store.ownership import is_zarr
from tilestream.store.picture import small_image
from tilestream.store.records import flatten
from tilestream.store.slide import Slide
from tilestream.store.slide_store import THUMBNAIL
from tilestream.store.stage_arrays import OVERVIEW
from tilestream.viewer.answer_words import answer_words
from tilestream.viewer.assets import read_asset
from tilestream.viewer.reporting.causes import anchor, causes_table, group_causes
from tilestream.viewer.reporting.charts import PALETTE, STATUS_COLOURS, by_status, duration_words, legend, stacked_bar, throughput_chart
from tilestream.viewer.reporting.history import history, read_runs

PICTURE_BYTES = 24 * 1024**2
"""Bytes of all pictures together, about: each is smaller the more slides there are."""

LARGE_PX, SMALL_PX = 640, 240
"""Longest side of a picture for one slide, and for thousands."""

TILE_ERRORS = 4
"""Causes of failed tiles that are listed for a slide."""

STAGES = ("read", "decode", "wait", "compute", "context", "write", "pool", "windows", "overview", "seal")
"""Stages in the order in which they are named; others come behind."""

STAGE_COLOURS = dict(zip(STAGES, PALETTE, strict=True))

GOOD = ("ok", "padded")


def write_report(output: str, to: str | None = None, *, force: bool = False) -> str:
    """Write the report of an output folder; returns words on what was written.

    Slides that are not finished, that have no tissue or that were refused are in it. Nothing is written into the stores.

    Memory bound: one slide's picture, and the summaries of the runs.

    Parameters
    ----------
    output : str
        An output folder or its URL.
    to : str, optional
        The file; by default `report.html` in the output.
    force : bool
        Whether a file is replaced that is not a report, or was changed since.

    Raises
    ------
    InputError
        There is no output.
    ConfigError
        The file cannot be written there.
    """
    if to is not None:
        refuse_url(to, "--to")
    folder = Folder(output, read_only=True)
    if is_zarr(folder):
        raise ConfigError(f"report: {output} is one slide's store. Give the output folder that holds it.")
    runs = read_runs(folder)
    try:
        stores = find_stores(output)
    except InputError:
        if not runs:
            raise
        stores = {}
    told = {slide["id"]: slide for run in reversed(runs) for slide in run["slides"]}  # the newest has the last word
    names = sorted({*told, *stores})
    target = _target(output, to)
    with Target(target, force or _is_report(target), option="--to").writing() as path:
        with path.open("w", encoding="utf-8") as file:
            side = max(SMALL_PX, min(LARGE_PX, LARGE_PX - 4 * len(names)))
            slides = [_Row(name, stores.get(name), told.get(name, {})) for name in names]
            columns = "".join(
                f'<th><button title="sort">{name}</button></th>'
                for name in ("slide", "picture", "status", "tiles", "tissue mm²", "failed", "seconds of workers", "what to know")
            )
            title = f"tilestream: {Path(output).name or output}"
            page = Template(read_asset("report.html"))
            file.write(
                page.substitute(
                    title=escape(title),
                    style=read_asset("report.css"),
                    pic=side,
                    head=_head(output, runs, slides),
                    legend=_stage_legend(slides),
                    columns=columns,
                )
            )
            for slide in slides:
                file.write(slide.row(side, max(2000, PICTURE_BYTES // max(1, len(names))), target.parent))
            file.write(f"</tbody></table>{_recipes(slides, runs)}<p class=soft>Written by tilestream {escape(__version__)}.</p>")
            file.write(f"</main><script>{read_asset('report.js')}</script></body></html>\n")
        _sign(path)
        size = path.stat().st_size
    return f"{counted(len(names), 'slide')} -> {target} ({size / 1e6:.1f} MB)"


def _target(output: str, to: str | None) -> Path:
    if to is None and "://" in output:
        raise ConfigError(f"--to: is needed for {output}, since reports are written to a local disk.")
    return Path(to) if to is not None else Path(output) / "report.html"


SIGNATURE = b"<!-- tilestream report "


def _sign(path: Path) -> None:
    """End a report with a digest of itself: one that a person changed is no longer ours to replace."""
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    with path.open("ab") as file:
        file.write(SIGNATURE + f"{digest} -->\n".encode())


def _is_report(path: Path) -> bool:
    """Whether a file is a report as it was written."""
    if path.is_symlink() or not path.is_file():
        return False
    text, _, rest = path.read_bytes().rpartition(SIGNATURE)
    return rest == f"{hashlib.blake2b(text, digest_size=16).hexdigest()} -->\n".encode()


class _Row:
    """One row of the report: what its store says, else what a run said of it."""

    def __init__(self, name: str, place: Folder | None, told: dict[str, Any]) -> None:
        self.name, self.told = name, told
        self.slide = None if place is None else _open_slide(place)
        self.commits = {} if self.slide is None else self.slide.read_commits()
        self.tiles: int = told.get("tiles", 0) if self.slide is None else self.slide.layout.tiles
        self.counts: dict[str, int] = {}
        for entry in self.commits.values():
            for status, count in entry.get("counts", {}).items():
                self.counts[status] = self.counts.get(status, 0) + count
        mark = None if self.slide is None else self.slide.completion
        self.counts = (mark or {}).get("counts") or self.counts or told.get("counts", {})
        self.status = "done" if mark else "refused" if told.get("status") == "refused" else "unfinished"
        self.seconds: dict[str, float] = told.get("seconds", {})
        self.tissue_mm2 = None if self.slide is None else _tissue_mm2(self.slide)

    @property
    def embedded(self) -> int:
        """Tiles that are in the store, failed ones included."""
        return self.tiles if self.status == "done" else sum(self.counts.values())

    @property
    def failed(self) -> int:
        """Tiles that are NaN."""
        return sum(count for status, count in self.counts.items() if status not in GOOD)

    @property
    def address(self) -> str:
        """Of its image, as it may be shown."""
        return without_credentials(str(self.told.get("address", "") if self.slide is None else self.slide.source["address"]))

    def told_causes(self) -> Iterator[tuple[str, str, str, str, int]]:
        """What went wrong, as (kind, words, slide, address, tiles)."""
        own = (self.name, self.address)
        if error := self.told.get("error"):
            yield "slide refused" if self.status == "refused" else "slide unfinished", str(error), *own, 0
        elif self.status == "unfinished":
            yield "slide unfinished", "interrupted, or being worked on; the same command goes on with it", *own, 0
        for cause in self.told.get("tile_errors", {}).values():
            yield "tiles failed", str(cause), *own, 1

    def causes(self) -> list[str]:
        """Why the slide or its tiles failed, in words."""
        found = [self.told["error"]] if self.told.get("error") else []
        found += self.told.get("warnings") or ([] if self.slide is None else self.slide.source.get("warnings", []))
        found += [
            f"{count} {'tile' if count == 1 else 'tiles'}: {status}"
            for status, count in self.counts.items()
            if count and status not in GOOD
        ]
        rows: dict[str, list[str]] = {}
        for row, cause in self.told.get("tile_errors", {}).items():
            rows.setdefault(str(cause), []).append(str(row))
        for cause, alike in list(rows.items())[:TILE_ERRORS]:
            more = f" and {len(alike) - TILE_ERRORS} more" if len(alike) > TILE_ERRORS else ""
            found.append(f"{'tile' if len(alike) == 1 else 'tiles'} {', '.join(alike[:TILE_ERRORS])}{more}: {cause}")
        found += [f"and {counted(len(rows) - TILE_ERRORS, 'other cause')}"] if len(rows) > TILE_ERRORS else []
        note = self.told.get("note") or (
            "" if self.tiles or self.status != "done" or self.slide is None else nothing_kept(self.slide.source)
        )
        return found + ([note] if note else [])

    def row(self, side: int, most: int, beside: Path) -> str:
        """Its row of the table in a file that lies in `beside`; the picture at most `side` px wide and about `most` bytes."""
        causes = self.causes()
        words = escape(f"{self.name} {self.status} {' '.join(causes)}".lower(), quote=True)
        progress = f"{self.tiles:,}" if self.status == "done" else f"{self.embedded:,} of {self.tiles:,}"
        answers = [] if self.slide is None else answer_words(self.slide)
        causes_list = f"<ul>{''.join(f'<li>{escape(cause)}</li>' for cause in causes)}</ul>" if causes else ""
        total = sum(self.seconds.values())
        return (
            f'<tr id="{anchor(self.name)}" data-text="{words}"><td class=id><b>{escape(self.name)}</b><br><span class=soft>{escape(self.address)}</span>'
            f"{''.join(f'<br>{escape(line)}' for line in answers)}</td>"
            f"<td class=pic>{self._picture(side, most, beside)}</td><td class={self.status}>{self.status}</td>"
            f'<td class=n data-v="{self.tiles}">{progress}{stacked_bar(by_status(self.counts), STATUS_COLOURS)}</td><td class=n data-v="{self.tissue_mm2 or 0:.4f}">{_area(self.tissue_mm2)}</td>'
            f'<td class="n{" failed" if self.failed else ""}" data-v="{self.failed}">{self.failed:,}</td>'
            f'<td data-v="{total:.2f}">{_bar(self.seconds)}</td><td class=why>{causes_list}</td></tr>\n'
        )

    def _picture(self, side: int, most: int, beside: Path) -> str:
        """The overview, else the thumbnail, inline; a link to the file where it lies on a disk."""
        raw = None if self.slide is None else self.slide.read_picture()
        image = (raw and small_image(raw, side, most, f"overview of {self.name}")) or "<div class=none>no picture</div>"
        local = None if self.slide is None else self.slide.folder.local
        file = next((local / name for name in (OVERVIEW, THUMBNAIL) if raw and local and (local / name).is_file()), None)
        if file is None:
            return image
        return f'<a href="{escape(quote(os.path.relpath(file.absolute(), beside.absolute())), quote=True)}">{image}</a>'


def _open_slide(place: Folder) -> Slide | None:
    """A store, finished or not; None where its creation was cut short."""
    try:
        return Slide(place, allow_unfinished=True)
    except IncompleteError:
        return None


def _ordered(seconds: dict[str, float]) -> list[tuple[str, float]]:
    order = {name: k for k, name in enumerate(STAGES)}
    return sorted(seconds.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))


def _bar(seconds: dict[str, float]) -> str:
    """Seconds by stage as one bar, whose colours the legend above the table tells."""
    total = sum(seconds.values())
    return '<span class="soft">-</span>' if total <= 0 else f"{duration_words(total)}{stacked_bar(_ordered(seconds), STAGE_COLOURS)}"


def _stage_legend(slides: list[_Row]) -> str:
    """What the colours of the slides' bars mean, of those that there are."""
    stages, statuses = dict[str, float](), dict[str, int]()
    for slide in slides:
        for stage, seconds in slide.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
        for status, count in slide.counts.items():
            statuses[status] = statuses.get(status, 0) + count
    tiles = legend(((status, "") for status, count in by_status(statuses) if count), STATUS_COLOURS)
    return f"<span>Tiles:</span>{tiles}<span>Seconds:</span>{legend(((stage, '') for stage, _ in _ordered(stages)), STAGE_COLOURS)}"


def _area(mm2: float | None) -> str:
    return "-" if mm2 is None else f"{mm2:,.3g}" if mm2 < 1000 else f"{mm2:,.0f}"


def _tissue_mm2(slide: Slide) -> float | None:
    """Tissue in the tiles that were kept, mm²; None where the image has no scale, lies on a map, or tissue was not looked for."""
    if slide.mpp is None or slide.source.get("geo"):
        return None
    tissue = np.asarray(slide.read_column("tissue"), np.float64)
    if not len(tissue):
        return 0.0
    return None if np.isnan(tissue).all() else float(np.nansum(tissue) * (slide.stride * slide.scale * slide.mpp / 1000) ** 2)


def _head(output: str, runs: list[dict[str, Any]], slides: list[_Row]) -> str:
    """Totals, tiles by status, causes, the runs and their throughput."""
    slide_counts = {status: sum(slide.status == status for slide in slides) for status in ("done", "unfinished", "refused")}
    cards = [("slides", f"{len(slides):,}"), *((status, f"{count:,}") for status, count in slide_counts.items() if count)]
    cards += [("tiles embedded", f"{sum(s.embedded for s in slides):,}"), ("tiles failed", f"{sum(s.failed for s in slides):,}")]
    areas = [slide.tissue_mm2 for slide in slides if slide.tissue_mm2 is not None]
    cards += [(f"mm² of tissue, {counted(len(areas), 'slide')}", _area(sum(areas)))] if areas else []
    counts: dict[str, int] = {}
    for slide in slides:
        for status, count in slide.counts.items():
            counts[status] = counts.get(status, 0) + count
    whole = sum(counts.values())
    shares = [(status, f"{count:,} ({count / whole:.2%})") for status, count in by_status(counts) if count]
    tiles = (
        f"<h2>Tiles by status</h2><div class=box>{stacked_bar(by_status(counts), STATUS_COLOURS)}{legend(shares, STATUS_COLOURS)}</div>"
        if whole
        else ""
    )
    shown = "".join(f'<div class="card"><b>{value}</b><span class="soft">{name}</span></div>' for name, value in cards)
    causes = causes_table(group_causes(cause for slide in slides for cause in slide.told_causes()))
    return f"<h1>{escape(output)}</h1><div class=cards>{shown}</div>{tiles}{causes}{history(runs)}{throughput_chart([e for e in _commits(slides) if e[1]])}"


def _commits(slides: list[_Row]) -> Iterator[tuple[float, int]]:
    """Time, s, and tiles of each shard of local stores."""
    for row in slides:
        if row.slide is None or row.slide.folder.local is None:
            continue
        for number, entry in row.commits.items():
            try:
                written = (row.slide.folder.local / f".tilestream/shards/tiles-{number:06d}.json").stat().st_mtime
            except OSError:  # a run is at work
                continue
            yield written, sum(entry.get("counts", {}).values())


def _recipes(slides: list[_Row], runs: list[dict[str, Any]]) -> str:
    """The recipes that occur, each once, without what is a slide's own; and versions."""
    seen: dict[str, list[str]] = {}
    for slide in slides:
        if slide.slide is not None:
            flat = {key: value for key, value in flatten(slide.slide.recipe).items() if key != "tiles.from_sha256"}
            seen.setdefault("\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in flat.items()), []).append(
                slide.name
            )
    parts = [
        f"<h2>Recipe ({counted(len(names), 'slide')})</h2><div class=box><pre>{escape(text)}</pre></div>" for text, names in seen.items()
    ]
    if runs and (versions := runs[0].get("versions")):
        parts.append(f"<details><summary>Versions</summary><pre>{escape(json.dumps(versions, indent=1))}</pre></details>")
    return "".join(parts)
