"""What a command does not need it does not import: nobody waits for torch to read that a config has a typo."""

import json
import subprocess
import sys

import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config

HEAVY = ("torch", "distributed", "dask", "anndata", "skimage", "scipy", "zarr", "sympy")

TELL = f"""
import atexit, sys
atexit.register(lambda: print("imported:", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr))
from tilestream.__main__ import leave
leave()
"""

BARE = {
    "help": ["--help"],
    "version": ["--version"],
    "schema": ["schema"],
    "encoders": ["encoders"],
    "encoders as JSON": ["encoders", "--json"],
}
BAD = {"run": ["run"], "run over again": ["run", "--restart"], "plan": ["plan"]}


def start(*arguments):
    """Exit code of a command in a fresh interpreter, what it printed, and the heavy libraries that it imported."""
    done = subprocess.run([sys.executable, "-c", TELL, *map(str, arguments)], capture_output=True, text=True, check=False)
    said, _, imported = done.stderr.rpartition("imported:")
    return done.returncode, done.stdout + said, set(imported.split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with an image, a config and its finished output."""
    folder = tmp_path_factory.mktemp("finished")
    write_pyramid(folder / "a.tif", make_image(300, 400, seed=1), compression="jpeg", levels=2, mpp=0.5)
    chosen = config(
        folder / "a.tif", folder / "out", encoder="patch_embed", context={"window": 4, "depth": 1, "heads": 3}, pool="mean",
        windows={"sides": [4]}, compute={"scheduler": "local"},
    )  # fmt: skip
    chosen["output"]["save"] = ["tiles", "slide", "windows"]
    (folder / "config.yaml").write_text(json.dumps(chosen))
    done = tilestream.run({**chosen, "compute": {"scheduler": "inline"}})
    assert done.exit_code == 0
    return folder


@pytest.mark.parametrize("arguments", BARE.values(), ids=BARE)
def test_what_speaks_of_no_data_imports_nothing_heavy(arguments):
    code, said, imported = start(*arguments)
    assert (code, imported) == (0, set())
    assert said


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD)
def test_a_typo_in_the_config_is_told_before_anything_heavy_is_imported(tmp_path, arguments):
    (tmp_path / "bad.yaml").write_text("slides: a.tif\noutput: out\ntiles: {siez: 224, mpp: 0.5}\nencoder: patch_embed\n")
    code, said, imported = start(arguments[0], tmp_path / "bad.yaml", *arguments[1:])
    assert (code, imported) == (2, set())
    assert "siez" in said


COMMANDS = {
    "idle run": (["run", "{}/config.yaml"], "nothing to do"),
    "verify": (["verify", "{}/out"], ""),
    "report": (["report", "{}/out", "--force"], "report.html"),
    "export": (["export", "{}/out", "--to", "csv", "--force"], "csv"),
    "inspect": (["inspect", "{}/a.tif"], "tiff"),
}


@pytest.mark.parametrize(("arguments", "words"), COMMANDS.values(), ids=COMMANDS)
def test_what_computes_nothing_imports_no_torch_and_starts_no_cluster(finished, arguments, words):
    code, said, imported = start(*(word.format(finished) for word in arguments))
    assert code == 0, said
    assert words in said
    assert imported & {"torch", "distributed", "dask", "anndata"} == set()


def test_a_run_in_its_own_process_imports_no_cluster_and_no_tables(finished, tmp_path):
    code, said, imported = start("run", finished / "config.yaml", "--set", f"output={tmp_path / 'other'}", "--set", "compute.device=cpu")
    assert code == 0, said
    assert imported & {"distributed", "dask", "anndata", "skimage", "sympy"} == set()


def test_a_plan_with_an_encoder_of_ours_builds_none(finished):
    ours = ["--set", "encoder=tilestream-lite", "--set", "context=null", "--set", "compute.device=cpu"]
    code, said, imported = start("plan", finished / "config.yaml", *ours, "--set", "output.save=[tiles]", "--set", "tiles.tissue=otsu")
    assert code == 0, said
    assert "tilestream-lite, 688 dims" in said
    assert imported & {"torch", "distributed", "dask", "anndata", "skimage", "sympy"} == set()


def test_a_plan_says_that_an_encoder_had_to_be_built(finished):
    code, said, imported = start("plan", finished / "config.yaml")
    assert code == 0, said
    assert "The encoder was loaded to know this" in " ".join(said.split())
    assert "torch" in imported
