"""Runs of the command that are killed, stopped or damaged, and how they are resumed and compared."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import psutil

import tilestream
from tests.support.runs import config, opened, same_store
from tests.support.signals import HEARING
from tilestream.store.folder import Folder
from tilestream.store.slide_store import SlideStore

CONTEXT = {"window": 4, "depth": 2, "heads": 3, "exact": True}
SECTIONS = {
    "tiles": {"size": 96, "level": 0, "tissue": "none"}, "encoder": "tests.support.encoders:corners", "context": CONTEXT, "pool": "gated_attention",
    "output": {"save": ["tiles", "slide"]},
}  # fmt: skip
TILES = 72
SHARD = 10
SLOW = {"scheduler": "inline", "shard_tiles": SHARD, "batch_size": 2, "threads": 1}


def write_config(path, folder, encoder="slow_corners", **compute):
    """A config whose run takes seconds, and its file."""
    given = config(path, folder / "out", **{**SECTIONS, "compute": {**SLOW, **compute}})
    given["encoder"] = f"tests.support.encoders:{encoder}"
    (folder / "c.yaml").write_text(json.dumps(given))
    return given


def start(folder, *before, through=(), stderr=subprocess.PIPE, **environment):
    """The command as a process of its own group, so that a signal may be sent to all of it; `through` others, such as nohup."""
    command = [*HEARING, *through, sys.executable, *(before or ("-m", "tilestream")), "run", str(folder / "c.yaml")]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=stderr, text=True, start_new_session=True, env=os.environ | environment
    )


def wait_for_shard(run, folder, seconds=120):
    """Wait until a run commits its next shard, or ends."""
    ledger = folder / "out" / "a.zarr" / ".tilestream" / "shards"
    before = set(ledger.iterdir()) if ledger.is_dir() else set()
    deadline = time.monotonic() + seconds
    while run.poll() is None and not (ledger.is_dir() and set(ledger.iterdir()) - before):
        assert time.monotonic() < deadline, "no shard was committed"
        time.sleep(0.005)


def dask_workers(run):
    """Worker processes of a run's own cluster: what its fork server made, newest last."""
    children = psutil.Process(run.pid).children(recursive=True)
    servers = {child.pid for child in children if child.ppid() == run.pid and "forkserver" in " ".join(child.cmdline())}
    return [child for child in children if child.ppid() in servers]


def killed_at(moments, path, folder, encoder="slow_corners", **compute):
    """Run the command, killed at each of the moments (seconds after its first shard), then once to its end."""
    given = write_config(path, folder, encoder, **compute)
    for moment in moments:
        run = start(folder)
        wait_for_shard(run, folder)
        time.sleep(moment)
        run.kill()
        run.communicate()
    assert tilestream.run(given).exit_code == 0


def ends_equal(output, undisturbed):
    found = opened(output, "a")
    assert same_store(found, undisturbed)
    np.testing.assert_array_equal(found.slide_vector, undisturbed.slide_vector)
    assert SlideStore(Folder(str(output / "a.zarr"))).damage() == []


def damage(folder, stage, harm):
    array = {"tiles": "X", "context": "obsm/context"}[stage]
    target = folder / "tables" / "tiles" / array / "c" / "3" / "0"
    if harm == "ledger":
        target = folder / ".tilestream" / "shards" / f"{stage}-000003.json"
    hurt(target, "cut" if harm == "ledger" else harm)


def hurt(target, harm):
    """Delete a file, cut it at half, or flip its middle byte."""
    raw = bytearray(target.read_bytes())
    raw[len(raw) // 2] ^= 255
    if harm == "deleted":
        target.unlink()
    else:
        target.write_bytes(raw if harm == "flipped" else raw[: len(raw) // 2])
