"""Faults of the image, the command and the machine, through the whole program: what was promised, and what is seen.

`pytest tests/e2e/test_faults.py -m "slow or not slow" -s` prints the table, a row each. What ends a process in the middle of its work
(rows 23 to 26 and 29) has more moments, kinds and places in test_durability.py.
"""

import errno
import json
import os
import random
import shutil
import signal
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import tilestream
from tests.support.images import make_image, write_pyramid, write_svs
from tests.support.profiles import odd_profile
from tests.support.resuming import SECTIONS, damage, ends_equal, hurt, killed_at, start, wait_for_shard, write_config
from tests.support.runs import config, embed, opened, same_store
from tilestream.cli import main
from tilestream.stages.hardware import peak_memory
from tilestream.store.folder import Folder
from tilestream.tiles import isolation

TILE, SIDE = 96, 640


def run(capsys, tmp_path, slides, **sections):
    """Exit code, words, and the statuses and embeddings of the one slide where there is a store."""
    given = config(
        slides, tmp_path / "out", **{"tiles": {"size": TILE, "level": 0, "tissue": "none"}, "compute": {"shard_tiles": 10}, **sections}
    )
    (tmp_path / "c.yaml").write_text(json.dumps(given))
    with pytest.raises(SystemExit) as left:  # the code is looked at
        main(["run", str(tmp_path / "c.yaml")])
    out, err = capsys.readouterr()
    return left.value.code, out + err


def store(tmp_path, name="a"):
    return tilestream.open(tmp_path / "out" / f"{name}.zarr")


@pytest.fixture
def say(request, capsys):
    def tell(fault, promised, seen):
        with capsys.disabled():
            if request.config.getoption("capture") == "no":
                print(f"\n{fault:<48} | {promised:<52} | {seen}", end="")

    return tell


@pytest.fixture
def image(tmp_path):
    """A JPEG file of 5 x 5 tiles of 128 px, and where they lie."""
    path = write_pyramid(tmp_path / "a.tif", make_image(SIDE, SIDE, 3), tile=128, levels=1)
    with tifffile.TiffFile(path) as tif:
        return path, tif.pages[0].dataoffsets, tif.pages[0].databytecounts


