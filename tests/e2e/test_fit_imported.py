"""Heads that are fitted on features of other programs: what the import says of its encoder, tiles and resolution is held against the run."""

import re
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import CORNERS, config, newest_record
from tilestream.encoders.contexts.context_file import read_context_about
from tilestream.encoders.heads.head_file import Fitted, read_about
from tilestream.errors import ConfigError
from tilestream.fitting.fit import fit
from tilestream.interop.importing import import_features
from tilestream.runner.heads.fitting import check_fitted_encoder, our_name
from tilestream.runner.reporter import Reporter

CORNERS_NAME = CORNERS["encoder"]


class Heard(Reporter):
    def __init__(self):
        self.said = []

    def message(self, text, *, level="info"):
        self.said.append(text)


def write_features(path, seed, encoder, tile=64):
    chance = np.random.default_rng(seed)
    xy = [(x * tile, y * tile) for y in range(5) for x in range(5)]
    with h5py.File(path, "w") as file:
        file["features"] = chance.normal(size=(25, 12)).astype(np.float32) + (seed % 2)
        file["coords"] = np.asarray(xy, np.int64)
        file["coords"].attrs.update({"patch_size": tile, "patch_size_level0": tile, "patch_level": 0})
        if encoder:
            file["features"].attrs["encoder"] = encoder


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return write_pyramid(tmp_path_factory.mktemp("image") / "a.tif", make_image(320, 320, 1), compression="deflate", levels=1, mpp=0.5)


def fitted(folder, image, encoder, stated=None, tile=64, **sections):
    """The head of four imports, of which one is of an image whose resolution is known."""
    for i in range(4):
        write_features(folder / f"s{i}.h5", i, encoder, tile)
        import_features(str(folder / f"s{i}.h5"), str(image) if i == 3 else f"s{i}", str(folder / "in"), encoder=stated)
    names = ["s0", "s1", "s2", "a"]
    (folder / "labels.csv").write_text("slide,patient,kind\n" + "".join(f"{name},p{i},{'ab'[i % 2]}\n" for i, name in enumerate(names)))
    given = {
        "embeddings": str(folder / "in"),
        "target": {"slides": str(folder / "labels.csv"), "column": "kind"},
        "head": {"name": "kind", "kind": "classify", "model": "linear"},
        "split": {"folds": 2},
        "save": str(folder / "kind.safetensors"),
    }
    return fit({**given, **sections})


def run_with(folder, image, **sections):
    heard = Heard()
    heads = {"kind": {"kind": "classify", "model": str(folder / "kind.safetensors")}}
    return tilestream.run(config(image, folder / "out", **{**CORNERS, "heads": heads, **sections}), reporter=heard), heard.said


@pytest.mark.parametrize(
    ("encoder", "run", "refused"),
    [
        ("uni_v2", "uni", "h was fitted on imported embeddings of uni_v2, but encoder.name is uni. Set encoder to uni2-h, or fit it anew. Where both"),
        ("my own", "uni", "h was fitted on imported embeddings of my own, but encoder.name is uni. Set encoder to my own, .* --encoder uni and fit anew"),
        ("uni_v2", "uni2-h", None), ("uni2-h", "uni2-h", None), ("my own", "my own", None), ("mine:encoder", "mine:encoder", None), ("unknown", "uni", None),
    ],
)  # fmt: skip
def test_what_was_fitted_on_imports_is_held_to_the_encoder_that_they_name(encoder, run, refused):
    facts = SimpleNamespace(name=run, digest="ab" * 32, precision="fp32")
    fitted = Fitted(encoder, None, None, 64, None)
    if refused:
        with pytest.raises(ConfigError, match=refused):
            check_fitted_encoder("h was fitted on", fitted, facts, "fit it anew")
    else:
        check_fitted_encoder("h was fitted on", fitted, facts, "fit it anew")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "stated", "note"),
    [
        ("uni_v2", None, None),
        ("my own", CORNERS_NAME, "that their encoder is .* is taken from its name"),
        (None, None, "whose file names no encoder: nothing tells whether it is"),
    ],
)
def test_a_head_is_held_to_the_encoder_that_the_import_names(image, tmp_path, encoder, stated, note):
    about = read_about(fitted(tmp_path, image, encoder, stated).head)
    assert about.fitted == Fitted(stated or encoder or "unknown", None, None, 64, 0.5)
    if note is None:
        with pytest.raises(ConfigError, match=f"imported embeddings of {encoder}, but encoder.name is"):
            run_with(tmp_path, image)
        return
    found, said = run_with(tmp_path, image)
    assert found.exit_code == 0
    assert len([words for words in said if re.search(f"head kind was fitted on imported embeddings.*{note}", words)]) == 1


