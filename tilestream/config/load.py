"""Configs from YAML files: read without surprises, overridden by `--set`, and refused with every problem in one message."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ValidationError

from tilestream.config.fit_schema import FitConfig
from tilestream.config.local_files import refuse_url
from tilestream.config.schema import Config
from tilestream.config.types import Section, ValueRefusedError, yaml_word
from tilestream.config.yaml_reader import Draft, Key, dotted_key, parse_yaml, read_yaml
from tilestream.errors import HIDDEN, ConfigError

S = TypeVar("S", bound=Section)


def load_config(config: str | os.PathLike[str] | Mapping[str, Any] | Config, overrides: Sequence[str] = ()) -> Config:
    """The checked config of a run: `load_section` of it."""
    return load_section(Config, config, overrides)


def load_section(root: type[S], config: str | os.PathLike[str] | Mapping[str, Any] | S, overrides: Sequence[str] = ()) -> S:
    """The checked config of a YAML file or of a mapping in the same form, with `a.b=c` settings going before it.

    Relative paths in a config are relative to the working directory. A key set to null is absent.

    Raises
    ------
    ConfigError
        The file cannot be read, or the config is wrong; the message has a line for each problem.
    """
    given = config.model_dump(mode="json", by_alias=True) if isinstance(config, Section) else config
    if not isinstance(given, Mapping):
        refuse_url(given, "config")
    draft = Draft(_copied(given)) if isinstance(given, Mapping) else read_yaml(Path(given))
    if not isinstance(draft.raw, dict):
        found = "is empty" if draft.raw is None else f"holds {yaml_word(draft.raw)}"
        wanted = f"{draft.place(())}{found}, but a config is a mapping of keys: {', '.join(root.model_fields)}."
        raise ConfigError("\n".join([*draft.problems, wanted]))
    _refuse_other_command(root, draft)
    _override(root, draft, overrides)
    try:
        checked = root.model_validate(draft.raw)
    except ValidationError as error:
        draft.problems += [_problem(root, draft, detail) for detail in error.errors(include_url=False)]
    if draft.problems:
        raise ConfigError("\n".join(draft.problems))
    return checked


def _refuse_other_command(root: type[Section], draft: Draft) -> None:
    """Say which command a config is for, where its keys are those of the other one."""
    told: dict[type[Section], str] = {Config: "run", FitConfig: "fit"}
    given = set(draft.raw)
    own = len(given & set(root.model_fields))
    other = next((each for each in told if each is not root and len(given & set(each.model_fields)) > own), None)
    if root in told and other is not None:
        keys = ", ".join(key for key in draft.raw if key in other.model_fields)
        raise ConfigError(f"{draft.place(())}is a config of {told[other]}, by its keys {keys}. Give it to `tilestream {told[other]}`.")


def _copied(value: Any) -> Any:
    """A copy of plain data as far down as it is mappings and lists; an object in it, such as an encoder, stays that object."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _override(root: type[Section], draft: Draft, overrides: Sequence[str]) -> None:
    for setting in overrides:
        place = f"--set {setting}"
        dotted, equals, text = setting.partition("=")
        key = tuple(dotted.strip().split("."))
        if not equals or not all(key):
            draft.problems.append(f"{place}: not of the form key=value, e.g. --set tiles.mpp=0.5.")
            continue
        try:
            value = text if text.startswith("*") else parse_yaml(text, place, Draft()).raw  # a glob, as a shell user writes it
            known = _put(root, draft.raw, key, value)
        except ConfigError as error:
            draft.problems.append(str(error))
        except ValueRefusedError as error:
            draft.problems.append(f"{place}: {error}.")
        else:
            draft.places = {old: words for old, words in draft.places.items() if old[: len(key)] != key}
            draft.places.update({key[:n]: place for n in range(known + 1, len(key) + 1)})


