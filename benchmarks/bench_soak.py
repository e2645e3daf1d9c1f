"""Claim: a long run holds what it held after its first tenth: resident memory within 5 %, no further file handle.

    python -m benchmarks.bench_soak [--side 65536] [--tile 128] [--shard-tiles 2048] [--slides 1] [--json]

The whole program in one process with an encoder that costs nothing, over a made slide of (side / tile)² tiles. After each shard resident memory and
file handles are read from /proc; printed are the most resident memory and the fewest handles of each tenth of the run. A file that is being written
while they are counted is not held: what a run holds is there at every count, and a leak raises the fewest. The last half is held against the first.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import tilestream
from tilestream.runner.reporter import Reporter
from tilestream.sources.made.slide import ensure_sample

PAGE = os.sysconf("SC_PAGE_SIZE")


class Watch(Reporter):
    """Notes memory and handles whenever a shard is in the store."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []
        self.tiles = 0

    def shard_done(self, report) -> None:
        """Tiles so far, resident bytes, open file handles."""
        self.tiles += sum(report.counts.values())
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
        self.seen.append((self.tiles, resident, len(os.listdir("/proc/self/fd"))))  # noqa: PTH208  # a count is all that is wanted


def tenths(seen: list[tuple[int, int, int]]) -> list[dict[str, float]]:
    """The most resident memory and the fewest handles of each tenth of a run's shards."""
    parts = [seen[len(seen) * k // 10 : len(seen) * (k + 1) // 10] for k in range(10)]
    return [
        {"tiles": part[-1][0], "resident_mib": max(s[1] for s in part) / 2**20, "handles": min(s[2] for s in part)}
        for part in parts
        if part
    ]


def main(arguments: list[str] | None = None) -> dict[str, object]:
    """Run, print, and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=65536)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--shard-tiles", type=int, default=2048)
    parser.add_argument("--slides", type=int, default=1, help="so many copies of the image, one after another")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    image = ensure_sample(f"sample://he?width={chosen.side}&height={chosen.side}")
    watch = Watch()
    with tempfile.TemporaryDirectory() as name:
        slides = [f"{name}/copy{k}.svs" for k in range(chosen.slides)]
        for path in slides:
            shutil.copyfile(image, path)
        summary = tilestream.run(
            {
                "slides": slides, "output": {"path": f"{name}/out", "save": ["tiles"]}, "tiles": {"size": chosen.tile, "level": 0, "tissue": "none"},
                "encoder": "benchmarks.encoders:one_pixel", "pool": "none", "compute": {"scheduler": "inline", "shard_tiles": chosen.shard_tiles},
            },
            reporter=watch,
        )  # fmt: skip
    rows = tenths(watch.seen)
    first, later = rows[0], rows[1:] or rows
    middle = len(watch.seen) // 2
    found: dict[str, object] = {
        "tiles": summary.new_tiles,
        "seconds": summary.seconds,
        "tiles_per_second": summary.tiles_per_second,
        "tenths": rows,
        "growth": max(row["resident_mib"] for row in later) / first["resident_mib"] - 1,
        "more_handles": min(handles for *_, handles in watch.seen[middle:])
        - min(handles for *_, handles in watch.seen[:middle] or watch.seen),
    }
    if chosen.json:
        print(json.dumps(found, indent=1))
    else:
        for row in rows:
            print(f"{row['tiles']:>9.0f} tiles  {row['resident_mib']:8.1f} MiB  {row['handles']:4.0f} handles")
        print(
            f"{summary.new_tiles} tiles in {summary.seconds:.0f} s; memory grew by {found['growth']:.1%} after the first tenth, handles by {found['more_handles']} after the first half"
        )
    return found


if __name__ == "__main__":
    main()
