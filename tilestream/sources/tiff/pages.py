"""Which pages of a TIFF file are the image: the scene and its pyramid levels.

Levels are the pages of this pyramid: SubIFDs of the page, or for NDPI and OME-TIFF what tifffile says; for Aperio the tiled pages (as OpenSlide);
for other files the pages with the reduced-resolution bit of NewSubfileType (TIFF 6.0 section 8) that follow the image's page, up to the next image
that they could be copies of.
Masks (bit 4), pictures that are called label or macro, and pages of another shape or another layout are none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tifffile

from tilestream.errors import InputError
from tilestream.geometry import Level, Size, downsample_from_sizes
from tilestream.sources.files import NoGridError
from tilestream.sources.sample_values import Choices
from tilestream.sources.tiff.coding import PALETTE, RGB, TIFFFILE_ERRORS, YCBCR, color_map

OTHER_KINDS = {"scn": "Leica SCN", "bif": "Ventana BIF with overlapping tiles", "philips": "Philips TIFF with padded levels"}
"""Series kinds whose geometry lies in metadata that OpenSlide reads and tifffile does not apply."""

PLAIN_KINDS = frozenset({"generic", "uniform", "shaped"})
"""Series kinds that tifffile makes of pages by their shapes alone, whichever pyramid they belong to."""

ASSOCIATED = frozenset(
    {name + more for name in ("label", "macro", "overview", "thumbnail", "map", "slide label", "slide overview") for more in ("", " image")}
)
"""What pictures that accompany a slide are called, exactly; a longer name that holds such a word is a name as any other."""

COMPARABLE_AREA = 0.1
"""Share of the largest image's area from which another image counts as a scene of its own."""

REDUCED_BIT, MASK_BIT = 1, 4
"""Of NewSubfileType: a smaller copy of another page, a transparency mask."""
ASPECT_TOLERANCE = 0.01


@dataclass(frozen=True)
class Pages:
    """One page as the image of a scene or of a level, in the terms of tifffile's series."""

    keyframe: Any
    kind: str = "generic"
    smaller: list[Any] = field(default_factory=list)
    """Pages with the reduced-resolution bit that follow it."""
    masks: list[Any] = field(default_factory=list)
    """Pages with the mask bit that follow it."""
    planes: dict[int, Any] = field(default_factory=dict)
    """Of a level of a stack, the pages of those planes that are wanted, by their numbers."""

    name = ""

    @property
    def pages(self) -> Mapping[int, Any]:
        return self.planes or {0: self.keyframe}

    @property
    def axes(self) -> str:
        return str(self.keyframe.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.keyframe.shape)

    @property
    def levels(self) -> list[Any]:
        """Itself, its SubIFDs and the pages that follow it."""
        inner = [page.aspage() for page in self.keyframe.pages or ()]
        alike = [page for page in self.smaller if page.is_tiled or not self.keyframe.is_tiled]
        return [self, *(Pages(page, self.kind) for page in (*inner, *alike))]


def pick_series(tif: tifffile.TiffFile, choices: Choices) -> tuple[int, Any]:
    """Index and series (tifffile's, or `Pages`) of the scene to read; noted in `choices` where several could be meant. Raises InputError."""
    address = choices.address
    images = _without_associated([(k, s) for k, s in enumerate(_all_series(tif, address)) if not _is_mask(s.keyframe)])
    if not images:
        raise NoGridError(f"{address}: tifffile finds no image in the file")
    for _, series in images:
        if series.kind in OTHER_KINDS:
            raise NoGridError(f"{address}: {OTHER_KINDS[series.kind]} is no regular grid of tiles")
    if any(_area(s) == 0 for _, s in images):
        page = next(s for _, s in images if _area(s) == 0).keyframe
        raise InputError(
            f"{address}: an image of {page.imagelength} x {page.imagewidth} px has no pixels. The file is damaged; export it again."
        )
    largest = max(_area(s) for _, s in images)
    scenes = [(k, s) for k, s in images if _area(s) >= COMPARABLE_AREA * largest and not int(s.keyframe.subfiletype) & REDUCED_BIT]
    scenes = scenes or images[:1]
    wanted = choices.options.scene
    if wanted is not None:
        if not 0 <= wanted < len(scenes):
            raise InputError(f"{address}: source.scene: {wanted}, but the file has scenes 0 to {len(scenes) - 1}.")
        return scenes[wanted]
    if len(scenes) > 1:
        sizes = ", ".join(f"{k}: {_called(s)}{s.keyframe.imagelength} x {s.keyframe.imagewidth}" for k, (_, s) in enumerate(scenes))
        choices.refuse(f"the file holds {len(scenes)} images ({sizes})", "scene", "0")
    return scenes[0]


