"""How many tiles a shard has depends on what is asked and on the encoder, on nothing else."""

import types

import pytest

from tests.support.runs import config
from tilestream.config.load import load_config
from tilestream.runner.slide_plan import shard_tiles

VIT_S, VIT_B, VIT_L, VIT_G = 21_665_664, 85_798_656, 303_301_632, 1_134_553_600


@pytest.mark.parametrize(
    ("parameters", "sections", "tiles"),
    [
        (0, {}, 2048),
        (VIT_S, {}, 2048),
        (VIT_B, {}, 1024),
        (VIT_L, {}, 512),
        (VIT_G, {}, 512),
        (VIT_L, {"compute": {"shard_tiles": 2048}}, 2048),
        (VIT_L, {"compute": {"shard_tiles": 100}}, 100),
        (VIT_L, {"context": {"window": 4, "depth": 1, "heads": 4}}, 2048),
    ],
)
def test_a_shard_of_a_large_encoder_has_fewer_tiles_unless_it_is_said(tmp_path, parameters, sections, tiles):
    given = config(tmp_path / "a.tif", tmp_path / "out", **sections)
    if "shard_tiles" not in sections.get("compute", {}):
        given.get("compute", {}).pop("shard_tiles", None)
    assert shard_tiles(load_config(given), types.SimpleNamespace(parameters=parameters)) == tiles
