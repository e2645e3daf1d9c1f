"""OME-Zarr: scales that contradict the arrays, or have the wrong number of values, are told; the arrays are right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tilestream.errors import InputError
from tilestream.sources.base import SlideInfo, SourceOptions
from tilestream.sources.zarr import ZarrSource

AXES = ("c", "y", "x")


def made(path: Path, sizes: list[tuple[int, int]], scales: list[Any], *, whole: Any = None, version: str = "0.5") -> SlideInfo:
    """What is said of an OME-Zarr of empty arrays of these sizes, whose levels state these scales."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    datasets = []
    for k, ((height, width), scale) in enumerate(zip(sizes, scales, strict=True)):
        group.create_array(str(k), shape=(3, height, width), chunks=(1, 64, 64), dtype=np.uint8)
        datasets.append({"path": str(k)} | ({"coordinateTransformations": [{"type": "scale", "scale": scale}]} if scale else {}))
    axes = [{"name": axis} | ({"unit": "micrometer"} if axis != "c" else {}) for axis in AXES]
    entry = {"version": version, "axes": axes, "datasets": datasets}
    if whole:
        entry["coordinateTransformations"] = [{"type": "scale", "scale": whole}]
    group.attrs.update({"multiscales": [entry]} if version == "0.4" else {"ome": {"version": version, "multiscales": [entry]}})
    with ZarrSource(str(path), SourceOptions()) as source:
        return source.info


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("rounded", [math.floor, math.ceil, round])
@pytest.mark.parametrize("factor", [2, 3, 2.5, 4])
def test_levels_that_were_rounded_in_any_way_are_believed(tmp_path: Path, version: str, rounded: Any, factor: float) -> None:
    sizes, scales = [(1001, 777)], [[1, 0.25, 0.25]]
    while min(sizes[-1]) > 8:
        sizes.append((rounded(sizes[-1][0] / factor), rounded(sizes[-1][1] / factor)))
        scales.append([1, scales[-1][1] * factor, scales[-1][2] * factor])
    assert made(tmp_path / "a.zarr", sizes, scales, version=version).warnings == ()
    real = [[1, 0.25 * 1001 / height, 0.25 * 777 / width] for height, width in sizes]
    assert made(tmp_path / "b.zarr", sizes, real, version=version).warnings == ()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("scale", "stated"),
    [
        ([1, 2, 2], "4 x 4"),
        ([1, 0.5, 0.5], "1 x 1"),
        ([1, 1, 1.02], "2 x 2.04"),
        ([1, 0, 1], "0 x 2"),
        ([1, -1, 1], "-2 x 2"),
    ],
)
def test_a_level_that_contradicts_its_array_is_told_and_the_array_is_right(
    tmp_path: Path, version: str, scale: list[float], stated: str
) -> None:
    info = made(tmp_path / "a.zarr", [(400, 600), (200, 300), (100, 150)], [[1, 0.5, 0.5], scale, [1, 2, 2]], version=version)
    (words,) = info.warnings
    assert f"a pixel of level 1 is {stated} pixels of level 0 (height x width), but by the sizes of the arrays it is 2 x 2" in words
    assert [level.downsample for level in info.levels] == [1, 2, 4]
    assert info.mpp == 0.5


def test_levels_that_state_no_scale_and_one_for_all_contradict_nothing(tmp_path: Path) -> None:
    sizes = [(400, 600), (200, 300)]
    info = made(tmp_path / "a.zarr", sizes, [None, None], whole=[1, 0.5, 0.5])
    assert (info.mpp, info.warnings) == (0.5, ())
    info = made(tmp_path / "b.zarr", sizes, [[1, 1, 1], [1, 2, 2]], whole=[1, 0.5, 0.5])
    assert (info.mpp, info.warnings) == (0.5, ())
    info = made(tmp_path / "c.zarr", sizes, [[1, 0.5, 0.5], None])
    assert (info.mpp, info.warnings) == (0.5, ())


WRONG = [[0.5, 0.5], [1, 1, 0.5, 0.5], [0.5]]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("place", ["level 0", "level 1", "all levels"])
def test_a_scale_of_the_wrong_number_of_values_is_told_and_not_used(tmp_path: Path, wrong: list[float], place: str) -> None:
    scales = [wrong if place == "level 0" else [1, 0.5, 0.5], wrong if place == "level 1" else [1, 1, 1]]
    info = made(tmp_path / "a.zarr", [(400, 600), (200, 300)], scales, whole=wrong if place == "all levels" else [1, 1, 1])
    assert info.warnings == (
        f"the OME-Zarr metadata state a scale of {len(wrong)} values for {place}, but there are 3 axes (c, y, x); it is not used.",
    )
    assert info.mpp == (0.5 if place == "level 1" else None)
    assert [level.downsample for level in info.levels] == [1, 2]


@pytest.mark.parametrize("wrong", [None, "2", [1, "a", 1]])
def test_a_scale_that_is_no_list_of_numbers_is_refused_at_any_level(tmp_path: Path, wrong: Any) -> None:
    path = tmp_path / "a.zarr"
    made(path, [(400, 600), (200, 300)], [[1, 0.5, 0.5], [1, 1, 1]])
    group = zarr.open_group(path, mode="r+")
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["datasets"][1]["coordinateTransformations"][0]["scale"] = wrong
    group.attrs["ome"] = ome
    with pytest.raises(InputError, match="the OME-Zarr metadata are malformed: scale must be a list of numbers"):
        ZarrSource(str(path), SourceOptions())
