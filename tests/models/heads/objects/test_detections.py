"""Whatever form a detector's outputs have, patches get their own objects."""

import numpy as np
import pytest
import torch

from tests.models.heads.objects.test_instances import PLACES, SIDE, discs, maps_of
from tilestream.models.heads.objects.detections import find_objects, is_finite, split_outputs


def hover_outputs(border=0):
    truth = discs(PLACES)
    nucleus, hv, flow = maps_of(truth, PLACES)
    both = np.stack([-10 * (nucleus - 0.5), 10 * (nucleus - 0.5)])
    kinds = np.stack([np.where(truth == 0, 5, 0), np.where(truth % 2 == 0, 3, 0), np.where(truth % 2 == 1, 3, 0)]) * 1.0
    inner = np.s_[..., border : SIDE - border, border : SIDE - border]
    return {"np": both[inner], "hv": hv[inner], "tp": kinds[inner]}, {
        "inside": both[1:][inner],
        "flow": flow[inner],
        "tp": kinds[1:][inner],
    }


@pytest.mark.parametrize("border", [0, 10])
@pytest.mark.parametrize("form", [0, 1])
def test_maps_of_a_batch_become_objects_of_its_patches(form, border):
    maps = hover_outputs(border)[form]
    batch = {name: torch.from_numpy(np.stack([values, np.zeros_like(values)])) for name, values in maps.items()}
    batch["np" if form == 0 else "inside"][1, -1] = -9.0  # nothing in the second
    parts = split_outputs(batch, 2)
    first, second = (find_objects(part, 2, SIDE) for part in parts)
    assert len(second) == 0
    assert sorted(first.classes.tolist()) == [0] * 4 + [1] * 4
    found = np.sort(np.round(first.centres).astype(int), axis=0)
    assert np.abs(found - np.sort(np.array(PLACES), axis=0)).max() <= 2


def test_a_detector_may_finish_its_outputs_itself():
    parts = split_outputs(torch.arange(6.0).reshape(2, 3), 2)
    objects = find_objects(parts[1], 1, 10, lambda values: (np.array([[0, 0, values[0], values[1]]]), [1.0], [0]))
    assert objects.boxes.tolist() == [[0, 0, 3, 4]]


@pytest.mark.parametrize(
    ("out", "words"),
    [(torch.zeros(3, 1), "3 parts for 2 patches"), (7, "int for 2 patches"), ({"np": torch.zeros(3, 2, 4, 4)}, "np is .* for 2 patches"),
     ({"boxes": [], "scores": [], "classes": []}, "3 parts for 2")],
)  # fmt: skip
def test_outputs_of_other_numbers_are_refused(out, words):
    with pytest.raises(ValueError, match=words):
        split_outputs(out, 2)


def test_types_of_another_number_are_refused():
    part = dict(hover_outputs()[0])
    with pytest.raises(ValueError, match="3 channels for 5 classes"):
        find_objects(part, 5, SIDE)


def test_what_is_not_finite_is_found_wherever_it_stands():
    assert is_finite({"np": np.zeros(3), "boxes": [np.zeros(2), None, torch.zeros(1)]})
    assert not is_finite({"np": np.zeros(3), "tp": np.array([np.nan])})
    assert not is_finite((torch.tensor([[0.0, float("inf")]]), [0.5], [1]))
