"""What a run did: slide by slide, in numbers and in the words of its record."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tilestream import __version__
from tilestream.errors import EXIT_DONE, EXIT_PARTIAL, EXIT_REFUSED, without_credentials
from tilestream.stages.clock import Wall
from tilestream.stages.slide_task import add_counts

EMBEDDING = "embedding"
"""The time in which tiles were in work, which `Summary.parts` shares out."""

PARTS = ("starting", "planning", "reading", "computing", "writing", "finishing", "shutting down")
"""What the wall clock of a run goes into, in order."""

TILE_ERRORS = 1000
"""Tile errors kept for a slide in the summary."""

WAYS = {
    "starting": "a run of more slides would spread it",
    "planning": "faster storage or a mask from a file would help",
    "reading": "the {} waited for tiles; more compute.threads or faster storage would help",
    "writing": "faster storage of the output would help",
    "finishing": "more slides at once would hide it",
    "shutting down": "what is left to do is written once the last task has ended",
}
"""What would help where a part takes most of the time."""


@dataclass
class SlideResult:
    """What became of one slide."""

    id: str
    address: str
    status: str = "planned"
    """done | already done | refused | unfinished | elsewhere: another process has it."""
    tiles: int = 0
    """Rows of the output."""
    candidates: int = 0
    """Tiles of the whole grid."""
    counts: dict[str, int] = field(default_factory=dict)
    """Tiles by status."""
    redone: int = 0
    """Tiles that left the range of fp16 and were computed in fp32."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by stage, summed over workers."""
    error: str = ""
    """Why it was refused or left unfinished."""
    traceback: str = ""
    """Of code that the user brought, where that is why."""
    tile_errors: dict[int, str] = field(default_factory=dict)
    """Why tiles failed, by row of the output; the first 20 of each shard."""
    unanswered: dict[str, int] = field(default_factory=dict)
    """Answers that are missing though their tiles are not, by head; also of `context` and of `slide vector`, each with `-name` where it has one."""
    context: str = ""
    """How its context was computed, e.g. `row_bands in one pass`."""
    listed: dict[str, str] = field(default_factory=dict)
    """The other columns of the list of slides, such as patient or site."""
    note: str = ""
    """What a person should know of it, e.g. that it has no tissue."""
    warnings: list[str] = field(default_factory=list)
    """What its file leaves in doubt or was taken for, each once."""

    def add(self, counts: dict[str, int], errors: Mapping[Any, str]) -> None:
        """Add tiles that are embedded, and why some of them failed; `TILE_ERRORS` causes are kept."""
        self.counts = add_counts(self.counts, counts)
        more = list(errors.items())[: TILE_ERRORS - len(self.tile_errors)]
        self.tile_errors |= {int(row): cause for row, cause in more}

    @property
    def failed_tiles(self) -> int:
        """Tiles that are NaN."""
        return sum(n for status, n in self.counts.items() if status not in ("ok", "padded"))


