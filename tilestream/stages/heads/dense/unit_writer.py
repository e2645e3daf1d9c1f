"""Units of a head that segments, written by a thread of its own while the next one is computed."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import torch

from tilestream.stages.clock import Clock
from tilestream.stages.heads.dense.unit_image import UnitImage
from tilestream.stages.prefetch import side_stream
from tilestream.store.heads.labels import LabelImage, write_unit
from tilestream.store.slide_store import SlideStore


class UnitWriter:
    """Writes and commits units in the order in which they are given.

    Memory bound: one unit in work; whoever gives another one waits for it.
    """

    def __init__(self, store: SlideStore, image: LabelImage, clock: Clock) -> None:
        self.store, self.image, self.clock = store, image, clock
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="labels")
        self._in_work: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._pool.shutdown()

    def write(self, unit: UnitImage, told: dict[str, Any]) -> None:
        """Write a unit that nothing more is added to; an error of the one before is raised here."""
        self._wait()
        computed = torch.cuda.current_stream(unit.device).record_event() if unit.device.type == "cuda" else None
        self._in_work = self._pool.submit(self._write, unit, told, computed)

    def _wait(self) -> None:
        if self._in_work is not None:
            with self.clock.timed("wait for writing"):
                self._in_work.result()
            self._in_work = None

    @torch.inference_mode()
    def _write(self, unit: UnitImage, told: dict[str, Any], computed: torch.cuda.Event | None) -> None:
        with self.clock.timed("write"):
            with side_stream(unit.device) as stream:  # so that not what is computed meanwhile is waited for
                if stream is not None and computed is not None:
                    stream.wait_event(computed)
                blocks, likely = unit.blocks()
            write_unit(self.store, self.image, unit.unit, blocks, likely, told)
