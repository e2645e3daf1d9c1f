"""Claim: a cohort is done by hosts that share nothing but a network, and ends equal to a local run whichever of them goes away.

    python -m benchmarks.bench_fleet [--slides 1000] [--side 1024] [--latency 0.0] [--faulted 60] [--scenarios calm host ...] [--away 20] [--json]

Network namespaces stand for hosts: an object store that counts what is asked of it, a Dask scheduler, two worker hosts with one worker each, and a client
that runs the command. They share this machine's cores, disk and clock; the wire between them is not slowed, `--latency` is what the store waits before each
answer. Slides are samples whose file tiles lie in an order of their own, so that no two hold the same rows; slides and output lie in buckets. Needs root.

calm        nobody goes away.                host      a worker's host loses power: its link goes down, then its processes end.
store       the store's process is stopped for `--away` seconds.         link      the store's link is down so long.
apart       a worker's host is parted from all others so long, and comes back.
split       client and scheduler are parted from workers and store so long, and come back.
client      the command is killed.           lost      the scheduler's host loses power, and another one takes its place.

`calm` takes `--slides`, the others `--faulted` of them. Where the command ends with 5 it is given once more. Each output is then compared with that of a local
run by zarr alone: every slide there once, rows, places, status, vectors.

tiles/s     from the first slide that is finished to the last.  requests, bytes   a tile, of the slides and of the output.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tilestream
from tests.support.fleet import CLIENT, SCHEDULER, STORE, WORKERS, Fleet, fleet, make_slides
from tests.support.hosts import until

Row = dict[str, Any]
TILES = {"size": 128, "level": 0, "tissue": "none"}
ENCODER = "benchmarks.encoders:mean_rgb"


def switch_off_worker(cluster: Fleet, away: float) -> None:  # noqa: ARG001
    """One worker's host goes, for good."""
    cluster.hosts.switch_off(WORKERS[0])


def stop_store(cluster: Fleet, away: float) -> None:
    """The store answers nothing for a while."""
    cluster.hosts.signal(STORE, signal.SIGSTOP)
    time.sleep(away)
    cluster.hosts.signal(STORE, signal.SIGCONT)


def cut_store(cluster: Fleet, away: float) -> None:
    """The store cannot be reached for a while."""
    cluster.hosts.cut_off(STORE)
    time.sleep(away)
    cluster.hosts.join(STORE)


def part_worker(cluster: Fleet, away: float) -> None:
    """One worker's host reaches nobody for a while."""
    cluster.hosts.part(WORKERS[0])
    time.sleep(away)
    cluster.hosts.join(WORKERS[0])


def split(cluster: Fleet, away: float) -> None:
    """Two halves of the network do not reach each other for a while."""
    cluster.hosts.part(CLIENT, SCHEDULER)
    time.sleep(away)
    for name in (CLIENT, SCHEDULER):
        cluster.hosts.join(name)


def kill_client(cluster: Fleet, away: float) -> None:  # noqa: ARG001
    """The command is killed."""
    cluster.hosts.kill(CLIENT)


def lose_scheduler(cluster: Fleet, away: float) -> None:  # noqa: ARG001
    """The scheduler's host goes, and another one is put in its place, with workers of its own."""
    cluster.hosts.switch_off(SCHEDULER)


SCENARIOS: dict[str, Callable[[Fleet, float], None] | None] = {
    "calm": None, "host": switch_off_worker, "store": stop_store, "link": cut_store, "apart": part_worker, "split": split, "client": kill_client,
    "lost": lose_scheduler,
}  # fmt: skip


def mend(cluster: Fleet) -> None:
    """All hosts are there again, each with its processes."""
    for name in (STORE, SCHEDULER, CLIENT, *WORKERS):
        cluster.hosts.join(name)
    if not cluster.hosts.pids(SCHEDULER):
        cluster.start_scheduler()
        for name in WORKERS:  # they are another scheduler's
            cluster.hosts.kill(name)
    for name in WORKERS:
        if not cluster.hosts.pids(name):
            cluster.start_worker(name)


