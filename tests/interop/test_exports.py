"""What holds for every export: bounds of memory, whole files or none, refusals."""

import re
import shutil
import tracemalloc

import numpy as np
import pytest
import zarr

from tests.support.exported import export
from tests.support.stores import make_store
from tilestream.cli import main
from tilestream.errors import ConfigError, IncompleteError, InputError
from tilestream.interop.exports import FORMATS, export_slides
from tilestream.store.cohort import verify_output
from tilestream.store.folder import Folder
from tilestream.store.ownership import claim
from tilestream.store.slide import Slide

BINARY = ("trident-h5", "clam-h5", "pt", "ome-zarr", "spatialdata")


@pytest.fixture
def small_blocks(monkeypatch):
    for module in ("blocks", "slide"):
        monkeypatch.setattr(f"tilestream.store.{module}.BLOCK_ROWS", 512)  # a slide of 20,000 tiles is then 40 blocks


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.slow
def test_an_export_never_holds_a_slides_embeddings(tmp_path, name, small_blocks):
    make_store(tmp_path / "small.zarr", 10, 10, 256)
    make_store(tmp_path / "a.zarr", 100, 200, 256, thumbnail=224)
    export(tmp_path, name, slide="small")  # what is imported and cached once
    tracemalloc.start()
    try:
        export(tmp_path, name, slide="a")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000 * 256 * 4 / 2


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - set(BINARY)))
def test_an_export_as_text_or_columns_asks_for_one_block_at_a_time(tmp_path, name, small_blocks, monkeypatch):
    make_store(tmp_path / "a.zarr", 100, 200, 32, thumbnail=224)
    asked = []

    def counted(self, selection):
        values = read(self, selection)
        asked.extend([len(values)] if values.ndim == 2 else [])
        return values

    read = zarr.Array.__getitem__
    monkeypatch.setattr(zarr.Array, "__getitem__", counted)
    export(tmp_path, name)
    assert max(asked) == 512
    assert sum(asked) % 20_000 == 0


@pytest.mark.parametrize("name", FORMATS)
def test_a_slide_without_tissue_is_exported(tmp_path, name):
    make_store(tmp_path / "a.zarr", keep=np.zeros((4, 5), bool))
    assert "a: 0 tiles" in export(tmp_path, name)[1]


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_cut_short_leaves_nothing(tmp_path, name, monkeypatch):
    make_store(tmp_path / "a.zarr", 60, 60, 4)

    def broken(self):
        yield from list(whole(self))[:1]
        raise OSError("the disk is gone")

    whole = Slide.blocks
    monkeypatch.setattr(Slide, "blocks", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        export(tmp_path, name)
    assert list((tmp_path / "exports" / name).iterdir()) == []


def test_unfinished_slides_are_left_out_and_named_and_the_others_exported(tmp_path, capsys):
    for name in "abc":
        make_store(tmp_path / f"{name}.zarr", finish=name != "b")
    claim(Folder(str(tmp_path / "d.zarr")))  # its creation was cut short
    with pytest.raises(SystemExit, match="4"):
        main(["export", str(tmp_path), "--to", "csv"])
    out, err = capsys.readouterr()
    assert [line[:2] for line in out.splitlines()] == ["a:", "c:"]
    assert re.search(r"2 of 4 slides left out: .*b.zarr is not finished.*--allow-unfinished.*\n.*d.zarr: its creation was cut short", err)
    with pytest.raises(IncompleteError, match=r"b.zarr is not finished"):
        list(export_slides(str(tmp_path), "csv", slide="b"))
    shutil.rmtree(tmp_path / "d.zarr")
    shutil.rmtree(tmp_path / "exports")
    assert len(list(export_slides(str(tmp_path), "csv", allow_unfinished=True))) == 3


def test_an_output_stays_an_output_with_exports_in_it(tmp_path):
    make_store(tmp_path / "a.zarr")
    make_store(tmp_path / "b.zarr")
    for name in ("ome-zarr", "spatialdata"):
        assert len(list(export_slides(str(tmp_path), name))) == 2
    assert verify_output(str(tmp_path), lambda _: None) == 0


def test_out_is_a_file_for_one_slide_and_a_folder_for_all(tmp_path):
    make_store(tmp_path / "a.zarr")
    make_store(tmp_path / "b.zarr")
    list(export_slides(str(tmp_path), "csv", out=str(tmp_path / "all")))
    list(export_slides(str(tmp_path), "csv", slide="a", out=str(tmp_path / "one.csv")))
    list(export_slides(str(tmp_path / "b.zarr"), "csv", out=str(tmp_path / "two.csv")))
    list(export_slides(str(tmp_path / "b.zarr"), "csv"))
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["a.csv", "b.csv"]
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "all" / "a.csv").read_bytes()
    assert (tmp_path / "two.csv").is_file()
    assert (tmp_path / "exports" / "csv" / "b.csv").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "hdf5"}, "--to: 'hdf5' is none of trident-h5"),
        ({"name": "csv", "slide": "c"}, "--slide: 'c' is not in .*, which holds a"),
        ({"name": "pt", "in_bounds": True}, "--in-bounds: is for --to geojson only"),
        ({"name": "ome-zarr", "out": "THERE"}, "is there already. Delete it"),
    ],
)
def test_refusals_say_what_and_the_way_out(tmp_path, options, words):
    make_store(tmp_path / "a.zarr")
    (tmp_path / "x.zarr").mkdir()
    if "out" in options:
        options = {**options, "out": str(tmp_path / "x.zarr"), "slide": "a"}
    with pytest.raises(ConfigError, match=words):
        list(export_slides(str(tmp_path), **options))


def test_a_slide_without_resolution_has_no_trident_file(tmp_path):
    make_store(tmp_path / "a.zarr", mpp=None)
    with pytest.raises(InputError, match=r"a: the slide has no resolution.*Use --to clam-h5"):
        export(tmp_path, "trident-h5")
