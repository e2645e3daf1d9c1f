"""How the image itself is shown: damaged places, other channels."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.support.images import make_image, write_pyramid
from tests.support.runs import embed
from tests.support.viewing import JSON, ask
from tilestream.viewer.catalogue import Catalogue
from tilestream.viewer.deepzoom import BLOCK, Zoom, hatched
from tilestream.viewer.web.facts import slide_told


def test_a_damaged_place_is_hatched_and_the_rest_is_sharp(tmp_path):
    path = write_pyramid(tmp_path / "a.tif", make_image(1000, 1000, 3), levels=1)
    embed(path, tmp_path / "out")
    catalogue = Catalogue([str(tmp_path / "out")])
    slide = catalogue.slide(0)
    whole = np.asarray(Image.open(io.BytesIO(catalogue.zoom.tile(0, slide, (Zoom(slide.size).deepest, 0, 0)))))
    catalogue.zoom.images.close()
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        side, across = page.tilewidth, -(-page.imagewidth // page.tilewidth)
        offset, count = page.dataoffsets[across + 1], page.databytecounts[across + 1]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))
    catalogue = Catalogue([str(tmp_path / "out")], roots=[str(tmp_path)])
    shown = np.asarray(Image.open(io.BytesIO(catalogue.zoom.tile(0, slide, (Zoom(slide.size).deepest, 0, 0)))))
    catalogue.zoom.images.close()
    first, last = side // BLOCK * BLOCK, -(-2 * side // BLOCK) * BLOCK
    damaged = np.zeros(shown.shape[:2], bool)
    damaged[first:last, first:last] = True
    pattern = np.asarray(hatched(*shown.shape[:2]))
    assert np.abs(shown[damaged].astype(int) - pattern[damaged]).mean() < 12
    assert np.abs(shown[~damaged].astype(int) - whole[~damaged]).mean() < 2


@pytest.fixture
def channels(tmp_path):
    """An output of a slide of four channels of 16 bits, of which three were read."""
    levels = np.arange(4, dtype=np.uint16)[:, None, None] * 900 + 100
    pixels = np.broadcast_to(levels, (4, 600, 700)).copy()
    about = {"axes": "CYX", "Channel": {"Name": ["DAPI", "CD3", "CD8", "Ki67"]}}
    tifffile.imwrite(tmp_path / "f.ome.tif", pixels, ome=True, tile=(256, 256), metadata=about, photometric="minisblack")
    source = {"channels": ["DAPI", "CD3", "CD8"], "window": [0, 4000]}
    embed(tmp_path / "f.ome.tif", tmp_path / "out", source=source)
    return tmp_path / "out"


def test_other_channels_and_another_range_are_shown_and_nothing_else_is_opened(channels):
    told = slide_told(Catalogue([str(channels)]), 0)
    assert told["channels"] == ["DAPI", "CD3", "CD8", "Ki67"]
    assert (told["read"], told["window"]) == ([0, 1, 2], [0, 4000])
    queries = [
        "",
        "?channels=3,3,0&window=0,5600",
        "?channels=1",
        "?channels=9",
        "?channels=a",
        "?channels=0,1",
        "?window=5,nan",
        "?window=5,1",
    ]
    answers = ask(channels, [(f"/tiles/0/0/0/0.jpg{query}",) for query in queries])
    assert [code for code, _ in answers[3:]] == [200, 400, 400, 400, 200]  # what cannot be read so is shown by the thumbnail
    seen = [np.asarray(Image.open(io.BytesIO(data))).mean(axis=(0, 1)) for code, data in answers[:3] if code == 200]
    for found, expected in zip(seen, ([6.4, 63.75, 121.1], [127.5, 127.5, 4.6], [63.75] * 3), strict=True):
        np.testing.assert_allclose(found, expected, atol=3)


def test_a_selection_that_is_none_is_refused_in_words(channels):
    wrong = [
        {"tiles": [], "as": "csv"},
        {"tiles": [99999], "as": "csv"},
        {"tiles": [0], "as": "labels"},
        {"tiles": [0], "as": "exe"},
        {"tiles": "a"},
    ]
    answers = ask(channels, [("/slides/0/selection", JSON, each) for each in wrong] + [("/slides/0/selection", {}, wrong[0])])
    assert [code for code, _ in answers] == [400] * 5 + [415]
    for (_, body), words in zip(
        answers, ("list of numbers of tiles", "0 to", "name of a class", "csv, geojson or labels", "list"), strict=False
    ):
        assert words in body.decode()
