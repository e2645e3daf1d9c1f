"""Claim: nobody waits for what a command does not need, and little beyond the computing of what it does.

    python -m benchmarks.bench_start [--rounds 5] [--only typo tiny ...] [--slide FILE] [--json]
    python -m benchmarks.bench_start --device cuda [--only vit-l] [--rounds 1] [--tiles 8000] [--set compute.compile=false]

Each command runs as a whole in a fresh process, in turns with an empty Python and with one that imports what a run needs; files lie in the
system's cache, compiled modules among them, also where an image of a container has none. Runs that embed come twice a round: with empty caches of compilers and of our own (cold), then with those that the first one left
(warm). Printed are medians in seconds; how many times an empty Python and the bare imports that is; and of runs the time until the first shard was
committed, what the wall clock went into as the run's own record says it, what the end of the process took beyond it, and the share of computing.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import cycle, islice
from math import ceil, isqrt
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import numpy as np
import simplejpeg
import tifffile

import tilestream
from benchmarks.pictures import make_tissue

EMPTY, IMPORTS = "python", "imports"
PYTHON = {EMPTY: "pass", IMPORTS: "import torch, zarr, distributed, anndata"}
"""What the commands are measured against."""

COMMANDS = {
    "help": ["--help"],
    "schema": ["schema"],
    "encoders": ["encoders"],
    "typo": ["run", "{}/typo.yaml"],
    "inspect": ["inspect", "{}/a.tif"],
    "idle": ["run", "{}/config.yaml"],
    "verify": ["verify", "{}/out"],
    "report": ["report", "{}/out", "--force"],
    "export": ["export", "{}/out", "--to", "csv", "--force"],
    "plan": ["plan", "{}/config.yaml"],
}
REFUSED = {"typo": 2}
"""Commands that do not end with 0."""

TILE, MPP, PIECE = 224, 0.25, 256
"""Side of a tile, px; of the made slide the resolution, and the side of a tile of the file."""


ON_CORES = "import os, sys; os.sched_setaffinity(0, map(int, sys.argv[1].split(','))); os.execv(sys.argv[2], sys.argv[2:])"
"""Becomes the command that follows, on the cores named first."""


@dataclass(frozen=True)
class Case:
    """A run that embeds a slide."""

    encoder: str
    side: int
    """Of the made slide, px."""
    sections: dict[str, Any] = field(default_factory=dict)
    """What its config has besides."""


RUNS = {
    "cpu": {"tiny": Case("tilestream-tiny", 9 * TILE), "lite": Case("tilestream-lite", 9 * TILE)},
    "cuda": {
        "vit-l": Case("vit_large_patch16_224", 40960),
        "vit-b": Case("vit_base_patch16_224", 40960),
        "vit-s": Case("vit_small_patch16_224", 40960),
        "vit-l-averaged": Case("vit_large_patch16_224", 40960, {"tiles": {"size": TILE, "mpp": 2 * MPP, "tissue": "none"}}),
    },
}


def make_files(folder: Path) -> None:
    """An image, its finished output, and a config without and with a typo."""
    pixels = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), np.uint8)
    tifffile.imwrite(folder / "a.tif", pixels, tile=(256, 256), photometric="rgb", metadata=None)
    config = {
        "slides": str(folder / "a.tif"), "output": str(folder / "out"), "tiles": {"size": 224, "level": 0, "tissue": "none"},
        "encoder": "tilestream-tiny", "source": {"mpp": 0.5},
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "typo.yaml").write_text(json.dumps({**config, "tiels": {}}))
    done = tilestream.run({**config, "compute": {"scheduler": "inline", "device": "cpu"}})
    assert done.exit_code == 0, done.to_json()


@cache
def make_pieces() -> list[bytes]:
    """JPEG tiles of a small picture."""
    picture = make_tissue(8 * PIECE)
    return [
        simplejpeg.encode_jpeg(np.ascontiguousarray(picture[y : y + PIECE, x : x + PIECE]), 80, colorsubsampling="420")
        for y in range(0, 8 * PIECE, PIECE)
        for x in range(0, 8 * PIECE, PIECE)
    ]


def make_slide(folder: Path, side: int, number: int = 0) -> Path:
    """A pyramid of two levels whose JPEG tiles repeat those of a small picture: 40,960 px are written in seconds. Each number has bytes of its own."""
    path = folder / f"slide{side}-{number}.tif"
    if path.exists():
        return path
    coded = make_pieces()
    coded = coded[number:] + coded[:number]
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level, extent in enumerate((side, ceil(side / 16))):
            pieces: Iterator[bytes] = islice(cycle(coded), ceil(extent / PIECE) ** 2)
            file.write(
                pieces, shape=(extent, extent, 3), dtype=np.uint8, tile=(PIECE, PIECE), photometric="ycbcr", subsampling=(2, 2), compression="jpeg",
                subfiletype=int(level > 0), resolution=(1e4 / MPP / 16**level,) * 2, resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip
    return path


def keep_bytecode(folder: Path) -> None:
    """Have this process's children find compiled modules in a folder, where none are written beside their sources."""
    if sys.dont_write_bytecode:
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(Path(tilestream.__file__).parent)], check=True)
    subprocess.run([sys.executable, "-c", PYTHON[IMPORTS]], check=True)


