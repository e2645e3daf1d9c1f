"""Claim: whatever stands in a foreign file beside the image, reading it ends: with a result, or with an error of ours, in 10 s and 1 GiB.

    python -m benchmarks.fuzz_inputs [--count 5000] [--seed 0] [--first 0] [--processes 2] [--kinds coords mask ...] [--json]

Kinds: HDF5 with coords, HDF5 with features, GeoJSON, annotations in XML, lists of slides in CSV, configs in YAML, Zarr metadata, pictures of masks.
Each case is a sound file made wrong by structure (see fuzz_cases), read by what the program reads it with, in a process that is replaced when it dies
or takes too long, under a limit of memory. Prints counts by outcome, and for what is not allowed the case; ends with 1 where there is any.
"""

import argparse
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import fuzz_cases
from benchmarks.fuzzing import print_found, run_cases, serve_cases

KINDS = ("coords", "features", "geojson", "markup", "csv", "yaml", "zarr", "mask")


def kind_of(case: int, kinds: tuple[str, ...]) -> str:
    """The kind of a case."""
    return kinds[case % len(kinds)]


def write_case(case: int, seed: int, kinds: tuple[str, ...], folder: Path) -> Path:
    """The file of a case, the same for the same numbers."""
    for old in folder.glob("case*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    make: Callable[[random.Random, Path], Path] = getattr(fuzz_cases, f"make_{kind_of(case, kinds)}")
    return make(random.Random(f"{seed}-{case}"), folder)


def read_case(path: Path, kind: str, folder: Path) -> str:
    """Read a file as the program does: result, or refused; anything else is raised."""
    from tilestream.errors import ReadError, TilestreamError

    try:
        _READERS[kind](path, folder)
    except ReadError:
        return "partial"
    except TilestreamError as error:
        return "refused" if str(error).strip() else "an error without words"
    return "result"


def _read_coords(path: Path, _: Path) -> None:
    from tilestream.tiles.coords import place_tiles

    place_tiles(path, _image(), 64, "slide")


def _read_features(path: Path, folder: Path) -> None:
    from tilestream.interop.importing import import_features

    shutil.rmtree(folder / "out", ignore_errors=True)
    import_features(str(path), "slide", str(folder / "out"))


def _read_mask(path: Path, _: Path) -> None:
    import numpy as np

    from tilestream.config.types import Tissue
    from tilestream.tiles.thumbnail import Thumbnail
    from tilestream.tiles.tissue import find_tissue

    side = fuzz_cases.SIDE // 8
    find_tissue(Thumbnail(np.full((side, side, 3), 255, np.uint8), 8.0), Tissue(mask=str(path), method="mask"), file=path)


def _read_csv(path: Path, _: Path) -> None:
    from tilestream.config.slide_list import list_slides

    list_slides([str(path)])


def _read_yaml(path: Path, _: Path) -> None:
    from tilestream.config.load import load_config
    from tilestream.config.slide_list import list_slides

    list_slides(load_config(path).slides)


def _read_zarr(path: Path, _: Path) -> None:
    from tilestream.geometry import Region
    from tilestream.sources import open_source
    from tilestream.sources.base import SourceOptions
    from tilestream.sources.facts.describe import describe_image

    describe_image(str(path))
    with open_source(str(path), SourceOptions()) as source:
        source.read_region(len(source.info.levels) - 1, Region(0, 0, 64, 64))


_READERS: dict[str, Callable[[Path, Path], None]] = {
    "coords": _read_coords, "features": _read_features, "geojson": _read_mask, "markup": _read_mask, "mask": _read_mask, "csv": _read_csv,
    "yaml": _read_yaml, "zarr": _read_zarr,
}  # fmt: skip


def _image() -> Any:
    """What is known of an image of `SIDE` px."""
    from tilestream.geometry import Level, Size
    from tilestream.sources.base import SlideInfo

    return SlideInfo("slide", "tiff", "", (Level(Size(fuzz_cases.SIDE, fuzz_cases.SIDE), 1.0),), 0.5, "file")


def serve(pipe: Connection, seed: int, kinds: tuple[str, ...]) -> None:
    """A process that tries cases until it is told to stop."""
    import tilestream.interop.importing
    import tilestream.sources
    import tilestream.tiles.coords
    import tilestream.tiles.tissue  # noqa: F401  # what is loaded counts for no case

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        serve_cases(pipe, lambda case: read_case(write_case(case, seed, kinds, folder), kind_of(case, kinds), folder))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Try, print, and return what became of the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    kinds, numbers = tuple(chosen.kinds), range(chosen.first, chosen.first + chosen.count)
    found = {"count": chosen.count, "seed": chosen.seed} | run_cases(serve, (chosen.seed, kinds), numbers, chosen.processes)
    found["bad_by_kind"] = dict(Counter(kind_of(case, kinds) for case in found["bad"]))
    print_found(found, as_json=chosen.json)
    return found


if __name__ == "__main__":
    sys.exit(bool(main()["bad"]))
