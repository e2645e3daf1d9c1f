"""Each command as a person types it: what it prints, and its exit code."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config
from tilestream.cli import main
from tilestream.config.load import load_config
from tilestream.config.slide_list import list_slides
from tilestream.store.folder import Folder
from tilestream.store.lock import Claims


def command(capsys, *arguments):
    """Exit code, standard output and standard error of a command, run in this process."""
    with pytest.raises(SystemExit) as left:  # the code is looked at
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return left.value.code, out, err


@pytest.fixture
def image_path(tmp_path):
    write_pyramid(tmp_path / "a.tif", make_image(700, 900, seed=1), compression="jpeg", levels=2, mpp=0.5)
    return tmp_path / "a.tif"


@pytest.fixture
def config_path(tmp_path, image_path):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config(image_path, tmp_path / "out")))
    return path


def test_the_version_is_printed(capsys):
    assert command(capsys, "--version") == (0, f"tilestream {tilestream.__version__}\n", "")


def test_run_prints_a_summary_and_ends_with_0(capsys, config_path, tmp_path):
    code, out, err = command(capsys, "run", config_path)
    assert code == 0
    assert "20 in the output, 20 embedded by this run\n" in re.sub(" +\n", "\n", out)
    assert all(
        word in out
        for word in (
            "slides",
            "tiles/s",
            "computing",
            "reading",
            "writing",
            "peak",
            "projected",
            "next:",
            "tilestream view",
            "overview.png",
            str(tmp_path / "out"),
        )
    )
    assert "a: done, 20 of 20 tiles" in err


def test_a_rerun_says_that_it_was_done_already(capsys, config_path):
    command(capsys, "run", config_path)
    code, out, err = command(capsys, "run", config_path)
    assert code == 0
    assert "1 already done" in out
    assert "already done" in err


def test_json_lines_and_a_json_summary_for_machines(capsys, config_path):
    code, out, err = command(capsys, "run", config_path, "--log-format", "json")
    events = [json.loads(line) for line in err.splitlines()]
    assert code == 0
    assert {e["event"] for e in events} == {"message", "shard", "slide"}
    assert json.loads(out)["tiles"] == 20


def test_untrained_weights_are_announced_once_in_plain_words(capsys, config_path):
    code, _, err = command(
        capsys, "run", config_path, "--set", "encoder=vit_tiny_patch16_224", "--set", "output.path=" + str(config_path.parent / "v")
    )
    assert code == 0
    assert err.count("random, untrained weights") == 1


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        (["tiles.sise=224"], 2, ["tiles.sise", "did you mean tiles.size?"]),
        (["tiles.size=-1", "compute.shard_tiles=0", "pool=meen"], 2, ["tiles.size", "compute.shard_tiles", "pool"]),
        (["tiles.mpp=0.5"], 2, ["tiles.mpp", "tiles.level"]),
        (["source.icc=maybe"], 2, ["source.icc", "maybe"]),
        (["encoder=vit_tinny_patch16_224"], 2, ["encoder.name", "Did you mean vit_tiny_patch16_224?"]),
        (["encoder=tests.support.encoders:trained"], 2, ["tiles.size: 224", "256", "encoder.allow_mismatch"]),
        (
            ["encoder=tests.support.encoders:trained", "tiles.size=256", "tiles.level=null", "tiles.mpp=1.0"],
            2,
            ["tiles.mpp: 1", "0.5", "encoder.allow_mismatch"],
        ),
        (
            ["encoder=tests.support.encoders:trained", "tiles.size=256", "tiles.level=1"],
            3,
            ["level 1: 1 ", "trained at 0.5", "encoder.allow_mismatch"],
        ),
        (["encoder=tests.support.encoders:no_module"], 2, ["encoder.name", "torch.nn.Module"]),
        (["encoder=tests.support.encoders:wrong_dim"], 2, ["says dim 4", "(3,)"]),
        (["compute.memory_limit=64MiB"], 2, ["compute.memory_limit", "the limit is 64 MiB", "needs"]),
        (["source.decode=gpu"], 2, ["source.decode: gpu", "compute.device is cpu"]),
        (["compute.device=cuda:7"], 2, ["compute.device: cuda:7"]),
        (["slides=nothing/*.svs"], 2, ["nothing/*.svs"]),
        (["slides=missing.svs"], 3, ["missing.svs", "no such file"]),
        (["tiles.level=5"], 3, ["tiles.level: 5, but a has levels 0 to 1"]),
        (["tiles.level=null", "tiles.mpp=0.25"], 3, ["tiles.mpp is 0.25", "finest level has 0.5", "Set tiles.mpp to 0.5"]),
        (["context={window: 4, depth: 2, heads: 2}"], 2, ["context.heads: 2", "3"]),
    ],
)
def test_a_refusal_says_what_is_wrong_and_ends_with_its_code(capsys, config_path, settings, code, words):
    seen, out, err = command(capsys, "run", config_path, *(part for s in settings for part in ("--set", s)))
    assert seen == code, err
    assert all(word in err + out for word in words), err + out
    assert "Traceback" not in err


def test_an_image_without_resolution_is_told_what_to_write(capsys, tmp_path):
    tifffile.imwrite(tmp_path / "bare.tif", make_image(300, 300, seed=1), photometric="rgb", tile=(256, 256))
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(config(tmp_path / "bare.tif", tmp_path / "out", tiles={"level": None, "mpp": 0.5})))
    code, _, err = command(capsys, "run", path)
    assert code == 3
    assert "states no resolution to rely on" in err
    assert "source: {mpp: 0.25}" in err
    assert command(capsys, "run", path, "--set", "source.mpp=0.5")[0] == 0
    told = tilestream.open(tmp_path / "out" / "bare.zarr").source
    assert (told["mpp"], told["mpp_source"]) == (0.5, "config")


@pytest.mark.parametrize("dpi", [None, 300])
def test_inspect_says_one_thing_about_a_resolution_that_is_none(capsys, tmp_path, dpi):
    given = {} if dpi is None else {"resolution": (dpi, dpi), "resolutionunit": "INCH"}
    tifffile.imwrite(tmp_path / "a.tif", make_image(300, 300, seed=1), photometric="rgb", tile=(256, 256), **given)
    code, out, _ = command(capsys, "inspect", tmp_path / "a.tif")
    assert code == 0
    assert "resolution unknown: the file states none to rely on." in out
    assert "does not say" not in out
    assert ("300 dpi) is a placeholder" in out) == (dpi is not None)


def test_an_unreadable_file_is_refused_and_skip_goes_on(capsys, config_path, slides):
    both = f"slides=[{slides / 'unopenable.tiff'}, {config_path.parent / 'a.tif'}]"
    code, out, _ = command(capsys, "run", config_path, "--set", both)
    assert code == 4
    assert "unopenable" in out
    code, _, err = command(capsys, "run", config_path, "--set", both, "--set", "on_error.slide=fail")
    assert code == 3
    assert "unopenable" in err


def test_another_recipe_is_refused_and_the_field_named(capsys, config_path):
    command(capsys, "run", config_path)
    code, _, err = command(capsys, "run", config_path, "--set", "tiles.stride=112")
    assert code == 6
    assert "tiles.stride was" in err
    assert "is now 112" in err
    assert "--restart" in err
    assert command(capsys, "run", config_path, "--set", "tiles.stride=112", "--restart")[0] == 0


def test_other_bytes_under_the_same_name_are_refused(capsys, config_path):
    command(capsys, "run", config_path)
    write_pyramid(config_path.parent / "a.tif", make_image(700, 900, seed=2), compression="jpeg", levels=2, mpp=0.5)
    code, _, err = command(capsys, "run", config_path)
    assert code == 6
    assert "source.fingerprint" in err


def test_an_output_in_use_is_refused_and_a_dead_owner_is_not_waited_for(capsys, config_path):
    output = config_path.parent / "out"
    (slide,) = (ref.id for ref in list_slides(load_config(config_path).slides))
    with Claims(Folder(str(output))) as another:
        assert another.take(slide) == ""
        code, _, err = command(capsys, "run", config_path)
    assert code == 6
    assert f"process {os.getpid()} on {platform.node()}" in err
    left = output / ".tilestream" / "claims" / f"{slide}.json"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_text(json.dumps({"host": platform.node(), "pid": 2**22 - 1, "since": "2026-01-01T00:00:00+00:00"}))
    assert command(capsys, "run", config_path)[0] == 0


def test_a_failed_tile_ends_the_slide_where_the_config_says_so(capsys, config_path, slides):
    arguments = ("run", config_path, "--set", f"slides={slides / 'badtile.svs'}")
    assert command(capsys, *arguments, "--set", "on_error.tile=fail")[0] == 3
    assert command(capsys, *arguments, "--restart")[0] == 4


def test_plan_tells_sizes_and_writes_nothing(capsys, config_path, tmp_path):
    code, out, _ = command(capsys, "plan", config_path)
    assert code == 0
    assert all(word in out for word in ("700 x 900", "20 of 20", "level 0", "GiB a worker"))
    assert not (tmp_path / "out").exists()


def test_plan_refuses_as_run_does(capsys, config_path):
    code, _, err = command(capsys, "plan", config_path, "--set", "compute.memory_limit=64MiB")
    assert code == 2
    assert "the limit is 64 MiB" in err
    code, out, _ = command(capsys, "plan", config_path, "--set", "tiles.level=5")
    assert code == 3
    assert "levels 0 to 1" in out


def test_inspect_says_which_backend_and_why(capsys, slides):
    code, out, _ = command(capsys, "inspect", slides / "CMU-1-Small-Region.svs")
    assert code == 0
    assert all(word in out for word in ("opened by tiff", "240", "2967 x 2220", "0.499", "aperio", "jpeg", "tiles: {size: 224, mpp: 0.5}"))
    code, out, _ = command(capsys, "inspect", slides / "CMU-1-Small-Region.svs", "--json")
    assert json.loads(out)["levels"][0]["downsample"] == 1


def test_what_a_file_says_of_itself_is_shown_on_a_line_and_commands_no_terminal(capsys, tmp_path):
    words = "first\r\nsecond \x1b[31mred\x07\x1b]0;title\x07"
    tifffile.imwrite(tmp_path / "a.tif", make_image(300, 400, seed=1), tile=(128, 128), photometric="rgb", description=words)
    code, out, _ = command(capsys, "inspect", tmp_path / "a.tif")
    assert code == 0
    assert re.search(r"^  tiff\.description: first second \[31mred \]0;title$", out, re.MULTILINE)
    assert all(sign.isprintable() or sign == "\n" for sign in out)
    assert words in json.loads(command(capsys, "inspect", tmp_path / "a.tif", "--json")[1])["properties"]["tiff.description"]


def test_verify_finds_what_was_damaged(capsys, config_path, tmp_path):
    command(capsys, "run", config_path)
    assert command(capsys, "verify", tmp_path / "out")[0] == 0
    shard = tmp_path / "out" / "a.zarr" / "tables" / "tiles" / "X" / "c" / "0" / "0"
    raw = bytearray(shard.read_bytes())
    raw[10] ^= 1
    shard.write_bytes(raw)
    code, out, _ = command(capsys, "verify", tmp_path / "out")
    assert code == 4
    assert "tables/tiles/X/c/0/0: bytes differ" in out
    shard.unlink()
    assert "tables/tiles/X/c/0/0: missing" in command(capsys, "verify", tmp_path / "out" / "a.zarr")[1]
    assert command(capsys, "verify", tmp_path)[0] == 3


def test_tables_and_schema_are_machine_readable(capsys):
    code, out, _ = command(capsys, "encoders", "--json")
    assert code == 0
    assert {"vit_tiny_patch16_224", "patch_embed"} <= {row["name"] for row in json.loads(out)}
    assert "vit_tiny_patch16_224" in command(capsys, "encoders")[1]
    assert {"slides", "tiles", "encoder"} <= set(json.loads(command(capsys, "schema")[1])["properties"])


def test_doctor_finds_this_machine_sound(capsys):
    code, out, _ = command(capsys, "doctor")
    assert code == 0
    assert all(word in out for word in ("python", "torch", "openslide", "jpeg", "zarr", "disk"))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [((), 2), (("--help",), 0), (("run",), 2), (("walk",), 2), (("run", "none.yaml"), 2), (("run", "x.yaml", "--shard", "3/2"), 2)],
)
def test_a_wrong_command_ends_with_2(capsys, arguments, code):
    assert command(capsys, *arguments)[0] == code


@pytest.mark.parametrize("word", ["poool", "heads:", "contexts", "heads:A b"])
def test_a_stage_that_is_none_is_named_beside_those_that_are(capsys, config_path, word):
    for words in (("--restart", word), ("--restart", word, config_path), (config_path, "--restart", word)):
        assert command(capsys, "run", *words) == (
            2, "", f"tilestream: --restart: {word!r} is none of all, tiles, context, windows, pool, heads, heads:NAME.\n",
        )  # fmt: skip


def test_examples_in_the_help_of_a_command_are_of_its_own_config(capsys):
    from tilestream.config.fit_schema import FitConfig
    from tilestream.config.load import _known_keys
    from tilestream.config.schema import Config

    for name, root in (("run", Config), ("plan", Config), ("fit", FitConfig)):
        told = re.sub(r"[\s│]+", " ", command(capsys, name, "--help")[1])
        assert re.search(r"Override a setting, e\.g\. ([\w.]+)=", told)[1] in _known_keys(root)


def test_the_module_runs_as_the_script_does(config_path):
    done = subprocess.run([sys.executable, "-m", "tilestream", "run", str(config_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_script_finds_an_encoder_in_the_folder_it_is_called_from_as_the_module_does(config_path, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nclass Mean(torch.nn.Module):\n    dim = 3\n    def forward(self, x): return x.float().mean((2, 3))\n"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tilestream").write_text("from tilestream.__main__ import leave\nleave()\n")
    run = ["run", str(config_path), "--set", "encoder=mine:Mean"]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "bin" / "tilestream"), *run], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_an_interrupted_run_ends_with_5_and_resumes(tmp_path, number):
    tifffile.imwrite(
        tmp_path / "big.tif", np.tile(make_image(512, 512, seed=1), (7, 7, 1)), photometric="rgb", tile=(256, 256), compression="jpeg"
    )
    given = config(tmp_path / "big.tif", tmp_path / "out", encoder="vit_tiny_patch16_224", compute={"shard_tiles": 16, "batch_size": 8})
    (tmp_path / "c.yaml").write_text(json.dumps(given))
    # A shell starts background jobs with SIGINT ignored, and children inherit that: this one must hear it.
    process = subprocess.Popen(
        [sys.executable, "-m", "tilestream", "run", str(tmp_path / "c.yaml"), "--log-format", "json"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # nothing but this runs before exec
    )
    for line in process.stderr:
        if json.loads(line)["event"] == "shard":
            break
    start = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    assert time.monotonic() - start < 30
    assert "resumes" in err
    ledger = tmp_path / "out" / "big.zarr" / ".tilestream" / "shards"
    kept = len(list(ledger.iterdir()))
    assert 1 <= kept < 16
    aside = sum(int(path.name.split("-")[1]) for path in (ledger.parent / "aside").glob("*"))
    summary = tilestream.run(given)
    assert summary.exit_code == 0
    assert summary.new_tiles == 256 - 16 * kept - aside


def test_a_slide_that_is_refused_leaves_no_store(capsys, config_path):
    assert command(capsys, "run", config_path, "--set", "tiles.level=7")[0] == 3
    assert not list((config_path.parent / "out").glob("*.zarr"))