def seconds(arguments: list[str], code: int) -> float:
    """Wall time of a fresh Python, from its start to its end."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    taken = time.perf_counter() - start
    assert done.returncode == code, done.stderr
    return taken


@dataclass(frozen=True)
class Ran:
    """A run as a whole command in a fresh process."""

    seconds: float
    """Wall clock, from the start of the process to its end."""
    first: float
    """Seconds until the first shard was committed."""
    shards: list[tuple[float, int]]
    """Time and tiles of each shard, in the order in which they ended."""
    record: dict[str, Any]
    """What the run says of itself."""

    @property
    def parts(self) -> dict[str, float]:
        """What the wall clock went into; `ending` is what the process took beyond the run."""
        return {**self.record["seconds_by_part"], "ending": self.seconds - self.record["seconds"]}

    @property
    def starting(self) -> dict[str, float]:
        """What its start went into, and of that what the worker took that was asked first."""
        return {**self.record["seconds_of_starting"], **dict(self.record["encoder"]["seconds"])}


def run_command(
    config: dict[str, Any], folder: Path, settings: Sequence[str], *, environment: Mapping[str, str] = MappingProxyType({}),
    cores: Collection[int] = (), limit: float | None = None,
) -> Ran:  # fmt: skip
    """One run in a fresh process with the caches in `folder`, on the cores with these numbers, where any are given.

    Raises
    ------
    subprocess.TimeoutExpired
        It and its children were ended after `limit` seconds.
    """
    shutil.rmtree(config["output"]["path"], ignore_errors=True)
    (folder / "run.yaml").write_text(json.dumps(config))
    options = [word for setting in settings for word in ("--set", setting)]
    caches = {"XDG_CACHE_HOME": f"{folder}/cache", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
    command = [sys.executable, "-m", "tilestream", "run", f"{folder}/run.yaml", "--log-format", "json", *options]
    if cores:
        command = [sys.executable, "-S", "-c", ON_CORES, ",".join(map(str, cores)), *command]
    with (folder / "told.json").open("w+") as told, (folder / "events.json").open("w+") as said:
        began, start = time.time(), time.perf_counter()
        process = subprocess.Popen(command, stdout=told, stderr=said, env={**os.environ, **caches, **environment}, start_new_session=True)
        try:
            code = process.wait(limit)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        taken = time.perf_counter() - start
        for file in (told, said):
            file.seek(0)
        lines = said.read()
        assert code == 0, lines
        record = json.loads(told.read())
    events = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    shards = [(event["time"], sum(event["counts"].values())) for event in events if event["event"] == "shard"]
    return Ran(taken, shards[0][0] - began, shards, record)


def run_case(case: Case, slide: Path, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """One run in a fresh process with the caches in `folder`: what it took, and what its record says of that."""
    config = {
        "slides": str(slide), "output": {"path": f"{folder}/out", "save": ["tiles"]}, "tiles": {"size": TILE, "level": 0, "tissue": "none"},
        "encoder": case.encoder, "pool": "none", "compute": {"device": chosen.device, "memory_limit": "64GiB"}, **case.sections,
    }  # fmt: skip
    ran = run_command(config, folder, chosen.set)
    computing = ran.parts["computing"] / ran.seconds
    figures = {"seconds": ran.seconds, "first": ran.first, "tiles": ran.record["tiles"], "computing": computing}
    return {**figures, "parts": ran.parts, "starting": ran.starting}


def measure(commands: list[str], runs: list[str], folder: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians of the commands and runs, which take turns."""
    plain = {name: ["-c", code] for name, code in PYTHON.items()}
    plain |= {name: ["-m", "tilestream", *(word.format(folder) for word in COMMANDS[name])] for name in commands}
    taken: dict[str, list[dict[str, Any]]] = {}
    for turn in range(chosen.rounds + (not runs)):
        for name, arguments in plain.items():
            found = seconds(arguments, REFUSED.get(name, 0))
            if turn or runs:  # the first one fills the system's cache, where no slide was written before
                taken.setdefault(name, []).append({"seconds": found})
        for name in runs:
            case, caches = RUNS[chosen.device][name], folder / f"{name}{turn}"
            caches.mkdir()
            slide = chosen.slide or make_slide(folder, case.side if chosen.tiles is None else TILE * (isqrt(chosen.tiles - 1) + 1))
            for state in ("cold", "warm"):
                taken.setdefault(f"{name} {state}", []).append(run_case(case, slide, caches, chosen))
            shutil.rmtree(caches)
    whole = {name: median(each["seconds"] for each in found) for name, found in taken.items()}
    return [
        {"command": name, **_middle(found), "over_python": whole[name] / whole[EMPTY], "over_imports": whole[name] / whole[IMPORTS]}
        for name, found in taken.items()
    ]


