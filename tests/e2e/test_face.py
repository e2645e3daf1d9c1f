"""The library: what a few lines of Python give is what `run` stores."""

import inspect

import anndata
import numpy as np
import pytest
from torch import nn

import tilestream as ts
from tests.support.images import make_image, write_svs
from tests.support.runs import config
from tilestream.errors import ConfigError

PUBLIC = (
    "fit",
    "find_nearest",
    "index_tiles",
    "open_image",
    "find_tiles",
    "load_encoder",
    "embed",
    "ContextTransformer",
    "run",
    "open",
    "patient_vectors",
    "Config",
)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_svs(tmp_path_factory.mktemp("slide") / "a.svs", make_image(1300, 1500, seed=3))


@pytest.fixture(scope="module")
def stored(slide, tmp_path_factory):
    """What `run` makes of it, in shards and batches that the library knows nothing of."""
    out = tmp_path_factory.mktemp("out")
    ts.run(
        {
            "slides": str(slide), "output": {"path": str(out), "dtype": "float32"}, "tiles": {"size": 224, "mpp": 0.5},
            "encoder": {"name": "tilestream-tiny", "precision": "fp32"}, "context": {"heads": 3},
            "compute": {"scheduler": "inline", "shard_tiles": 7, "device": "cpu"},
        }
    )  # fmt: skip
    return ts.open(out / "a.zarr")


@pytest.fixture(scope="module")
def made(slide):
    with ts.open_image(slide) as image:
        tiles = ts.find_tiles(image, size=224, mpp=0.5)
        encoder = ts.load_encoder("tilestream-tiny")
        rows = ts.embed(image, tiles, encoder)
    return tiles, rows, ts.ContextTransformer(encoder.dim, heads=3)(rows, tiles)


def test_the_same_tiles_are_found(stored, made):
    tiles, *_ = made
    assert len(tiles) > 10
    np.testing.assert_array_equal(tiles.positions, stored.positions)
    np.testing.assert_array_equal(tiles.tissue, stored.obs["tissue"])


def test_rows_are_those_of_a_run_bit_for_bit(stored, made):
    np.testing.assert_array_equal(made[1], stored.embeddings[:])


def test_context_is_that_of_a_run(stored, made):
    np.testing.assert_allclose(made[2], stored.context[:], rtol=0, atol=1e-5)


def test_a_row_that_is_not_finite_is_absent_for_its_neighbours_and_stays_nan(made):
    tiles, rows, _ = made
    holed = rows.copy()
    holed[4] = np.nan
    mixed = ts.ContextTransformer(rows.shape[1], heads=3)(holed, tiles)
    assert np.isnan(mixed[4]).all()
    assert np.isfinite(np.delete(mixed, 4, axis=0)).all()


class WrongDim(nn.Module):
    dim = 5

    def forward(self, tiles):
        return tiles.float().mean(dim=(2, 3))


def test_an_encoder_that_does_not_say_its_dim_is_refused(slide):
    with ts.open_image(slide) as image, pytest.raises(ConfigError, match=r"WrongDim says dim 5, but its output is \(3,\)"):
        ts.embed(image, ts.find_tiles(image, level=0, tissue="none"), WrongDim())


def test_contradicting_arguments_are_refused_by_their_names(slide):
    with ts.open_image(slide) as image, pytest.raises(ConfigError, match=r"tiles\.mpp: 0\.5, but tiles\.level is 0 as well"):
        ts.find_tiles(image, mpp=0.5, level=0)
    with pytest.raises(ConfigError, match="'scale' is no choice"):
        ts.open_image(slide, scale=2)


def test_what_the_library_gives_says_in_one_line_what_it_is(slide, stored, made):
    with ts.open_image(slide) as image:
        assert (
            repr(image)
            == f"<tilestream {slide}: 1300 px high, 1500 wide, {len(image.info.levels)} level{'s' * (len(image.info.levels) > 1)}, {image.info.mpp:g} µm/px, read by tiff>"
        )
    tiles, *_ = made
    assert repr(tiles) == f"<tiles of {slide}: {len(tiles)} of {tiles.candidates}, 224 px, read from level {tiles.spec.level}>"
    assert repr(ts.open(stored.path.rpartition("/")[0])).endswith(": 1 slide>")


def test_an_argument_of_another_kind_is_refused_by_its_name(slide, made):
    with pytest.raises(TypeError, match="image: str, but find_tiles takes what open_image gives"):
        ts.find_tiles(str(slide), mpp=0.5)
    with ts.open_image(slide) as image:
        for name, given in (
            ("image", (str(slide), made[0], nn.Identity())),
            ("tiles", (image, [1], nn.Identity())),
            ("encoder", (image, made[0], "uni")),
        ):
            with pytest.raises(TypeError, match=f"{name}: .*, but embed takes what"):
                ts.embed(*given)


def test_pixels_are_read_by_place(slide):
    with ts.open_image(slide) as image:
        np.testing.assert_array_equal(image.read((10, 20, 30, 40)), image.to_dask(0)[10:40, 20:60].compute(scheduler="threads"))


def test_what_a_list_says_of_slides_travels_into_their_tables(slide, tmp_path):
    table = tmp_path / "slides.csv"
    table.write_text(f"slide_id,path,patient\none,{slide},p1\n")
    out = tmp_path / "out"
    summary = ts.run(config(table, out))
    assert summary.slides[0].listed == {"patient": "p1"}
    cohort = ts.open(out)
    assert set(cohort["one"].obs["patient"]) == {"p1"}
    stored = anndata.read_zarr(out / "one.zarr" / "tables" / "tiles").obs
    assert (set(stored["patient"]), set(stored["slide"])) == ({"p1"}, {"one"})
    assert list(cohort.to_anndata().obs["patient"]) == ["p1"] * len(stored)
    table.write_text(f"path,tissue\n{slide},0.5\n")
    with pytest.raises(ConfigError, match="column 'tissue', a name that the output uses"):
        ts.run(config(table, out))


def test_each_public_name_is_documented_typed_and_shadows_nothing():
    assert set(PUBLIC) | {"__version__"} == {*ts.__all__, "open"}
    everything = {}
    exec("from tilestream import *", everything)
    assert "open" not in everything
    for name in PUBLIC:
        thing = getattr(ts, name)
        assert inspect.getdoc(thing), name
        if inspect.isfunction(thing):
            assert all(p.annotation is not p.empty for p in inspect.signature(thing).parameters.values()), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ts.nothing
