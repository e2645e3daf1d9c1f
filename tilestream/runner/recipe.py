"""What decides the numbers in a store, stage by stage: kept beside them, and compared before anything is added to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tilestream.config.restart import restarts
from tilestream.config.schema import UNSTATED, Config
from tilestream.config.slide_list import SlideRef
from tilestream.encoders.contexts.context_file import context_path
from tilestream.encoders.heads.address import PROGRAM
from tilestream.encoders.slides.files import slide_weights
from tilestream.errors import OutputError, without_credentials
from tilestream.runner.heads.head_code import CODE, code_of_factory, flat_head
from tilestream.sources.files import FileDigests
from tilestream.stages.heads.facts import HeadFacts
from tilestream.stages.worker_settings import Digests, EncoderFacts
from tilestream.store.heads.columns import head_stage
from tilestream.store.ledger import LATER, NAMED
from tilestream.store.records import digest_of, flatten
from tilestream.store.slide_store import FORMAT, ROWS, SlideStore
from tilestream.tiles.annotations.mask_files import mask_file
from tilestream.tiles.coords import find_file

NUMERICS = 1
"""Raised by hand when a release stores other bytes than the one before it made of the same recipe; the version of the package says nothing of that."""

HEADS = "heads"
"""The section of the recipe that holds one for each head."""

SHA256 = "_sha256"

NOT_SET = "not set"
"""What is said of a value that is None, is no part of a recipe, or holds nothing."""

PATHS = {
    "encoder.weights": f"encoder.file{SHA256}",
    **{path: path + SHA256 for path in ("tiles.tissue.mask", "context.weights", "pool.weights", "windows.weights")},
}
"""Fields that name files, and those of their digests: what is in the file counts, not where it lies."""

Recipe = dict[str, Any]


class Recipes:
    """The recipes of a config's slides. Files are digested once; before the encoder is known, what only it can say is left out."""

    def __init__(
        self, config: Config, facts: EncoderFacts | None = None, digests: FileDigests | None = None, heads: Sequence[HeadFacts] = ()
    ) -> None:
        self.config, self.facts, self.heads = config, facts, {head.name: head for head in heads}
        self._digests = digests or FileDigests()
        self._common = self._make()

    def knowing(self, facts: EncoderFacts, heads: Sequence[HeadFacts] = ()) -> Recipes:
        """The same once the encoder and the heads are known."""
        return Recipes(self.config, facts, self._digests, heads)

    def of(self, ref: SlideRef, kept_sha256: str | None = None) -> Recipe:
        """The recipe of one slide: its own mask or coords, and what a tissue function kept, where that is known.

        Raises
        ------
        InputError
            A file cannot be read.
        """
        tiles = self._common["tiles"]
        for field, path in self._files(ref).items():
            if field.startswith("tiles."):
                tiles = _with(tiles, field.removeprefix("tiles."), self._digests.of(path, _key_of(field)))
        return {**self._common, "tiles": tiles if kept_sha256 is None else _with(tiles, f"tissue.kept{SHA256}", kept_sha256)}

    @property
    def context_sha256(self) -> str | None:
        """Over the settings and weights of the context, for heads that read it; None where there is none."""
        context = self.config.context
        return None if context is None else context_sha256({"context": self._common[context.stage]})

    @property
    def weights(self) -> Digests:
        """The files of weights of stages after the tiles, and their digests."""
        return tuple(
            (path, self._digests.of(path, _key_of(field))) for field, path in sorted(self._files(None).items()) if field.startswith(LATER)
        )

    def _make(self) -> Recipe:
        config, facts = self.config, self.facts
        precision = "fp32" if config.context is not None and config.context.exact else config.encoder.precision
        encoder: Recipe = {"name": config.encoder.name, "weights": config.encoder.weights, "args": dict(config.encoder.args)}
        if precision != "auto":
            encoder["precision"] = precision
        if facts is not None:
            encoder |= facts.recipe
        save, above = config.output.save, "tiles" if config.context is None else config.context.stage
        recipe: Recipe = {
            "format": FORMAT,
            "numerics": NUMERICS,
            "source": config.source.recorded(),
            "tiles": config.tiles.recorded(),
            "encoder": encoder,
            "context": None if config.context is None else config.context.recorded(),
            "pool": None,
            "windows": {**config.windows.model_dump(mode="json"), "of": above} if "windows" in save else None,
            "output": {"save": sorted(save), "dtype": config.output.dtype},
            "compute": {"shard_tiles": config.compute.shard_tiles},
        }
        pools = config.pool.every if "slide" in save else ()
        recipe |= {pool.stage: {**pool.recipe(), "of": "tiles" if pool.encodes else above} for pool in pools}
        if facts is not None:
            recipe["compute"]["cpu_capability"] = facts.cpu_capability
        for field, path in self._files(None).items():
            section, _, key = field.partition(".")
            if section != "tiles" and recipe.get(section) is not None:
                recipe[section] = _with(recipe[section], key, self._digests.of(path, _key_of(field)))
        if config.context is not None and config.context.kept_as is not None:
            recipe |= {"context": None, config.context.stage: recipe["context"]}
        if config.heads:
            recipe[HEADS] = {name: self._head(name) for name in config.heads}
        return without_credentials(recipe)

    def _head(self, name: str) -> Recipe:
        """The recipe of a head; what only it can say of itself is left out before it is known."""
        head, told = self.config.heads[name], self.config.heads[name].model_dump(mode="json").items()
        own: Recipe = (
            {key: value for key, value in told if value not in (None, [])} | {"save": list(head.save)} | code_of_factory(head.model)
        )
        above = {"context": self.config.context, "vector": self.config.pool}.get(head.input)
        if above is not None and above.kept_as is not None:
            own["of"] = above.stage
        if Path(file := head.model.removeprefix(PROGRAM)).exists():
            own[f"model{SHA256}"] = self._digests.of(file, f"heads.{name}.model")
        return own if name not in self.heads else own | self.heads[name].recipe

    def _files(self, ref: SlideRef | None) -> dict[str, str]:
        """The files that decide numbers, by the field of the recipe that holds their digest."""
        config = self.config
        found = {
            f"encoder.file{SHA256}": config.encoder.weights,
            f"context.weights{SHA256}": context_path(config.context.weights) if config.context and config.context.weights else None,
            **{f"{pool.stage}.weights{SHA256}": slide_weights(pool) for pool in config.pool.every},
            f"windows.weights{SHA256}": config.windows.weights,
            **{f"encoder.{key}{SHA256}": path for key, path in _paths_in(config.encoder.args)},
        }
        files = {field: path for field, path in found.items() if path is not None and Path(path).exists()}
        if ref is not None and config.tiles.chosen is not None:
            files[f"tiles.from{SHA256}"] = str(find_file(config.tiles.chosen, ref.id))
        if ref is not None and (mask := mask_file(config, ref)) is not None:
            files[f"tiles.tissue.mask{SHA256}"] = str(mask)
        return files

    def refuse_changed(self, ref: SlideRef | None) -> None:
        """Refuse a slide, or with None a run, whose files are not what they were when their digests were taken. Raises InputError."""
        for field, path in self._files(ref).items():
            self._digests.refuse_changed(path, _key_of(field))

    # -- comparing --------------------------------------------------------------------------------------------------

    def changed_stages(self, store: SlideStore, ref: SlideRef, kept_sha256: str | None = None) -> set[str]:
        """The stages after the tiles that a store does not hold as this config wants them; empty where there is no store.

        Raises
        ------
        OutputError
            Its tiles were made by another recipe; names each field that differs, with both values and the file.
        InputError
            A file cannot be read.
        """
        attributes = store.attributes
        if attributes is None:
            return set()
        was, now = attributes.get("recipe", {}), self.of(ref, kept_sha256)
        later = {name for name in later_of(now) if now[name] is not None and _flat({name: was.get(name)}) != _flat({name: now[name]})}
        later |= {head_stage(name) for name in now.get(HEADS, ()) if self._other_head(was, now, name)}
        old, new = (UNSTATED | _flat(_without_later(recipe)) for recipe in (was, now))
        save = set(old.pop("output.save", ())), set(new.pop("output.save"))
        keys = set(new) if self.facts is None else set(old) | set(new)
        lines = self._differences(old, new, keys, ref)
        if self.config.tiles.tissue.function is not None and kept_sha256 is None:
            lines = [line for line in lines if "kept_sha256" not in line]  # it is not known yet
        if more := sorted(save[1] - save[0] - {"slide", "windows"}):
            lines.append(f"output.save was {sorted(save[0])} and is now {sorted(save[1])}: {' and '.join(more)} were not kept")
        of_rows = later - {head_stage(name) for name, own in now.get(HEADS, {}).items() if own["input"] in ("pixels", "vector")}
        if not more and of_rows and "tiles" not in save[0] and not store.folder.exists(f"{ROWS}/zarr.json"):
            lines.append(f"{' and '.join(sorted(of_rows))} changed, and the embeddings were not kept (output.save: {sorted(save[0])})")
        if lines:
            capability = any("compute.cpu_capability" in line for line in lines)
            hint = "Set ATEN_CPU_CAPABILITY (default, avx2, avx512) to what it was. " if capability else ""
            raise OutputError(
                f"{store.folder.address} was made by another recipe: {'; '.join(lines)}. "
                f"{hint}Choose another output, or start {ref.id} over with --restart (its embeddings are then deleted)."
            )
        return later

    def _other_head(self, was: Recipe, now: Recipe, name: str) -> dict[str, tuple[Any, Any]]:
        """What a store has otherwise of a head, by field; of one that it does not have, everything."""
        old, new = (flat_head(recipe.get(HEADS, {}).get(name), code=True) for recipe in (was, now))
        keys = (new.keys() | old.keys() if name in self.heads else new.keys()) - ({CODE} - old.keys())
        return {key: (old.get(key), new.get(key)) for key in sorted(keys) if old.get(key) != new.get(key)}

    def refuse_other_heads(self, store: SlideStore, ref: SlideRef, restart: str = "") -> None:
        """Refuse to put the answers of another head in the place of those that are there, unless it is told to `restart`.

        Raises
        ------
        OutputError
            Naming each field that differs, with both values.
        """
        attributes = store.attributes or {}
        was, now = attributes.get("recipe", {}), self.of(ref)
        for name in now.get(HEADS, ()):
            if name not in was.get(HEADS, {}) or restarts(restart, head_stage(name)):
                continue
            if differing := self._other_head(was, now, name):
                told = "; ".join(
                    f"heads.{name}.{key} was {NOT_SET if a is None else repr(a)} and is now {NOT_SET if b is None else repr(b)}"
                    for key, (a, b) in differing.items()
                )
                raise OutputError(
                    f"{store.folder.address} holds answers of another head {name}: {told}. Give this one another name, or put it in their place with "
                    f"--restart heads:{name}; embeddings and other heads stay."
                )

    def later_changes(self, was: Recipe, ref: SlideRef) -> list[str]:
        """In words, what a store's later stages were made of and this config has otherwise; a stage that one of both lacks is no change."""
        now = self.of(ref)
        both = [stage for stage in later_of(now) if was.get(stage) is not None and now[stage] is not None]
        old, new = (_flat({stage: recipe[stage] for stage in both}) for recipe in (was, now))
        return self._differences(old, new, set(old) | set(new), ref)

    def _differences(self, old: Recipe, new: Recipe, keys: set[str], ref: SlideRef) -> list[str]:
        differing = [key for key in sorted(keys) if old.get(key) != new.get(key)]
        told = {key: (_said(old, key), _said(new, key)) for key in differing}
        emptied = tuple(f"{key}." for key in differing if {} in (old.get(key), new.get(key)))  # named as a whole
        return [
            f"{self._name(key, ref)} was {was} and is now {now}"
            for key, (was, now) in told.items()
            if not key.startswith(emptied) and (was, now) != (NOT_SET, NOT_SET)
        ]

    def _name(self, field: str, ref: SlideRef) -> str:
        if field == f"tiles.tissue.kept{SHA256}":
            return f"what {self.config.tiles.tissue.function} keeps ({field})"
        path = self._files(ref).get(field, self._files(ref).get(_unnamed(field))) if field.endswith(SHA256) else None
        return field if path is None else f"{path} ({field})"

    def attributes(
        self, ref: SlideRef, was: Recipe, kept_sha256: str | None = None, holds: Callable[[str], bool] | None = None
    ) -> dict[str, Any]:
        """`recipe` and `stages` of a store's attributes.

        Stages of the recipe `was`, of what is there, that this config leaves out stay as they are, but for those that are not all there by `holds`, or were made
        of what is another by now: nothing would tell them from sound ones.
        """
        now = self.of(ref, kept_sha256)
        recipe = {**now, **{stage: was[stage] for stage in later_of(was) if now.get(stage) is None}}
        recipe[HEADS] = {**was.get(HEADS, {}), **now.get(HEADS, {})}
        before, after = stage_digests(was) if was else {}, stage_digests(recipe)
        own, gone = self.stages, set[str]()
        for stage, read in stages_read(recipe).items():
            if stage not in own and (after[stage] != before.get(stage) or read in gone or (holds is not None and not holds(stage))):
                gone.add(stage)
        recipe |= {stage: None for stage in later_of(recipe) if stage in gone}
        recipe[HEADS] = {name: head for name, head in recipe[HEADS].items() if head_stage(name) not in gone}
        recipe = {key: value for key, value in recipe.items() if value or not (key == HEADS or key.startswith(NAMED))}
        recipe["output"] = {**now["output"], "save": sorted({*now["output"]["save"], *was.get("output", {}).get("save", ())})}
        return {"recipe": recipe, "stages": stage_digests(recipe)}

    @property
    def stages(self) -> set[str]:
        """The stages that the config asks for."""
        return set(stage_digests(self._common))


