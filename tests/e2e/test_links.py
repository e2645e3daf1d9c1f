"""No output is written through a link in it."""

import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, embed
from tilestream.errors import ConfigError


@pytest.fixture
def image(tmp_path):
    return write_pyramid(tmp_path / "a.tif", make_image(200, 200, 1), tile=64, levels=1, mpp=0.5)


@pytest.mark.parametrize("inner", ["a.zarr", "a.zarr/tables", "a.zarr/tables/tiles/X", "a.zarr/.tilestream", ".tilestream", "runs"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_link_in_an_output_is_refused_and_what_it_names_is_left_alone(image, tmp_path, inner, restart):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    embed(image, out, tiles={"size": 64})
    place = out / inner
    if place.exists():
        place.rename(elsewhere)
    else:
        elsewhere.mkdir()
    place.symlink_to(elsewhere)
    before = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=f"output: .*{place.name} is a link to .*elsewhere"):
        tilestream.run(config(image, out, tiles={"size": 64}), restart=restart)
    assert {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()} == before


def test_the_output_itself_may_be_a_link(image, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert embed(image, tmp_path / "out", tiles={"size": 64}).exit_code == 0
    assert embed(image, tmp_path / "out", tiles={"size": 64}).exit_code == 0
    assert (tmp_path / "disk" / "a.zarr" / "zarr.json").exists()