@dataclass
class Summary:
    """What `run` returns."""

    output: str
    config: dict[str, Any]
    slides: list[SlideResult]
    encoder: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What a person should know of how models ran."""
    seconds: float = 0.0
    """Wall clock of the run; of a command, from the start of its process."""
    wall: Wall = field(default_factory=Wall, repr=False)
    """What that went into."""
    embed_seconds: float = 0.0
    """Wall clock from the first shard's start to the last one's end."""
    new_tiles: int = 0
    """Tiles embedded by this run."""
    workers: int = 1
    device: str = ""
    """Where the encoder ran."""
    peak_bytes: int = 0
    """Largest resident memory of any worker."""
    touched: bool = False
    """Whether this run changed anything in the output."""
    projected_bytes: int = 0
    """What the plan projected for it, largest slide."""

    @property
    def tiles(self) -> int:
        """Rows of all outputs."""
        return sum(s.tiles for s in self.slides)

    @property
    def failed_tiles(self) -> int:
        """Tiles that are NaN in all outputs."""
        return sum(s.failed_tiles for s in self.slides)

    @property
    def refused(self) -> list[SlideResult]:
        """Slides without a finished output."""
        return [s for s in self.slides if s.status in ("refused", "unfinished", "elsewhere")]

    @property
    def parts(self) -> dict[str, float]:
        """What the wall clock went into, in seconds that add up to it.

        While tiles are embedded, several things go on at once; the workers' clocks say what counts: what the encoder and the context took, then
        what they waited for tiles, then what writing held them up, each over the workers that had work, for workers come and go. Finishing is what was left to do once no tile was in work.
        """
        parts = dict.fromkeys(PARTS, 0.0) | {part: seconds for part, seconds in self.wall.seconds.items() if part != EMBEDDING}
        left, spent = self.wall.seconds.get(EMBEDDING, 0.0), self.seconds_by_stage
        workers = self.wall.at_work(EMBEDDING) or self.workers
        for part, stages in (("computing", ("compute", "context")), ("reading", ("wait",)), ("writing", ("write",))):
            taken = min(left, sum(spent.get(stage, 0.0) for stage in stages) / workers)
            parts[part] += taken
            left -= taken
        parts["reading"] += left  # of the first tiles, for which nobody waited yet
        return parts

    @property
    def bound(self) -> str:
        """What took most of the run's wall clock, in words; empty where this run embedded nothing."""
        parts = self.parts
        whole = sum(parts.values())
        if not self.new_tiles or whole <= 0:
            return ""
        what = "device" if self.device.startswith("cuda") else "processor"
        part = max(parts, key=parts.__getitem__)
        share = f"{parts[part] / whole:.0%} of {whole:.1f} s"
        busy = f"{what} busy {parts['computing'] / whole:.0%}"
        if part == "computing":
            spent = self.seconds_by_stage
            about = "the context took most of it" if spent.get("context", 0.0) > spent.get("compute", 0.0) else "a faster one would help"
            return f"{what} busy {share}: {about}"
        return f"{part} took {share}, {busy}: {WAYS[part].format(what)}"

    @property
    def tiles_per_second(self) -> float:
        """Tiles embedded by this run over the time in which shards were in work."""
        return self.new_tiles / self.embed_seconds if self.embed_seconds > 0 else 0.0

    @property
    def seconds_by_stage(self) -> dict[str, float]:
        """Seconds by stage over all slides and workers."""
        total: dict[str, float] = {}
        for slide in self.slides:
            for stage, seconds in slide.seconds.items():
                total[stage] = total.get(stage, 0.0) + seconds
        return total

    @property
    def exit_code(self) -> int:
        """0 done; 3 every slide was refused; 4 some slides or tiles are missing."""
        if self.slides and len(self.refused) == len(self.slides):
            return EXIT_REFUSED
        return EXIT_PARTIAL if self.refused or self.failed_tiles or any(s.unanswered for s in self.slides) else EXIT_DONE

    def to_json(self) -> str:
        """The record of the run."""
        return json.dumps(
            without_credentials(
                {
                    "tilestream": __version__,
                    "versions": versions(),
                    "config": self.config,
                    "encoder": self.encoder,
                    "notes": self.notes,
                    "exit_code": self.exit_code,
                    "seconds": round(self.seconds, 3),
                    "seconds_by_part": {k: round(v, 3) for k, v in self.parts.items()} if self.wall.seconds else {},
                    "seconds_of_starting": {k: round(v, 3) for k, v in self.wall.marks.items()},
                    "seconds_by_stage": {k: round(v, 3) for k, v in self.seconds_by_stage.items()},
                    "tiles": self.tiles,
                    "failed_tiles": self.failed_tiles,
                    "new_tiles": self.new_tiles,
                    "tiles_per_second": round(self.tiles_per_second, 2),
                    "bound": self.bound,
                    "workers": self.workers,
                    "peak_bytes": self.peak_bytes,
                    "projected_bytes": self.projected_bytes,
                    "slides": [asdict(slide) for slide in self.slides],
                }
            ),
            indent=1,
        )


def versions() -> dict[str, str]:
    """Versions of Python, the system and the libraries that numbers can depend on."""
    found = {"python": sys.version.split()[0], "system": platform.platform()}
    for package in (
        "torch",
        "numpy",
        "zarr",
        "dask",
        "distributed",
        "tifffile",
        "imagecodecs",
        "simplejpeg",
        "openslide-python",
        "anndata",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def same_image(seen: dict[str, str], slide: str, fingerprint: str) -> tuple[str, ...]:
    """A warning where a slide before this one has the same bytes; `seen` holds the first slide of each fingerprint, of those that have one."""
    first = seen.setdefault(fingerprint, slide) if fingerprint else slide
    return () if first == slide else (f"holds the same image as {first} (equal fingerprints); it counts twice in the output.",)
