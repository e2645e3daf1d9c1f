"""YAML as plain data: within bounds, without aliases, tags or keys written twice, and with the line of every key."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tilestream.config.local_files import read_small_file
from tilestream.config.types import yaml_word
from tilestream.errors import ConfigError

DEEPEST = 50
"""Levels that a value may be nested."""
MOST_NODES = 20_000
"""Keys and values of a config file."""

Key = tuple[str | int, ...]


@dataclass
class Draft:
    """A config on its way to being checked: plain data, where each key was written, and what is wrong so far."""

    raw: Any = None
    places: dict[Key, str] = field(default_factory=dict)
    """Key to words for where it stands, e.g. `config.yaml:12`; the empty key has those for the whole."""
    problems: list[str] = field(default_factory=list)

    def place(self, key: Key) -> str:
        """Where a key stands, or the nearest key above it that has a place; with a colon behind it, or empty."""
        words = next((self.places[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self.places), "")
        return f"{words}: " if words else ""


def dotted_key(key: Key) -> str:
    """A key as one would name it: `tiles.size`, `source.channels[2]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


class _Loader(yaml.SafeLoader):
    """Composes nodes within bounds and without aliases; plain words follow YAML 1.2, where `5e-1` is a number and a date is text."""

    depth = 0
    nodes = 0

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = self.get_node() if self.check_node() else None
        if self.check_node():
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="a second document begins here, and a config is one. Remove the line ---", problem_mark=mark)
        return node

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self.depth, self.nodes = self.depth + 1, self.nodes + 1
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases are not taken; write the value out, or put quotes round a text that begins with *", problem_mark=mark
            )
        if self.depth > DEEPEST or self.nodes > MOST_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {DEEPEST} levels or {MOST_NODES} values", problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_TAG = "tag:yaml.org,2002:"
_SCALARS = ("str", "int", "float", "bool", "null")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) in ("bool", "null")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"([-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> Draft:
    """The plain data of a file and what is wrong with it.

    Raises
    ------
    ConfigError
        The file cannot be read, or is not YAML.
    """
    try:
        text = read_small_file(path, "", "Give the path of a config; `tilestream init SLIDES` writes one.").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}).") from error
    return parse_yaml(text, str(path), Draft(places={(): str(path)}), lines=True)


def parse_yaml(text: str, name: str, draft: Draft, *, lines: bool = False) -> Draft:
    """Fill a draft from YAML text named `name`.

    With `lines`, problems that leave the rest readable are collected in the draft, each with its line; without, they raise too.

    Raises
    ------
    ConfigError
        The text is not YAML.
    """

    def place(mark: yaml.Mark | None) -> str:
        return f"{name}:{mark.line + 1}" if lines and mark is not None else name

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = text.splitlines()[mark.line] if mark is not None and mark.line < len(text.splitlines()) else ""
        hint = " Put quotes round a text that begins with *." if re.search(r"(^|[\s,\[-])\*[^\s\w]", line) else ""
        hint = " Indent with spaces; YAML takes no tabs." if line[: len(line) - len(line.lstrip())].count("\t") else hint
        hint = hint or (" Put single quotes round a text with backslashes." if re.search(r'"[^"]*\\', line) else "")
        raise ConfigError(f"{place(mark)}: not valid YAML: {error.problem or error.context}.{hint}") from error
    except (ValueError, OverflowError) as error:  # an escape that names no character
        raise ConfigError(f"{name}: not valid YAML: {error}.") from error
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{name}: not valid YAML: a character that is not text, number {error.position}.") from error
    draft.raw = None if node is None else _value(loader, node, (), draft, place)
    if not lines and draft.problems:
        raise ConfigError("\n".join(draft.problems))
    return draft


def _value(loader: _Loader, node: yaml.Node, key: Key, draft: Draft, place: Callable[[yaml.Mark | None], str]) -> Any:
    """Plain data from a node, noting the place of each key. Keys are text as written: `on` is a word there, not true."""
    kind = node.tag.removeprefix(_TAG)
    dotted = f"{dotted_key(key)}: " if key else ""
    if isinstance(node, yaml.MappingNode) and kind == "map":
        mapping: dict[str, Any] = {}
        for name_node, value_node in node.value:
            where = place(name_node.start_mark)
            if not isinstance(name_node, yaml.ScalarNode) or name_node.tag.removeprefix(_TAG) not in _SCALARS:
                draft.problems.append(f"{where}: {dotted}a list, mapping or tag is not a key; keys are words.")
                continue
            inner = (*key, name_node.value)
            if name_node.value in mapping:
                draft.problems.append(f"{where}: {dotted_key(inner)}: written twice, first at {draft.places[inner]}. Remove one.")
                continue
            draft.places[inner] = where
            mapping[name_node.value] = _value(loader, value_node, inner, draft, place)
        return mapping
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        draft.places |= {(*key, n): place(item.start_mark) for n, item in enumerate(node.value)}
        return [_value(loader, item, (*key, n), draft, place) for n, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
        try:
            return loader.construct_object(node)
        except (ValueError, yaml.YAMLError, KeyError):
            draft.problems.append(f"{place(node.start_mark)}: {dotted}{yaml_word(node.value)} cannot be read as {kind}.")
            return None
    draft.problems.append(f"{place(node.start_mark)}: {dotted}the tag {node.tag.replace(_TAG, '!!')} is not taken; write a plain value.")
    return None