def _middle(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the numbers of some turns."""
    numbers = {key: median(each[key] for each in found) for key, value in found[0].items() if not isinstance(value, dict)}
    tables = {
        key: {name: median(each[key][name] for each in found) for name in value}
        for key, value in found[0].items()
        if isinstance(value, dict)
    }
    return {**numbers, **tables}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=RUNS, default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join([*COMMANDS, *RUNS['cpu'], *RUNS['cuda']])}")
    parser.add_argument("--slide", type=Path, help="instead of a made one")
    parser.add_argument("--tiles", type=int, help="about so many tiles of the made slide")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the runs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    known = {**dict.fromkeys(COMMANDS), **RUNS[chosen.device]}
    names = chosen.only or [name for name in known if chosen.device == "cpu" or name not in COMMANDS]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--only: {unknown[0]} is none of {', '.join(known)} on {chosen.device}")
    with tempfile.TemporaryDirectory() as name:
        keep_bytecode(Path(name) / "bytecode")
        commands, runs = [n for n in names if n in COMMANDS], [n for n in names if n not in COMMANDS]
        if commands:
            make_files(Path(name))
        rows = measure(commands, runs, Path(name), chosen)
    if chosen.json:
        print(json.dumps(rows))
    else:
        print_rows(rows)
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    """A line a command, and of runs two more on their parts."""
    print(f"{'command':<20}{'seconds':>9}{'/ python':>10}{'/ imports':>11}{'first shard':>13}{'tiles':>8}{'computing':>11}")
    for row in rows:
        print(f"{row['command']:<20}{row['seconds']:>9.2f}{row['over_python']:>10.1f}{row['over_imports']:>11.2f}", end="")
        if "parts" in row:
            print(f"{row['first']:>13.2f}{row['tiles']:>8.0f}{row['computing']:>11.0%}")
            for table in ("parts", "starting"):
                print(f"{'':<4}{table}: {', '.join(f'{part} {taken:.2f}' for part, taken in row[table].items())}")
        else:
            print()


if __name__ == "__main__":
    main()
