"""Which patients are held out together: folds by patient or by site, stratified, drawn from a seed, or given."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError

Ints = NDArray[np.int64]


def join_groups(*keys: Sequence[Hashable]) -> Ints:
    """(n,) number of each sample's group: samples that share a value of any of the keys are in one, directly or through others.

    With patients and sites as keys, a patient seen at two sites joins these.
    """
    parent = list(range(len(keys[0])))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for key in keys:
        first: dict[Hashable, int] = {}
        for i, value in enumerate(key):
            parent[root(i)] = root(first.setdefault(value, i))
    roots = [root(i) for i in range(len(parent))]
    numbers = {found: k for k, found in enumerate(dict.fromkeys(roots))}
    return np.array([numbers[found] for found in roots], np.int64)


def draw_folds(groups: Ints, strata: Ints, folds: int, seed: int) -> Ints:
    """(n,) fold of each sample, 0 to folds - 1: a group lies in one fold, and the strata are shared out as evenly as that allows.

    Groups are dealt one by one, the most lopsided first, of equals the largest, then in an order drawn from the seed, each to the fold in which the counts
    of its strata, as shares of all there are, are smallest.

    Raises
    ------
    InputError
        There are fewer groups than folds.
    """
    count = int(groups.max()) + 1
    if count < folds:
        raise InputError(
            f"split.folds: {folds}, but there {'is' if count == 1 else 'are'} only {count} patient{'' if count == 1 else 's'} (or sites, or slides where no patients are "
            f"known) with labels. {f'Ask for at most {count} folds' if count > 1 else 'Label slides of others'}."
        )
    table = np.zeros((count, int(strata.max()) + 1))
    np.add.at(table, (groups, strata), 1)
    share = table / np.maximum(table.sum(axis=0), 1)
    tie = np.random.default_rng(seed).random(count)
    held, taken = np.zeros((folds, table.shape[1])), np.zeros(folds)
    fold = np.zeros(count, np.int64)
    for group in np.lexsort((tie, -share.sum(axis=1), -share.max(axis=1))):
        here = share[group] > 0
        # Evenly by strata; of folds that are as even, the one with the fewest groups, then the first.
        load = [(round(float(held[k, here].sum()), 12), taken[k], k) for k in range(folds)]
        best = min(load)[2]
        held[best] += share[group]
        taken[best] += 1
        fold[group] = best
    return fold[groups]


TRAIN, VALIDATE, TEST = (
    frozenset({"train", "training"}),
    frozenset({"val", "valid", "validate", "validation"}),
    frozenset({"test", "testing"}),
)
"""What a column of one split says, as Patho-Bench's fold_0 does; case ignored."""


def given_folds(marks: Sequence[str], groups: Ints, names: Sequence[str]) -> Ints:
    """(n,) fold of each sample from what a table says, numbered in the order of the sorted marks.

    Where the marks are train and test (and val), test is fold 0 and all else is -1: trained on, and never tested. Without test, val is.

    Raises
    ------
    InputError
        A patient lies in two folds, which would tell the test of what was trained on; or there is one fold only.
    """
    marks = [mark.casefold() for mark in marks]
    order = {mark: k for k, mark in enumerate(sorted(set(marks)))}
    if order.keys() <= TRAIN | VALIDATE | TEST:
        tested = TEST if order.keys() & TEST else VALIDATE
        order = {mark: 0 if mark in tested else -1 for mark in order}
    fold = np.array([order[mark] for mark in marks], np.int64)
    if len(order) < 2:
        raise InputError(f"split.column: every sample has the fold {next(iter(order))!r}, but it takes two or more.")
    first: dict[int, int] = {}
    for i, group in enumerate(groups.tolist()):
        if fold[first.setdefault(group, i)] != fold[i]:
            raise InputError(
                f"split.column: {names[first[group]]} and {names[i]} are of one patient, or show one image, but lie in the folds "
                f"{marks[first[group]]!r} and {marks[i]!r}: what is tested would have been trained on. Put them into one."
            )
    return fold
