"""Which of the jobs that share one output this process is."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tilestream.errors import ConfigError


def job_of(text: str | None) -> tuple[int, int] | None:
    """`i/n`; where it is not given, or `auto`, the place of this task in a SLURM job array; None outside of one."""
    if text == "auto" or (text is None and "SLURM_ARRAY_TASK_ID" in os.environ):
        return _job_from_array(os.environ)
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"--shard: {text!r} is not I/N with 0 <= I < N, e.g. 0/8.")
    return int(index), int(count)


def _job_from_array(environment: Mapping[str, str]) -> tuple[int, int]:
    """The place of this task among those of its job array, whose numbers may start anywhere and go in steps."""
    task, count, first, last, step = (
        environment.get(f"SLURM_ARRAY_TASK_{name}", default) for name, default in (("ID", ""), ("COUNT", ""), ("MIN", "0"), ("MAX", ""), ("STEP", "1"))
    )  # fmt: skip
    try:
        index, odd = divmod(int(task) - int(first), int(step))
        last_index = int(count) - 1 if last == "" else (int(last) - int(first)) // int(step)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            "--shard auto needs SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT; write --shard 0/8, or --shard 0/1 for all slides."
        ) from error
    if odd or last_index != int(count) - 1 or not 0 <= index < int(count):
        raise ConfigError(
            f"--shard: task {task} of an array of {count} tasks from {first} to {last} in steps of {step} has no place among them. "
            "Number the tasks 0 to N-1, or write --shard I/N."
        )
    return index, int(count)
