"""The sections `compute` and `on_error` of a config: where work is done, and what happens when an input is bad."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_serializer

from tilestream.config.types import (
    Arguments,
    AutoCount,
    AutoSwitch,
    Bytes,
    Count,
    Device,
    LocalPath,
    Positive,
    Section,
    Switch,
    ValueRefusedError,
    yaml_word,
)  # fmt: skip


class Adapt(Section):
    """How many workers a cluster has that starts and stops them by the work there is."""

    section: ClassVar[str] = "compute.scheduler.adapt."

    minimum: Count = 1
    """Workers that it keeps."""
    maximum: Count
    """Workers that it starts at most."""


class SchedulerSpec(Section):
    """Where tasks run."""

    section: ClassVar[str] = "compute.scheduler."

    address: str | None = None
    """URL of a running scheduler."""
    path: LocalPath | None = None
    """The file that `dask scheduler --scheduler-file` wrote."""
    cls: Annotated[str, Field(pattern=r"^\w+(\.\w+)+$")] | None = Field(default=None, alias="class")
    """Dotted name of a cluster class, e.g. `dask_jobqueue.SLURMCluster`."""
    args: Arguments = Field(default_factory=dict)
    """Keyword arguments of the class."""
    adapt: Adapt | None = None
    """Whether its workers follow the work that there is, and within which numbers."""
    kind: Literal["inline", "local", "address", "file", "class"]
    """In this process; on this machine; a running scheduler by address or by file; a cluster class of dask."""

    def stays_here(self, workers: int | str) -> bool:
        """Whether a machine with one device does all of it in the process that asked for it."""
        return self.kind == "inline" or (self.kind == "local" and workers == "auto")

    @classmethod
    def written_out(cls, data: Any) -> Any:
        """The kind from `inline`, `local`, `tcp://host:8786`, `file:scheduler.json` or `{class: ..., args: ...}`."""
        if isinstance(data, str):
            if data in ("inline", "local"):
                return {"kind": data}
            if re.fullmatch(r"(tcp|tls)://[^\s/]+:\d+", data):
                return {"kind": "address", "address": data}
            if data.startswith("file:") and data != "file:":
                return {"kind": "file", "path": data.removeprefix("file:")}
        elif isinstance(data, Mapping) and ("kind" in data or data.get("class") is not None):
            return data if "kind" in data else {**data, "kind": "class"}
        raise ValueRefusedError(
            f"{yaml_word(data)} is not one of inline, local, tcp://host:8786, tls://host:8786, file:scheduler.json, "
            "{class: dask_jobqueue.SLURMCluster, args: {...}}"
        )

    @field_validator("kind")
    @classmethod
    def _check_kind(cls, kind: str, info: ValidationInfo) -> str:
        needed = {"address": "address", "file": "path", "class": "cls"}.get(kind)
        given = {key for key in ("address", "path", "cls") if info.data.get(key) is not None}
        if (needed is None or needed in info.data) and given != ({needed} if needed else set()):
            raise ValueRefusedError(f"{kind} goes with {needed or 'nothing else'}, but given is {', '.join(sorted(given)) or 'nothing'}")
        return kind

    @model_serializer
    def _short(self) -> Any:
        if self.kind == "class":
            return {"class": self.cls, "args": self.args} | ({} if self.adapt is None else {"adapt": self.adapt.model_dump()})
        return self.address or (f"file:{self.path}" if self.path else self.kind)


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
    wait: Positive | None = None
    """Seconds that a run waits for a worker of a cluster where none is there, at the start or later; null waits as long as it takes."""


class OnError(Section):
    """What happens when an input is bad."""

    section: ClassVar[str] = "on_error."

    slide: Literal["skip", "fail"] = "skip"
    """A slide that is refused is left out and listed, or ends the run."""
    tile: Literal["nan", "fail"] = "nan"
    """A tile that cannot be read keeps its row with NaN, or ends its slide."""