@pytest.mark.slow
def test_a_head_of_imports_is_held_to_their_tiles_and_resolution(image, tmp_path):
    fitted(tmp_path, image, CORNERS_NAME)
    with pytest.raises(ConfigError, match=r"was fitted on tiles of 64 px, but tiles\.size is 80"):
        run_with(tmp_path, image, tiles={"size": 80, "level": 0, "tissue": "none"})
    with pytest.raises(ConfigError, match=r"was made for 0.5 µm/px, but tiles.mpp is 1"):
        run_with(tmp_path, image, tiles={"size": 64, "mpp": 1.0, "level": None, "tissue": "none"})


@pytest.mark.slow
def test_the_resolution_that_an_import_does_not_say_is_told(image, tmp_path):
    lines = fitted(tmp_path, image, CORNERS_NAME).lines
    assert "note: The resolution of s0, s1, s2 is not known: that it is that of a, 0.5 µm/px, is taken for granted." in lines


@pytest.mark.parametrize(
    ("imported", "ours"),
    [("uni_v1", "uni"), ("UNI_v2", "uni2-h"), ("conch_v15", "conch-v1.5"), ("hoptimus1", "h-optimus-1"), ("phikon_v2", "phikon-v2"), ("hibou_l", "hibou-l"),
     ("virchow", "virchow"), ("virchow2", "virchow2"), ("kaiko-vitb8", "kaiko-vitb8"), ("custom_encoder", "custom_encoder"), ("unknown", "unknown"), ("A b", "A b")],
)  # fmt: skip
def test_names_of_trident_are_ours_where_we_have_the_encoder(imported, ours):
    assert our_name(imported) == ours


def fitted_context(folder, encoder, stated=None):
    """The file of a context of eight imports."""
    masked = {"window": 2, "depth": 1, "width": 12, "heads": 2, "passes": 1}
    for i in range(8):
        write_features(folder / f"s{i}.h5", i, encoder)
        import_features(str(folder / f"s{i}.h5"), f"s{i}", str(folder / "in"), encoder=stated)
    save = folder / "context.safetensors"
    fit({"embeddings": str(folder / "in"), "split": {"folds": 2}, "target": {"masked": masked}, "save": str(save)})
    return save


@pytest.mark.slow
def test_a_context_of_imports_is_held_to_their_encoder(image, tmp_path):
    save = fitted_context(tmp_path, "uni_v1")
    about = read_context_about(save)
    assert (about.fitted.encoder, about.fitted.encoder_sha256, about.fitted.tile, about.fitted.mpp) == ("uni_v1", None, 64, None)
    with pytest.raises(ConfigError, match=r"context.weights: .* was fitted on imported embeddings of uni_v1, but encoder.name is"):
        tilestream.run(config(image, tmp_path / "out", **CORNERS, context={"weights": str(save)}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stated", "note"),
    [
        (CORNERS_NAME, "that their encoder is .* is taken from its name"),
        (None, "whose file names no encoder: nothing tells whether it is .*fit the context anew"),
    ],
)
def test_what_a_context_of_imports_cannot_be_held_to_is_told_and_recorded(image, tmp_path, stated, note):
    save, heard = fitted_context(tmp_path, None, stated), Heard()
    summary = tilestream.run(config(image, tmp_path / "out", **CORNERS, context={"weights": str(save)}), reporter=heard)
    assert summary.exit_code == 0
    for told in (heard.said, newest_record(tmp_path / "out")["notes"]):
        assert len([words for words in told if re.search(f"context was fitted on imported embeddings.*{note}", words)]) == 1
