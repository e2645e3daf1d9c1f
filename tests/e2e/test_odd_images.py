"""Images that leave something open or are out of the ordinary, through the whole program."""

import json
import shutil

import numpy as np
import pytest
import tifffile

from tests.support.faults import SIDE, TILE, run, store
from tests.support.images import make_image, write_pyramid, write_svs
from tests.support.profiles import odd_profile
from tests.support.runs import config
from tilestream.cli import main


def test_no_resolution_is_refused_with_what_to_write(capsys, tmp_path, say):
    path = write_pyramid(tmp_path / "a.tif", make_image(SIDE, SIDE, 3), mpp=None, levels=1)
    given = config(path, tmp_path / "out", tiles={"size": TILE, "mpp": 0.5, "level": None, "tissue": "none"})
    for extra, expected in (({}, 3), ({"source": {"mpp": 0.25}}, 0)):
        (tmp_path / "c.yaml").write_text(json.dumps(given | extra))
        with pytest.raises(SystemExit) as left:  # the code is looked at
            main(["run", str(tmp_path / "c.yaml")])
        words = "".join(capsys.readouterr())
        assert left.value.code == expected
        assert expected == 0 or "source: {mpp: 0.25}" in words
    assert store(tmp_path).source["mpp_source"] == "config"
    say("mpp absent, then given", "3 with what to write; then recorded", "3, 0")


@pytest.mark.parametrize("mpp", ["0", "-0.5", "nan", "abc"])
def test_an_impossible_resolution_is_no_resolution(capsys, tmp_path, say, mpp):
    path = write_svs(tmp_path / "a.svs", make_image(SIDE, SIDE, 3), mpp=mpp)
    given = config(path, tmp_path / "out", tiles={"size": TILE, "mpp": 0.5, "level": None, "tissue": "none"})
    (tmp_path / "c.yaml").write_text(json.dumps(given))
    with pytest.raises(SystemExit) as left:  # the code is looked at
        main(["run", str(tmp_path / "c.yaml")])
    assert left.value.code == 3, capsys.readouterr()
    say(f"mpp {mpp} in the file", "3", f"{left.value.code}")


def test_downsamples_stay_fractions(capsys, tmp_path, say):
    image = make_image(1003, 1401, 2)
    small = np.ascontiguousarray(image[::4, ::4][:250, :350])  # 1003 / 250 and 1401 / 350 are 4.012 and 4.003
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        for k, pixels in enumerate((image, small)):
            tif.write(pixels, tile=(128, 128), photometric="rgb", subfiletype=1 if k else 0, metadata=None)
    corners = {"encoder": "tests.support.encoders:corners"}
    code, _ = run(capsys, tmp_path, path, tiles={"size": 50, "level": 1, "tissue": "none"}, **corners)
    found = store(tmp_path)
    downsample = found.source["downsample"]
    assert (code, found.source["level"]) == (0, 1)
    assert 4.0 < downsample < 4.02
    assert downsample != int(downsample)
    np.testing.assert_array_equal(found.obs["x"], np.rint(found.obs["col"] * 50 * downsample))
    whole = found.obs[found.obs["status"] == "ok"]
    np.testing.assert_array_equal(
        found.embeddings[:][found.obs["status"] == "ok"][:, [0, 4, 8]], small[whole["row"] * 50, whole["col"] * 50]
    )
    say("downsample of 4.007", "a float throughout: the level's own pixels, at rounded places", f"{code}, {downsample:.4f}")


