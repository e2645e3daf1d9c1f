"""Names and words that a terminal, a shell or the encoding of file names cannot take as they are."""

import io
import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.support.images import make_image, write_svs
from tilestream.cli import main

NAMES = ["plain", "two words", "it's", "Präp µ", "$HOME", "#1", "a;b"]


def call(monkeypatch, encoding, *arguments):
    """Exit code, stdout and stderr of a command whose streams have an encoding."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    with monkeypatch.context() as patch:
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        with pytest.raises(SystemExit, match=r"^\d$") as ended:
            main(list(arguments))
        for stream in streams.values():
            stream.flush()
    return ended.value.code, *(stream.buffer.getvalue().decode(encoding) for stream in streams.values())


@pytest.fixture
def slide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").mkdir()
    return write_svs(tmp_path / "slides" / "Präp µ.svs", make_image(300, 260, seed=1), mpp=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_every_command_says_all_it_has_to_say_in_any_encoding(monkeypatch, slide, encoding):
    settings = ["--set", "encoder=patch_embed", "--set", "compute.scheduler=inline", "--set", "compute.device=cpu"]
    commands = [
        ["init", "slides", "--out", "c.yaml", "--output", "öut"],
        ["inspect", str(slide)],
        ["plan", "c.yaml", *settings],
        ["run", "c.yaml", *settings],
        ["verify", "öut"],
        ["report", "öut"],
        ["export", "öut", "--to", "csv"],
        ["encoders"],
        ["run", "--help"],
    ]
    told = [call(monkeypatch, encoding, *command) for command in commands]
    assert [code for code, *_ in told] == [0] * len(commands), told
    micro = "µ".encode(encoding, "backslashreplace").decode(encoding)
    assert f"0.5 {micro}m/px" in told[1][1]
    code, _, words = call(monkeypatch, encoding, "plan", "ńowhere.yaml")
    assert (code, "ńowhere".encode(encoding, "backslashreplace").decode(encoding) in words) == (2, True)


@pytest.mark.parametrize("name", NAMES)
def test_what_init_says_to_type_is_what_a_shell_takes(monkeypatch, slide, tmp_path, name):
    code, said, _ = call(monkeypatch, "utf-8", "init", "slides", "--out", f"{name}.yaml", "--output", f"{name} out")
    assert code == 0
    typed = re.search(r"then: (tilestream run .*)$", said, re.MULTILINE)[1]
    assert shlex.split(typed) == ["tilestream", "run", f"{name}.yaml"]
    text = (tmp_path / f"{name}.yaml").read_text(encoding="utf-8")
    comments = re.findall(r"^#   (tilestream \w+ .*?)(?:    ?#.*)?$", text, re.MULTILINE)
    assert [shlex.split(line)[1:] for line in comments] == [["plan", f"{name}.yaml"], ["run", f"{name}.yaml"], ["view", f"{name} out"]]


@pytest.mark.slow
def test_names_that_the_encoding_of_file_names_lacks_are_refused_in_a_line(slide, tmp_path):
    outside = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (tmp_path / "c.yaml").write_text(
        "slides: slides/Präp µ.svs\noutput: öut\ntiles: {mpp: 0.5}\nencoder: patch_embed\ncompute: {scheduler: inline}\n", encoding="utf-8"
    )
    told = subprocess.run(
        [sys.executable, "-m", "tilestream", "run", "c.yaml"], env=outside, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert told.returncode == 2, told.stderr
    assert re.fullmatch(r"tilestream: .* the encoding of file names here, lacks\. Set PYTHONUTF8=1, .*\n", told.stderr), told.stderr


def test_sizes_are_height_by_width_wherever_they_are_told(monkeypatch, slide):
    from tilestream.stages import finish_slide

    titles, draw = [], finish_slide.draw_overview
    monkeypatch.setattr(
        finish_slide, "draw_overview", lambda panel, colours, title, *more: titles.append(title) or draw(panel, colours, title, *more)
    )
    call(monkeypatch, "utf-8", "init", "slides", "--out", "c.yaml")
    settings = ["--set", "encoder=patch_embed", "--set", "compute.scheduler=inline", "--set", "compute.device=cpu"]
    told = [call(monkeypatch, "utf-8", *command)[1] for command in (["inspect", str(slide)], ["plan", "c.yaml", *settings])]
    code, *_ = call(monkeypatch, "utf-8", "run", "c.yaml", *settings)
    assert (code, len(titles)) == (0, 1)
    assert all("300 x 260" in words and "h x w" in words and "260 x 300" not in words for words in [*told, *titles])
