"""Paths as people write them, and things with a path that are no files."""

import os
import re
import socket
from pathlib import Path

import pytest

from tilestream.config.fit_schema import FitConfig
from tilestream.config.load import load_config, load_section
from tilestream.config.local_files import expand_path, named_url, read_small_file, refuse_special
from tilestream.config.schema import Config
from tilestream.config.slide_list import list_slides
from tilestream.errors import ConfigError, InputError
from tilestream.interop.exports import export_slides
from tilestream.interop.importing import import_features
from tilestream.sources.facts.first_config import write_first_config
from tilestream.viewer.report import write_report
from tilestream.viewer.server import serve

PLACES = ("slides", "output", "tiles.tissue.mask", "tiles.from", "encoder.weights", "context.weights", "pool.weights", "compute.scheduler")


@pytest.fixture
def special(tmp_path):
    """One path of each kind that is no file."""
    os.mkfifo(tmp_path / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    yield {"FIFO": tmp_path / "pipe", "socket": tmp_path / "socket", "character device": "/dev/zero"}
    listening.close()


def test_home_and_variables_are_filled_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("DATA", "/mnt/data")
    monkeypatch.chdir(tmp_path)
    for written, meant in {
        "~/x": "/home/ada/x",
        "~": "/home/ada",
        "$DATA/a.svs": "/mnt/data/a.svs",
        "${DATA}/*.svs": "/mnt/data/*.svs",
        "a~b/~c": "a~b/~c",
        "./~x": "./~x",
        "s3://bucket/~/$DATA": "s3://bucket/~//mnt/data",
        "https://u:pa$word@h/a": "https://u:pa$word@h/a",
        "cost 5$.svs": "cost 5$.svs",
        "a://b": "a://b",
        "c:lean.svs": "c:lean.svs",
        r"back\slash": r"back\slash",
    }.items():
        assert expand_path(written) == meant


@pytest.mark.parametrize("key", PLACES)
def test_every_path_of_a_config_is_expanded(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    raw = {"slides": "a.svs", "output": "out", "tiles": {"size": 64}, "encoder": "patch_embed", "context": {}, "pool": "gated_attention"}
    prefix = "file:" if key == "compute.scheduler" else ""
    resolution = [] if key == "tiles.from" else ["tiles.level=0"]
    config = load_config(raw, [*resolution, f"{key}={prefix}~/x"]).model_dump(mode="json", by_alias=True)
    config["output"] = config["output"]["path"]
    for part in key.split("."):
        config = config[part]
    assert config in (f"{prefix}/home/ada/x", ["/home/ada/x"])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("$NOT_SET_HERE/x", "the environment variable NOT_SET_HERE, which is not set"),
        ("${NOT_SET_HERE}/x", "the environment variable NOT_SET_HERE, which is not set"),
        ("~no_such_user_here/x", "no user of this machine"),
        ("a\0b", "holds a NUL"),
        ("C:\\slides\\a.svs", "is a path of Windows"),
        ("d:/slides/*.svs", "is a path of Windows"),
        (r"\\server\share\a.svs", "is a path of Windows"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(path, words):
    with pytest.raises(ConfigError, match=f"output.path: .*{words}"):
        load_config({"slides": "a.svs", "output": path, "tiles": {"level": 0}, "encoder": "patch_embed"})


URLS = {"s3://bucket/x": "s3://bucket/x", "s3:/bucket/x": "s3://bucket/x", "HTTPS://h/x": "HTTPS://h/x", "ftp://h/x": "ftp://h/x", "file:///x": "file:///x"}  # fmt: skip
"""URLs as they are written, one by a Path, and as they are told."""

RUN = {"slides": "a.svs", "output": "out", "tiles": {"level": 0}, "encoder": "patch_embed", "context": {}, "pool": "gated_attention"}
FIT = {"embeddings": "out", "target": {"slides": "l.csv", "column": "c"}, "head": {"name": "t", "kind": "slide", "model": "mean"}, "save": "t.safetensors"}  # fmt: skip
LOCAL_OF_RUN = [*PLACES[2:-1], "windows.weights", "source.stage", "heads.a.model"]
LOCAL_OF_FIT = ["target.slides", "target.slide_table", "target.annotations", "save"]
BY_CALL = {
    "slides: .*list.csv, row 2, mask": lambda url: list_slides([_list_with_mask(url)]),
    "config": load_config,
    "--out": lambda url: list(export_slides("out", "csv", out=url)),
    "--to": lambda url: write_report("out", url),
    "features": lambda url: import_features(url, "a", "out"),
}
BY_PATH = {
    "config": load_config,
    "--out": lambda path: list(write_first_config(["a.svs"], path, "out")),
    "--annotations": lambda path: serve(["out"], print, annotations=path),
}


def _list_with_mask(url):
    Path("list.csv").write_text(f"path,mask\na.svs,{url}\n")
    return "list.csv"


@pytest.mark.parametrize(("written", "told"), URLS.items())
def test_a_url_is_refused_where_only_the_local_disk_is_read_or_written(written, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = f"{re.escape(told)}'? is a URL, but this (key )?takes a path of this machine"
    for kind, base, keys in ((Config, RUN, LOCAL_OF_RUN), (FitConfig, FIT, LOCAL_OF_FIT)):
        for key in keys:
            with pytest.raises(ConfigError, match=f"{re.escape(key)}: '{words}"):
                load_section(kind, base, [f"{key}={written}"])
    for where, call in BY_CALL.items():
        with pytest.raises(ConfigError, match=f"^{where}: {words}"):
            call(written)
    assert {path.name for path in tmp_path.iterdir()} <= {"list.csv"}


@pytest.mark.parametrize("scheme", ["s3", "gs", "https", "file"])
def test_a_url_that_came_through_a_path_is_refused_too(scheme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for where, call in BY_PATH.items():
        with pytest.raises(ConfigError, match=f"^{where}: {scheme}:///?bucket/x is a URL"):
            call(Path(f"{scheme}://bucket/x"))
    assert not list(tmp_path.iterdir())


def test_what_only_looks_like_a_url_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:" / "bucket").mkdir(parents=True)
    for path in ("s3://bucket", "instanseg:/models/a.pt", "c:lean", "module:factory", "a:/b", "hub/name", "~/s3:"):
        assert named_url(path) == ""


def test_a_name_that_only_looks_like_a_variable_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cost$NOT_SET_HERE.svs").touch()
    assert expand_path("cost$NOT_SET_HERE.svs") == "cost$NOT_SET_HERE.svs"


def test_a_slide_list_may_name_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    (tmp_path / "s.csv").write_text("path\n~/a.svs\nb.svs\n")
    assert [ref.address for ref in list_slides([str(tmp_path / "s.csv")])] == ["/home/ada/a.svs", f"{tmp_path}/b.svs"]


def test_pipes_sockets_and_devices_are_refused_by_name(special):
    for kind, path in special.items():
        with pytest.raises(InputError, match=f"mask: {path} is a {kind}"):
            refuse_special(path, "mask")
        with pytest.raises(ConfigError, match=f"{path} is a {kind}"):
            read_small_file(path, "", "Give another.")


def test_files_folders_and_what_is_not_there_pass(tmp_path):
    (tmp_path / "a").touch()
    for path in (tmp_path, tmp_path / "a", tmp_path / "none", "\0", "s3://b/x"):
        refuse_special(path)


@pytest.mark.parametrize("kind", ["FIFO", "socket", "character device"])
def test_a_config_and_a_slide_list_that_are_no_files_are_refused(special, kind, tmp_path):
    with pytest.raises(ConfigError, match=f"is a {kind}"):
        load_config(special[kind])
    link = tmp_path / "list.csv"
    link.symlink_to(special[kind])
    with pytest.raises(ConfigError, match=f"slides: .*list.csv is a {kind}"):
        list_slides([str(link)])


def test_a_small_file_is_bounded(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 11)
    assert read_small_file(tmp_path / "a", "k", "", 11) == b"x" * 11
    with pytest.raises(ConfigError, match=r"k: .* is larger than"):
        read_small_file(tmp_path / "a", "k", "", 10)
    with pytest.raises(ConfigError, match=r"k: .* cannot be read: Is a directory. Way out."):
        read_small_file(tmp_path, "k", "Way out.")
    with pytest.raises(ConfigError, match=r"cannot be read: embedded null byte"):
        read_small_file("a\0", "k", "")
