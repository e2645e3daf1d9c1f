"""Checkpoints, configs and names that would do more than they should."""

import shutil

import pytest
import torch

from tests.support.faults import run
from tilestream.cli import main


def test_a_pickle_in_a_checkpoint_never_runs(capsys, tmp_path, image, say):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"state_dict": Trap()}, tmp_path / "w.pth")
    code, words = run(capsys, tmp_path, image[0], encoder={"name": "vit_tiny_patch16_224", "weights": str(tmp_path / "w.pth")})
    assert code == 3
    assert "nothing in it was executed" in words
    assert not (tmp_path / "sprung").exists()
    say("pickle in a checkpoint", "never runs, 3", f"{code}")


@pytest.mark.parametrize(
    ("kind", "lines", "words"),
    [
        ("tag", "slides: !!python/object/apply:os.system ['touch sprung']", "c.yaml:1"),
        ("key twice", "slides: a.tif\nslides: b.tif", "c.yaml:2: slides: written twice"),
        ("unknown key", "slides: a.tif\noutput: out\ntilles: {level: 0}", "c.yaml:3: tilles"),
        ("anchors", "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]", "c.yaml:2"),
        ("depth", "slides: " + "[" * 5000 + "]" * 5000, "c.yaml:1"),
    ],
)
def test_yaml_that_is_more_than_plain_data_is_refused(capsys, tmp_path, monkeypatch, say, kind, lines, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(lines)
    with pytest.raises(SystemExit) as left:  # the code is looked at
        main(["run", "c.yaml"])
    said = "".join(capsys.readouterr())
    assert left.value.code == 2
    assert words in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml"]
    say(f"YAML: {kind}", "2 with the line, nothing executed", f"{left.value.code}")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a\0b"])
def test_ids_cannot_leave_the_output(capsys, tmp_path, image, say, name):
    (tmp_path / "list.csv").write_bytes(f"path,id\n{image[0]},{name}\n".encode())
    code, _ = run(capsys, tmp_path, tmp_path / "list.csv")
    assert code == 2
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.zarr"))
    say(f"id {name!r}", "2 before any work", f"{code}")


@pytest.mark.parametrize("kind", ["link", "stem"])
def test_places_and_names_are_checked_before_any_work(capsys, tmp_path, image, say, kind):
    if kind == "link":
        (tmp_path / "out").mkdir()
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "file").write_text("dear")
        (tmp_path / "out" / "a.zarr").symlink_to(tmp_path / "precious")
        given = image[0]
    else:
        (tmp_path / "more").mkdir()
        shutil.copyfile(image[0], tmp_path / "more" / "a.tif")
        given = [image[0], tmp_path / "more" / "a.tif"]
    code, words = run(capsys, tmp_path, given)
    assert code == 2
    assert ("is a link to" if kind == "link" else "two slides have the id") in words
    assert kind == "stem" or (tmp_path / "precious" / "file").read_text() == "dear"
    say({"link": "a link out of the output", "stem": "two slides of one stem"}[kind], "2 before any work", f"{code}")
