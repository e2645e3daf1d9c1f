"""Exports: a finished slide in the formats of other programs. `FORMATS` is the table of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tilestream.config.local_files import refuse_url
from tilestream.errors import ConfigError, IncompleteError, InputError
from tilestream.interop.columns import write_csv, write_parquet
from tilestream.interop.geo.embedding_tiff import write_embedding_tiff
from tilestream.interop.geo.geo_zarr import write_geo_zarr
from tilestream.interop.geo.geoparquet import write_geoparquet
from tilestream.interop.geo.stac_item import write_stac_item
from tilestream.interop.geojson import write_geojson
from tilestream.interop.hdf5 import write_clam, write_trident
from tilestream.interop.objects.formats import HEAD_SUFFIXES, head_writer, write_head
from tilestream.interop.omezarr import write_ome_zarr
from tilestream.interop.spatialdata import write_spatialdata
from tilestream.interop.target import Records, Target, Written
from tilestream.interop.tensors import write_tensor
from tilestream.interop.vectors import VECTOR_WRITERS
from tilestream.store.cohort import find_stores, some
from tilestream.store.folder import Folder
from tilestream.store.layout import VECTORS, vectors_place
from tilestream.store.ownership import is_ours
from tilestream.store.slide import Slide


@dataclass(frozen=True)
class Format:
    """A format that slides are exported to."""

    suffix: str
    """Of the files, behind the slide's id."""
    write: Callable[[Slide, Target], Written]


FORMATS = {
    "trident-h5": Format(".h5", write_trident),
    "clam-h5": Format(".h5", write_clam),
    "pt": Format(".pt", write_tensor),
    "parquet": Format(".parquet", write_parquet),
    "csv": Format(".csv", write_csv),
    "geojson": Format(".geojson", write_geojson),
    "ome-zarr": Format(".ome.zarr", write_ome_zarr),
    "spatialdata": Format(".zarr", write_spatialdata),
}

GEO_FORMATS = {
    "geoparquet": Format(".parquet", write_geoparquet),
    "cog": Format(".tif", write_embedding_tiff),
    "geo-zarr": Format(".geo.zarr", write_geo_zarr),
    "stac": Format(".json", write_stac_item),
}
"""Of slides whose image lies on a map."""

VECTOR_FORMATS = FORMATS | GEO_FORMATS

SUFFIXES = {name: each.suffix for name, each in VECTOR_FORMATS.items()} | {
    name: suffix for name, suffix in HEAD_SUFFIXES.items() if name not in VECTOR_FORMATS
}
"""Of the files of every format, behind the slide's id."""


def export_slides(
    output: str,
    name: str,
    *,
    what: str = "tiles",
    slide: str | None = None,
    out: str | None = None,
    in_bounds: bool = False,
    allow_unfinished: bool = False,
    force: bool = False,
) -> Iterator[str]:
    """Export the slides of an output; yields a line of words for each file that is there.

    Nothing is written before every slide was looked at. Slides that are not finished, and those that lack what the format needs, are left out, and named in the end.

    Parameters
    ----------
    output : str
        An output folder, or one store in it.
    name : str
        A key of `VECTOR_FORMATS`, or for answers of heads of `HEAD_SUFFIXES`.
    what : str
        A key of `VECTORS`, or one of a slide's `named_vectors`: the tiles' embeddings, their context in place of them, or the slide's vector; or the name of a head of kind detect or segment: its objects, or the regions of its label image.
    slide : str, optional
        Id of the one slide that is wanted.
    out : str, optional
        The file for one slide named by `slide` or `output`, else the folder of all; by default `exports/<format>` in the output,
        `exports/<format>-<what>` where `what` is not tiles.
    in_bounds : bool
        See `write_geojson`.
    allow_unfinished : bool
        Whether a slide may lack tiles.
    force : bool
        Whether files are replaced that were not written by an export, or were changed since.

    Raises
    ------
    ConfigError
        No such format or slide, an option that does not fit the format, or a place that cannot be written to.
    InputError
        There is no store, or no slide has what the format needs.
    IncompleteError
        Slides are not finished, are damaged, or lack what the format needs; the others are exported by then.
    """
    if name not in SUFFIXES:
        raise ConfigError(f"--to: {name!r} is none of {', '.join(SUFFIXES)}.")
    if in_bounds and name != "geojson":
        raise ConfigError(f"--in-bounds: is for --to geojson only, not {name}.")
    write: Callable[..., Written] = _writer(name, what)
    if in_bounds:
        write = partial(write_geojson if vectors_place(what) else write, in_bounds=True)
    if out is not None:
        refuse_url(out, "--out")
    stores = find_stores(output)
    is_store = is_ours(Folder(output, read_only=True))
    if slide is not None:
        wanted = slide.removesuffix(".zarr")
        if wanted not in stores:
            raise ConfigError(f"--slide: {slide!r} is not in {output}, which holds {some(list(stores))}.")
        stores = {wanted: stores[wanted]}
    records = Records(Folder((output.rstrip("/").rpartition("/")[0] or ".") if is_store else output))
    slides, unfinished = _open_slides(stores, what, name, allow_unfinished=allow_unfinished)
    refused: list[InputError] = []
    for found in slides:
        path = (
            _default_target(output, found.id, name, what, is_store=is_store)
            if out is None
            else _named_target(out, found.id, name, alone=slide is not None or is_store)
        )
        try:
            written = write(found, Target(path, force, records))
        except IncompleteError as error:
            unfinished.append(error)
            continue
        except InputError as error:
            if len(stores) == 1:
                raise
            refused.append(error)
            continue
        yield f"{found.id}: {written.tiles} {written.what} -> {path}" + "".join(f"; {note}" for note in written.notes)
    if unfinished or refused:
        left = f"{len(unfinished) + len(refused)} of {len(stores)} slides left out: " if len(stores) > 1 else ""
        kind = InputError if len(refused) == len(stores) else IncompleteError
        raise kind(left + "\n".join(map(str, (*unfinished, *refused))))


