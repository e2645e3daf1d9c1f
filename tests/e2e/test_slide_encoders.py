"""Slide encoders as pools: the vector is that of all tiles at once, whatever the schedule; tiles that they were not made for are refused."""

import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import given
from tests.support.slide_encoders import SMALL, small_gigapath
from tests.support.viewing import viewed
from tilestream.encoders.slides.presets import SLIDE_PRESETS
from tilestream.errors import ConfigError, InputError
from tilestream.models.patch_embed import seeded_init
from tilestream.models.slides.alibi import AlibiEncoder
from tilestream.models.slides.base import TileBlock
from tilestream.models.slides.gated import FAMILIES
from tilestream.models.slides.longnet import LongNet
from tilestream.models.slides.regions import RegionEncoder
from tilestream.models.slides.specs import AlibiSpec, GatedSpec, LongNetSpec, RegionSpec
from tilestream.store.folder import Folder
from tilestream.store.slide_store import SlideStore
from tilestream.viewer.overlays import mixed_layer, mixed_vectors


@pytest.fixture
def image(tmp_path):
    return write_pyramid(tmp_path / "a.tif", make_image(620, 700, 1), compression="deflate", levels=1, mpp=0.5)


@pytest.fixture
def gigapath(tmp_path, monkeypatch):
    return small_gigapath(monkeypatch, tmp_path)


def dense(module, slide, layer=SMALL.depth, output="mean"):
    """All tiles at once, without the stage."""
    good = np.isfinite(slide.embeddings[:]).all(axis=1)
    row, col = (torch.from_numpy(slide.read_column(name)[good]) for name in ("row", "col"))
    x = module.begin(int(good.sum()))
    x[1:] = module.place(torch.from_numpy(slide.embeddings[:][good]), row, col)
    for number, _ in enumerate(module.layers(x)):
        if number == layer:
            break
    rows = x[1:].mean(dim=0) if output == "mean" else x[0]
    return torch.nn.functional.layer_norm(rows, (16,), module.norm.weight, module.norm.bias, 1e-6).numpy()


def encode(image, output, weights, /, pool=None, **sections):
    return tilestream.run(given(image, output, pool={"name": "gigapath", "weights": weights, **(pool or {})}, **sections))


def test_streamed_equals_dense_bit_for_bit_for_any_shard_size_threads_and_resume(image, tmp_path, gigapath):
    module, weights = gigapath
    vectors = []
    for shard, threads in ((8, 1), (32, 2), (512, 1)):
        output = tmp_path / f"{shard}"
        encode(image, output, weights, compute={"shard_tiles": shard, "threads": threads})
        vectors.append(tilestream.open(output / "a.zarr").slide_vector)
    slide = tilestream.open(tmp_path / "8" / "a.zarr")
    assert slide.layout.tiles == 110
    assert np.abs(vectors[0] - dense(module, slide)).max() < 1e-5
    store = SlideStore(Folder(str(tmp_path / "8" / "a.zarr")))
    store.folder.delete(".tilestream/complete.json")
    store.forget({"pool"})
    shutil.rmtree(tmp_path / "8" / "a.zarr" / "tables" / "slide")
    encode(image, tmp_path / "8", weights, compute={"shard_tiles": 8})
    vectors.append(tilestream.open(tmp_path / "8" / "a.zarr").slide_vector)
    assert all(np.array_equal(vector, vectors[0]) for vector in vectors)


@pytest.mark.parametrize(
    ("name", "spec", "module"),
    [
        ("feather", GatedSpec(12, 8, "feather", 8, 4), FAMILIES["feather"]),
        ("moozy", AlibiSpec(12, 8, 1, 2, 16, 2), AlibiEncoder),
        ("hipt-4k", RegionSpec(12, 8, 1, 2, 4, 3), RegionEncoder),
    ],
)
def test_each_family_streams_to_the_same_bits_from_any_shards(image, tmp_path, monkeypatch, name, spec, module):
    preset = replace(SLIDE_PRESETS[name], spec=spec, tile=64, mpp=0.5, tile_encoder="tests.support.encoders:corners")
    monkeypatch.setitem(SLIDE_PRESETS, name, preset)
    made = module(spec)
    seeded_init(made, 5, std=0.3)
    torch.save({"teacher_slide_encoder": made.state_dict()}, tmp_path / "w.pth")
    vectors = []
    for shard in (8, 512):
        encode(image, tmp_path / f"{shard}", str(tmp_path / "w.pth"), pool={"name": name}, compute={"shard_tiles": shard})
        vectors.append(tilestream.open(tmp_path / f"{shard}" / "a.zarr").slide_vector)
    assert np.array_equal(*vectors)
    rows = tilestream.open(tmp_path / "8" / "a.zarr")
    cells = (torch.from_numpy(rows.read_column(axis)) for axis in ("row", "col"))
    whole = made.encode([TileBlock(torch.from_numpy(rows.embeddings[:]), *cells)], 110).vector
    assert np.abs(vectors[0] - whole.numpy()).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "module"), [("feather", FAMILIES["feather"]), ("gigapath-flash", LongNet), ("hipt-4k", RegionEncoder)])
