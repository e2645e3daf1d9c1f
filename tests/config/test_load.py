"""Config files: lines in every problem, all problems at once, YAML without surprises, and `--set`."""

from typing import get_args

import pytest

from tilestream.config.fit_schema import FitConfig
from tilestream.config.load import load_config, load_section
from tilestream.config.vectors.pool import PoolName
from tilestream.errors import ConfigError

LEAST = "slides: a.svs\noutput: out\ntiles: {mpp: 0.5}\nencoder: patch_embed\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_config(text):
        (tmp_path / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "config.yaml"

    return write_config


def problems(path, overrides=()):
    with pytest.raises(ConfigError, match=r"\w") as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


def test_all_problems_come_at_once_each_with_line_key_value_and_way_out(write):
    text = "slides: a.svs\noutput: out\ntiles:\n  sise: 3\n  size: abc\n  mpp: 0\nencodr: x\npool: maen\npool: max\n"
    assert problems(write(text)) == [
        "config.yaml:9: pool: written twice, first at config.yaml:8. Remove one.",
        "config.yaml:5: tiles.size: 'abc' is not a whole number.",
        "config.yaml:6: tiles.mpp: 0 is not more than 0.",
        "config.yaml:4: tiles.sise: unknown key; did you mean tiles.size?",
        "config.yaml: encoder: missing. Write a model, e.g. encoder: tilestream-lite.",
        f"config.yaml:8: pool.name: 'maen' is not one of {', '.join(get_args(PoolName))}; did you mean mean?",
        "config.yaml:7: encodr: unknown key; did you mean encoder?",
    ]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("mpp: 0.5", "mpp: unknown key; did you mean source.mpp or tiles.mpp?"),
        ("shard_tile: 3", "shard_tile: unknown key; did you mean compute.shard_tiles?"),
        ("compute: {shard_tile: 3}", "compute.shard_tile: unknown key; did you mean compute.shard_tiles?"),
        ("context: {depht: null}", "context.depht: unknown key; did you mean context.depth?"),
        ("save_dir: out", "save_dir: unknown key; you may mean output."),
        ("patch_level: 0", "patch_level: unknown key; you may mean tiles.level."),
        ("windows: {nothing_like_it: 1}", "windows.nothing_like_it: unknown key; known here are sides, pool, weights."),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(write, key, words):
    assert problems(write(f"{LEAST}{key}\n")) == [f"config.yaml:5: {words}"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "config.yaml: is empty, but a config is a mapping of keys: slides, output"),
        ("- a\n", r"config.yaml: holds \['a'\], but a config is a mapping"),
        ("slides: *.svs\n", r"config.yaml:1: not valid YAML: .* Put quotes round a text that begins with \*\."),
        ("slides: &a x\noutput: *a\n", "config.yaml:2: not valid YAML: aliases are not taken; write the value out"),
        ("tiles:\n\tmpp: 1\n", "config.yaml:2: not valid YAML: .* Indent with spaces"),
        ('slides: "C:\\slides"\n', "config.yaml:1: not valid YAML: .* Put single quotes round a text with backslashes"),
        ("a: b: c\n", "config.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2\n", "config.yaml:2: not valid YAML: a second document begins here"),
        ("---\na: 1\n...\n---\n", "config.yaml:4: not valid YAML: a second document begins here"),
        ("[" * 5000, "config.yaml:1: not valid YAML: more than 50 levels"),
        ("slides: [" + "1," * 30_000 + "]", "config.yaml:1: not valid YAML: more than 50 levels or 20000 values"),
        ("a: \0\n", "config.yaml: not valid YAML: a character that is not text, number 3"),
        ('a: "\\U00110000"\n', r"config.yaml: not valid YAML: chr\(\) arg not in range"),
        (b"a: \xff\n", r"config.yaml: is not UTF-8 text \(byte 3\)"),
        (b"# " + b"x" * 2**20, "config.yaml is larger than 1024 KiB, so it is something else"),
        (f"{LEAST}pool: !!python/object:os.system x\n", "config.yaml:5: pool: the tag !!python/object:os.system is not taken"),
        (f"{LEAST}pool: !secret x\n", "config.yaml:5: pool: the tag !secret is not taken"),
        (f"{LEAST}1: x\n", "config.yaml:5: 1: unknown key"),
        (f"{LEAST}? [a]\n: x\n", "config.yaml:5: a list, mapping or tag is not a key"),
        (f"{LEAST}source: {{z: {'9' * 5000}}}\n", "config.yaml:5: source.z: '9+.* cannot be read as int"),
        (f"{LEAST}<<: {{pool: max}}\n", "config.yaml:5: <<: unknown key"),
    ],
)
def test_yaml_that_is_no_plain_config_is_refused(write, text, words):
    with pytest.raises(ConfigError, match=words):
        load_config(write(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slides: 3", "slides: 3 is not a path, a glob or a list of them."),
        ("output: [a]", "output: ['a'] is not a folder, as in output: embeddings."),
        ("tiles: 224", "tiles: 224 is not a mapping of keys, as in tiles: {size: 224, mpp: 0.5}."),
        ("encoder: 5", "encoder: 5 is not the name of a model, as in encoder: tilestream-lite."),
        ("compute: fast", "compute: 'fast' is not a mapping of keys."),
        ("context: [no, 1]", "context: [false, 1] is not a mapping of keys, as in context: {window: 8, depth: 4}."),
        ("compute: [{a: [yes, null]}]", "compute: [{a: [true, null]}] is not a mapping of keys."),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_what_belongs_there(write, text, words):
    assert f"config.yaml:1: {words}" in problems(write(f"{text}\n"))


POOLS = "is not a pool, as in pool: mean, pool: [mean, max] or pool: {name: mean}."
NAMELESS = "in a list does not say which pool it is. Write its name, or leave it out."
NO = "false is not taken; YAML reads no and off as false. Leave it out of the list."


@pytest.mark.parametrize(
    ("pools", "line", "words"),
    [
        ("[mean, no]", 5, f"pool[1]: {NO}"),
        ("[no, mean]", 5, f"pool[0]: {NO}"),
        ("[mean, max, off]", 5, f"pool[2]: {NO}"),
        ("[mean, 3]", 5, f"pool[1]: 3 {POOLS}"),
        ("[[max], mean]", 5, f"pool[0]: ['max'] {POOLS}"),
        ("\n- mean\n- [max]\n", 7, f"pool[1]: ['max'] {POOLS}"),
        ("\n- {nam: max}\n- mean\n", 6, "pool[0].nam: unknown key; did you mean pool.name?"),
        ("\n- mean\n- as: a\n  nam: max\n", 8, "pool[1].nam: unknown key; did you mean pool.name?"),
        ("[mean, {}]", 5, f"pool[1]: {{}} {NAMELESS}"),
        ("[{}]", 5, f"pool[0]: {{}} {NAMELESS}"),
        ("[{name: null}, max]", 5, f"pool[0]: {{name: null}} {NAMELESS}"),
        ("\n- mean\n- max\n- as: b\n", 8, f"pool[2]: {{as: 'b'}} {NAMELESS}"),
        ("{name: max, beside: [{}]}", 5, f"pool.beside[0]: {{}} {NAMELESS}"),
        ("[mean, max, mean]", 5, "pool[0]: mean stands in the list twice. Leave one out, or give one a name by `as`."),
        ("[max, max]", 5, "pool[0]: max stands in the list twice. Leave one out, or give one a name by `as`."),
        ("[3, max, 3]", 5, f"pool[0]: 3 {POOLS}"),
        ("[mean, none]", 5, "pool: none stands among other pools. Leave it out."),
        ("yes", 5, f"pool: true {POOLS}"),
    ],
)
def test_a_pool_of_a_list_is_told_by_its_place_in_the_file(write, pools, line, words):
    assert problems(write(f"{LEAST}pool: {pools}\n")) == [f"config.yaml:{line}: {words}"]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("size: 1e3", "size: 1000.0 is not a whole number as written; write 1000."),
        (
            "size: 0224",
            "size: '0224' is not a whole number but text; write a number in plain digits, without quotes, prefixes or zeros in front.",
        ),
        (
            "size: 0xe0",
            "size: '0xe0' is not a whole number but text; write a number in plain digits, without quotes, prefixes or zeros in front.",
        ),
        (
            "size: '224'",
            "size: '224' is not a whole number but text; write a number in plain digits, without quotes, prefixes or zeros in front.",
        ),
        (
            "mpp_tolerance: '.5'",
            "mpp_tolerance: '.5' is not a number but text; write a number in plain digits, without quotes, prefixes or zeros in front.",
        ),
        ("mpp_tolerance: 0,5", "mpp_tolerance: '0,5' is not a number but text; decimals take a point, as in 0.5."),
        ("tissue: {min_fraction: 0,5}", "tissue.5: unknown key; decimals take a point, and a comma between braces ends a value."),
        ("size: 1.5", "size: 1.5 is not a whole number."),
        ("size: 1.2.3", "size: '1.2.3' is not a whole number."),
    ],
)
def test_what_is_meant_as_a_number_says_how_numbers_are_written(write, written, words):
    text = LEAST.replace("tiles: {mpp: 0.5}", f"tiles:\n  mpp: 0.5\n  {written}")
    assert problems(write(text)) == [f"config.yaml:5: tiles.{words}"]


