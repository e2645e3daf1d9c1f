"""Paths as people write them, and things with a path that are no files."""

import os
import socket

import pytest

from tilestream.config.load import load_config
from tilestream.config.local_files import expand_path, read_small_file, refuse_special
from tilestream.config.slide_list import list_slides
from tilestream.errors import ConfigError, InputError

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
