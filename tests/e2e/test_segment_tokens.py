"""Heads that segment from patch tokens: the stored map, whole and in double precision, says what every block must hold."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image
from scipy import ndimage

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import bytes_of, config
from tilestream.config.load import load_config
from tilestream.encoders.heads.head_file import HeadAbout, build_model, write_head
from tilestream.errors import ConfigError, InterruptedRunError
from tilestream.runner.plan_command import plan_slides
from tilestream.stages.heads.dense import token_segmenting

TILE, PATCH, DIM, CLASSES = 64, 16, 12, 3
SIDE = TILE // PATCH
HEIGHT, WIDTH = 700, 530
CONTEXT = {"window": 4, "depth": 2, "heads": 3, "exact": True}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[200:400, 150:330] = 0  # a hole in the tissue
    mask[:, 460:] = 0
    Image.fromarray(mask).save(folder / "mask.png")
    return write_pyramid(folder / "a.tif", make_image(HEIGHT, WIDTH, 1), compression="deflate", levels=1, mpp=0.5)


def decoder(folder, hidden, up, read="tokens", task="classification"):
    """A head's file with random weights that tell classes apart; the module."""
    classes = tuple(f"class {k}" for k in range(CLASSES))
    about = HeadAbout("segment", "decoder", read, DIM, CLASSES, task, classes, {"hidden": hidden, "up": up})
    torch.manual_seed(hidden + up)
    module = build_model(about).eval()
    with torch.no_grad():
        for value in module.parameters():
            value.mul_(3)
    write_head(folder / "h.safetensors", module, about)
    return module


def given(image, folder, model, read="tokens", **sections):
    tiles = {"size": TILE, "tissue": {"mask": str(image.parent / "mask.png"), "min_fraction": 0.5}}
    base = {
        "tiles": tiles, "encoder": {"name": "patch_embed", "args": {"patch": PATCH, "dim": DIM}},
        "heads": {"kinds": {"kind": "segment", "input": read, "model": str(model)}},
        "output": {"path": str(folder), "dtype": "float32", "save": ["tiles", "tokens"]},
    }  # fmt: skip
    return config(image, folder, **{**base, **sections})


