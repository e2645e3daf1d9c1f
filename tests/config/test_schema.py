"""The config: what each section takes, what it makes of shorthands, and what it refuses in which words."""

import json
import pickle
import re
import subprocess
import sys
from typing import get_args

import pytest
from pydantic import ValidationError

from tilestream.config.heads import Head
from tilestream.config.json_schema import config_schema
from tilestream.config.load import load_config
from tilestream.config.schema import Config, SchedulerSpec
from tilestream.config.types import ValueRefusedError, bytes_from_text
from tilestream.config.vectors.pool import PoolName
from tilestream.errors import ConfigError

LEAST = {"slides": "slides/*.svs", "output": "embeddings", "tiles": {"mpp": 0.5}, "encoder": "patch_embed"}


def config(**sections) -> Config:
    return load_config({**LEAST, **sections})


def compute(**keys):
    return config(compute=keys).compute


def refused(words: str, **sections) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        config(**sections)


def test_defaults_are_those_of_the_design():
    made = config()
    assert made.slides == ("slides/*.svs",)
    assert (made.output.path, made.output.save, made.output.dtype) == ("embeddings", ("tiles", "slide"), "float16")
    assert (made.tiles.size, made.tiles.stride, made.tiles.level, made.tiles.edge, made.tiles.tissue.method) == (
        224,
        224,
        None,
        "pad",
        "otsu",
    )
    assert (made.encoder.name, made.encoder.precision, made.context, made.pool.name) == ("patch_embed", "auto", None, "mean")
    assert (made.compute.scheduler.kind, made.compute.shard_tiles, made.compute.memory_limit) == ("local", 2048, 4 * 2**30)
    assert (made.on_error.slide, made.on_error.tile) == ("skip", "nan")


def test_stride_is_size_unless_given():
    assert config(tiles={"mpp": 1, "size": 256}).tiles.stride == 256
    assert config(tiles={"mpp": 1, "size": 256, "stride": 128}).tiles.stride == 128


def test_config_is_frozen_and_travels_to_workers():
    made = config(context={})
    with pytest.raises(ValidationError, match="frozen"):
        made.tiles.size = 3
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"pool": "none"},
        {"tiles": {"level": 0, "tissue": {"mask": "a.png"}}},
        {"compute": {"scheduler": {"class": "a.B", "args": {"x": [1]}}, "device": "cuda:1"}, "context": {}},
        {"source": {"channels": [0], "window": [0, 1.5], "mpp": 0.25}},
    ],
)
def test_config_as_run_reads_back_equal(sections):
    made = config(**sections)
    assert load_config(json.loads(made.model_dump_json())) == made


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GiB", 4 * 2**30),
        ("500 MB", 500 * 10**6),
        ("1.5g", 1_500_000_000),
        ("64KiB", 65536),
        ("2TiB", 2**41),
        ("12", 12),
        (7, 7),
        ("3ki", 3072),
    ],
)
def test_memory_is_read_in_decimal_and_binary_units(text, count):
    assert bytes_from_text(text) == count


@pytest.mark.parametrize("text", ["4 apples", "", "-1GiB", "GiB", "0", 0, True, 1.5, "1e9", "9" * 30, "nan", "99999999 TiB"])
def test_other_sizes_of_memory_are_refused_with_the_forms_that_are_taken(text):
    with pytest.raises(ValueRefusedError, match="is not a size of memory; write 4GiB, 500 MB, or a whole number of bytes"):
        bytes_from_text(text)


