"""The runs of an output, newest first: what each did, how fast, and where its time went."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from html import escape
from typing import Any

from tilestream.store.folder import Folder
from tilestream.viewer.reporting.charts import PART_COLOURS, duration_words, legend, stacked_bar

SHOWN = 50
"""Runs of the table; older ones are counted."""


def read_runs(folder: Folder) -> list[dict[str, Any]]:
    """The records of the runs on an output, newest first, each with `name`; and before them the state of the whole, where there is one, as `run.json` has it."""
    names = sorted((key for key in folder.names("runs") if key.endswith(".json")), reverse=True)
    named = [name for name in folder.children() if name.startswith("run") and name.endswith(".json")]
    found = []
    for name in [*sorted(named, reverse=True), *names]:
        try:
            run = json.loads(folder.get(name) or b"")
        except ValueError:  # being written, or cut short
            continue
        if _is_run(run):
            found.append({**run, "name": name})
    return found


def _is_run(run: Any) -> bool:
    """Whether a JSON file of such a name is a summary of ours."""
    slides = run.get("slides") if isinstance(run, dict) else None
    return isinstance(slides, list) and all(isinstance(slide, dict) and "id" in slide for slide in slides)


def history(runs: list[dict[str, Any]]) -> str:
    """The runs as a table; where an output has no records but its state, that stands for the last one."""
    records = [run for run in runs if "/" in run["name"]] or runs
    if not records:
        return "<p class=soft>No run has ended here yet.</p>"
    rows = "".join(map(_row, records[:SHOWN]))
    more = f"<p class=soft>and {len(records) - SHOWN} earlier runs</p>" if len(records) > SHOWN else ""
    bound = records[0].get("bound")
    last = f"<p>The last run: <b>{escape(str(bound))}</b></p>" if bound else ""
    heads = "".join(
        f"<th>{name}</th>"
        for name in ("ended (UTC)", "slides", "tiles embedded", "time", "tiles/s", "where the time went", "on", "peak memory a worker")
    )
    return (
        f"<h2>Runs</h2>{last}<div class=box><table class=runs><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{more}"
        f"{legend(((name, '') for name in PART_COLOURS), PART_COLOURS)}</div>"
    )


def _row(run: dict[str, Any]) -> str:
    statuses: dict[str, int] = {}
    for slide in run["slides"]:
        statuses[str(slide.get("status", ""))] = statuses.get(str(slide.get("status", "")), 0) + 1
    slides = ", ".join(f"{count:,} {status}" for status, count in statuses.items())
    parts = run.get("seconds_by_part") or run.get("seconds_by_stage") or {}
    seconds = _number(run.get("seconds"))
    words = ", ".join(
        f"{name} {duration_words(_number(value))}" for name, value in parts.items() if _number(value) >= 0.005 * max(seconds, 1.0)
    )
    workers = int(_number(run.get("workers", 1)))
    device = str(run.get("encoder", {}).get("device", ""))
    memory = f"{_number(run.get('peak_bytes')) / 2**30:.2f} GiB of {_number(run.get('projected_bytes')) / 2**30:.2f} projected"
    rate = _number(run.get("tiles_per_second"))
    return (
        f"<tr><td>{escape(_when(run['name']))}</td><td>{escape(slides)}</td><td class=n>{int(_number(run.get('new_tiles'))):,}</td>"
        f"<td class=n>{duration_words(seconds)}</td><td class=n>{f'{rate:,.3g}' if rate else '-'}</td>"
        f"<td class=time>{stacked_bar(((name, _number(value)) for name, value in parts.items()), PART_COLOURS)}<span class=soft>{escape(words)}</span></td>"
        f"<td>{escape(device)}, {workers} {'worker' if workers == 1 else 'workers'}</td><td>{memory if run.get('peak_bytes') else '-'}</td></tr>"
    )


def _when(name: str) -> str:
    """When a record was written, by its name."""
    stamp = name.rsplit("/", 1)[-1].partition("-")[0]
    try:
        return f"{datetime.strptime(stamp, '%Y%m%dT%H%M%SZ').replace(tzinfo=UTC):%Y-%m-%d %H:%M}"
    except ValueError:
        return "last"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
