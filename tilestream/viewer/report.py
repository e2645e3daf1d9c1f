"""What the command `report` does: one HTML file for a cohort, without a server, a network or a script from elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from tilestream import __version__
from tilestream.errors import ConfigError, IncompleteError, InputError, without_credentials
from tilestream.interop.target import Target
from tilestream.store.cohort import find_stores
from tilestream.store.folder import Folder
from tilestream.store.layout import nothing_kept
from tilestream.store.ledger import flatten
from tilestream.store.ownership import is_zarr
from tilestream.store.picture import small_image
from tilestream.store.slide import Slide
from tilestream.viewer.answer_words import answer_words
from tilestream.viewer.assets import read_asset

PICTURE_BYTES = 24 * 1024**2
"""Bytes of all pictures together, about: each is smaller the more slides there are."""

LARGE_PX, SMALL_PX = 640, 240
"""Longest side of a picture for one slide, and for thousands."""

TILE_ERRORS = 10
"""Causes of failed tiles that are listed for a slide."""

STAGES = ("read", "decode", "wait", "compute", "context", "write", "pool", "windows", "overview", "seal")
"""Stages in the order in which they are named; others come behind."""

GOOD = ("ok", "padded")
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#eeca3b", "#9d755d")


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
    folder = Folder(output, read_only=True)
    if is_zarr(folder):
        raise ConfigError(f"report: {output} is one slide's store. Give the output folder that holds it.")
    runs = _runs(folder)
    try:
        stores = find_stores(output)
    except InputError:
        if not runs:
            raise
        stores = {}
    told = {slide["id"]: slide for run in runs for slide in run.get("slides", [])}
    names = sorted({*told, *stores})
    target = _target(output, to)
    with Target(target, force or _is_report(target), option="--to").writing() as path:
        with path.open("w", encoding="utf-8") as file:
            side = max(SMALL_PX, min(LARGE_PX, LARGE_PX - 4 * len(names)))
            slides = [_Row(name, stores.get(name), told.get(name, {})) for name in names]
            columns = "".join(
                f'<th><button title="sort">{name}</button></th>'
                for name in ("slide", "picture", "status", "tiles", "failed", "seconds", "causes")
            )
            title = f"tilestream: {Path(output).name or output}"
            page = Template(read_asset("report.html"))
            file.write(
                page.substitute(
                    title=escape(title), style=read_asset("report.css"), pic=side, head=_head(output, runs, slides), columns=columns
                )
            )
            for slide in slides:
                file.write(slide.row(side, max(2000, PICTURE_BYTES // max(1, len(names)))))
            file.write(f"</tbody></table>{_recipes(slides, runs)}<p class=soft>Written by tilestream {escape(__version__)}.</p>")
            file.write(f"</main><script>{read_asset('report.js')}</script></body></html>\n")
        _sign(path)
        size = path.stat().st_size
    return f"{len(names)} slides -> {target} ({size / 1e6:.1f} MB)"


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


def _runs(folder: Folder) -> list[dict[str, Any]]:
    """The summaries of the runs on an output; those of a job array come before the one of a whole run."""
    found = []
    for name in sorted((name for name in folder.children() if name.startswith("run") and name.endswith(".json")), reverse=True):
        try:
            run = json.loads(folder.get(name) or b"")
        except ValueError:  # being written, or cut short
            continue
        if _is_run(run):
            found.append(run)
    return found


def _is_run(run: Any) -> bool:
    """Whether a JSON file of such a name is a summary of ours."""
    slides = run.get("slides") if isinstance(run, dict) else None
    return isinstance(slides, list) and all(isinstance(slide, dict) and "id" in slide for slide in slides)


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

    @property
    def embedded(self) -> int:
        """Tiles that are in the store, failed ones included."""
        return self.tiles if self.status == "done" else sum(self.counts.values())

    @property
    def failed(self) -> int:
        """Tiles that are NaN."""
        return sum(count for status, count in self.counts.items() if status not in GOOD)

    def causes(self) -> list[str]:
        """Why the slide or its tiles failed, in words."""
        found = [self.told["error"]] if self.told.get("error") else []
        found += self.told.get("warnings") or ([] if self.slide is None else self.slide.source.get("warnings", []))
        found += [
            f"{count} {'tile' if count == 1 else 'tiles'}: {status}"
            for status, count in self.counts.items()
            if count and status not in GOOD
        ]
        errors = list(self.told.get("tile_errors", {}).items())
        found += [f"tile {row}: {cause}" for row, cause in errors[:TILE_ERRORS]]
        found += [f"and {len(errors) - TILE_ERRORS} more"] if len(errors) > TILE_ERRORS else []
        note = self.told.get("note") or (
            "" if self.tiles or self.status != "done" or self.slide is None else nothing_kept(self.slide.source)
        )
        return found + ([note] if note else [])

    def row(self, side: int, most: int) -> str:
        """Its row of the table; the picture at most `side` px wide and about `most` bytes."""
        causes = self.causes()
        words = escape(f"{self.name} {self.status} {' '.join(causes)}".lower(), quote=True)
        progress = f"{self.tiles:,}" if self.status == "done" else f"{self.embedded:,} of {self.tiles:,}"
        answers = [] if self.slide is None else answer_words(self.slide)
        causes_list = f"<ul>{''.join(f'<li>{escape(cause)}</li>' for cause in causes)}</ul>" if causes else ""
        address = str(self.told.get("address", "") if self.slide is None else self.slide.source["address"])
        total = sum(self.seconds.values())
        return (
            f'<tr data-text="{words}"><td class=id><b>{escape(self.name)}</b><br><span class=soft>{escape(without_credentials(address))}</span>'
            f"{''.join(f'<br>{escape(line)}' for line in answers)}</td>"
            f"<td class=pic>{self._picture(side, most)}</td><td class={self.status}>{self.status}</td>"
            f'<td class=n data-v="{self.tiles}">{progress}</td><td class="n{" failed" if self.failed else ""}" data-v="{self.failed}">{self.failed:,}</td>'
            f'<td data-v="{total:.2f}">{_bar(self.seconds)}</td><td class=why>{causes_list}</td></tr>\n'
        )

    def _picture(self, side: int, most: int) -> str:
        """The overview, else the thumbnail, inline."""
        raw = None if self.slide is None else self.slide.read_picture()
        return (raw and small_image(raw, side, most, f"overview of {self.name}")) or "<div class=none>no picture</div>"


def _open_slide(place: Folder) -> Slide | None:
    """A store, finished or not; None where its creation was cut short."""
    try:
        return Slide(place, allow_unfinished=True)
    except IncompleteError:
        return None


def _ordered(seconds: dict[str, float]) -> list[tuple[str, float]]:
    order = {name: k for k, name in enumerate(STAGES)}
    return sorted(seconds.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))


def _colour(stage: str) -> str:
    return COLOURS[(STAGES.index(stage) if stage in STAGES else len(STAGES)) % len(COLOURS)]


def _bar(seconds: dict[str, float]) -> str:
    """Seconds by stage as one bar, with words below."""
    total = sum(seconds.values())
    if total <= 0:
        return '<span class="soft">-</span>'
    parts = "".join(f'<i style="width:{100 * s / total:.1f}%;background:{_colour(stage)}"></i>' for stage, s in _ordered(seconds))
    words = ", ".join(f"{escape(stage)} {s:.1f}" for stage, s in _ordered(seconds) if s >= 0.05)
    return f'{total:.1f} s<div class="bar">{parts}</div><span class="soft">{words}</span>'


def _head(output: str, runs: list[dict[str, Any]], slides: list[_Row]) -> str:
    """Totals, what bounded the runs, and throughput."""
    by_status = {status: sum(slide.status == status for slide in slides) for status in ("done", "unfinished", "refused")}
    cards = [("slides", f"{len(slides):,}"), *((status, f"{count:,}") for status, count in by_status.items() if count)]
    cards += [("tiles embedded", f"{sum(s.embedded for s in slides):,}"), ("tiles failed", f"{sum(s.failed for s in slides):,}")]
    whole: dict[str, float] = {}
    for run in runs:
        for stage, seconds in run.get("seconds_by_stage", {}).items():
            whole[stage] = whole.get(stage, 0.0) + seconds
    lines = "".join(f"<li>{_run_words(run)}</li>" for run in runs)
    shown = "".join(f'<div class="card"><b>{value}</b><span class="soft">{name}</span></div>' for name, value in cards)
    return (
        f"<h1>{escape(output)}</h1><div class=cards>{shown}</div>"
        + (f"<h2>Runs</h2><div class=box><ul>{lines}</ul>{_bar(whole)}</div>" if runs else "<p class=soft>No run has ended here yet.</p>")
        + _throughput(slides)
    )


def _run_words(run: dict[str, Any]) -> str:
    device = run.get("encoder", {}).get("device", "")
    words = f"{run.get('new_tiles', 0):,} tiles in {run.get('seconds', 0):,.0f} s, {run.get('tiles_per_second', 0):,.1f} tiles/s, {run.get('workers', 1)} workers"
    words += f" on {device}" if device else ""
    words += f"; peak memory {run.get('peak_bytes', 0) / 2**30:.2f} GiB of {run.get('projected_bytes', 0) / 2**30:.2f} projected a worker"
    return escape(words) + (f"<br><b>{escape(run['bound'])}</b>" if run.get("bound") else "")


def _throughput(slides: list[_Row]) -> str:
    """Tiles committed over time, from when shards' entries were written; empty where that is not known."""
    events = sorted(event for event in _commits(slides) if event[1])
    if len(events) < 2 or events[-1][0] - events[0][0] < 1:
        return ""
    start, end = events[0][0], events[-1][0]
    bins = min(120, len(events))
    counts = [0.0] * bins
    for when, tiles in events:
        counts[min(bins - 1, int((when - start) / (end - start) * bins))] += tiles
    width = (end - start) / bins
    rates = [count / width for count in counts]
    top = max(rates) or 1.0
    step = 1000 / bins
    bars = "".join(
        f'<rect x="{k * step:.1f}" y="{150 - 140 * rate / top:.1f}" width="{max(1.0, step - 1):.1f}" height="{140 * rate / top:.1f}"/>'
        for k, rate in enumerate(rates)
    )
    return (
        '<h2>Throughput</h2><div class=box><svg viewBox="0 0 1000 172" width="100%" role="img" aria-label="tiles per second over time">'
        f'<g fill="#4c78a8">{bars}</g><path d="M0 150H1000" stroke="#9aa7b5"/><g font-size="12" fill="#5d6b7c"><text x="0" y="168">0 s</text>'
        f'<text x="1000" y="168" text-anchor="end">{end - start:,.0f} s</text><text x="4" y="20">at most {top:,.0f} tiles/s, shards as they were committed</text></g></svg></div>'
    )


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
    parts = [f"<h2>Recipe ({len(names)} slides)</h2><div class=box><pre>{escape(text)}</pre></div>" for text, names in seen.items()]
    if runs and (versions := runs[0].get("versions")):
        parts.append(f"<details><summary>Versions</summary><pre>{escape(json.dumps(versions, indent=1))}</pre></details>")
    return "".join(parts)
