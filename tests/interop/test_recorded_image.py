"""What a store's metadata names is opened only where its owner may have meant it."""

import os

import pytest

from tests.support.images import make_image, write_pyramid
from tests.support.runs import embed
from tests.support.stores import make_store
from tilestream.errors import InputError
from tilestream.interop import recorded_image
from tilestream.interop.recorded_image import open_recorded
from tilestream.sources.base import SourceOptions
from tilestream.store.slide import Slide

OPTIONS = SourceOptions()


@pytest.fixture
def image(tmp_path):
    (tmp_path / "slides").mkdir()
    return write_pyramid(tmp_path / "slides" / "a.tif", make_image(200, 200, 1), tile=64, levels=1, mpp=0.5)


@pytest.fixture
def own(image, tmp_path):
    embed(image, tmp_path / "out", tiles={"size": 64})
    return Slide(tmp_path / "out" / "a.zarr")


@pytest.fixture
def somebody(monkeypatch):
    """Somebody else looks at the stores."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)


@pytest.fixture
def opened(monkeypatch):
    """Addresses that were opened."""
    seen = []
    true = recorded_image.open_source
    monkeypatch.setattr(recorded_image, "open_source", lambda address, options: seen.append(address) or true(address, options))
    return seen


def test_the_image_of_an_own_store_is_opened(own):
    with open_recorded(own, OPTIONS) as source:
        assert source.info.size == own.size


def test_a_store_of_somebody_else_opens_nothing_but_below_a_root(own, image, tmp_path, somebody, opened):
    for roots in ([], [str(tmp_path / "out")], [str(tmp_path / "slide")], ["s3://bucket"]):
        with pytest.raises(
            InputError, match=r"a.tif is not opened on the word of .*a.zarr alone: the store belongs to somebody else.*--slides"
        ):
            open_recorded(own, OPTIONS, roots)
    assert opened == []
    with open_recorded(own, OPTIONS, [str(tmp_path / "slides")]) as source:
        assert source.info.size == own.size
    assert opened == [str(image)]


@pytest.mark.parametrize("way", ["{root}/../secret.tif", "{root}/link.tif"])
def test_dots_and_links_lead_out_of_no_root(image, tmp_path, somebody, opened, way):
    (tmp_path / "secret.tif").write_bytes(image.read_bytes())
    (tmp_path / "slides" / "link.tif").symlink_to(tmp_path / "secret.tif")
    make_store(tmp_path / "m.zarr", address=way.format(root=tmp_path / "slides"))
    with pytest.raises(InputError, match="is not opened on the word of"):
        open_recorded(Slide(tmp_path / "m.zarr"), OPTIONS, [str(tmp_path / "slides")])
    assert opened == []


@pytest.mark.parametrize("address", ["s3://bucket/a.zarr", "http://127.0.0.1:9/a.zarr", "memory://a"])
def test_an_own_store_reaches_out_to_no_server_unasked(tmp_path, opened, address):
    make_store(tmp_path / "m.zarr", address=address)
    slide = Slide(tmp_path / "m.zarr")
    for roots in ([], [str(tmp_path)], ["http://127.0.0.1", "s3://buck"]):
        with pytest.raises(InputError, match=r"is not on this machine\. Name the folder of the slides: --slides"):
            open_recorded(slide, OPTIONS, roots)
    assert opened == []


def test_an_own_store_that_was_made_of_other_bytes_shows_none(own, image, tmp_path):
    write_pyramid(image, make_image(200, 200, 2), tile=64, levels=1, mpp=0.5)
    with pytest.raises(InputError, match=r"a.tif is not the file that .*a.zarr was made of"):
        open_recorded(own, OPTIONS)
    open_recorded(own, OPTIONS, [str(tmp_path / "slides")]).close()


def test_a_sample_is_opened_where_it_was_drawn_before_and_never_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("TILESTREAM_SAMPLE_DIR", str(tmp_path / "samples"))
    embed("sample://he?width=700&height=500&seed=3", tmp_path / "out", tiles={"size": 256, "tissue": "none"})
    (path,) = (tmp_path / "out").glob("*.zarr")
    with open_recorded(Slide(path), OPTIONS) as source:
        assert source.info.size == Slide(path).size
    monkeypatch.setenv("TILESTREAM_SAMPLE_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match="it is not on this machine"):
        open_recorded(Slide(path), OPTIONS)
    assert not (tmp_path / "elsewhere").exists()
