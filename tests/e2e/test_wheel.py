"""The wheel that people install: it carries the encoder in the box, stays small, and its demo needs no network."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
LARGEST_WHEEL = 15_000_000

NO_NETWORK = """
import socket
plain = socket.socket.connect
def connect(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"no network: {address}")
    return plain(self, address)
socket.socket.connect = connect
def lookup(host, *rest, **more):
    if host not in (None, "", "127.0.0.1", "::1", "localhost", socket.gethostname()):
        raise socket.gaierror(f"no network: {host}")
    return plain_lookup(host, *rest, **more)
plain_lookup, socket.getaddrinfo = socket.getaddrinfo, lookup
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the checkout."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "tilestream", tree / "tilestream", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(out), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_carries_the_encoder_and_is_small(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "tilestream/encoders/box/tilestream-lite.md",
        "tilestream/encoders/box/tilestream-tiny.md",
        "tilestream/encoders/box/tilestream-tiny.safetensors",
        "tilestream/encoders/contexts/box/tilestream-lite-context.safetensors",
        "tilestream/viewer/assets/report.css",
        "tilestream/viewer/client/page.html",
        "tilestream/viewer/client/vendor/openseadragon.min.js",
        "tilestream/viewer/client/vendor/openseadragon.LICENSE.txt",
        "tilestream/py.typed",
    } <= set(names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "pipelines"))]
    assert wheel.stat().st_size < LARGEST_WHEEL


def test_the_demo_runs_from_the_wheel_without_a_network(wheel, tmp_path):
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", str(site), str(wheel)], check=True)
    (site / "sitecustomize.py").write_text(NO_NETWORK)
    environment = {**os.environ, "PYTHONPATH": str(site), "TILESTREAM_SAMPLE_DIR": str(tmp_path / "samples")}
    where = subprocess.run(
        [sys.executable, "-c", "import tilestream, socket; print(tilestream.__file__, socket.socket.connect.__module__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert where.split() == [str(site / "tilestream" / "__init__.py"), "sitecustomize"]
    done = subprocess.run(
        [sys.executable, "-m", "tilestream", "run", str(ROOT / "pipelines" / "demo.yaml"), "--set", f"output.path={tmp_path / 'out'}",
         "--set", "slides=sample://he?width=2048&height=2048"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "encoder tilestream-lite has random" not in done.stdout + done.stderr
    assert list((tmp_path / "out").glob("*.zarr/overview.png"))
