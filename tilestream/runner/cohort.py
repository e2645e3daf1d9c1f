"""The slides of a run, where they go, and what was asked of those that are there already."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tilestream.config.restart import ALL, STAGES, is_stage
from tilestream.config.schema import Config
from tilestream.config.slide_list import SlideRef, list_slides
from tilestream.errors import ConfigError, OutputError
from tilestream.sources.base import SlideInfo, Source, SourceOptions
from tilestream.sources.open_images import forget_all
from tilestream.sources.storage.staging import Stage
from tilestream.stages.hardware import has_driver
from tilestream.stages.worker_settings import absolute
from tilestream.store.folder import Folder
from tilestream.store.ledger import HOME
from tilestream.store.records import pack, unpack
from tilestream.store.slide_store import SlideStore
from tilestream.tiles.coords import check_chosen
from tilestream.tiles.isolation import open_image

if TYPE_CHECKING:
    from tilestream.runner.slide_plan import Seen


@dataclass(frozen=True)
class Cohort:
    """The slides of a run and where they go."""

    output: Folder
    refs: list[SlideRef]
    """Its own, which it reports on; of a job of an array, every n-th."""
    shard: tuple[int, int] | None = None
    """Which job of how many this is; None where it is none of an array."""
    spare: tuple[SlideRef, ...] = ()
    """Slides of no job, for the folder grew since the first one began: who comes first does them."""
    others: tuple[SlideRef, ...] = ()
    """Slides of other jobs, which are taken over where their job died at them."""
    restart: str = ""
    """The stage that is started over, or `all`; empty where none is."""
    retry_failed: bool = False
    """Whether shards with failed tiles are done again."""

    @property
    def job(self) -> int | None:
        """Which job of an array it is of; None where it is none of an array."""
        return None if self.shard is None else self.shard[0]

    def store(self, ref: SlideRef) -> SlideStore:
        """Where a slide goes."""
        return SlideStore(self.output / f"{ref.id}.zarr")


def list_cohort(config: Config, shard: tuple[int, int] | None = None, *, restart: bool | str = False, retry_failed: bool = False) -> Cohort:
    """The slides of a config.

    Raises
    ------
    ConfigError
        There are none, or the output cannot take them; or there is no such stage to restart.
    """
    # Workers may run in another folder: every address that reaches them is absolute.
    output, refs = Folder(absolute(config.output.path)), list_slides(config.slides)
    check_chosen(config.tiles.chosen, len(refs))
    stage = restart if isinstance(restart, str) else ALL if restart else ""
    if stage and not is_stage(stage):
        raise ConfigError(
            f"--restart: {stage!r} is no stage. Write one of {', '.join(STAGES[1:])}, heads:<name>, or nothing behind it for all."
        )
    if stage.startswith("heads:") and stage.removeprefix("heads:") not in config.heads:
        raise ConfigError(
            f"--restart: there is no head {stage.removeprefix('heads:')}. The config has {', '.join(config.heads) or 'none'}."
        )
    refuse_taken_columns(config, refs)
    stage = ALL if stage == "tiles" else stage
    return Cohort(output, refs, shard, restart=stage, retry_failed=retry_failed)


def refuse_taken_columns(config: Config, refs: list[SlideRef]) -> None:
    """Refuse a head whose name is a column of the list of slides, which becomes one of the tiles."""
    listed = {column for ref in refs for column, _ in ref.extra}
    if taken := sorted(listed & config.heads.keys()):
        raise ConfigError(
            f"heads.{taken[0]}: the list of slides has a column of that name, which becomes one of the tiles. Give the head another name."
        )


def share_out(cohort: Cohort) -> Cohort:
    """The part of this job of an array: every n-th slide of those that the first of n jobs found, which is kept in the output."""
    if cohort.shard is None:
        return cohort
    index, count = cohort.shard
    key, ids = f"{HOME}/array-{count}.json", [ref.id for ref in cohort.refs]
    with cohort.output.locked(HOME):
        first = unpack(cohort.output.get(key))
        if first is None:
            first = {"slides": ids}
            cohort.output.put(key, pack(first))
    listed = set(first["slides"])
    own = set(first["slides"][index::count])
    new = [ref for ref in cohort.refs if ref.id not in listed]
    if cohort.restart or cohort.retry_failed:
        own, new = own | {ref.id for ref in new[index::count]}, []
    others = () if cohort.restart or cohort.retry_failed else tuple(ref for ref in cohort.refs if ref.id in listed - own)
    return replace(cohort, refs=[ref for ref in cohort.refs if ref.id in own], spare=tuple(new), others=others)


def source_options(config: Config, ref: SlideRef) -> SourceOptions:
    """What the config and the slide list say of a file; a resolution in the list goes before the config's."""
    chosen = config.source
    return SourceOptions(
        backend=chosen.backend, z=chosen.z, t=chosen.t, channels=chosen.channels, window=chosen.window, bands=chosen.bands, normalise=chosen.normalise, scene=chosen.scene,
        mpp=ref.mpp if ref.mpp is not None else chosen.mpp, reduced=config.tiles.fast_downsample and config.tiles.level is None, icc=chosen.icc,
        stage=None if chosen.stage is None else absolute(chosen.stage), stage_limit=chosen.stage_limit,
    )  # fmt: skip


