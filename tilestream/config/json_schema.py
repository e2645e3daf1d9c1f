"""The JSON schema of a config file, for editors and for the documentation."""

from __future__ import annotations

from typing import Any

from tilestream.config.schema import Config


def config_schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors; sections with a shorthand also take a string."""
    schema = Config.model_json_schema()
    parts = schema["$defs"]
    for name in ("Output", "Tissue", "Encoder", "OnePool", "Pool"):
        parts[name] = {"anyOf": [{"type": "string"}, parts[name]]}
    parts["Pool"]["anyOf"].append({"type": "array", "items": {"$ref": "#/$defs/OnePool"}, "minItems": 1})
    spec = parts["SchedulerSpec"]
    mapping = {**spec, "properties": {key: spec["properties"][key] for key in ("class", "args", "adapt")}, "required": ["class"]}
    parts["SchedulerSpec"] = {"anyOf": [{"type": "string"}, mapping]}
    schema["properties"]["slides"] = {**schema["properties"]["slides"], "type": ["string", "array"]}
    return schema
