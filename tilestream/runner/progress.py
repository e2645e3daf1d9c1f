"""What a person or a log sees of a run: live lines on a terminal, plain lines in a file, JSON lines for machines."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from tilestream.buffers import counted, gib
from tilestream.errors import without_credentials
from tilestream.runner.engines.patience import duration
from tilestream.runner.reporter import Reporter
from tilestream.store.ledger import SLIDE_VECTOR

if TYPE_CHECKING:
    from tilestream.runner.memory import Projection
    from tilestream.runner.slide_plan import SlidePlan
    from tilestream.runner.summary import SlideResult, Summary
    from tilestream.stages.slide_task import Report
    from tilestream.stages.worker_settings import EncoderFacts

LOG_EVERY = 10.0
"""Seconds between two progress lines of a log."""


def slide_words(result: SlideResult) -> str:
    """One line on a slide that ended."""
    if result.status == "refused":
        return f"{result.id}: refused: {result.error.removeprefix(f'{result.id}: ')}"
    if result.status == "already done":
        return f"{result.id}: already done, {counted(result.tiles, 'tile')}"
    failed = f", {result.failed_tiles} failed" if result.failed_tiles else ""
    note = f" ({result.note})" if result.note else ""
    note += f"; {result.redone} left the range of fp16 and were computed in fp32" if result.redone else ""
    lacking = "".join(f", {_lacking(what, count)}" for what, count in result.unanswered.items())
    return f"{result.id}: done, {result.tiles} of {result.candidates} tiles{failed}{lacking}{note}"


def _lacking(what: str, count: int) -> str:
    """What is missing of a stage, in words."""
    if what.startswith(SLIDE_VECTOR):
        return f"{what} is not finite"
    return (
        f"{what} of {counted(count, 'tile')} is not finite"
        if what.startswith("context")
        else f"head {what} lacks {counted(count, 'answer')}"
    )


class _Counter(Reporter):
    """Tiles and slides so far; what every kind of display counts."""

    def __init__(self) -> None:
        self.slides = self.slides_done = self.tiles = 0
        self._since: float | None = None
        """When the first slide was planned that tiles are missing of."""
        self._already = 0
        """Slides that were done before."""
        self._there: dict[str, int] = {}
        """Tiles of each slide that were in its store when it was planned."""
        self._known: set[str] = set()
        """Slides that were planned or done."""
        self._ended = 0
        """Tiles that this run embedded in tasks that have ended."""
        self._in_work: dict[tuple[str, int], tuple[int, int]] = {}
        """Of each task in work, by slide and first shard: tiles that it has embedded, and those of them that an interrupt would not cost."""

    @property
    def tiles_done(self) -> int:
        """Tiles that this run embedded so far."""
        return self._ended + sum(tiles for tiles, _ in self._in_work.values())

    def kept_words(self) -> str:
        """What of the slides in work the output holds, by what is known of it."""
        there = sum(self._there.values())
        kept = there + self._ended + sum(kept for _, kept in self._in_work.values())
        if not self.slides:
            return "nothing was embedded yet"
        done = f"{self.slides_done} of {counted(self.slides, 'slide')} done, " if self.slides > 1 else ""
        return f"{done}{kept:,} of {there + self.tiles:,} planned tiles are kept"

    def started(self, slides: int, facts: EncoderFacts, workers: int) -> None:
        self.slides = slides
        self.message(
            f"{facts.name} ({facts.dim} dims, {facts.precision}) on {facts.device}, {counted(workers, 'worker')}, batches of {facts.batch}"
        )

    def planned(self, plan: SlidePlan, projection: Projection, remaining: int) -> None:
        self.tiles += remaining
        if remaining and self._since is None:
            self._since = time.perf_counter()
        self._there[plan.ref.id] = len(plan) - remaining
        self._know(plan.ref.id)
        level = plan.info.levels[plan.spec.level]
        how = f"level {plan.spec.level} (downsample {level.downsample:.4g}{', averaged' if plan.spec.resampled else ''})"
        resumed = f", {len(plan) - remaining} already there" if remaining < len(plan) else ""
        self.message(
            f"{plan.ref.id}: {len(plan)} of {plan.candidates} tiles{resumed}, read from {how}, at most {gib(projection.total)} a worker"
        )

    def embedded(self, slide: str, first_shard: int, tiles: int, kept: int) -> None:
        self._in_work[slide, first_shard] = (tiles, kept)

    def shard_done(self, report: Report) -> None:
        self._in_work.pop((report.slide, report.shards.start), None)
        self._ended += report.fresh

    def slide_done(self, result: SlideResult) -> None:
        self._count(result)
        level = "warning" if result.status == "refused" or result.failed_tiles else "info"
        self.message(slide_words(result), level=level)

    def _know(self, slide: str) -> None:
        """Count a slide: a job of an array may take more than its share."""
        self._known.add(slide)
        self.slides = max(self.slides, len(self._known))

    def _count(self, result: SlideResult) -> None:
        self.slides_done += 1
        self._already += result.status == "already done"
        self._know(result.id)

    @property
    def rate(self) -> float:
        """Tiles a second since there were tiles to embed."""
        return 0.0 if self._since is None else self.tiles_done / max(1e-9, time.perf_counter() - self._since)

    def speed_words(self) -> str:
        """How fast it goes and how long it may take, where the slides that are not planned yet are like those that are; empty at first."""
        if not self.tiles_done:
            return ""
        more = (self.slides - self._already) / max(1, len(self._there))
        left = max(0.0, self.tiles * max(1.0, more) - self.tiles_done) / self.rate
        rate = f"{self.rate:.0f}" if self.rate >= 10 else f"{self.rate:.2g}"
        return f"{rate} tiles/s, about {duration(left)} left"


class LogReporter(_Counter):
    """Plain lines with a time, for files and pipes."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self.stream, self.clock, self.last = stream, clock, clock()

    def message(self, text: str, *, level: str = "info") -> None:
        mark = "" if level == "info" else f"{level}: "
        print(f"{time.strftime('%H:%M:%S')} {mark}{text}", file=self.stream, flush=True)

    def embedded(self, slide: str, first_shard: int, tiles: int, kept: int) -> None:
        super().embedded(slide, first_shard, tiles, kept)
        self._tell()

    def shard_done(self, report: Report) -> None:
        super().shard_done(report)
        self._tell()

    def _tell(self) -> None:
        if self.clock() - self.last >= LOG_EVERY:
            self.last = self.clock()
            speed = self.speed_words()
            self.message(
                f"{self.slides_done} of {counted(self.slides, 'slide')}, {self.tiles_done:,} of {counted(self.tiles, 'tile')}{speed and f', {speed}'}"
            )