@contextmanager
def stage_of(config: Config) -> Iterator[None]:
    """While the block runs, slides may be copied to `source.stage`; behind it no copy is left that nobody else reads."""
    if config.source.stage is None:
        yield
        return
    stage = Stage(absolute(config.source.stage), config.source.stage_limit)
    try:
        yield
    finally:
        forget_all()
        stage.clear()


def open_slide(ref: SlideRef, config: Config) -> Source:
    """The image of a slide, as the config and the slide list want it read."""
    return open_image(ref.address, source_options(config, ref), isolate=config.compute.isolate)


def see_first(cohort: Cohort, config: Config, todo: Sequence[SlideRef]) -> Future[Seen | None]:
    """Begin to look at the first slide that is to be done, while workers start and build their encoders.

    None comes of it where that would gain nothing or is not to be done ahead, and where it fails, which is met again when the slide is planned.
    Where this process has but a processor to compute on, building an encoder takes little, and what it takes is measured meanwhile.
    """
    found: Future[Seen | None] = Future()
    compute, ref = config.compute, next(iter(todo), None)
    waits = not compute.scheduler.stays_here(compute.workers) or (compute.device != "cpu" and has_driver())
    if ref is None or not waits or config.source.stage is not None or cohort.store(ref).attributes is not None:
        found.set_result(None)
        return found

    def look(ref: SlideRef) -> None:
        seen = None
        try:
            from tilestream.runner.slide_plan import see_slide, sees_alone  # what finds tissue takes a while to import

            if sees_alone(ref, config):
                with open_slide(ref, config) as source:
                    seen = see_slide(ref, source, config)
        except Exception:  # noqa: BLE001  # whoever plans the slide meets it too
            seen = None
        found.set_result(seen)

    threading.Thread(target=look, args=[ref], name="first slide", daemon=True).start()
    return found


def check_source(store: SlideStore, info: SlideInfo, ref: SlideRef) -> None:
    """Refuse to add to a store whose image was another file, or was read at another resolution.

    Raises
    ------
    OutputError
        Naming what differs.
    """
    attributes = store.attributes
    if attributes is None:
        return
    source = attributes.get("source", {})
    if source.get("fingerprint") != info.fingerprint:
        raise OutputError(
            f"{ref.id}: the bytes of {ref.address} are not those that {store.folder.address} was made from (source.fingerprint). Use --restart to start over."
        )
    if source.get("mpp") != info.mpp:
        raise OutputError(
            f"{ref.id}: source.mpp was {source.get('mpp')} and is now {info.mpp} ({ref.address}). Use --restart to start over."
        )
