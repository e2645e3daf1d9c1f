"""Claim: tiles are read at close to the speed of the decoder, each file tile decoded once, in memory that the image does not change.

    python -m benchmarks.bench_reading [--only speed program sparse memory] [--threads 1 2] [--rounds 3] [--pixels 4096] [--json]

speed    Readers in turn, round by round, so that a busy moment of the machine meets all of them; warm cache, medians. MPix/s and tiles/s
         count output pixels and tiles. "floor" is the time of a reader over the time in which the same number of threads does no more than
         read and decode, once, the file tiles that the tile list touches: both decode the same pixels, so 1.25 means a quarter more time.
         "PIL" is how often faster a reader is than OpenSlide with PIL; "scaling" how often faster than with the first of `--threads`.
         Ratios are medians of the ratios within each round.
program  The whole program on a made slide with an encoder that returns one pixel, beside the reader alone on the same tiles in the
         same shards. "program" is timed from the first shard to the slide's end, "shards" to the end of the last shard.
sparse   File tiles decoded for a random 40 % of the tiles, shard by shard, beside the fewest possible.
memory   Resident memory that reading adds, each image in a process of its own, beside its bound.

Published numbers come from more rounds of fewer cases: --rounds 9 --codecs jpeg --file-tiles 240 256 --tiles 224 256.
Made slides are kept in the cache of samples; the first run makes them, which takes a minute or two.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import reading_claims
from benchmarks.pictures import Case, Picture, make_tissue, write_picture
from benchmarks.readers import CONTESTANTS, FLOOR, OURS, PIL, Contestant, Read

Row = dict[str, Any]

PIECES, TILES = (240, 256, 512), (224, 256, 512)
CODECS = ("jpeg", "jpeg2000", "deflate", "ome-zarr")
SECTIONS = ("speed", "program", "sparse", "memory")


def make_cases(folder: Path, chosen: argparse.Namespace) -> list[Case]:
    """JPEG in every pair of file tile and tile; other codecs at one file tile, aligned and not, on a quarter of the pixels."""
    image = make_tissue(max(chosen.pixels, *TILES))
    side = max(chosen.pixels // 2, *TILES)
    wanted = [("jpeg", piece, tile) for piece in PIECES for tile in TILES]
    wanted += [(codec, 256, tile) for codec in CODECS[1:] for tile in TILES[:2]]
    pictures: dict[tuple[str, int], Picture] = {}
    cases = []
    for codec, piece, tile in wanted:
        if codec in chosen.codecs and piece in chosen.file_tiles and tile in chosen.tiles:
            if (codec, piece) not in pictures:
                pictures[codec, piece] = write_picture(folder, image if codec == "jpeg" else image[:side, :side], codec, piece)
            cases.append(Case(pictures[codec, piece], tile))
    return cases


def choose_contestants(decode: str, *, quiet: bool) -> list[Contestant]:
    """Those that can take part here; the others are named with the reason."""
    chosen = [one for one in CONTESTANTS if decode in ("both", one.decode) or one.name == FLOOR]
    if not quiet and decode != "cpu" and not any(one.decode == "gpu" for one in chosen):
        print("left out: GPU decode: there is no such reader yet")
    taking_part = []
    for one in chosen:
        if why := one.missing():
            if not quiet:
                print(f"left out: {one.name}: {why}")
        else:
            taking_part.append(one)
    return taking_part


def measure_case(case: Case, contestants: list[Contestant], threads: list[int], rounds: int) -> list[Row]:
    """Seconds of every contestant and number of threads, one row each, `rounds` times in turn after one reading that does not count."""
    with ExitStack() as stack:
        runs: list[tuple[str, int, Read]] = []
        for count in threads:
            pool = stack.enter_context(ThreadPoolExecutor(count))
            fitting = [one for one in contestants if case.picture.codec in one.codecs]
            runs += [(one.name, count, stack.enter_context(one.open(case, pool, count))) for one in fitting]
        seconds: dict[tuple[str, int], list[float]] = {(name, count): [] for name, count, _ in runs}
        for number in range(rounds + 1):
            for name, count, read in runs:
                start = time.perf_counter()
                read()
                if number:
                    seconds[name, count].append(time.perf_counter() - start)
    return [_row(case, name, count, seconds, threads[0]) for name, count, _ in runs]


def _row(case: Case, name: str, count: int, seconds: dict[tuple[str, int], list[float]], first: int) -> Row:
    own = seconds[name, count]

    def ratio(over: list[float] | None, *, inverse: bool = False) -> float | None:
        if over is None:
            return None
        return median(b / a if inverse else a / b for a, b in zip(own, over, strict=True))

    return {
        "codec": case.picture.codec,
        "file_tile": case.picture.piece,
        "tile": case.tile,
        "threads": count,
        "reader": name,
        "seconds": own,
        "mpix_per_second": case.pixels / median(own) / 1e6,
        "tiles_per_second": case.tiles / median(own),
        "floor_ratio": ratio(seconds.get((FLOOR, count))),
        "pil_ratio": ratio(seconds.get((PIL, count)), inverse=True),
        "scaling": ratio(seconds[name, first], inverse=True),
    }


def print_speed(rows: list[Row]) -> None:
    """The table, and the spread of our reader's ratios."""
    print(
        f"\n{'codec':<9} {'file':>4} {'tile':>4} {'thr':>3} {'reader':<18} {'MPix/s':>7} {'tiles/s':>8} {'floor':>6} {'PIL':>6} {'scaling':>7}"
    )
    for row in rows:
        floor, pil = (f"{row[key]:.2f}" if row[key] is not None else "-" for key in ("floor_ratio", "pil_ratio"))
        print(
            f"{row['codec']:<9} {row['file_tile']:>4} {row['tile']:>4} {row['threads']:>3} {row['reader']:<18} "
            f"{row['mpix_per_second']:>7.0f} {row['tiles_per_second']:>8.0f} {floor:>6} {pil:>6} {row['scaling']:>7.2f}"
        )
    ours = [row for row in rows if row["reader"] == OURS and row["codec"] == "jpeg" and row["floor_ratio"] is not None]
    for label, aligned in (("aligned", True), ("not aligned", False)):
        found = [row["floor_ratio"] for row in ours if (row["tile"] == row["file_tile"]) == aligned]
        if found:
            print(f"tilestream on JPEG, {label}: {min(found):.2f} to {max(found):.2f} times the floor")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=3, help="times that each reader reads each image")
    parser.add_argument("--pixels", type=int, default=4096, help="side of the images of `speed`, px")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads, also of the floor")
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=CODECS, help="formats of `speed`")
    parser.add_argument("--file-tiles", type=int, nargs="+", choices=PIECES, default=PIECES, help="sides of file tiles of `speed`, px")
    parser.add_argument("--tiles", type=int, nargs="+", choices=TILES, default=TILES, help="sides of tiles of `speed`, px")
    parser.add_argument("--decode", choices=("cpu", "gpu", "both"), default="cpu", help="where contestants of `speed` decode")
    parser.add_argument("--side", type=int, default=16384, help="side of the slide of `program` and `sparse`, px")
    parser.add_argument("--sides", type=int, nargs="+", default=[8192, 16384, 32768], help="sides of the slides of `memory`, px")
    parser.add_argument("--shard-tiles", type=int, default=2048, help="tiles a shard in `program`, `sparse` and `memory`")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, list[Row]]:
    """Measure, print, and return the rows of each section."""
    chosen = parse(arguments)
    told: dict[str, list[Row]] = {}
    if not chosen.json:
        print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {chosen.rounds} rounds")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "speed" in chosen.only:
            contestants = choose_contestants(chosen.decode, quiet=chosen.json)
            cases = make_cases(folder, chosen)
            told["speed"] = [row for case in cases for row in measure_case(case, contestants, chosen.threads, chosen.rounds)]
            if not chosen.json:
                print_speed(told["speed"])
        for section, claim in reading_claims.CLAIMS.items():
            if section in chosen.only:
                try:
                    told[section] = claim.measure(chosen, folder)
                except ImportError as error:  # a machine with no more than the readers need
                    if not chosen.json:
                        print(f"left out: {section}: {error}")
                    continue
                if not chosen.json:
                    claim.show(told[section])
    if chosen.json:
        print(json.dumps(told, indent=1))
    return told


if __name__ == "__main__":
    main()
