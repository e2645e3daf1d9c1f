"""What a run did: slide by slide, in numbers and in the words of `run.json`."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tilestream import __version__
from tilestream.errors import EXIT_DONE, EXIT_PARTIAL, EXIT_REFUSED, without_credentials


@dataclass
class SlideResult:
    """What became of one slide."""

    id: str
    address: str
    status: str = "planned"
    """done | already done | refused | unfinished."""
    tiles: int = 0
    """Rows of the output."""
    candidates: int = 0
    """Tiles of the whole grid."""
    counts: dict[str, int] = field(default_factory=dict)
    """Tiles by status."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by stage, summed over workers."""
    error: str = ""
    """Why it was refused or left unfinished."""
    traceback: str = ""
    """Of code that the user brought, where that is why."""
    tile_errors: dict[int, str] = field(default_factory=dict)
    """Why tiles failed, by row of the output; the first 20 of each shard."""
    context: str = ""
    """How its context was computed, e.g. `row_bands in one pass`."""
    listed: dict[str, str] = field(default_factory=dict)
    """The other columns of the list of slides, such as patient or site."""
    note: str = ""
    """What a person should know of it, e.g. that it has no tissue."""
    warnings: list[str] = field(default_factory=list)
    """What its file leaves in doubt or was taken for, each once."""

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
    seconds: float = 0.0
    """Wall clock of the run."""
    embed_seconds: float = 0.0
    """Wall clock from the first shard's start to the last one's end."""
    new_tiles: int = 0
    """Tiles embedded by this run."""
    workers: int = 1
    device: str = ""
    """Where the encoder ran."""
    peak_bytes: int = 0
    """Largest resident memory of any worker."""
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
        return [s for s in self.slides if s.status in ("refused", "unfinished")]

    @property
    def bound(self) -> str:
        """What bounded the run, in words; empty where this run embedded nothing.

        Shares are of the wall clock in which shards were in work, over all workers.
        """
        if not self.new_tiles or self.embed_seconds <= 0:
            return ""
        whole, spent = self.embed_seconds * self.workers, self.seconds_by_stage
        busy, context, wait = (min(1.0, spent.get(stage, 0.0) / whole) for stage in ("compute", "context", "wait"))
        what = "device" if self.device.startswith("cuda") else "processor"
        if context > max(busy, wait):
            return f"the context took {context:.0%} of the time: a faster {what} would help"
        if wait > 0.1 and wait >= 0.3 * busy:
            return f"decode bound: the {what} waited {wait:.0%} of the time for tiles; more compute.threads or faster storage would help"
        if busy > 0.5:
            return f"{what} busy {busy:.0%}: a faster {what} would help"
        return f"{what} busy {busy:.0%}, waiting for tiles {wait:.0%}: the rest went to writing, finishing slides and starting up"

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
        return EXIT_PARTIAL if self.refused or self.failed_tiles else EXIT_DONE

    def to_json(self) -> str:
        """The text of `run.json`."""
        return json.dumps(
            without_credentials(
                {
                    "tilestream": __version__,
                    "versions": versions(),
                    "config": self.config,
                    "encoder": self.encoder,
                    "exit_code": self.exit_code,
                    "seconds": round(self.seconds, 3),
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