@pytest.mark.parametrize(
    ("written", "method", "key", "value"),
    [
        ("otsu", "otsu", "mask", None),
        ("none", "none", "mask", None),
        ("package.module:function", "function", "function", "package.module:function"),
        ({"mask": "a.geojson"}, "mask", "mask", "a.geojson"),
        ({"min_fraction": 0.5}, "otsu", "min_fraction", 0.5),
        ({"method": "otsu", "pens": True}, "otsu", "pens", True),
    ],
)
def test_tissue_takes_its_documented_forms(written, method, key, value):
    tissue = config(tiles={"mpp": 1, "tissue": written}).tiles.tissue
    assert (tissue.method, getattr(tissue, key)) == (method, value)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("otus", "tiles.tissue: 'otus' is not one of otsu, none, 'module:function', {method: otsu"),
        (False, "tiles.tissue: false is not taken; YAML reads no and off as false. Write none."),
        ({"method": "mask"}, "tiles.tissue.method: mask needs tiles.tissue.mask"),
        ({"method": "otsu", "mask": "a.png"}, "tiles.tissue.method: otsu, but tiles.tissue.mask is given"),
        ({"function": "no colon"}, "tiles.tissue.function: 'no colon' is not of the form module:function"),
        ({"ground": "grey"}, "tiles.tissue.ground: 'grey' is not one of auto, bright, dark"),
        ({"mask": "a.png", "ground": "dark"}, "tiles.tissue.ground: dark, but only the method otsu looks for a ground, and"),
        ({"method": "none", "ground": "bright"}, "tiles.tissue.ground: bright, but only the method otsu looks for a ground, and"),
        ({"min_fraction": 1.5}, "tiles.tissue.min_fraction: 1.5 is more than the largest allowed, 1"),
        ({"min_area_um2": -1}, "tiles.tissue.min_area_um2: -1 is less than the smallest allowed, 0"),
    ],
)
def test_other_tissue_is_refused(written, words):
    refused(words, tiles={"mpp": 1, "tissue": written})


@pytest.mark.parametrize(
    ("written", "spec"),
    [
        ("inline", {"kind": "inline"}),
        ("local", {"kind": "local"}),
        ("tcp://host:8786", {"kind": "address", "address": "tcp://host:8786"}),
        ("tls://10.0.0.1:1", {"kind": "address", "address": "tls://10.0.0.1:1"}),
        ("file:/a/scheduler.json", {"kind": "file", "path": "/a/scheduler.json"}),
        (
            {"class": "dask_jobqueue.SLURMCluster", "args": {"cores": 8}},
            {"kind": "class", "cls": "dask_jobqueue.SLURMCluster", "args": {"cores": 8}},
        ),
    ],
)
def test_scheduler_takes_its_documented_forms(written, spec):
    assert compute(scheduler=written).scheduler == SchedulerSpec(**spec)


@pytest.mark.parametrize("written", ["", "tcp://host", "file:", "http://host:1", 3, {"args": {}}, ["local"]])
def test_other_schedulers_are_refused_with_the_forms_that_are_taken(written):
    refused("is not one of inline, local, tcp://host:8786, tls://host:8786, file:scheduler.json, {class:", compute={"scheduler": written})


def test_scheduler_class_needs_a_dotted_name():
    refused("compute.scheduler.class: 'Cluster' is not of the form package.Class", compute={"scheduler": {"class": "Cluster"}})


def test_scheduler_kind_needs_what_goes_with_it():
    with pytest.raises(ValidationError, match="file goes with path, but given is nothing"):
        SchedulerSpec(kind="file")


