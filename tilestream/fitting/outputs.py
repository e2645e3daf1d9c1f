"""The slides of outputs that something is learned from, and files that a fit may replace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tilestream.errors import ConfigError, InputError
from tilestream.store.cohort import Cohort, open_output
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