class JsonReporter(_Counter):
    """One JSON object a line, for machines."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream, self.last = stream, time.perf_counter()

    def _emit(self, event: str, **fields: Any) -> None:
        print(json.dumps({"time": round(time.time(), 3), "event": event, **fields}), file=self.stream, flush=True)

    def message(self, text: str, *, level: str = "info") -> None:
        self._emit("message", level=level, text=text)

    def embedded(self, slide: str, first_shard: int, tiles: int, kept: int) -> None:
        super().embedded(slide, first_shard, tiles, kept)
        if time.perf_counter() - self.last >= LOG_EVERY:
            self.last = time.perf_counter()
            self._emit("progress", tiles_done=self.tiles_done, tiles=self.tiles, tiles_per_second=round(self.rate, 2))

    def shard_done(self, report: Report) -> None:
        super().shard_done(report)
        self._emit(
            "shard", slide=report.slide, shard=report.shards.start, counts=report.counts, seconds={k: round(v, 4) for k, v in report.seconds.items()},
            tiles_done=self.tiles_done, tiles=self.tiles, tiles_per_second=round(self.rate, 2),
        )  # fmt: skip

    def slide_done(self, result: SlideResult) -> None:
        self._count(result)
        self._emit("slide", id=result.id, status=result.status, tiles=result.tiles, counts=result.counts, error=result.error)


class LiveReporter(_Counter):
    """A bar on a terminal, with messages above it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self.progress = Progress(
            TextColumn("{task.fields[slides]}"), BarColumn(20), TextColumn("{task.fields[tiles]}"), console=console, transient=True
        )  # fmt: skip
        self.bar = self.progress.add_task("", total=None, slides="", tiles="")

    def started(self, slides: int, facts: EncoderFacts, workers: int) -> None:
        super().started(slides, facts, workers)
        self.progress.start()

    def message(self, text: str, *, level: str = "info") -> None:
        style = {"info": "", "warning": "yellow", "error": "red"}[level]
        self.progress.console.print(text, style=style, highlight=False, markup=False)

    def planned(self, plan: SlidePlan, projection: Projection, remaining: int) -> None:
        super().planned(plan, projection, remaining)
        self._draw()

    def embedded(self, slide: str, first_shard: int, tiles: int, kept: int) -> None:
        super().embedded(slide, first_shard, tiles, kept)
        self._draw()

    def shard_done(self, report: Report) -> None:
        super().shard_done(report)
        self._draw()

    def slide_done(self, result: SlideResult) -> None:
        super().slide_done(result)
        self._draw()

    def _draw(self) -> None:
        speed = self.speed_words()
        tiles = f"{self.tiles_done:,} of {counted(self.tiles, 'tile')}{speed and f', {speed}'}"
        slides = f"{self.slides_done} of {counted(self.slides, 'slide')}"
        self.progress.update(self.bar, completed=self.tiles_done, total=self.tiles, slides=slides, tiles=tiles)

    def close(self) -> None:
        """Take the bar away."""
        self.progress.stop()


