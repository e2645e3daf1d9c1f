"""When a slide's tiles go through the compiled encoder."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.stages.test_worker import settings
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config
from tilestream.errors import InterruptedRunError
from tilestream.runner.compiling import COMPILE_SECONDS, COMPILED_GAIN, COMPILER_BYTES, CompileChoice, compiler_bytes

PAYS = int(COMPILE_SECONDS / COMPILED_GAIN / 0.001)
"""Tiles of 1 ms that gain as much as compiling takes."""


class Compiler:
    """Compiles once it is told to."""

    def __init__(self, *answers):
        self.answers, self.may, self.calls, self.said = answers or ("",), threading.Event(), 0, []

    def __call__(self):
        self.calls += 1
        self.may.wait()
        if isinstance(self.answers[0], Exception):
            raise self.answers[0]
        return self.answers


def choice(compiler, *, wanted=None, tile_seconds=0.001, slides=10):
    facts = SimpleNamespace(tile_seconds=tile_seconds)
    return CompileChoice(replace(settings(), compile=wanted), facts, slides, compiler, compiler.said.append)


def finish(chosen, compiler):
    compiler.may.set()
    chosen._compiled.exception()


def test_what_gains_less_than_compiling_takes_is_never_compiled():
    compiler = Compiler()
    chosen = choice(compiler, slides=3)
    assert not any(chosen(PAYS // 3 - 1, 1) for _ in range(3))
    assert compiler.calls == 0


@pytest.mark.parametrize(
    ("tiles", "auto", "alone", "tile_seconds", "set_aside"),
    [
        (PAYS + 1, True, True, 0.001, COMPILER_BYTES),
        (PAYS - 1, True, True, 0.001, 0),
        (1, True, False, 0.001, COMPILER_BYTES),
        (PAYS + 1, False, True, 0.001, 0),
        (PAYS + 1, True, True, None, 0),
    ],
)
def test_memory_is_set_aside_for_a_compiler_where_it_may_be_called(tiles, auto, alone, tile_seconds, set_aside):
    facts = SimpleNamespace(tile_seconds=tile_seconds)
    assert compiler_bytes(facts, tiles, auto=auto, alone=alone) == set_aside
    compiler = Compiler()
    choice(compiler, wanted=None if auto else False, tile_seconds=tile_seconds, slides=1 if alone else 10**6)(tiles, 1)
    compiler.may.set()
    assert bool(set_aside) or compiler.calls == 0


def test_slides_begin_uncompiled_until_all_workers_have_compiled():
    compiler = Compiler("", "")
    chosen = choice(compiler)
    assert [chosen(PAYS // 5, 1), chosen(PAYS // 5, 1)] == [False, False]
    finish(chosen, compiler)
    assert chosen(PAYS // 5, 1)
    assert chosen(1, 1)
    assert compiler.calls == 1


def test_more_workers_gain_less_each():
    compiler = Compiler()
    chosen = choice(compiler)
    assert not chosen(PAYS // 5, 4)
    assert compiler.calls == 0


def test_a_slide_that_gains_much_by_itself_waits():
    compiler = Compiler()
    compiler.may.set()
    assert choice(compiler, slides=1)(PAYS * 2 + 1, 1)


@pytest.mark.parametrize("answer", ["it runs uncompiled: so", InterruptedRunError("the scheduler was lost")])
def test_where_one_worker_cannot_compile_none_does(answer):
    compiler = Compiler(answer)
    compiler.may.set()
    chosen = choice(compiler, slides=1)
    assert not chosen(PAYS * 2 + 1, 1)
    assert compiler.said == [str(answer)]


@pytest.mark.parametrize("wanted", [True, False])
def test_what_the_config_says_is_done_at_once(wanted):
    compiler = Compiler()
    assert choice(compiler, wanted=wanted)(1, 1) is wanted
    assert choice(compiler, wanted=True, tile_seconds=None)(1, 1) is False  # on a processor
    assert compiler.calls == 0


@pytest.mark.parametrize("begun", [True, False])
def test_a_slide_ends_as_it_began(begun, tmp_path, monkeypatch):
    """Its first shards are done, the run is cut short; the next one would begin slides the other way."""
    import tilestream
    from tilestream.runner import ahead, pipeline
    from tilestream.store.folder import Folder
    from tilestream.store.slide_store import SlideStore

    asked = []
    real = pipeline.embed_tiles

    def embed(task, shards):
        asked.append(task.compiled)
        if len(asked) == 2:
            raise InterruptedRunError("cut short")
        return real(task, shards)

    monkeypatch.setattr(pipeline, "embed_tiles", embed)
    image = write_pyramid(tmp_path / "a.tif", make_image(128, 128, seed=1), tile=64, levels=1)
    given = config(image, tmp_path / "out", tiles={"size": 64, "level": 0, "tissue": "none"}, compute={"shard_tiles": 1})
    monkeypatch.setattr(ahead, "CompileChoice", lambda *_: lambda tiles, workers: begun)
    with pytest.raises(InterruptedRunError, match="cut short"):
        tilestream.run(given)
    done = len(asked)
    monkeypatch.setattr(ahead, "CompileChoice", lambda *_: lambda tiles, workers: not begun)
    assert tilestream.run(given).exit_code == 0
    assert len(asked) > done
    assert set(asked) == {begun}
    assert SlideStore(Folder(str(tmp_path / "out" / "a.zarr"))).attributes["compiled"] is begun
