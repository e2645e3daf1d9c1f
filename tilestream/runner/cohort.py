"""The slides of a run, and where they go."""

from __future__ import annotations

from dataclasses import dataclass

from tilestream.config.schema import Config
from tilestream.config.slide_list import SlideRef, list_slides
from tilestream.stages.worker_settings import absolute
from tilestream.store.folder import Folder
from tilestream.store.slide_store import SlideStore
from tilestream.tiles.coords import check_chosen


@dataclass(frozen=True)
class Cohort:
    """The slides of a run and where they go."""

    output: Folder
    refs: list[SlideRef]
    name: str
    """Of the run, for its lock and its record."""

    def store(self, ref: SlideRef) -> SlideStore:
        """Where a slide goes."""
        return SlideStore(self.output / f"{ref.id}.zarr")


def list_cohort(config: Config, shard: tuple[int, int] | None = None) -> Cohort:
    """The slides of a config, or every n-th of them.

    Raises
    ------
    ConfigError
        There are none, or the output cannot take them.
    """
    # Workers may run in another folder: every address that reaches them is absolute.
    output, refs = Folder(absolute(config.output.path)), list_slides(config.slides)
    check_chosen(config.tiles.chosen, len(refs))
    if shard is None:
        return Cohort(output, refs, "run")
    return Cohort(output, refs[shard[0] :: shard[1]], f"run-{shard[0]}-of-{shard[1]}")