def test_a_config_of_the_other_command_is_said_to_be_one(write):
    fit = "embeddings: out\ntarget: {slides: a.csv}\nhead: {name: a}\nsave: a.safetensors\n"
    assert problems(write(fit)) == [
        "config.yaml: is a config of fit, by its keys embeddings, target, head, save. Give it to `tilestream fit`."
    ]
    with pytest.raises(ConfigError, match=r"is a config of run, by its keys slides, output, tiles, encoder\. Give it to `tilestream run`"):
        load_section(FitConfig, write(LEAST))
    assert "slides: missing" in problems(write("head: {name: a}\noutput: out\n"))[0]


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*none\.yaml\. Give the path of a config"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_plain_words_mean_what_they_look_like(write):
    text = (
        LEAST.replace("0.5", "5e-1") + "encoder: {name: a, args: {date: 2024-01-01, time: 12:30, on: yes, big: 1_000, x: .5, code: 007}}\n"
    )
    config = load_config(write(text.replace("encoder: patch_embed\n", "")))
    assert config.tiles.mpp == 0.5
    assert config.encoder.args == {"date": "2024-01-01", "time": "12:30", "on": True, "big": 1000, "x": 0.5, "code": "007"}


def test_a_byte_order_mark_is_no_part_of_the_first_key(write):
    assert load_config(write(b"\xef\xbb\xbf" + LEAST.encode())).slides == ("a.svs",)


