"""The sections `compute` and `on_error` of a config: where work is done, and what happens when an input is bad."""

from __future__ import annotations

from typing import ClassVar, Literal

from tilestream.config.types import AutoCount, AutoSwitch, Bytes, Count, Device, SchedulerSpec, Section, Switch


class Compute(Section):
    """Where the work is done, and how much of it at once."""

    section: ClassVar[str] = "compute."

    device: Device = "auto"
    """Where models run: auto (the first CUDA device where there is one), cpu, cuda, or cuda:N."""
    scheduler: SchedulerSpec = SchedulerSpec(kind="local")
    """Where tasks run."""
    workers: AutoCount = "auto"
    """Worker processes that are started; auto is one a GPU, and none where one worker is enough: it is the process of the run."""
    threads: AutoCount = "auto"
    """Decode threads a worker."""
    batch_size: AutoCount = "auto"
    """Tiles that the encoder gets at once."""
    shard_tiles: Count = 2048
    """Tiles of one task and of one stored object: what is done, committed and resumed as a whole."""
    memory_limit: Bytes = 4 * 2**30
    """Memory of one worker, in bytes; the plan refuses what does not fit. Also written as 4GiB or 500 MB."""
    compile: AutoSwitch = "auto"
    """Whether the encoder is compiled on CUDA; auto begins without, and compiles for later slides where that pays. Each store says it: `compiled`."""
    isolate: Switch = False
    """Whether pixels are decoded in a child process that may hang or die."""


class OnError(Section):
    """What happens when an input is bad."""

    section: ClassVar[str] = "on_error."

    slide: Literal["skip", "fail"] = "skip"
    """A slide that is refused is left out and listed, or ends the run."""
    tile: Literal["nan", "fail"] = "nan"
    """A tile that cannot be read keeps its row with NaN, or ends its slide."""
