"""`Cohort`: the slides of an output, for reading; which folders of an output are stores of ours, and whether their bytes are as they were written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import zarr

from tilestream.buffers import counted
from tilestream.errors import EXIT_DONE, EXIT_PARTIAL, IncompleteError, InputError
from tilestream.store.folder import Folder
from tilestream.store.layout import TILES
from tilestream.store.ownership import is_begun, is_ours, is_zarr
from tilestream.store.slide import Slide
from tilestream.store.slide_store import SlideStore

if TYPE_CHECKING:
    import anndata
    import dask.array
    import pandas as pd

LOOKS_AT_ONCE = 16
"""Folders that are looked into at once; in an object store each look is a request."""


def find_stores(address: str) -> dict[str, Folder]:
    """Stores of ours by the id of their slide: the one at `address`, or all that lie in that output. What else lies there is passed over.

    Raises
    ------
    InputError
        There is none.
    """
    folder = Folder(address, read_only=True)
    if is_ours(folder):
        return {_id(address): folder}
    if is_zarr(folder):
        raise InputError(f"{address}: is a Zarr, but not a store of one slide. Give an output folder, or <output>/<slide id>.zarr in it.")
    places = [folder / name for name in folder.children() if name.endswith(".zarr")]
    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        ours = list(pool.map(lambda place: is_ours(place) or is_begun(place), places))
    stores = {_id(place.address): place for place, own in zip(places, ours, strict=True) if own}
    if not stores:
        raise InputError(f"{address}: no output of tilestream here: no store of a slide. Give the `output` of a config.")
    return stores


def _id(address: str) -> str:
    return address.rstrip("/").rsplit("/", 1)[-1].removesuffix(".zarr")


class Cohort:
    """The finished slides of an output, in the order of their ids. Nothing is read before it is asked for, and nothing can be written.

    Slides that are not finished are in `unfinished`, and a warning names them.

    Parameters
    ----------
    path : path or URL
        The `output` of a config.
    allow_unfinished : bool
        Whether slides may lack tiles; rows that are missing are NaN.

    Raises
    ------
    InputError
        There is no output.
    """

    def __init__(self, path: str | os.PathLike[str], *, allow_unfinished: bool = False, verify: bool = True) -> None:
        self.path = os.fspath(path)
        self._slides: dict[str, Slide] = {}
        self.unfinished: dict[str, str] = {}
        """Why slides are left out, by their id."""
        for name, folder in find_stores(self.path).items():
            try:
                self._slides[name] = Slide(folder, allow_unfinished=allow_unfinished, verify=verify)
            except IncompleteError as error:
                self.unfinished[name] = str(error)
        if self.unfinished:
            warnings.warn(f"{self.path}: not finished, and left out: {', '.join(self.unfinished)}.", stacklevel=3)

    @property
    def ids(self) -> list[str]:
        """Ids of the slides, in order."""
        return list(self._slides)

    def __len__(self) -> int:
        return len(self._slides)

    def __iter__(self) -> Iterator[Slide]:
        return iter(self._slides.values())

    def __contains__(self, slide: object) -> bool:
        return slide in self._slides

    def __getitem__(self, slide: str) -> Slide:
        """The slide of an id.

        Raises
        ------
        KeyError
            There is none of this id.
        IncompleteError
            It is not finished.
        """
        if slide in self.unfinished:
            raise IncompleteError(self.unfinished[slide])
        if slide not in self._slides:
            raise KeyError(f"{slide!r} is not in {self.path}, which holds {some(self.ids)}.")
        return self._slides[slide]

    @property
    def obs(self) -> pd.DataFrame:
        """One row a tile of all slides, named `<slide id>_<row>_<col>`; the column `slide` holds the id."""
        import pandas as pd

        table = pd.concat([slide.obs.astype({"slide": str}) for slide in self])
        return table.assign(slide=pd.Categorical(table["slide"], categories=self.ids))

    def to_dask(self) -> dask.array.Array:
        """(n, d) `dask.array` of all slides' embeddings, one under the other in order, one block a shard."""
        import dask.array as da

        self._check_dims()
        array: da.Array = da.concatenate([slide.to_dask() for slide in self])
        return array

    def to_anndata(self, *, ok_only: bool = False) -> anndata.AnnData:
        """One table of all slides' tiles, in memory; with `ok_only`, without those that failed: no row of it is NaN.

        Raises
        ------
        InputError
            The slides' embeddings have different dimensions.
        """
        import anndata
        import pandas as pd

        self._check_dims()
        table = anndata.concat([slide.to_anndata(ok_only=ok_only) for slide in self], join="outer", uns_merge="same")
        table.obs["slide"] = pd.Categorical(table.obs["slide"], categories=self.ids)
        return table

    def _check_dims(self) -> None:
        """Refuse what cannot lie in one table."""
        if not self._slides:
            raise InputError(f"{self.path}: no slide is finished. Run its command again, or allow unfinished slides.")
        dims = {slide.layout.dim: slide.id for slide in self}
        if len(dims) > 1:
            told = ", ".join(f"{name} {dim}" for dim, name in sorted(dims.items()))
            raise InputError(f"{self.path}: its embeddings have different dimensions ({told}). Take slide by slide.")

    def __repr__(self) -> str:
        left = f", {len(self.unfinished)} not finished" if self.unfinished else ""
        return f"<tilestream {self.path}: {counted(len(self), 'slide')}{left}>"


def some(names: list[str]) -> str:
    """Up to ten names."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} others" if len(names) > 10 else "")


def open_output(path: str | os.PathLike[str], *, allow_unfinished: bool = False, verify: bool = True) -> Slide | Cohort:
    """Open what a run wrote, for reading: the store of one slide, `<output>/<slide id>.zarr`, or an output with all its slides.

    Finished slides are checked in little time, as `Slide` says, unless `verify` is False.

    Raises
    ------
    InputError
        There is neither.
    IncompleteError
        The slide is not finished, unless `allow_unfinished`.
    """
    folder = Folder(os.fspath(path), read_only=True)
    if is_ours(folder) or is_zarr(folder):
        return Slide(path, allow_unfinished=allow_unfinished, verify=verify)
    return Cohort(path, allow_unfinished=allow_unfinished, verify=verify)


def _named(folder: Folder) -> str | None:
    """The slide that a whole store says it is of; None for one that says none."""
    with suppress(FileNotFoundError):
        return str(zarr.open_array(folder.store, path=f"{TILES}/uns/slide", mode="r", zarr_format=3)[()])
    return None


def verify_output(address: str, say: Callable[[str], None], *, repair: bool = False) -> int:
    """Check an output folder or one store in it; returns the exit code, 0 or 4.

    With `repair`, what is damaged is forgotten, so that the next run redoes it and nothing else.

    Raises
    ------
    InputError
        There is no store of ours.
    """
    stores = find_stores(address)
    damaged = 0
    for name, folder in stores.items():
        store = SlideStore(Folder(folder.address))
        found = store.damage()
        moved = [] if found or (own := _named(folder)) in (None, name) else [f"holds the rows of slide {own}: rename it to {own}.zarr"]
        damaged += bool(found or moved)
        say(f"{name}: {counted(len(found or moved), 'problem') if found or moved else 'ok'}")
        for line in found or moved:
            say(f"  {line}")
        if repair and found:
            say(f"  {store.repair()}")
    if damaged:
        way = (
            "Run their command again."
            if repair
            else "Unfinished ones: run their command again. Damaged ones: verify --repair, then run it again."
        )
        say(f"{damaged} of {len(stores)} slides are damaged or unfinished. {way}")
    return EXIT_PARTIAL if damaged else EXIT_DONE
