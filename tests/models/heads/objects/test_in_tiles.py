"""Objects are counted in every tile that their middle lies in, borders once."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tilestream.models.heads.objects.in_tiles import TilePlaces, count_in_tiles


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([50.0, 33.3]))
def test_counts_are_those_of_every_pair_looked_at(seed, extent):
    rng = np.random.default_rng(seed)
    y, x = np.sort(rng.integers(0, 300, 40)), rng.integers(0, 300, 40)
    points = np.concatenate([rng.uniform(0, 350, (60, 2)), np.stack([y, x], axis=1) + rng.choice([0.0, extent], (40, 2))])
    classes = rng.integers(0, 3, 100)
    counts = np.zeros((40, 3), np.float32)
    count_in_tiles(TilePlaces(y, x, extent), points, classes, counts)
    inside = [[y[t] <= py < y[t] + extent and x[t] <= px < x[t] + extent for t in range(40)] for py, px in points]
    wanted = np.zeros((40, 3))
    for point, tiles in enumerate(inside):
        wanted[np.flatnonzero(tiles), classes[point]] += 1
    assert (counts == wanted).all()
    assert (TilePlaces(y, x, extent).holds(points) == np.any(inside, axis=1)).all()


def test_no_objects_and_no_tiles():
    none = TilePlaces(np.empty(0, np.int64), np.empty(0, np.int64), 10.0)
    assert none.holds(np.array([[1.0, 2.0]])).tolist() == [False]
    assert none.holds(np.empty((0, 2))).tolist() == []