def context_sha256(recipe: Recipe) -> str | None:
    """Over the settings and weights of the context of a recipe; None where it has none."""
    return None if recipe["context"] is None else digest_of(_flat({"context": recipe["context"]}))


def stage_digests(recipe: Recipe) -> dict[str, str]:
    """What the numbers of each stage depend on, as a digest; each one's holds those of the stages that it reads."""
    flat = _flat(_without_later(recipe))
    del flat["output.save"]
    found = dict.fromkeys(("tiles", "picture"), digest_of(flat))
    heads = {head_stage(name): flat_head(own) for name, own in recipe.get(HEADS, {}).items()}
    for stage, read in stages_read(recipe).items():
        found[stage] = digest_of([heads[stage] if stage in heads else _flat({stage: recipe[stage]}), found[read]])
    return found


def stages_read(recipe: Recipe) -> dict[str, str]:
    """The last stage that each stage after the tiles reads, in an order in which each comes behind it."""
    later = {stage: recipe[stage].get("of", "tiles") for stage in later_of(recipe) if recipe[stage] is not None}
    reads = {"context": "context", "vector": "pool"}
    return later | {head_stage(name): own.get("of") or reads.get(own["input"], "tiles") for name, own in recipe.get(HEADS, {}).items()}


def later_of(recipe: Recipe) -> list[str]:
    """The sections of a recipe that are stages after the tiles, contexts before what is made of them."""
    return [key for kind in LATER for key in sorted(recipe) if key.partition("-")[0] == kind]


