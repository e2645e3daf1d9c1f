"""Claim: objects stream. Two million of them are joined to one GeoParquet file, and exported in every format, with a peak of less than 1 GiB.

    python -m benchmarks.bench_objects [--objects 500000 2000000] [--corners 24] [--formats geojson ...] [--json]

Parts of 10,000 polygons are made one by one as blocks of a slide leave them, then joined as a run does it; each step and each export runs in a
process of its own, whose peak resident memory is what the system counted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.bench_export import make_output
from tilestream.interop.objects.formats import OBJECT_FORMATS
from tilestream.store.folder import Folder
from tilestream.store.heads.shapes import ShapeRows, join_parts, pack_part, shapes_key

PART = 10_000
"""Objects of a part."""

LIMIT_MIB, GROWTH = 1024.0, 1.1
"""Peak of any step, and by what it may grow from the fewest objects to the most."""

CLASSES = ["tumour", "stroma", "immune", "necrosis", "other"]

CHILD = """
import json, pathlib, sys, time
from benchmarks import bench_objects
start = time.perf_counter()
bench_objects.STEPS[sys.argv[1]](*sys.argv[2:])
used = int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print(json.dumps({"peak_mib": used / 1024, "seconds": time.perf_counter() - start}))
"""


def made_part(number: int, corners: int) -> ShapeRows:
    """The objects of one block of 4096 px."""
    import shapely

    random = np.random.default_rng(number)
    centre = random.uniform(0, 4096, (PART, 2)) + np.array([number % 16, number // 16]) * 4096
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = random.uniform(4, 12, (PART, 1)) * random.uniform(0.9, 1.1, (PART, corners))
    ring = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=-1) + centre[:, None]
    classes = random.integers(0, len(CLASSES), PART)
    return ShapeRows.of(shapely.polygons(np.round(ring, 1)), classes, random.random(PART, np.float32), 0.25)


def make_parts(store: str, objects: str, corners: str) -> None:
    """Leave the parts of so many objects in a store."""
    for number in range(int(objects) // PART):
        Folder(store).put(f"parts/{number:06d}.parquet", pack_part(made_part(number, int(corners)), CLASSES))


def join(store: str) -> None:
    """Join the parts of a store."""
    parts = sorted((Path(store) / "parts").iterdir())
    with Folder(store).writing(shapes_key("nuclei")) as path:
        join_parts(parts, path, {"head": "nuclei", "classes": CLASSES})


def export(store: str, name: str, out: str) -> None:
    """Export the objects of a store."""
    from tilestream.interop.exports import export_slides

    list(export_slides(store, name, what="nuclei", out=out))


STEPS = {"parts": make_parts, "join": join, "export": export}


def measured(step: str, *arguments: object) -> dict[str, float]:
    """Peak and seconds of a step in a process of its own."""
    done = subprocess.run([sys.executable, "-c", CHILD, step, *map(str, arguments)], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(objects: int, corners: int, formats: list[str]) -> list[dict[str, object]]:
    """Every step for so many objects."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as place:
        make_output(Path(place), 100, 4)
        store = Path(place) / "a.zarr"
        rows.append({"step": "parts", "objects": objects, **measured("parts", store, objects, corners)})
        rows.append({"step": "join", "objects": objects, **measured("join", store)})
        for name in formats:
            out = Path(place) / f"out{OBJECT_FORMATS[name][0]}"
            rows.append({"step": name, "objects": objects, **measured("export", store, name, out)})
            size = sum(part.stat().st_size for part in ([out] if out.is_file() else out.rglob("*")) if part.is_file())
            rows[-1]["file_mib"] = size / 1024**2
            print(rows[-1], file=sys.stderr, flush=True)
            if out.is_file():
                out.unlink()
    return rows


def broken(rows: list[dict[str, object]]) -> dict[str, list[float]]:
    """Steps whose peaks are not as claimed."""
    peaks: dict[str, list[float]] = {}
    for row in rows:
        peaks.setdefault(str(row["step"]), []).append(float(str(row["peak_mib"])))
    return {step: found for step, found in peaks.items() if max(found) > LIMIT_MIB or found[-1] > GROWTH * found[0]}


def main(arguments: list[str] | None = None) -> list[dict[str, object]]:
    """Measure, print, and say whether the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, nargs="+", default=[500_000, 2_000_000])
    parser.add_argument("--corners", type=int, default=24)
    parser.add_argument("--formats", nargs="+", default=list(OBJECT_FORMATS), choices=list(OBJECT_FORMATS))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    rows = [row for objects in asked.objects for row in measure(objects, asked.corners, asked.formats)]
    if asked.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            size = f", {row['file_mib']:,.0f} MiB" if "file_mib" in row else ""
            print(f"{row['step']:18} {row['objects']:>9,} objects  peak {row['peak_mib']:6.0f} MiB  {row['seconds']:6.1f} s{size}")
        print("not as claimed:", broken(rows) or "nothing")
    return rows


if __name__ == "__main__":
    main()
