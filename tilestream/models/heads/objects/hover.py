"""Instances from the maps of HoVer-Net: where nuclei are (np), how far each pixel lies from the middle of its own (hv), of which type (tp).

Source of the steps and their numbers: Graham et al. 2019, "Hover-Net: Simultaneous segmentation and classification of nuclei", section 3.2, and
the authors' published settings (Sobel of 21 px, thresholds 0.5 and 0.4, nothing below 10 px).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tilestream.models.heads.objects.found import Objects, objects_from_instances

NUCLEUS, STEEP = 0.5, 0.4
"""Probability from which on a pixel is of a nucleus, and steepness between two nuclei."""

SOBEL, SMALLEST = 21, 10
"""Px of the derivative, and of the smallest nucleus or seed."""

Map = NDArray[np.floating]

ELLIPSE = np.array([[0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]], np.bool_)


def sobel_kernels(side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(side,) smoothing and (side,) derivative of the Sobel filter of any odd side: binomial coefficients, and their differences."""
    smooth, derive = np.ones(1), np.array([-1.0, 1.0])
    for _ in range(side - 1):
        smooth = np.convolve(smooth, [1.0, 1.0])
    for _ in range(side - 2):
        derive = np.convolve(derive, [1.0, 1.0])
    return smooth, derive


def instances_from_maps(nucleus: Map, hv: Map) -> NDArray[np.int32]:
    """(h, w) numbered nuclei, 0 where there is none, from the (h, w) probability and the (2, h, w) horizontal and vertical distances."""
    from scipy import ndimage
    from skimage.segmentation import watershed

    inside = _without_small(ndimage.label(nucleus >= NUCLEUS)[0]) > 0
    if not inside.any():
        return np.zeros(nucleus.shape, np.int32)
    smooth, derive = sobel_kernels(SOBEL)
    steep = []
    for map_, axis in ((hv[0], 1), (hv[1], 0)):
        along = ndimage.correlate1d(_stretched(map_), derive, axis=axis, mode="mirror")
        steep.append(1 - _stretched(ndimage.correlate1d(along, smooth, axis=1 - axis, mode="mirror")))
    overall = np.maximum(np.maximum(*steep) - (1.0 - inside), 0.0)
    blurred = (1.0 - overall) * inside
    for axis in (0, 1):
        blurred = ndimage.correlate1d(blurred, np.array([0.25, 0.5, 0.25]), axis=axis, mode="mirror")
    seeds = ndimage.binary_fill_holes(inside & ~(overall >= STEEP))
    seeds = _without_small(ndimage.label(ndimage.binary_opening(seeds, ELLIPSE))[0])
    found: NDArray[np.int32] = watershed(-blurred, markers=seeds, mask=inside).astype(np.int32)
    return found


def types_of_instances(labels: NDArray[np.int32], types: NDArray[np.integer], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(m,) type of each of m numbered instances, and the share of its pixels that are of that type.

    It is the commonest type of its pixels; where that is 0, the background, the next one, if any pixel has one.
    """
    instances = int(labels.max(initial=0))
    votes = np.bincount(labels.ravel().astype(np.int64) * count + types.ravel(), minlength=(instances + 1) * count)
    votes = votes.reshape(-1, count)[1:]
    total = np.maximum(votes.sum(axis=1), 1)
    others = votes.copy()
    others[:, 0] = 0
    chosen = np.where((votes.argmax(axis=1) == 0) & (others.sum(axis=1) > 0), others.argmax(axis=1), votes.argmax(axis=1))
    return chosen, (votes[np.arange(len(votes)), chosen] / total).astype(np.float32)


def objects_from_hover(nucleus: Map, hv: Map, types: Map | None) -> Objects:
    """Objects from the probability (h, w), the distances (2, h, w) and the logits or probabilities of types (1 + C, h, w), 0 being background.

    Class k is type k + 1; nuclei of no type are left out. Scores are the share of an object's pixels that are of its type; without types, the mean
    probability of its pixels.
    """
    from scipy import ndimage

    labels = instances_from_maps(nucleus, hv)
    count = int(labels.max(initial=0))
    if count == 0:
        return Objects.none()
    if types is None:
        means = np.asarray(ndimage.mean(nucleus, labels, np.arange(1, count + 1)), np.float32)
        return objects_from_instances(labels, np.zeros(count, np.int64), means)
    kinds, shares = types_of_instances(labels, types.argmax(axis=0), len(types))
    kept = np.where(kinds[np.maximum(labels, 1) - 1] > 0, labels, 0)
    return objects_from_instances(kept, kinds - 1, shares)


def _stretched(values: Map) -> NDArray[np.float64]:
    """The values from 0 to 1; all 0 where they are one."""
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _without_small(labels: NDArray[np.integer]) -> NDArray[np.integer]:
    """The pieces of at least `SMALLEST` px."""
    large = np.bincount(labels.ravel()) >= SMALLEST
    large[0] = False
    kept: NDArray[np.integer] = np.where(large[labels], labels, 0)
    return kept
