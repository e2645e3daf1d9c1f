"""From logits to answers, and into the store."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.stages.heads.facts import HeadFacts
from tilestream.store.heads.columns import Answer, code_type, head_stage
from tilestream.store.layout import TILES
from tilestream.store.slide_store import SlideStore


def activate(logits: torch.Tensor, answer: Answer) -> NDArray[np.float32]:
    """(n, columns) from (n, outputs): softmax over several logits, sigmoid of a single one, values as they are; NaN where an answer is not finite."""
    if answer.task == "classification":
        if answer.outputs == 1:
            second = torch.sigmoid(logits)
            logits = torch.cat([1 - second, second], dim=1)
        else:
            logits = torch.softmax(logits, dim=1)
    values = logits.numpy().astype(np.float32)
    values[~np.isfinite(values).all(axis=1)] = np.nan
    return values


def write_answers(
    store: SlideStore, facts: HeadFacts, unit: int, rows: slice, values: NDArray[np.float32], failed: dict[int, str] | None = None
) -> None:
    """Commit the answers of a unit; `failed` says why tiles failed that the head read itself, by row."""
    answer, name = facts.answer, facts.name
    arrays: dict[str, NDArray[np.generic]] = {}
    if "probabilities" in facts.head.save or answer.task != "classification":
        arrays[f"{TILES}/obsm/{name}"] = values
    if answer.task == "classification":
        there = np.asarray(np.isfinite(values).all(axis=1))
        codes = np.where(there, np.argmax(np.where(there[:, None], values, 0), axis=1) + 1, 0)
        arrays[f"{TILES}/obs/{name}/codes"] = codes.astype(code_type(answer))
    told = {} if failed is None else {"failed": len(failed), "errors": failed}
    store.write_rows(head_stage(name), unit, rows, arrays, told)
