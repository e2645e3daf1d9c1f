"""Each benchmark runs once, small, and its claim that does not depend on time holds."""

import json
import os
import sys

import pytest
from PIL import Image

from benchmarks import (
    bench_compile,
    bench_context,
    bench_durability,
    bench_export,
    bench_fit,
    bench_formats,
    bench_heads,
    bench_masked,
    bench_memory,
    bench_objects,
    bench_pipeline,
    bench_reading,
    bench_remote,
    bench_rivals,
    bench_scaling,
    bench_soak,
    bench_start,
    bench_tissue,
    bench_view,
    fuzz_inputs,
    fuzz_sources,
)  # fmt: skip
from benchmarks.remote_formats import FORMATS
from tests.support.images import make_image


@pytest.mark.slow
def test_memory_stays_below_the_projection_and_near_it(capsys):
    rows = bench_memory.main(["--quick", "--json"])
    assert json.loads(capsys.readouterr().out) == rows
    assert len(rows) == 3
    assert {row["case"]: row["ratio"] for row in rows if not bench_memory.holds(row)} == {}


@pytest.mark.slow
def test_exports_of_more_tiles_take_no_more_memory(capsys):
    formats = [name for name in bench_export.FORMATS if name != "csv"]  # it takes a minute
    rows = bench_export.main(["--tiles", "12000", "48000", "--dim", "1024", "--formats", *formats, "--json"])  # 140 MiB more
    assert json.loads(capsys.readouterr().out) == rows
    grown = {name: bench_export.growth(rows, name) for name in formats}
    assert {name: mib for name, mib in grown.items() if mib > bench_export.GROWTH_MIB} == {}


@pytest.mark.slow
def test_fitting_stays_below_its_projection(capsys):
    rows = bench_fit.main(["--slides", "12", "--tiles", "400", "--dim", "64", "--distinct", "2", "--plain", "8", "--json"])
    assert json.loads(capsys.readouterr().out) == rows
    fits = {row["row"]: row["projected"] - row["peak"] for row in rows if "peak" in row}
    assert len(fits) == 3
    assert min(fits.values()) > 0, fits
    assert all(row["seconds_per_million"] > 0 for row in rows if "peak" not in row)


@pytest.mark.slow
def test_more_objects_take_no_more_memory(capsys):
    rows = bench_objects.main(["--objects", "20000", "100000", "--formats", "geojson", "parquet", "--json"])
    assert json.loads(capsys.readouterr().out) == rows
    assert bench_objects.broken(rows) == {}


def test_readers_are_measured(capsys):
    told = bench_reading.main(["--only", "speed", "--pixels", "512", "--rounds", "1", "--threads", "1", "2", "--json"])
    assert json.loads(capsys.readouterr().out) == told
    rows = told["speed"]
    assert {row["codec"] for row in rows} == {"jpeg", "jpeg2000", "deflate", "ome-zarr"}
    assert {"decode floor", "tilestream", "openslide+pil", "openslide raw"} <= {row["reader"] for row in rows}
    assert all(row["tiles_per_second"] > 0 and row["scaling"] > 0 for row in rows)
    assert all(row["floor_ratio"] == 1 for row in rows if row["reader"] == "decode floor")


def test_readers_that_are_missing_are_named(capsys, monkeypatch):
    gone = bench_reading.Contestant("nobody", bench_reading.CONTESTANTS[0].open, needs=("no_such_reader",))
    monkeypatch.setattr(bench_reading, "CONTESTANTS", (*bench_reading.CONTESTANTS[:1], gone))
    assert [one.name for one in bench_reading.choose_contestants("both", quiet=False)] == ["decode floor"]
    said = capsys.readouterr().out
    assert "left out: nobody: no_such_reader cannot be imported" in said


def test_sparse_tissue_decodes_the_fewest_file_tiles_possible():
    (row,) = bench_reading.main(["--only", "sparse", "--side", "2048", "--shard-tiles", "64", "--json"])["sparse"]
    assert 0 < row["decoded"] == row["least"]


@pytest.mark.slow
def test_the_program_and_the_memory_of_reading_are_measured(capsys):
    small = ["--side", "2048", "--sides", "2048", "4096", "--shard-tiles", "64", "--rounds", "1", "--threads", "2"]
    told = bench_reading.main(["--only", "program", "memory", *small])
    assert "seconds by stage" in capsys.readouterr().out
    (row,) = told["program"]
    assert row["tiles"] == 100
    assert row["shards_tiles_per_second"] >= row["program_tiles_per_second"] > 0
    assert all(row["added_mib"] <= row["bound_mib"] for row in told["memory"])


@pytest.mark.slow
def test_the_viewer_is_measured(capsys):
    told = bench_view.main(["--side", "2048", "--clicks", "0", "--tiles", "10", "--json"])
    assert json.loads(capsys.readouterr().out) == told
    assert told["tiles"] == 81
    assert 0 < told["peak_mib"] < 600
    assert told["tile_p95_ms"] >= told["tile_ms"] > 0