def test_workers_shards_and_resume_change_no_bit_at_full_size(tmp_path, name, module):
    preset = SLIDE_PRESETS[name]
    made = module(preset.spec)
    seeded_init(made, 3, std=0.05)
    torch.save({"model": made.state_dict()}, tmp_path / "w.pth")
    for seed in range(2):
        write_pyramid(tmp_path / f"s{seed}.tif", make_image(620, 700, seed), compression="deflate", levels=1, mpp=0.5)
    encoder = {"name": "tests.support.encoders:wide_corners", "args": {"dim": preset.inputs}}
    found = []
    for compute in ({"shard_tiles": 512}, {"shard_tiles": 16, "scheduler": "local", "workers": 2, "threads": 1}):
        sections = {
            "pool": {"name": name, "allow_mismatch": True},
            "encoder": encoder,
            "compute": compute,
            "context": {"window": 4, "depth": 1, "heads": 2, "exact": True},
        }
        output = tmp_path / f"{compute['shard_tiles']}"
        for _ in range(2):
            assert encode(tmp_path / "s*.tif", output, str(tmp_path / "w.pth"), **sections).exit_code == 0
            found.append([tilestream.open(output / f"s{seed}.zarr").slide_vector for seed in range(2)])
            store = SlideStore(Folder(str(output / "s1.zarr")))  # and again, as if killed before the vector of the second slide
            store.folder.delete(".tilestream/complete.json")
            store.forget({"pool"})
            shutil.rmtree(output / "s1.zarr" / "tables" / "slide")
    assert [float(np.abs(np.subtract(vectors, found[0])).max()) for vectors in found] == [0] * 4
    assert not np.array_equal(*found[0])
    assert np.isfinite(found[0]).all()
    rows = tilestream.open(tmp_path / "16" / "s0.zarr")
    cells = (torch.from_numpy(rows.read_column(axis)) for axis in ("row", "col"))
    whole = made.encode([TileBlock(torch.from_numpy(np.asarray(rows.embeddings[:], np.float32)), *cells)], rows.layout.tiles).vector
    assert np.abs(found[0][0] - whole.numpy()).max() < 1e-5


def test_in_exact_mode_one_thread_encodes(image, tmp_path, gigapath, monkeypatch):
    seen, before, encode_slide = [], torch.get_num_threads(), LongNet.encode

    def watched(self, *args):
        seen.append(torch.get_num_threads())
        return encode_slide(self, *args)

    monkeypatch.setattr(LongNet, "encode", watched)
    encode(image, tmp_path / "exact", gigapath[1], context={"window": 4, "depth": 1, "heads": 2, "exact": True})
    assert seen == [1]
    encode(image, tmp_path / "plain", gigapath[1])
    assert np.allclose(*(tilestream.open(tmp_path / name / "a.zarr").slide_vector for name in ("exact", "plain")), atol=1e-5)
    torch.set_num_threads(before)


def test_failed_tiles_are_absent_and_a_slide_without_any_is_nan(image, tmp_path, monkeypatch):
    module, weights = small_gigapath(monkeypatch, tmp_path, tile_encoder="tests.support.encoders:some_corners")
    encode(image, tmp_path / "out", weights, encoder="tests.support.encoders:some_corners")
    slide = tilestream.open(tmp_path / "out" / "a.zarr")
    assert 0 < slide.read_good().sum() < slide.layout.tiles
    assert np.abs(slide.slide_vector - dense(module, slide)).max() < 1e-5