def _put(root: type[Section], raw: dict[str, Any], key: tuple[str, ...], value: Any) -> int:
    """Set a value below `raw`, writing out the shorthands on the way; returns how many parts of the key were there."""
    sections = _sections(root)
    known = 0
    for n, part in enumerate(key[:-1], start=1):
        dotted = ".".join(key[:n])
        inner = raw.get(part)
        if inner is not None and dotted in sections:
            inner = sections[dotted].written_out(inner)
        if inner is not None and not isinstance(inner, Mapping):
            raise ValueRefusedError(f"{dotted} is {yaml_word(inner)}, which has no keys below it")
        known = n if inner is not None else known
        raw[part] = dict(inner or {})
        raw = raw[part]
    raw[key[-1]] = value
    return known


# Problems in words

_MISSING = {
    "slides": "Write what to read, e.g. slides: slides/*.svs",
    "output": "Write where results go, e.g. output: embeddings",
    "tiles": "Write the resolution to work at, e.g. tiles: {mpp: 0.5} or tiles: {level: 0}",
    "encoder": "Write a model, e.g. encoder: tilestream-lite",
    "encoder.name": "Write a model, e.g. name: tilestream-lite",
    "heads.*.kind": "Write what it answers: classify, segment, detect or slide",
    "heads.*.model": "Write where its weights are, e.g. model: heads/tumour.safetensors",
    "embeddings": "Write an output of run, e.g. embeddings: embeddings",
    "target": "Write what is learned, e.g. target: {slides: labels.csv, column: label}",
    "head": "Write what is trained, e.g. head: {name: tumour, kind: slide, model: abmil}",
    "head.name": "Write what outputs call it, e.g. name: tumour",
    "head.kind": "Write classify (tiles) or slide",
    "head.model": "Write e.g. model: linear (tiles) or model: abmil (slides)",
    "save": "Write where the head goes, e.g. save: heads/tumour.safetensors",
    "output.path": "Write where results go, e.g. path: embeddings",
}


ELSEWHERE_CALLED = {
    "overlap": "tiles.stride, which is size - overlap", "step": "tiles.stride", "step_size": "tiles.stride", "patch_size": "tiles.size", "tile_size": "tiles.size",
    "magnification": "tiles.mpp, where 0.5 is 20x", "mag": "tiles.mpp, where 0.5 is 20x", "target_mpp": "tiles.mpp", "model": "encoder.name", "batch": "compute.batch_size",
    "num_workers": "compute.workers", "gpu": "compute.device", "segmenter": "tiles.tissue", "mask": "tiles.tissue.mask", "slide_encoder": "pool.name", "min_tissue_proportion": "tiles.tissue.min_fraction", "patch_level": "tiles.level", "save_dir": "output", "custom_list_of_wsis": "slides", "wsi_dir": "slides", "input": "slides", "job_dir": "output",
}  # fmt: skip
"""Words of other programs for what is called otherwise here."""


def _key_as_written(raw: Any, key: Key) -> Key:
    """The key of a problem as it stands in the file: `pool: [mean, max]` is checked as the first with the others beside it."""
    pools = raw.get("pool") if isinstance(raw, Mapping) else None
    if key[:1] != ("pool",) or not isinstance(pools, list) or not pools:
        return key
    if key[1:2] == ("beside",):
        return ("pool", key[2] + 1, *key[3:]) if len(key) > 2 and isinstance(key[2], int) else ("pool",)
    return ("pool", 0, *key[1:])


def _problem(root: type[Section], draft: Draft, detail: Mapping[str, Any]) -> str:
    key = _key_as_written(draft.raw, detail["loc"])
    meant = _instead_of_no(root, draft.raw, key) if detail["input"] is False else ""
    words = f"false is not taken; YAML reads no and off as false. {meant}" if meant else _words(root, key, detail)
    named = dotted_key(key)
    told = words if named and words.startswith(f"{named}.") else f"{named}: {words}"  # a section names its own key
    return f"{draft.place(key)}{told}{'' if words.endswith('?') else '.'}"


