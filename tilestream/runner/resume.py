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
from tilestream.errors import InputError, OutputError, without_credentials
from tilestream.geometry import PlacedGrid, TileGrid
from tilestream.runner.cohort import Cohort, check_source, open_slide
from tilestream.runner.heads.stored import StoredImage, lacks_answers_only
from tilestream.runner.recipe import NOT_SET, Recipes
from tilestream.runner.reporter import Reporter
from tilestream.runner.summary import SlideResult, Summary, same_image
from tilestream.sources.base import SlideInfo, Source
from tilestream.stages.encoding.aside import tiles_aside
from tilestream.store.heads.columns import refuse_taken
from tilestream.store.layout import TILES
from tilestream.store.ledger import COMPLETE, count_failed
from tilestream.store.picture import png_bytes
from tilestream.store.slide_store import ASIDE, THUMBNAIL, TISSUE, SlideStore
from tilestream.tiles.annotations.mask_files import mask_file

if TYPE_CHECKING:
    from tilestream.runner.prepare import PreparedSlide, Setup
    from tilestream.runner.slide_plan import Seen, SlidePlan

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


def take_up(
    store: SlideStore, ref: SlideRef, source: Source, setup: Setup, recipes: Recipes, cohort: Cohort, say: Callable[[str], None],
    seen: Seen | None = None,
) -> PreparedSlide:  # fmt: skip
    """Make a store ready to be filled: anew, or as it is, with what is lost or damaged of it mended or forgotten.

    Of a finished one that stands for its image, not all bytes are read: a quick look was taken, and chunks of rows carry checksums of their own.
    """
    from tilestream.runner.prepare import prepare_slide, windows_of

    was = store.attributes

    def anew(into: SlideStore, slide: PreparedSlide | None = None) -> PreparedSlide:
        slide = slide or begin(ref, source, setup, recipes)
        kept = slide.plan.kept_sha256 if setup.config.tiles.tissue.function is not None else None
        begins = was is None or into is store
        told = recipes.attributes(ref, {} if was is None or begins else was["recipe"], kept)
        compiled = setup.begins_compiled(len(slide.plan), setup.workers) if was is None or begins else was.get("compiled", False)
        create_store(into, slide, setup, {**told, "compiled": compiled})
        return slide

    # Before anything is written: a slide that is refused leaves no store.
    first = begin(ref, source, setup, recipes, seen) if was is None else None
    refuse_taken(store.folder, setup.config.heads.keys() - store.heads.keys())
    store.raise_fence()
    if was is None or cohort.restart == ALL:
        return anew(store, first)
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
    slide = prepare_slide(ref, source, setup, store)
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


def create_store(store: SlideStore, slide: PreparedSlide, setup: Setup, attributes: dict[str, Any]) -> None:
    """Write everything of a slide's store that is known before a tile is embedded."""
    from tilestream.runner.prepare import windows_of

    plan, _config, _facts = slide.plan, setup.config, setup.facts
    info = plan.info
    source = {"address": without_credentials(plan.ref.address), "backend": info.backend, "fingerprint": info.fingerprint, "mpp": info.mpp, "mpp_source": info.mpp_source,
              "height": info.size.height, "width": info.size.width, "level": plan.spec.level, "downsample": plan.spec.downsample,
              "scale": plan.grid.scale, "resampled": plan.spec.resampled, "vendor": info.vendor, "warnings": list(plan.warnings), "tissue_found": bool(plan.mask.any()),
              **_geo(info), "thumbnail_downsample": plan.thumbnail.downsample, "bounds": _bounds(info),
              "icc_profile": info.properties.get("icc_profile", "none"), "icc": info.properties.get("icc", "ignored"), **_placed(plan.grid)}  # fmt: skip
    uns: dict[str, Any] = {"spatial_unit": "px of level 0", "slide": plan.ref.id}
    if info.mpp is not None:
        uns["mpp"] = float(info.mpp)
    pictures = {THUMBNAIL: plan.picture, TISSUE: png_bytes(plan.mask)}
    store.create(
        slide.layout,
        plan.columns,
        {**attributes, "source": source, "listed": dict(plan.ref.extra), **_code(setup.config.encoder.name)},
        uns=uns,
        objects=pictures,
        windows=windows_of(slide, setup),
        places=_places(plan),
    )


def _code(encoder: str) -> dict[str, str]:
    """Digest of the code of an encoder's factory, where it has a file; no part of the recipe, for not all of it need change numbers."""
    code = code_sha256(encoder)
    return {} if code is None else {"encoder_code_sha256": code}


def _geo(info: SlideInfo) -> dict[str, Any]:
    """Where on a map level 0 lies, for those who read the store; nothing where the file does not say."""
    geo = info.geo
    return {} if geo is None else {"geo": {"crs": geo.crs, "name": geo.name, "transform": list(geo.transform), "metres": geo.metres}}


def _places(plan: SlidePlan) -> dict[str, dict[str, Any]]:
    """The conventions `proj` and `spatial`: at the root for level-0 pixels, at the table for rows and columns of tiles."""
    geo, grid = plan.info.geo, plan.grid
    if geo is None:
        return {}
    found = {"": geo.attributes((plan.info.size.height, plan.info.size.width))}
    if grid.regular:
        cells = geo.moved(*grid.l0_offset, grid.l0_step)
        found[TILES] = cells.attributes((grid.rows, grid.cols), ("row", "col"))
    return found


def _bounds(info: SlideInfo) -> dict[str, str] | None:
    """OpenSlide's bounds of the part that was scanned, level-0 px; empty where it has none, None where OpenSlide did not read it."""
    if info.backend != "openslide":
        return None
    return {name: value for name, value in info.properties.items() if name.startswith("openslide.bounds-")}


def _placed(grid: TileGrid) -> dict[str, Any]:
    """What a reader must know of places that a file gave: the step between tiles, px at the target resolution, and where tile (0, 0) lies."""
    if not isinstance(grid, PlacedGrid):
        return {}
    offset = list(grid.l0_offset)
    return {"grid": {"regular": grid.regular, "stride": grid.stride, "l0_offset": offset, "rows": grid.rows, "cols": grid.cols}}
