"""A folder as people have it, of many formats with broken files among them: `init` writes a config, which runs as it stands and says of each file that it leaves out why."""

import json
import re
import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image

import tilestream
from tests.support.dicom import write_series
from tests.support.images import make_image, pyramid, write_ome_zarr, write_pyramid, write_svs
from tilestream.cli import main

WAY_OUT = re.compile(r"Copy it again|[Cc]onvert|Choose in the config|export it again|Add a|Set |add a CSV column|source: \{|mpp")
"""How a refusal says what to do."""


def fill(folder, slides, *, large):
    """Files of ten kinds and more; what is to be read of them, and what cannot be."""
    image = make_image(500, 640, seed=7)
    folder.mkdir()
    write_svs(folder / "aperio.svs", image)
    write_pyramid(folder / "generic.tif", image, mpp=0.5)
    tifffile.imwrite(
        folder / "ome.ome.tif", image, tile=(128, 128), photometric="rgb",
        metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"},
    )  # fmt: skip
    write_series(folder, pyramid(image, 2), prefix="scan")
    write_ome_zarr(folder / "stored.zarr", image, mpp=0.5)
    shutil.copy(slides / "cogeo.tif", folder / "map.tif")
    read = {"aperio", "generic", "ome", "scan0", "stored"}
    if large:
        shutil.copy(slides / "test3-DAPI-2-387.ndpi", folder / "hamamatsu.ndpi")
        read.add("hamamatsu")
    Image.fromarray(image).save(folder / "picture.png")  # states no resolution
    (folder / "broken.svs").write_bytes(b"IJrE no image")
    (folder / "empty.tif").write_bytes(b"")
    whole = (folder / "generic.tif").read_bytes()
    (folder / "cut.tif").write_bytes(whole[:64] + whole[-64:])
    tifffile.imwrite(
        folder / "stack.ome.tif", np.zeros((5, 256, 256), np.uint8), tile=(128, 128), photometric="minisblack", metadata={"axes": "ZYX"}
    )
    (folder / "notes.txt").write_text("no slide")
    return read, {"picture", "map", "broken", "empty", "cut", "stack"}


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


@pytest.mark.parametrize("large", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["small", "with-ndpi"])
def test_a_mixed_folder_goes_from_init_to_a_run_whose_refusals_say_what_to_do(tmp_path, slides, monkeypatch, capsys, large):
    monkeypatch.chdir(tmp_path)
    read, refused = fill(tmp_path / "slides", slides, large=large)
    assert command("init", "slides") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{len(read) + 2} images can be read" in said  # the picture and the map among them
    for slide in refused:
        assert f"{slide}: will be refused: " in said
    comments = (tmp_path / "config.yaml").read_text()
    assert "1 image will be refused: their files state no resolution. Add a CSV column mpp" in comments
    assert "1 image will be refused: maps want a config of their own, with level: 0" in comments
    assert command("run", "config.yaml") == 4
    printed = capsys.readouterr()
    assert f"{len(read)} done, {len(refused)} refused" in printed.out
    state = {slide["id"]: slide for slide in json.loads((tmp_path / "embeddings" / "run.json").read_text())["slides"]}
    assert {slide for slide, told in state.items() if told["status"] == "done"} == read
    for slide in refused:
        words = state[slide]["error"]
        assert state[slide]["status"] == "refused"
        assert WAY_OUT.search(words), words
        assert not re.search(r"Traceback|Error\(|refused: ", words), words
        if slide not in ("picture", "map"):  # init said the same
            assert " ".join(words.split()) in said
    for slide in read:
        assert tilestream.open(f"embeddings/{slide}.zarr").embeddings.shape[0] > 0
    assert command("report", "embeddings") == 0
