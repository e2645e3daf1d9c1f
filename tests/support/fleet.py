"""A cluster of separate hosts: a store with slides, a scheduler, worker hosts, and a client that runs the command; and what became of its output."""

import json
import os
import random
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import tifffile
import yaml

from tests.support.hosts import ROOT, Hosts, until
from tests.support.s3_server import environment
from tilestream.sources.made.slide import ensure_sample

STORE, SCHEDULER, CLIENT, WORKERS = "store", "scheduler", "client", ("worker1", "worker2")
PORT, STORE_PORT = 8786, 9000
BASES = 8
"""Samples that slides are made of."""

PUT = """
import http.client, pathlib, sys
to = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]))
for path in sorted(pathlib.Path(sys.argv[3]).iterdir()):
    to.request("PUT", "/slides/" + path.name, path.read_bytes())
    to.getresponse().read()
"""
ASK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())"


def make_slides(folder, count, side):
    """So many slides, each with the file tiles of a sample in an order of its own: no two hold the same rows."""
    folder.mkdir(parents=True)
    for number in range(count):
        base = Path(ensure_sample(f"sample://he?width={side}&height={side}&seed={number % BASES}"))
        (folder / f"s{number:05}.svs").write_bytes(shuffled(base, number))


def shuffled(path, seed):
    """A TIFF with the tiles of its first level in another order."""
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tags = [file.pages[0].tags[code] for code in (324, 325)]
        order = list(range(tags[0].count))
        random.Random(seed).shuffle(order)
        for tag in tags:
            kind = f"{file.byteorder}{tag.count}{ {3: 'H', 4: 'I', 16: 'Q'}[int(tag.dtype)] }"
            struct.pack_into(kind, data, tag.valueoffset, *(tag.value[k] for k in order))
    return bytes(data)


class Fleet:
    """Those hosts, with all their processes."""

    def __init__(self, hosts, folder, slides, latency=0.0):
        self.hosts, self.folder, self.runs, self.side = hosts, folder, 0, 1024
        self.env = {
            **os.environ,
            **environment(f"http://{hosts.address(STORE)}:{STORE_PORT}"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        self.quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": self.env}
        store = [sys.executable, "-m", "tests.support.counted_store", hosts.address(STORE), str(STORE_PORT), str(latency)]
        until(hosts.start(STORE, store, stdout=subprocess.PIPE, env=self.env).stdout.readline, "a store")
        hosts.ask(CLIENT, [sys.executable, "-c", PUT, hosts.address(STORE), str(STORE_PORT), str(slides)])
        self.counts()
        self.start_scheduler()
        for name in WORKERS:
            self.start_worker(name)

    def start_scheduler(self):
        self.hosts.start(
            SCHEDULER,
            [
                sys.executable,
                "-m",
                "distributed.cli.dask_scheduler",
                "--host",
                self.hosts.address(SCHEDULER),
                "--port",
                str(PORT),
                "--no-dashboard",
            ],
            **self.quiet,
        )

    def start_worker(self, name):
        self.hosts.start(
            name,
            [
                sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://{self.hosts.address(SCHEDULER)}:{PORT}",
                "--host", self.hosts.address(name), "--nthreads", "3", "--no-nanny", "--no-dashboard", "--death-timeout", "600",
            ],
            **self.quiet,
        )  # fmt: skip

    def ask(self, path):
        """What the store's own counter tells."""
        return json.loads(self.hosts.ask(STORE, [sys.executable, "-c", ASK, f"http://{self.hosts.address(STORE)}:{STORE_PORT}/{path}"]))

    def counts(self):
        return self.ask("counts")

    def finished(self, output):
        """How many slides of an output are finished."""
        return self.ask(f"count/out/{output}/?complete.json")

    def run(self, output, **sections):
        """The command, started on the client; its words go into a file."""
        self.runs += 1
        config = {
            "slides": "s3://slides/", "output": {"path": f"s3://out/{output}", "save": ["tiles", "slide"]}, "tiles": {"size": 128, "level": 0},
            "encoder": "tests.support.encoders:mean_rgb", "pool": "mean", "compute": {"scheduler": f"tcp://{self.hosts.address(SCHEDULER)}:{PORT}"},
            **sections,
        }  # fmt: skip
        given, self.words = self.folder / f"{output}.yaml", self.folder / f"{output}-{self.runs}.txt"
        given.write_text(yaml.safe_dump(config))
        with self.words.open("w") as words:
            command = [sys.executable, "-m", "tilestream", "run", str(given)]
            return self.hosts.start(CLIENT, command, stdout=words, stderr=subprocess.STDOUT, env=self.env)

    def differences(self, output, local):
        """What of an output in the store is not as in a local one; empty where all is."""
        command = [sys.executable, "-m", "tests.support.compare_outputs", f"s3://out/{output}", str(local)]
        done = subprocess.run(
            ["ip", "netns", "exec", self.hosts.space(CLIENT), *command], check=True, capture_output=True, text=True, env=self.env
        )
        return json.loads(done.stdout)


@contextmanager
def fleet(folder, slides, latency=0.0):
    """Hosts with all their processes, which are gone behind the block whatever happens."""
    with Hosts([STORE, SCHEDULER, CLIENT, *WORKERS]) as hosts:
        yield Fleet(hosts, folder, slides, latency)