@pytest.mark.parametrize(
    ("args", "layer", "output"),
    [({"layer": 1}, 1, "mean"), ({"output": "class"}, 2, "class"), ({"layer": 0, "output": "class"}, 0, "class")],
)
def test_other_layers_and_the_class_token_by_option(image, tmp_path, gigapath, args, layer, output):
    module, weights = gigapath
    encode(image, tmp_path / "out", weights, pool={"args": args})
    slide = tilestream.open(tmp_path / "out" / "a.zarr")
    assert np.abs(slide.slide_vector - dense(module, slide, layer, output)).max() < 1e-5
    assert slide.recipe["pool"]["args"] == args


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"encoder": "tests.support.encoders:slow_corners"}, r"encoder.name is tests.support.encoders:slow_corners, it takes tests.support.encoders:corners"),
        ({"tiles": {"size": 96}}, r"tiles.size is 96 px, it takes 64"),
        ({"tiles": {"stride": 32}}, r"tiles.stride is 32 px of tiles of 64, it takes tiles that meet"),
        ({"tiles": {"level": None, "mpp": 1.0}}, r"tiles.mpp is 1 µm/px, it takes 0.5"),
    ],
)  # fmt: skip
def test_tiles_of_another_make_are_refused_with_both_values_unless_it_is_allowed(image, tmp_path, gigapath, sections, words):
    with pytest.raises(ConfigError, match=words):
        encode(image, tmp_path / "no", gigapath[1], **sections)
    assert not (tmp_path / "no").exists()
    encode(image, tmp_path / "yes", gigapath[1], pool={"allow_mismatch": True}, **sections)
    assert tilestream.open(tmp_path / "yes" / "a.zarr").recipe["pool"]["allow_mismatch"] is True


def test_another_number_of_features_is_refused_even_where_a_mismatch_is_allowed(image, tmp_path, gigapath):
    with pytest.raises(ConfigError, match=r"gigapath takes vectors of 12 features, and encoder tests.support.encoders:mean_rgb gives 3"):
        encode(image, tmp_path / "no", gigapath[1], pool={"allow_mismatch": True}, encoder="tests.support.encoders:mean_rgb")


@pytest.mark.parametrize(
    ("mpp", "words"), [(0.25, "0.25 µm/px, pool gigapath takes 0.5"), (None, "an unknown resolution, pool gigapath takes 0.5")]
)
def test_a_slide_of_another_or_no_resolution_is_refused(tmp_path, gigapath, mpp, words):
    image = write_pyramid(tmp_path / "b.tif", make_image(300, 300, 1), compression="deflate", levels=1, mpp=mpp)
    with pytest.raises(InputError, match=words):
        encode(image, tmp_path / "no", gigapath[1], on_error={"slide": "fail"})
    assert not list((tmp_path / "no").glob("*.zarr"))


def test_a_place_beyond_the_table_is_refused_even_where_a_mismatch_is_allowed(image, tmp_path, monkeypatch):
    _, weights = small_gigapath(monkeypatch, tmp_path, spec=replace(SMALL, cells=10))
    with pytest.raises(
        InputError,
        match=r"10 tiles lie beyond pool gigapath's table of positions, the first in cell row 0, column 10: it has 10 a side \(0.32 mm\)",
    ):
        encode(image, tmp_path / "no", weights, pool={"allow_mismatch": True}, on_error={"slide": "fail"})


def chosen(path, coords, **attributes):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("coords", data=coords)
        data.attrs.update({"patch_size": 64, "patch_level": 0, "patch_size_level0": 64, "target_patch_size": 64, **attributes})
    return str(path)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([[0, 0], [32, 0], [256, 256]], r"tiles at level-0 y 0, x 0 and y 0, x 32 overlap, with sides of 64 px"),
        ([[0, 0], [63, 0]], r"1 cells of pool gigapath's table hold more than one tile, up to 2"),
    ],
)
def test_places_of_a_file_that_overlap_or_share_a_cell_are_refused(image, tmp_path, gigapath, places, words):
    tiles = {"level": None, "from": chosen(tmp_path / "a.h5", np.asarray(places))}
    with pytest.raises(InputError, match=words):
        encode(image, tmp_path / "no", gigapath[1], tiles=tiles, on_error={"slide": "fail"})


def test_coordinates_in_px_of_tiles_where_level_0_has_twice_as_many_are_refused(tmp_path, gigapath):
    image = write_pyramid(tmp_path / "a.tif", make_image(620, 700, 1), compression="deflate", levels=1, mpp=0.25)
    path = chosen(tmp_path / "a.h5", np.stack(np.mgrid[:3, :3], axis=-1).reshape(-1, 2) * 64, patch_size_level0=128)
    with pytest.raises(InputError, match=r"tiles at level-0 y 0, x 0 and y 0, x 64 overlap, with sides of 128 px"):
        encode(image, tmp_path / "no", gigapath[1], tiles={"level": None, "from": path}, on_error={"slide": "fail"})


