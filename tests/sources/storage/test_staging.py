"""Copies of slides in a folder: bounded, shared, complete or absent, and removed with nothing else."""

import os
import subprocess
import sys

import pytest

from tests.support.range_server import serving
from tilestream.errors import ConfigError, InterruptedRunError, OutageError
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.storage import fetching, staging
from tilestream.sources.storage.staging import Stage

IDS = [f"{k:032x}" for k in range(4)]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(fetching, "PAUSES", (0.0,))
    monkeypatch.setattr(staging, "PATIENCE", 0.0)
    monkeypatch.setattr(staging, "LOOK_EVERY", 0.01)


def hold(stage, number, size=100, data=b"x"):
    return stage.hold(IDS[number], f"{number}.svs", size, lambda file: os.write(file, data * size))


def copies(stage):
    return sorted(path.name for path in stage.root.glob("*/*.svs*"))


def test_what_was_used_longest_ago_makes_room_and_what_is_in_use_stays(tmp_path):
    stage = Stage(str(tmp_path), 250)
    first, second = hold(stage, 0), hold(stage, 1)
    os.utime(first.path.parent / "lock", (1, 1))
    second.release()
    third = hold(stage, 2)
    assert copies(stage) == ["0.svs", "2.svs"]
    with pytest.raises(ConfigError, match=r"source\.stage_limit: .* are full of slides that are in use, and 3\.svs waited"):
        hold(stage, 3)
    again = hold(stage, 0, data=b"other")  # the copy that is there
    assert again.path.read_bytes() == b"x" * 100
    for held in (first, third, again):
        held.release()


def test_a_slide_larger_than_the_limit_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"source\.stage_limit: 0\.svs has .* the limit is"):
        hold(Stage(str(tmp_path), 50), 0)


def test_a_copy_that_fails_leaves_nothing(tmp_path):
    stage = Stage(str(tmp_path), 250)

    def fail(file):
        os.write(file, b"half")
        raise OutageError("gone")

    with pytest.raises(OutageError):
        stage.hold(IDS[0], "0.svs", 100, fail)
    assert list(stage.root.iterdir()) == [stage.root / "lock"]

    def full(file):
        raise OSError(28, "No space left on device")

    with pytest.raises(InterruptedRunError, match=r"source\.stage: .* cannot be written: No space left"):
        stage.hold(IDS[0], "0.svs", 100, full)


def test_what_a_process_left_that_died_is_removed_and_what_is_not_ours_stays(tmp_path):
    stage = Stage(str(tmp_path), 1000)
    code = (
        "import os, sys; from tilestream.sources.storage.staging import Stage\n"
        f"stage = Stage({str(tmp_path)!r}, 1000)\n"
        f"stage.hold({IDS[0]!r}, '0.svs', 3, lambda file: os.write(file, b'abc'))\n"
        f"stage.hold({IDS[1]!r}, '1.svs', 3, lambda file: os._exit(9))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert copies(stage) == ["0.svs", "1.svs.part"]
    foreign = stage.root / IDS[3]
    foreign.mkdir()
    (foreign / "theirs.svs").write_text("theirs")
    (stage.root / IDS[0] / "notes.txt").write_text("theirs")
    assert hold(stage, 1).path.read_bytes() == b"x" * 100  # begun anew
    stage.clear()
    left = sorted(str(path.relative_to(stage.root)) for path in stage.root.rglob("*") if path.is_file())
    assert left == [f"{IDS[0]}/notes.txt", f"{IDS[3]}/theirs.svs", "lock"]


@pytest.mark.parametrize("fault", ["", "no_range"])
def test_a_staged_slide_is_the_object(slides, tmp_path, fault):
    name = "CMU-1-Small-Region.svs"
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / name).write_bytes((slides / name).read_bytes())
    options = SourceOptions(stage=str(tmp_path / "stage"))
    with serving(tmp_path / "web") as server:
        plain = open_source(server.url(name), SourceOptions()).info
        server.fault = lambda *_: fault
        with open_source(server.url(name), options) as source, open_source(str(slides / name), SourceOptions()) as here:
            assert (source.info.address, source.info.fingerprint) == (server.url(name), plain.fingerprint)
            assert (source.read((100, 100, 300, 300)) == here.read((100, 100, 300, 300))).all()
            copy = next((tmp_path / "stage").rglob("*.svs"))
            assert copy.read_bytes() == (slides / name).read_bytes()
        server.fault = lambda number, _: "cut"
        Stage(str(tmp_path / "stage"), 1).clear()
        assert not copy.exists()
        with pytest.raises(OutageError):
            open_source(server.url(name), options)
        assert not list((tmp_path / "stage").rglob("*.svs*"))


def test_objects_of_two_addresses_are_two_copies_whatever_their_etags(slides, tmp_path):
    data = (slides / "CMU-1-Small-Region.svs").read_bytes()
    names = ["one/a.svs", "two/a.svs", "two/b.svs"]
    for number, name in enumerate(names):
        (tmp_path / "web" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "web" / name).write_bytes(data + bytes([number]) * 8)
        os.utime(tmp_path / "web" / name, (1e9, 1e9))  # web servers make an ETag of size and time
    options = SourceOptions(stage=str(tmp_path / "stage"))
    with serving(tmp_path / "web") as server:
        held = [open_source(server.url(name), options) for name in names]
        assert len({source.info.fingerprint for source in held}) == 1  # as the server has it
        found = {path.read_bytes()[-1] for path in (tmp_path / "stage").rglob("*.svs")}
        assert found == {0, 1, 2}
        for source in held:
            source.close()
