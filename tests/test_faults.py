"""Faults of the image and of the command, through the whole program: what was promised, and what is seen. `-s` prints the table."""

import json
import shutil
import struct
import time

import numpy as np
import pytest
import tifffile
import torch

from tests.support.images import make_image, write_pyramid, write_svs
from tests.support.runs import config
from tilestream.cli import main

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
    import tilestream

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


@pytest.mark.parametrize(("height", "width", "tiles"), [(40, 50, 1), (1, 300, 4), (300, 1, 4)])
def test_12_an_image_smaller_than_a_tile_is_padded(capsys, tmp_path, say, height, width, tiles):
    tifffile.imwrite(tmp_path / "a.tif", make_image(height, width, 1), photometric="rgb")
    code, _ = run(capsys, tmp_path, tmp_path / "a.tif")
    found = store(tmp_path)
    assert (code, len(found.obs), set(found.obs["status"])) == (0, tiles, {"padded"})
    say(f"12 {height} x {width} px", "padded tiles", f"{tiles} padded")


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


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a\0b"])
def test_22_ids_cannot_leave_the_output(capsys, tmp_path, image, say, name):
    (tmp_path / "list.csv").write_bytes(f"path,id\n{image[0]},{name}\n".encode())
    code, _ = run(capsys, tmp_path, tmp_path / "list.csv")
    assert code == 2
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.zarr"))
    say(f"22 id {name!r}", "2 before any work", f"{code}")


def test_27_and_28_one_run_at_a_time_of_one_recipe(capsys, tmp_path, image, say):
    from tilestream.lock import hold_lock
    from tilestream.objects import Folder

    assert run(capsys, tmp_path, image[0])[0] == 0
    with hold_lock(Folder(str(tmp_path / "out")), "run"):
        code, words = run(capsys, tmp_path, image[0])
        assert code == 6
        assert "in use by process" in words
    code, words = run(capsys, tmp_path, image[0], encoder="tests.support.encoders:corners")
    assert code == 6
    assert "encoder.name was" in words
    say("27, 28 in use; another recipe", "6, and who or what", "6, 6")


def test_a_cohort_with_broken_slides_ends_with_4_and_lists_them(capsys, tmp_path, say):
    folder = tmp_path / "slides"
    folder.mkdir()
    for k in range(18):
        write_pyramid(folder / f"good{k:02}.tif", make_image(200, 200, k), tile=64, levels=1)
    (folder / "empty.tif").write_bytes(b"")
    (folder / "words.tif").write_text("this is no image")
    code, _words = run(capsys, tmp_path, f"{folder}/*.tif", compute={"shard_tiles": 10})
    told = json.loads((tmp_path / "out" / "run.json").read_text())
    refused = {s["id"]: s["error"] for s in told["slides"] if s["status"] == "refused"}
    assert (code, set(refused)) == (4, {"empty", "words"})
    assert all(refused.values())
    assert sum(s["status"] == "done" for s in told["slides"]) == 18
    code, _ = run(capsys, tmp_path, f"{folder}/*.tif")
    again = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (code, again["new_tiles"]) == (4, 0)
    say("cohort: 2 of 20 broken", "18 done, 2 listed with causes, 4; rerun does nothing", "4, 0 new tiles")
