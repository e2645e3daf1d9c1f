"""What an output keeps of the runs on it: a record of each, the state of the whole, and what was told of each slide."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from typing import Any

from tilestream.errors import EXIT_DONE, EXIT_PARTIAL, EXIT_REFUSED, OutputError, without_credentials
from tilestream.geometry import Size, TileGrid
from tilestream.runner.summary import SlideResult, Summary, same_image
from tilestream.store.cohort import LOOKS_AT_ONCE
from tilestream.store.folder import Folder
from tilestream.store.layout import nothing_kept
from tilestream.store.ledger import HOME
from tilestream.store.ownership import is_ours
from tilestream.store.slide_store import SlideStore

STATE, RUNS = "run.json", "runs"
REFUSED, SPENT = f"{HOME}/refused", f"{HOME}/spent"
"""Why slides were refused; and what was spent on them, by all runs since their stores were begun."""

TOLD = ("address", "listed")
"""Fields of a slide that the last run knows which had it in its list."""

DONE = ("seconds", "context")
"""Fields of a slide that only a run knows which did something for it."""


def write_records(output: Folder, summary: Summary) -> None:
    """Add the record of a run, and write the state of the output: of its last run what that measured, of its slides what the stores say."""
    record = json.loads(summary.to_json())
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.urandom(4).hex()}"
    output.put(f"{RUNS}/{name}.json", json.dumps(record, indent=1).encode())
    _write_state(output, partial(_state, output, record))


def mend_state(output: Folder, summary: Summary) -> None:
    """Bring a state up to date that a run did not live to write: slides that it finished are missing there. Else nothing is written."""
    there = {slide["id"]: slide.get("status") for slide in (_read(output, STATE) or {}).get("slides", [])}
    behind = [slide.id for slide in summary.slides if slide.status == "already done" and there.get(slide.id) != "done"]
    if not any(output.exists(f"{SPENT}/{slide}.json") for slide in behind):  # others were imported
        return
    record = json.loads(summary.to_json())
    with suppress(OSError):  # who has nothing to do need not be able to write
        _write_state(output, lambda before: _state(output, {**record, **before, "slides": record["slides"]}, before))


def _write_state(output: Folder, make: Callable[[dict[str, Any]], bytes]) -> None:
    """Replace the state by what `make` gives of the one before, with no other job's in between: jobs that end together tell of each other."""
    if output.local is not None:
        with suppress(OutputError), output.locked(HOME):  # a job that hangs there keeps no other one from ending
            output.put(STATE, make(_read(output, STATE) or {}))
        return
    while True:
        found = output.stat(STATE)
        data = make({} if found is None else _parse(found[0]) or {})
        if output.put_new(STATE, data) if found is None else output.put_over(STATE, data, found[1]):
            return


def _state(output: Folder, record: dict[str, Any], before: dict[str, Any]) -> bytes:
    """The state of an output, as JSON, behind the run of a record; `before` was the state until then."""
    told: dict[str, dict[str, Any]] = {}
    for slide in before.get("slides", []) + record["slides"]:
        known = {key: value for key, value in slide.items() if key in TOLD or (key in DONE and value)}
        told[slide["id"]] = told.get(slide["id"], {}) | known
    state = output_state(output, [slide["id"] for slide in record["slides"]])
    for slide in state["slides"]:
        spent = {key: value for key in DONE if (value := slide[key])}
        slide.update(told.get(slide["id"], {}) | spent)
    return json.dumps(without_credentials({**record, **state}), indent=1).encode()


def output_state(output: Folder, listed: Sequence[str]) -> dict[str, Any]:
    """The slides of an output, finished or not, with the causes of failed tiles; and those that were refused.

    Of slides with the same image, the first of `listed`, else of the alphabet, counts as the one that the others repeat.
    """
    place = {slide: number for number, slide in enumerate(listed)}
    names = [name.removesuffix(".zarr") for name in output.children() if name.endswith(".zarr")]
    seen: dict[str, str] = {}
    slides = []
    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        states = pool.map(partial(slide_state, output), sorted(names, key=lambda slide: (place.get(slide, len(place)), slide)))
        for found, fingerprint in filter(None, states):
            found.warnings += same_image(seen, found.id, fingerprint)
            slides.append(found)
    there = {slide.id for slide in slides}
    refused = [key.rsplit("/", 1)[-1].removesuffix(".json") for key in output.names(REFUSED)]
    for slide, why in [(slide, refusal_of(output, slide)) for slide in refused if slide not in there]:
        slides.append(SlideResult(slide, why.address, "refused", error=why.error, listed=why.listed))
    failed = sum(slide.failed_tiles for slide in slides)
    lacking = [slide for slide in slides if slide.status != "done"]
    short = lacking or failed or any(slide.unanswered for slide in slides)
    code = EXIT_REFUSED if slides and len(lacking) == len(slides) else EXIT_PARTIAL if short else EXIT_DONE
    return {
        "exit_code": code,
        "tiles": sum(slide.tiles for slide in slides),
        "failed_tiles": failed,
        "slides": [asdict(slide) for slide in sorted(slides, key=lambda slide: slide.id)],
    }