def touched(piece):
    """Tiles that overlap a file tile."""
    row, col = piece // 5 * 128, piece % 5 * 128
    cols = -(-SIDE // TILE)
    return {
        r * cols + c
        for r in range(cols)
        for c in range(cols)
        if r * TILE < row + 128 and r * TILE + TILE > row and c * TILE < col + 128 and c * TILE + TILE > col
    }


def test_1_a_slide_whose_directory_is_cut_off_is_refused(capsys, tmp_path, image, slides, say):
    shutil.copyfile(slides / "CMU-1-Small-Region.svs", tmp_path / "b.svs")
    with (tmp_path / "b.svs").open("r+b") as file:
        file.truncate((tmp_path / "b.svs").stat().st_size // 2)
    code, words = run(capsys, tmp_path, tmp_path / "b.svs")
    assert (code, (tmp_path / "out" / "b.zarr").exists()) == (3, False)
    assert "b.svs" in words
    say("1 cut at half, directory at the end", "refused with 3, no output", f"{code}")


def test_2_a_slide_cut_inside_its_pixels_loses_the_tiles_past_the_cut(capsys, tmp_path, image, say):
    path, offsets, _counts = image
    assert min(offsets) > path.read_bytes().index(b"\xff\xd8") - 1  # the directory lies before the pixels
    with path.open("r+b") as file:
        file.truncate(offsets[15])
    code, _ = run(capsys, tmp_path, path)
    failed = set(np.flatnonzero(store(tmp_path).obs["status"] == "decode_error").tolist())
    assert code == 4
    assert failed == set().union(*(touched(k) for k in range(15, 25)))
    say("2 cut inside the pixels", "only tiles past the cut fail, 4", f"{code}, {len(failed)} of 49 failed")


@pytest.mark.parametrize("kind", ["zeroed", "random"])
def test_3_and_4_a_damaged_tile_costs_those_that_touch_it(capsys, tmp_path, image, say, kind):
    path, offsets, counts = image
    run(capsys, tmp_path, path)
    sound = store(tmp_path).embeddings[:]
    shutil.rmtree(tmp_path / "out")
    raw = bytearray(path.read_bytes())
    rng = np.random.default_rng(1)
    raw[offsets[12] : offsets[12] + counts[12]] = bytes(counts[12]) if kind == "zeroed" else rng.bytes(counts[12])
    path.write_bytes(raw)
    code, _words = run(capsys, tmp_path, path)
    found = store(tmp_path)
    failed = set(np.flatnonzero(found.obs["status"] == "decode_error").tolist())
    others = sorted(set(range(49)) - failed)
    assert (code, failed) == (4, touched(12))
    assert np.isnan(found.embeddings[:][sorted(failed)]).all()
    np.testing.assert_array_equal(found.embeddings[:][others], sound[others])
    shutil.rmtree(tmp_path / "out")
    assert run(capsys, tmp_path, path, on_error={"tile": "fail", "slide": "fail"})[0] == 3
    say(
        f"{3 if kind == 'zeroed' else 4} {kind} bytes in a tile",
        "NaN where they touch it, neighbours equal, 4",
        f"{code}, {len(failed)} failed",
    )


@pytest.mark.parametrize("kind", ["hang", "die"])
def test_5_a_decoder_that_hangs_or_crashes_costs_its_tile(capsys, tmp_path, monkeypatch, say, kind):
    plugin = tmp_path / "crash-1.dist-info"  # on the path of the child processes too
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: crash\nVersion: 1\n")
    (plugin / "entry_points.txt").write_text("[tilestream.sources]\ncrash = tests.support.crashing:open_crashing\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(isolation, "PATIENCE", 2.0)
    (tmp_path / "list.csv").write_text(
        f"path,id\ncrash://{kind}:100,200,a\n".replace(f"crash://{kind}:100,200", f'"crash://{kind}:100,200"')
    )
    code, words = run(capsys, tmp_path, tmp_path / "list.csv", compute={"shard_tiles": 10, "isolate": True})
    obs = store(tmp_path).obs
    bad = obs[obs["status"] == "timeout"]
    assert (code, bad[["row", "col"]].to_numpy().tolist()) == (4, [[1, 2]]), words
    good = obs["status"] == "ok"
    assert good.sum() == 24
    np.testing.assert_array_equal(store(tmp_path).embeddings[:][good, 0], obs["y"][good] % 251)
    assert np.isnan(store(tmp_path).embeddings[:][obs["status"] == "timeout"]).all()
    assert "twice; the tile was given up" in json.loads((tmp_path / "out" / "run.json").read_text())["slides"][0]["tile_errors"]["7"]
    say(f"5 a decoder that is made to {kind}", "its tile timed out after two tries, the rest complete, 4", f"{code}, 1 of 25 timed out")


def test_6_a_tile_of_no_bytes_is_background(capsys, tmp_path, image, say):
    path, _offsets, counts = image
    with tifffile.TiffFile(path, mode="r+") as tif:
        tag = tif.pages[0].tags["TileByteCounts"]
        tag.overwrite([0 if k == 12 else c for k, c in enumerate(counts)])
    code, _ = run(capsys, tmp_path, path)
    found = store(tmp_path)
    assert (code, set(found.obs["status"])) == (0, {"ok", "padded"})
    inside = 3 * 7 + 3  # tile (3, 3) covers rows and columns 288 to 383, file tile (2, 2) 256 to 383
    np.testing.assert_array_equal(found.embeddings[inside], [255, 255, 255])
    say("6 byte count 0", "background, no error", f"{code}")


def test_7_no_resolution_is_refused_with_what_to_write(capsys, tmp_path, say):
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
    say("7 mpp absent, then given", "3 with what to write; then recorded", "3, 0")


@pytest.mark.parametrize("mpp", ["0", "-0.5", "nan", "abc"])
def test_8_an_impossible_resolution_is_no_resolution(capsys, tmp_path, say, mpp):
    path = write_svs(tmp_path / "a.svs", make_image(SIDE, SIDE, 3), mpp=mpp)
    given = config(path, tmp_path / "out", tiles={"size": TILE, "mpp": 0.5, "level": None, "tissue": "none"})
    (tmp_path / "c.yaml").write_text(json.dumps(given))
    with pytest.raises(SystemExit) as left:  # the code is looked at
        main(["run", str(tmp_path / "c.yaml")])
    assert left.value.code == 3, capsys.readouterr()
    say(f"8 mpp {mpp} in the file", "3", f"{left.value.code}")


def test_9_downsamples_stay_fractions(capsys, tmp_path, say):
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
    say("9 downsample of 4.007", "a float throughout: the level's own pixels, at rounded places", f"{code}, {downsample:.4f}")


def test_10_colour_under_alpha_0_never_matters(capsys, tmp_path, say):
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
    say("10 colour hidden under alpha 0", "white, and no tissue", "white, 0 tiles")


def test_11_bounds_never_shift(capsys, tmp_path, slides, monkeypatch, say):
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
    say("11 bounds at (501, 303)", "recorded; places and pixels as without", f"{code}, equal")


@pytest.mark.parametrize(("height", "width", "tiles"), [(40, 50, 1), (1, 300, 4), (300, 1, 4)])
def test_12_an_image_smaller_than_a_tile_is_padded(capsys, tmp_path, say, height, width, tiles):
    tifffile.imwrite(tmp_path / "a.tif", make_image(height, width, 1), photometric="rgb")
    code, _ = run(capsys, tmp_path, tmp_path / "a.tif")
    found = store(tmp_path)
    assert (code, len(found.obs), set(found.obs["status"])) == (0, tiles, {"padded"})
    say(f"12 {height} x {width} px", "padded tiles", f"{tiles} padded")


def test_13_a_colour_profile_is_recorded_and_applied_where_asked_for(capsys, tmp_path, say):
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
def test_14_depth_channels_and_16_bits_must_be_chosen(capsys, tmp_path, say, shape, dtype, words):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, dtype), photometric="minisblack" if shape[-1] != 3 else "rgb")
    code, said = run(capsys, tmp_path, tmp_path / "a.tif")
    assert code == 3
    assert words in said
    say(f"14 {shape} {np.dtype(dtype)}", "3 with the key that chooses", f"{code}")


def test_15_one_of_several_scenes_must_be_chosen(capsys, tmp_path, say):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tif:
        for k in range(2):
            tif.write(np.full((200 + 10 * k, 300, 3), 50 + k, np.uint8), photometric="rgb", tile=(64, 64), metadata={"Name": f"scene {k}"})
    code, words = run(capsys, tmp_path, tmp_path / "a.ome.tif")
    assert code == 3
    assert "source: {scene: 0}" in words
    chosen, _ = run(capsys, tmp_path, tmp_path / "a.ome.tif", source={"scene": 1})
    assert (chosen, store(tmp_path).embeddings[0, 0]) == (0, 51)
    say("15 two scenes", "3 with the key that chooses; then that one", f"{code}, {chosen}")


def test_16_pixels_beyond_4_gib_are_read_from_there(capsys, tmp_path, say):
    path = write_pyramid(tmp_path / "a.tif", make_image(SIDE, SIDE, 3), tile=128, levels=1, bigtiff=True)
    assert run(capsys, tmp_path, path)[0] == 0
    sound = store(tmp_path).embeddings[:]
    shutil.rmtree(tmp_path / "out")
    with tifffile.TiffFile(path, mode="r+") as tif:
        offsets, counts = list(tif.pages[0].dataoffsets), tif.pages[0].databytecounts
        far = 5 * 2**30
        with path.open("r+b") as file:
            file.seek(offsets[12])
            piece = file.read(counts[12])
            file.seek(offsets[12])
            file.write(bytes(counts[12]))
            file.seek(far)
            file.write(piece)
        offsets[12] = far
        tif.pages[0].tags["TileOffsets"].overwrite(offsets)
    code, _ = run(capsys, tmp_path, path)
    assert code == 0
    np.testing.assert_array_equal(store(tmp_path).embeddings[:], sound)
    path.unlink()
    say("16 offsets beyond 4 GiB", "read as any other", f"{code}")


@pytest.mark.parametrize("kind", ["cycle", "million"])
def test_17_directories_in_a_circle_or_without_end_are_refused_at_once(capsys, tmp_path, image, say, kind):
    path = tmp_path / "b.tif"
    if kind == "cycle":
        raw = bytearray(write_pyramid(path, make_image(300, 300, 1), levels=2).read_bytes())
        first = struct.unpack_from("<I", raw, 4)[0]
        at = first + 2 + 12 * struct.unpack_from("<H", raw, first)[0]
        second = struct.unpack_from("<I", raw, at)[0]
        at = second + 2 + 12 * struct.unpack_from("<H", raw, second)[0]
        struct.pack_into("<I", raw, at, first)
        path.write_bytes(raw)
    else:
        step, count = 18, 1_000_000
        entry = struct.pack("<HHHII", 1, 256, 3, 1, 64)
        chain = b"".join(entry + struct.pack("<I", 8 + (k + 1) * step if k + 1 < count else 0) for k in range(count))
        path.write_bytes(struct.pack("<2sHI", b"II", 42, 8) + chain)
    start = time.monotonic()
    code, words = run(capsys, tmp_path, path)
    assert code == 3
    assert "director" in words
    assert time.monotonic() - start < 30  # a hang, not a benchmark: unchecked, libraries follow such a chain for minutes
    say(f"17 directories: {kind}", "3 at once", f"{code}")


@pytest.mark.parametrize("kind", ["bomb", "entity", "huge"])
def test_18_descriptions_never_expand_read_files_or_take_memory(capsys, tmp_path, say, kind):
    head = '<?xml version="1.0"?>'
    text = {
        "bomb": head + '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(f'<!ENTITY a{k} "{(f"&a{k - 1};" if k else "&a;") * 10}">' for k in range(10)) + "]><OME>&a9;</OME>",
        "entity": head + '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><OME><Image ID="&e;"/></OME>',
        "huge": head + "<OME>" + "x" * 50_000_000,
    }[kind]  # fmt: skip
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=False) as tif:
        tif.write(make_image(200, 200, 1), tile=(64, 64), description=text, metadata=None, photometric="rgb")
    code, words = run(capsys, tmp_path, tmp_path / "a.ome.tif")
    assert code in (0, 3)
    assert "root:" not in words
    say(f"18 description: {kind}", "read without it, or 3", f"{code}")