@pytest.mark.slow
def test_schedules_of_the_context_agree_and_compute_what_theory_says(capsys):
    told = bench_context.main(
        ["--only", "schedules", "--sizes", "64", "48", "--dim", "16", "--shard-rows", "24", "--rounds", "1", "--json"]
    )
    assert json.loads(capsys.readouterr().out) == told
    rows = told["schedules"]
    assert [row["schedule"] for row in rows] == ["dense", "row_bands", "halo_shards"]
    assert all(row["digest"] == pytest.approx(rows[0]["digest"], rel=1e-6, abs=1e-6) for row in rows)
    assert all(row["mixed"] == pytest.approx(row["theory"]) for row in rows)


@pytest.mark.slow
def test_a_slide_encoder_takes_less_memory_than_projected(capsys):
    (row,) = bench_context.main(["--only", "slides", "--tiles", "3000", "--layers", "1", "--json"])["slides"]
    assert capsys.readouterr().out
    assert row["added_mib"] <= row["projected_mib"]


@pytest.mark.slow
def test_the_pipeline_is_measured_beside_the_bare_encoder_and_a_plain_loop(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TILESTREAM_SAMPLE_DIR", str(tmp_path))
    arguments = [
        "--encoders",
        "vit_tiny_patch16_224",
        "--side",
        "1024",
        "--seconds",
        "0.2",
        "--baseline",
        "--baseline-tiles",
        "24",
        "--processes",
        "0",
    ]
    (row,) = bench_pipeline.main([*arguments, "--json"])
    assert row["tiles"] == 25
    assert all(row[key] > 0 for key in ("bare", "program", "plain", "share", "over_plain", "host_mib"))


@pytest.mark.slow
def test_fuzzed_inputs_end_in_a_result_or_an_error_of_ours(capsys):
    told = fuzz_inputs.main(["--count", "160", "--processes", "1", "--json"])
    assert sum(told["outcomes"].values()) == 160
    assert told["outcomes"]["result"] > 10
    assert told["bad"] == {}


@pytest.mark.slow
def test_fuzzed_files_end_in_a_result_or_an_error_of_ours(capsys):
    told = fuzz_sources.main(["--count", "25", "--processes", "1", "--json"])
    assert sum(told["outcomes"].values()) == 25
    assert told["bad"] == {}


@pytest.mark.slow
def test_durability_is_measured_both_ways(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TILESTREAM_SAMPLE_DIR", str(tmp_path))
    told = bench_durability.main(["--side", "1024", "--rounds", "1", "--verify-rows", "5000", "--dim", "8", "--json"])
    assert json.loads(capsys.readouterr().out) == told
    assert told["durable"] > 0
    assert told["verify"]["rows"] == 5000


@pytest.mark.slow
def test_a_long_run_holds_what_it_held_at_first(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TILESTREAM_SAMPLE_DIR", str(tmp_path))
    told = bench_soak.main(["--side", "2048", "--tile", "32", "--shard-tiles", "128", "--json"])
    assert json.loads(capsys.readouterr().out) == told
    assert told["tiles"] == 4096
    assert told["growth"] < 0.25  # a run of seconds has just started its threads; the claim is the long run's
    assert told["more_handles"] <= 2  # one for each of the 16 shards of a half would be a leak


def test_tissue_is_found_on_made_thumbnails(tmp_path, capsys):
    figures = bench_tissue.main(["--data", str(tmp_path), "--cases", "8", "--seed", "3", "--rules", "tilestream", "former rule"])
    assert "8 thumbnails, tissue of made" in capsys.readouterr().out
    assert figures["tilestream"]["median"] > 0.95
    assert figures["tilestream"]["of them silent"] == 0
    assert figures["tilestream"]["median"] > figures["former rule"]["median"]


@pytest.mark.slow
def test_the_start_of_commands_is_measured(capsys):
    rows = bench_start.main(["--rounds", "1", "--only", "typo", "tiny", "--tiles", "4", "--json"])
    assert json.loads(capsys.readouterr().out) == rows
    assert [row["command"] for row in rows] == ["python", "imports", "typo", "tiny cold", "tiny warm"]
    assert [sum(row["parts"].values()) for row in rows[3:]] == pytest.approx([row["seconds"] for row in rows[3:]], abs=0.01)
    assert [row["tiles"] for row in rows[3:]] == [4, 4]
    assert all(row["seconds"] > 0 and row["over_python"] > 0 for row in rows)


@pytest.mark.slow
def test_several_devices_are_measured_beside_one(capsys):
    small = [
        "--device",
        "cpu",
        "--devices",
        "1",
        "2",
        "--only",
        "one-tiny",
        "--tiles",
        "36",
        "--caches",
        "cold",
        "--set",
        "compute.shard_tiles=6",
    ]
    rows = bench_scaling.main([*small, "--json"])
    assert json.loads(capsys.readouterr().out) == rows
    assert [(row["devices"], row["workers"], row["tiles"]) for row in rows] == [(1, 1, 36), (2, 2, 36)]
    assert [sum(row["parts"].values()) for row in rows] == pytest.approx([row["wall"] for row in rows], abs=0.01)
    assert all(row["host"] <= row["projected"] and row["steady"] > 0 and 0 < row["first"] < row["wall"] for row in rows)
    assert [row["difference"] for row in rows] == [0, 0]


def test_no_run_is_begun_that_would_not_end_within_the_limit(capsys):
    assert bench_scaling.main(["--device", "cpu", "--only", "twelve-tiny", "--tiles", "4", "--limit", "0"]) == []
    assert "left out" in capsys.readouterr().out


def test_the_steady_rate_begins_when_every_device_has_had_a_shard():
    shards = [(1.0, 5), (2.0, 5), (3.0, 10), (4.0, 10)]
    assert bench_scaling.steady(shards, 1) == pytest.approx(25 / 3)
    assert bench_scaling.steady(shards, 2) == pytest.approx(10)
    assert bench_scaling.steady(shards, 4) == 0


@pytest.mark.slow
def test_what_a_process_finds_counts_though_it_does_not_end():
    code = """import time; print('words'); print('{"ready": 1.5}', flush=True); time.sleep(600)"""
    said = []
    row = bench_compile.follow([sys.executable, "-c", code], os.environ, 3, said.append)
    assert said == [{"ready": 1.5}, {"ended_after": 3}]
    assert row == {"ready": 1.5, "ended_after": 3}
    assert bench_compile.follow([sys.executable, "-c", "raise SystemExit(3)"], os.environ, 60, said.append) == {"ended_with": 3}


@pytest.mark.slow
def test_heads_on_stored_rows_stay_below_their_projection(tmp_path):
    rows = bench_heads.main(["--tiles", "3000", "--heads", "linear", "knn", "transformer", "--folder", str(tmp_path), "--json"])
    assert [row["head"] for row in rows] == ["read", "linear", "knn", "transformer"]
    assert [row["head"] for row in rows[1:] if not 0 < row["peak"] <= row["projected"]] == []


@pytest.mark.slow
def test_whole_commands_are_measured_beside_each_other(capsys, tmp_path):
    stand_in = tmp_path / "python"  # takes the script for slide2vec and says that it embedded two tiles
    stand_in.write_text("#!/bin/sh\necho some words\necho 2\n")
    stand_in.chmod(0o755)
    arguments = ["--side", "1024", "--encoder", "vit_tiny_patch16_224", "--rounds", "1", "--plain", "", "--slide2vec", str(stand_in)]
    ours, theirs = rows = bench_rivals.main([*arguments, "--json"])
    assert json.loads(capsys.readouterr().out) == rows
    assert [(row["contestant"], row["tiles"]) for row in rows] == [("tilestream", 4), ("slide2vec", 2)]
    assert 0 < ours["wall_ratio"] == ours["processor_ratio"] == 1
    assert theirs["wall_ratio"] == pytest.approx(ours["tiles_per_second"] / theirs["tiles_per_second"])


def test_fp16_is_nearer_to_fp32_than_bf16(tmp_path):
    Image.fromarray(make_image(224, 448, 1)).save(tmp_path / "a.png")
    (rows,) = bench_formats.main(["--encoders", "tilestream-tiny", "--tiles", "2", "--data", str(tmp_path), "--device", "cpu"]).values()
    far = {row["format"]: 1 - row["cosine"] for row in rows}
    assert far["fp16"] < far["bf16"] / 3
    assert all(row["finite"] for row in rows)


@pytest.mark.slow
def test_a_context_learns_from_made_slides(tmp_path):
    told = bench_masked.main(["--tokens", "2000", "--side", "32", "--dim", "16", "--passes", "1", "--folder", str(tmp_path)])
    assert told["tokens"] == 2 * 32**2
    assert (tmp_path / "context.safetensors").is_file()


@pytest.mark.slow
def test_a_slide_on_a_server_takes_few_requests_and_bytes(capsys):
    rows = bench_remote.main(["--side", "4096", "--tiles", "300", "--latency", "0.001", "--rounds", "1", "--json"])
    assert json.loads(capsys.readouterr().out) == rows
    assert {row["format"] for row in rows} == set(FORMATS)
    whole, part = (row for row in rows if row["format"] == "svs")
    assert whole["requests"] <= 40
    assert whole["bytes"] <= 1.3  # of so small a slide the directories are a tenth
    assert part["bytes"] <= 1.6
