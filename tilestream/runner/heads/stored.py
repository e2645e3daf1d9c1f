"""Slides that lack nothing but answers from stored rows: neither their images nor an encoder are needed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tilestream.config.restart import restarts
from tilestream.config.schema import Config
from tilestream.config.slide_list import SlideRef
from tilestream.geometry import Level, Region, Size
from tilestream.runner.recipe import Recipes
from tilestream.sources.base import Pixels, SlideInfo, Source
from tilestream.stages.hardware import peak_memory
from tilestream.stages.worker_settings import EncoderFacts
from tilestream.store.heads.columns import head_stage
from tilestream.store.slide_store import SlideStore

if TYPE_CHECKING:
    from tilestream.runner.cohort import Cohort


class StoredImage(Source):
    """What a store says of its image, in the place of the image; it has no pixels."""

    def __init__(self, store: SlideStore, ref: SlideRef) -> None:
        about: dict[str, Any] = (store.attributes or {})["source"]
        size, level, downsample = Size(about["height"], about["width"]), about["level"], about["downsample"]
        factors = [downsample ** (k / level) for k in range(level)] if level else []
        levels = [Level(Size(math.ceil(size.height / f), math.ceil(size.width / f)), f) for f in [*factors, downsample if level else 1.0]]
        self.info = SlideInfo(
            address=ref.address, backend=about["backend"], reason="its store", levels=tuple(levels), mpp=about["mpp"],
            mpp_source=about["mpp_source"], vendor=about["vendor"], fingerprint=about["fingerprint"], warnings=tuple(about["warnings"]),
        )  # fmt: skip

    def _read(self, level: int, region: Region) -> Pixels:
        raise AssertionError(f"level {level} of {self.info.address} is not to be read")

    def close(self) -> None:
        pass


def lacks_answers_only(store: SlideStore, ref: SlideRef, recipes: Recipes, cohort: Cohort) -> bool:
    """Whether answers from stored rows are missing in a store that holds all else that the config asks for.

    Raises
    ------
    OutputError
        Its tiles, or a head of that name, were made by another recipe.
    InputError
        A file of the config cannot be read.
    """
    config = recipes.config
    unseen = "windows" in config.output.save or config.tiles.tissue.function is not None  # need the encoder, or the image
    if not config.heads or store.base is None or cohort.retry_failed or unseen:
        return False
    heads = {head_stage(name): head for name, head in config.heads.items()}
    if cohort.restart and not any(restarts(cohort.restart, stage) for stage in heads):
        return False
    changed = recipes.changed_stages(store, ref)
    recipes.refuse_other_heads(store, ref, cohort.restart)
    mark = store.completion
    missing = {stage for stage in heads if mark is None or stage in changed or restarts(cohort.restart, stage)}
    if not missing or not changed <= heads.keys():
        return False
    if any(head.input == "pixels" or (head.reads_tokens and not store.layout.tokens) for head in (heads[stage] for stage in missing)):
        return False
    return not store.quick_damage() if mark is not None else _all_but_heads(store, config)


def _all_but_heads(store: SlideStore, config: Config) -> bool:
    """Whether all that heads may read is committed, in a store that was begun to be added to."""
    shards, save = store.layout.shards, config.output.save
    complete = len(store.ledger()) == shards and (config.context is None or len(store.ledger(config.context.stage)) == shards)
    return complete and all(store.ledger(stage) for stage in ("picture", *(pool.stage for pool in config.pool.every if "slide" in save)))


def stored_encoder(cohort: Cohort, recipes: Recipes, todo: Iterable[SlideRef]) -> EncoderFacts | None:
    """What stores say of the encoder that their rows are of, where every slide lacks answers only; None where the encoder itself is needed."""
    found = set()
    for ref in todo:
        store = cohort.store(ref)
        if not lacks_answers_only(store, ref, recipes, cohort):
            return None
        attributes = store.attributes or {}
        recipe = attributes["recipe"]
        encoder, layout = recipe["encoder"], store.layout
        found.add(
            (
                encoder.get("weights_sha256"), encoder.get("precision"), layout.dim, max(1, layout.tokens), encoder.get("vector"),
                recipe["compute"].get("cpu_capability"),
            )
        )  # fmt: skip
    if len(found) != 1 or None in (first := found.pop())[:2]:
        return None
    digest, precision, dim, tokens, vector, capability = first
    config = recipes.config
    return EncoderFacts(
        name=config.encoder.name, dim=dim, tokens=tokens, tile_size=None, mpp=None, parameters=0, digest=digest, untrained=False,
        peak_bytes=peak_memory(), device=config.compute.device, precision=precision, batch=1, threads=1, vector=vector,
        cpu_capability=capability,
    )  # fmt: skip