def test_19_a_claimed_gigabyte_is_refused_before_it_is_allocated(capsys, tmp_path, image, say):
    path, offsets, counts = image
    huge = write_pyramid(tmp_path / "b.tif", make_image(300, 300, 1), tile=256, levels=1, compression="lzw")
    with tifffile.TiffFile(huge, mode="r+") as tif:
        for name in ("TileWidth", "TileLength", "ImageWidth", "ImageLength"):
            tif.pages[0].tags[name].overwrite(18_944)
        for name in ("TileOffsets", "TileByteCounts"):
            tag = tif.pages[0].tags[name]
            tag.overwrite(tag.value[:1])
    raw = bytearray(path.read_bytes())
    frame = raw.index(b"\xff\xc0", offsets[12], offsets[12] + counts[12])
    raw[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)  # 12.9 GB of samples in a file tile of 128 px
    path.write_bytes(raw)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = peak_memory()
    code, words = run(capsys, tmp_path, huge)
    assert code == 3
    assert "the limit is 256 MiB" in words
    one, _ = run(capsys, tmp_path, path)
    assert one == 4
    assert set(np.flatnonzero(store(tmp_path).obs["status"] == "decode_error").tolist()) == touched(12)
    assert peak_memory() - before < 300 * 2**20
    say("19 tiles that claim 1 GB and 13 GB", "refused before allocation; in one tile: that tile", f"{code}, {one}")


