"""What an output holds of a slide: whether it is what the config wants, and how it is taken up again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from tilestream.config.restart import ALL, restarts
from tilestream.config.slide_list import SlideRef
from tilestream.encoders.factories import code_sha256, factory_file
from tilestream.errors import InputError, OutputError
from tilestream.runner.cohort import Cohort, check_source, open_slide
from tilestream.runner.heads.stored import StoredImage, lacks_answers_only
from tilestream.runner.recipe import NOT_SET, Recipes
from tilestream.runner.reporter import Reporter
from tilestream.runner.summary import SlideResult, Summary, same_image
from tilestream.sources.base import Source
from tilestream.stages.encoding.aside import tiles_aside
from tilestream.store.heads.columns import refuse_taken
from tilestream.store.ledger import COMPLETE, count_failed
from tilestream.store.slide_store import ASIDE, SlideStore
from tilestream.tiles.annotations.mask_files import mask_file

if TYPE_CHECKING:
    from tilestream.runner.prepare import PreparedSlide, Setup
    from tilestream.runner.slide_plan import Seen

OPEN_AT_ONCE = 8
"""Slides that are looked at at the same time."""


@dataclass(frozen=True)
class Looked:
    """What an output holds as a run begins."""

    todo: list[SlideRef]
    """The slides that are not finished."""
    images: dict[str, str]
    """The first slide of each fingerprint, of those that are."""
    first: Future[Seen | None] | None = None
    """What is found out meanwhile of the first slide to be done."""


@dataclass(frozen=True)
class Planning:
    """What was planned of a slide before anything of it was written."""

    anew: PreparedSlide | None = None
    """All of it, where its store is made anew."""
    seen: Seen | None = None
    """What was found out of the image, where its store is sound."""


def finished(store: SlideStore, ref: SlideRef, source: Source, recipes: Recipes, cohort: Cohort) -> dict[str, Any] | None:
    """The completion mark of a slide at which nothing is to be done; None where something is. Reads no tile.

    Raises
    ------
    OutputError
        Its settings, its image or another input are not those that its tiles were made of.
    InputError
        An input cannot be read.
    """
    if cohort.restart == ALL or store.attributes is None:
        return None
    changed = recipes.changed_stages(store, ref)
    recipes.refuse_other_heads(store, ref, cohort.restart)
    check_source(store, source.info, ref)
    if recipes.config.tiles.tissue.function is not None:
        from tilestream.tiles.grid import choose_tiles

        changed = recipes.changed_stages(
            store, ref, choose_tiles(source, recipes.config.tiles, ref.id, mask_file(recipes.config, ref)).kept_sha256
        )
    mark = store.completion
    if mark is None or changed or cohort.restart or (cohort.retry_failed and (count_failed(mark["counts"]) or mark.get("unanswered"))):
        return None
    return mark


def refuse_other_code(store: SlideStore, ref: SlideRef, encoder: str, now: Callable[[], str | None]) -> None:
    """Refuse a slide with rows that other code of `module:factory` made than `now` gives: what a module computes is not told by its weights alone.

    Raises
    ------
    OutputError
        Naming the file.
    """
    about = store.attributes or {}
    was = about.get("encoder_code_sha256")
    if was is None or about["recipe"]["encoder"]["name"] != encoder or not (store.ledger() or tiles_aside(store, {})) or was == now():
        return
    raise OutputError(
        f"{ref.id}: {factory_file(encoder)} of {encoder} holds other code than when rows of {store.folder.address} were made. "
        "Put the file back, choose another output, or start the slide over "
        "with --restart (its embeddings are then deleted)."
    )


def forget_asked(store: SlideStore, cohort: Cohort, recipes: Recipes) -> None:
    """Forget what the command says is to be done again."""
    if cohort.restart:
        store.forget({stage for stage in store.upstream if restarts(cohort.restart, stage)} & recipes.stages)
    if cohort.retry_failed:
        store.forget_failed()
        store.folder.delete_all(ASIDE)


def plan_first(
    store: SlideStore, ref: SlideRef, source: Source, setup: Setup, recipes: Recipes, cohort: Cohort, seen: Seen | None = None
) -> Planning:
    """Plan a slide before anything of it is written: one that is refused leaves no store, and a store that is there as it was.

    What is damaged of a store is known later, and its plan is made then.

    Raises
    ------
    InputError
        The slide cannot serve this config.
    ConfigError
        Its tiles do not suit the config, or memory does not suffice for them.
    """
    refuse_taken(store.folder, setup.config.heads.keys() - store.heads.keys())
    if store.attributes is None or cohort.restart == ALL:
        return Planning(anew=begin(ref, source, setup, recipes, seen))
    if not store.intact:
        return Planning()
    from tilestream.runner.prepare import prepare_slide
    from tilestream.runner.slide_plan import see_slide

    seen = see_slide(ref, source, setup.config, store.columns)
    prepare_slide(ref, source, setup, store, seen)
    return Planning(seen=seen)


def take_up(
    store: SlideStore, ref: SlideRef, source: Source, setup: Setup, recipes: Recipes, cohort: Cohort, say: Callable[[str], None],
    planning: Planning,
) -> PreparedSlide:  # fmt: skip
    """Make a store ready to be filled: anew, or as it is, with what is lost or damaged of it mended or forgotten.

    Of a finished one that stands for its image, not all bytes are read: a quick look was taken, and chunks of rows carry checksums of their own.
    """
    from tilestream.runner.prepare import prepare_slide, windows_of
    from tilestream.runner.records.created import create_store

    was = store.attributes

    def anew(into: SlideStore, slide: PreparedSlide | None = None) -> PreparedSlide:
        slide = slide or begin(ref, source, setup, recipes)
        kept = slide.plan.kept_sha256 if setup.config.tiles.tissue.function is not None else None
        begins = was is None or into is store
        told = recipes.attributes(ref, {} if was is None or begins else was["recipe"], kept)
        compiled = setup.begins_compiled(len(slide.plan), setup.workers) if was is None or begins else was.get("compiled", False)
        create_store(into, slide, setup, {**told, "compiled": compiled})
        return slide

    store.raise_fence()
    if planning.anew is not None:
        return anew(store, planning.anew)
    sound = isinstance(source, StoredImage) and store.completion is not None
    store.folder.delete(COMPLETE)
    store.folder.sweep()
    if store.dropping:
        store.drop(store.dropping)
    if not store.mend(anew):
        say(f"{ref.id}: its positions or metadata are damaged and cannot be made again byte for byte; it is started over.")
        return anew(store)
    if not sound and (lost := store.forget_damaged()):
        say(f"{ref.id}: {lost} shards do not hold what was written; they are done again.")
    for warning in other_columns(store, dict(ref.extra)):
        say(f"{ref.id}: {warning}")
    forget_asked(store, cohort, recipes)
    slide = prepare_slide(ref, source, setup, store, planning.seen)
    there = store.attributes or {}
    kept = there["recipe"]["tiles"]["tissue"].get("kept_sha256")
    wanted = recipes.attributes(ref, there["recipe"], kept, store.holds)
    if gone := sorted(there["stages"].keys() - wanted["stages"]):
        say(
            f"{ref.id}: {', '.join(gone)} were made of what is another by now, or are not complete, and this config leaves them out: they are removed."
        )
        if "context" in gone:
            slide = replace(slide, layout=replace(slide.layout, context_dim=0))
    wanted["layout"] = vars(slide.layout)
    if any(there.get(key) != value for key, value in wanted.items()):
        if changes := recipes.later_changes(there["recipe"], ref):
            say(f"{ref.id}: {'; '.join(changes)}. What is made of it is computed again; the embeddings stay.")
        store.adopt(wanted, windows_of(slide, setup))
    else:
        store.make_arrays(windows_of(slide, setup))
    return slide


def begin(ref: SlideRef, source: Source, setup: Setup, recipes: Recipes, seen: Seen | None = None) -> PreparedSlide:
    """Plan a slide from its files. Raises InputError where one of them was written meanwhile."""
    from tilestream.runner.prepare import prepare_slide

    recipes.of(ref)  # takes the digests of its files
    slide = prepare_slide(ref, source, setup, seen=seen)
    recipes.refuse_changed(ref)
    return slide


def look_at_all(cohort: Cohort, recipes: Recipes, summary: Summary, reporter: Reporter) -> Looked:
    """Which slides are finished; before any work, those of other inputs or settings are refused.

    Raises
    ------
    OutputError
        A store was made by another recipe, or from other files.
    """
    there = set(cohort.output.children())
    code = cache(partial(code_sha256, recipes.config.encoder.name))

    def look(ref: SlideRef) -> tuple[SlideStore, dict[str, Any] | None]:
        store = cohort.store(ref)
        if f"{ref.id}.zarr" not in there or store.attributes is None:
            return store, None
        try:
            if cohort.restart != ALL:
                refuse_other_code(store, ref, recipes.config.encoder.name, code)
            if lacks_answers_only(store, ref, recipes, cohort):
                return store, None
            with open_slide(ref, recipes.config) as source:
                return store, finished(store, ref, source, recipes, cohort)
        except InputError:  # refused in its turn
            return store, None

    refs = [*cohort.refs, *cohort.spare, *cohort.others]
    with ThreadPoolExecutor(1 if recipes.config.tiles.tissue.function else OPEN_AT_ONCE) as pool:
        found = list(pool.map(look, refs))
    results = {result.id: result for result in summary.slides}
    seen: dict[str, str] = {}
    for ref, (store, mark) in zip(refs, found, strict=True):
        if mark is not None and ref.id in results:
            book_finished(results[ref.id], store, mark, reporter, seen)
    return Looked([ref for ref, (_, mark) in zip(refs, found, strict=True) if mark is None], seen)


def refuse_changed_stores(cohort: Cohort, recipes: Recipes) -> None:
    """Refuse, before any work, what was made by another recipe than the one that the encoder completes. Raises OutputError."""
    there = set(cohort.output.children())

    def look(ref: SlideRef) -> None:
        with suppress(InputError):  # refused in its turn
            recipes.changed_stages(cohort.store(ref), ref)

    with ThreadPoolExecutor(OPEN_AT_ONCE) as pool:
        list(pool.map(look, (ref for ref in cohort.refs if f"{ref.id}.zarr" in there)))


def book_finished(result: SlideResult, store: SlideStore, mark: dict[str, Any], reporter: Reporter, seen: dict[str, str]) -> None:
    """Tell what a finished slide holds; `seen` holds the first slide of each fingerprint."""
    result.status, result.tiles, result.counts = "already done", mark["tiles"], mark["counts"]
    result.tile_errors = {int(row): cause for row, cause in mark["errors"].items()}
    result.unanswered, result.redone = mark.get("unanswered", {}), mark.get("redone", 0)
    source = (store.attributes or {}).get("source", {})
    result.warnings = [
        *source.get("warnings", ()),
        *other_columns(store, result.listed),
        *same_image(seen, result.id, source.get("fingerprint", "")),
    ]
    for warning in result.warnings:
        reporter.message(f"{result.id}: {warning}", level="warning")
    reporter.slide_done(result)


def other_columns(store: SlideStore, listed: Mapping[str, str]) -> list[str]:
    """What the list of slides says of a slide and its store has otherwise, in words: it was written with the rows, and stays."""
    was = (store.attributes or {}).get("listed", {})
    told = [
        f"{name} was {was.get(name, NOT_SET)} and is now {listed.get(name, NOT_SET)}"
        for name in sorted(was.keys() | listed)
        if was.get(name) != listed.get(name)
    ]
    return [f"the list of slides has other columns than its store, which keeps what it has: {'; '.join(told)}"] if told else []


def nothing_to_do(summary: Summary, cohort: Cohort, encoder: str) -> str:
    """Why a run ends before it begins, in words; and what of an encoder of the user's own was not looked at, as it was not loaded."""
    cause = next((cause for slide in summary.slides for cause in slide.tile_errors.values()), "")
    failed = summary.failed_tiles
    return (
        "nothing to do"
        + (f"; {failed} {'tile' if failed == 1 else 'tiles'} failed earlier: {cause}; --retry-failed" if failed else "")
        + _code_words(cohort, encoder)
    )


def _code_words(cohort: Cohort, encoder: str) -> str:
    file = factory_file(encoder)
    if file is None:
        return ""
    kept = all((cohort.store(ref).attributes or {}).get("encoder_code_sha256") for ref in cohort.refs)
    return f"; {encoder} is known by its name{'; its file is the same, what that imports or loads was not looked at' if kept else ' only'}"