def measure(cluster: Fleet, name: str, slides: int, away: float, local: Path) -> Row:
    """One scenario, to the end of the command."""
    cluster.counts()
    given = {"slides": [f"s3://slides/s{number:05}.svs" for number in range(slides)], "tiles": TILES, "encoder": ENCODER}
    fault, codes = SCENARIOS[name], []
    process = cluster.run(name, **given)
    until(lambda: cluster.finished(name) or process.poll() is not None, "a first slide", 300)
    began, before = time.perf_counter(), cluster.finished(name)
    if fault is not None:
        until(lambda: cluster.finished(name) >= slides // 4 or process.poll() is not None, "a quarter of the slides", 300)
        fault(cluster, away)
    codes.append(process.wait(1800))
    words = cluster.words.read_text()
    if codes[-1] != 0:
        mend(cluster)
        process = cluster.run(name, **given)
        codes.append(process.wait(1800))
    seconds = time.perf_counter() - began
    counts = cluster.counts()
    tiles = slides * 64 * (cluster.side // 1024) ** 2
    asked = {
        bucket: [sum(found[what] for found in counts.get(bucket, {}).values()) for what in ("requests", "bytes")]
        for bucket in ("slides", "out")
    }
    different = cluster.differences(name, local)
    mend(cluster)
    return {
        "scenario": name, "slides": slides, "seconds": seconds, "tiles_per_second": tiles * (1 - before / slides) / seconds, "exit_codes": codes,
        **{f"{bucket}_{what}": count / tiles for bucket, found in asked.items() for what, count in zip(("requests", "bytes"), found, strict=True)},
        "requests_a_slide": sum(found[0] for found in asked.values()) / slides, "different": different, "words": [line for line in words.splitlines() if " done, " not in line and " tiles, read " not in line],
    }  # fmt: skip


def local_run(slides: list[Path], output: Path) -> float:
    """Do them on this machine; seconds that took."""
    summary = tilestream.run({
        "slides": [str(path) for path in slides], "output": {"path": str(output), "save": ["tiles", "slide"]}, "tiles": TILES, "encoder": ENCODER, "pool": "mean",
        "compute": {"scheduler": "inline"},
    })  # fmt: skip
    assert summary.exit_code == 0, "a local run has nothing in its way"
    return summary.seconds


def show(row: Row) -> None:
    """A row of the table."""
    codes, good = ", ".join(map(str, row["exit_codes"])), "equal" if not row["different"] else f"{len(row['different'])} differences"
    print(
        f"{row['scenario']:<8} {row['slides']:>6} {row['seconds']:>7.0f} {row['tiles_per_second']:>7.0f} {row['slides_requests']:>8.2f} {row['out_requests']:>7.2f} "
        f"{row['slides_bytes'] / 1024:>9.1f} {row['out_bytes'] / 1024:>9.1f}  {codes:<6} {good}", flush=True,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--side", type=int, default=1024, help="side of a slide, px, a multiple of 1024")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer of the store")
    parser.add_argument("--faulted", type=int, default=60, help="slides of each run in which somebody goes away")
    parser.add_argument("--away", type=float, default=20.0, help="seconds for which somebody goes away who comes back")
    parser.add_argument("--scenarios", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # hosts are taken away on the way out
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        most = max(chosen.slides if scenario == "calm" else chosen.faulted for scenario in chosen.scenarios)
        make_slides(place / "slides", most, chosen.side)
        paths = sorted((place / "slides").iterdir())
        local = {count: place / f"local{count}" for count in {chosen.slides, chosen.faulted}}
        for count, output in local.items():
            if count <= most:
                print(f"{count} slides on this machine alone: {local_run(paths[:count], output):.0f} s", flush=True)
        with fleet(place, place / "slides", chosen.latency) as cluster:
            cluster.side = chosen.side
            print(
                f"{'scenario':<8} {'slides':>6} {'s':>7} {'tiles/s':>7} {'requests':>8} {'output':>7} {'KiB':>9} {'output':>9}  exit   rows, per tile; as a local run's"
            )
            for scenario in chosen.scenarios:
                count = chosen.slides if scenario == "calm" else chosen.faulted
                rows.append(measure(cluster, scenario, count, chosen.away, local[count]))
                show(rows[-1])
    if chosen.json:
        print(json.dumps(rows, indent=1))
    return rows


if __name__ == "__main__":
    main()
