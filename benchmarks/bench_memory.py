"""Claim: resident memory depends on the shard, not on the image, and stays below what the plan projects.

    python -m benchmarks.bench_memory [--sides 8192 16384 32768] [--json]

Each side is a run of the whole program in a process of its own, on a made slide, with an encoder that costs nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

MIB = 1024**2


def measure(side: int, shard_tiles: int, folder: Path) -> dict[str, float]:
    """Run one slide and return what `run.json` says of its memory."""
    output = folder / str(side)
    config = {
        "slides": f"sample://he?width={side}&height={side}",
        "output": str(output),
        "tiles": {"size": 224, "level": 0},
        "encoder": "benchmarks.encoders:mean_rgb",
        "compute": {"scheduler": "inline", "shard_tiles": shard_tiles},
    }
    path = folder / f"{side}.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    done = subprocess.run([sys.executable, "-m", "tilestream", "run", str(path)], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"the run on {side} px ended with {done.returncode}:\n{done.stderr}")
    told = json.loads((output / "run.json").read_text())
    return {
        "side": side,
        "tiles": told["tiles"],
        "pixels_mib": side * side * 3 / MIB,
        "peak_mib": told["peak_bytes"] / MIB,
        "projected_mib": told["projected_bytes"] / MIB,
        "tiles_per_second": told["tiles_per_second"],
    }


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[8192, 16384, 32768], help="sides of the slides in px")
    parser.add_argument("--shard-tiles", type=int, default=1024)
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        # A slide is made before it is measured, by a process whose memory does not count.
        for side in chosen.sides:
            address = f"sample://he?width={side}&height={side}"
            subprocess.run([sys.executable, "-m", "tilestream", "inspect", address], check=True, capture_output=True)
        rows = [measure(side, chosen.shard_tiles, Path(folder)) for side in chosen.sides]
    if chosen.json:
        print(json.dumps(rows, indent=1))
        return rows
    print(f"{'side px':>8} {'tiles':>8} {'image MiB':>10} {'peak MiB':>9} {'projected':>10} {'tiles/s':>8}")
    for row in rows:
        print(
            f"{row['side']:>8} {row['tiles']:>8} {row['pixels_mib']:>10.0f} {row['peak_mib']:>9.0f} {row['projected_mib']:>10.0f} {row['tiles_per_second']:>8.0f}"
        )
    peaks = [row["peak_mib"] for row in rows]
    print(
        f"largest peak over smallest: {max(peaks) / min(peaks):.3f}; below the projection everywhere: {all(r['peak_mib'] <= r['projected_mib'] for r in rows)}"
    )
    return rows


if __name__ == "__main__":
    main()
