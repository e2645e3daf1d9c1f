"""A tutorial is done as it stands: every block of a page, from top to bottom, in a folder of its own."""

import contextlib
import io
import re
import shlex
import sys

import pytest

from tests.e2e.test_docs import ELSEWHERE, PAGES, ROOT, SERVES, tilestream
from tests.support.images import make_image, write_svs

TUTORIALS = [page for page in PAGES if page.parent.name == "tutorials"]
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SHOWN_ONLY = {"toml", "json", "text", ""}
"""Languages of blocks that show what a program says, or what stands in another package's files."""
RUN_ELSEWHERE = {("cluster.md", "yml")}
"""Blocks of a kind of their own: the Kubernetes job, whose commands test_recipes.py runs."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "slides").mkdir()
    for name in ("a", "b"):
        write_svs(tmp_path / "slides" / f"{name}.svs", make_image(700, 900, seed=3))
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("my_encoder", "my_bands"):
        sys.modules.pop(name, None)


def do_line(line, folder):
    """One line of a shell block; the inline scheduler saves each test two starts of Python."""
    words = shlex.split(line, comments=not line.startswith("#SBATCH"))
    if words[:3] == ["python", "-m", "tilestream"]:
        words = words[2:]
    if not words or words[0] in ELSEWHERE:
        return
    assert words[0] == "tilestream", line
    if words[1] == SERVES:
        words = [*words, "--help"]
    if words[1] == "run":
        words = [*words, "--set", "compute.scheduler=inline"]
    assert tilestream(words[1:], folder), line


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
@pytest.mark.slow
def test_a_tutorial_runs_from_top_to_bottom(page, folder):
    names = {"__name__": "docs"}
    for language, title, text in BLOCK.findall(page.read_text()):
        if title:
            (folder / title).write_text(text)
        elif language == "bash":
            for line in filter(None, map(str.strip, text.splitlines())):
                do_line(line, folder)
        elif language == "python":
            with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
                exec(compile(text, page.name, "exec"), names)
        else:
            assert language in SHOWN_ONLY, f"{page.name}: a block of {language} that nothing runs"


def test_every_block_of_every_page_is_of_a_kind_that_is_run_or_only_shown():
    for page in PAGES:
        for language, _, text in BLOCK.findall(page.read_text()):
            known = language in {"bash", "yaml", "python"} | SHOWN_ONLY or (page.name, language) in RUN_ELSEWHERE
            assert known, f"{page.name}: {language}: {text[:60]}"
