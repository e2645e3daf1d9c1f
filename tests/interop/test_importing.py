"""Features that other programs computed become a store of ours."""

import h5py
import numpy as np
import pytest

import tilestream
from tests.support.exported import export, read_features
from tests.support.images import make_image, write_pyramid
from tests.support.runs import embed
from tests.support.stores import make_store
from tilestream.cli import main
from tilestream.errors import ConfigError, InputError, OutputError
from tilestream.interop.importing import import_features
from tilestream.store.cohort import verify_output
from tilestream.tiles.coords_file import grid_step


@pytest.mark.parametrize(("mpp", "stride"), [(0.5, 224), (0.37, 200), (1.1, 224)])
@pytest.mark.slow
def test_features_go_out_and_come_back(tmp_path, mpp, stride, capsys):
    image = make_image(2000, 2600, seed=1)
    write_pyramid(tmp_path / "a.tif", image, compression="jpeg", levels=1, mpp=0.25)
    embed(tmp_path / "a.tif", tmp_path / "out", tiles={"size": 224, "level": None, "mpp": mpp, "stride": stride, "tissue": "none"})
    with pytest.raises(SystemExit) as left:
        main(["export", str(tmp_path / "out"), "--to", "trident-h5", "--slide", "a", "--out", str(tmp_path / "a.h5")])
    assert left.value.code == 0
    with pytest.raises(SystemExit) as left:
        main(["import", str(tmp_path / "a.h5"), "--slide", str(tmp_path / "a.tif"), "--out", str(tmp_path / "back")])
    assert left.value.code == 0
    assert "on a regular grid" in capsys.readouterr().out
    before, after = (tilestream.open(tmp_path / name / "a.zarr") for name in ("out", "back"))
    assert np.array_equal(before.embeddings[:], after.embeddings[:])
    assert before.obs.drop(columns="tissue").equals(after.obs.drop(columns="tissue"))
    assert np.array_equal(before.positions, after.positions)
    assert after.recipe["imported"]["grid"] == "regular"
    assert after.source["mpp"] == before.source["mpp"]
    assert after.source["scale"] == pytest.approx(before.source["scale"], rel=1e-3)
    assert verify_output(str(tmp_path / "back"), lambda _: None) == 0


def test_an_import_that_was_cut_short_is_done_again_and_a_run_that_was_is_not(tmp_path):
    write_features(tmp_path / "a.h5", np.array([[0, 0], [224, 0]]), patch_size=224, patch_size_level0=224)
    store = make_store(tmp_path / "out" / "a.zarr", finish=False)
    with pytest.raises(OutputError, match="is there already"):
        import_features(str(tmp_path / "a.h5"), "a", str(tmp_path / "out"))
    store.clear()  # as a creation that was cut short leaves it
    import_features(str(tmp_path / "a.h5"), "a", str(tmp_path / "out"))
    (tmp_path / "out" / "a.zarr" / ".tilestream" / "complete.json").unlink()
    import_features(str(tmp_path / "a.h5"), "a", str(tmp_path / "out"))
    assert verify_output(str(tmp_path / "out"), print) == 0
    with pytest.raises(OutputError, match="is there already"):
        import_features(str(tmp_path / "a.h5"), "a", str(tmp_path / "out"))


@pytest.mark.slow
def test_clam_files_of_a_coarse_level_need_the_image(tmp_path):
    write_pyramid(tmp_path / "a.tif", make_image(2000, 2600, seed=1), compression="jpeg", levels=2, mpp=0.25)
    embed(tmp_path / "a.tif", tmp_path / "out", tiles={"size": 128, "level": 1, "tissue": "none"})
    path, _ = export(tmp_path / "out", "clam-h5")
    import_features(path, str(tmp_path / "a.tif"), str(tmp_path / "back"))
    before, after = (tilestream.open(tmp_path / name / "a.zarr") for name in ("out", "back"))
    assert np.array_equal(before.embeddings[:], after.embeddings[:])
    assert before.obs.drop(columns="tissue").equals(after.obs.drop(columns="tissue"))
    assert {name: after.source[name] for name in ("level", "downsample", "scale")} == {"level": 1, "downsample": 2.0, "scale": 2.0}
    assert after.to_anndata().uns["mpp"] == 0.25
    with h5py.File(path, "a") as file:  # as CLAM writes it, without what we add
        del file.attrs["l0_extent"]
    with pytest.raises(InputError, match="does not say how large a tile is"):
        import_features(path, "a", str(tmp_path / "named"))


def test_a_file_without_tiles_becomes_a_store_without_tiles(tmp_path):
    make_store(tmp_path / "a.zarr", keep=np.zeros((4, 5), bool))
    path, _ = export(tmp_path, "trident-h5")
    assert "a: 0 tiles x 6" in import_features(path, "a", str(tmp_path / "out"))
    assert tilestream.open(tmp_path / "out" / "a.zarr").embeddings.shape == (0, 6)


