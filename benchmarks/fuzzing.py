"""Cases tried in child processes that may die, hang or grow: what the fuzz drivers share."""

import json
import multiprocessing
import multiprocessing.connection
import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 10.0
LIMIT_BYTES = 1 << 30
LARGEST_FILE = 1 << 28
"""Bytes of a file that a case may write."""

ALLOWED = ("result", "partial", "refused")
"""Outcomes that keep the promise: a result, a result with gaps that are named, an error of ours."""


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


def serve_cases(pipe: Connection, try_case: Callable[[int], str], headroom: int = LIMIT_BYTES) -> None:
    """Try the cases that come through a pipe until there are no more; what a case asks for beyond the headroom is refused by the system."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    held = _status("VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (held + headroom, held + headroom))
    pipe.send(None)
    while (case := pipe.recv()) is not None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of the case
        start = time.process_time()  # of the processor: other work on the machine makes no case slow
        try:
            told = try_case(case)
        except MemoryError:
            told = "too large"
        except Exception:  # noqa: BLE001  # this is what is looked for
            told = traceback.format_exc()
        pipe.send((told, time.process_time() - start, _status("VmHWM")))


def _status(name: str) -> int:
    """Bytes of a line of the process's own status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


class Child:
    """A serving process, replaced when it dies or hangs."""

    def __init__(self, serve: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.serve, self.arguments = serve, arguments
        self.start()

    def start(self) -> None:
        """Start a process and wait until it is ready."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=self.serve, args=(theirs, *self.arguments), daemon=True)
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


def run_cases(serve: Callable[..., None], arguments: tuple[Any, ...], numbers: Iterable[int], processes: int) -> dict[str, Any]:
    """Try cases in processes that `serve(pipe, *arguments)` runs; returns counts by outcome, the extremes, and what was not allowed by case."""
    children = [Child(serve, arguments) for _ in range(processes)]
    cases = iter(numbers)
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
        kind = told if told in (*ALLOWED, "crash", "hang", "too large") else "foreign exception"
        if kind in ALLOWED:
            kind = "hang" if seconds > LIMIT_SECONDS else "too large" if used > LIMIT_BYTES else kind
        if kind == "too large":  # what it holds may stay with it
            child.replace()
        counts[kind] += 1
        if kind not in ALLOWED:
            bad[case] = told
            print(f"case {case}: {kind}: {told.strip().splitlines()[-1][:200]}", file=sys.stderr, flush=True)
        if (case := next(cases, None)) is not None:
            working[child] = case
            child.pipe.send(case)
    for child in children:
        child.process.kill()
        child.process.join()
    return {"outcomes": dict(counts), "slowest_seconds": slowest, "most_mib": most / 2**20, "bad": bad}


def print_found(found: dict[str, Any], *, as_json: bool) -> None:
    """Say what became of the cases."""
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print(
            f"{found['count']} cases, seed {found['seed']}: {found['outcomes']}; "
            f"slowest {found['slowest_seconds']:.1f} s, most memory {found['most_mib']:.0f} MiB"
        )