def test_colour_under_alpha_0_never_matters(capsys, tmp_path, say):
    pixels = np.full((SIDE, SIDE, 4), (120, 30, 140, 0), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"], tile=(128, 128))
    code, _ = run(capsys, tmp_path, tmp_path / "a.tif")
    assert code == 0
    assert (store(tmp_path).embeddings[:] == 255).all()
    shutil.rmtree(tmp_path / "out")
    given = config(tmp_path / "a.tif", tmp_path / "out", tiles={"size": TILE, "level": 0, "tissue": "otsu"})
    (tmp_path / "c.yaml").write_text(json.dumps(given))
    with pytest.raises(SystemExit) as left:  # the code is looked at
        main(["run", str(tmp_path / "c.yaml")])
    assert (left.value.code, len(store(tmp_path).obs)) == (0, 0)
    say("colour hidden under alpha 0", "white, and no tissue", "white, 0 tiles")


def test_bounds_never_shift(capsys, tmp_path, slides, monkeypatch, say):
    from tilestream.sources.openslide import lowlevel

    path, openslide = slides / "CMU-1-Small-Region.svs", {"source": {"backend": "openslide"}, "encoder": "tests.support.encoders:corners"}
    tiles = {"tiles": {"size": 300, "level": 0, "tissue": "none"}}
    assert run(capsys, tmp_path, path, **openslide, **tiles)[0] == 0
    plain = store(tmp_path, path.stem)
    sound, places = plain.embeddings[:], plain.positions
    shutil.rmtree(tmp_path / "out")
    bounds = {f"openslide.bounds-{name}": value for name, value in {"x": "501", "y": "303", "width": "900", "height": "1000"}.items()}
    names, value = lowlevel.get_property_names, lowlevel.get_property_value
    monkeypatch.setattr(lowlevel, "get_property_names", lambda raw: [*names(raw), *bounds])
    monkeypatch.setattr(lowlevel, "get_property_value", lambda raw, name: bounds.get(name) or value(raw, name))
    code, _ = run(capsys, tmp_path, path, **openslide, **tiles)
    found = store(tmp_path, path.stem)
    assert (code, found.source["bounds"]) == (0, bounds)
    np.testing.assert_array_equal(found.positions, places)
    np.testing.assert_array_equal(found.embeddings[:], sound)
    say("bounds at (501, 303)", "recorded; places and pixels as without", f"{code}, equal")


@pytest.mark.parametrize(("height", "width", "tiles"), [(40, 50, 1), (1, 300, 4), (300, 1, 4)])
def test_an_image_smaller_than_a_tile_is_padded(capsys, tmp_path, say, height, width, tiles):
    tifffile.imwrite(tmp_path / "a.tif", make_image(height, width, 1), photometric="rgb")
    code, _ = run(capsys, tmp_path, tmp_path / "a.tif")
    found = store(tmp_path)
    assert (code, len(found.obs), set(found.obs["status"])) == (0, tiles, {"padded"})
    say(f"{height} x {width} px", "padded tiles", f"{tiles} padded")


def test_a_colour_profile_is_recorded_and_applied_where_asked_for(capsys, tmp_path, say):
    image = make_image(300, 420, 3)
    seen = {}
    for profile, icc, shard_tiles in (
        (odd_profile(), False, 5),
        (odd_profile(), True, 5),
        (odd_profile(), True, 100),
        (b"broken" * 99, True, 5),
    ):
        path = write_pyramid(tmp_path / "a.tif", image, tile=128, levels=1, compression="lzw", iccprofile=profile)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        code, words = run(
            capsys, tmp_path, path, source={"icc": icc}, encoder="tests.support.encoders:corners", compute={"shard_tiles": shard_tiles},
        )  # fmt: skip
        assert code == 0, words
        found = store(tmp_path)
        seen[len(profile), icc, shard_tiles] = found.embeddings[:]
        assert (found.recipe["source"]["icc"], found.source["icc_profile"]) == (icc, f"{len(profile)} bytes")
        if icc and profile != odd_profile():
            assert found.source["icc"] == "unusable"
            assert any("colour profile cannot be used" in warning for warning in found.source["warnings"])
    plain, applied, whole, broken = seen.values()
    assert (plain[:, :3] != applied[:, :3]).any(axis=1).mean() > 0.5
    np.testing.assert_array_equal(applied, whole)
    np.testing.assert_array_equal(plain, broken)
    code, words = run(capsys, tmp_path, path, encoder="tests.support.encoders:corners")
    assert code == 6
    assert "source.icc was True and is now False" in words
    say(
        "13 colour profile: ignored, applied, broken", "recorded; on: sRGB, streamed as whole; broken: a warning", "0, 0, 0; 6 when changed"
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [((3, 64, 64), np.uint8, "source: {"), ((64, 64, 3), np.uint16, "window: ["), ((64, 64, 5), np.uint8, "source: {")],
)
def test_depth_channels_and_16_bits_must_be_chosen(capsys, tmp_path, say, shape, dtype, words):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, dtype), photometric="minisblack" if shape[-1] != 3 else "rgb")
    code, said = run(capsys, tmp_path, tmp_path / "a.tif")
    assert code == 3
    assert words in said
    say(f"{shape} {np.dtype(dtype)}", "3 with the key that chooses", f"{code}")


def test_one_of_several_scenes_must_be_chosen(capsys, tmp_path, say):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tif:
        for k in range(2):
            tif.write(np.full((200 + 10 * k, 300, 3), 50 + k, np.uint8), photometric="rgb", tile=(64, 64), metadata={"Name": f"scene {k}"})
    code, words = run(capsys, tmp_path, tmp_path / "a.ome.tif")
    assert code == 3
    assert "source: {scene: 0}" in words
    chosen, _ = run(capsys, tmp_path, tmp_path / "a.ome.tif", source={"scene": 1})
    assert (chosen, store(tmp_path).embeddings[0, 0]) == (0, 51)
    say("two scenes", "3 with the key that chooses; then that one", f"{code}, {chosen}")
