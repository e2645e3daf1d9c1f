"""From logits to answers, and into the store."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.stages.embed_tiles import ERRORS_A_SHARD
from tilestream.stages.heads.facts import HeadFacts
from tilestream.store.heads.columns import Answer, code_type, head_stage
from tilestream.store.layout import TILES
from tilestream.store.slide_store import SlideStore

NOT_FINITE = "the head's output is not finite"
"""Why a tile that is there has no answer."""


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


def write_answers(store: SlideStore, facts: HeadFacts, unit: int, rows: slice, values: NDArray[np.float32], failed: dict[int, str]) -> None:
    """Commit the answers of a unit; `failed` says by row why tiles that are not NaN already have none, and the store keeps the first of these causes."""
    answer, name = facts.answer, facts.name
    arrays: dict[str, NDArray[np.generic]] = {}
    if "probabilities" in facts.head.save or answer.task != "classification":
        arrays[f"{TILES}/obsm/{name}"] = values
    if answer.task == "classification":
        there = np.asarray(np.isfinite(values).all(axis=1))
        codes = np.where(there, np.argmax(np.where(there[:, None], values, 0), axis=1) + 1, 0)
        arrays[f"{TILES}/obs/{name}/codes"] = codes.astype(code_type(answer))
    causes = {row: failed[row] for row in sorted(failed)[:ERRORS_A_SHARD]}
    store.write_rows(head_stage(name), unit, rows, arrays, {"failed": len(failed), "errors": causes})