def test_coordinates_in_half_precision_are_refused(image, tmp_path, gigapath):
    path = chosen(tmp_path / "a.h5", np.asarray([[0, 0], [64, 64]], np.float16))
    with pytest.raises(InputError, match=r"coords is \(2, 2\) float16, but it must be \(n, 2\) whole numbers"):
        encode(image, tmp_path / "no", gigapath[1], tiles={"level": None, "from": path}, on_error={"slide": "fail"})


def test_tokens_are_kept_on_request_and_go_with_their_pool(image, tmp_path, monkeypatch):
    module, weights = small_gigapath(monkeypatch, tmp_path, tile_encoder="tests.support.encoders:some_corners")
    sections = {"encoder": "tests.support.encoders:some_corners", "compute": {"shard_tiles": 8}}
    encode(image, tmp_path / "out", weights, pool={"tokens": True, "as": "giga"}, **sections)
    encode(image, tmp_path / "out", weights, pool={"tokens": True}, **sections)
    slide = tilestream.open(tmp_path / "out" / "a.zarr")
    assert slide.named_vectors == ["slide-giga", "tokens-giga"]
    shown = viewed(tmp_path / "out" / "a.zarr")
    assert mixed_vectors(shown) == ["tokens", "tokens-giga"]
    assert (mixed_layer(shown, "tokens-giga").rgba[:, 3] > 0).sum() == shown.good.sum()
    good, tokens = slide.read_good(), slide.vectors("tokens")[:]
    assert np.isnan(tokens[~good]).all()
    assert np.isfinite(tokens[good]).all()
    assert np.array_equal(slide.vectors("tokens-giga")[:], tokens, equal_nan=True)
    norm = torch.nn.functional.layer_norm(torch.from_numpy(tokens[good]).mean(dim=0), (16,), module.norm.weight, module.norm.bias, 1e-6)
    assert np.abs(norm.numpy() - slide.slide_vector).max() < 1e-5
    assert np.array_equal(slide.to_anndata().obsm["tokens"], tokens, equal_nan=True)
    encode(image, tmp_path / "out", weights, **sections)
    assert not tilestream.open(tmp_path / "out" / "a.zarr").has("tables/tiles/obsm/tokens")
    monkeypatch.setitem(SLIDE_PRESETS, "hipt-4k", replace(SLIDE_PRESETS["hipt-4k"], spec=RegionSpec(12, 8, 1, 2)))
    with pytest.raises(ConfigError, match=r"pool.tokens: true, but hipt-4k makes no tokens of tiles; gigapath, gigapath-flash, moozy do"):
        encode(image, tmp_path / "no", weights, pool={"name": "hipt-4k", "tokens": True}, **sections)


def test_arguments_and_weights_that_do_not_fit_are_refused(image, tmp_path, gigapath):
    with pytest.raises(ConfigError, match=r"pool.args.layers: 'gigapath' takes no such argument. Did you mean layer\?"):
        encode(image, tmp_path / "no", gigapath[1], pool={"args": {"layers": 3}})
    with pytest.raises(ConfigError, match=r"pool.args: layer is 13, but there are 0 to 2"):
        encode(image, tmp_path / "no", gigapath[1], pool={"args": {"layer": 13}})
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"pool.weights: .*other.pth does not fit the model"):
        encode(image, tmp_path / "no", str(tmp_path / "other.pth"))
    with pytest.raises(ConfigError, match=r"args: .*pool.name is mean, which is no slide encoder"):
        tilestream.run(given(image, tmp_path / "no", pool={"name": "mean", "args": {"layer": 1}}))


def test_the_memory_of_a_slide_encoder_is_projected_and_what_does_not_fit_is_refused(image, tmp_path, monkeypatch):
    _, weights = small_gigapath(monkeypatch, tmp_path, spec=SMALL)
    monkeypatch.setattr(LongNetSpec, "bytes", lambda *_, **__: 1 << 33)
    with pytest.raises(ConfigError, match=r"a worker on a needs .* GiB .* pool and picture .* GiB\), the limit is 4.00 GiB"):
        encode(image, tmp_path / "no", weights)