def _called(series: Any) -> str:
    return f"{series.name!r} " if series.name else ""


def _all_series(tif: tifffile.TiffFile, address: str) -> list[Any]:
    """Tifffile's series; where those would join pages of several pyramids, one for each page that is no smaller copy of another."""
    found = _series_of(tif, address)
    if not all(series.kind in PLAIN_KINDS for series in found):
        return found
    own: list[Pages] = []
    mixed = False
    for page in _pages(tif):
        if _is_mask(page):
            mixed = True
            if own:
                own[-1].masks.append(page)
        elif int(page.subfiletype) & REDUCED_BIT:
            mixed = True
            if own and not is_associated(page.description):
                _owner(own, page).smaller.append(page)
        else:
            own.append(Pages(page, found[0].kind))
    return list(own) if mixed and own else found


def _series_of(tif: tifffile.TiffFile, address: str) -> list[Any]:
    """Tifffile's series. It joins the SubIFDs of planes by their order, and fails where that differs: they are kept from it then, and joined by their shapes."""
    try:
        return list(tif.series)
    except TIFFFILE_ERRORS as error:
        first = {id(page.keyframe): page.keyframe for page in tif.pages if page.keyframe is not None} if tif.is_ome else {}
        inner = {key: page.subifds for key, page in first.items() if page.subifds}
        if not inner:
            if tif.is_ome and isinstance(error, RuntimeError):  # of planes that it takes to be coded alike
                raise InputError(
                    f"{address}: its planes are pictures of several kinds, which make no image together ({error}). "
                    "Export them alike, or convert the whole to OME-Zarr."
                ) from error
            raise
    for key in inner:
        first[key].subifds = None
    try:
        return list(tif.series)
    finally:
        for key, places in inner.items():
            first[key].subifds = places


def _owner(own: list[Pages], page: Any) -> Pages:
    """The image that a smaller page is a copy of: the last larger one of its shape, as a macro may stand between; else the last."""
    if not _area(Pages(page)):
        return own[-1]
    size = Size(int(page.imagelength), int(page.imagewidth))
    larger = (image for image in reversed(own) if _area(image) > _area(Pages(page)))
    return next((image for image in larger if same_aspect(Size(*_sides(image)), size)), own[-1])


def _pages(tif: tifffile.TiffFile) -> Iterator[Any]:
    """All pages at the top of the file, with their own tags."""
    for page in tif.pages:
        yield page.aspage()


