"""A first config for the images at hand: what their files say decides it, and its comments say why."""

from __future__ import annotations

import json
import posixpath
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tilestream.buffers import counted
from tilestream.config.json_schema import config_schema
from tilestream.config.local_files import refuse_url
from tilestream.config.slide_list import SlideRef, list_slides
from tilestream.errors import ConfigError, InputError
from tilestream.sources import open_source
from tilestream.sources.base import SlideInfo, SourceOptions
from tilestream.sources.facts.describe import one_line

TARGET_MPP = 0.5
"""µm/px that most encoders of tissue were trained at: 20x."""

SCHEMA = "tilestream.schema.json"
"""What editors complete and check a config by; lies beside it."""


@dataclass
class LookedAt:
    """What a list of slides holds."""

    images: list[SlideInfo] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """The id of each."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why an image cannot be read, by id."""

    @property
    def resolutions(self) -> list[float]:
        """µm/px of level 0 of those that state it and lie on no map, finest first."""
        return sorted(image.mpp for image in self.images if image.mpp is not None and image.geo is None)

    @property
    def on_map(self) -> bool:
        """Whether most of them are maps."""
        return 2 * sum(image.geo is not None for image in self.images) > len(self.images)


def write_first_config(slides: Sequence[str], path: Path, output: str, *, force: bool = False) -> Iterator[str]:
    """Look at the slides, write a config for them and the schema beside it, and say what was found.

    Raises
    ------
    ConfigError
        A file is in the way, nothing is listed, or none of it can be read.
    """
    refuse_url(path, "--out")
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already. Give another name with --out, or replace it with --force.")
    seen = look_at(list_slides(slides))
    if not seen.images:
        name, why = next(iter(seen.refused.items()))
        raise ConfigError(f"none of {counted(len(seen.refused), 'image')} can be read. The first, {name}: {why}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config_text(slides, seen, output, path), encoding="utf-8")
    schema = path.parent / SCHEMA
    if not schema.exists():
        schema.write_text(json.dumps(config_schema(), indent=1) + "\n", encoding="utf-8")
    formats = Counter(image.vendor or image.backend for image in seen.images)
    yield f"{counted(len(seen.images), 'image')} can be read: " + ", ".join(f"{count} {name}" for name, count in formats.most_common())
    for name, why in seen.refused.items():
        yield f"{name}: will be refused: {why.removeprefix(f'{name}: ')}"
    for names, why in left_out(seen):
        yield f"{', '.join(names)}: will be refused: {why}"
    yield f"wrote {path}. Have a look at it, then: tilestream run {typed(path)}"


def left_out(seen: LookedAt) -> list[tuple[list[str], str]]:
    """Images that can be read and yet do not suit the config: their ids, and why."""
    if 2 * len(seen.resolutions) <= len(seen.images):  # each is read at its own pixels
        return []
    told = list(zip(seen.names, seen.images, strict=True))
    silent = [name for name, image in told if image.mpp is None and image.geo is None]
    maps = [name for name, image in told if image.geo is not None]
    found = [
        (silent, "their files state no resolution. Add a CSV column mpp, or source: {mpp: ...}"),
        (maps, "maps want a config of their own, with level: 0"),
    ]
    return [(names, why) for names, why in found if names]


def look_at(refs: Sequence[SlideRef]) -> LookedAt:
    """Open each image and keep what it says of itself; no pixels are read."""
    seen = LookedAt()
    for ref in refs:
        try:
            with open_source(ref.address, SourceOptions(mpp=ref.mpp)) as source:
                seen.images.append(source.info)
                seen.names.append(ref.id)
        except InputError as error:
            seen.refused[ref.id] = str(error)
    return seen


def typed(path: Path | str) -> str:
    """A path as it is typed in a shell, on one line."""
    return one_line(shlex.quote(str(path)))


def config_text(slides: Sequence[str], seen: LookedAt, output: str, path: Path) -> str:
    """The config as YAML with comments."""
    listed = json.dumps(slides[0] if len(slides) == 1 else list(slides), ensure_ascii=False)
    return f"""\
# yaml-language-server: $schema={SCHEMA}
#
#   tilestream plan {typed(path)}    # levels, tiles, bytes, memory; writes nothing
#   tilestream run {typed(path)}     # run it again after an interruption: it does what is missing
#   tilestream view {typed(output)}

slides: {listed}   # a path, a folder, a glob, a list, or a CSV with the columns path[,id][,mpp][,mask]

output: {json.dumps(output, ensure_ascii=False)}   # a folder, or an object store: s3://bucket/{one_line(posixpath.basename(output)) or "embeddings"}

tiles:
  size: 224                    # px a side, as the encoder gets them
{_resolution(seen)}
{_tissue(seen)}

encoder: tilestream-lite       # comes with the package; `tilestream encoders` lists foundation models by name

pool: mean                     # one vector for each slide: the mean of its tiles

on_error: {{slide: skip, tile: nan}}   # what cannot be read is skipped and listed; a tile that cannot be read becomes NaN with a status
"""


def _resolution(seen: LookedAt) -> str:
    """The line that says at which resolution to work, and why."""
    known = seen.resolutions
    if 2 * len(known) <= len(seen.images):
        stated = f"only {len(known)} of {len(seen.images)} state their µm/px" if known else "no file states its µm/px"
        why = f"{'the images lie on a map' if seen.on_map else stated}: their own pixels"
        return f"  level: 0                     # {why}"
    mpp = max(TARGET_MPP, round(known[-1], 3))
    span = f"{known[0]:.4g}" if known[0] == known[-1] else f"{known[0]:.4g} to {known[-1]:.4g}"
    line = f"  mpp: {mpp:<8g}                # µm/px to work at; the files have {span}"
    for names, why in left_out(seen):
        line += f"\n                               # {counted(len(names), 'image')} will be refused: {why}"
    return line


def _tissue(seen: LookedAt) -> str:
    """The lines that say which tiles are kept."""
    if seen.on_map:
        return "  tissue: none                 # every tile that holds data; or a mask: {mask: fields.geojson}"
    return "  tissue: otsu                 # leave the glass out; none keeps every tile, {mask: annotations/{slide}.geojson} those that were drawn"
