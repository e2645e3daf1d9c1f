"""Presets of satellite images: Prithvi on our vision transformer beside timm's, Clay on a package of its authors' contract."""

import sys
from dataclasses import replace
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

import tilestream
from tests.support.encoders import BandCorners
from tests.support.random_models import library, randomised, relative_error
from tests.support.rasters import write_raster
from tests.support.runs import config, opened
from tilestream.config.bands.statistics import STATISTICS
from tilestream.encoders.catalogue import EncoderSpec, known_encoders
from tilestream.encoders.earth import clay
from tilestream.encoders.presets import PRESETS
from tilestream.encoders.registry import build_encoder
from tilestream.encoders.stated import vit_parameters
from tilestream.errors import ConfigError
from tilestream.models.patch_embed import freeze
from tilestream.models.vit_config import ViTConfig
from tilestream.testing import EncoderSuite

HLS = ("B02", "B03", "B04", "B8A", "B11", "B12")
MEAN, STD = (1087, 1342, 1433, 2734, 1958, 1363), (2248, 2179, 2178, 1850, 1242, 1049)
FRAMES, DIM = 4, 64
RNG = np.random.default_rng(5)


def sincos(dim, places):
    angle = np.outer(places, 1 / 10000 ** (np.arange(dim // 2) / (dim / 2)))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def places(dim, side):
    """(1, 1 + FRAMES * side * side, dim): column, row and frame of each patch, as Prithvi's checkpoints have them, behind zeros for the class token."""
    frame, row, col = (axis.ravel() for axis in np.indices((FRAMES, side, side)))
    table = np.concatenate([sincos(dim * 6 // 16, col), sincos(dim * 6 // 16, row), sincos(dim * 4 // 16, frame)], axis=1)
    return torch.from_numpy(np.concatenate([np.zeros((1, dim)), table])[np.newaxis]).float()


def prithvi(patch):
    """timm's transformer in Prithvi's shape, less wide and deep, and its checkpoint as the hub has it."""
    library("timm")
    from timm.models.vision_transformer import VisionTransformer

    norm = partial(nn.LayerNorm, eps=1e-5)
    model = randomised(
        VisionTransformer(224, patch, 6, num_classes=0, embed_dim=DIM, depth=2, num_heads=4, global_pool="", norm_layer=norm)
    )
    table = places(DIM, 224 // patch)
    model.pos_embed.data = table[:, : 1 + (224 // patch) ** 2]
    state = {f"encoder.{key}": value for key, value in model.state_dict().items()}
    state["encoder.pos_embed"] = table
    state["encoder.patch_embed.proj.weight"] = state["encoder.patch_embed.proj.weight"].unsqueeze(2)
    told = {"encoder.temporal_embed_enc.scale": torch.ones(1), "encoder.location_embed_enc.scale": torch.ones(1)}
    return model, state | told | {"decoder.mask_token": torch.ones(1, 1, 8), "decoder.decoder_embed.weight": torch.ones(8, DIM)}


@pytest.fixture
def narrow(monkeypatch):
    """Prithvi's presets, as narrow as `prithvi`."""
    for name in ("prithvi-eo-2", "prithvi-eo-2-600-tl"):
        monkeypatch.setitem(PRESETS, name, replace(PRESETS[name], vit={**PRESETS[name].vit, "dim": DIM, "depth": 2, "heads": 4}))


@pytest.mark.parametrize("name", ["prithvi-eo-2", "prithvi-eo-2-600-tl"])
def test_prithvi_gives_timms_features_from_its_own_checkpoint(tmp_path, name, narrow):
    model, state = prithvi(PRESETS[name].vit.get("patch", 16))
    torch.save(state, tmp_path / "prithvi.pt")
    encoder = build_encoder(EncoderSpec(name, str(tmp_path / "prithvi.pt")))
    tiles = torch.randn(2, 6, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert relative_error(encoder(tiles), model(tiles)[:, 1:].mean(dim=1)) < 1e-5
    assert encoder.bands == ("blue", "green", "red", "nir08", "swir16", "swir22")


def test_prithvi_is_as_large_as_timms():
    library("timm")
    from timm.models.vision_transformer import VisionTransformer

    for name, patch, dim, depth in (("prithvi-eo-2", 16, 1024, 24), ("prithvi-eo-2-600", 14, 1280, 32)):
        with torch.device("meta"):
            model = VisionTransformer(224, patch, 6, num_classes=0, embed_dim=dim, depth=depth, num_heads=16, global_pool="")
        assert vit_parameters(ViTConfig(**PRESETS[name].vit)) == sum(parameter.numel() for parameter in model.parameters())


def hls(path, names=HLS):
    """A scene of HLS as it is stored: reflectance by 10,000 in int16, -9999 where there is none."""
    samples = RNG.integers(0, 6000, (300, 260, 6)).astype(np.int16)
    samples[:40, :60] = -9999
    write_raster(path, samples, nodata=-9999, transform=rasterio.Affine(30, 0, 500_000, 0, -30, 5_000_000))
    with rasterio.open(path, "r+") as file:
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)
    return samples.astype(np.float64)


def test_rows_of_a_run_are_those_of_the_authors_arithmetic(tmp_path, narrow):
    model, state = prithvi(16)
    torch.save(state, tmp_path / "prithvi.pt")
    names = HLS[::-1]  # chosen by what they are, not by their place
    samples = hls(tmp_path / "a.tif", names)[..., ::-1]
    source = {"bands": "hls-s30", "normalise": "prithvi-eo-2"}
    encoder = {"name": "prithvi-eo-2", "weights": str(tmp_path / "prithvi.pt"), "precision": "fp32"}
    given = config(tmp_path / "a.tif", tmp_path / "out", source=source, encoder=encoder)
    assert tilestream.run(given).exit_code == 0
    values = np.where(samples == -9999, 0, (samples - MEAN) / STD)
    whole = np.zeros((448, 448, 6))
    whole[:300, :260] = values
    tiles = np.stack([whole[y : y + 224, x : x + 224] for y in (0, 224) for x in (0, 224)]).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(tiles.copy()).float())[:, 1:].mean(dim=1)
    assert relative_error(torch.from_numpy(opened(tmp_path / "out", "a").embeddings[:]), wanted) < 1e-4
    swapped = {**source, "channels": ["green", "blue", "red", "nir08", "swir16", "swir22"]}
    refused = tilestream.run(config(tmp_path / "a.tif", tmp_path / "other", source=swapped, encoder=encoder))
    assert "channel 1 of source.channels is B03, green, 0.56 µm, but encoder prithvi-eo-2 takes blue there" in refused.slides[0].error


def test_statistics_are_those_of_reflectance():
    assert STATISTICS["prithvi-eo-2"]["nir08"] == (0.2734, 0.185)
    assert STATISTICS["clay-1.5-sentinel-2"]["rededge078"] == (0.263, 0.1697)
    assert STATISTICS["clay-1.5-landsat"]["red"] == pytest.approx((13705 * 2.75e-5 - 0.2, 9578 * 2.75e-5))
    for sensor, known in clay.SENSORS.items():
        assert tuple(STATISTICS[f"clay-1.5-{sensor}"]) == tuple(known.waves)


class TestAnEncoderOfBands(EncoderSuite):
    """The suite gives it what it takes."""

    tile = 64

    @pytest.fixture(scope="class")
    @classmethod
    def encoder(cls):
        made = BandCorners(["red", "nir"])
        freeze(made)
        return made


class Cube(nn.Module):
    """What `claymodel.model.Encoder` takes and gives, with one layer inside."""

    def __init__(self, mask_ratio, patch_size, shuffle, dim, depth, heads, dim_head, mlp_ratio):
        super().__init__()
        assert (mask_ratio, shuffle, patch_size, dim, depth, heads, dim_head, mlp_ratio) == (0, False, 8, 1024, 24, 16, 64, 4)
        self.layer = nn.Linear(1, dim)

    def forward(self, cube):
        pixels = cube["pixels"]
        assert pixels.dtype == torch.float32
        assert cube["time"].shape == cube["latlon"].shape == (len(pixels), 4)
        assert not cube["time"].any()
        assert not cube["latlon"].any()
        seen = torch.einsum("nchw,c->nhw", pixels, cube["waves"]) * cube["gsd"]
        cells = seen.unflatten(1, (32, 8)).unflatten(3, (32, 8)).mean(dim=(2, 4)).flatten(1)
        tokens = self.layer(torch.cat([cells.sum(dim=1, keepdim=True), cells], dim=1)[..., None])
        return tokens, None, None, None


@pytest.fixture
def package(monkeypatch):
    for name in ("claymodel", "claymodel.model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["claymodel.model"].Encoder = Cube


@pytest.mark.parametrize("output", ["class", "mean", "tokens"])
def test_clay_gets_wavelengths_and_distance(tmp_path, package, output):
    layer = randomised(nn.Linear(1, 1024))
    state = {f"model.encoder.layer.{key}": value for key, value in layer.state_dict().items()} | {"model.teacher.head": torch.ones(3)}
    torch.save({"state_dict": state}, tmp_path / "clay.ckpt")
    args = {"sensor": "landsat", "bands": ["nir08", "red"], "output": output, "gsd": 15}
    encoder = build_encoder(EncoderSpec("clay-1.5", str(tmp_path / "clay.ckpt"), args))
    assert (encoder.bands, encoder.dim, encoder.tile_size, encoder.mpp) == (("nir08", "red"), 1024, 256, 15e6)
    tiles = torch.randn(2, 2, 256, 256, generator=torch.Generator().manual_seed(1))
    seen = ((tiles[:, 0] * 0.86 + tiles[:, 1] * 0.65) * 15).numpy().reshape(2, 32, 8, 32, 8).mean(axis=(2, 4)).reshape(2, -1)
    cells = torch.from_numpy({"class": seen.sum(axis=1, keepdims=True), "mean": seen.mean(axis=1, keepdims=True), "tokens": seen}[output])
    with torch.inference_mode():
        found, wanted = encoder(tiles), layer(cells[..., None])
    assert relative_error(found, wanted if output == "tokens" else wanted[:, 0]) < 1e-5


REFUSED = [
    ({"sensor": "modis"}, "encoder.args.sensor: 'modis', but it must be one of sentinel-2, landsat, naip"),
    ({"bands": ["thermal"]}, "encoder.args.bands: 'thermal', but those of sentinel-2 are blue, green"),
    ({"gsd": 0}, "encoder.args.gsd: 0, but it must be the metres of a pixel"),
    ({"window": 1}, "encoder.args"),
    ({}, r"clay-1.5 needs the package claymodel, which is not installed. Run pip install git\+https"),
]


@pytest.mark.parametrize(("args", "words"), REFUSED)
def test_clay_says_what_is_wrong(tmp_path, args, words):
    if not args:
        assert "claymodel" not in sys.modules
    with pytest.raises(ConfigError, match=words):
        build_encoder(EncoderSpec("clay-1.5", str(tmp_path / "clay.ckpt"), args))


def test_the_table_has_them():
    rows = {entry.name: entry for entry in known_encoders()}
    assert (rows["prithvi-eo-2"].dim, rows["prithvi-eo-2"].tile_size, rows["prithvi-eo-2"].normalisation) == (1024, 224, "source.normalise")
    assert rows["prithvi-eo-2"].bands == ("blue", "green", "red", "nir08", "swir16", "swir22")
    assert (rows["clay-1.5"].dim, rows["clay-1.5"].tile_size, rows["clay-1.5"].licence) == (1024, 256, "Apache-2.0")
