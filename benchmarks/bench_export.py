"""Claim: an export holds blocks of a slide, not the slide: ten times the tiles take less than 48 MiB more, in every format.

    python -m benchmarks.bench_export [--tiles 10000 100000] [--dim 384] [--formats geojson ...] [--json]

Each export runs in a process of its own, on a made store; its peak resident memory is what the system counted. The fewest tiles should be
several blocks of 2048 rows, since up to four of them are held at once. What grows a little with the slide is a few bytes a tile: its status, and
the index of the file that is written (Parquet: of each column of each block). `pt` maps the file that it saves, and pages of it that the
system may drop at any time count as resident: its bound is the file's size on top.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tilestream.interop.exports import FORMATS
from tilestream.store.folder import Folder
from tilestream.store.layout import Layout, TileColumns
from tilestream.store.slide_store import SlideStore

MIB = 1024**2

GROWTH_MIB = 48.0
"""By which the peak may grow from the fewest tiles to the most."""

CHILD = """
import json, pathlib, sys, time
from tilestream.interop.exports import export_slides
start = time.perf_counter()
list(export_slides(sys.argv[1], sys.argv[2], out=sys.argv[3], slide="a"))
status = pathlib.Path("/proc/self/status").read_text()  # getrusage would count what its parent had at most
used = int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({"peak_mib": used / 1024, "seconds": time.perf_counter() - start}))
"""


def make_output(folder: Path, tiles: int, dim: int) -> None:
    """An output of one slide `a`, a grid of 250 columns whose last row may be short; every 1000th tile failed."""
    cols = min(250, tiles)
    row, col = np.divmod(np.arange(tiles), cols)
    layout = Layout(tiles, dim, 2048, "float16")
    recipe = {"tiles": {"size": 224, "stride": 224, "edge": "pad"}, "encoder": {"name": "made"}, "output": {"save": ["tiles"]}}
    source = {
        "address": "made.svs",
        "mpp": 0.5,
        "height": -(-tiles // cols) * 224,
        "width": cols * 224,
        "level": 0,
        "downsample": 1.0,
        "scale": 1.0,
    }
    store = SlideStore(Folder(str(folder / "a.zarr")))
    columns = TileColumns(row, col, row * 224, col * 224, np.ones(tiles, np.float32), 224.0)
    store.create(layout, columns, {"recipe": recipe, "source": source}, uns={}, objects={})
    random = np.random.default_rng(0)
    for shard in range(layout.shards):
        part = layout.rows(shard)
        values = random.normal(size=(part.stop - part.start, dim)).astype(np.float16)
        failed = np.arange(part.start, part.stop) % 1000 == 999
        values[failed] = np.nan
        status = np.where(failed, 2, 0).astype(np.int8)
        store.write_shard(shard, {"tables/tiles/X": values, "tables/tiles/obs/status/codes": status}, {"counts": {}})
    store.seal()
    store.complete({"tiles": tiles, "counts": {}})


def measure(output: Path, name: str, tiles: int) -> dict[str, float | str]:
    """Peak memory and seconds of one export, and the size of what it wrote."""
    target = output / f"out{FORMATS[name].suffix}"
    done = subprocess.run([sys.executable, "-c", CHILD, str(output), name, str(target)], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"the export of {tiles} tiles as {name} ended with {done.returncode}:\n{done.stderr}")
    files = [target] if target.is_file() else [path for path in target.rglob("*") if path.is_file()]
    return {"format": name, "tiles": tiles, "written_mib": sum(path.stat().st_size for path in files) / MIB, **json.loads(done.stdout)}


def growth(rows: list[dict[str, float | str]], name: str) -> float:
    """MiB by which the peak of a format grew from the fewest tiles to the most, less what `pt` maps."""
    found = sorted((row for row in rows if row["format"] == name), key=lambda row: float(row["tiles"]))
    mapped = 1 if name == "pt" else 0
    first, last = (float(row["peak_mib"]) - mapped * float(row["written_mib"]) for row in (found[0], found[-1]))
    return last - first


def main(arguments: list[str] | None = None) -> list[dict[str, float | str]]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    rows = []
    for tiles in chosen.tiles:
        with tempfile.TemporaryDirectory() as name:
            make_output(Path(name), tiles, chosen.dim)
            rows += [measure(Path(name), each, tiles) for each in chosen.formats]
    if chosen.json:
        print(json.dumps(rows, indent=1))
        return rows
    print(f"{'format':>12} {'tiles':>8} {'peak MiB':>9} {'written MiB':>12} {'seconds':>8}")
    for row in rows:
        print(f"{row['format']:>12} {row['tiles']:>8} {row['peak_mib']:>9.0f} {row['written_mib']:>12.1f} {row['seconds']:>8.1f}")
    for each in chosen.formats:
        print(f"{each}: {growth(rows, each):+.1f} MiB from the fewest tiles to the most, of {GROWTH_MIB:.0f} allowed")
    return rows


if __name__ == "__main__":
    main()
