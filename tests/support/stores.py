"""Finished stores made without a run: embeddings of any number, places on a grid."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tilestream.store.folder import Folder
from tilestream.store.layout import Layout, TileColumns
from tilestream.store.slide_store import SlideStore


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_store(
    path,
    rows=4,
    cols=5,
    dim=6,
    *,
    tile=224,
    stride=None,
    scale=1.0,
    mpp=0.25,
    failed=(),
    dtype="float32",
    keep=None,
    finish=True,
    thumbnail=32,
    **source,
):
    """A store of the tiles of a grid of rows x cols for which `keep` (rows, cols) is true; tiles numbered `failed` are NaN."""
    stride = stride or tile
    kept = np.ones((rows, cols), bool) if keep is None else keep
    row, col = (places.astype(np.int64) for places in np.nonzero(kept))
    y, x = (np.rint(places * stride * scale).astype(np.int64) for places in (row, col))
    height, width = (round(((n - 1) * stride + tile) * scale) for n in (rows, cols))
    layout = Layout(len(row), dim, 512, dtype)
    store = SlideStore(Folder(str(path)))
    recipe = {
        "tiles": {"size": tile, "stride": stride, "edge": "pad"},
        "encoder": {"name": "made_up"},
        "output": {"save": ["tiles"], "dtype": dtype},
    }
    about = {
        "address": "made-up.svs",
        "mpp": mpp,
        "height": height,
        "width": width,
        "level": 0,
        "downsample": 1.0,
        "scale": scale,
        **source,
    }
    mask = np.zeros((-(-height // thumbnail), -(-width // thumbnail)), bool)
    mask[2:-2, 3:-3] = True
    mask[6:8, 6:8] = False
    picture = np.full((*mask.shape, 3), 200, np.uint8)
    tissue = np.linspace(0.1, 1, len(row), dtype=np.float32) if len(row) else np.empty(0, np.float32)
    columns = TileColumns(row, col, y, x, tissue, tile * scale)
    store.create(
        layout, columns, {"recipe": recipe, "source": about}, uns={"slide": Path(store.folder.address).stem},
        objects={"thumbnail.png": png(picture), "tissue.png": png(mask)},
    )  # fmt: skip
    random = np.random.default_rng(0)
    for shard in range(layout.shards):
        part = layout.rows(shard)
        values = random.standard_normal((part.stop - part.start, dim)).astype(dtype)
        status = np.zeros(len(values), np.int8)
        bad = [k - part.start for k in failed if part.start <= k < part.stop]
        values[bad], status[bad] = np.nan, 2
        store.write_shard(shard, {"tables/tiles/X": values, "tables/tiles/obs/status/codes": status}, {"counts": {}})
    if finish:
        store.seal()
        store.complete({"tiles": layout.tiles, "counts": {}})
    return store


def begin_store(store, rows, cols, shard_tiles, stages, context):
    """Create a store of rows x cols tiles and of 6 features, with recipes of its stages."""
    row, col = (places.ravel().astype(np.int64) for places in np.mgrid[:rows, :cols])
    columns = TileColumns(row, col, row * 64, col * 64, np.ones(len(row), np.float32), 64.0)
    layout = Layout(len(row), 6, shard_tiles, "float32", context)
    store.create(
        layout,
        columns,
        {"recipe": {}, "source": {}, "stages": stages},
        uns={"slide": Path(store.folder.address).stem},
        objects={"thumbnail.png": b"a"},
    )
