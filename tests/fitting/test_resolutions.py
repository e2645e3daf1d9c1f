"""Tiles that something is learned from have one resolution: tiles.level gives that of each image, whatever it is."""

import pytest

import tilestream
from tests.fitting.test_targets import config, rows
from tests.support.stores import make_store
from tilestream.errors import InputError
from tilestream.fitting.fit import fit
from tilestream.fitting.outputs import refuse_other_resolutions


def slides(folder, told, wanted=None):
    found = []
    for i, (mpp, scale) in enumerate(told):
        make_store(folder / f"s{i}.zarr", 2, 3, mpp=mpp, scale=scale, fingerprint=f"image{i}")
        found.append(tilestream.open(folder / f"s{i}.zarr"))
        found[-1].recipe["tiles"]["mpp"] = wanted
    return found


@pytest.mark.parametrize(
    ("told", "refused"),
    [
        ([(0.25, 1.0), (0.25, 1.0)], None),
        ([(0.25, 2.0), (0.5, 1.0), (0.51, 1.0)], None),
        ([(0.25, 1.0), (0.5, 1.0)], "tiles of s0 have 0.25 µm/px and those of s1 0.5"),
        ([(0.5, 1.0), (0.25, 2.0), (0.25, 1.0)], "tiles of s2 have 0.25 µm/px and those of s[01] 0.5"),
        ([(0.50, 1.0), (0.485, 1.0), (0.515, 1.0)], "tiles of s1 have 0.485 µm/px and those of s2 0.515"),  # each is near the first
        ([(None, 1.0), (0.25, 1.0), (0.5, 1.0)], "tiles of s1 have 0.25 µm/px and those of s2 0.5"),
    ],
)
def test_tiles_of_other_resolutions_are_refused_with_the_two_furthest_apart(tmp_path, told, refused):
    if refused is None:
        assert refuse_other_resolutions(slides(tmp_path, told)) == ()
        return
    with pytest.raises(InputError, match=refused):
        refuse_other_resolutions(slides(tmp_path, told))


def test_what_a_run_asked_for_counts_where_its_images_are_a_little_coarser(tmp_path):
    """With tiles.mpp, images coarser by tiles.mpp_tolerance are taken pixel for pixel."""
    assert refuse_other_resolutions(slides(tmp_path, [(0.25, 2.0), (0.56, 1.0)], wanted=0.5)) == ()


def test_slides_without_a_resolution_are_told_beside_those_that_have_one(tmp_path):
    (told,) = refuse_other_resolutions(slides(tmp_path, [(None, 1.0), (0.5, 1.0), (None, 1.0)]))
    assert told.startswith("The resolution of s0, s2 is not known: that it is that of s1, 0.5 µm/px")
    (tmp_path / "all").mkdir()
    assert refuse_other_resolutions(slides(tmp_path / "all", [(None, 1.0), (None, 2.0)])) == ()


@pytest.mark.parametrize("where", ["one output", "two outputs"])
def test_fit_refuses_outputs_of_other_resolutions_and_writes_nothing(tmp_path, where):
    folders = [tmp_path / "a", tmp_path / ("a" if where == "one output" else "b")]
    for i in range(4):
        make_store(folders[i % 2] / f"s{i}.zarr", 2, 3, mpp=0.25 * (1 + i % 2), fingerprint=f"image{i}")
    wanted = config(tmp_path, rows("slide,patient,label", *(f"s{i},p{i},{'ab'[i // 2]}" for i in range(4))))
    wanted = wanted.model_copy(update={"embeddings": tuple({str(folder) for folder in folders}), "save": str(tmp_path / "h.safetensors")})
    with pytest.raises(
        InputError,
        match=r"embeddings: tiles of s\d have 0.25 µm/px and those of s\d 0.5. Take slides of one resolution, or embed all at one",
    ):
        fit(wanted)
    assert not (tmp_path / "h.safetensors").exists()
