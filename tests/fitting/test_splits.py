"""Folds: nobody on both sides, strata shared out, the same from the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilestream.errors import InputError
from tilestream.fitting.splits import draw_folds, given_folds, join_groups


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=40))
def test_groups_are_the_connected_parts(pairs):
    patients, sites = zip(*pairs, strict=True)
    found = join_groups(patients, sites)
    # An oracle by powers of the adjacency.
    n = len(pairs)
    linked = np.array([[patients[i] == patients[j] or sites[i] == sites[j] for j in range(n)] for i in range(n)])
    for _ in range(6):
        linked = (linked.astype(int) @ linked.astype(int)) > 0
    np.testing.assert_array_equal(found[:, None] == found, linked)
    assert set(found.tolist()) == set(range(found.max() + 1))


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 2)), min_size=20, max_size=80), st.integers(0, 5))
def test_a_patient_lies_in_one_fold_and_a_seed_gives_the_same_folds(pairs, seed):
    groups = join_groups([patient for patient, _ in pairs])
    strata = np.array([label for _, label in pairs])
    folds = min(3, groups.max() + 1)
    if folds < 2:
        return
    fold = draw_folds(groups, strata, folds, seed)
    for group in range(groups.max() + 1):
        assert len(set(fold[groups == group].tolist())) == 1
    assert set(fold.tolist()) == set(range(folds))
    np.testing.assert_array_equal(fold, draw_folds(groups, strata, folds, seed))


def test_classes_are_shared_out():
    chance = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 2)
    strata = np.repeat((chance.random(60) < 0.2).astype(int), 2)
    for seed in range(10):
        fold = draw_folds(groups, strata, 5, seed)
        share = [(strata[fold == k] == 1).sum() for k in range(5)]
        assert max(share) - min(share) <= 2  # one patient of two slides
        assert {int((fold == k).sum()) for k in range(5)} <= {22, 24, 26}


def test_a_patient_of_both_classes_is_dealt_before_those_of_one():
    """Patients {a, b}, {a}, {b}: only the first against the two others has both classes on both sides."""
    for seed in range(20):
        fold = draw_folds(np.array([0, 0, 1, 2]), np.array([0, 1, 0, 1]), 2, seed)
        assert (fold[0] != fold[2], fold[2] == fold[3]) == (True, True)


def test_seeds_differ():
    groups, strata = np.arange(40), np.arange(40) % 2
    assert (draw_folds(groups, strata, 4, 0) != draw_folds(groups, strata, 4, 1)).any()


def test_more_folds_than_patients_are_refused():
    with pytest.raises(InputError, match=r"split\.folds: 5, but there are only 3 patients"):
        draw_folds(np.array([0, 1, 2, 2]), np.zeros(4, int), 5, 0)


def test_given_folds_are_numbered_in_order_and_a_leak_is_refused():
    groups, names = np.array([0, 1, 1, 2]), ["a", "b", "c", "d"]
    np.testing.assert_array_equal(given_folds(["2", "1", "1", "2"], groups, names), [1, 0, 0, 1])
    with pytest.raises(InputError, match="b and c are of one patient, or show one image, but lie in the folds '1' and '2'"):
        given_folds(["2", "1", "2", "2"], groups, names)
    with pytest.raises(InputError, match="every sample has the fold '1'"):
        given_folds(["1"] * 4, groups, names)


@pytest.mark.parametrize(
    ("marks", "folds"),
    [
        (["train", "test", "val", "train"], [-1, 0, -1, -1]),
        (["Train", "Test", "Validation", "TRAIN"], [-1, 0, -1, -1]),
        (["training", "testing", "training", "Testing"], [-1, 0, -1, 0]),
        (["train", "val", "train", "Valid"], [-1, 0, -1, 0]),
        (["train", "other", "train", "test"], [2, 0, 2, 1]),
    ],
)
def test_words_of_one_split_are_known_however_they_are_written(marks, folds):
    np.testing.assert_array_equal(given_folds(marks, np.arange(4), list("abcd")), folds)
