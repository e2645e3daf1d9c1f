"""Whether a slide's tiles go through the compiled encoder: settled when the slide begins, by what is ready and what is left to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tilestream.errors import TilestreamError
from tilestream.stages.worker_settings import EncoderFacts, WorkerSettings

COMPILE_SECONDS = 12.0
"""What compiling takes on every worker where nothing of it is kept on disk: 11.4 s for ViT-L on an H100."""

COMPILED_GAIN = 0.1
"""Part of the encoder's time that compiling saves beside a graph of the eager encoder: 0.12 for ViT-S, 0.05 for ViT-L on an H100."""

COMPILER_BYTES = 1024**3
"""Host memory that compiling takes, in the process that does it."""


def compiler_bytes(facts: EncoderFacts, tiles: int, *, auto: bool, alone: bool) -> int:
    """What a worker on a slide of so many tiles may take for compiling: nothing where `auto` does not settle it, or the slide is alone and too short for it."""
    if facts.tile_seconds is None or not auto:
        return 0
    return 0 if alone and tiles * facts.tile_seconds * COMPILED_GAIN <= COMPILE_SECONDS else COMPILER_BYTES


class CompileChoice:
    """Says of each slide that begins whether its tiles go through the compiled encoder; the slide then ends as it began.

    With `compute.compile: auto`, slides begin uncompiled. Once those that are left would gain more than compiling takes, all workers compile
    while they work, and slides that begin after that are compiled. Only a slide that gains twice as much by itself waits for it.

    Parameters
    ----------
    settings : WorkerSettings
        Of the run, settled by its first worker.
    facts : EncoderFacts
        Without `tile_seconds` there is nothing to compile.
    slides : int
        Slides of the run.
    compile_all : callable
        Compiles on every worker, and gives for each why it could not, or "".
    say : callable
        Hears of what could not be compiled.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        facts: EncoderFacts,
        slides: int,
        compile_all: Callable[[], Sequence[str]],
        say: Callable[[str], None],
    ) -> None:
        self.wanted, self.facts, self.slides = settings.compile, facts, slides
        self._compile_all, self._say = compile_all, say
        self._lock = threading.Lock()
        self._seen = self._tiles = 0
        self._compiled: Future[bool] | None = None

    def __call__(self, tiles: int, workers: int) -> bool:
        """Whether a slide of so many tiles begins compiled, on so many workers."""
        seconds = self.facts.tile_seconds
        if seconds is None or self.wanted is not None:
            return seconds is not None and bool(self.wanted)
        gain = seconds * COMPILED_GAIN / workers
        with self._lock:
            self._seen, self._tiles = self._seen + 1, self._tiles + tiles
            left = tiles + max(0, self.slides - self._seen) * self._tiles / self._seen
            if self._compiled is None and left * gain > COMPILE_SECONDS:
                self._compiled = ThreadPoolExecutor(1, "compile").submit(self._compile)
            compiled = self._compiled
        waits = tiles * gain > 2 * COMPILE_SECONDS
        return compiled is not None and (waits or compiled.done()) and compiled.result()

    def _compile(self) -> bool:
        try:
            failed = [why for why in self._compile_all() if why]
        except TilestreamError as error:  # a run that ends, or a cluster that is gone: who works on hears of it elsewhere
            failed = [str(error)]
        for why in dict.fromkeys(failed):
            self._say(why)
        return not failed
