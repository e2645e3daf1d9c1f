"""Many slides: broken ones are listed with causes, the others finish, a second run touches only what is missing, and jobs share out the work."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from tests.support.images import make_image, write_pyramid
from tests.support.resuming import hurt
from tests.support.runs import config, newest_record
from tilestream.cli import main
from tilestream.config.job_array import job_of
from tilestream.errors import ConfigError

BREAKERS = [
    lambda p: p.write_bytes(b""),
    lambda p: p.write_text("this is no image"),
    lambda p: p.write_bytes(p.read_bytes()[:100]),
    lambda p: p.write_bytes(bytes(len(p.read_bytes()))),
    lambda p: p.write_bytes(b"\x89PNG" + p.read_bytes()),
    lambda p: p.write_bytes(p.read_bytes()[:4] + b"\xff\xff\xff\x7f" + p.read_bytes()[8:]),
    lambda p: tifffile.imwrite(p, np.zeros((64, 64, 3), np.uint16), photometric="rgb"),
    lambda p: tifffile.imwrite(p, np.zeros((3, 64, 64), np.uint8), photometric="minisblack"),
    lambda p: tifffile.imwrite(p, np.zeros((64, 64, 5), np.uint8), photometric="minisblack"),
    lambda p: set_tag(p, "ImageWidth", 1_000_000),
]


def set_tag(path, name, value):
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags[name].overwrite(value)


def make_cohort(folder, count, broken):
    """`count` small slides, of which every so many is broken in one way or another; names of the broken ones."""
    folder.mkdir()
    sound = write_pyramid(folder.parent / "sound.tif", make_image(200, 200, 1), tile=64, levels=1)
    names = set()
    for k in range(count):
        path = folder / f"s{k:03}.tif"
        shutil.copyfile(sound, path)
        if k % (count // broken) == 0 and len(names) < broken:
            BREAKERS[len(names) % len(BREAKERS)](path)
            names.add(path.stem)
    return names


def left_with(arguments):
    with pytest.raises(SystemExit) as left:  # the code is looked at
        main(arguments)
    return left.value.code


@pytest.mark.parametrize(("count", "broken"), [(30, 10), pytest.param(200, 20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
@pytest.mark.slow
def test_broken_slides_are_listed_and_the_others_finish(capsys, tmp_path, count, broken):
    names = make_cohort(tmp_path / "slides", count, broken)
    given = config(tmp_path / "slides" / "*.tif", tmp_path / "out", tiles={"size": 96})
    (tmp_path / "c.yaml").write_text(json.dumps(given))
    assert left_with(["run", str(tmp_path / "c.yaml")]) == 4
    said = capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "run.json").read_text())
    refused = {s["id"]: s["error"] for s in told["slides"] if s["status"] == "refused"}
    assert set(refused) == names
    assert all(name in error for name, error in refused.items())
    assert len(set(refused.values())) == broken
    assert all(f"{name}" in said for name in names)
    assert sum(s["status"] == "done" for s in told["slides"]) == count - broken
    assert len(list((tmp_path / "out").glob("*.zarr"))) == count - broken

    good = sorted(path.name for path in (tmp_path / "out").glob("*.zarr"))
    shutil.rmtree(tmp_path / "out" / good[0])
    hurt(tmp_path / "out" / good[1] / "tables" / "tiles" / "X" / "c" / "0" / "0", "flipped")
    assert left_with(["verify", "--repair", str(tmp_path / "out")]) == 4
    before = {p: p.stat().st_mtime_ns for name in good[2:] for p in (tmp_path / "out" / name).rglob("*")}
    assert left_with(["run", str(tmp_path / "c.yaml")]) == 4
    again = newest_record(tmp_path / "out")
    assert again["new_tiles"] == 2 * 9
    assert [s["id"] + ".zarr" for s in again["slides"] if s["status"] == "done"] == good[:2]
    assert {p: p.stat().st_mtime_ns for name in good[2:] for p in (tmp_path / "out" / name).rglob("*")} == before


@pytest.mark.slow
def test_jobs_of_an_array_at_once_share_one_output_and_do_no_slide_twice(tmp_path):
    make_cohort(tmp_path / "slides", 12, 1)
    given = config(tmp_path / "slides" / "*.tif", tmp_path / "out", tiles={"size": 96})
    (tmp_path / "c.yaml").write_text(json.dumps(given))
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "tilestream", "run", str(tmp_path / "c.yaml")],
            env=os.environ | {"SLURM_ARRAY_TASK_ID": str(5 + 2 * k), "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_MAX": "9", "SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_COUNT": "3"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for k in range(3)
    ]  # fmt: skip
    words = [job.communicate(timeout=120)[1] for job in jobs]
    assert sorted(job.returncode for job in jobs) == [0, 0, 4], words
    told = [json.loads(path.read_text()) for path in (tmp_path / "out" / "runs").iterdir()]
    ids = [slide["id"] for each in told for slide in each["slides"]]
    assert len(ids) == len(set(ids)) == 12
    assert len(json.loads((tmp_path / "out" / "run.json").read_text())["slides"]) == 12
    assert sum(each["new_tiles"] for each in told) == 11 * 9


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"ID": "3", "COUNT": "8", "MIN": "0", "MAX": "7", "STEP": "1"}, (3, 8)),
        ({"ID": "3", "COUNT": "8", "MIN": "1", "MAX": "8", "STEP": "1"}, (2, 8)),
        ({"ID": "14", "COUNT": "3", "MIN": "10", "MAX": "14", "STEP": "2"}, (2, 3)),
        ({"ID": "2", "COUNT": "4"}, (2, 4)),
    ],
)
def test_a_task_of_a_job_array_takes_its_share_unasked(monkeypatch, variables, expected):
    set_array(monkeypatch, variables)
    assert job_of(None) == expected
    assert job_of("1/4") == (1, 4)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ID": "3"}, "needs SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT"),
        ({"ID": "x", "COUNT": "8"}, "needs SLURM_ARRAY_TASK_ID"),
        ({"ID": "9", "COUNT": "3", "MIN": "1", "MAX": "9", "STEP": "1"}, "has no place among them"),
        ({"ID": "8", "COUNT": "4"}, "has no place among them"),
    ],
)
def test_an_array_whose_tasks_cannot_be_counted_is_refused(monkeypatch, variables, words):
    set_array(monkeypatch, variables)
    with pytest.raises(ConfigError, match=words):
        job_of(None)


def set_array(monkeypatch, variables):
    for name in ("ID", "COUNT", "MIN", "MAX", "STEP"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
