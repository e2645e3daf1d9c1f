"""What a detector's forward gave for a batch of patches, patch by patch, and the objects in it.

A detector gives, for (n, 3, S, S) uint8 pixels, one of
- a list of n items, each as `objects.FORM` has it;
- maps in the form of HoVer-Net: a mapping with `np` (n, 2, h, w) logits, `hv` (n, 2, h, w), and optionally `tp` (n, 1 + C, h, w) logits, 0 background;
- flows: a mapping with `inside` (n, 1, h, w) logits, `flow` (n, 2, h, w) y, x, and optionally `tp` (n, C, h, w);
- anything of n parts, where it has a method `find_objects`, which makes an item of the list of one part, as arrays.

Maps that are smaller than the patch lie in its middle. All but the forward itself is done on the host, by threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.models.heads.objects.flows import objects_from_flows
from tilestream.models.heads.objects.found import Objects, array_of, read_objects
from tilestream.models.heads.objects.hover import objects_from_hover


def split_outputs(out: Any, patches: int) -> list[Any]:
    """What belongs to each of the patches, on the host. Raises ValueError where that is not said."""
    if isinstance(out, Mapping) and not {"boxes", "scores", "classes"} <= out.keys():
        maps = {name: array_of(values) for name, values in out.items()}
        if wrong := next((name for name, values in maps.items() if len(values) != patches), None):
            raise ValueError(f"{wrong} is {maps[wrong].shape} for {patches} patches")
        return [{name: values[k] for name, values in maps.items()} for k in range(patches)]
    if isinstance(out, Mapping) or not hasattr(out, "__len__") or len(out) != patches:
        told = f"{len(out)} parts" if hasattr(out, "__len__") else type(out).__name__
        raise ValueError(f"gives {told} for {patches} patches, but one for each is wanted")
    return [array_of(each) if hasattr(each, "detach") else each for each in out]


def find_objects(part: Any, classes: int, side: int, own: Callable[[Any], Any] | None = None) -> Objects:
    """The objects of one patch of `side` px, from its part of what a detector gave; `own` is the detector's `find_objects`.

    Raises
    ------
    ValueError
        It is of none of the forms.
    """
    if own is not None:
        return read_objects(own(part), classes, side)
    if isinstance(part, Mapping) and {"np", "hv"} <= part.keys():
        nucleus = _probability(part["np"])
        types = part.get("tp")
        if types is not None and len(types) != classes + 1:
            raise ValueError(f"tp has {len(types)} channels for {classes} classes; the background and one each are wanted")
        return _moved(objects_from_hover(nucleus, part["hv"], types), nucleus, side)
    if isinstance(part, Mapping) and {"inside", "flow"} <= part.keys():
        inside = _probability(part["inside"])
        return _moved(objects_from_flows(inside, part["flow"], part.get("tp")), inside, side)
    return read_objects(part, classes, side)


def is_finite(part: Any) -> bool:
    """Whether no number of a patch's part is infinite or NaN."""
    if isinstance(part, Mapping):
        return all(map(is_finite, part.values()))
    if isinstance(part, Objects):
        return part.finite
    if isinstance(part, Sequence) and not isinstance(part, str):
        return all(map(is_finite, part))
    values = array_of(part) if part is not None else np.zeros(0)
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _probability(logits: NDArray[Any]) -> NDArray[np.float64]:
    """(h, w) probability of the last of one or two channels."""
    if logits.ndim != 3 or len(logits) not in (1, 2):
        raise ValueError(f"a map of logits is {logits.shape}; (1 or 2, h, w) is wanted")
    logit = logits[-1].astype(np.float64) - (logits[0] if len(logits) == 2 else 0.0)
    return np.asarray(1 / (1 + np.exp(-np.clip(logit, -60, 60))))


def _moved(objects: Objects, like: NDArray[Any], side: int) -> Objects:
    """Objects of a map in the middle of a patch, in px of the patch."""
    y, x = ((side - length) // 2 for length in like.shape)
    return objects.moved(y, x) if y or x else objects
