"""What a person sees on a terminal of 80 and of 120 columns: a first run, a rerun, an interrupt, a refusal, a cohort with failures."""

import json
import re

import pytest
import tifffile

from tests.support.images import make_image, write_pyramid
from tests.support.runs import given
from tests.support.terminal import Terminal

RAW = re.compile(
    r"distributed|asyncio|tifffile|Traceback|WARNING|\bINFO\b|refused: [^:]+: refused|<(bool|str|int)>|\{config\}|\b1 (tiles|slides|workers)\b"
)
"""What no run may show: lines of libraries, braces and brackets of programs, a plural of one."""

WIDTHS = [80, pytest.param(120, marks=pytest.mark.slow)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "slides").mkdir()
    write_pyramid(tmp_path / "slides" / "a.tif", make_image(1024, 1280, 5), tile=128, levels=1)
    return tmp_path


def config(folder, encoder="slow_corners", **sections):
    settings = given(folder / "slides", folder / "out", encoder=f"tests.support.encoders:{encoder}", **sections)
    settings |= {"output": "out", "slides": "slides", "compute": {"batch_size": 2, "threads": 1, **sections.get("compute", {})}}
    (folder / "config.yaml").write_text(json.dumps(settings))
    return folder


def run(folder, width, *more):
    return Terminal(["run", "config.yaml", *more], width, folder)


def sound(text, width):
    """Whether it can be read as it stands: no line is cut, none is a library's."""
    assert not RAW.search(text), text
    assert all(len(line) <= width for line in text.splitlines())
    return text


@pytest.mark.parametrize("width", WIDTHS)
def test_a_first_run_moves_within_its_only_shard_and_says_what_to_type_next(folder, width):
    terminal = run(config(folder), width)
    terminal.wait_for("1 slide to do: loading PyTorch and the encoder")
    seen = terminal.wait_for(r"0 of 1 slide .* (\d+) of 320 tiles, [\d.]+ tiles/s, about \d+ s left")
    assert 0 < int(seen[1]) < 320
    text, code = terminal.end()
    assert code == 0
    sound(text, width)
    assert "━" not in text  # the bar is gone
    assert re.search(r"^slides +1 done$", text, re.MULTILINE)
    assert re.search(r"^tiles +320 in the output, 320 embedded by this run$", text, re.MULTILINE)
    assert re.search(r"^next: +python -m tilestream view out$", text, re.MULTILINE)
    whole, parts = re.search(r"^seconds +([\d.]+) in all: (.*?)\nmemory", text, re.MULTILINE | re.DOTALL).groups()
    named = dict(re.findall(r"([a-z]+(?:\s+down)?)\s+([\d.]+)", parts))
    assert {" ".join(name.split()) for name in named} == {
        "starting",
        "planning",
        "reading",
        "computing",
        "writing",
        "finishing",
        "shutting down",
    }
    assert sum(map(float, named.values())) == pytest.approx(float(whole), abs=0.05 * len(named) + 0.05)
    rerun, code = run(folder, width).end()
    assert code == 0
    assert "nothing to do" in sound(rerun, width)
    assert re.search(r"^next: +python -m tilestream view out$", rerun, re.MULTILINE)


@pytest.mark.parametrize("width", WIDTHS)
def test_ctrl_c_says_at_once_what_is_kept_and_the_next_run_goes_on_from_there(folder, width):
    terminal = run(config(folder), width)
    terminal.wait_for(r" [1-9]\d* of 320 tiles, [\d.]+ tiles/s")
    terminal.type(b"\x03")
    first = terminal.wait_for(r"tilestream: interrupted: (\d+) of 320 planned tiles are kept;")
    text, code = terminal.end()
    assert code == 5
    last = re.search(r"tilestream: interrupted; (\d+) of 320 planned tiles are kept, and the same command\s+resumes", sound(text, width))
    assert 0 < int(first[1]) <= int(last[1]) < 320
    resumed, code = run(folder, width).end()
    assert code == 0
    assert f"{320 - int(last[1])} embedded by this run" in sound(resumed, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_refusal_and_a_cohort_with_failures_tell_why_once_and_where(folder, width):
    wrong, code = run(config(folder, tiles={"size": 64, "level": 7, "tissue": "none"}), width).end()
    assert code == 3
    assert re.search(r"^a: refused: tiles\.level is 7|^a: refused: .*level", sound(wrong, width), re.MULTILINE)
    (folder / "slides" / "broken.svs").write_bytes(b"no image")
    (folder / "slides" / "zeros.tif").write_bytes((folder / "slides" / "a.tif").read_bytes())
    with tifffile.TiffFile(folder / "slides" / "zeros.tif") as tiff:
        place, size = tiff.pages[0].dataoffsets[3], tiff.pages[0].databytecounts[3]
    with (folder / "slides" / "zeros.tif").open("r+b") as file:
        file.seek(place)
        file.write(bytes(size))
    text, code = run(config(folder, encoder="corners"), width).end()
    assert code == 4
    sound(text, width)
    assert re.search(r"^slides +2 done, 1 refused$", text, re.MULTILINE)
    assert re.search(r"^tiles +640 in the output, 640 embedded by this run, 4 failed$", text, re.MULTILINE)
    assert "broken: refused:" in text
    assert "Copy it again" in " ".join(text.split())
    assert "zeros: 4 tiles failed, first:" in text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("words", [["--help"], ["encoders"], ["doctor"], ["run", "-h"], ["run", "nowhere.yaml"]], ids=" ".join)
@pytest.mark.slow
def test_what_is_asked_of_the_program_fits_its_terminal(folder, width, words):
    text, code = Terminal(words, width, folder).end()
    assert code == (2 if "nowhere.yaml" in words else 0)
    assert len(sound(text, width).splitlines()) > (0 if code else 5)


@pytest.mark.slow
def test_workers_tell_how_far_they_are_and_no_library_says_a_word(folder):
    compute = {"scheduler": "local", "workers": 2, "batch_size": 1}
    terminal = run(config(folder, compute=compute), 80)
    seen = terminal.wait_for(r" ([1-9]\d*) of 320 tiles, [\d.]+ tiles/s")
    assert int(seen[1]) < 320
    text, code = terminal.end()
    assert code == 0
    assert "320 embedded by this run" in sound(text, 80)
