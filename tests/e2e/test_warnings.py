"""What a source warns of is heard once a slide: in plan, run, run.json, store and report; and libraries do not talk."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, embed, opened
from tilestream.config.schema import Config
from tilestream.runner.plan_command import plan_slides, print_plan
from tilestream.viewer.report import write_report

SECTIONS = {"tiles": {"size": 64, "level": 0, "tissue": "none"}, "encoder": {"name": "tests.support.encoders:mean_rgb"}}


def turned(path: Path) -> Path:
    tifffile.imwrite(path, make_image(128, 192), tile=(64, 64), photometric="rgb", metadata=None, extratags=[(274, "H", 1, 6, True)])
    return path


def text_of_plan(told: object) -> str:
    from io import StringIO

    from rich.console import Console

    stream = StringIO()
    print_plan(plan_slides(Config.model_validate(told)), Console(file=stream, width=400))
    return stream.getvalue()


def test_a_warning_stands_once_everywhere(tmp_path: Path) -> None:
    slide, words = turned(tmp_path / "a.tif"), "the Orientation tag is 6"
    assert text_of_plan(config(str(slide), tmp_path / "out", **SECTIONS)).count(words) == 1
    summary = embed(str(slide), tmp_path / "out", **SECTIONS)
    assert [w for w in summary.slides[0].warnings if words in w] == summary.slides[0].warnings
    told = json.loads((tmp_path / "out" / "run.json").read_text())["slides"][0]["warnings"]
    assert [words in each for each in told] == [True]
    assert [words in each for each in opened(tmp_path / "out", "a").source["warnings"]] == [True]
    write_report(str(tmp_path / "out"), None)
    assert (tmp_path / "out" / "report.html").read_text().count(f"<li>{words}") == 1
    again = embed(str(slide), tmp_path / "out", **SECTIONS)
    assert (again.slides[0].status, again.slides[0].warnings) == ("already done", told)


def test_the_command_says_it_once(tmp_path: Path) -> None:
    slide = turned(tmp_path / "a.tif")
    (tmp_path / "c.yaml").write_text(
        json.dumps({"slides": str(slide), "output": str(tmp_path / "out"), "compute": {"scheduler": "inline", "device": "cpu"}, **SECTIONS})
    )
    done = subprocess.run([sys.executable, "-m", "tilestream", "run", str(tmp_path / "c.yaml")], capture_output=True, text=True, check=True)
    assert (done.stdout + done.stderr).count("the Orientation tag is 6") == 1


def test_a_cohort_of_nearly_one_resolution_runs_and_says_so(tmp_path: Path) -> None:
    for name, mpp in (("a", 0.25), ("b", 0.2527)):
        write_pyramid(tmp_path / f"{name}.tif", make_image(256, 256), compression=None, levels=1, mpp=mpp)
    summary = embed(
        [str(tmp_path / "a.tif"), str(tmp_path / "b.tif")],
        tmp_path / "out",
        **{**SECTIONS, "tiles": {"size": 64, "mpp": 0.25, "level": None, "tissue": "none"}},
    )
    assert [slide.status for slide in summary.slides] == ["done", "done"]
    assert [len(slide.warnings) for slide in summary.slides] == [0, 1]
    a, b = (opened(tmp_path / "out", name) for name in "ab")
    assert np.array_equal(a.embeddings[:], b.embeddings[:])
    assert (b.source["scale"], b.source["mpp"]) == (1.0, pytest.approx(0.2527, abs=1e-4))


def test_the_same_bytes_under_two_names_are_named(tmp_path: Path) -> None:
    for name in "ab":
        write_pyramid(tmp_path / f"{name}.tif", make_image(128, 128), compression=None, levels=1, mpp=0.25)
    assert text_of_plan(config(str(tmp_path / "*.tif"), tmp_path / "out", **SECTIONS)).count("b: holds the same image as a") == 1
    words = [[], ["holds the same image as a (equal fingerprints); it counts twice in the output."]]
    for status in ("done", "already done"):
        summary = embed(str(tmp_path / "*.tif"), tmp_path / "out", **SECTIONS)
        assert [(slide.status, slide.warnings) for slide in summary.slides] == [(status, told) for told in words]
    assert warnings_of(tmp_path / "out" / "run.json") == dict(zip("ab", words, strict=True))
    (record,) = (tmp_path / "out" / "runs").iterdir()
    assert warnings_of(record) == dict(zip("ab", words, strict=True))
    write_report(str(tmp_path / "out"), None)
    assert (tmp_path / "out" / "report.html").read_text().count("<li>holds the same image as a") == 1


def test_the_same_bytes_in_a_later_run_are_named_by_both(tmp_path: Path) -> None:
    for name in "zab":
        write_pyramid(tmp_path / f"{name}.tif", make_image(128, 128), compression=None, levels=1, mpp=0.25)
        embed([str(tmp_path / f"{each}.tif") for each in "zab"[: "zab".index(name) + 1]], tmp_path / "out", **SECTIONS)
        told = warnings_of(tmp_path / "out" / "run.json")
        assert {slide: len(words) for slide, words in told.items()} == {each: int(each != "z") for each in told}
        assert all("same image as z" in words[0] for slide, words in told.items() if slide != "z")
    last = max((tmp_path / "out" / "runs").iterdir(), key=lambda path: len(warnings_of(path)))
    assert warnings_of(last) == told


def warnings_of(record: Path) -> dict[str, list[str]]:
    return {slide["id"]: slide["warnings"] for slide in json.loads(record.read_text())["slides"]}
