"""What a run stores as context where tissue has holes and tiles fail, against one dense masked transformer that shares no code with it."""

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from safetensors.torch import save_file

import tilestream
from tests.support.dense_context import dense_context
from tests.support.images import make_image, write_pyramid
from tests.support.runs import given
from tilestream.models.context import ContextTransformer

SIDE = 1100


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """An image with a resolution and one without, and a mask that leaves a ring, islands, and a gap wider than any window here."""
    folder = tmp_path_factory.mktemp("images")
    found = {}
    for name, mpp in (("known", 0.5), ("unknown", None)):
        found[name] = write_pyramid(folder / f"{name}.tif", make_image(SIDE, SIDE, 3), compression="deflate", levels=1, mpp=mpp)
    y, x = np.mgrid[:SIDE:4, :SIDE:4]
    away = np.hypot(y - 450, x - 400)
    mask = ((away < 380) & (away > 130)) | ((y > 900) & (x // 64 % 3 == 0)) | (x > 1020)
    mask &= ~((y > 500) & (y < 560) & (x < 700))
    Image.fromarray((mask * 255).astype(np.uint8)).save(folder / "mask.png")
    return found, folder / "mask.png"


def random_weights(path, dim, context, seed):
    """Weights of the shapes that the model says it has, large enough that attention is far from even, and their file."""
    shape = {key: context[key] for key in ("window", "depth", "heads", "shift", "position")}
    chance = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in ContextTransformer(dim, width=context.get("width"), **shape).state_dict().items():
        state[name] = torch.randn(value.shape, generator=chance) * (0.6 if value.ndim > 1 else 0.2)
        if "norm" in name and name.endswith("weight"):
            state[name] += 1
        if name == "ends.spread":
            state[name] = 20 + 10 * torch.rand(value.shape, generator=chance)
        if name == "ends.mean":
            state[name] += 120
    save_file(state, path)
    return {name: value.numpy() for name, value in state.items()}


# window, depth, shift, position, width, tile size, stride, encoder, image, schedule, exact
CASES = [
    (4, 3, True, "sincos", None, 64, 64, "corners", "known", "dense", False),
    (4, 3, True, "sincos", None, 64, 64, "corners", "known", "row_bands", True),
    (3, 4, True, "rope", None, 64, 40, "corners", "known", "halo_shards", True),
    (5, 2, True, "learned", None, 40, 56, "corners", "unknown", "row_bands", False),
    (8, 2, True, "bias", None, 48, 32, "some_corners", "known", "halo_shards", False),
    pytest.param((7, 3, True, "log_bias", 16, 64, 36, "corners", "known", "row_bands", False), marks=pytest.mark.slow),
    (6, 3, False, "sincos", None, 48, 48, "corners", "unknown", "halo_shards", False),
    (1, 2, True, "none", None, 64, 64, "corners", "known", "dense", False),
    (2, 4, True, "none", 8, 64, 50, "some_corners", "unknown", "row_bands", True),
    pytest.param((24, 3, True, "rope", 24, 64, 40, "some_corners", "known", "dense", True), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_the_stored_context_is_that_of_a_dense_masked_transformer(slides, tmp_path, case):
    window, depth, shift, position, width, size, stride, encoder, image, schedule, exact = case
    images, mask = slides
    dim = 12
    context = {"window": window, "depth": depth, "heads": 2, "shift": shift, "position": position} | ({"width": width} if width else {})
    if (width or dim) // 2 % 4 and position == "rope":
        context["heads"] = 3
    state = random_weights(tmp_path / "context.safetensors", dim, context, seed=window)
    settings = given(
        images[image],
        tmp_path / "out",
        tiles={"size": size, "stride": stride, "level": 0, "tissue": {"mask": str(mask), "min_fraction": 0.5}},
        encoder=f"tests.support.encoders:{encoder}",
        context={**context, "weights": str(tmp_path / "context.safetensors"), "schedule": schedule, "exact": exact},
        compute={"shard_tiles": 32},
    )
    tilestream.run(settings)
    slide = tilestream.open(tmp_path / "out" / f"{image}.zarr")
    rows, found, obs = slide.embeddings[:], slide.context[:], slide.obs
    good = np.isfinite(rows).all(axis=1)
    row, col = (obs[name].to_numpy()[good].astype(np.int64) for name in ("row", "col"))
    stride_um = stride * 0.5 if image == "known" else None
    wanted = dense_context(rows[good], row, col, state, **context, stride_um=stride_um)
    share = len(rows) / (row.max() + 1) / (col.max() + 1)
    assert share < 0.7, "there are holes"
    assert (encoder == "corners") == good.all()
    assert np.isnan(found[~good]).all()
    assert np.abs(found[good] - wanted).max() < 2e-3 * max(1, np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "save"), [("auto", ["tiles"]), ("halo_shards", ["tiles", "tokens"]), ("row_bands", ["tiles", "tokens"])]
)
def test_the_context_of_a_tile_is_the_mean_of_its_patches_within_the_image(slides, tmp_path, schedule, save):
    images, mask = slides
    context = {"window": 6, "depth": 3, "heads": 4, "shift": True, "position": "sincos"}
    state = random_weights(tmp_path / "context.safetensors", 32, context, seed=5)

    def stored(name, save, schedule):
        tilestream.run(
            given(
                images["known"],
                tmp_path / name,
                output={"path": str(tmp_path / name), "save": save, "dtype": "float32"},
                tiles={"size": 64, "level": 0, "tissue": {"mask": str(mask), "min_fraction": 0.1}},
                encoder={"name": "patch_embed", "args": {"patch": 16, "dim": 32}},
                context={**context, "weights": str(tmp_path / "context.safetensors"), "schedule": schedule},
                compute={"shard_tiles": 32},
            )
        )
        return tilestream.open(tmp_path / name / "known.zarr")

    with_tokens = stored("tokens", ["tiles", "tokens"], "row_bands")
    tokens = zarr.open_array(tmp_path / "tokens" / "known.zarr" / "tokens", mode="r")[:]  # (n, 16, 32)
    obs = with_tokens.obs
    within = np.arange(16)
    row, col = (obs[name].to_numpy()[:, None] * 4 + part for name, part in (("row", within // 4), ("col", within % 4)))
    there = (row * 16 < SIDE) & (col * 16 < SIDE)
    assert not there.all()
    mixed = dense_context(tokens[there], row[there], col[there], state, **context, stride_um=8.0)
    total = np.zeros((*there.shape, 32))
    total[there] = mixed
    wanted = total.sum(axis=1) / there.sum(axis=1)[:, None]
    found = stored(f"again-{schedule}", save, schedule).context[:]
    assert np.abs(found - wanted).max() < 2e-3 * max(1, np.abs(wanted).max())
