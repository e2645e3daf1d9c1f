"""`no` where nothing is meant: YAML reads it as false, and the error says what to write, by every key that takes none or may be left out."""

import pytest
import yaml

from tilestream.config.fit_schema import FitConfig
from tilestream.config.load import load_section
from tilestream.config.schema import Config
from tilestream.errors import ConfigError

RUN = {"slides": "a.svs", "output": "out", "tiles": {"mpp": 0.5}, "encoder": "patch_embed"}
MASKED = {"embeddings": "out", "target": {"masked": {}}, "save": "c.safetensors"}

TAKE_NONE = {
    (Config, "pool"), (Config, "pool.name"), (Config, "tiles.tissue"), (Config, "tiles.tissue.method"), (Config, "context.position"),
    (Config, "source.normalise"), (FitConfig, "target.masked.position"),
}  # fmt: skip
MAY_BE_ABSENT = {
    (Config, "context"), (Config, "context.weights"), (Config, "context.width"), (Config, "context.as"), (Config, "encoder.weights"),
    (Config, "encoder.args"), (Config, "pool.weights"), (Config, "heads"), (Config, "tiles.tissue.mask"), (Config, "tiles.from"),
    (Config, "source.stage"), (Config, "source.channels"), (Config, "source.bands"), (Config, "heads.tumour.mpp"),
    (FitConfig, "target.masked"), (FitConfig, "target.annotations"), (FitConfig, "target.masked.passes"), (FitConfig, "split.site"),
}  # fmt: skip
TAKE_NEITHER = {
    (Config, "output"), (Config, "slides"), (Config, "encoder"), (Config, "encoder.name"), (Config, "tiles"), (Config, "tiles.edge"),
    (Config, "tiles.size"), (Config, "compute"), (Config, "compute.device"), (Config, "windows.pool"), (Config, "heads.tumour.model"),
    (FitConfig, "save"),
}  # fmt: skip
NAMES = {"encoder": {"name": "patch_embed"}, "heads.tumour": {"kind": "classify", "model": "h.safetensors"}, "tiles": {"mpp": 0.5}}


def written(root, dotted, value):
    """A whole config in which a key has a value, its sections written out."""
    config = {**(RUN if root is Config else MASKED)}
    inner, parts = config, dotted.split(".")
    for n, part in enumerate(parts[:-1], start=1):
        there = inner.get(part)
        inner[part] = {**(there if isinstance(there, dict) else NAMES.get(".".join(parts[:n]), {}))}
        inner = inner[part]
    inner[parts[-1]] = value
    return config


def problems(tmp_path, root, dotted, word):
    """What is wrong with a key that has a word without quotes, line by line."""
    text = yaml.safe_dump(written(root, dotted, "WORD")).replace("WORD", word)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml") as caught:
        load_section(root, tmp_path / "c.yaml")
    return [line.partition(": ")[2] for line in str(caught.value).splitlines()]


def ids(cases):
    return {"argvalues": sorted(cases, key=str), "ids": str}


@pytest.mark.parametrize("word", ["no", "false", "off", "No"])
@pytest.mark.parametrize(("root", "dotted"), **ids(TAKE_NONE))
def test_no_in_place_of_none_says_to_write_none(tmp_path, root, dotted, word):
    assert problems(tmp_path, root, dotted, word) == [f"{dotted}: false is not taken; YAML reads no and off as false. Write none."]


@pytest.mark.parametrize(("root", "dotted"), **ids(TAKE_NONE))
def test_none_is_then_taken(tmp_path, root, dotted):
    config = written(root, dotted, "none")
    if dotted == "source.normalise":
        config["source"]["channels"] = [0, 1]
    load_section(root, config)


@pytest.mark.parametrize(("root", "dotted"), **ids(MAY_BE_ABSENT))
def test_no_in_place_of_nothing_says_to_leave_the_key_out(tmp_path, root, dotted):
    told = "false is not taken; YAML reads no and off as false. Leave the key out, or write null."
    assert f"{dotted}: {told}" in problems(tmp_path, root, dotted, "no")
    config = written(root, dotted, None)
    if dotted == "target.masked":
        config["target"]["clusters"] = 3
        config["head"] = {"name": "a", "kind": "classify", "model": "kmeans"}
    if dotted.startswith("heads."):
        config["heads"]["tumour"]["input"] = "tiles"
    load_section(root, config)


@pytest.mark.parametrize(("root", "dotted"), **ids(TAKE_NEITHER))
def test_keys_that_take_neither_say_what_they_take(tmp_path, root, dotted):
    told = problems(tmp_path, root, dotted, "no")
    assert any(line.startswith(f"{dotted}: ") for line in told)
    assert not any("YAML reads" in line for line in told)


def test_overrides_and_lists_are_told_the_same(tmp_path):
    told = "pool: false is not taken; YAML reads no and off as false. Write none."
    with pytest.raises(ConfigError, match=f"--set pool=no: {told}"):
        load_section(Config, RUN, ["pool=no"])
    assert problems(tmp_path, Config, "pool", "[no]") == [told.replace("pool:", "pool[0]:")]
    assert problems(tmp_path, Config, "pool", "[{name: no}]") == [told.replace("pool:", "pool[0].name:")]
    left_out = "false is not taken; YAML reads no and off as false. Leave it out of the list."
    for dotted, word, place in (("pool", "[mean, no]", 1), ("output.save", "[tiles, no]", 1), ("windows.sides", "[no, 16]", 0)):
        assert f"{dotted}[{place}]: {left_out}" in problems(tmp_path, Config, dotted, word)


def test_every_key_whose_schema_lists_none_is_tried():
    def keys(root, node, prefix):
        node = root["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        for each in node.get("anyOf", ()):
            yield from keys(root, each, prefix)
        for name, inner in node.get("properties", {}).items():
            if "none" in inner.get("enum", ()):
                yield f"{prefix}{name}"
            yield from keys(root, inner, f"{prefix}{name}.")

    for part in (Config, FitConfig):
        schema = part.model_json_schema()
        assert set(keys(schema, schema, "")) <= {dotted for root, dotted in TAKE_NONE if root is part}
        assert set(keys(schema, schema, ""))