def _without_associated(images: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """Less the pictures that accompany a slide: never the largest image, never the last one left."""
    if not images:
        return images
    largest = max(_area(s) for _, s in images)
    free = PLAIN_KINDS | {"ome", "imagej"}  # others' names are not free text: tifffile gives them by the format's own rules
    kept = [(k, s) for k, s in images if (s.kind in free and _area(s) == largest) or not is_associated(s.name or s.keyframe.description)]
    return kept or images


def is_associated(text: str) -> bool:
    """Whether a name, or the last line of an Aperio description up to its size, is that of a picture that accompanies a slide."""
    last = text.strip().rpartition("\n")[2]
    return re.sub(r"\s+\d+x\d+$", "", last.partition("|")[0].strip()).casefold() in ASSOCIATED


def _sides(series: Any) -> tuple[int, int]:
    return int(series.keyframe.imagelength), int(series.keyframe.imagewidth)


def _area(series: Any) -> int:
    return math.prod(_sides(series))


def _is_mask(page: Any) -> bool:
    return bool(int(page.subfiletype) & MASK_BIT)


def pick_levels(tif: tifffile.TiffFile, series: Any, wanted: Sequence[int] = (0,)) -> list[tuple[Level, Any]]:
    """Geometry and series of each level, finest first, each coarser than the one before; of a stack at least the `wanted` planes."""
    base = series.keyframe
    l0_size = Size(int(base.imagelength), int(base.imagewidth))
    found = [(Level(l0_size, 1.0), series.levels[0])]
    candidates = _aperio_pages(tif, base) if series.kind == "svs" else [*series.levels[1:], *_inner_pages(tif, series, wanted)]
    for candidate in candidates:
        page = candidate.keyframe
        if _is_mask(page) or _area(candidate) == 0 or is_associated(page.description) or any(candidate.pages[k] is None for k in wanted):
            continue
        if (page.dtype, page.samplesperpixel) != (base.dtype, base.samplesperpixel) or _colours_of(page) != _colours_of(base):
            continue
        size = Size(int(page.imagelength), int(page.imagewidth))
        axes = base.axes if isinstance(candidate, Pages) else series.axes
        if same_aspect(l0_size, size) and _same_axes(candidate.axes, axes):
            found.append((Level(size, downsample_from_sizes(l0_size, size)), candidate))
    found.sort(key=lambda pair: pair[0].downsample)
    return [pair for k, pair in enumerate(found) if k == 0 or pair[0].downsample > found[k - 1][0].downsample]


def _same_axes(axes: str, others: str) -> bool:
    """Whether axes are the same but for where a page stores its samples, by pixels or by planes: GDAL makes overviews in planes."""
    return axes == others or {axes, others} == {"YXS", "SYX"}


def _colours_of(page: Any) -> tuple[Any, ...]:
    """What samples of a page stand for, as far as a level may not differ in it: RGB and YCbCr are told apart page by page."""
    kind = int(page.photometric)
    return (RGB if kind == YCBCR else kind, color_map(page).tobytes() if kind == PALETTE else b"")


def _aperio_pages(tif: tifffile.TiffFile, base: Any) -> list[Pages]:
    """The tiled pages of an Aperio file, whichever place the thumbnail, label and macro have among them, or lack."""
    return [Pages(page, "svs") for page in _pages(tif) if page.is_tiled and page.index != base.index]


def _inner_pages(tif: tifffile.TiffFile, series: Any, wanted: Sequence[int]) -> Iterator[Pages]:
    """The SubIFDs of an image: tifffile takes them for levels only in some orders. Those of the planes of a stack belong together by their shape."""
    if series.kind not in PLAIN_KINDS | {"ome"} or any(series.pages[k].parent is not tif for k in wanted):
        return
    inner = [[page.aspage() for page in series.pages[k].aspage().pages or ()] for k in wanted]
    for page in inner[0]:
        alike = [next((other for other in plane if _made_alike(other, page)), None) for plane in inner]
        if None not in alike:
            yield Pages(page, series.kind, planes=dict(zip(wanted, alike, strict=True)))


def _made_alike(page: Any, other: Any) -> bool:
    pieces = [(each.tilelength, each.tilewidth, each.rowsperstrip, each.photometric) for each in (page, other)]
    return bool((page.shape, page.dtype, page.axes) == (other.shape, other.dtype, other.axes) and pieces[0] == pieces[1])


def same_aspect(l0_size: Size, size: Size) -> bool:
    """Whether `size` is level 0 made smaller: both sides by one factor, within 1 % or 2 px for rounding."""
    factor = l0_size.width / size.width
    return abs(l0_size.height / factor - size.height) <= max(2.0, ASPECT_TOLERANCE * size.height)


def mask_levels(series: Any) -> list[tuple[Level, Pages]]:
    """The transparency masks of a scene, finest first: pages with the mask bit that follow its page, or that stand among its SubIFDs."""
    base = series.keyframe
    l0_size = Size(int(base.imagelength), int(base.imagewidth))
    inner = [page.aspage() for page in base.pages or ()]
    following = series.masks if isinstance(series, Pages) else []
    found = []
    for page in (*inner, *following):
        size = Size(int(page.imagelength), int(page.imagewidth)) if _is_mask(page) and _area(Pages(page)) else None
        if size is not None and int(page.samplesperpixel) == 1 and same_aspect(l0_size, size):
            found.append((Level(size, downsample_from_sizes(l0_size, size)), Pages(page)))
    return sorted(found, key=lambda pair: pair[0].downsample)


def vendor_of(tif: tifffile.TiffFile, series: Any) -> str:
    """Format family, in OpenSlide's words where it has one."""
    if series.kind == "svs":
        return "aperio"
    if series.kind == "ndpi":
        return "hamamatsu"
    if tif.is_ome:
        return "ome-tiff"
    return "geotiff" if series.keyframe.is_geotiff else "generic-tiff"
