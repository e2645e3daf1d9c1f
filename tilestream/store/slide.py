"""`tilestream.open`: a finished slide's store, for reading."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import anndata
    import dask.array
    import numpy as np
    import pandas as pd
    import zarr
    from numpy.typing import NDArray


class Opened:
    """One slide's embeddings. Nothing is read before it is asked for."""

    def __init__(self, path: str | os.PathLike[str], *, allow_unfinished: bool = False) -> None:
        from tilestream.errors import IncompleteError, InputError
        from tilestream.store.folder import Folder
        from tilestream.store.slide_store import SlideStore

        self.path = os.fspath(path)
        self._store = SlideStore(Folder(self.path))
        if self._store.attributes is None:
            raise InputError(f"{self.path} is not a store of one slide: give <output>/<slide id>.zarr.")
        if self._store.completion is None and not allow_unfinished:
            raise IncompleteError(
                f"{self.path} is not finished. Run its command again, or pass allow_unfinished=True: missing rows are NaN."
            )

    @property
    def embeddings(self) -> zarr.Array[Any]:
        """(n, d) one row a tile; a Zarr array, read where it is indexed.

        Raises
        ------
        InputError
            The run was told not to keep them.
        """
        from tilestream.errors import InputError

        if not self._has("tables/tiles/X"):
            raise InputError(f"{self.path} holds no tiles: output.save was {self.recipe['output']['save']}. Run with tiles among them.")
        return self._store.array("tables/tiles/X")

    @property
    def context(self) -> zarr.Array[Any] | None:
        """(n, d2) after the windowed transformer, or None where there is none."""
        return self._store.array("tables/tiles/obsm/context") if self._has("tables/tiles/obsm/context") else None

    def windows(self, side: int) -> zarr.Array[Any]:
        """(rows, cols, d) vectors of the windows of `side` tokens, NaN where a window is empty.

        Raises
        ------
        InputError
            None of this side were kept.
        """
        from tilestream.errors import InputError

        if not self._has(f"windows/{side}"):
            raise InputError(
                f"{self.path} holds no windows of {side} tokens. Run with windows among output.save, and windows.sides: [{side}]."
            )
        return self._store.array(f"windows/{side}")

    def _has(self, path: str) -> bool:
        return self._store.folder.exists(f"{path}/zarr.json")

    @property
    def slide_vector(self) -> NDArray[np.float32] | None:
        """(d,) the pooled vector, or None where none was stored."""
        import numpy as np

        try:
            return np.asarray(self._store.array("tables/slide/X")[0])
        except FileNotFoundError:
            return None

    @property
    def positions(self) -> NDArray[np.int64]:
        """(n, 2) y, x of each tile's top-left in level-0 px."""
        import numpy as np

        return np.stack([np.asarray(self._store.array(f"tables/tiles/obs/{name}")[:]) for name in ("y", "x")], axis=1)

    @property
    def obs(self) -> pd.DataFrame:
        """One row a tile: row, col, y, x, tissue, status."""
        import numpy as np
        import pandas as pd

        from tilestream.store.layout import STATUSES

        columns = {name: np.asarray(self._store.array(f"tables/tiles/obs/{name}")[:]) for name in ("row", "col", "y", "x", "tissue")}
        codes = np.asarray(self._store.array("tables/tiles/obs/status/codes")[:])
        return pd.DataFrame({**columns, "status": pd.Categorical.from_codes(codes, categories=list(STATUSES))})

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings that the numbers depend on."""
        return self._attribute("recipe")

    @property
    def source(self) -> dict[str, Any]:
        """The image: address, size, resolution, level that was read."""
        return self._attribute("source")

    def _attribute(self, name: str) -> dict[str, Any]:
        attributes = self._store.attributes
        assert attributes is not None, "checked at birth"
        found: dict[str, Any] = attributes[name]
        return found

    def to_dask(self) -> dask.array.Array:
        """(n, d) `dask.array`, one block a shard."""
        import dask.array as da

        array: da.Array = da.from_zarr(self.embeddings, chunks=(self._store.layout.shard_tiles, self._store.layout.dim))
        return array

    def to_anndata(self) -> anndata.AnnData:
        """The table of tiles, in memory."""
        import anndata

        return anndata.read_zarr(f"{self.path}/tables/tiles")

    def plot(self, axes: Any = None) -> Any:
        """Draw the overview into matplotlib axes, new ones where none are given, and return them.

        Raises
        ------
        ConfigError
            matplotlib is not installed.
        InputError
            The slide has no picture yet.
        """
        import io

        from PIL import Image

        from tilestream.errors import ConfigError, InputError

        try:
            from matplotlib import pyplot as plt
        except ModuleNotFoundError as error:
            raise ConfigError("plot needs the package matplotlib, which is not installed: pip install 'tilestream[plot]'.") from error
        raw = self._picture()
        if raw is None:
            raise InputError(f"{self.path} has no picture. Finish its run, or plot .positions yourself.")
        axes = plt.subplots(figsize=(12, 6), layout="constrained")[1] if axes is None else axes
        axes.imshow(Image.open(io.BytesIO(raw)))
        axes.set_axis_off()
        return axes

    def _picture(self) -> bytes | None:
        """The overview, else the thumbnail, as PNG; None for imported slides, which have neither."""
        return self._store.folder.get("overview.png") or self._store.folder.get("thumbnail.png")

    def _repr_html_(self) -> str:
        """What a notebook shows: the picture, small, with shape and recipe."""
        import base64
        import io
        from html import escape

        from PIL import Image

        layout, raw, image = self._store.layout, self._picture(), ""
        if raw is not None:
            with Image.open(io.BytesIO(raw)) as opened:
                picture = opened.convert("RGB")
            picture.thumbnail((720, 720))
            buffer = io.BytesIO()
            picture.save(buffer, "WEBP", quality=75)
            image = f'<img alt="overview" src="data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
        recipe = escape(json.dumps(self.recipe, indent=1, ensure_ascii=False))
        words = f"{layout.tiles:,} tiles x {layout.dim} {layout.dtype}" + (f", context {layout.context_dim}" if layout.context_dim else "")
        return f"<div><b>{escape(self.path)}</b><br>{words}<br>{image}<details><summary>recipe</summary><pre>{recipe}</pre></details></div>"

    def __repr__(self) -> str:
        layout = self._store.layout
        return f"<tilestream {self.path}: {layout.tiles} tiles x {layout.dim}, {self.recipe['encoder']['name']}>"


def open_slide_store(path: str | os.PathLike[str], *, allow_unfinished: bool = False) -> Opened:
    """Open the store of one slide, `<output>/<slide id>.zarr`, for reading.

    Raises
    ------
    InputError
        There is no store of ours.
    IncompleteError
        The slide is not finished, unless `allow_unfinished`.
    """
    return Opened(path, allow_unfinished=allow_unfinished)
