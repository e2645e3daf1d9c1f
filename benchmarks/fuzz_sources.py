"""Claim: whatever bytes a file holds, opening it and embedding a shard of it ends: with a result, or with an error of ours.

    python -m benchmarks.fuzz_sources [--count 20000] [--seed 0] [--processes 2] [--slides DIR] [--json]

Sound files (made TIFF, SVS and OME-Zarr; small real ones from --slides) are mutated: bytes flipped, cut off, spliced, numbers replaced, mostly in the
metadata; each goes through `inspect` and a one-shard run in a worker process, which is replaced when it dies or takes too long. Prints what became of
them and, for each failure, the seed that makes the file again.
"""

import argparse
import json
import multiprocessing
import multiprocessing.connection
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

LIMIT_SECONDS = 10.0
LIMIT_BYTES = 1 << 30
LARGEST = 4 << 20
"""Bytes of a real file that is taken as a seed; larger ones cost more to copy than to read."""


def make_seeds(folder: Path, slides: Path | None) -> list[Path]:
    """Sound files to start from."""
    import numpy as np
    import tifffile
    import zarr

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
    made.append(folder / "ome.ome.tif")
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


def mutate(raw: bytes, other: bytes, chance: random.Random) -> bytes:
    """Bytes of a file after one to four changes, mostly near its head and its tail, where metadata lies."""
    data = bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        if not data:
            break
        at = int(len(data) * chance.choice([chance.random() ** 6, 1 - chance.random() ** 6, chance.random()])) % len(data)
        match chance.choice(["flip", "flip", "number", "cut", "splice", "zero", "repeat"]):
            case "flip":
                data[at] ^= 1 << chance.randrange(8)
            case "number":
                data[at : at + 4] = chance.choice([0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, len(data), at]).to_bytes(
                    4, chance.choice(["little", "big"])
                )
            case "cut":
                del data[at:]
            case "splice":
                start = chance.randrange(max(1, len(other)))
                data[at : at + 64] = other[start : start + chance.randint(1, 256)]
            case "zero":
                data[at : at + 16] = bytes(16)
            case _:
                data[at:at] = data[at : at + chance.randint(1, 64)]
    return bytes(data)


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
    """What `inspect` and a one-shard run make of a file: done, partial, refused, or the traceback of an error that is not ours."""
    import tilestream
    from tilestream.errors import TilestreamError
    from tilestream.sources.describe import describe_image

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
    except Exception:  # noqa: BLE001  # this is what is looked for
        return traceback.format_exc()
    return {0: "done", 3: "refused", 4: "partial"}.get(summary.exit_code, f"exit {summary.exit_code}")


def serve(pipe, seed: int, slides: Path | None) -> None:
    """A process that tries cases until it is told to stop."""
    from tilestream.stages.hardware import peak_memory

    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28, 1 << 28))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "seeds").mkdir()
        seeds = make_seeds(folder / "seeds", slides)
        pipe.send(None)
        while (case := pipe.recv()) is not None:
            start = time.process_time()  # of the processor: other work on the machine makes no case slow
            told = try_case(write_case(case, seed, seeds, folder), folder)
            pipe.send((told, time.process_time() - start, peak_memory()))


class Child:
    """A serving process, replaced when it dies or hangs."""

    def __init__(self, seed: int, slides: Path | None) -> None:
        self.arguments = seed, slides
        self.start()

    def start(self) -> None:
        """Start a process and wait until it is ready."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *self.arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()

    def replace(self) -> None:
        """End the process and start another."""
        self.process.kill()
        self.process.join()
        self.start()

    def take(self) -> tuple[str, float, int]:
        """The outcome of the case that was sent; a crash or a hang is one too."""
        try:
            if self.pipe.poll(3 * LIMIT_SECONDS):
                return self.pipe.recv()
            told = "hang"
        except EOFError:
            told = "crash"
        self.replace()
        return told, 3 * LIMIT_SECONDS, 0


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
    children = [Child(chosen.seed, chosen.slides) for _ in range(chosen.processes)]
    cases = iter(range(chosen.first, chosen.first + chosen.count))
    working = {child: case for child in children if (case := next(cases, None)) is not None}
    for child, case in working.items():
        child.pipe.send(case)
    counts: Counter[str] = Counter()
    bad: dict[int, str] = {}
    slowest, most = 0.0, 0
    while working:
        ready = multiprocessing.connection.wait([child.pipe for child in working], timeout=3 * LIMIT_SECONDS)
        child = next((c for c in working if c.pipe in ready), next(iter(working)))
        case = working.pop(child)
        told, seconds, used = child.take()
        slowest, most = max(slowest, seconds), max(most, used)
        kind = told if told in ("done", "partial", "refused", "crash", "hang") else "foreign error"
        if kind in ("done", "partial", "refused"):
            kind = "slow" if seconds > LIMIT_SECONDS else "large" if used > LIMIT_BYTES else kind
        if kind == "large":  # what a process used at most stays with it
            child.replace()
        counts[kind] += 1
        if kind not in ("done", "partial", "refused"):
            bad[case] = told
            print(f"case {case}: {kind}: {told.strip().splitlines()[-1][:200]}", file=sys.stderr, flush=True)
        if (case := next(cases, None)) is not None:
            working[child] = case
            child.pipe.send(case)
    for child in children:
        child.process.kill()
    found: dict[str, object] = {
        "count": chosen.count,
        "seed": chosen.seed,
        "outcomes": dict(counts),
        "slowest_seconds": slowest,
        "most_mib": most / 2**20,
        "bad": bad,
    }
    print(
        json.dumps(found, indent=1)
        if chosen.json
        else f"{chosen.count} cases: {dict(counts)}; slowest {slowest:.1f} s, most memory {most / 2**20:.0f} MiB"
    )
    return found


if __name__ == "__main__":
    main()
