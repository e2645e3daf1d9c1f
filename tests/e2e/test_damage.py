"""Every file of a finished output, damaged in turn: verify names it, repair and run end byte-equal, no reader gets other numbers."""

import re
import shutil

import numpy as np
import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, opened
from tilestream.errors import IncompleteError, TilestreamError
from tilestream.interop.exports import export_slides
from tilestream.store.cohort import verify_output
from tilestream.store.folder import Folder
from tilestream.store.slide_store import SlideStore

SECTIONS = {
    "tiles": {"size": 64, "level": 0, "tissue": "none"}, "encoder": "tests.support.encoders:corners", "pool": "gated_attention",
    "context": {"window": 4, "depth": 1, "heads": 3}, "output": {"save": ["tiles", "slide", "windows"]}, "windows": {"sides": [2, 4]}, "compute": {"shard_tiles": 10},
}  # fmt: skip

HARMS = ("flipped", "cut", "emptied", "deleted")


def hurt(path, harm):
    raw = bytearray(path.read_bytes())
    if harm == "deleted":
        path.unlink()
    else:
        raw[len(raw) // 2 : len(raw) // 2 + 1] = bytes([raw[len(raw) // 2] ^ 1]) if raw else b"x"
        path.write_bytes({"flipped": raw, "cut": raw[: len(raw) // 2], "emptied": b""}[harm])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    image = write_pyramid(folder / "a.tif", make_image(300, 300, 1), compression="deflate", levels=1, mpp=0.5)
    settings = config(image, folder / "out", **SECTIONS)
    tilestream.run(settings)
    return folder, settings


def files(store):
    return sorted(path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file() and path.name != "store.json")


def kind(name):
    """Files of one kind lie in one place, and are metadata or not."""
    return re.sub(r"\d+", "#", "/".join(name.split("/")[:3])) + f" {name.endswith('zarr.json')}"


def numbers(output):
    """All numbers that our reader gives of a slide."""
    slide = opened(output, "a")
    table = slide.to_anndata()
    arrays = [slide.embeddings[:], slide.context[:], slide.slide_vector, slide.positions, slide.windows(2)[:], slide.windows(4)[:]]
    arrays += [np.asarray(table.X), np.asarray(table.obsm["spatial"]), np.asarray(table.obsm["attention"])]
    obs = [slide.obs[name].astype(str).to_numpy() for name in slide.obs] + [
        np.asarray(table.obs_names),
        np.asarray(table.obs["status"].astype(str)),
    ]
    return [np.nan_to_num(array, nan=-1.0) for array in arrays] + obs


def check(finished, place, names, harms):
    folder, settings = finished
    whole, truth = {}, numbers(folder / "out")
    for name in files(folder / "out" / "a.zarr"):
        whole[name] = (folder / "out" / "a.zarr" / name).read_bytes()
    for name in names:
        for harm in harms:
            if harm == "emptied" and not whole[name]:
                continue
            output = place / "out"
            shutil.rmtree(output, ignore_errors=True)
            shutil.copytree(folder / "out", output)
            hurt(output / "a.zarr" / name, harm)
            try:
                seen = numbers(output)
            except (TilestreamError, RuntimeError, ValueError, OSError):
                pass
            else:
                assert all(np.array_equal(a, b) for a, b in zip(seen, truth, strict=True)), (name, harm)
            said = []
            assert verify_output(str(output), said.append, repair=True) == 4
            lost = name.endswith("complete.json") and harm == "deleted"
            assert any(name in line for line in said) or (lost and "not finished" in "".join(said)), (name, harm, said)
            assert tilestream.run({**settings, "output": {**settings["output"], "path": str(output)}}).exit_code == 0, (name, harm)
            assert {each: (output / "a.zarr" / each).read_bytes() for each in files(output / "a.zarr")} == whole, (name, harm)


@pytest.mark.slow
def test_a_file_of_each_kind(finished, tmp_path):
    names = files(finished[0] / "out" / "a.zarr")
    one_each = list({kind(name): name for name in names}.values())
    for k, name in enumerate(one_each):
        check(finished, tmp_path, [name], [HARMS[k % len(HARMS)]])


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_file_in_every_way(finished, tmp_path):
    check(finished, tmp_path, files(finished[0] / "out" / "a.zarr"), HARMS)


def test_what_is_left_can_be_read_when_asked(finished, tmp_path):
    shutil.copytree(finished[0] / "out", tmp_path / "out")
    hurt(tmp_path / "out" / "a.zarr" / "tables" / "tiles" / "X" / "c" / "1" / "0", "deleted")
    with pytest.raises(TilestreamError, match=r"tables/tiles/X/c/1/0: missing.*verify --repair.*verify=False"):
        tilestream.open(tmp_path / "out" / "a.zarr")
    rows = tilestream.open(tmp_path / "out" / "a.zarr", verify=False).embeddings[:]
    assert np.isnan(rows[10:20]).all()
    assert np.isfinite(rows[:10]).all()
    assert SlideStore(opened(finished[0] / "out", "a").folder).quick_damage() == []


@pytest.mark.parametrize("form", ["csv", "pt", "trident-h5"])
def test_an_export_names_damaged_rows_and_does_the_other_slides(finished, tmp_path, form):
    for name in ("a", "b"):
        shutil.copytree(finished[0] / "out" / "a.zarr", tmp_path / "out" / f"{name}.zarr")
    hurt(tmp_path / "out" / "a.zarr" / "tables" / "tiles" / "X" / "c" / "1" / "0", "flipped")
    lines = export_slides(str(tmp_path / "out"), form, out=str(tmp_path / "exported"))
    assert next(lines).startswith("b: ")
    with pytest.raises(IncompleteError, match=r"1 of 2 slides left out: .*tables/tiles/X/c/1/0: bytes differ.*verify --repair"):
        list(lines)
    assert [path.stem for path in (tmp_path / "exported").iterdir() if not path.name.startswith(".")] == ["b"]


def test_a_store_under_the_name_of_another_slide_is_found(finished, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished[0] / "out", output)
    said = []
    assert verify_output(str(output), said.append) == 0
    shutil.copytree(output / "a.zarr", output / "b.zarr")
    for repair in (False, True):  # nothing in it is damaged: what makes a slide again would not help
        said.clear()
        assert verify_output(str(output), said.append, repair=repair) == 4
        assert said[:3] == ["a: ok", "b: 1 problem", "  holds the rows of slide a: rename it to a.zarr"]
    assert SlideStore(Folder(str(output / "b.zarr"))).completion is not None
