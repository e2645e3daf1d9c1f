"""Every command on an output among things that are not ours: they are as before, to the byte."""

import json
import shutil

import pytest

from tests.support.foreign import SEEDS, snapshot
from tests.support.images import make_image, write_ome_zarr, write_pyramid
from tests.support.runs import config
from tilestream.cli import main
from tilestream.interop.exports import FORMATS, export_slides

COMMANDS = {
    "run": (["run", "{folder}/run.yaml"], 0),
    "run --restart": (["run", "{folder}/run.yaml", "--restart"], 0),
    "plan": (["plan", "{folder}/run.yaml"], 0),
    "import": (["import", "{folder}/features.h5", "--slide", "c", "--out", "{folder}/out"], 0),
    "verify": (["verify", "{folder}/out"], 4),
    "verify --repair": (["verify", "{folder}/out", "--repair"], 4),
    "report": (["report", "{folder}/out"], 0),
    **{f"export --to {name}": (["export", "{folder}/out", "--to", name], 0) for name in FORMATS},
}
"""Arguments and exit codes; what verifies finds a damaged slide."""


def command(arguments, folder):
    with pytest.raises(SystemExit) as left:  # the code is looked at
        main([argument.format(folder=folder) for argument in arguments])
    return left.value.code


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished output of slide a, its config, and its features in HDF5."""
    folder = tmp_path_factory.mktemp("made")
    for seed, name in enumerate("ab"):
        write_pyramid(folder / f"{name}.tif", make_image(200, 200, seed), compression="deflate", levels=1, mpp=0.5)
    assert command(["run", write_config(folder, ["a"])], folder) == 0
    list(export_slides(str(folder / "out"), "trident-h5", out=str(folder / "features.h5"), slide="a"))
    shutil.rmtree(folder / "out" / ".tilestream")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    write_config(tmp_path, ["a", "b"])
    return tmp_path


def write_config(folder, slides):
    path = folder / "run.yaml"
    path.write_text(json.dumps(config([folder / f"{name}.tif" for name in slides], folder / "out", tiles={"size": 96})))
    return str(path)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_lies_beside_is_left_alone(folder, name):
    out = folder / "out"
    for seed, make in SEEDS.items():
        (out / seed).mkdir()
        make(out / seed / f"{seed}.zarr")
    for place in (
        "notes.txt",
        "exports/csv/other.csv",
        "report.txt",
        ".tilestream/notes.txt",
        "a.zarr/notes.txt",
        "a.zarr/tables/mine/zarr.json",
    ):
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        (out / place).write_text("theirs")
    before = snapshot(out)
    own = {key for key in before if key.startswith(("a.zarr/", "run", "exports/")) and before[key] != b"theirs"}
    damaged = out / "a.zarr" / "tables" / "tiles" / "obs" / "y" / "c" / "0"  # on which all else rests
    if name.startswith("verify"):
        damaged.write_bytes(b"torn")
    arguments, code = COMMANDS[name]
    assert command(arguments, folder) == code
    after = snapshot(out)
    assert {key: after.get(key) for key in before.keys() - own} == {key: before[key] for key in before.keys() - own}


@pytest.mark.parametrize("seed", SEEDS)
def test_what_lies_in_the_way_is_refused_before_any_work(folder, seed, capsys):
    for name in "bc":
        SEEDS[seed](folder / "out" / name / f"{name}.zarr")
        for thing in (folder / "out" / name).iterdir():
            if not (folder / "out" / thing.name).exists():
                thing.rename(folder / "out" / thing.name)
    before = snapshot(folder)
    for name in ("run", "run --restart", "import"):
        assert command(COMMANDS[name][0], folder) == 2
        assert f"out/{'c' if name == 'import' else 'b'}.zarr is" in capsys.readouterr().err
        assert snapshot(folder) == before


@pytest.mark.parametrize("options", [[], ["--restart"]])
@pytest.mark.parametrize("kind", ["beside its conversion", "its own store's place", "deeper"])
def test_an_output_that_holds_a_slide_is_refused_before_any_work(tmp_path, kind, options, capsys):
    slide = tmp_path / ("a.zarr" if kind == "its own store's place" else "deeper/a.tif" if kind == "deeper" else "a.tif")
    slide.parent.mkdir(exist_ok=True)
    (write_ome_zarr if slide.suffix == ".zarr" else write_pyramid)(slide, make_image(200, 200, 1))
    if kind == "beside its conversion":
        write_ome_zarr(tmp_path / "a.zarr", make_image(96, 96, 1))
    (tmp_path / "run.yaml").write_text(json.dumps(config(slide, tmp_path, tiles={"size": 96})))
    before = snapshot(tmp_path)
    assert command(["run", "{folder}/run.yaml", *options], tmp_path) == 2
    assert "one of its slides" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("place", ["out/run.json", "out"])
def test_files_in_the_place_of_what_a_run_writes_are_refused_before_any_work(folder, place, capsys):
    shutil.rmtree(folder / "out")
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_text('{"theirs": 1}')
    before = snapshot(folder)
    assert command(COMMANDS["run"][0], folder) == 2
    assert "output:" in capsys.readouterr().err
    assert snapshot(folder) == before