def _instead_of_no(root: type[Section], raw: Any, key: Key) -> str:
    """What says that something is not wanted, where `no` was written for it: the word none, or that the key is left out; "" where a key takes neither."""
    if _among_others(raw, key):
        return "" if _takes(root, raw, key, "neither") else "Leave it out of the list"
    if _takes(root, raw, key, "none") and not _takes(root, raw, key, "neither"):  # a key that takes any text takes none as a name
        return "Write none"
    part, _, name = dotted_key(key).rpartition(".")
    section = ({"": root} | _sections(root)).get(re.sub(r"^heads\.\w+$", "heads.*", part))
    fields = section.model_fields if section is not None else {}
    field = next((field for each, field in fields.items() if name in (each, field.alias)), None)
    absent = field is not None and not field.is_required() and field.get_default(call_default_factory=True) in (None, {})
    return "Leave the key out, or write null" if absent else ""


def _among_others(raw: Any, key: Key) -> bool:
    """Whether a key is that of one of several in a list."""
    for part in key[:-1]:
        raw = raw[part] if (part in raw if isinstance(raw, dict) else isinstance(raw, list) and part in range(len(raw))) else None
    return isinstance(raw, list) and len(raw) > 1


def _takes(root: type[Section], raw: Any, key: Key, word: str) -> bool:
    """Whether nothing is wrong with a key where a word stands in place of its value."""
    trial: Any = _copied(raw)
    holder, inner = None, trial
    for part in key:
        if not (part in inner if isinstance(inner, dict) else isinstance(inner, list) and part in range(len(inner))):
            return False  # a shorthand stands in place of the section
        holder, inner = inner, inner[part]
    if holder is not None:
        holder[key[-1]] = word
    try:
        root.model_validate(trial)
    except ValidationError as error:
        return all(_key_as_written(trial, each["loc"])[: len(key)] != key for each in error.errors(include_url=False))
    return True