def slide_state(output: Folder, slide: str) -> tuple[SlideResult, str] | None:
    """What the store of a slide says of it, and the fingerprint of its image; None where the store is none of ours."""
    store = SlideStore(output / f"{slide}.zarr")
    if not is_ours(store.folder):
        return None
    attributes = store.attributes or {}
    source = attributes.get("source", {})
    mark = store.completion
    found = SlideResult(slide, source.get("address", ""), "done" if mark else "unfinished", attributes.get("layout", {}).get("tiles", 0))
    for entry in [mark] if mark else store.ledger().values():
        for status, count in entry["counts"].items():
            found.counts[status] = found.counts.get(status, 0) + count
        found.tile_errors |= {int(row): cause for row, cause in entry.get("errors", {}).items()}
        found.redone += entry.get("redone", 0)
    found.candidates = _candidates(attributes, found.tiles)
    found.warnings = list(source.get("warnings", ()))
    found.unanswered = store.unanswered
    found.note = nothing_kept(source) if mark and found.tiles == 0 else ""
    found.error = "" if mark else refusal_of(output, slide).error
    found.status = "refused" if found.error else found.status
    spent = spent_on(output, slide)
    found.seconds, found.context = spent.get("seconds", {}), spent.get("context", "")
    return found, source.get("fingerprint", "")


def _candidates(attributes: dict[str, Any], tiles: int) -> int:
    """Tiles of the whole grid of a store; of places that somebody gave, those."""
    source, recipe = attributes.get("source", {}), attributes.get("recipe", {})
    if "scale" not in source or "grid" in source or "imported" in recipe:
        return tiles
    size, step = Size(source["height"], source["width"]), recipe["tiles"]
    return TileGrid(size, step["size"], step["stride"] or step["size"], source["scale"], step.get("edge", "pad")).count


@dataclass(frozen=True)
class Refusal:
    """Why a slide was refused when it was last tried."""

    error: str = ""
    """Empty where it was not."""
    address: str = ""
    listed: dict[str, str] = field(default_factory=dict)
    job: int | None = None
    """The job of an array that tried it; None where it was none of an array."""


def note_refusal(output: Folder, slide: SlideResult, job: int | None) -> bool:
    """Keep why a slide was refused, for other jobs and for the state, or that it was not. Whether that is news."""
    key, before, now = f"{REFUSED}/{slide.id}.json", refusal_of(output, slide.id), Refusal(slide.error, slide.address, slide.listed, job)
    if now.error and (now.error, now.job) != (before.error, before.job):
        output.put(key, json.dumps(without_credentials(asdict(now))).encode())
    elif before.error and not now.error:
        output.delete(key)
    return now.error != before.error


def refusal_of(output: Folder, slide: str) -> Refusal:
    """Why a slide was refused when it was last tried."""
    kept = _read(output, f"{REFUSED}/{slide}.json") or {}
    return Refusal(**{each.name: kept[each.name] for each in fields(Refusal) if each.name in kept})


def note_spent(output: Folder, slide: SlideResult, before: Mapping[str, Any]) -> None:
    """Keep what was spent on a slide, by this run and by those `before`: its owner does, so that it is not lost with the run."""
    earlier = before.get("seconds", {})
    seconds = {stage: round(earlier.get(stage, 0.0) + slide.seconds.get(stage, 0.0), 6) for stage in earlier | slide.seconds}
    told = {"seconds": seconds, "context": slide.context or before.get("context", "")}
    output.put(f"{SPENT}/{slide.id}.json", json.dumps(told).encode())


def spent_on(output: Folder, slide: str) -> dict[str, Any]:
    """What runs kept of what they spent on a slide."""
    return _read(output, f"{SPENT}/{slide}.json") or {}


def _read(output: Folder, key: str) -> dict[str, Any] | None:
    return _parse(output.get(key) or b"null")


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
