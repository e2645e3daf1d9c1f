"""What the heads of a slide answered, in words: counts of objects and of tiles by class, and the slide's own answers."""

from __future__ import annotations

import numpy as np

from tilestream.errors import InputError
from tilestream.store.heads.shapes import ShapesFile, shapes_key
from tilestream.store.layout import TILES
from tilestream.store.slide import Slide
from tilestream.viewer.answers import has_labels, label_shares


def answer_words(slide: Slide) -> list[str]:
    """One line a head that has answered."""
    return [f"{name}: {words}" for name in slide.heads if (words := _words(slide, name))]


def _words(slide: Slide, name: str) -> str:
    answer, kind = slide.head_answer(name), slide.heads[name]["kind"]
    if kind == "detect":
        if not slide.folder.exists(shapes_key(name)):
            return ""
        counts = ShapesFile.of(slide.folder, name).class_counts()
        return f"{sum(counts):,} objects{_parts(answer.classes, counts)}"
    if kind == "classify" and slide.has(f"{TILES}/obs/{name}"):
        codes = np.asarray(slide.array(f"{TILES}/obs/{name}/codes")[:], np.int64)
        counts = np.bincount(codes, minlength=len(answer.classes) + 1)[1:].tolist()
        return f"{sum(counts):,} tiles{_parts(answer.classes, counts)}"
    if has_labels(slide, name):
        return ", ".join(f"{label} {share:.1%}" for label, share in zip(answer.classes, label_shares(slide, name), strict=True))
    return _of_slide(slide, name, answer.classes) if kind == "slide" else ""


def _of_slide(slide: Slide, name: str, classes: tuple[str, ...]) -> str:
    try:
        values = slide.read_head(name)[0].tolist()
    except InputError:  # not answered yet
        return ""
    names = classes or tuple(f"output {k}" for k in range(len(values)))
    return ", ".join(f"{label} {value:.3g}" for label, value in zip(names, values, strict=True))


def _parts(classes: tuple[str, ...], counts: list[int]) -> str:
    """The counts of each class, where there are several."""
    return f" ({', '.join(f'{label} {count:,}' for label, count in zip(classes, counts, strict=True))})" if len(classes) > 1 else ""
