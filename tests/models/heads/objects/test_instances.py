"""Made nuclei of known place and type, as the maps that a perfect net would give, become those nuclei again."""

import numpy as np
import pytest
import shapely
import torch

from tilestream.models.heads.objects.flows import instances_from_flows, objects_from_flows
from tilestream.models.heads.objects.found import Objects, objects_from_instances, read_objects
from tilestream.models.heads.objects.hover import instances_from_maps, objects_from_hover, sobel_kernels, types_of_instances

SIDE = 200


def discs(places, radius=9):
    """An instance image of discs, two of which may touch: the nearer middle has the pixel."""
    y, x = np.mgrid[:SIDE, :SIDE]
    away = np.stack([np.hypot(y - cy, x - cx) for cy, cx in places])
    return np.where(away.min(axis=0) <= radius, away.argmin(axis=0) + 1, 0).astype(np.int32)


def maps_of(truth, places):
    """np, hv and flow that a perfect net gives."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    hv, flow = np.zeros((2, SIDE, SIDE)), np.zeros((2, SIDE, SIDE))
    for k, (cy, cx) in enumerate(places, start=1):
        mine = truth == k
        hv[0][mine], hv[1][mine] = (x - cx)[mine], (y - cy)[mine]
        hv[:, mine] /= np.abs(hv[:, mine]).max(axis=1, keepdims=True)
        way = np.stack([cy - y, cx - x])[:, mine]
        flow[:, mine] = way / np.maximum(np.hypot(*way), 1.0)
    return (truth > 0).astype(float), hv, flow


def least_overlap(truth, found):
    """The least IoU of a nucleus and the instance that covers most of it."""
    worst = 1.0
    for k in range(1, truth.max() + 1):
        best = np.bincount(found[truth == k]).argmax()
        worst = min(worst, ((truth == k) & (found == best)).sum() / ((truth == k) | (found == best)).sum() if best else 0.0)
    return worst


PLACES = [(30, 30), (30, 46), (90, 60), (105, 68), (150, 150), (150, 30), (60, 160), (74, 152)]


def test_touching_nuclei_are_told_apart_by_hover_maps():
    truth = discs(PLACES)
    nucleus, hv, _ = maps_of(truth, PLACES)
    found = instances_from_maps(nucleus, hv)
    assert found.max() == len(PLACES)
    assert least_overlap(truth, found) > 0.9


def test_touching_nuclei_are_told_apart_by_flows():
    truth = discs(PLACES)
    nucleus, _, flow = maps_of(truth, PLACES)
    found = instances_from_flows(nucleus > 0.5, flow)
    assert found.max() == len(PLACES)
    assert least_overlap(truth, found) > 0.9
    types = np.stack([truth % 2 == 0, truth % 2 == 1]).astype(float)
    objects = objects_from_flows(nucleus, flow, types)
    assert sorted(objects.classes.tolist()) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (objects.scores == 1).all()


def test_types_are_a_vote_of_pixels_and_background_wins_only_where_it_is_alone():
    truth = discs(PLACES)
    nucleus, hv, _ = maps_of(truth, PLACES)
    types = np.zeros((3, SIDE, SIDE))
    for k in range(1, len(PLACES) + 1):
        types[k % 2 + 1][truth == k] = 1.0
    types[:, truth == 5] = np.array([1.0, 0, 0])[:, None]  # of no type
    assert len(objects_from_hover(nucleus, hv, types)) == len(PLACES) - 1
    types[1][150, 150], types[0][150, 150] = 1.0, 0.0  # one pixel of it is
    objects = objects_from_hover(nucleus, hv, types)
    assert len(objects) == len(PLACES)
    assert np.isclose(objects.scores.min(), 1 / (truth == 5).sum(), rtol=0.1)
    assert shapely.is_valid(objects.shapes).all()
    assert np.abs(shapely.area(objects.shapes) / np.pi / 81 - 1).max() < 0.2


def test_the_share_of_a_type():
    labels, types = np.array([[1, 1, 1, 2]], np.int32), np.array([[0, 0, 2, 1]])
    kinds, shares = types_of_instances(labels, types, 3)
    assert kinds.tolist() == [2, 1]
    assert np.allclose(shares, [1 / 3, 1])


@pytest.mark.parametrize("maps", ["hover", "flows"])
def test_nothing_is_found_where_there_is_nothing(maps):
    empty, two = np.zeros((SIDE, SIDE)), np.zeros((2, SIDE, SIDE))
    assert len(objects_from_hover(empty, two, None) if maps == "hover" else objects_from_flows(empty, two)) == 0


def test_sobel_kernels_are_the_known_ones():
    assert [each.tolist() for each in sobel_kernels(3)] == [[1, 2, 1], [-1, 0, 1]]
    assert [each.tolist() for each in sobel_kernels(5)] == [[1, 4, 6, 4, 1], [-1, -2, 0, 2, 1]]


def test_an_instance_in_two_pieces_is_one_object():
    labels = np.zeros((8, 8), np.int32)
    labels[0:2, 0:2], labels[5:7, 5:8], labels[3, 3] = 1, 1, 3
    objects = objects_from_instances(labels, np.array([4, 5, 6]), np.array([0.5, 0.6, 0.7], np.float32))
    assert objects.boxes.tolist() == [[0, 0, 7, 8], [3, 3, 4, 4]]
    assert objects.classes.tolist() == [4, 6]
    assert shapely.area(objects.shapes).tolist() == [10, 1]


@pytest.mark.parametrize("as_tensors", [False, True])
def test_all_forms_of_a_detector_are_one_contract(as_tensors):
    wrap = torch.tensor if as_tensors else np.array
    boxes, scores, classes = wrap([[1.0, 2.0, 5.0, 8.0]]), wrap([0.5]), wrap([1])
    image = np.zeros((10, 10), np.int64)
    image[1:5, 2:8] = 1
    polygon = wrap([[1.0, 2.0], [1.0, 8.0], [5.0, 8.0], [5.0, 2.0]])
    forms = [
        (boxes, scores, classes), (boxes, scores, classes, [polygon]), (boxes, scores, classes, wrap(image)),
        {"boxes": boxes, "scores": scores, "classes": classes, "instances": wrap(image)},
    ]  # fmt: skip
    for form in forms:
        found = read_objects(form, 2, 10)
        assert found.boxes.tolist() == [[1, 2, 5, 8]]
        assert shapely.area(found.shapes).tolist() == [24]
        assert shapely.bounds(found.shapes).tolist() == [[2, 1, 8, 5]]
    assert len(read_objects((wrap([]), wrap([]), wrap([])), 2, 10)) == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "a detector gives boxes"),
        ({"boxes": []}, "a mapping with boxes"),
        ((np.zeros((2, 4)), np.zeros(1), np.zeros(2)), r"scores \(1,\)"),
        ((np.zeros((1, 4)), np.zeros(1), np.array([7])), "there are 2 classes"),
        ((np.zeros((1, 4)), np.zeros(1), np.zeros(1), np.zeros((3, 3), int)), "instance image"),
        ((np.zeros((1, 4)), np.zeros(1), np.zeros(1), [np.zeros((2, 2))]), "three or more"),
        ((np.zeros((1, 4)), np.zeros(1), np.zeros(1), []), "0 polygons for 1 boxes"),
        ((np.zeros((1, 4)), np.zeros(1), np.zeros(1), np.full((10, 10), 2)), "value 2"),
    ],
)
def test_other_forms_are_refused_with_what_is_wanted(given, words):
    with pytest.raises(ValueError, match=words):
        read_objects(given, 2, 10)


def test_objects_move_to_the_frame_of_the_slide():
    found = read_objects((np.array([[1.0, 2.0, 5.0, 8.0]]), np.ones(1), np.zeros(1)), 1, 10).moved(100, 200, 2.0)
    assert found.boxes.tolist() == [[102, 204, 110, 216]]
    assert shapely.bounds(found.shapes).tolist() == [[204, 102, 216, 110]]
    assert len(Objects.joined([found, Objects.none(), found])) == 2
