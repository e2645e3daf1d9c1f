"""Pages that are made from the program itself: the config reference and the commands."""

from __future__ import annotations

import json
from typing import Any

MARKS = ("<!-- config -->", "<!-- fit -->", "<!-- commands -->")


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with its marks replaced."""
    for mark, make in zip(MARKS, (config_reference, fit_reference, command_reference), strict=True):
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def config_reference() -> str:
    """The config of `run`."""
    from tilestream.config.json_schema import config_schema

    return schema_tables(config_schema())


def fit_reference() -> str:
    """The config of `fit`."""
    from tilestream.config.fit_schema import FitConfig

    return schema_tables(FitConfig.model_json_schema(), "of fit")


def schema_tables(schema: dict[str, Any], top: str = "Top level") -> str:
    """One table a section: key, values, default, meaning."""
    sections = [("", schema)]
    lines: list[str] = []
    seen: set[str] = set()
    while sections:
        name, section = sections.pop(0)
        lines += [f"## {name or top}", "", _first_words(section), "", "| key | values | default | meaning |", "|---|---|---|---|"]
        for key, field in section.get("properties", {}).items():
            below = [(reference, found) for reference in _references(field) if (found := _with_keys(schema["$defs"][reference]))]
            words = field.get("description") or next((_first_words(found) for _, found in below), "")
            dotted = f"{name}.{key}".strip(".")
            lines.append(f"| `{dotted}` | {_values(field, schema)} | {_default(field)} | {_cell(words)} |")
            for reference, found in below:
                if reference not in seen:
                    seen.add(reference)
                    sections.append((f"{dotted}.NAME" if _references(field.get("additionalProperties")) else dotted, found))
        lines.append("")
    return "\n".join(lines)


def _references(field: object) -> list[str]:
    """Names of the definitions that a field refers to."""
    return [part["$ref"].rsplit("/", 1)[-1] for part in _parts(field) if "$ref" in part] if isinstance(field, dict) else []


def _with_keys(definition: dict[str, Any]) -> dict[str, Any] | None:
    """The part of a definition that has keys: itself, or what may stand in the place of its shorthand."""
    return next((part for part in (definition, *definition.get("anyOf", [])) if "properties" in part), None)


def _parts(field: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        field,
        *field.get("anyOf", []),
        *field.get("allOf", []),
        field.get("items", {}),
        field["additionalProperties"] if isinstance(field.get("additionalProperties"), dict) else {},
    ]


def _first_words(section: dict[str, Any]) -> str:
    return str(section.get("description", "")).split("\n\n")[0]


def _values(field: dict[str, Any], schema: dict[str, Any]) -> str:
    kinds: list[str] = []
    for part in _parts(field):
        if "enum" in part:
            kinds += [f"`{value}`" for value in part["enum"]]
        elif "const" in part:
            kinds.append(f"`{part['const']}`")
        elif "$ref" in part:
            short = schema["$defs"][part["$ref"].rsplit("/", 1)[-1]].get("anyOf", [])
            kinds += [*(form["type"] for form in short if "properties" not in form), "section"]
        elif "type" in part and part is not field.get("items"):
            kinds += [part["type"]] if isinstance(part["type"], str) else part["type"]
    return ", ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))


def _default(field: dict[str, Any]) -> str:
    """As a config has it: `null`, `false`, `[tiles, slide]`."""
    if "default" not in field or isinstance(field["default"], dict):
        return ""
    value = field["default"]
    return f"`[{', '.join(map(str, value))}]`" if isinstance(value, list) else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def command_reference() -> str:
    """The help of every command, as the terminal has it."""
    import typer

    from tilestream.cli import app

    group = typer.main.get_group(app)
    context = typer.Context(group, info_name="tilestream")
    lines: list[str] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        lines += [f"## {name}", "", command.help or "", "", "| option | meaning |", "|---|---|"]
        for parameter in command.params:
            words = getattr(parameter, "help", "") or ""
            names = parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]  # type: ignore[union-attr]
            lines.append(f"| {', '.join(f'`{option}`' for option in names)} | {_cell(words)} |")
        lines.append("")
    return "\n".join(lines)
