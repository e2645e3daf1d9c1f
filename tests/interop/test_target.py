"""Exports and reports replace what they wrote, as they wrote it, and nothing else."""

import shutil
from pathlib import Path

import pytest

from tests.support.foreign import SEEDS, snapshot
from tests.support.stores import make_store
from tilestream.cli import main
from tilestream.errors import ConfigError
from tilestream.interop.exports import FORMATS, export_slides
from tilestream.viewer.report import write_report


def export(output, name, **options):
    return list(export_slides(str(output), name, **options))


def place_of(output, name):
    return output / "exports" / name / f"a{FORMATS[name].suffix}"


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_replaces_its_own_file_wherever_the_output_lies_by_then(tmp_path, name):
    make_store(tmp_path / "out" / "a.zarr")
    export(tmp_path / "out", name)
    (tmp_path / "out").rename(tmp_path / "moved")
    make_store(tmp_path / "moved" / "a.zarr", failed=[3])
    export(tmp_path / "moved", name)
    export(tmp_path / "moved" / "a.zarr", name)  # the same output by its store
    export(tmp_path / "moved", name, out=str(tmp_path / "elsewhere"))
    export(tmp_path / "moved", name, out=str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_that_a_person_changed_is_theirs(tmp_path, name):
    make_store(tmp_path / "a.zarr")
    export(tmp_path, name)
    place = place_of(tmp_path, name)
    changed = place / "notes.txt" if place.is_dir() else place
    with changed.open("ab") as file:
        file.write(b"drawn by hand")
    before = snapshot(place.parent)
    with pytest.raises(ConfigError, match="is there already"):
        export(tmp_path, name)
    assert snapshot(place.parent) == before
    if place.is_dir():  # what else lies in a folder is not known: not even by force
        with pytest.raises(ConfigError, match="Delete it"):
            export(tmp_path, name, force=True)
        assert snapshot(place.parent) == before
    else:
        export(tmp_path, name, force=True)
        assert b"drawn by hand" not in place.read_bytes()
        export(tmp_path, name)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_export_replaces_nothing_of_others(tmp_path, seed):
    make_store(tmp_path / "a.zarr")
    for name in FORMATS:
        SEEDS[seed](place_of(tmp_path, name))
    before = snapshot(tmp_path)
    for name in FORMATS:
        with pytest.raises(ConfigError, match="is there already"):
            export(tmp_path, name)
    assert snapshot(tmp_path) == before


def test_nothing_is_written_into_a_zarr(tmp_path):
    make_store(tmp_path / "out" / "a.zarr")
    SEEDS["ome-zarr"](tmp_path / "theirs.zarr")
    before = snapshot(tmp_path)
    for place in (tmp_path / "theirs.zarr", tmp_path / "out" / "a.zarr"):
        for write in (
            lambda place=place: export(tmp_path / "out", "csv", out=f"{place}/"),
            lambda place=place: export(tmp_path / "out", "csv", out=f"{place}/deeper/"),
            lambda place=place: write_report(str(tmp_path / "out"), f"{place}/report.html"),
        ):
            with pytest.raises(ConfigError, match="which nothing is written into"):
                write()
    assert snapshot(tmp_path) == before


def test_a_report_replaces_a_report_and_nothing_else(tmp_path, capsys):
    make_store(tmp_path / "a.zarr")
    report = tmp_path / "report.html"
    write_report(str(tmp_path))
    first = report.read_bytes()
    write_report(str(tmp_path))
    report.write_bytes(first.replace(b"done", b"Done"))
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(tmp_path)])
    assert "--force" in capsys.readouterr().err
    assert report.read_bytes() == first.replace(b"done", b"Done")
    report.unlink()
    report.symlink_to(tmp_path / "elsewhere.html")
    shutil.copyfile(__file__, tmp_path / "elsewhere.html")
    with pytest.raises(ConfigError, match="is there already"):
        write_report(str(tmp_path))
    write_report(str(tmp_path), force=True)
    assert not report.is_symlink()
    assert (tmp_path / "elsewhere.html").read_bytes() == Path(__file__).read_bytes()
