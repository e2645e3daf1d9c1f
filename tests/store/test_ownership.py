"""What is not ours stays as it is, byte for byte; what is ours, however little of it was written, is gone on with."""

import errno
import json
import re

import pytest
import zarr

from tests.support.foreign import SEEDS, snapshot
from tests.support.stores import make_store
from tilestream.config.slide_list import SlideRef
from tilestream.errors import ConfigError
from tilestream.store.folder import Folder
from tilestream.store.ownership import MARK, claim, is_ours, refuse_foreign
from tilestream.store.slide_store import SlideStore


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_not_ours_is_neither_claimed_nor_touched(tmp_path, seed):
    place = tmp_path / "out" / "a.zarr"
    SEEDS[seed](place)
    before = snapshot(tmp_path)
    assert not is_ours(Folder(str(place)))
    for refused in (
        lambda: claim(Folder(str(place))),
        lambda: make_store(place),
        lambda: refuse_foreign(Folder(str(place.parent)), [SlideRef("a", str(tmp_path / "a.svs"))]),
    ):
        with pytest.raises(ConfigError, match=re.escape(str(place))):
            refused()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("left", [None, ".tilestream/", f".tilestream/store.{'0af3' * 8}.partial", MARK])
def test_a_place_with_nothing_or_a_mark_that_was_cut_short_is_free(tmp_path, left):
    place = tmp_path / "a.zarr"
    if left is not None:
        (place / left).parent.mkdir(parents=True)
        (place / left).mkdir() if left.endswith("/") else (place / left).write_bytes(b"")
    claim(Folder(str(place)))
    assert is_ours(Folder(str(place)))


def test_a_creation_that_was_cut_short_anywhere_is_gone_on_with(tmp_path, monkeypatch):
    write = zarr.storage._local._put
    whole = make_store(tmp_path / "whole" / "a.zarr", finish=False)
    fails = True
    for last in (1, 2, 3, 5, 9, 14, 22, 30, 38, 200):
        writes = iter(range(last))

        def put(path, value, exclusive=False, writes=writes):
            if next(writes, None) is None:
                raise OSError(errno.ENOSPC, "no space left on device")
            return write(path, value, exclusive)

        place = tmp_path / str(last) / "a.zarr"
        with monkeypatch.context() as patch:
            patch.setattr("zarr.storage._local._put", put)
            try:
                make_store(place, finish=False)
                fails = False
            except OSError:
                pass
        assert not fails or is_ours(Folder(str(place)))
        make_store(place, finish=False)
        assert snapshot(place) == snapshot(whole.folder.local)
        if not fails:
            return
    raise AssertionError("no creation came to its end")


def test_starting_over_leaves_what_people_put_into_a_store(tmp_path):
    place = tmp_path / "a.zarr"
    make_store(place)
    theirs = {"notes.txt", "tables/mine/zarr.json", "labels/mine/0/c/0/0"}
    for name in theirs:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("years of work")
    SlideStore(Folder(str(place))).clear()
    assert {name for name, held in snapshot(place).items() if held is not None} - {MARK} == theirs
    make_store(place)
    store = SlideStore(Folder(str(place)))
    assert (place / "notes.txt").read_text() == "years of work"
    (place / "notes.txt").write_text("more")
    assert store.damage() == []


def test_stores_from_before_there_was_a_mark_are_ours(tmp_path):
    place = tmp_path / "a.zarr"
    make_store(place)
    (place / MARK).unlink()
    assert is_ours(Folder(str(place)))
    make_store(place)
    assert (place / MARK).exists()


@pytest.mark.parametrize("where", ["slides/a.svs", "out/a.svs", "out/deeper/a.svs", "out/a.zarr", "out"])
def test_an_output_that_holds_a_slide_or_lies_in_one_is_refused(tmp_path, where):
    (tmp_path / "out").mkdir()
    refs = [SlideRef("a", str(tmp_path / where))]
    if where.startswith("slides"):
        refuse_foreign(Folder(str(tmp_path / "out")), refs)
        with pytest.raises(ConfigError, match="lies in"):
            refuse_foreign(Folder(str(tmp_path / where / "out")), refs)
        return
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "linked.svs").symlink_to(tmp_path / "elsewhere.svs")
    with pytest.raises(ConfigError, match="one of its slides"):
        refuse_foreign(Folder(str(tmp_path / "out")), [SlideRef("linked", str(tmp_path / "out" / "linked.svs"))])
    for output in ("out", "link", "out/../out"):
        with pytest.raises(ConfigError, match="one of its slides"):
            refuse_foreign(Folder(str(tmp_path / output)), refs)


def test_an_output_is_no_file_and_lies_in_no_zarr(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        refuse_foreign(Folder(str(tmp_path / "file")), [])
    make_store(tmp_path / "a.zarr")
    for output in ("a.zarr", "a.zarr/out"):
        with pytest.raises(ConfigError, match="lies in a slide's store"):
            refuse_foreign(Folder(str(tmp_path / output)), [])


@pytest.mark.parametrize(("text", "ours"), [('{"tilestream": "0.1.0"}', True), ("", True), ("{}", False), ("[1]", False), ("torn", False)])
def test_files_of_an_output_are_replaced_only_where_they_are_ours(tmp_path, text, ours):
    (tmp_path / "run.json").write_text(text)
    if ours:
        refuse_foreign(Folder(str(tmp_path)), [], ["run.json"])
        return
    with pytest.raises(ConfigError, match=r"run\.json is there and was not written by tilestream"):
        refuse_foreign(Folder(str(tmp_path)), [], ["run.json"])


def test_what_only_looks_like_ours_is_not(tmp_path):
    for mark in ("[]", "null", '"store"', "{}", '{"tilestream": "other"}'):
        (tmp_path / MARK).parent.mkdir(exist_ok=True)
        (tmp_path / MARK).write_text(mark)
        assert not is_ours(Folder(str(tmp_path)))
    (tmp_path / "zarr.json").write_text(json.dumps({"attributes": {"tilestream": {"made": "by hand"}}}))
    assert not is_ours(Folder(str(tmp_path)))