def stored_map(output):
    """(d, rows, cols) float64 of all tokens that are stored, NaN where none is, the white border among them."""
    root = zarr.open_group(output / "a.zarr", mode="r")
    tokens, row, col = (root[path][:] for path in ("tokens", "tables/tiles/obs/row", "tables/tiles/obs/col"))
    rows, cols = -(-HEIGHT // TILE) * SIDE, -(-WIDTH // TILE) * SIDE
    found = np.full((DIM, rows, cols), np.nan)
    for tile, y, x in zip(tokens, row, col, strict=True):
        found[:, y * SIDE : y * SIDE + SIDE, x * SIDE : x * SIDE + SIDE] = tile.reshape(SIDE, SIDE, DIM).transpose(2, 0, 1)
    found[:, -(-HEIGHT // PATCH) :] = np.nan
    found[:, :, -(-WIDTH // PATCH) :] = np.nan
    return found


def decoded(tokens, module, margin):
    """(classes, h, w) float64 logits of a whole map, and where they are computed; plain arithmetic."""
    around = 2 * margin
    tokens = np.pad(tokens, ((0, 0), (around, around), (around, around)), constant_values=np.nan)
    there = np.isfinite(tokens).all(0)
    filled, known, box = np.nan_to_num(tokens), there, np.ones((3, 3))
    for _ in range(margin):
        count = ndimage.convolve(known.astype(float), box, mode="constant")
        means = np.stack([ndimage.convolve(channel, box, mode="constant") for channel in filled * known]) / np.maximum(count, 1)
        filled, known = np.where(known, filled, means), known | (count > 0)
    state = {key: value.double().numpy() for key, value in module.state_dict().items()}
    if len(state) == 4:
        kernel = state["layers.0.weight"]
        filled = np.stack(
            [sum(ndimage.correlate(filled[k], kernel[o, k], mode="constant") for k in range(DIM)) for o in range(len(kernel))]
        )
        filled = np.maximum(filled + state["layers.0.bias"][:, None, None], 0)
    last = "layers.2" if len(state) == 4 else "layers.0"
    out = np.einsum("oc,chw->ohw", state[f"{last}.weight"][:, :, 0, 0], filled) + state[f"{last}.bias"][:, None, None]
    if module.up > 1:
        at = [(np.arange(side * module.up) + 0.5) / module.up - 0.5 for side in out.shape[1:]]
        out = np.stack([ndimage.map_coordinates(channel, np.meshgrid(*at, indexing="ij"), order=1, mode="nearest") for channel in out])
    cut = slice(around * module.up, -around * module.up or None)
    computed = np.kron(there, np.ones((module.up, module.up), bool))
    return out[:, cut, cut], computed[cut, cut]


def check_whole(output, module, margin, tokens=None):
    out, computed = decoded(stored_map(output) if tokens is None else tokens, module, margin)
    step = PATCH / module.up
    height, width = round(-(-HEIGHT // step)), round(-(-WIDTH // step))
    out, computed = out[:, :height, :width], computed[:height, :width]
    labels = zarr.open_array(output / "a.zarr" / "labels" / "kinds" / "0", mode="r")[:]
    assert labels.shape == (height, width)
    np.testing.assert_array_equal(labels > 0, computed)
    first, second = np.sort(out, axis=0)[:-3:-1]
    sure = computed & (first - second > 1e-4)
    assert sure.sum() > 0.95 * computed.sum()
    np.testing.assert_array_equal(labels[sure], out.argmax(0)[sure] + 1)
    assert len(np.unique(labels)) > 2
    return out


@pytest.mark.parametrize(("hidden", "up", "margin", "side"), [(0, 1, 0, 2048), (0, 4, 1, 48), (6, 4, 2, 64), (6, 16, 2, 130)])
def test_labels_are_those_of_the_whole_map(image, tmp_path, monkeypatch, hidden, up, margin, side):
    monkeypatch.setattr(token_segmenting, "BLOCK_SIDE", side)
    module = decoder(tmp_path, hidden, up)
    summary = tilestream.run(given(image, tmp_path / "out", tmp_path / "h.safetensors"))
    assert summary.exit_code == 0
    check_whole(tmp_path / "out", module, margin)
    about = zarr.open_group(tmp_path / "out" / "a.zarr" / "labels" / "kinds", mode="r").attrs["ome"]["multiscales"][0]
    assert about["datasets"][0]["coordinateTransformations"][0]["scale"] == [PATCH / up * 0.5] * 2


def test_values_are_those_of_the_whole_map(image, tmp_path, monkeypatch):
    monkeypatch.setattr(token_segmenting, "BLOCK_SIDE", 64)
    module = decoder(tmp_path, 6, 4, task="regression")
    tilestream.run(given(image, tmp_path / "out", tmp_path / "h.safetensors"))
    out, computed = decoded(stored_map(tmp_path / "out"), module, 2)
    found = zarr.open_array(tmp_path / "out" / "a.zarr" / "labels" / "kinds" / "0", mode="r")[:]
    out, computed = out[:, : found.shape[1], : found.shape[2]], computed[: found.shape[1], : found.shape[2]]
    assert np.isnan(found[:, ~computed]).all()
    assert np.abs(found[:, computed] - out[:, computed]).max() < 1e-5 * np.abs(out).max()


def test_behind_a_context_they_are_those_of_the_whole_mixed_map(image, tmp_path, monkeypatch):
    from tilestream.config.schema import Context
    from tilestream.stages.mix_context import build_context

    monkeypatch.setattr(token_segmenting, "BLOCK_SIDE", 64)
    module = decoder(tmp_path, 6, 4, "context")
    tilestream.run(given(image, tmp_path / "out", tmp_path / "h.safetensors", "context", context=CONTEXT))
    tokens = stored_map(tmp_path / "out")
    row, col = np.nonzero(np.isfinite(tokens).all(0))
    places = torch.from_numpy(row), torch.from_numpy(col)
    with torch.inference_mode():
        mixed = build_context(Context(**CONTEXT), DIM)(torch.from_numpy(tokens[:, row, col].T.astype(np.float32)), *places, PATCH * 0.5)
    tokens[:, row, col] = mixed.T.double().numpy()
    check_whole(tmp_path / "out", module, 2, tokens)


@pytest.mark.slow
def test_shards_workers_and_a_later_run_leave_the_same_bytes(image, tmp_path):
    decoder(tmp_path, 6, 64)  # so fine that the slide has several blocks
    model = tmp_path / "h.safetensors"
    tilestream.run(given(image, tmp_path / "one", model))
    tilestream.run(given(image, tmp_path / "two", model, compute={"scheduler": "local", "workers": 2, "threads": 1, "shard_tiles": 7}))
    later = given(image, tmp_path / "later", model, compute={"shard_tiles": 30})
    tilestream.run({key: value for key, value in later.items() if key != "heads"})
    assert tilestream.run(later).new_tiles == 0
    labels = [bytes_of(tmp_path / name / "a.zarr" / "labels") for name in ("one", "two", "later")]
    assert len([key for key in labels[0] if str(key).startswith("kinds/0/c")]) > 1
    assert labels[0] == labels[1] == labels[2]


def test_the_plan_projects_what_is_left(image, tmp_path):
    decoder(tmp_path, 6, 16)
    asked = given(image, tmp_path / "out", tmp_path / "h.safetensors")
    (slide,) = plan_slides(load_config(asked)).slides
    tilestream.run(asked)
    stored = sum(path.stat().st_size for path in (tmp_path / "out" / "a.zarr" / "labels").rglob("*") if path.is_file())
    assert 0 < stored <= slide.heads["kinds"]


def test_what_cannot_be_is_refused_with_the_way_out(image, tmp_path):
    decoder(tmp_path, 6, 4)
    model = tmp_path / "h.safetensors"
    with pytest.raises(ConfigError, match=r"heads.kinds.input: tokens, but the encoder gives one vector a tile"):
        tilestream.run(given(image, tmp_path / "out", "tests.support.heads:global_decoder", encoder="tests.support.encoders:corners"))
    with pytest.raises(ConfigError, match=r"cannot segment from tokens: it sees more than 8 tokens"):
        tilestream.run(given(image, tmp_path / "out", "tests.support.heads:global_decoder"))
    with pytest.raises(ConfigError, match=r"heads.kinds.model: .* takes rows of 12 features, but tokens have 16"):
        tilestream.run(given(image, tmp_path / "out", model, encoder={"name": "patch_embed", "args": {"patch": PATCH, "dim": 16}}))


def streamed(image, folder, model, read="tokens", **sections):
    """The same without tokens in the store."""
    asked = given(image, folder, model, read, **sections)
    return {**asked, "output": {"path": str(folder), "dtype": asked["output"]["dtype"], "save": ["tiles"], **sections.get("output", {})}}


def labels_of(output, head="kinds"):
    return {key: data for key, data in bytes_of(output / "a.zarr" / "labels").items() if head in key.parts}


@pytest.mark.parametrize(("hidden", "up", "side"), [(0, 1, 2048), (0, 4, 48), (6, 16, 130)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.slow
def test_tokens_that_pass_by_leave_the_bytes_of_stored_ones(image, tmp_path, monkeypatch, hidden, up, side, dtype):
    monkeypatch.setattr(token_segmenting, "BLOCK_SIDE", side)
    decoder(tmp_path, hidden, up)
    model, save = tmp_path / "h.safetensors", {"save": ["tiles", "tokens"], "dtype": dtype}
    tilestream.run(given(image, tmp_path / "stored", model, output={"path": str(tmp_path / "stored"), **save}))
    asked = streamed(image, tmp_path / "streamed", model, output={"dtype": dtype}, compute={"shard_tiles": 9})
    assert tilestream.run(asked).exit_code == 0
    assert not (tmp_path / "streamed" / "a.zarr" / "tokens").exists()
    assert labels_of(tmp_path / "streamed") == labels_of(tmp_path / "stored")
    rows = [zarr.open_array(tmp_path / name / "a.zarr" / "tables" / "tiles" / "X", mode="r")[:] for name in ("stored", "streamed")]
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize("schedule", ["row_bands", "halo_shards"])
def test_tokens_behind_a_context_pass_by_too_and_heads_stand_side_by_side(image, tmp_path, monkeypatch, schedule):
    monkeypatch.setattr(token_segmenting, "BLOCK_SIDE", 64)
    decoder(tmp_path, 6, 4, "context")
    (tmp_path / "plain").mkdir()
    decoder(tmp_path / "plain", 0, 4)
    heads = {"kinds": {"kind": "segment", "input": "context", "model": str(tmp_path / "h.safetensors")},
             "plain": {"kind": "segment", "input": "tokens", "model": str(tmp_path / "plain" / "h.safetensors")}}  # fmt: skip
    context = {**CONTEXT, "schedule": schedule}
    tilestream.run(given(image, tmp_path / "stored", None, heads=heads, context=CONTEXT))
    tilestream.run(streamed(image, tmp_path / "streamed", None, heads=heads, context=context, compute={"shard_tiles": 13}))
    for head in heads:
        assert labels_of(tmp_path / "streamed", head) == labels_of(tmp_path / "stored", head)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_head_that_comes_later_or_is_cut_short_leaves_the_same_bytes(image, tmp_path, monkeypatch, workers):
    decoder(tmp_path, 6, 4 if workers == 1 else 64)  # so fine that the slide has several blocks
    model, compute = tmp_path / "h.safetensors", {"shard_tiles": 9}
    if workers == 1:
        monkeypatch.setattr(token_segmenting, "BLOCK_SIDE", 64)
    else:
        compute |= {"scheduler": "local", "workers": 2, "threads": 1}
    tilestream.run(given(image, tmp_path / "stored", model))
    asked = streamed(image, tmp_path / "later", model, compute=compute)
    tilestream.run({key: value for key, value in asked.items() if key != "heads"})
    before = bytes_of(tmp_path / "later" / "a.zarr" / "tables" / "tiles" / "X")
    assert tilestream.run(asked).new_tiles == 0
    assert bytes_of(tmp_path / "later" / "a.zarr" / "tables" / "tiles" / "X") == before
    assert labels_of(tmp_path / "later") == labels_of(tmp_path / "stored")
    if workers == 1:
        write, calls = token_segmenting.write_unit, itertools.count(1)

        def stop(*given):
            if next(calls) > 2:
                raise KeyboardInterrupt
            return write(*given)

        with monkeypatch.context() as patched:
            patched.setattr(token_segmenting, "write_unit", stop)
            with pytest.raises((KeyboardInterrupt, InterruptedRunError)):
                tilestream.run(streamed(image, tmp_path / "cut", model, compute=compute))
        assert tilestream.run(streamed(image, tmp_path / "cut", model, compute=compute)).exit_code == 0
        assert labels_of(tmp_path / "cut") == labels_of(tmp_path / "stored")


def test_a_slide_without_tiles_has_an_empty_label_image(image, tmp_path):
    decoder(tmp_path, 6, 4)
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(tmp_path / "none.png")
    tiles = {"size": TILE, "tissue": {"mask": str(tmp_path / "none.png")}}
    assert tilestream.run(streamed(image, tmp_path / "out", tmp_path / "h.safetensors", tiles=tiles)).exit_code == 0
    assert not zarr.open_array(tmp_path / "out" / "a.zarr" / "labels" / "kinds" / "0", mode="r")[:].any()


@pytest.mark.parametrize("kept", [["tiles"], ["tiles", "tokens"]])
def test_tiles_that_cannot_be_read_and_values_that_are_not_finite_are_no_class(image, tmp_path, kept):
    path = Path(shutil.copy(image, tmp_path / "a.tif"))
    with tifffile.TiffFile(path) as file, path.open("r+b") as raw:
        raw.seek(file.pages[0].dataoffsets[1])
        raw.write(bytes(file.pages[0].databytecounts[1]))
        side = file.pages[0].tilewidth
    decoder(tmp_path, 0, 1)
    tiles = {"size": TILE, "tissue": "none"}
    heads = {"kinds": {"kind": "segment", "input": "tokens", "model": str(tmp_path / "h.safetensors")},
             "spoilt": {"kind": "segment", "input": "tokens", "model": "tests.support.heads:spoilt_decoder", "save": ["labels", "probabilities"]}}  # fmt: skip
    asked = given(path, tmp_path / "out", None, tiles=tiles, heads=heads, output={"path": str(tmp_path / "out"), "save": kept})
    summary = tilestream.run(asked)
    assert summary.exit_code == 4
    assert summary.slides[0].unanswered["spoilt"] > 0
    found = {name: zarr.open_array(tmp_path / "out" / "a.zarr" / "labels" / name / "0", mode="r")[:] for name in heads}
    row, col = (np.arange(count) * PATCH // TILE * TILE for count in found["kinds"].shape)  # where the tile of a token begins
    lost = (row < side)[:, None] & ((col + TILE > side) & (col < 2 * side))
    np.testing.assert_array_equal(found["kinds"] == 0, lost)
    spoilt = lost | ((np.arange(found["kinds"].shape[0]) % 5 == 0)[:, None] & np.ones(found["kinds"].shape[1], bool))
    np.testing.assert_array_equal(found["spoilt"] == 0, spoilt)
    likely = zarr.open_array(tmp_path / "out" / "a.zarr" / "labels" / "spoilt" / "probabilities", mode="r")[:]
    assert not likely[:, spoilt].any()
    assert (likely[:, ~spoilt].max(0) > 80).all()
