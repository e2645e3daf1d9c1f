"""Tiles that another program chose: kept where they are, with the size that they have."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, opened
from tilestream.cli import main
from tilestream.config.load import load_config
from tilestream.errors import ConfigError, OutputError
from tilestream.geometry import Region
from tilestream.interop.exports import export_slides
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions

CORNERS = "tests.support.encoders:corners"


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_pyramid(tmp_path_factory.mktemp("slides") / "a.tif", make_image(1500, 1300), mpp=0.5)


def write_places(path, xy, *, dtype=np.int64, **attributes):
    with h5py.File(path, "w") as file:
        coords = file.create_dataset("coords", data=np.asarray(xy, dtype).reshape(-1, 2))
        coords.attrs.update(attributes)
    return path


def chosen(slides, output, path, size=224, /, **sections):
    made = config(slides, output, encoder=CORNERS, **sections)
    made["tiles"] = {"size": size, "from": str(path)}
    return made


def run(*arguments, **sections):
    return tilestream.run(chosen(*arguments, **sections))


@pytest.mark.parametrize(("size", "mpp", "stride"), [(96, 0.5, 96), (96, 1.0, 96), (80, 0.77, 80), (96, 1.0, 64)])
@pytest.mark.parametrize("name", ["trident-h5", "clam-h5"])
@pytest.mark.slow
def test_a_round_trip_gives_the_same_places_and_embeddings(tmp_path, slide, name, size, mpp, stride):
    first = config(slide, tmp_path / "one", encoder=CORNERS, tiles={"size": size, "stride": stride, "mpp": mpp, "tissue": "otsu"})
    del first["tiles"]["level"]
    tilestream.run(first)
    list(export_slides(str(tmp_path / "one"), name))
    run(slide, tmp_path / "two", tmp_path / "one" / "exports" / name, size)
    one, two = opened(tmp_path / "one", "a"), opened(tmp_path / "two", "a")
    assert len(one.positions) > 10
    assert np.array_equal(one.positions, two.positions)
    assert np.array_equal(one.embeddings[:], two.embeddings[:])
    assert one.obs.drop(columns="tissue").equals(two.obs.drop(columns="tissue"))


def test_tiles_off_our_origin_are_a_lattice_and_take_a_context(tmp_path, slide):
    xy = [(37 + 224 * col, 91 + 224 * row) for row in range(5) for col in range(4) if (row, col) != (2, 1)]
    path = write_places(tmp_path / "a_patches.h5", xy, patch_size=224, patch_size_level0=224, overlap=0)
    run(slide, tmp_path / "out", path, context={"window": 2, "depth": 2, "heads": 2})
    store = opened(tmp_path / "out", "a")
    assert [(x, y) for y, x in store.positions.tolist()] == xy
    assert store.obs["row"].tolist() == [(y - 91) // 224 for _, y in xy]
    assert np.isfinite(store.context[:]).all()
    assert store.source["grid"] == {"regular": True, "stride": 224.0, "l0_offset": [91, 37], "rows": 5, "cols": 4}
    with open_source(str(slide), SourceOptions()) as source:
        corners = [source.read_region(0, Region(y, x, 1, 1))[0, 0, 0] for x, y in xy]
    assert store.embeddings[:, 0].tolist() == corners
    got = store.grid()
    assert got.l0_y(np.arange(5)).tolist() == [91 + 224 * k for k in range(5)]


def test_tiles_on_no_lattice_keep_their_places_and_sizes(tmp_path, slide):
    rng = np.random.default_rng(3)
    xy = np.unique(rng.integers(0, 1200, (60, 2)), axis=0)
    path = write_places(tmp_path / "a.h5", xy, patch_size=100, patch_level=0)
    summary = run(slide, tmp_path / "out", path, 100)
    store = opened(tmp_path / "out", "a")
    assert sorted(map(tuple, store.positions[:, ::-1].tolist())) == sorted(map(tuple, xy.tolist()))
    assert store.source["grid"]["regular"] is False
    assert (summary.slides[0].tiles, summary.exit_code) == (len(xy), 0)
    # Each tile by itself gives the same vector.
    for row in (0, 17, 42):
        y, x = store.positions[row]
        alone = write_places(tmp_path / f"{row}.h5", [(x, y)], patch_size=100, patch_level=0)
        run(slide, tmp_path / f"out{row}", alone, 100)
        assert np.array_equal(opened(tmp_path / f"out{row}", "a").embeddings[0], store.embeddings[row])
    assert (tmp_path / "out" / "a.zarr" / "overview.png").stat().st_size > 5000


@pytest.mark.parametrize("sections", [{"context": {"window": 2, "depth": 2, "heads": 2}}, {"output": {"save": ["tiles", "windows"]}}])
def test_what_needs_neighbours_is_refused_without_a_lattice(tmp_path, slide, sections):
    path = write_places(tmp_path / "a.h5", [(0, 0), (50, 30)], patch_size=224)
    summary = run(slide, tmp_path / "out", path, **sections)
    assert summary.exit_code == 3
    assert "needs tiles on a lattice" in summary.slides[0].error


def test_a_file_of_no_tiles_is_a_slide_of_no_rows(tmp_path, slide):
    summary = run(slide, tmp_path / "out", write_places(tmp_path / "a.h5", [], patch_size=224))
    assert (summary.exit_code, summary.tiles) == (0, 0)


@pytest.mark.parametrize(
    ("xy", "attributes", "words"),
    [
        ([(0, 0)], {}, "does not say how large a tile is"),
        ([(0, 0), (1300, 5)], {"patch_size": 224}, "row 1: a tile begins at y 5, x 1300, but the image is 1500 x 1300 px"),
        ([(-1, 0)], {"patch_size": 224}, "row 0: a tile begins at y 0, x -1"),
        ([(0, 0)], {"patch_size": 224, "level0_width": 99, "level0_height": 1500}, "level0_width is 99, that of the slide 1300"),
        ([(0, 0), (9, 9), (0, 0)], {"patch_size": 224}, "the tile at y 0, x 0 is there 2 times"),
        ([(0, 0)], {"patch_size": 100}, "Set tiles.size to 100 or less"),
        ([(0, 0)], {"patch_size": 224, "patch_level": 9}, "does not say how large a tile is"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, slide, xy, attributes, words):
    summary = run(slide, tmp_path / "out", write_places(tmp_path / "a.h5", xy, **attributes))
    assert summary.exit_code == 3
    assert words in summary.slides[0].error


def test_files_that_are_none_are_refused(tmp_path, slide):
    (tmp_path / "text.h5").write_text("no HDF5")
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.create_dataset("features", data=np.zeros((2, 3)))
    write_places(tmp_path / "float.h5", [(0.5, 1.0)], dtype=np.float32, patch_size=224)
    for name, words in (
        ("text", "is not a readable HDF5 file"),
        ("empty", "has no dataset coords, only features"),
        ("float", "float32, but it must be"),
        ("missing", "there is no file"),
    ):
        summary = run(slide, tmp_path / name, tmp_path / f"{name}.h5")
        assert summary.exit_code == 3
        assert words in summary.slides[0].error


def test_each_slide_finds_its_file(tmp_path, slide):
    (tmp_path / "coords").mkdir()
    second = Path(slide).rename(tmp_path / "b.tif")
    second.rename(slide)
    slides = [str(slide), str(write_pyramid(tmp_path / "b.tif", make_image(600, 500), mpp=0.5))]
    write_places(tmp_path / "coords" / "a_patches.h5", [(0, 0)], patch_size=224)
    write_places(tmp_path / "coords" / "b.h5", [(10, 20), (234, 20)], patch_size=224)
    assert [s.tiles for s in run(slides, tmp_path / "folder", tmp_path / "coords").slides] == [1, 2]
    summary = run(slides, tmp_path / "pattern", tmp_path / "coords" / "{slide}.h5")
    assert [s.status for s in summary.slides] == ["refused", "done"]
    with pytest.raises(ConfigError, match="is one file, but there are 2 slides"):
        run(slides, tmp_path / "one", tmp_path / "coords" / "b.h5")


def test_a_changed_file_is_another_recipe_and_a_moved_one_is_not(tmp_path, slide, capsys):
    path = write_places(tmp_path / "a.h5", [(0, 0)], patch_size=224)
    run(slide, tmp_path / "out", path)
    write_places(tmp_path / "moved.h5", [(0, 0)], patch_size=224)
    run(slide, tmp_path / "out", tmp_path / "moved.h5")
    write_places(path, [(0, 1)], patch_size=224)
    with pytest.raises(OutputError, match=r"a\.h5 \(tiles\.from"):
        run(slide, tmp_path / "out", path)
    (tmp_path / "c.yaml").write_text(json.dumps(chosen(slide, tmp_path / "out", path)))
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "c.yaml")])
    assert ended.value.code == 6
    assert run(slide, tmp_path / "new", path).exit_code == 0


@pytest.mark.parametrize(
    ("tiles", "words"),
    [
        ({"mpp": 0.5}, "Leave tiles.mpp and tiles.level out"),
        ({"level": 0}, "Leave tiles.mpp and tiles.level out"),
        ({"stride": 100}, "Leave tiles.stride out"),
        ({"edge": "drop"}, "Leave tiles.edge out"),
    ],
)
def test_keys_that_the_file_decides_are_refused(tmp_path, tiles, words):
    made = chosen("a.tif", tmp_path, "a.h5")
    made["tiles"] |= tiles
    with pytest.raises(ConfigError, match=words):
        load_config(made)


def test_plan_reads_the_file_too(tmp_path, slide, capsys):
    path = write_places(tmp_path / "a.h5", [(5, 5), (229, 5)], patch_size=224)
    (tmp_path / "c.yaml").write_text(json.dumps(chosen(slide, tmp_path / "out", path)))
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(tmp_path / "c.yaml")])
    assert ended.value.code == 0
    assert "2 of 2" in capsys.readouterr().out
