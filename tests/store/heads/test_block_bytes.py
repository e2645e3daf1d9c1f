"""Objects of label images are those that zarr writes, and coarser levels every second pixel. Judge: zarr."""

from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from tests.support.stores import make_store
from tilestream.store.anndata_tables import CHECKED
from tilestream.store.folder import Folder
from tilestream.store.heads.block_bytes import encode_block
from tilestream.store.heads.labels import LabelImage, write_levels
from tilestream.store.slide_store import SlideStore
from tilestream.store.zarr_chunks import chunk_reader


def made(shape, fill, seed):
    """Blobs, holes of nothing, and a block of which nothing is there."""
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 5, shape).astype(np.uint8) if fill == 0 else rng.standard_normal(shape).astype(np.float32)
    values[..., 20:60, 10:70] = fill
    values[..., :64, 128:192] = fill
    return values


@pytest.mark.parametrize(("side", "chunk"), [(64, 16), (48, 16), (60, 15), (64, 64), (80, 16)])
@pytest.mark.parametrize("lead", [(), (1,), (3,)])
@pytest.mark.parametrize("fill", [0, np.nan])
def test_a_block_is_the_object_that_zarr_writes(tmp_path, side, chunk, lead, fill):
    values = made((*lead, 150, 205), fill, 0)
    array = zarr.create_array(
        tmp_path, shape=values.shape, dtype=values.dtype, fill_value=fill, compressors=CHECKED, shards=(*lead, side, side),
        chunks=(*(1 for _ in lead), chunk, chunk), config={"write_empty_chunks": False},
    )  # fmt: skip
    array[:] = values
    for row in range(-(-150 // side)):
        for col in range(-(-205 // side)):
            path = tmp_path / "c" / "/".join(map(str, [*(0 for _ in lead), row, col]))
            block = values[..., row * side : (row + 1) * side, col * side : (col + 1) * side]
            assert encode_block(block, side, chunk, fill) == (path.read_bytes() if path.exists() else None)
    assert not all(path.exists() for path in [tmp_path / "c" / "/".join(map(str, [*(0 for _ in lead), 0, k])) for k in range(-(-205 // side))]) or side != 64  # fmt: skip


@pytest.mark.parametrize("channels", [0, 2])
@pytest.mark.parametrize(("block", "chunk", "readable"), [(64, 16, True), (60, 15, True), (60, 15, False)])
@pytest.mark.slow
def test_coarser_levels_are_every_second_pixel(tmp_path, monkeypatch, channels, block, chunk, readable):
    image = LabelImage("kinds", 1311, 997, block, chunk, 1.0, 0.5, ("a", "b"), channels)
    make_store(tmp_path / "a.zarr")
    store = SlideStore(Folder(str(tmp_path / "a.zarr")), None)
    for key, data in image.metadata().items():
        store.folder.put(key, data)
    values = made((*((channels,) if channels else ()), 1311, 997), np.nan if channels else 0, 1)
    zarr.open_array(tmp_path / "a.zarr" / "labels" / "kinds" / "0", mode="r+").with_config({"write_empty_chunks": False})[:] = values
    monkeypatch.setattr(SlideStore, "record", lambda *given: recorded.append(given))
    monkeypatch.setattr("tilestream.store.heads.labels.chunk_reader", chunk_reader if readable else lambda array: None)
    monkeypatch.setattr(SlideStore, "_look", lambda self: None)
    recorded = []
    write_levels(store, image, 7)
    assert len(image.levels) > 2
    for level in range(1, len(image.levels)):
        found = zarr.open_array(tmp_path / "a.zarr" / "labels" / "kinds" / str(level), mode="r")[:]
        np.testing.assert_array_equal(found, values[..., :: 2**level, :: 2**level])
    (entry,) = recorded
    assert SimpleNamespace(stage=entry[1], unit=entry[2]) == SimpleNamespace(stage="head-kinds", unit=7)
    assert len(entry[3]) == len(set(entry[3])) > 0
