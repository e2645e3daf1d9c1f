"""The slides of outputs that something is learned from, and files that a fit may replace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tilestream.errors import ConfigError, InputError
from tilestream.runner.heads.fitting import TOLERANCE
from tilestream.store.cohort import Cohort, open_output, some
from tilestream.store.slide import Slide


def open_slides(outputs: Sequence[str]) -> list[Slide]:
    """The finished slides of all outputs.

    Raises
    ------
    ConfigError
        Two slides have one id.
    """
    slides: list[Slide] = []
    for output in outputs:
        found = open_output(output)
        slides += list(found) if isinstance(found, Cohort) else [found]
    seen: dict[str, Slide] = {}
    for slide in slides:
        if seen.setdefault(slide.id, slide) is not slide:
            raise ConfigError(f"embeddings: {seen[slide.id].path} and {slide.path} are slides of one id. Give one of them.")
    if not slides:
        raise InputError(f"embeddings: {', '.join(outputs)} has no finished slide. Run its command again.")
    return slides


def refuse_other_resolutions(slides: Sequence[Slide]) -> tuple[str, ...]:
    """Refuse tiles of different resolutions, which `tiles.level` gives of images that have different ones; what cannot be compared is told.

    Raises
    ------
    InputError
        Names the finest and the coarsest.
    """
    known = sorted(((slide.tile_mpp, slide.id) for slide in slides if slide.tile_mpp is not None), key=lambda each: each[0])
    unknown = [slide.id for slide in slides if slide.tile_mpp is None]
    if known and known[-1][0] - known[0][0] > TOLERANCE * known[0][0]:
        (fine, one), (coarse, other) = known[0], known[-1]
        raise InputError(
            f"embeddings: tiles of {one} have {fine:.4g} µm/px and those of {other} {coarse:.4g}. Take slides of one resolution, or embed all at one by tiles.mpp."
        )
    if known and unknown:
        fine, one = known[0]
        return (f"The resolution of {some(unknown)} is not known: that it is that of {one}, {fine:.4g} µm/px, is taken for granted.",)
    return ()


def refuse_foreign(main: Path, beside: Sequence[Path], ours: Callable[[Path], bool], what: str) -> None:
    """Refuse to replace what no fit has written: `main`, which `ours` knows, and the files beside it.

    Raises
    ------
    ConfigError
        Something else is there.
    """
    if main.exists() and not ours(main):
        raise ConfigError(f"save: {main} is there, and no {what} of tilestream. Choose another name.")
    if main.exists():
        return
    for path in beside:
        if path.exists():
            raise ConfigError(f"save: {path} is there, but {main} is not: no fit has written it. Choose another name, or move it away.")


def write_texts(texts: Sequence[tuple[Path, str]]) -> None:
    """Write files whole, each put into its place when it is complete."""
    for path, text in texts:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