def test_an_empty_section_means_its_defaults(write):
    config = load_config(write(f"{LEAST}source:\ncontext:\n"))
    assert (config.source.backend, config.context) == ("auto", None)


def test_set_goes_before_the_file(write):
    path = write(f"{LEAST}context: {{depth: 2}}\n")
    config = load_config(
        path,
        ["tiles.mpp=null", "tiles.level=0", "slides=*.svs", "encoder.args.patch=8", "context=null", "pool.name=max", "compute.device=cpu"],
    )
    assert (config.tiles.mpp, config.tiles.level, config.slides, config.context) == (None, 0, ("*.svs",), None)
    assert (config.encoder.name, config.encoder.args, config.pool.name, config.compute.device) == (
        "patch_embed",
        {"patch": 8},
        "max",
        "cpu",
    )
    assert load_config(config, ["tiles.size=96", "tiles.stride=null"]).tiles.stride == 96


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("tiles", "--set tiles: not of the form key=value, e.g. --set tiles.mpp=0.5."),
        (".mpp=1", "--set .mpp=1: not of the form key=value, e.g. --set tiles.mpp=0.5."),
        ("tiles.sise=1", "--set tiles.sise=1: tiles.sise: unknown key; did you mean tiles.size?"),
        ("tiles.size=1.5", "--set tiles.size=1.5: tiles.size: 1.5 is not a whole number."),
        (
            "x.y=1",
            "--set x.y=1: x: unknown key; known here are slides, output, source, tiles, encoder, context, pool, windows, heads, compute, on_error.",
        ),
        ("slides.x=1", "--set slides.x=1: slides is 'a.svs', which has no keys below it."),
        ("pool=[", "--set pool=[: not valid YAML: expected the node content, but found '<stream end>'."),
        ("pool=!x y", "--set pool=!x y: the tag !x is not taken; write a plain value."),
    ],
)
def test_a_wrong_setting_is_refused_by_its_text(write, setting, words):
    assert problems(write(LEAST), [setting]) == [words]


def test_setting_level_beside_mpp_says_how_to_remove_mpp(write):
    assert "--set tiles.mpp=null" in problems(write(LEAST), ["tiles.level=0"])[0]


def test_overrides_leave_the_given_mapping_alone():
    raw = {"slides": "a.svs", "output": "out", "tiles": {"mpp": 0.5}, "encoder": "patch_embed"}
    made = load_config(raw, ["tiles.mpp=1", "encoder.weights=w"])
    assert (made.tiles.mpp, made.encoder.name, made.encoder.weights) == (1, "patch_embed", "w")
    assert raw == {"slides": "a.svs", "output": "out", "tiles": {"mpp": 0.5}, "encoder": "patch_embed"}
    with pytest.raises(ConfigError, match="--set foo: not of the form key=value"):
        load_config(raw, ["foo"])
