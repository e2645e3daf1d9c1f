"""Places that cannot be read or written: each command names the place, why, and the way out, and shows nothing of its inside."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.images import make_image, write_pyramid
from tests.support.needs import without
from tests.support.runs import config, embed

DROPPED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
"""Takes from root the right to pass over other rights, so that root is refused what anybody is."""


def command(*words, folder):
    """Exit code and standard error of a command of somebody who may not do what the modes of files forbid."""
    plain = [] if os.geteuid() else DROPPED
    if plain and shutil.which("setpriv") is None:
        without("no setpriv, and root is refused nothing")
    told = subprocess.run(
        [*plain, sys.executable, "-m", "tilestream", *map(str, words)], cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )  # fmt: skip
    return told.returncode, told.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A slide, its config, an output, and places of every kind that refuse."""
    place = tmp_path_factory.mktemp("places")
    (place / "slides").mkdir()
    image = write_pyramid(place / "slides" / "a.tif", make_image(300, 400, seed=1), levels=1)
    (place / "config.yaml").write_text(json.dumps(config(image, place / "unused")))
    embed(image, place / "out")
    (place / "link").symlink_to(place / "nowhere")
    for name, mode in (("sealed", 0o000), ("kept", 0o555)):
        (place / name).mkdir()
        (place / name).chmod(mode)
    yield place
    for name in ("sealed", "kept"):
        (place / name).chmod(0o755)


PLACES = {
    "kept/out": "kept",
    "sealed": "sealed",
    "sealed/out": "sealed",
    "link": "link",
    "slides/a.tif": "a.tif",
    "slides/a.tif/out": "a.tif",
    "x" * 300: "x" * 300,
}
"""Where something is to be written, and the name that tells why it cannot be."""


def refused(told, *words):
    code, errors = told
    assert code == 2, errors
    assert "Traceback" not in errors
    assert all(word in errors for word in words), errors
    last = errors.splitlines()[-1]
    assert last.startswith("tilestream: ")
    assert last.endswith(".")


@pytest.mark.slow
@pytest.mark.parametrize(("place", "named"), PLACES.items())
@pytest.mark.parametrize(
    "words",
    [
        ("run", "config.yaml", "--set", "output={}"),
        ("export", "out", "--to", "csv", "--out", "{}/x.csv"),
        ("report", "out", "--to", "{}/x.html"),
        ("init", "slides", "--out", "{}/x.yaml"),
    ],
    ids=lambda words: words[0],
)
def test_a_place_that_cannot_be_written_is_refused_by_name(folder, words, place, named):
    if place == "link" and words[0] != "run":
        place = "link/x"
    refused(command(*(word.format(place) for word in words), folder=folder), named)
    assert not any((folder / "kept").iterdir())
    assert not (folder / "nowhere").exists()


@pytest.mark.slow
def test_an_output_is_refused_before_anything_is_loaded(folder):
    _, errors = command("run", "config.yaml", "--set", "output=kept/out", folder=folder)
    assert errors.count("\n") == 1, errors


@pytest.mark.slow
@pytest.mark.parametrize("slides", ["sealed", "sealed/*.tif"])
def test_a_folder_of_slides_that_cannot_be_looked_into_is_said_to_be_one(folder, slides):
    refused(command("plan", "config.yaml", "--set", f"slides={slides}", folder=folder), "sealed")
    refused(command("init", slides, "--out", "x.yaml", folder=folder), "sealed")