@pytest.mark.slow
def test_19_ordinary_gigapixels_never_trip_a_limit(capsys, tmp_path, say):
    path, side, tile = tmp_path / "a.tif", 40_960, 1024
    with tifffile.TiffWriter(path) as tif:  # no bytes for any tile
        tif.write(
            iter([b""] * (side // tile) ** 2),
            shape=(side, side, 3),
            dtype=np.uint8,
            tile=(tile, tile),
            photometric="rgb",
            compression="lzw",
        )
    code, _ = run(capsys, tmp_path, path, tiles={"size": 512, "level": 0, "tissue": "none"}, compute={"shard_tiles": 2048})
    assert (code, len(store(tmp_path).obs)) == (0, 6400)
    with pytest.raises(SystemExit) as left:  # the code is looked at
        main(["inspect", str(path)])
    assert left.value.code == 0
    say("19 an ordinary image of 1.7 gigapixels", "no limit in its way", f"{code}")


def test_20_a_pickle_in_a_checkpoint_never_runs(capsys, tmp_path, image, say):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"state_dict": Trap()}, tmp_path / "w.pth")
    code, words = run(capsys, tmp_path, image[0], encoder={"name": "vit_tiny_patch16_224", "weights": str(tmp_path / "w.pth")})
    assert code == 3
    assert "nothing in it was executed" in words
    assert not (tmp_path / "sprung").exists()
    say("20 pickle in a checkpoint", "never runs, 3", f"{code}")


