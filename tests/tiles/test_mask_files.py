"""A slide's mask is the slide list's, a pattern's, a folder's or the one file; where there is none, that is said."""

import json
import re

import pytest
from PIL import Image

from tilestream.config.schema import Config
from tilestream.config.slide_list import SlideRef, list_slides
from tilestream.errors import InputError
from tilestream.runner.plan_command import named
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.tiles.annotations.mask_files import mask_file
from tilestream.tiles.grid import find_tiles


def config(tissue):
    return Config(slides="a.svs", output="out", tiles={"level": 0, "tissue": tissue}, encoder="patch_embed")


@pytest.fixture
def masks(tmp_path):
    for name in ("a.geojson", "b.svs.geojson.gz", "c.json", "c.png", "one.xml"):
        (tmp_path / name).touch()
    return tmp_path


REFS = {name: SlideRef(name, f"/slides/{name}.svs") for name in "abcd"}


def test_one_file_a_pattern_and_a_folder_name_the_file_of_a_slide(masks):
    assert mask_file(config({"mask": masks / "one.xml"}), REFS["a"]) == masks / "one.xml"
    assert mask_file(config({"mask": f"{masks}/{{slide}}.geojson"}), REFS["a"]) == masks / "a.geojson"
    assert mask_file(config({"mask": masks}), REFS["a"]) == masks / "a.geojson"
    assert mask_file(config({"mask": masks}), REFS["b"]) == masks / "b.svs.geojson.gz"
    assert mask_file(config("otsu"), REFS["a"]) is None


def test_a_slide_without_a_mask_or_with_two_is_refused(masks):
    with pytest.raises(InputError, match=r"d: tiles\.tissue\.mask: the folder .* has no file d\.geojson"):
        mask_file(config({"mask": masks}), REFS["d"])
    with pytest.raises(InputError, match=r"c: tiles\.tissue\.mask: the folder .* has c\.json and c\.png for one slide"):
        mask_file(config({"mask": masks}), REFS["c"])
    with pytest.raises(InputError, match=r"d: tiles\.tissue\.mask: there is no file .*/d\.geojson"):
        mask_file(config({"mask": f"{masks}/{{slide}}.geojson"}), REFS["d"])
    with pytest.raises(InputError, match=r"a: tiles\.tissue\.mask: there is no file gone\.png"):
        mask_file(config({"mask": "gone.png"}), REFS["a"])


def test_the_column_of_the_slide_list_goes_before_the_config(masks):
    (masks / "slides.csv").write_text("path,mask\nx.svs,one.xml\na.svs,\nb.svs,gone.xml\n")
    first, second, third = list_slides([str(masks / "slides.csv")])
    for tissue in ("otsu", "none", {"mask": masks}):
        assert mask_file(config(tissue), first) == masks / "one.xml"
    assert mask_file(config({"mask": masks}), second) == masks / "a.geojson"
    assert mask_file(config("otsu"), second) is None
    with pytest.raises(InputError, match=r"b: the slide list's mask: there is no file .*gone\.xml"):
        mask_file(config("otsu"), third)


def test_a_plan_keeps_the_tiles_of_each_slides_own_mask(tmp_path):
    from tilestream.runner.plan_command import plan_slides

    for name, side in (("left", 512), ("right", 1024)):
        ring = [[0, 0], [side, 0], [side, 1024], [0, 1024]]
        (tmp_path / f"{name}.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    rows = [f"sample://he?width=1024&height=1024&seed={seed},{name},{name}.geojson" for seed, name in ((0, "left"), (1, "right"))]
    (tmp_path / "slides.csv").write_text("\n".join(["path,id,mask", *rows]))
    told = {"slides": tmp_path / "slides.csv", "output": "out", "tiles": {"level": 0, "size": 256}, "encoder": "patch_embed"}
    assert [len(slide.plan) for slide in plan_slides(Config(**told)).slides] == [8, 16]


def small_polygon(folder):
    ring = [[300, 300], [330, 300], [330, 330], [300, 330]]
    (folder / "small.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return "small.geojson"


def black_picture(folder):
    Image.new("L", (64, 64)).save(folder / "black.png")
    return "black.png"


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (small_polygon, r"what \S*small\.geojson marks covers .* less than tiles\.tissue\.min_fraction \(0\.1\) of each tile"),
        (black_picture, r"\S*black\.png marks no part of the image"),
    ],
)
def test_a_mask_that_leaves_no_tile_is_told(tmp_path, mask, words):
    with open_source("sample://he?width=1024&height=1024", SourceOptions()) as source:
        found = find_tiles(source, size=512, level=0, tissue={"mask": str(tmp_path / mask(tmp_path))})
        assert len(find_tiles(source, size=512, level=0, tissue="otsu").warnings) == len(source.info.warnings)
    assert len(found) == 0
    assert any(re.search(f"no tile is kept: {words}", warning) for warning in found.warnings)


def test_the_name_of_a_refused_slide_is_said_once():
    assert named("a", "a: tiles.tissue.mask: there is no file a.png.") == named("a", "tiles.tissue.mask: there is no file a.png.")
