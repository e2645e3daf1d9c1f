"""What an output was made of: every input by its digest; a changed one ends with 6 and its name before anything is read or written."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tilestream
from tests.support.encoders import corners
from tests.support.images import make_image, write_pyramid
from tests.support.runs import embed, opened
from tilestream.encoders.catalogue import EncoderSpec
from tilestream.encoders.registry import build_encoder
from tilestream.errors import OutputError
from tilestream.models.context import ContextTransformer
from tilestream.models.pooling import make_pool
from tilestream.runner.reporter import Reporter

CONTEXT = {"window": 4, "depth": 1, "heads": 3}
CORNERS = "tests.support.encoders:corners"


class Stop(Reporter):
    """Ends a run at its first shard, as Ctrl-C does."""

    def shard_done(self, report):
        raise KeyboardInterrupt


class Told(Reporter):
    """Keeps what a run says."""

    def __init__(self):
        self.lines = []

    def message(self, text, *, level="info"):
        self.lines.append(text)


def draw(path, x0, x1):
    ring = [[x0, 0], [x1, 0], [x1, 600], [x0, 600], [x0, 0]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))


def left_half(thumbnail, um_per_px):
    """A tissue function whose result is in a file."""
    del um_per_px
    mask = np.zeros(thumbnail.shape[:2], bool)
    mask[:, : int(mask.shape[1] * float(Path(PLACE["part"]).read_text()))] = True
    return mask


PLACE = {}


def png_mask(folder, part):
    from PIL import Image

    mask = np.zeros((60, 60), np.uint8)
    mask[:, : int(60 * part)] = 255
    Image.fromarray(mask).save(folder / "mask.png")


def weights(path, module):
    save_file({name: value + torch.rand(()) + 0.1 for name, value in module.state_dict().items()}, path)


def coords(folder, shift):
    import h5py

    with h5py.File(folder / "a.h5", "w") as file:
        places = file.create_dataset("coords", data=np.array([(x + shift, y) for y in range(0, 512, 64) for x in range(0, 512, 64)]))
        places.attrs["patch_size"], places.attrs["patch_level"] = 64, 0


def other_image(folder, seed):
    write_pyramid(folder / "a.tif", make_image(600, 600, seed), compression="deflate", levels=1, mpp=0.5)


def slide_list(folder, mpp):
    (folder / "list.csv").write_text(f"path,id,mpp\na.tif,a,{mpp}\n")


INPUTS = {
    "mask GeoJSON": (lambda f, k: draw(f / "m.geojson", 0, 300 + 100 * k), {"tiles": {"tissue": {"mask": "m.geojson"}}}, "tiles.tissue.mask_sha256"),
    "mask PNG": (lambda f, k: png_mask(f, 0.4 + 0.3 * k), {"tiles": {"tissue": {"mask": "mask.png"}}}, "tiles.tissue.mask_sha256"),
    "coords": (coords, {"tiles": {"from": "a.h5", "level": None, "tissue": "none"}}, "tiles.from_sha256"),
    "tissue function": (lambda f, k: (f / "part").write_text(str(0.4 + 0.3 * k)), {"tiles": {"tissue": f"{__name__}:left_half"}}, "tiles.tissue.kept_sha256"),
    "encoder weights": (
        lambda f, _: weights(f / "e.safetensors", build_encoder(EncoderSpec("patch_embed"))), {"encoder": {"name": "patch_embed", "weights": "e.safetensors"}}, "encoder.file_sha256",
    ),
    "a file that an argument names": (lambda f, k: (f / "gain").write_text(str(k)), {"encoder": {"name": "tests.support.encoders:scaled", "args": {"gain": "gain"}}}, "encoder.gain_sha256"),
    "slide": (other_image, {}, "source.fingerprint"),
    "mpp of the slide list": (lambda f, k: slide_list(f, 0.5 + 0.1 * k), {"slides": "list.csv"}, "source.mpp"),
}  # fmt: skip
"""How each input is made, another one for another number; the config that names it; the field that is then said to differ."""

LATER = {
    "context weights": (lambda f, _: weights(f / "c.safetensors", ContextTransformer(dim=12, depth=1, heads=3, window=4)), {"context": {**CONTEXT, "weights": "c.safetensors"}}),
    "pool weights": (lambda f, _: weights(f / "p.safetensors", make_pool("gated_attention", 12, None)), {"pool": {"name": "gated_attention", "weights": "p.safetensors"}}),
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PLACE["part"] = str(tmp_path / "part")
    other_image(tmp_path, 1)
    return tmp_path


def sections(given):
    tiles = {key: value for key, value in {"size": 64, "level": 0, **given.get("tiles", {})}.items() if value is not None}
    base = {"slides": "a.tif", "output": {"path": "out", "dtype": "float32"}, "encoder": CORNERS, "pool": "none"}
    return {**base, **given, "tiles": tiles, "compute": {"scheduler": "inline", "threads": 1, "shard_tiles": 16}}


def snapshot(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "begun"])
@pytest.mark.parametrize("name", INPUTS)
def test_another_input_under_the_same_name_is_refused_by_name_before_anything_is_done(place, name, finished, monkeypatch):
    make, given, field = INPUTS[name]
    make(place, 0)
    if finished:
        assert tilestream.run(sections(given)).exit_code == 0
    else:
        with pytest.raises(KeyboardInterrupt):
            tilestream.run(sections(given), reporter=Stop())
    before = snapshot(place / "out")
    make(place, 1)
    with pytest.raises(OutputError, match=field.replace(".", r"\.")):
        tilestream.run(sections(given))
    assert snapshot(place / "out") == before


@pytest.mark.parametrize("name", LATER)
def test_other_weights_of_a_later_stage_cost_that_stage_alone(place, name):
    make, given = LATER[name]
    make(place, 0)
    tilestream.run(sections({"pool": "mean", **given}))
    before = snapshot(place / "out" / "a.zarr" / "tables" / "tiles" / "X")
    make(place, 1)
    told = Told()
    again = tilestream.run(sections({"pool": "mean", **given}), reporter=told)
    assert any(f"{name.replace(' ', '.')}_sha256) was" in line and "is computed again" in line for line in told.lines)
    assert (again.new_tiles, again.slides[0].status) == (0, "done")
    assert snapshot(place / "out" / "a.zarr" / "tables" / "tiles" / "X") == before
    other = sections({"pool": "mean", **given, "output": {"path": "anew", "dtype": "float32"}})
    tilestream.run(other)
    found, anew = opened("out", "a"), opened("anew", "a")
    np.testing.assert_array_equal(found.slide_vector, anew.slide_vector)
    assert (found.context is None) or np.array_equal(found.context[:], anew.context[:])


def test_the_same_bytes_at_another_place_are_the_same_input(place):
    draw(place / "m.geojson", 0, 300)
    tilestream.run(sections({"tiles": {"tissue": {"mask": "m.geojson"}}}))
    shutil.move(place / "m.geojson", place / "n.geojson")
    assert tilestream.run(sections({"tiles": {"tissue": {"mask": "n.geojson"}}})).slides[0].status == "already done"


@pytest.mark.parametrize(("first", "then"), [("auto", "dark"), ("bright", "auto"), ("bright", "dark")])
def test_another_ground_of_tissue_is_another_input_and_one_that_is_not_stated_stands_in_no_recipe(place, first, then):
    del place
    tilestream.run(sections({"tiles": {"tissue": {"ground": first}}}))
    assert opened("out", "a").recipe["tiles"]["tissue"].get("ground", "auto") == first
    assert tilestream.run(sections({"tiles": {"tissue": {"ground": first}}})).slides[0].status == "already done"
    with pytest.raises(OutputError, match=r"made by another recipe: tiles\.tissue\.ground"):
        tilestream.run(sections({"tiles": {"tissue": {"ground": then}}}))


def test_a_run_goes_on_with_the_rows_of_its_store(place, monkeypatch):
    given = sections({"tiles": {"tissue": f"{__name__}:left_half"}})
    (place / "part").write_text("0.5")
    with pytest.raises(KeyboardInterrupt):
        tilestream.run(given, reporter=Stop())
    tilestream.run(given)
    embed(place / "a.tif", place / "whole", tiles={"size": 64}, encoder=CORNERS)
    found, whole = opened(place / "out", "a"), opened(place / "whole", "a")
    rows = {(row, col): k for k, (row, col) in enumerate(whole.obs[["row", "col"]].to_numpy().tolist())}
    own = [rows[row, col] for row, col in found.obs[["row", "col"]].to_numpy().tolist()]
    assert 0 < len(own) < len(rows)
    np.testing.assert_array_equal(found.embeddings[:], whole.embeddings[:][own])


def test_another_version_of_the_package_goes_on_and_other_numerics_do_not(place, monkeypatch):
    tilestream.run(sections({}))
    for module in ("runner.summary", "interop.exports"):
        monkeypatch.setattr(f"tilestream.{module}.__version__", "99.0", raising=False)
    assert tilestream.run(sections({})).slides[0].status == "already done"
    monkeypatch.setattr("tilestream.runner.recipe.NUMERICS", 2)
    with pytest.raises(OutputError, match="numerics was 1 and is now 2"):
        tilestream.run(sections({}))


def shaded(shade=0):
    return corners()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"shade": 1}, {}, "encoder.args was {'shade': 1} and is now not set"),
        ({}, {"shade": 1}, "encoder.args.shade was not set and is now 1"),
        ({"shade": 1}, {"shade": 2}, "encoder.args.shade was 1 and is now 2"),
    ],
)
def test_changed_arguments_are_told_once_in_words(place, before, after, words):
    name = "tests.e2e.test_identity:shaded"
    tilestream.run(sections({"encoder": {"name": name, "args": before}}))
    with pytest.raises(OutputError, match=rf"made by another recipe: {re.escape(words)}\. "):
        tilestream.run(sections({"encoder": {"name": name, "args": after}}))


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "begun"])
def test_other_columns_of_the_slide_list_are_said(place, finished):
    (place / "list.csv").write_text("path,id,patient,site\na.tif,a,p1,north\n")
    settings = sections({"slides": "list.csv"})
    if finished:
        tilestream.run(settings)
    else:
        with pytest.raises(KeyboardInterrupt):
            tilestream.run(settings, reporter=Stop())
    (place / "list.csv").write_text("path,id,patient\na.tif,a,p2\n")
    told = Told()
    tilestream.run(settings, reporter=told)
    words = "which keeps what it has: patient was p1 and is now p2; site was north and is now not set"
    assert any(words in line for line in told.lines)
    assert opened("out", "a").obs["patient"].unique().tolist() == ["p1"]
