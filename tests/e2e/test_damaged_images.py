"""Images that are damaged, hostile or immense, through the whole program."""

import json
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.support.faults import SIDE, run, store, touched
from tests.support.images import make_image, write_pyramid
from tilestream.cli import main
from tilestream.stages.hardware import peak_memory
from tilestream.tiles import isolation


def test_a_slide_whose_directory_is_cut_off_is_refused(capsys, tmp_path, image, slides, say):
    shutil.copyfile(slides / "CMU-1-Small-Region.svs", tmp_path / "b.svs")
    with (tmp_path / "b.svs").open("r+b") as file:
        file.truncate((tmp_path / "b.svs").stat().st_size // 2)
    code, words = run(capsys, tmp_path, tmp_path / "b.svs")
    assert (code, (tmp_path / "out" / "b.zarr").exists()) == (3, False)
    assert "b.svs" in words
    say("cut at half, directory at the end", "refused with 3, no output", f"{code}")


def test_a_slide_cut_inside_its_pixels_loses_the_tiles_past_the_cut(capsys, tmp_path, image, say):
    path, offsets, _counts = image
    assert min(offsets) > path.read_bytes().index(b"\xff\xd8") - 1  # the directory lies before the pixels
    with path.open("r+b") as file:
        file.truncate(offsets[15])
    code, _ = run(capsys, tmp_path, path)
    failed = set(np.flatnonzero(store(tmp_path).obs["status"] == "decode_error").tolist())
    assert code == 4
    assert failed == set().union(*(touched(k) for k in range(15, 25)))
    say("cut inside the pixels", "only tiles past the cut fail, 4", f"{code}, {len(failed)} of 49 failed")


@pytest.mark.parametrize("kind", ["zeroed", "random"])
def test_a_damaged_tile_costs_those_that_touch_it(capsys, tmp_path, image, say, kind):
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


@pytest.mark.parametrize("kind", [pytest.param("hang", marks=pytest.mark.slow), "die"])
def test_a_decoder_that_hangs_or_crashes_costs_its_tile(capsys, tmp_path, monkeypatch, say, kind):
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
    say(f"a decoder that is made to {kind}", "its tile timed out after two tries, the rest complete, 4", f"{code}, 1 of 25 timed out")


def test_a_tile_of_no_bytes_is_background(capsys, tmp_path, image, say):
    path, _offsets, counts = image
    with tifffile.TiffFile(path, mode="r+") as tif:
        tag = tif.pages[0].tags["TileByteCounts"]
        tag.overwrite([0 if k == 12 else c for k, c in enumerate(counts)])
    code, _ = run(capsys, tmp_path, path)
    found = store(tmp_path)
    assert (code, set(found.obs["status"])) == (0, {"ok", "padded"})
    inside = 3 * 7 + 3  # tile (3, 3) covers rows and columns 288 to 383, file tile (2, 2) 256 to 383
    np.testing.assert_array_equal(found.embeddings[inside], [255, 255, 255])
    say("byte count 0", "background, no error", f"{code}")


def test_pixels_beyond_4_gib_are_read_from_there(capsys, tmp_path, say):
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
    say("offsets beyond 4 GiB", "read as any other", f"{code}")


@pytest.mark.parametrize("kind", ["cycle", "million"])
def test_directories_in_a_circle_or_without_end_are_refused_at_once(capsys, tmp_path, image, say, kind):
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
    say(f"directories: {kind}", "3 at once", f"{code}")


@pytest.mark.parametrize("kind", ["bomb", "entity", "huge"])
def test_descriptions_never_expand_read_files_or_take_memory(capsys, tmp_path, say, kind):
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
    say(f"description: {kind}", "read without it, or 3", f"{code}")


def test_a_claimed_gigabyte_is_refused_before_it_is_allocated(capsys, tmp_path, image, say):
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
    say("tiles that claim 1 GB and 13 GB", "refused before allocation; in one tile: that tile", f"{code}, {one}")


@pytest.mark.slow
def test_ordinary_gigapixels_never_trip_a_limit(capsys, tmp_path, say):
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
    say("an ordinary image of 1.7 gigapixels", "no limit in its way", f"{code}")
