"""Heads of slides: what bags with a known signal teach them, and the same bytes from the same seed."""

import numpy as np
import pytest
import torch

import tilestream
from tests.support.stores import make_store
from tilestream.errors import ConfigError
from tilestream.fitting.metrics import auroc, c_index
from tilestream.fitting.targets import Cases
from tilestream.fitting.training.bags import BAG, PART, Bags
from tilestream.fitting.training.features import pool_slides
from tilestream.fitting.training.inner import softmax
from tilestream.fitting.training.slide_models import SETTINGS, predict_slides, train_slides

SLIDES, SIDE, DIM = 48, 10, 8


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Slides of which each second has a tenth of its tiles shifted; the shift's size is the number to be predicted."""
    folder = tmp_path_factory.mktemp("embeddings")
    chance = np.random.default_rng(0)
    slides, amount = [], chance.uniform(1, 4, SLIDES) * (np.arange(SLIDES) % 2)
    for i in range(SLIDES):
        make_store(folder / f"s{i}.zarr", SIDE, SIDE, dim=DIM, fingerprint=f"image{i}", failed=(3,))
        slide = tilestream.open(folder / f"s{i}.zarr")
        x = chance.normal(size=(SIDE * SIDE, DIM)).astype(np.float32) + 3
        x[:10, 2] += amount[i] * 2
        x[3] = np.nan
        slide.vectors = lambda what=None, x=x: Held(x)
        slides.append(slide)
    return slides, amount


class Held:
    """Rows that stand in for an array of a store; what reads stores has tests of its own."""

    def __init__(self, x):
        self.x, self.shape, self.dtype, self.chunks = x, x.shape, x.dtype, (16, x.shape[1])
        self.metadata = None

    def __getitem__(self, key):
        return self.x[key]


@pytest.fixture(autouse=True)
def plain_reading(monkeypatch):
    monkeypatch.setattr("tilestream.fitting.training.features.chunk_reader", lambda array: None)


def cases_of(slides, task, label=None, value=None, died=None):
    n = len(slides)
    return Cases(
        tuple(slides), tuple(slide.id for slide in slides), False, np.arange(n), np.arange(n) // 2 % 4, task, ("no", "yes") if task == "classes" else (),
        np.full(n, -1) if label is None else label, np.full(n, np.nan) if value is None else value, np.zeros(n, bool) if died is None else died, (),
    )  # fmt: skip


def held_out(model, cases, **args):
    bags = Bags(cases.slides, "tiles", 2**30, positions=model == "transformer")
    pooled = pool_slides(cases.slides, "tiles", model) if model in ("mean", "max") else None
    train = cases.fold != 0
    bag, _ = train_slides(model, cases, train, pooled, bags, args, 0)
    test = np.flatnonzero(~train)
    return bag, predict_slides(bag, bags, test.tolist()), test


@pytest.mark.parametrize("model", ["mean", "max", "abmil"])
def test_a_signal_in_some_tiles_is_found(cohort, model):
    slides, amount = cohort
    label = (amount > 0).astype(int)
    _, answers, test = held_out(model, cases_of(slides, "classes", label))
    probability = softmax(answers)[:, 1]
    assert auroc(label[test] == 1, probability, np.ones(len(test))) > 0.9


@pytest.mark.parametrize("model", ["mean", "max"])
def test_numbers_and_risks_are_predicted(cohort, model):
    slides, amount = cohort
    _, answers, test = held_out(model, cases_of(slides, "regression", value=amount * 100 + 7))
    assert np.corrcoef(answers[:, 0], amount[test])[0, 1] > 0.8
    time = np.exp(-amount) * np.random.default_rng(1).uniform(0.9, 1.1, SLIDES)
    died = np.arange(SLIDES) % 5 != 0
    _, risks, test = held_out(model, cases_of(slides, "survival", value=time, died=died))
    assert c_index(time[test], died[test], risks[:, 0], np.ones(len(test))) > 0.75


@pytest.mark.parametrize("task", ["regression", "survival"])
def test_attention_learns_numbers_and_risks(cohort, task):
    slides, amount = cohort
    value, died = (amount * 10 + 5, None) if task == "regression" else (np.exp(-amount), np.ones(SLIDES, bool))
    _, answers, test = held_out("abmil", cases_of(slides, task, value=value, died=died), epochs=20)
    assert np.corrcoef(answers[:, 0], amount[test])[0, 1] > 0.6
    if task == "survival":  # 0 is the mean of those that were learned from, or heads could not be set side by side
        assert abs(answers.mean()) < answers.std()
    if task == "regression":
        assert np.abs(answers[:, 0] - value[test]).mean() < np.abs(value - value.mean()).mean()


@pytest.mark.parametrize("model", list(SETTINGS))
def test_the_same_seed_gives_the_same_bytes(cohort, model):
    slides, amount = cohort
    cases = cases_of(slides[:16], "classes", (amount[:16] > 0).astype(int))
    args = {"epochs": 2} if model in ("abmil", "transformer") else {}
    first, second = (held_out(model, cases, **args)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_is_held_in_memory_changes_no_bag(cohort):
    slides, _ = cohort
    size = 99 * DIM * 4  # good tiles of a slide
    drawn = []
    for held in ((), (1, 0), (2, 1, 0)):
        bags = Bags(slides[:3], "tiles", int(2.5 * size))
        assert not bags.in_memory
        bags.hold(held)
        rounds = [
            rows.x
            for _ in range(2)
            for rows in (*bags.draw([0, 1, 2], np.random.default_rng(5)), *(rows for _, rows in bags.whole([0, 1, 2])))
        ]
        drawn.append(torch.cat(rounds))
        assert sum(array.nbytes for array in bags._held.values()) <= 2.5 * size
        assert set(bags._held) == set(held[:2])
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_bags_hold_good_tiles_at_their_places(cohort):
    slides, _ = cohort
    chance = np.random.default_rng(0)
    for limit in (2**30, 1):
        bags = Bags(slides[:3], "tiles", limit, positions=True)
        assert bags.in_memory == (limit > 1)
        for i in range(3):
            good = bags.good(i)
            drawn, again = (next(bags.draw([i], chance)) for _ in range(2))
            assert len(drawn.x) == min(BAG, -(-len(good) // PART))
            assert not torch.equal(drawn.x, again.x)
            x = slides[i].vectors().x
            step = 224 * 0.25
            for rows in (drawn, *(rows for _, rows in bags.whole([i]))):
                row = np.rint(rows.y_um.numpy() / step - 0.5).astype(int) * SIDE + np.rint(rows.x_um.numpy() / step - 0.5).astype(int)
                np.testing.assert_array_equal(rows.x.numpy(), x[row])
                assert set(row.tolist()) <= set(good.tolist())
            assert len(row) == len(good)


def test_a_width_that_cannot_be_is_refused_by_the_key_of_the_config(cohort):
    slides, amount = cohort
    cases = cases_of(slides[:8], "classes", (amount[:8] > 0).astype(int))
    with pytest.raises(ConfigError, match=r"head\.args: width is 30, but it must be a multiple of 4 and of heads, 4"):
        train_slides("transformer", cases, np.ones(8, bool), None, Bags(slides[:8], "tiles", 2**20, positions=True), {"width": 30}, 0)
