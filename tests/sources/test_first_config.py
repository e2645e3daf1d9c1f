"""`init` looks at what lies there, and what it writes runs as it stands."""

import json
import re

import pytest
import tifffile
import yaml

from tests.support.images import make_image, write_svs
from tilestream.cli import main
from tilestream.config.load import load_config
from tilestream.errors import ConfigError
from tilestream.sources.facts.first_config import write_first_config


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Slides at 0.25 and 0.5 µm/px, one that is damaged, and what is no slide."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").mkdir()
    for name, mpp in (("fine", 0.25), ("coarse", 0.5)):
        write_svs(tmp_path / "slides" / f"{name}.svs", make_image(600, 700, seed=1), mpp=mpp)
    (tmp_path / "slides" / "broken.svs").write_bytes(b"no image")
    (tmp_path / "slides" / "notes.txt").write_text("no slide")
    return tmp_path


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def test_the_config_runs_as_it_stands_and_refuses_what_init_said(folder, capsys):
    assert command("init", "slides", "--output", "out") == 0
    said = capsys.readouterr().out
    assert "2 images can be read: 2 aperio" in said
    assert re.search("broken: will be refused: .*no backend reads it", said)
    config = load_config(folder / "config.yaml", [])
    assert (config.tiles.mpp, config.tiles.level, config.tiles.tissue.method, config.encoder.name) == (0.5, None, "otsu", "tilestream-lite")
    assert command("run", "config.yaml", "--set", "encoder=patch_embed", "--set", "compute.scheduler=inline", "--set", "pool=none") == 4
    printed = capsys.readouterr()
    assert "2 done, 1 refused" in printed.out
    assert re.search(r"next: +(python -m )?tilestream view out\n", printed.out)


def test_editors_find_the_schema_that_the_config_names(folder):
    list(write_first_config(["slides"], folder / "config.yaml", "out"))
    text = (folder / "config.yaml").read_text()
    named = re.search(r"\$schema=(\S+)", text)[1]
    schema = json.loads((folder / named).read_text())
    assert set(yaml.safe_load(text)) <= set(schema["properties"])


def test_a_file_that_is_there_is_replaced_only_by_force(folder):
    (folder / "config.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"config\.yaml is there already\. Give another name with --out, or replace it with --force"):
        list(write_first_config(["slides"], folder / "config.yaml", "out"))
    assert (folder / "config.yaml").read_text() == "mine"
    list(write_first_config(["slides"], folder / "config.yaml", "out", force=True))
    assert "slides:" in (folder / "config.yaml").read_text()


def test_slides_without_a_resolution_are_read_at_their_own_pixels(folder):
    for name in ("fine", "coarse"):
        (folder / "slides" / f"{name}.svs").unlink()
        tifffile.imwrite(folder / "slides" / f"{name}.tif", make_image(600, 700, seed=1), tile=(128, 128), compression="jpeg")
    list(write_first_config(["slides"], folder / "config.yaml", "out"))
    config = load_config(folder / "config.yaml", [])
    assert (config.tiles.level, config.tiles.mpp) == (0, None)
    assert "no file states its µm/px" in (folder / "config.yaml").read_text()


def test_nothing_readable_is_an_error_with_the_first_cause(folder):
    with pytest.raises(ConfigError, match=r"none of 1 image can be read\. The first, broken: .*no backend reads it"):
        list(write_first_config(["slides/broken.svs"], folder / "config.yaml", "out"))
