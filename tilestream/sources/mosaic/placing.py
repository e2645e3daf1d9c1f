"""Where the files of a mosaic lie in it: one CRS, one pixel size, one grid; what differs is refused with both values."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tilestream.errors import InputError
from tilestream.geometry import Region, Size
from tilestream.sources.geo import GeoReference, geo_from_crs
from tilestream.sources.mosaic.parts import Listed, Part
from tilestream.sources.tiff.source import TiffSource

NEAR = 0.01
"""Pixels by which a file may lie off the grid of the first; also over its whole length, for the size of its pixels."""


@dataclass(frozen=True)
class Placed:
    """One file, opened, in its place."""

    part: Part
    source: TiffSource
    taken: Region
    """The pixels of the file that are taken, level 0."""
    place: Region
    """Where they lie in the mosaic, level-0 px."""


def place_parts(listed: Listed, opened: dict[str, TiffSource], address: str) -> tuple[tuple[Placed, ...], Size, GeoReference | None]:
    """The parts in their places, the size of the whole, and where it lies on a map. Raises InputError."""
    geos = {path: source.info.geo for path, source in opened.items()}
    if listed.transform is not None or any(part.corner is not None for part in listed.parts):
        return _as_told(listed, opened, address)
    base = geos[listed.parts[0].path]
    corners: list[tuple[int, int]] = []
    for part in listed.parts:
        geo = geos[part.path]
        if geo is None or base is None or _has_crs(geo) != _has_crs(base):
            unsaid = part.path if base is not None and (geo is None or _has_crs(base)) else listed.parts[0].path
            raise InputError(
                f"{address}: {unsaid} does not say where it lies on a map, and a mosaic is put together by that. Set its place: gdal_edit -a_srs -a_ullr."
            )
        _refuse_other_crs((listed.parts[0].path, base), (part.path, geo))
        corners.append(_corner((listed.parts[0].path, base), (part.path, geo), opened[part.path].info.size))
    top, left = min(y for y, _ in corners), min(x for _, x in corners)
    placed = []
    for part, (y, x) in zip(listed.parts, corners, strict=True):
        size = opened[part.path].info.size
        taken = Region(0, 0, size.height, size.width)
        placed.append(Placed(part, opened[part.path], taken, Region(y - top, x - left, size.height, size.width)))
    whole = Size(max(each.place.px_y + each.place.height for each in placed), max(each.place.px_x + each.place.width for each in placed))
    assert base is not None, "the first file says where it lies"
    return tuple(placed), whole, base.moved(top, left, 1)


def _as_told(listed: Listed, opened: dict[str, TiffSource], address: str) -> tuple[tuple[Placed, ...], Size, GeoReference | None]:
    """As a VRT says, whatever the files say themselves."""
    assert listed.size is not None, "a list with places has a size"
    placed = []
    for part in listed.parts:
        size = opened[part.path].info.size
        taken = part.taken or Region(0, 0, size.height, size.width)
        if taken.clipped(size) != taken:
            raise InputError(
                f"{address}: takes {taken.height} x {taken.width} px at ({taken.px_y}, {taken.px_x}) of {part.path}, which has {size.height} x {size.width}. Write the VRT again with gdalbuildvrt."
            )
        y, x = part.corner or (0, 0)
        inside = Region(y, x, taken.height, taken.width).clipped(listed.size)
        if inside is None:
            continue
        moved = Region(taken.px_y + inside.px_y - y, taken.px_x + inside.px_x - x, inside.height, inside.width)
        placed.append(Placed(part, opened[part.path], moved, inside))
    if not placed:
        raise InputError(f"{address}: none of its files lies in its {listed.size.height} x {listed.size.width} px.")
    return tuple(placed), listed.size, _told_place(listed, opened)


def _told_place(listed: Listed, opened: dict[str, TiffSource]) -> GeoReference | None:
    """Where a list says that the whole lies; in the CRS of its files where it names none, or the same."""
    if listed.transform is None:
        return None
    known = next((source.info.geo for source in opened.values() if source.info.geo is not None and source.info.geo.crs), None)
    if known is not None and (not listed.crs or known.code == listed.crs or _equal_crs(known.crs, listed.crs)):
        return replace(known, transform=listed.transform)
    return geo_from_crs(listed.crs, listed.transform) if listed.crs else GeoReference(listed.transform)


def _refuse_other_crs(base: tuple[str, GeoReference], other: tuple[str, GeoReference]) -> None:
    (first, a), (path, b) = base, other
    if (a.code, a.wkt, a.code or a.wkt or a.name) == (b.code, b.wkt, b.code or b.wkt or b.name) or _equal_crs(a.crs, b.crs):
        return
    raise InputError(
        f"{path}: its CRS is {_told_crs(b)}, and that of {first} is {_told_crs(a)}; all files of a mosaic have one. "
        "Make a mosaic for each, or warp one to the other: gdalwarp -t_srs."
    )


def _has_crs(geo: GeoReference) -> bool:
    """Whether anything is said of the map that an image lies on; files of which nothing is said lie on one of their own."""
    return bool(geo.crs or geo.name)


def _told_crs(geo: GeoReference) -> str:
    return geo.code or geo.name or geo.wkt[:60] or "unknown"


def _equal_crs(a: str, b: str) -> bool:
    try:
        import pyproj
    except ModuleNotFoundError:
        return False
    try:
        return bool(a and b and pyproj.CRS.from_user_input(a).equals(pyproj.CRS.from_user_input(b), ignore_axis_order=True))
    except pyproj.exceptions.CRSError:
        return False


def _corner(base: tuple[str, GeoReference], other: tuple[str, GeoReference], size: Size) -> tuple[int, int]:
    """Row and column in the grid of the first file of the corner of another."""
    (first, geo), (path, its) = base, other
    a, b, c, d, e, f = geo.transform
    a2, b2, c2, d2, e2, f2 = its.transform
    area = a * e - b * d
    across = [(e * x - b * y) / area for x, y in ((a2, d2), (b2, e2), (c2 - c, f2 - f))]
    down = [(a * y - d * x) / area for x, y in ((a2, d2), (b2, e2), (c2 - c, f2 - f))]
    off = (abs(across[0] - 1) + abs(down[0])) * size.width + (abs(across[1]) + abs(down[1] - 1)) * size.height
    if off > NEAR:
        raise InputError(
            f"{path}: a pixel is ({a2:.12g}, {d2:.12g}) by ({b2:.12g}, {e2:.12g}) in units of the map, and of {first} ({a:.12g}, {d:.12g}) by ({b:.12g}, {e:.12g}); "
            "all files of a mosaic have one. Warp one to the other: gdalwarp -tr -tap."
        )
    row, col = down[2] + 0.0, across[2] + 0.0  # 0.0, and not -0.0
    if max(abs(row - round(row)), abs(col - round(col))) > NEAR:
        raise InputError(
            f"{path}: begins at row {row:.12g}, column {col:.12g} of the grid of {first}, between its pixels ({c2:.12g}, {f2:.12g} and {c:.12g}, {f:.12g} on the map); "
            "all files of a mosaic lie on one grid. Warp one to the other: gdalwarp -tr -tap."
        )
    return round(row), round(col)
