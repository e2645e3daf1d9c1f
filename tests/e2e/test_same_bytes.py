"""Who does a slide, with how many, and what lies in caches changes no bit in the mode that promises it. When compiling ends: tests/runner/test_compiling."""

import pytest

import tilestream
from tests.support.resuming import dask_workers, ends_equal, start, wait_for_shard, write_config


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_cold_and_warm_caches_and_any_number_of_workers(tmp_path, undisturbed, monkeypatch, workers):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for caches in ("cold", "warm"):
        (tmp_path / caches).mkdir()
        given = write_config(undisturbed[0], tmp_path / caches, "corners", scheduler="local", workers=workers)
        summary = tilestream.run(given)
        assert (summary.exit_code, summary.workers) == (0, workers)
        ends_equal(tmp_path / caches / "out", undisturbed[1])


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(4, 1), (1, 4)])
def test_a_run_of_some_workers_is_resumed_by_others(tmp_path, undisturbed, first, then):
    write_config(undisturbed[0], tmp_path, scheduler="local", workers=first)
    run = start(tmp_path)
    wait_for_shard(run, tmp_path)
    assert len(dask_workers(run)) == first
    run.kill()
    run.communicate()
    given = write_config(undisturbed[0], tmp_path, scheduler="local", workers=then)
    assert tilestream.run(given).exit_code == 0
    ends_equal(tmp_path / "out", undisturbed[1])