def _words(root: type[Section], key: Key, detail: Mapping[str, Any]) -> str:
    """What is wrong with a value, from one of pydantic's error records."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        place = ".".join(["heads", "*", *map(str, key[2:])]) if key and key[0] == "heads" else dotted_key(key)
        return f"missing. {_MISSING.get(place, '')}".removesuffix(". ")
    if kind == "extra_forbidden":
        return f"unknown key; {_suggestion(root, dotted_key(key))}"
    value = yaml_word(detail["input"])
    if kind == "literal_error":
        return f"{value} {_choices(context['expected'], str(detail['input']))}"
    if kind == "string_pattern_mismatch":
        return f"{value} is not of the form {_FORMS.get(str(key[-1]), 'package.Class')}"
    plain = _plain_number(detail["input"], whole=kind == "int_type") if kind in ("int_type", "float_type") else ""
    wanted = _WANTED.get(re.sub(r"\[\d+\]", "", dotted_key(key))) if kind in ("tuple_type", "model_type") else None
    why = plain or (f"is not {wanted}" if wanted else _KINDS[kind].format(**context) if kind in _KINDS else "")
    return f"{value} {why}" if why else f"{value}: {detail['msg']}"


def _plain_number(value: object, *, whole: bool) -> str:
    """How to write what is meant as a number and is read as something else; "" where it is none."""
    if isinstance(value, float) and whole and value.is_integer():
        return f"is not a whole number as written; write {value:.0f}"
    kind = "a whole number" if whole else "a number"
    if not isinstance(value, str):
        return ""
    if re.fullmatch(r"[-+]?\d+,\d+", value):
        return f"is not {kind} but text; decimals take a point, as in {value.replace(',', '.')}"
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|0[xob][\da-fA-F]+", value):
        return f"is not {kind} but text; write a number in plain digits, without quotes, prefixes or zeros in front"
    return ""


_WANTED = {
    "pool": "a pool, as in pool: mean, pool: [mean, max] or pool: {name: mean}",
    "context": "a mapping of keys, as in context: {window: 8, depth: 4}",
    "slides": "a path, a glob or a list of them",
    "output": "a folder, as in output: embeddings",
    "encoder": "the name of a model, as in encoder: tilestream-lite",
    "tiles": "a mapping of keys, as in tiles: {size: 224, mpp: 0.5}",
}
"""What is to be written in the place of a value of the wrong kind."""

_FORMS = {"function": "module:function", "name": "tumour_type: a small letter, then small letters, digits and _"}


def _choices(expected: str, value: str) -> str:
    choices = re.findall(r"'([^']*)'", expected)
    near = difflib.get_close_matches(value, choices, 1)
    return f"is not one of {', '.join(choices)}" + (f"; did you mean {near[0]}?" if near else "")


_KINDS = {
    "greater_than_equal": "is less than the smallest allowed, {ge:g}",
    "greater_than": "is not more than {gt:g}",
    "less_than_equal": "is more than the largest allowed, {le}",
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "bool_type": "is not true or false",
    "string_type": "is not text; put quotes round it if it is meant as text",
    "string_too_short": "is empty",
    "too_short": "is empty",
    "tuple_type": "is not a list",
    "dict_type": "is not a mapping of keys",
    "model_type": "is not a mapping of keys",
}


def _suggestion(root: type[Section], dotted: str) -> str:
    """The nearest known key, or the keys that there are beside an unknown one."""
    if named := re.fullmatch(r"heads\.(\w+)\.(.+)", dotted):  # names of heads are the user's
        return _suggestion(root, f"heads.*.{named[2]}").replace("heads.*.", f"heads.{named[1]}.")
    dotted = re.sub(r"\[\d+\]", "", dotted)  # places in lists
    keys = [(section, name) for section, _, name in (key.rpartition(".") for key in _known_keys(root))]
    section, _, name = dotted.rpartition(".")
    if section and name.isdigit():
        return "decimals take a point, and a comma between braces ends a value"
    beside = [known for place, known in keys if place == section]
    near = [f"{section}.{known}".removeprefix(".") for known in difflib.get_close_matches(name, beside, 1)]
    if not near and name in ELSEWHERE_CALLED and root is Config:
        return f"you may mean {ELSEWHERE_CALLED[name]}"
    close = near or [
        f"{place}.{known}"
        for place, known in keys
        if place and place != "heads.*" and known in difflib.get_close_matches(name, [known], 1, cutoff=0.8)
    ]
    return f"did you mean {' or '.join(close)}?" if close else f"known here are {', '.join(beside)}"


def _sections(part: type[Section], prefix: str = "") -> dict[str, type[Section]]:
    """Dotted key to the class of each section below `part`."""
    found: dict[str, type[Section]] = {}
    for name, info in part.model_fields.items():
        place = f"{prefix}{name}{'.*' if get_origin(info.annotation) is dict else ''}"
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                found |= {place: kind} | _sections(kind, f"{place}.")
    return found


def _known_keys(root: type[Section]) -> list[str]:
    """Every dotted key that a config may have, in the order of the documentation."""
    sections = {"": root} | _sections(root)
    keys = [
        f"{dotted}.{info.alias or name}".removeprefix(".") for dotted, part in sections.items() for name, info in part.model_fields.items()
    ]
    inner = {f"compute.scheduler.{name}" for name in ("kind", "address", "path")}
    return [key for key in keys if key not in inner]


HARMLESS_ARGS = frozenset({"account", "cores", "interface", "memory", "n_workers", "name", "processes", "project", "queue", "walltime"})
"""Arguments of clusters that let nobody in, and may be recorded."""


def recorded_config(config: Config) -> dict[str, Any]:
    """The config as plain data for records: of the arguments of a cluster, texts are hidden but for those that are known to let nobody in."""
    data = config.model_dump(mode="json")
    scheduler = data["compute"]["scheduler"]
    if isinstance(scheduler, dict):
        scheduler["args"] = {key: value if key in HARMLESS_ARGS else _hidden(value) for key, value in scheduler["args"].items()}
    return data


def secret_texts(value: Any) -> set[str]:
    """All texts in the arguments of a cluster but those that let nobody in."""
    if isinstance(value, str):
        return {value} if value else set()
    if isinstance(value, dict):
        return set().union(*(secret_texts(each) for key, each in value.items() if key not in HARMLESS_ARGS))
    return set().union(*map(secret_texts, value)) if isinstance(value, list | tuple) else set()


def _hidden(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _hidden(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(each) for each in value]
    return HIDDEN if isinstance(value, str) else value
