"""What of a slide is known to be on disk: the checksums of every object, entry by entry as stages commit them, and the completion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tilestream.errors import IncompleteError, OutputError
from tilestream.store.folder import Folder
from tilestream.store.heads.columns import head_of_stage, head_stage
from tilestream.store.layout import kind_of
from tilestream.store.ownership import MARK, claim, is_ours, mark_harm
from tilestream.store.records import Sums, pack, sums_of, unpack

HOME = ".tilestream"
SLIDE_VECTOR = "slide vector"
"""What pools are called where what is missing is told: no head can have that name."""
LEDGER, BASE, COMPLETE, FENCE = f"{HOME}/shards", f"{HOME}/base.json", f"{HOME}/complete.json", f"{HOME}/fence.json"

WRITERS = f"{HOME}/writers"
"""Where those who commit are known to who raises the fence, in an object store."""

ERRORS_KEPT = 1000
"""Failed tiles whose causes the completion repeats."""

WHOLE = ("pool", "picture")
"""Stages that are one entry each."""

UPSTREAM = {"tiles": (), "context": ("tiles",), "windows": ("tiles", "context"), "pool": ("tiles", "context"), "picture": ("tiles",)}
"""The stages that a stage reads: when one of them is done again, so is it."""

LATER = ("context", "windows", "pool")
"""Kinds of stages after the tiles, by the sections of the recipe that are theirs: another one costs that stage and what is made of it."""

NAMED = ("context-", "pool-")
"""Begin the names of stages that are kept beside others of their kind."""

READ_BY = {"pixels": (), "tiles": ("tiles",), "tokens": ("tiles",), "context": ("tiles", "context"), "vector": ("tiles", "context", "pool")}
"""The stages that a head reads, by its input."""


class Ledger:
    """The records of one slide's store.

    Parameters
    ----------
    folder : Folder
        The store.
    token : str, optional
        What the run that owns the store wrote into its fence; only under the one that lies there now is anything committed.
    """

    def __init__(self, folder: Folder, token: str | None = None) -> None:
        self.folder, self.token = folder, token
        self._base: list[dict[str, Any] | None] = []
        """The record of the store as it was read, once it was: who owns the store alone writes it."""

    # -- the fence --------------------------------------------------------------------------------------------------

    def raise_fence(self) -> None:
        """Make this the only token under which anything is committed; tasks of earlier runs are shut out once this returns."""
        claim(self.folder)
        with self.folder.locked(HOME):
            self.folder.put(FENCE, pack({"token": self.token}))
        self.folder.await_writers(WRITERS)
        self._base.clear()

    @contextmanager
    def committing(self, *, alone: bool = False) -> Iterator[None]:
        """The fence stays where it is while the block runs; on a disk, which may have no locks, it is looked at before and after.

        Raises
        ------
        OutputError
            Another run owns the store by now.
        """
        with self.folder.locked(HOME, shared=not alone), self.folder.marked(WRITERS):
            self._look()
            yield
            if self.folder.local is not None:
                self._look()

    def _look(self) -> None:
        found = unpack(self.folder.get(FENCE))
        if (found and found["token"]) != self.token:
            raise OutputError(f"{self.folder.address} belongs to a later run by now: this one's work on it is given up. Wait for that run.")

    # -- entries ----------------------------------------------------------------------------------------------------

    @property
    def base(self) -> dict[str, Any] | None:
        """The attributes of the store and the checksums of its metadata; None where creation was cut short, or this record is damaged."""
        if not self._base:
            self._base.append(unpack(self.folder.get(BASE)))
        return self._base[0]

    @property
    def intact(self) -> bool:
        """Whether all that was written at its creation lies there as it was; of rows this says nothing."""
        base = self.base
        return base is not None and self.sums(list(base["objects"])) == base["objects"]

    def put_base(self, record: dict[str, Any]) -> None:
        """Write that record."""
        self._base.clear()
        self.folder.put(BASE, pack(record))

    @property
    def stage_recipes(self) -> dict[str, str]:
        """Digest of the recipe of each stage; entries of another one do not count."""
        found: dict[str, str] = ((self.base or {}).get("attributes") or {}).get("stages", {})
        return found

    @property
    def recipe(self) -> dict[str, Any]:
        """What the store was, or is to be, made of, by stage; empty where that is not known."""
        found: dict[str, Any] = ((self.base or {}).get("attributes") or {}).get("recipe", {})
        return found

    def sums(self, keys: list[str]) -> Sums:
        """Size and checksum of objects that are there."""
        found = {key: self.folder.sum(key) for key in keys}
        return {key: list(seen) for key, seen in found.items() if seen is not None}

    def record(self, stage: str, number: int, objects: Sums | list[str], told: dict[str, Any]) -> None:
        """Commit objects: their entry, with their checksums, which are taken here where they are not given."""
        sums = objects if isinstance(objects, dict) else self.sums(objects)
        entry = {"objects": sums, "recipe": self.stage_recipes.get(kind_of(stage)), **told}
        self.folder.put(entry_key(stage, number), pack(entry))

    def ledger(self, stage: str = "tiles") -> dict[int, dict[str, Any]]:
        """Sound entries of a stage under its present recipe, by shard number."""
        recipe, found = self.stage_recipes.get(kind_of(stage)), {}
        for key in self.folder.names(LEDGER):
            name, _, number = key.rsplit("/", 1)[-1].removesuffix(".json").rpartition("-")
            if name == stage and (entry := unpack(self.folder.get(key))) and entry["recipe"] == recipe:
                found[int(number)] = entry
        return found

    @property
    def stages(self) -> list[str]:
        """Stages with entries."""
        return sorted({key.rsplit("/", 1)[-1].rpartition("-")[0] for key in self.folder.names(LEDGER)})

    @property
    def heads(self) -> dict[str, dict[str, Any]]:
        """The recipes of the heads that the store has, or is to have, by name."""
        found: dict[str, dict[str, Any]] = self.recipe.get("heads") or {}
        return found

    @property
    def upstream(self) -> dict[str, tuple[str, ...]]:
        """The stages that each stage reads, named ones and heads among them, in the order in which they are done."""
        own_of = {stage: own.get("of", "tiles") for stage, own in sorted(self.recipe.items()) if own and stage.startswith(LATER)}
        read = {stage: tuple({"tiles": 0, above: 0}) for stage, above in own_of.items()}
        heads = {head_stage(name): ("tiles", own["of"]) if "of" in own else READ_BY[own["input"]] for name, own in self.heads.items()}
        return {**UPSTREAM, **read, **heads}

    @property
    def unanswered(self) -> dict[str, int]:
        """Answers that are missing though their tiles have an embedding, by head; and what is not finite of contexts and of the slide's vectors, by stage.

        Heads that read pixels lack what they could not read too.
        """
        others = [stage for stage in self.stage_recipes if stage.partition("-")[0] in ("context", "pool")]
        stages = {**{stage.replace("pool", SLIDE_VECTOR, 1): stage for stage in others}, **{name: head_stage(name) for name in self.heads}}
        entries = {name: self.ledger(stage).values() for name, stage in stages.items()}
        return {name: failed for name, found in entries.items() if (failed := sum(entry.get("failed", 0) for entry in found))}

    def forget(self, kinds: set[str]) -> None:
        """Remove the entries of stages and of all that are made of them."""
        for kind, above in self.upstream.items():
            if set(above) & kinds:
                kinds = kinds | {kind}
        for key in self.folder.names(LEDGER):
            if stage_of(key) in kinds:
                self.folder.delete(key)

    def forget_failed(self) -> int:
        """Remove the entries of shards with failed tiles, and of all that is made of them; returns how many tiles failed."""
        shards = {number: failed for number, entry in self.ledger().items() if (failed := count_failed(entry["counts"]))}
        if shards:
            self.forget({kind for kind, above in self.upstream.items() if "tiles" in above})
        for number in shards:
            self.folder.delete(entry_key("tiles", number))
        for stage in self.stages:
            for number in [number for number, entry in self.ledger(stage).items() if entry.get("failed")]:
                if head_of_stage(stage):  # what a head could not read itself
                    self.folder.delete(entry_key(stage, number))
                else:
                    self.forget({kind_of(stage)})
        return sum(shards.values())

    def forget_damaged(self) -> int:
        """Remove entries that are damaged, of another recipe, or whose objects are not as they were written; returns how many."""
        recipes, lost = self.stage_recipes, 0
        for key in self.folder.names(LEDGER):
            entry = unpack(self.folder.get(key))
            stage = stage_of(key)
            if entry is None or entry["recipe"] != recipes.get(stage) or self.sums(list(entry["objects"])) != entry["objects"]:
                self.folder.delete(key)
                lost += 1
        return lost

    # -- completion -------------------------------------------------------------------------------------------------

    def write_completion(self, told: dict[str, Any], keys: list[str], row_arrays: tuple[str, ...]) -> dict[str, Any]:
        """Write the completion mark, and return it: the last object of a slide, with size and checksum of every other one.

        Parameters
        ----------
        told : dict
            What else it says.
        keys : list of str
            Objects of the slide.
        row_arrays : tuple of str
            Paths of the arrays whose objects are shards; readers look at their sizes only, for their chunks carry checksums of their own.
        """
        base = self.base or {"objects": {}}
        objects: Sums = dict(base["objects"]) | self.sums([BASE])
        recipes, counts, causes, redone = self.stage_recipes, dict[str, int](), dict[str, str](), 0
        for key in self.folder.names(LEDGER):
            raw = self.folder.get(key)
            entry = unpack(raw)
            if raw is None or entry is None or entry["recipe"] != recipes.get(stage_of(key)):
                self.folder.delete(key)
                continue
            objects |= entry["objects"] | sums_of({key: raw})
            for status, count in entry.get("counts", {}).items():
                counts[status] = counts.get(status, 0) + count
            redone += entry.get("redone", 0)
            causes |= dict(list(entry.get("errors", {}).items())[: ERRORS_KEPT - len(causes)])
        objects |= self.sums([key for key in keys if key not in objects])
        by_size = ("shapes/", *(f"{path}/c/" for path in row_arrays))
        rows = {key: objects.pop(key) for key in list(objects) if key.startswith(by_size)}
        told = ({"redone": redone} if redone else {}) | told
        mark = {"counts": counts, "errors": causes, **told, "stages": recipes, "objects": objects, "rows": rows}
        with self.committing(alone=True):
            if self.token is not None:
                self.folder.delete(FENCE)
                self.token = None
            self.folder.put(COMPLETE, pack(mark))
        return mark

    @property
    def completion(self) -> dict[str, Any] | None:
        """The completion mark, or None for a slide that is not finished, or whose mark is damaged."""
        return unpack(self.folder.get(COMPLETE))

    def damage(self) -> list[str]:
        """What is wrong with a finished slide, object by object; empty where all bytes are as they were written."""
        harm = mark_harm(self.folder)
        if not self.folder.exists(COMPLETE):
            return [*harm, f"{COMPLETE}: missing; the slide is not finished, or its completion was lost"]
        mark = self.completion
        if mark is None:
            return [*harm, f"{COMPLETE}: bytes differ from what was written"]
        return harm + self._differences({**mark["objects"], **mark["rows"]})

    def damage_below(self, prefix: str) -> list[str]:
        """What is wrong with the objects below a prefix that the completion, or the entries of a slide that is not finished, speak of."""
        mark = self.completion
        told: Sums = {**mark["objects"], **mark["rows"]} if mark else {}
        for key in self.folder.names(LEDGER) if mark is None else ():
            told |= (unpack(self.folder.get(key)) or {"objects": {}})["objects"]
        return self._differences({key: seen for key, seen in told.items() if key.startswith(f"{prefix}/")})

    def _differences(self, told: Sums) -> list[str]:
        return [f"{key}: {_harm(self.folder.get(key), seen)}" for key, seen in told.items() if self.sums([key]).get(key) != seen]

    def quick_damage(self) -> list[str]:
        """As `damage`, in little time: sizes of all objects but pictures, and the bytes of those that hold no rows of embeddings."""
        mark = self.completion
        if mark is None:
            return self.damage()
        sizes = self.folder.sizes()
        objects, rows = ({key: seen for key, seen in mark[kind].items() if not key.endswith(".png")} for kind in ("objects", "rows"))
        wrong = [
            f"{key}: {'missing' if key not in sizes else f'{sizes[key]} bytes, not {size}'}"
            for key, (size, _) in {**objects, **rows}.items()
            if sizes.get(key) != size
        ]
        found = {} if wrong else self.sums(list(objects))
        return wrong or [f"{key}: bytes differ from what was written" for key, seen in objects.items() if found[key] != seen]

    def refuse_damaged(self, *, rows: bool = False) -> None:
        """Look at a finished slide in little time, or with `rows` at all its bytes. Raises IncompleteError where it is not as it was written."""
        harm = (self.damage() if rows else self.quick_damage()) if self.folder.exists(COMPLETE) else []
        if harm:
            more = f" (and {len(harm) - 1} more)" if harm[1:] else ""
            raise IncompleteError(
                f"{self.folder.address} is damaged: {harm[0]}{more}. Run `tilestream verify --repair` on it and then its command again; "
                "verify=False reads what is left."
            )

    def repair(self) -> str:
        """Make a damaged slide unfinished, so that the next run redoes what is damaged and nothing else; says what that is.

        Of one that is not finished, or whose completion is lost, only the mark is mended: its next run finds the rest.
        """
        marked = mark_harm(self.folder) if is_ours(self.folder) else []
        if marked:
            claim(self.folder)
        if self.completion is None or (marked and not self.damage()):
            return f"{MARK} is written anew" if marked else "its command goes on with it"
        base = self.base
        basic = [BASE] if base is None else [key for key, seen in base["objects"].items() if self.sums([key]).get(key) != seen]
        self.folder.delete(COMPLETE)
        self.folder.sweep()
        parts = f"{self.forget_damaged() if base else 0} parts are done again"
        return parts + (f"; {basic[0]} is damaged, on which all else rests: it is written anew if it can be, byte for byte, else the slide is started over" if basic else "")  # fmt: skip


def stage_of(key: str) -> str:
    """The stage that an entry is of."""
    return kind_of(key.rsplit("/", 1)[-1].rpartition("-")[0])


def entry_key(stage: str, number: int) -> str:
    """Where an entry lies."""
    return f"{LEDGER}/{stage}-{number:06d}.json"


def count_failed(counts: dict[str, int]) -> int:
    """Tiles that are NaN, of counts by status."""
    return sum(n for status, n in counts.items() if status not in ("ok", "padded"))


def _harm(data: bytes | None, seen: list[Any]) -> str:
    if data is None:
        return "missing"
    return f"{len(data)} bytes, not {seen[0]}" if len(data) != seen[0] else "bytes differ from what was written"
