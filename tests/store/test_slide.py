"""An opened store in a notebook."""

import sys
import types

import pytest

import tilestream
from tests.support.stores import make_store
from tilestream.errors import ConfigError, InputError


def test_a_notebook_shows_picture_shape_and_recipe(tmp_path):
    make_store(tmp_path / "a<script>b.zarr")
    html = tilestream.open(tmp_path / "a<script>b.zarr")._repr_html_()
    assert "20 tiles x 6 float32" in html
    assert "data:image/webp;base64," in html
    assert "made_up" in html
    assert "<script>" not in html
    assert len(html) < 100_000


def test_a_store_without_picture_still_shows(tmp_path):
    make_store(tmp_path / "a.zarr").folder.delete("thumbnail.png")
    assert "<img" not in tilestream.open(tmp_path / "a.zarr")._repr_html_()


def test_plot_draws_the_picture_or_says_what_is_missing(tmp_path, monkeypatch):
    make_store(tmp_path / "a.zarr")
    store = tilestream.open(tmp_path / "a.zarr")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'tilestream\[plot\]'"):
        store.plot()
    monkeypatch.setitem(sys.modules, "matplotlib", types.SimpleNamespace(pyplot=None))

    class Axes:
        def imshow(self, picture):
            self.size = picture.size

        def set_axis_off(self):
            self.off = True

    axes = store.plot(Axes())
    assert axes.size == (35, 28)
    (tmp_path / "a.zarr" / "thumbnail.png").unlink()
    with pytest.raises(InputError, match="has no picture"):
        store.plot(Axes())