def make_reporter(log_format: str) -> _Counter:
    """The display for a format: auto is live on a terminal and plain lines elsewhere; json is JSON lines. All write to stderr."""
    if log_format == "json":
        return JsonReporter(sys.stderr)
    if log_format == "auto" and sys.stderr.isatty():
        return LiveReporter(Console(stderr=True))
    return LogReporter(sys.stderr)


def print_summary(summary: Summary, console: Console) -> None:
    """The closing table, and what to type next."""
    table = Table(title=None, show_header=False, box=None, pad_edge=False)
    done = [s for s in summary.slides if s.status in ("done", "already done")]
    fresh = sum(s.status == "done" for s in done)
    rows = [
        ("slides", f"{fresh} done" + (f", {len(done) - fresh} already done" if len(done) > fresh else "") + (f", {len(summary.refused)} refused" if summary.refused else "")),
        ("tiles", f"{summary.tiles} in the output, {summary.new_tiles} embedded by this run" + (f", {summary.failed_tiles} failed" if summary.failed_tiles else "")),
        ("speed", f"{summary.tiles_per_second:.0f} tiles/s while tiles were in work" if summary.new_tiles else ""),
        ("bound", summary.bound),
        ("seconds", f"{summary.seconds:.1f} in all: " + ", ".join(f"{part} {seconds:.1f}" for part, seconds in summary.parts.items()) if summary.new_tiles else ""),
        ("memory", f"peak {gib(summary.peak_bytes)}, projected {gib(summary.projected_bytes)}" if summary.peak_bytes else ""),
        ("output", without_credentials(summary.output)),
    ]  # fmt: skip
    for name, words in rows:
        if words:
            table.add_row(f"[bold]{name}[/bold]", words)
    console.print(table)
    for slide in summary.slides:
        if slide.status in ("refused", "unfinished"):
            console.print(f"  {slide_words(slide)}", style="yellow", highlight=False, markup=False)
        elif slide.failed_tiles:
            console.print(
                f"  {slide.id}: {counted(slide.failed_tiles, 'tile')} failed, first: {next(iter(slide.tile_errors.values()), '')}",
                style="yellow",
                highlight=False,
                markup=False,
            )
        elif slide.note:
            console.print(f"  {slide.id}: {slide.note}", highlight=False, markup=False)
    if done:
        output = without_credentials(summary.output)
        console.print("picture ", f"{output}/{done[0].id}.zarr/overview.png", highlight=False, markup=False, soft_wrap=True)
        console.print("next:   ", next_command(output), highlight=False, markup=False, soft_wrap=True)
    for words in dict.fromkeys(slide.traceback for slide in summary.slides if slide.traceback):
        console.print(words, highlight=False, markup=False, soft_wrap=True)


def next_command(output: str) -> str:
    """What to type after a run, in one line: look at it, by the name that this command was called by."""
    program = "python -m tilestream" if Path(sys.argv[0]).name == "__main__.py" else "tilestream"
    return f"{program} view {shlex.quote(output)}"