def test_exactly_one_of_mpp_and_level():
    refused("tiles.mpp: missing. Write the resolution to work at: mpp: 0.5", tiles={"size": 224})
    refused("tiles.mpp: 0.5, but tiles.level is 0 as well", tiles={"mpp": 0.5, "level": 0})
    assert config(tiles={"mpp": None, "level": 1}).tiles.level == 1


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"slides": []}, "slides: empty; write a path, a glob"),
        ({"slides": None}, "slides: missing. Write what to read"),
        ({"slides": [3]}, "slides[0]: 3 is not text"),
        ({"output": ""}, "output.path: '' is empty"),
        ({"output": {"path": "o", "save": []}}, "output.save: [] is empty"),
        (
            {"output": {"path": "o", "save": ["tile"]}},
            "output.save[0]: 'tile' is not one of tiles, slide, windows, tokens; did you mean tiles?",
        ),
        ({"output": {"path": "o", "save": "tiles"}}, "output.save: 'tiles' is not a list"),
        ({"output": {"path": "o", "dtype": "float46"}}, "output.dtype: 'float46' is not one of float16, float32; did you mean float16?"),
        ({"tiles": {"mpp": 1, "size": "abc"}}, "tiles.size: 'abc' is not a whole number"),
        ({"tiles": {"mpp": 1, "size": 0}}, "tiles.size: 0 is less than the smallest allowed, 1"),
        ({"tiles": {"mpp": 1, "size": True}}, "tiles.size: true is not a whole number"),
        ({"tiles": {"mpp": 1, "size": "3"}}, "tiles.size: '3' is not a whole number"),
        ({"tiles": {"mpp": 1, "size": 1.0}}, "tiles.size: 1.0 is not a whole number"),
        ({"tiles": {"mpp": 1, "size": 10**20}}, "tiles.size: 100000000000000000000 is more than the largest allowed, 2147483647"),
        ({"tiles": {"mpp": 0}}, "tiles.mpp: 0 is not more than 0"),
        ({"tiles": {"mpp": float("nan")}}, "tiles.mpp: nan is not a finite number"),
        ({"tiles": {"mpp": True}}, "tiles.mpp: true is not a number"),
        ({"tiles": {"level": -1}}, "tiles.level: -1 is less than the smallest allowed, 0"),
        ({"tiles": {"mpp": 1, "edge": "padd"}}, "tiles.edge: 'padd' is not one of pad, drop; did you mean pad?"),
        ({"tiles": 3}, "tiles: 3 is not a mapping of keys"),
        ({"source": {"channels": [0, 1]}}, "source.channels: 2 channels, but it must be one (grey) or three"),
        ({"source": {"window": [5, 5]}}, "source.window: [5, 5] is empty; the first number must be below the second"),
        ({"source": {"window": [5]}}, "source.window: [5] is not two numbers"),
        ({"source": {"z": -1}}, "source.z: -1 is less than the smallest allowed, 0"),
        ({"encoder": {"args": {}}}, "encoder.name: missing. Write a model"),
        ({"encoder": {"name": "a", "args": {"x": object}}}, "encoder.args: holds something that is not plain data"),
        ({"encoder": {"name": "a", "allow_mismatch": "maybe"}}, "encoder.allow_mismatch: 'maybe' is not true or false"),
        ({"context": {"heads": 0}}, "context.heads: 0 is less than the smallest allowed, 1"),
        ({"pool": "maen"}, f"pool.name: 'maen' is not one of {', '.join(get_args(PoolName))}; did you mean mean?"),
        ({"pool": {"name": "mean", "weights": "w.pth"}}, "pool.weights: 'w.pth', but pool.name is mean, which has no weights"),
        ({"pool": "none", "output": {"path": "o", "save": ["tiles", "slide"]}}, "pool: none, but output.save asks for slide"),
        ({"compute": {"device": "gpu"}}, "compute.device: 'gpu' is not one of auto, cpu, cuda, cuda:N"),
        ({"compute": {"workers": 0}}, "compute.workers: 0 is neither auto nor a whole number of 1 or more"),
        ({"compute": {"threads": True}}, "compute.threads: true is neither auto nor a whole number"),
        ({"compute": {"compile": "yes"}}, "compute.compile: 'yes' is not one of auto, true, false"),
        ({"compute": {"memory_limit": "4 apples"}}, "compute.memory_limit: '4 apples' is not a size of memory"),
        ({"on_error": {"tile": "skip"}}, "on_error.tile: 'skip' is not one of nan, fail"),
    ],
)
def test_a_wrong_value_is_refused_by_key_value_and_what_is_allowed(sections, words):
    refused(words, **sections)


def test_no_pool_means_no_slide_vector():
    assert config(pool="none").output.save == ("tiles",)


def test_schema_describes_every_key_and_admits_the_shorthands():
    schema = config_schema()
    assert set(schema["properties"]) == set(Config.model_fields)
    assert "µm/px" in schema["$defs"]["Tiles"]["properties"]["mpp"]["description"]
    for name in ("Output", "Encoder", "Pool", "Tissue", "SchedulerSpec"):
        assert {"type": "string"} in schema["$defs"][name]["anyOf"]
    assert "class" in schema["$defs"]["SchedulerSpec"]["anyOf"][1]["properties"]
    json.dumps(schema)


def test_every_key_is_documented():
    parts = [Config, Head, *(type(getattr(config(context={}), name)) for name in Config.model_fields if name not in ("slides", "heads"))]
    assert [f"{part.__name__}.{name}" for part in parts for name, info in part.model_fields.items() if not info.description] == []


def test_config_imports_neither_torch_nor_zarr_nor_dask():
    code = "import sys, tilestream.config.load, tilestream.config.slide_list; print([m for m in ('torch', 'zarr', 'dask', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