def _without_later(recipe: Recipe) -> Recipe:
    """What the tiles of a recipe depend on."""
    return {key: value for key, value in recipe.items() if key.partition("-")[0] not in (*LATER, HEADS)}


def _paths_in(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The files and, where a path is written as one, the folders that arguments name, however deep, by dotted key."""
    if isinstance(value, dict | list):
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths_in(each, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, str) and (Path(value).is_file() or ("/" in value and Path(value).is_dir())):
        yield key, value


def _key_of(field: str) -> str:
    """The key of the config that names the file of a digest."""
    return _unnamed(field).removesuffix(SHA256).replace("encoder.file", "encoder.weights")


def _unnamed(field: str) -> str:
    """A field of a stage that is kept under a name, as one that has none has it."""
    section, dot, key = field.partition(".")
    return section.partition("-")[0] + dot + key


def _flat(recipe: Recipe) -> Recipe:
    """Settings by dotted key, without the addresses of files whose digests are there."""
    flat = flatten(recipe)
    digests = {_unnamed(key) for key in flat}
    return {key: value for key, value in flat.items() if PATHS.get(_unnamed(key)) not in digests}


def _said(flat: Recipe, key: str) -> str:
    """The value of a key in words; of a section that is flattened, all of its values."""
    value = flat.get(key)
    if value is None:
        value = {name.removeprefix(f"{key}."): each for name, each in flat.items() if name.startswith(f"{key}.")}
    return NOT_SET if value == {} else repr(value)


def _with(section: Recipe, key: str, value: str) -> Recipe:
    """A section with one more field, by dotted key."""
    first, _, rest = key.partition(".")
    return {**section, first: _with(section[first], rest, value) if rest else value}