@pytest.mark.parametrize(
    ("kind", "lines", "words"),
    [
        ("tag", "slides: !!python/object/apply:os.system ['touch sprung']", "c.yaml:1"),
        ("key twice", "slides: a.tif\nslides: b.tif", "c.yaml:2: slides: written twice"),
        ("unknown key", "slides: a.tif\noutput: out\ntilles: {level: 0}", "c.yaml:3: tilles"),
        ("anchors", "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]", "c.yaml:2"),
        ("depth", "slides: " + "[" * 5000 + "]" * 5000, "c.yaml:1"),
    ],
)
def test_21_yaml_that_is_more_than_plain_data_is_refused(capsys, tmp_path, monkeypatch, say, kind, lines, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(lines)
    with pytest.raises(SystemExit) as left:  # the code is looked at
        main(["run", "c.yaml"])
    said = "".join(capsys.readouterr())
    assert left.value.code == 2
    assert words in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml"]
    say(f"21 YAML: {kind}", "2 with the line, nothing executed", f"{left.value.code}")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a\0b"])
def test_22_ids_cannot_leave_the_output(capsys, tmp_path, image, say, name):
    (tmp_path / "list.csv").write_bytes(f"path,id\n{image[0]},{name}\n".encode())
    code, _ = run(capsys, tmp_path, tmp_path / "list.csv")
    assert code == 2
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.zarr"))
    say(f"22 id {name!r}", "2 before any work", f"{code}")


@pytest.mark.parametrize("kind", ["link", "stem"])
def test_22_places_and_names_are_checked_before_any_work(capsys, tmp_path, image, say, kind):
    if kind == "link":
        (tmp_path / "out").mkdir()
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "file").write_text("dear")
        (tmp_path / "out" / "a.zarr").symlink_to(tmp_path / "precious")
        given = image[0]
    else:
        (tmp_path / "more").mkdir()
        shutil.copyfile(image[0], tmp_path / "more" / "a.tif")
        given = [image[0], tmp_path / "more" / "a.tif"]
    code, words = run(capsys, tmp_path, given)
    assert code == 2
    assert ("is a link to" if kind == "link" else "two slides have the id") in words
    assert kind == "stem" or (tmp_path / "precious" / "file").read_text() == "dear"
    say({"link": "22 a link out of the output", "stem": "22 two slides of one stem"}[kind], "2 before any work", f"{code}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """An image, and the output of a run with context and pooling that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = write_pyramid(folder / "a.tif", make_image(800, 700, 5), tile=128, levels=1)
    embed(path, folder / "out", compute={"shard_tiles": 10}, **SECTIONS)
    return path, opened(folder / "out", "a")


@pytest.mark.slow
def test_23_kill_9_and_the_same_command_again(tmp_path, undisturbed, say):
    chance = random.Random(1)
    killed_at([chance.uniform(0, 0.5) for _ in range(3)], undisturbed[0], tmp_path)
    ends_equal(tmp_path / "out", undisturbed[1])
    say("23 kill -9 at 3 random moments", "resumed, equal", "equal")


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_24_a_disk_that_fails_ends_with_5_and_resumes(capsys, tmp_path, undisturbed, monkeypatch, say, kind):
    flush, written = Folder.flush, 0

    def fail(self, key):
        nonlocal written
        written += 1
        if written == 6:
            raise OSError(kind, os.strerror(kind), key)
        flush(self, key)

    monkeypatch.setattr(Folder, "flush", fail)
    code, words = run(capsys, tmp_path, undisturbed[0], **SECTIONS)
    assert code == 5
    assert "cannot be written or read" in words
    again, _ = run(capsys, tmp_path, undisturbed[0], **SECTIONS)
    assert again == 0
    ends_equal(tmp_path / "out", undisturbed[1])
    say(f"24 {os.strerror(kind)} at the 6th write", "5, then resumed, equal", f"{code}, {again}, equal")


@pytest.mark.parametrize("harm", ["cut", "deleted"])
def test_25_what_a_power_cut_took_is_done_again(capsys, tmp_path, undisturbed, say, harm):
    embed(undisturbed[0], tmp_path / "out", compute={"shard_tiles": 10}, **SECTIONS)
    (tmp_path / "out" / "a.zarr" / ".tilestream" / "complete.json").unlink()
    damage(tmp_path / "out" / "a.zarr", "tiles", harm)
    code, words = run(capsys, tmp_path, undisturbed[0], **SECTIONS)
    assert code == 0
    assert "do not hold what was written" in words
    ends_equal(tmp_path / "out", undisturbed[1])
    say(f"25 a renamed shard, then {harm}", "found by its checksum, redone, equal", f"{code}, equal")


@pytest.mark.parametrize("harm", ["deleted", "cut", "flipped"])
def test_26_verify_finds_damage_and_no_reader_gets_zeros(capsys, tmp_path, undisturbed, say, harm):
    embed(undisturbed[0], tmp_path / "out", compute={"shard_tiles": 10}, **SECTIONS)
    hurt(tmp_path / "out" / "a.zarr" / "tables" / "tiles" / "X" / "c" / "3" / "0", harm)
    with pytest.raises(SystemExit) as left:  # the code is looked at
        main(["verify", str(tmp_path / "out")])
    words = capsys.readouterr().out
    assert left.value.code == 4
    assert "tables/tiles/X/c/3/0" in words
    assert "verify --repair" in words
    try:
        rows = opened(tmp_path / "out", "a").embeddings[30:40]
    except Exception as error:  # noqa: BLE001  # zarr's own, whichever it is
        seen = f"reading raises {type(error).__name__}"
    else:
        assert not (rows == 0).all(axis=1).any()
        seen = "reads as NaN" if np.isnan(rows).all() else "reads as other values"
    say(f"26 a chunk {harm}", "verify: 4 and its name; never zeros", f"{left.value.code}, {seen}")


def test_27_and_28_one_run_at_a_time_of_one_recipe(capsys, tmp_path, image, say):
    from tilestream.store.folder import Folder
    from tilestream.store.lock import hold_lock

    with hold_lock(Folder(str(tmp_path / "out")), image[0].stem):
        code, words = run(capsys, tmp_path, image[0])
        assert code == 6
        assert "in use by process" in words
    assert run(capsys, tmp_path, image[0])[0] == 0
    code, words = run(capsys, tmp_path, image[0], encoder="tests.support.encoders:corners")
    assert code == 6
    assert "encoder.name was" in words
    image[0].write_bytes(image[0].read_bytes() + b"more")
    code, words = run(capsys, tmp_path, image[0])
    assert code == 6
    assert "source.fingerprint" in words
    say("27, 28 in use; another recipe; other bytes", "6, and who or what", "6, 6, 6")


def test_27_a_dead_owner_is_replaced_even_where_its_number_lives_on(capsys, tmp_path, image, say):
    import platform

    lock = tmp_path / "out" / ".tilestream" / "claims" / f"{image[0].stem}.json"
    lock.parent.mkdir(parents=True)
    owner = {"host": platform.node(), "pid": os.getpid(), "since": "2026-01-01T00:00:00+00:00", "born": "another boot 1"}
    lock.write_text(json.dumps(owner))
    code, _ = run(capsys, tmp_path, image[0])
    assert (code, lock.exists()) == (0, False)
    say("27 a lock of a dead run, its number in use again", "taken over", f"{code}")


@pytest.mark.parametrize(("arguments", "code"), [([], 4), (["--shard", "0/2"], 0), (["--shard", "1/2"], 0)])
def test_27_a_slide_that_another_process_has_is_left_to_it(capsys, tmp_path, image, say, arguments, code):
    from tilestream.store.lock import hold_lock

    shutil.copyfile(image[0], tmp_path / "b.tif")
    given = config([image[0], tmp_path / "b.tif"], tmp_path / "out", tiles={"size": TILE})
    (tmp_path / "c.yaml").write_text(json.dumps(given))
    with hold_lock(Folder(str(tmp_path / "out")), "b"), pytest.raises(SystemExit) as left:  # the code is looked at
        main(["run", str(tmp_path / "c.yaml"), *arguments])
    assert left.value.code == code, capsys.readouterr()
    assert [path.stem for path in (tmp_path / "out").glob("*.zarr")] == ([] if "1/2" in arguments else [image[0].stem])
    say(f"27 {arguments} beside a process that has one slide", "the others are done", f"{code}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_29_a_worker_that_ends_is_replaced(tmp_path, undisturbed, say, number):
    import psutil

    write_config(undisturbed[0], tmp_path, scheduler="local", workers=2)
    run = start(tmp_path)
    wait_for_shard(run, tmp_path)
    workers = [p for p in psutil.Process(run.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    workers[-1].send_signal(number)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    ends_equal(tmp_path / "out", undisturbed[1])
    say(f"29 a Dask worker gets {number.name}", "replaced, equal", "0, equal")


@pytest.mark.slow
def test_29_a_poison_tile_ends_with_5_and_without_it_workers_live_on(tmp_path, undisturbed, say):
    write_config(undisturbed[0], tmp_path, "poison", scheduler="local", workers=1)
    run = start(tmp_path, TILESTREAM_TEST_COUNT=str(tmp_path / "count"))
    _, err = run.communicate(timeout=200)
    assert run.returncode == 5, err
    assert "killed 4 workers" in err
    assert "compute.isolate" in err
    say("29 a tile that kills each worker", "5 after 4 workers, and the way out", f"{run.returncode}")


@pytest.mark.parametrize(
    ("encoder", "number", "times"),
    [
        ("counted_corners", signal.SIGINT, 1),
        pytest.param("stuck", signal.SIGTERM, 1, marks=pytest.mark.slow),
        pytest.param("counted_corners", signal.SIGTERM, 1, marks=pytest.mark.slow),
        pytest.param("stuck", signal.SIGINT, 2, marks=pytest.mark.slow),
        pytest.param("stuck", signal.SIGTERM, 2, marks=pytest.mark.slow),
    ],
)
def test_30_one_interrupt_ends_within_10_s_and_a_second_at_once(tmp_path, undisturbed, say, encoder, number, times):
    write_config(undisturbed[0], tmp_path, encoder)
    run = start(tmp_path, TILESTREAM_TEST_COUNT=str(tmp_path / "count"))
    if encoder == "stuck":
        while not (tmp_path / "out" / "a.zarr" / "overview.png").exists() and not (tmp_path / "out" / "a.zarr" / "zarr.json").exists():
            time.sleep(0.05)
        time.sleep(0.5)
    else:
        wait_for_shard(run, tmp_path)
    began = time.monotonic()
    for k in range(times):
        time.sleep(0.3 * k)
        os.kill(run.pid, number)
    _, err = run.communicate(timeout=60)
    seconds = time.monotonic() - began
    assert run.returncode == 5, err
    assert seconds < (2 if times > 1 else 10)
    assert "the same command resumes" in err
    write_config(undisturbed[0], tmp_path, "counted_corners" if encoder != "stuck" else encoder)
    if encoder != "stuck":
        kept = len(list((tmp_path / "out" / "a.zarr" / ".tilestream" / "shards").glob("tiles-*")))
        assert kept >= 1
        again = start(tmp_path, TILESTREAM_TEST_COUNT=str(tmp_path / "count"))
        assert (again.communicate(timeout=60), again.returncode)[1] == 0
        assert same_store(opened(tmp_path / "out", "a"), undisturbed[1])
    say(f"30 {number.name} x {times} ({encoder})", "5 within 10 s, work kept" if times == 1 else "5 at once", f"5 after {seconds:.1f} s")
