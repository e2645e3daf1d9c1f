"""Claim: commands that compute nothing answer without waiting for torch.

    python -m benchmarks.bench_start [--rounds 7] [--only typo encoders ...] [--json]

Each command runs cold, in a fresh process, in turns with an empty Python and with one that imports what a run needs; files lie in the system's cache.
Printed are medians in seconds, and how many times an empty Python and those bare imports that is.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import tifffile

import tilestream

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
    done = tilestream.run({**config, "compute": {"scheduler": "inline"}})
    assert done.exit_code == 0, done.to_json()


def seconds(arguments: list[str], code: int) -> float:
    """Wall time of a fresh Python, from its start to its end."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    taken = time.perf_counter() - start
    assert done.returncode == code, done.stderr
    return taken


def measure(names: list[str], folder: Path, rounds: int) -> list[dict[str, float | str]]:
    """Medians of the commands, which take turns."""
    cases = {name: ["-c", code] for name, code in PYTHON.items()}
    cases |= {name: ["-m", "tilestream", *(word.format(folder) for word in COMMANDS[name])] for name in names}
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, arguments in cases.items():
            found = seconds(arguments, REFUSED.get(name, 0))
            if turn:  # the first one fills the system's cache
                taken[name].append(found)
    medians = {name: median(each) for name, each in taken.items()}
    return [
        {"command": name, "seconds": value, "over_python": value / medians[EMPTY], "over_imports": value / medians[IMPORTS]}
        for name, value in medians.items()
    ]


def main(arguments: list[str] | None = None) -> list[dict[str, float | str]]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        make_files(Path(name))
        rows = measure(chosen.only, Path(name), chosen.rounds)
    if chosen.json:
        print(json.dumps(rows))
    else:
        print(f"{'command':<10}{'seconds':>9}{'/ python':>10}{'/ imports':>11}")
        for row in rows:
            print(f"{row['command']:<10}{row['seconds']:>9.2f}{row['over_python']:>10.1f}{row['over_imports']:>11.2f}")
    return rows


if __name__ == "__main__":
    main()
