"""One answer for a whole slide from its stored rows or its vector, and the share that each tile has in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tilestream.errors import InputError, user_code
from tilestream.models.heads.bags import Bag, BagRows, bag_attention, stream_bag
from tilestream.models.positions import position_unit
from tilestream.stages.clock import Clock
from tilestream.stages.hardware import THREAD_BYTES, one_thread, pick_device
from tilestream.stages.heads.answers import NOT_FINITE, activate
from tilestream.stages.heads.describe import head_for
from tilestream.stages.heads.facts import HeadFacts, asks_for_positions
from tilestream.stages.heads.kind import HeadKind
from tilestream.stages.pinning import check_machine
from tilestream.stages.slide_task import Report, SlideTask, check_stopped
from tilestream.store.heads.columns import head_stage, slide_answer
from tilestream.store.layout import BLOCK_ROWS, BLOCKS_AHEAD, Layout
from tilestream.store.slide_store import SlideStore

WHOLE_COPIES = 4
"""Times that a head which takes no blocks has all rows: as they are read, on the device, and what it makes of them."""


class SlideKind(HeadKind):
    """Heads that answer once for a slide."""

    def units(self, task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
        return 1

    def work(self, task: SlideTask, units: range) -> Report:
        check_machine(task.line.worker)
        return _predict_slide(task, units, pick_device(task.line.worker.device))

    def memory(self, task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
        """Weights, rows in blocks or whole, and the attention of all tiles."""
        dim = max(layout.dim, layout.context_dim)
        rows = layout.tiles * WHOLE_COPIES if not facts.streams else min(layout.tiles, BLOCK_ROWS) * (BLOCKS_AHEAD + 8)
        return THREAD_BYTES + 2 * facts.bytes + rows * dim * 4 + layout.tiles * (3 * 8 + 8 * facts.answer.attention)

    def output(self, task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
        return 4 * (facts.answer.columns + layout.tiles * facts.answer.attention)


@one_thread
@torch.inference_mode()
def _predict_slide(task: SlideTask, units: range, device: torch.device) -> Report:
    facts, store, clock = task.head_facts, task.open_store(), Clock()
    if not store.ledger(head_stage(facts.name)):
        loaded = head_for(facts, device)
        with (
            clock.timed(f"head {facts.name}"),
            user_code(f"heads.{facts.name}.model: {facts.head.model}", task.slide),
        ):
            found = _answer(task, store, loaded.module, device)
        values = activate(found.out.float().cpu()[None], facts.answer)
        failed = found.asked and bool(np.isnan(values).any() or np.isnan(found.shares).any())
        if failed and task.line.fail_tiles:
            raise InputError(f"{task.slide}: head {facts.name}: {NOT_FINITE} (on_error.tile is fail; nan would keep the slide)")
        with clock.timed("write"):
            objects = slide_answer(
                facts.name, values, facts.answer, found.attention(store.layout.tiles) if facts.answer.attention else None
            )
            store.commit_objects(head_stage(facts.name), 0, objects, {"failed": int(failed)})
    return Report(task.slide, units, clock.seconds)


@dataclass(frozen=True)
class _Answered:
    """What a head says of a slide."""

    out: torch.Tensor
    """(outputs,); NaN where there was nothing to ask it of."""
    asked: bool
    """Whether there was something."""
    good: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    """(n,) tiles that have a vector, where shares are kept."""
    shares: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    """(m,) share of each of those."""

    def attention(self, tiles: int) -> NDArray[np.float32]:
        """(n, 1) share of each tile, NaN of those without a vector."""
        found = np.full((tiles, 1), np.nan, np.float32)
        if self.asked:
            found[self.good, 0] = self.shares
        return found


def _answer(task: SlideTask, store: SlideStore, module: nn.Module, device: torch.device) -> _Answered:
    facts = task.head_facts
    nothing = _Answered(torch.full((facts.answer.outputs,), torch.nan), asked=False)
    if facts.head.input == "vector":
        vector = torch.from_numpy(np.asarray(store.array(task.read_by_head)[:], np.float32)).to(device)
        return _Answered(module(vector)[0], asked=True) if torch.isfinite(vector).all() else nothing
    path = task.read_by_head
    if isinstance(module, Bag):
        kept: list[NDArray[np.bool_]] = []
        blocks = partial(_blocks, task, store, path, device, kept)
        out, used, state = stream_bag(module, blocks)
        if not state.weight.numel():
            return nothing
        if not facts.answer.attention:
            return _Answered(out, asked=True)
        del kept[:]
        shares = torch.cat(list(bag_attention(module, used, state, blocks))).cpu().numpy()
        return _Answered(out, True, np.concatenate(kept), shares)
    return _answer_at_once(task, store, module, device) or nothing


def _answer_at_once(task: SlideTask, store: SlideStore, module: nn.Module, device: torch.device) -> _Answered | None:
    """What a head says that takes all rows at once; None where there are none."""
    rows: NDArray[np.float32] = np.concatenate([np.empty((0, store.layout.dim), np.float32), *store.blocks(task.read_by_head)])
    good = np.asarray(np.isfinite(rows).all(axis=1))
    if not good.any():
        return None
    vectors = torch.from_numpy(rows[good]).to(device)
    if asks_for_positions(module):
        places = np.stack(task.read_places(store), axis=1)[good]
        found = module(vectors, positions=torch.from_numpy((places + 0.5) * (task.stride_um or 1.0)).float().to(device))
    else:
        found = module(vectors)
    if not task.head_facts.answer.attention:
        return _Answered((found[0] if isinstance(found, tuple) else found).reshape(-1), asked=True)
    return _Answered(found[0].reshape(-1), True, good, torch.softmax(found[1].double().reshape(-1), dim=0).float().cpu().numpy())


def _blocks(task: SlideTask, store: SlideStore, path: str, device: torch.device, kept: list[NDArray[np.bool_]]) -> Iterator[BagRows]:
    """The rows that there are, with their places, in blocks that do not depend on shards; `kept` hears which of each block those are."""
    row, col = task.read_places(store)
    step = task.stride_um or 1.0
    start = 0
    for block in store.blocks(path):
        check_stopped()
        good = np.asarray(np.isfinite(block).all(axis=1))
        kept.append(good)
        places = slice(start, start + len(block))
        start += len(block)
        if good.any():
            y, x = (torch.from_numpy((index[places][good] + 0.5) * step) for index in (row, col))
            yield BagRows(torch.from_numpy(block[good]).to(device), y, x, position_unit(task.stride_um))
