"""Claim: whatever bytes a file holds, opening it and embedding a shard of it ends: with a result, or with an error of ours.

    python -m benchmarks.fuzz_sources [--count 20000] [--seed 0] [--processes 2] [--slides DIR] [--json]

Sound files (made TIFF, SVS, DICOM and OME-Zarr; small real ones from --slides) are mutated: bytes flipped, cut off, spliced, numbers replaced, mostly in the
metadata; each goes through `inspect` and a one-shard run in a worker process, which is replaced when it dies or takes too long. Prints what became of
them and, for each failure, the seed that makes the file again.
"""

import argparse
import random
import shutil
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.fuzzing import mutate, print_found, run_cases, serve_cases

LARGEST = 4 << 20
"""Bytes of a real file that is taken as a seed; larger ones cost more to copy than to read."""


def make_seeds(folder: Path, slides: Path | None) -> list[Path]:
    """Sound files to start from."""
    import numpy as np
    import tifffile
    import zarr

    from benchmarks.bench_dicom import encode_frames, write_dicom

    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(60, 255, (16, 16, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    made = []
    for name, options in {
        "jpeg.tif": {"tile": (64, 64), "compression": "jpeg"},
        "lzw.tif": {"tile": (64, 64), "compression": "lzw"},
        "strips.tif": {"rowsperstrip": 16, "compression": "deflate"},
        "big.tif": {"tile": (64, 64), "compression": "jpeg"},
        "aperio.svs": {
            "tile": (64, 64),
            "compression": "jpeg",
            "description": "Aperio Image Library v12.0.0\n256x256 (64x64) JPEG|AppMag = 40|MPP = 0.25",
        },
    }.items():
        with tifffile.TiffWriter(folder / name, bigtiff=name == "big.tif") as tif:
            tif.write(pixels, photometric="rgb", metadata=None, resolution=(20000, 20000), resolutionunit="CENTIMETER", **options)
        made.append(folder / name)
    tifffile.imwrite(
        folder / "ome.ome.tif",
        pixels,
        photometric="rgb",
        tile=(64, 64),
        metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
    )
    write_dicom(folder / "slide.dcm", pixels, encode_frames(pixels, 64), 64)
    made += [folder / "ome.ome.tif", folder / "slide.dcm"]
    axes = [{"name": n, "type": "channel" if n == "c" else "space"} | ({} if n == "c" else {"unit": "micrometer"}) for n in "cyx"]
    scale = [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
    root = zarr.create_group(
        folder / "image.zarr",
        attributes={
            "ome": {
                "version": "0.5",
                "multiscales": [{"name": "a", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}],
            }
        },
    )
    root.create_array("0", data=np.moveaxis(pixels, 2, 0), chunks=(3, 64, 64), dimension_names=list("cyx"))
    made.append(folder / "image.zarr")
    if slides is not None:
        made += [
            p
            for p in sorted(slides.iterdir())
            if p.is_file() and p.stat().st_size <= LARGEST and p.suffix in {".svs", ".tif", ".tiff", ".ndpi", ".dcm"}
        ]
    return made


def write_case(case: int, seed: int, seeds: list[Path], folder: Path) -> Path:
    """The mutated file of a case, the same for the same numbers."""
    chance = random.Random(f"{seed}-{case}")
    origin, other = chance.choice(seeds), chance.choice([p for p in seeds if p.is_file()])
    target = folder / f"case{origin.suffix if origin.name != 'ome.ome.tif' else '.ome.tif'}"
    if target.is_dir():
        shutil.rmtree(target)
    if origin.is_dir():
        shutil.copytree(origin, target)
        inner = chance.choice(sorted(p for p in target.rglob("*") if p.is_file() and (p.suffix == ".json" or chance.random() < 0.2)))
        inner.write_bytes(mutate(inner.read_bytes(), other.read_bytes(), chance))
    else:
        target.write_bytes(mutate(origin.read_bytes(), other.read_bytes(), chance))
    return target


def try_case(path: Path, folder: Path) -> str:
    """What `inspect` and a one-shard run make of a file: result, partial or refused."""
    import tilestream
    from tilestream.errors import TilestreamError
    from tilestream.sources.facts.describe import describe_image

    output = folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    try:
        describe_image(str(path))
        summary = tilestream.run(
            {
                "slides": str(path), "output": str(output), "tiles": {"size": 64, "level": 0, "tissue": "none"}, "encoder": "benchmarks.encoders:one_pixel",
                "pool": "none", "compute": {"scheduler": "inline", "threads": 1, "shard_tiles": 4096, "memory_limit": "1GiB"},
            }
        )  # fmt: skip
    except TilestreamError:
        return "refused"
    return {0: "result", 3: "refused", 4: "partial"}.get(summary.exit_code, f"exit {summary.exit_code}")


def serve(pipe: Connection, seed: int, slides: Path | None) -> None:
    """A process that tries cases until it is told to stop."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "seeds").mkdir()
        seeds = make_seeds(folder / "seeds", slides)
        serve_cases(pipe, lambda case: try_case(write_case(case, seed, seeds, folder), folder), headroom=4 << 30)


def main(arguments: list[str] | None = None) -> dict[str, object]:
    """Try, print, and return what became of the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--slides", type=Path, help="folder of real slides; those of at most 4 MiB are used")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    numbers = range(chosen.first, chosen.first + chosen.count)
    found = {"count": chosen.count, "seed": chosen.seed} | run_cases(serve, (chosen.seed, chosen.slides), numbers, chosen.processes)
    print_found(found, as_json=chosen.json)
    return found


if __name__ == "__main__":
    sys.exit(bool(main()["bad"]))
