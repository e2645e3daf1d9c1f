"""What the command `inspect` says of an image."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from tilestream.errors import ReadError, without_credentials
from tilestream.sources import open_source
from tilestream.sources.base import Source, SourceOptions
from tilestream.sources.facts.columns import print_rows, print_words
from tilestream.sources.resolution import magnification_words


def describe_image(address: str) -> dict[str, Any]:
    """Facts of an image as plain values, without reading its pixels.

    Raises
    ------
    InputError
        It cannot be opened.
    """
    with open_source(address, SourceOptions()) as source:
        info = source.info
        levels, unread = [], _look_at_picture(source)
        for k, level in enumerate(info.levels):
            pieces = source.segment_grid(k)
            levels.append(
                {
                    "level": k,
                    "height": level.size.height,
                    "width": level.size.width,
                    "downsample": level.downsample,
                    "mpp": None if info.mpp is None else info.mpp * level.downsample,
                    "pieces": None if pieces is None else f"{pieces.rows} x {pieces.cols} of {pieces.height} x {pieces.width} px",
                }
            )
        return {
            "address": without_credentials(info.address), "backend": info.backend, "reason": info.reason, "vendor": info.vendor, "compression": info.compression,
            "mpp": info.mpp, "mpp_source": info.mpp_source, "fingerprint": info.fingerprint, "levels": levels,
            "properties": dict(info.properties), "warnings": [*info.warnings, *unread],
        }  # fmt: skip


def _look_at_picture(source: Source) -> list[str]:
    """What is wrong with the pixels of a plain picture, which is small enough to be decoded to see; empty where nothing is, and of other images."""
    if source.info.backend != "picture":
        return []
    try:
        source.read_segment(0, 0, 0)
    except ReadError as error:
        words = str(error).removeprefix(f"{source.info.address}: ")
        return [f"its pixels cannot be read ({words}): the file is cut off or damaged. Copy it again from its origin."]
    return []


def _length(um: float) -> str:
    """A length in µm, in metres where it is on a map's scale."""
    return f"{um:.4g} µm" if um < 1e4 else f"{um / 1e6:.6g} m"


def one_line(words: str) -> str:
    """Words from a file on one line, without signs that a terminal would obey."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in words).split())


def print_description(facts: dict[str, Any], console: Console) -> None:
    """The same for people, with the lines to write in a config."""
    mpp = facts["mpp"]
    told = {key: one_line(facts[key] or "unknown") for key in ("reason", "vendor", "compression", "mpp_source")}
    console.print(facts["address"], style="bold", highlight=False, markup=False, soft_wrap=True)
    print_words(console, f"opened by {told['reason']}")
    print_words(console, f"format {told['vendor']}, compression {told['compression']}")
    print_words(
        console,
        f"resolution {_length(mpp)}/px ({told['mpp_source']})"
        if mpp is not None
        else f"resolution unknown: the file states none to rely on.{magnification_words(facts['properties'])}",
    )
    rows = [
        [
            str(level["level"]),
            f"{level['height']} x {level['width']}",
            f"{level['downsample']:.6g}",
            "-" if level["mpp"] is None else _length(level["mpp"]).removesuffix(" µm"),
            level["pieces"] or "read by region",
        ]
        for level in facts["levels"]
    ]
    print_rows(console, ("level", "size (h x w)", "downsample", "µm/px", "file tiles (rows x columns)"), rows)
    for name, value in ((one_line(name), one_line(value)) for name, value in facts["properties"].items()):
        print_words(console, f"  {name}: {value if len(value) <= 160 else value[:157] + '...'}")
    for warning in facts["warnings"]:
        print_words(console, f"warning: {one_line(warning)}", style="yellow")
    if "geo.crs" in facts["properties"]:
        print_words(console, "in a config: tiles: {size: 224, level: 0, tissue: none}")
        return
    advice = (
        f"tiles: {{size: 224, mpp: {max(0.5, round(mpp, 3)):g}}}"
        if mpp is not None
        else "tiles: {size: 224, level: 0}   # or source: {mpp: ...} and tiles.mpp"
    )
    print_words(console, f"in a config: {advice}")
