"""Who hears what a run does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilestream.runner.memory import Projection
    from tilestream.runner.slide_plan import SlidePlan
    from tilestream.runner.summary import SlideResult
    from tilestream.stages.slide_task import Report
    from tilestream.stages.worker_settings import EncoderFacts


class Reporter:
    """Hears what a run does; the command line draws it. Every method may be left as it is."""

    def message(self, text: str, *, level: str = "info") -> None:
        """Say something: level is info, warning or error."""

    def started(self, slides: int, facts: EncoderFacts, workers: int) -> None:
        """Hear that the encoder stands and slides follow."""

    def planned(self, plan: SlidePlan, projection: Projection, remaining: int) -> None:
        """Hear that a slide was planned, with `remaining` tiles still to embed."""

    def embedded(self, slide: str, first_shard: int, tiles: int, kept: int) -> None:
        """Hear how many tiles the task in work on shards from `first_shard` on has embedded, and how many of them an interrupt would not cost."""

    def shard_done(self, report: Report) -> None:
        """Hear that tiles of a slide were embedded and are in the store."""

    def slide_done(self, result: SlideResult) -> None:
        """Hear that a slide ended, in whichever way."""