def write_features(path, xy, dim=4, **attributes):
    values = np.random.default_rng(2).standard_normal((len(xy), dim)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = values, np.asarray(xy, np.int64)
        file["coords"].attrs.update(attributes)
    return values


def test_places_off_the_grid_become_ranks(tmp_path):
    xy = [(517, 103), (37, 103), (517, 359), (1111, 700)]
    values = write_features(tmp_path / "f.h5", xy, patch_size=256, patch_level=0)
    words = import_features(str(tmp_path / "f.h5"), "slide 7", str(tmp_path / "out"))
    assert "on no regular grid" in words
    assert "taken as a name" in words
    store = tilestream.open(tmp_path / "out" / "slide 7.zarr")
    assert store.obs[["row", "col"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 1], [2, 2]]
    assert store.positions.tolist() == [[103, 37], [103, 517], [359, 517], [700, 1111]]
    assert np.array_equal(store.embeddings[:], values[[1, 0, 2, 3]])
    assert store.source["mpp"] is None
    with pytest.raises(InputError, match=r"lie on no regular grid\. Export them as spatialdata, geojson"):
        export(tmp_path / "out", "ome-zarr")
    annotations, tiles = read_features(export(tmp_path / "out", "geojson")[0])
    assert annotations == []
    assert len(tiles) == 4
    assert "tissue" not in tiles[0]["properties"]["measurements"]


def test_rows_in_any_order_and_rows_that_are_not_finite(tmp_path):
    order = np.random.default_rng(3).permutation(70 * 60)
    xy = np.stack([order % 60 * 512, order // 60 * 512], axis=1)
    write_features(
        tmp_path / "f.h5", xy, patch_size=256, patch_size_level0=512, overlap=0, level0_width=60 * 512 - 1, level0_height=70 * 512 - 100
    )
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["features"][7, 2] = np.inf
        values = file["features"][:]
    assert "1 of them not finite" in import_features(str(tmp_path / "f.h5"), "a", str(tmp_path / "out"))
    store = tilestream.open(tmp_path / "out" / "a.zarr")
    back = np.argsort(order)
    values[7] = np.nan
    assert np.array_equal(store.embeddings[:], values[back], equal_nan=True)
    assert store.obs["status"].iloc[order[7]] == "nonfinite"
    assert (store.obs["status"] == "padded").sum() == 60 - (order[7] >= 69 * 60)
    assert "1 failed tile left out" in export(tmp_path / "out", "pt")[1]


@pytest.mark.parametrize(("true", "stated"), [(448.7, 449), (511.5, 512), (224, 224), (333.33, 333)])
def test_a_rounded_step_is_made_exact_from_the_places(true, stated):
    index = np.arange(700)
    y, x = np.rint(index * true).astype(np.int64), np.rint(index[300:] * true).astype(np.int64)
    step = grid_step(y, x, stated)
    assert np.array_equal(np.rint(y / step), index)
    assert grid_step(y + 100, x, stated) is None


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({}, "does not say how large a tile is.*--patch-size-level0"),
        ({"patch_size": 256, "patch_level": 2}, "does not say how large a tile is"),
    ],
)
def test_a_file_that_does_not_say_its_tiles_size_is_refused_with_the_way_out(tmp_path, attributes, words):
    write_features(tmp_path / "f.h5", [(0, 0), (512, 0)], **attributes)
    with pytest.raises(InputError, match=words):
        import_features(str(tmp_path / "f.h5"), "a", str(tmp_path / "out"))
    assert "on a regular grid" in import_features(str(tmp_path / "f.h5"), "a", str(tmp_path / "out"), patch_size_level0=512)
    with pytest.raises(OutputError, match="is there already"):
        import_features(str(tmp_path / "f.h5"), "a", str(tmp_path / "out"), patch_size_level0=512)


@pytest.mark.parametrize(
    ("slide", "words"), [("gone/a.svs", "gone/a.svs"), ("..", "means a folder|is a folder"), ("a\nb", "control characters")]
)
def test_slides_that_are_neither_image_nor_name_are_refused(tmp_path, slide, words):
    write_features(tmp_path / "f.h5", [(0, 0)], patch_size=256)
    with pytest.raises((InputError, ConfigError), match=words):
        import_features(str(tmp_path / "f.h5"), slide, str(tmp_path / "out"))


@pytest.mark.parametrize("content", ["text", "no coords", "shapes"])
def test_files_that_hold_no_features_are_refused(tmp_path, content):
    path = tmp_path / "f.h5"
    if content == "text":
        path.write_text("no HDF5")
    else:
        with h5py.File(path, "w") as file:
            file["features"] = np.zeros((3, 4), np.float32)
            if content == "shapes":
                file["coords"] = np.zeros((2, 2), np.int64)
    with pytest.raises(InputError, match={"text": "not a readable HDF5", "no coords": "no dataset coords", "shapes": "are not"}[content]):
        import_features(str(path), "a", str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("coords", "about", "words"),
    [
        ([[0, 0], [224, 0], [0, 0]], {}, "a: .*a.h5: the tile at y 0, x 0 is there 2 times"),
        ([[0, 0], [2240, 0]], {}, "a.h5, row 1: a tile begins at y 0, x 2240, but the image is 500 x 600 px"),
        ([[0, 0], [-224, 0]], {}, "row 1: a tile begins at y 0, x -224"),
        (
            [[0, 0], [224, 0]],
            {"level0_width": 5000, "level0_height": 500},
            "is of another image: its level0_width is 5000, that of the slide 600",
        ),
    ],
)
def test_features_of_another_image_and_tiles_that_are_there_twice_are_refused(tmp_path, coords, about, words):
    write_pyramid(tmp_path / "a.tif", make_image(500, 600, seed=1), compression="deflate", levels=1, mpp=0.5)
    write_features(tmp_path / "a.h5", np.array(coords), patch_size=224, patch_size_level0=224, **about)
    with pytest.raises(InputError, match=words):
        import_features(str(tmp_path / "a.h5"), str(tmp_path / "a.tif"), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "a.zarr").exists()
    if "times" in words:  # so it is where no image is known
        with pytest.raises(InputError, match="is there 2 times"):
            import_features(str(tmp_path / "a.h5"), "b", str(tmp_path / "out"))