def _open_slides(stores: dict[str, Folder], what: str, name: str, *, allow_unfinished: bool) -> tuple[list[Slide], list[IncompleteError]]:
    """The slides that can be exported, and why others are not finished."""
    slides, unfinished = [], []
    for folder in stores.values():
        try:
            if vectors_place(what):
                slides.append(Slide(folder, what=what, allow_unfinished=allow_unfinished))
                slides[-1].vectors()  # refuses before anything is written
            else:
                slides.append(Slide(folder, allow_unfinished=allow_unfinished))
                head_writer(slides[-1], what, name)
        except IncompleteError as error:
            unfinished.append(error)
    return slides, unfinished


def _writer(name: str, what: str) -> Callable[[Slide, Target], Written]:
    """What writes `what` in a format. Raises ConfigError where that cannot be."""
    if not vectors_place(what):
        if name not in HEAD_SUFFIXES:
            raise ConfigError(
                f"--what {what}: answers of a head are for --to {', '.join(HEAD_SUFFIXES)}, not {name}; else --what is one of {', '.join(VECTORS)}."
            )
        return partial(write_head, head=what, name=name)
    if name not in VECTOR_FORMATS:
        raise ConfigError(f"--to {name}: is for objects and regions. Name a head of kind detect or segment: --what HEAD.")
    if what.partition("-")[0] == "slide":
        if name not in VECTOR_WRITERS:
            raise ConfigError(f"--what {what}: is for --to {', '.join(VECTOR_WRITERS)}, not {name}.")
        return VECTOR_WRITERS[name]
    if what.partition("-")[0] == "context" and name == "spatialdata":
        raise ConfigError(f"--what {what}: spatialdata holds it anyhow, as obsm/{what} of the table. Leave it out.")
    return VECTOR_FORMATS[name].write


def _named_target(out: str, slide: str, name: str, *, alone: bool) -> Path:
    """What `--out` means for a slide: its file, or the folder that it goes into."""
    path = Path(out)
    is_folder = not alone or out.endswith("/") or (path.is_dir() and path.suffix != ".zarr")
    return path / f"{slide}{SUFFIXES[name]}" if is_folder else path


def _default_target(output: str, slide: str, name: str, what: str, *, is_store: bool) -> Path:
    """The file of a slide below its output."""
    if "://" in output:
        raise ConfigError(f"--out: is needed for {output}, since exports are written to a local disk. Name a folder.")
    folder = Path(output).parent if is_store else Path(output)
    kind = name if what == "tiles" else f"{name}-{what}"
    return folder / "exports" / kind / f"{slide}{SUFFIXES[name]}"
