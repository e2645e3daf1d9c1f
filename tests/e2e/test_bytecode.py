"""Where Python writes no compiled modules beside their sources, the command line keeps them in the user's cache."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tilestream import __main__ as command


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A torch without compiled modules beside it, of which the folder is given."""
    spec = importlib.util.spec_from_file_location("torch", tmp_path / "site" / "torch" / "__init__.py")
    (tmp_path / "site" / "torch").mkdir(parents=True)
    monkeypatch.setattr(command, "find_spec", lambda _: spec)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"):
        monkeypatch.setenv(name, "1")  # so that it is put back
        monkeypatch.delenv(name)
    return Path(spec.cached)


def test_it_is_kept_in_the_cache_of_the_user(here, tmp_path):
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    command.keep_bytecode()
    folder = str(tmp_path / "cache" / "tilestream" / "bytecode")
    assert (sys.pycache_prefix, sys.dont_write_bytecode) == (folder, False)
    assert os.environ["PYTHONPYCACHEPREFIX"] == folder
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ


def test_what_is_there_or_chosen_stays(here, monkeypatch):
    monkeypatch.setattr(sys, "pycache_prefix", "/elsewhere")
    command.keep_bytecode()
    assert (sys.pycache_prefix, sys.dont_write_bytecode) == ("/elsewhere", True)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    command.keep_bytecode()  # Python writes them itself
    assert sys.pycache_prefix is None
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    here.parent.mkdir()
    here.touch()
    command.keep_bytecode()
    assert (sys.pycache_prefix, sys.dont_write_bytecode) == (None, True)


@pytest.mark.parametrize("home", ["none", "a file"])
def test_nothing_changes_where_there_is_no_cache_to_write_to(here, monkeypatch, tmp_path, home):
    (tmp_path / "file").touch()
    if home == "none":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", homeless)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    command.keep_bytecode()
    assert (sys.pycache_prefix, sys.dont_write_bytecode) == (None, True)


def homeless():
    """As `Path.home` does where the user is unknown and HOME is not set."""
    raise RuntimeError("Could not determine home directory.")


def test_a_second_command_finds_the_modules_of_the_first(tmp_path):
    """The package alone: torch has its own where these tests run, and the command is told that it has none."""
    code = "from tilestream import __main__ as m; m.find_spec = lambda _: type('S', (), {'cached': '/nowhere/__pycache__/torch.pyc'}); m.leave()"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-v", "-c", code, "encoders"], env=environment, capture_output=True, text=True, check=True)
    kept = [line for line in done.stderr.splitlines() if "matches" in line and str(tmp_path) in line and "tilestream" in line]
    assert kept
    assert not [line for line in done.stderr.splitlines() if line.startswith("# wrote")]
