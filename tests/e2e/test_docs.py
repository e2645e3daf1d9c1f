"""What the README and the docs show is run: configs are read, commands and Python go through, in the order of the page."""

import contextlib
import importlib.util
import io
import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.support.images import make_image, write_svs
from tests.support.rasters import cut
from tilestream.cli import main
from tilestream.config.fit_schema import FitConfig, Head, Masked, Split, Survival, Target
from tilestream.config.load import _known_keys, load_config, load_section
from tilestream.config.schema import Config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SERVES = "view"
"""The command that does not end by itself; the viewer's own tests drive it."""
ELSEWHERE = ("pip", "python3", ".", "pre-commit", ".ci/run", "#SBATCH", "python")
"""First words of lines that CI runs, or that need a cluster."""
BASE = {"slides": "slides/*.svs", "output": "embeddings", "tiles": {"size": 224, "mpp": 0.5}, "encoder": "tilestream-lite"}


def blocks(language):
    for page in PAGES:
        if page.parent.name == "tutorials":  # each is done as a whole, in test_tutorials
            continue
        for k, (kind, text) in enumerate(BLOCK.findall(page.read_text())):
            if kind == language:
                yield pytest.param(text, id=f"{page.relative_to(ROOT)}:{k}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as a reader of the docs has it: a slide, some slides, the README's config, its output."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "slides").mkdir()
    image = make_image(1000, 1200, seed=3)
    for path in (folder / "slide.svs", folder / "slides" / "a.svs", folder / "slides" / "b.svs"):
        write_svs(path, image)
    cut(image, {"a": (0, 0, 600, 700), "b": (300, 500, 1000, 1200)}, folder / "scenes")
    (folder / "pipelines").symlink_to(ROOT / "pipelines")
    mosaic = next(text for kind, text in BLOCK.findall((ROOT / "docs" / "how-to" / "geotiff.md").read_text()) if kind == "yaml")
    (folder / "mosaic.yaml").write_text(mosaic + "compute: {scheduler: inline}\n")
    (config,) = [text for kind, text in BLOCK.findall(PAGES[0].read_text()) if kind == "yaml"]
    (folder / "config.yaml").write_text(config + "compute: {scheduler: inline}\n")
    tilestream(["run", "config.yaml"], folder)
    return folder


def tilestream(arguments, folder):
    """What the command prints, in this process: a docs page has a dozen of them."""
    out = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code, out.getvalue()
    return out.getvalue()


def commands():
    """Each `tilestream ...` line of the docs once."""
    lines = {}
    for block in blocks("bash"):
        (text,) = block.values
        for line in filter(None, (line.strip() for line in text.splitlines())):
            words = shlex.split(line, comments=not line.startswith("#SBATCH"))
            if words and words[0] == "tilestream":
                lines[" ".join(words[1:])] = words[1:]
            elif words:
                assert words[0] in ELSEWHERE, line
    return lines


@pytest.mark.parametrize("words", list(commands().values()), ids=list(commands()))
def test_a_command_of_the_docs_runs(folder, words):
    if words[:2] == ["run", "pipelines/demo.yaml"]:
        words = [*words, "--set", "slides=sample://he?width=1024&height=1024", "--set", "compute.scheduler=inline"]
    if words[0] == SERVES:
        words = [*words, "--help"]
    assert tilestream(words, folder)


@pytest.mark.parametrize("text", list(blocks("yaml")))
def test_a_config_of_the_docs_is_valid(text, folder, monkeypatch):
    monkeypatch.chdir(folder)
    part = yaml.safe_load(text)
    if "embeddings" in part:
        load_section(FitConfig, part)
    else:
        load_config({**BASE, **part})


@pytest.mark.parametrize("text", list(blocks("python")))
def test_python_of_the_docs_runs(text, folder):
    with contextlib.chdir(folder):
        exec(compile(text.replace("<slide id>", "a"), "docs", "exec"), {"__name__": "docs"})


def page_of(name):
    """A page of the reference as it is shown."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks.on_page_markdown((ROOT / "docs" / "reference" / name).read_text())


def test_the_reference_has_every_key_of_the_config_of_run():
    page = page_of("config.md")
    told = re.findall(r"^\| `([\w.]+)` \| (.*?) \| (.*?) \| (.*?) \|$", page[: page.index("# Config of fit")], re.MULTILINE)
    assert {key for key, *_ in told} >= {
        key.replace("heads.*", "heads.NAME") for key in _known_keys(Config) if not key.startswith("pool.beside.")
    }
    assert [key for key, values, _, meaning in told if not (values and meaning)] == []


def test_the_reference_has_every_key_of_the_config_of_fit():
    page = page_of("config.md")
    told = page[page.index("# Config of fit") :]
    for section, fields in {
        "": FitConfig,
        "target.": Target,
        "target.survival.": Survival,
        "target.masked.": Masked,
        "head.": Head,
        "split.": Split,
    }.items():
        for key, field in fields.model_fields.items():
            assert f"| `{section}{key}` |" in told
            assert " ".join(field.description.split()).replace("|", "\\|") in told
