"""Each benchmark runs once, small, and its claim that does not depend on time holds."""

import json

import pytest

from benchmarks import bench_memory


@pytest.mark.slow
def test_memory_stays_below_the_projection(capsys):
    rows = bench_memory.main(["--sides", "2048", "4096", "--shard-tiles", "64", "--json"])
    assert json.loads(capsys.readouterr().out) == rows
    assert all(row["peak_mib"] <= row["projected_mib"] for row in rows)
    assert [row["tiles"] > 0 for row in rows] == [True, True]
