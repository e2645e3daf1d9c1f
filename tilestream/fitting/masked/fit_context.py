"""What the command `fit` does with `target.masked`: stored embeddings in, a context and what it is worth out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tilestream.config.fit_schema import FitConfig, Masked
from tilestream.encoders.contexts.context_file import ContextAbout, FittedOn, read_context_about, write_context
from tilestream.errors import ConfigError, InputError
from tilestream.fitting.masked.baselines import COMPONENTS, MOST, fit_ridge
from tilestream.fitting.masked.blocks import TokenBlocks
from tilestream.fitting.masked.judge import Told, hide, judge
from tilestream.fitting.masked.learn import Learned, learn
from tilestream.fitting.masked.page import Judged, lost_words, metrics_json, report_html
from tilestream.fitting.masked.surroundings import compare_neighbours, probe, read_vectors
from tilestream.fitting.metrics import Floats, Ints
from tilestream.fitting.outputs import open_slides, refuse_foreign, write_texts
from tilestream.fitting.splits import draw_folds, join_groups
from tilestream.fitting.targets import annotation_file, patient_of, refuse_mixed_embeddings
from tilestream.fitting.tile_labels import Doubtful, draw_tile_classes
from tilestream.models.context import ContextTransformer, WindowBlock
from tilestream.models.positions import TableBias
from tilestream.store.records import digest_of
from tilestream.store.slide import Slide

WINDOWS_A_BLOCK = 4
"""Windows a side of what is read and learned together."""

NEAREST = 2.0
"""How much a logit of the head with the shortest reach falls with each token of distance, before anything is learned."""

HIDDEN_WANTED, MOST_DRAWS = 10_000, 4
"""Hidden tokens of held-out slides that are wanted, and how often others are hidden to come near it."""

FEWEST = 64
"""Tiles on each side of the split."""

MOST_SEEN = 12_000
"""Tiles on each side of the split whose neighbours and classes are looked at, at most."""


@dataclass(frozen=True)
class ContextSummary:
    """What came out."""

    context: Path
    report: Path
    metrics: Path
    told: Told
    judged: Judged
    lines: tuple[str, ...]
    """What a person reads at the end."""


def fit_context(config: FitConfig, tell: Callable[[str], None] = lambda words: None) -> ContextSummary:  # noqa: ARG005
    """Train a context on stored embeddings by masked tokens, judge it on slides that it never saw, and write it with a report.

    Slides of one patient, or of one image, are on one side. The context that is written is the one that was judged.

    Raises
    ------
    ConfigError, InputError, IncompleteError
        As the exit codes of the command line say; nothing is written then.
    """
    masked = config.target.masked
    assert masked is not None
    stem = config.save.removesuffix(".safetensors")
    main, report, numbers = Path(config.save), Path(f"{stem}.html"), Path(f"{stem}.json")
    refuse_foreign(main, (report, numbers), lambda path: read_context_about(path) is not None, "context")
    slides = open_slides(config.embeddings)
    _refuse_unfit(slides)
    train, held = _share_out(config, slides)
    side = WINDOWS_A_BLOCK * masked.window
    blocks, unseen = (TokenBlocks(part, side, config.memory_limit // 2) for part in (train, held))
    if min(blocks.tokens, unseen.tokens) < FEWEST:
        raise InputError(
            f"embeddings: {blocks.tokens} tiles to learn from and {unseen.tokens} held out, but it takes {FEWEST} of each. Embed more slides."
        )
    about = _about(masked, blocks.dim, slides[0])
    model, axes = _prepared(about, blocks, config.split.seed)
    stride_um = _stride_um(slides[0])
    device = torch.device(
        "cuda" if config.device == "auto" and torch.cuda.is_available() else "cpu" if config.device == "auto" else config.device
    )
    learned = learn(model, blocks, masked, stride_um, config.split.seed, device, tell)
    _round_to_half(model)  # what is judged is what is written
    told = judge_context(model, blocks, unseen, axes, masked, stride_um, config.split.seed)
    judged = _judged(config, about, model, told, learned, (train, held), (blocks, unseen), stride_um)
    about = replace(
        about, trained_on=dict(judged.trained_on), metrics=judged.metrics(), notes=(judged.verdict, judged.positions, *judged.notes)
    )
    try:
        write_texts([(numbers, metrics_json(judged, config.model_dump(mode="json", exclude={"head"}))), (report, report_html(judged))])
        write_context(main, model, about)
    except OSError as error:
        raise ConfigError(f"save: {config.save} cannot be written: {error.strerror or error}.") from error
    return ContextSummary(main, report, numbers, told, judged, (*judged.lines(), f"context: {main}", f"report: {report}"))


def judge_context(
    model: ContextTransformer, blocks: TokenBlocks, unseen: TokenBlocks, axes: Floats, masked: Masked, stride_um: float | None, seed: int
) -> Told:
    """What hidden tokens of held-out slides say of a context; tokens are hidden anew a few times where there are few."""
    part = masked.hidden
    times = [min(MOST_DRAWS, math.ceil(wanted / (part * side.tokens))) for wanted, side in ((MOST, blocks), (HIDDEN_WANTED, unseen))]
    taught = itertools.chain.from_iterable(hide(blocks.drawn(seed, (1 << 20) + n), model, part, seed + n) for n in range(times[0]))
    ridge = fit_ridge(taught, axes, masked.window)
    asked = itertools.chain.from_iterable(hide(unseen.fixed(), model, part, seed + 1 + n) for n in range(times[1]))
    return judge(model, asked, ridge, stride_um, seed)


def _refuse_unfit(slides: Sequence[Slide]) -> None:
    """Refuse slides of several kinds of embeddings, steps or scales, and tiles that lie on no grid."""
    refuse_mixed_embeddings(slides, "tiles")
    first = slides[0]
    for slide in slides:
        slide.grid()  # raises where there is none
        for name, was, now in (("step between tiles", first.stride, slide.stride), ("µm/px", first.tile_mpp, slide.tile_mpp)):
            if was != now and (was is None or now is None or abs(was - now) > 0.05 * was):
                raise InputError(f"{first.id} and {slide.id} have different embeddings: {name} {was} and {now}. Fit on one kind.")


def _stride_um(slide: Slide) -> float | None:
    return None if slide.mpp is None else slide.stride * slide.mpp * slide.scale


def _share_out(config: FitConfig, slides: Sequence[Slide]) -> tuple[list[Slide], list[Slide]]:
    """Slides that are learned from, and those that are held out: those named, or one part of `split.folds`, and at least one patient."""
    patients = [patient_of(config, slide) or slide.id for slide in slides]
    group = join_groups(patients, [slide.image for slide in slides])
    count = int(group.max()) + 1
    if count < 2:
        raise InputError(
            f"embeddings: {len(slides)} slides of one patient, but a context is judged on slides that it has not seen. Embed slides of another one."
        )
    if patterns := config.split.held_out:
        held = np.array([any(fnmatchcase(slide.id, pattern) for pattern in patterns) for slide in slides])
        if held.all() or not held.any():
            raise ConfigError(
                f"split.held_out: {', '.join(patterns)} names {'every slide' if held.all() else 'no slide'} of the embeddings."
            )
        if both := sorted({slides[i].id for i in np.flatnonzero(held).tolist() if (~held & (group == group[i])).any()}):
            raise ConfigError(f"split.held_out: {both[0]} is held out, but another slide of its patient or image is not. Name it too.")
    else:
        held = draw_folds(group, np.zeros(len(slides), np.int64), min(config.split.folds, count), config.split.seed) == 0
    return [slides[i] for i in np.flatnonzero(~held).tolist()], [slides[i] for i in np.flatnonzero(held).tolist()]


def _about(masked: Masked, dim: int, slide: Slide) -> ContextAbout:
    """The shape of the context and what it is fitted on."""
    encoder = slide.recipe["encoder"]
    fitted = FittedOn(
        slide.encoder, encoder.get("weights_sha256"), encoder.get("precision"), slide.tile, float(slide.stride), slide.tile_mpp
    )
    shape: dict[str, Any] = {key: getattr(masked, key) for key in ("window", "depth", "heads", "shift", "position", "width")}
    return ContextAbout(dim, fitted=fitted, **shape)


def _prepared(about: ContextAbout, blocks: TokenBlocks, seed: int) -> tuple[ContextTransformer, Floats]:
    """The module with mean and spread of the tokens, its ends begun with their principal axes, and (d, k) the first of these for the baseline."""
    try:
        model = ContextTransformer(
            about.dim, about.depth, about.heads, about.window, shift=about.shift, position=about.position, seed=seed, width=about.width
        )
    except ConfigError as error:
        raise ConfigError(str(error).replace("context.", "target.masked.")) from error
    assert model.ends is not None
    total, square, count = np.zeros(about.dim), np.zeros((about.dim, about.dim)), 0
    for block in blocks.fixed():
        x = block.tokens.astype(np.float64)
        total, square, count = total + x.sum(axis=0), square + x.T @ x, count + len(x)
    mean = total / count
    variance = np.maximum(np.diag(square) / count - mean**2, 0)
    spread = np.where(variance > 1e-12 * np.maximum(1, mean**2), np.sqrt(variance), 1.0)
    covariance = (square / count - np.outer(mean, mean)) / np.outer(spread, spread)
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, ::-1]
    kept = min(about.width, about.dim)
    with torch.no_grad():
        model.ends.mean.copy_(torch.from_numpy(mean))
        model.ends.spread.copy_(torch.from_numpy(spread))
        scale = np.sqrt(np.maximum(values[::-1][:kept], 1e-6))
        model.ends.enter.weight[:kept].copy_(torch.from_numpy((axes[:, :kept] / np.sqrt(scale * scale.max())).T))
        model.ends.exit.weight.mul_(0.02)
        for layer in model.blocks:
            assert isinstance(layer, WindowBlock)
            _begin_near(layer.attn.bias, about.window)
    return model, np.ascontiguousarray(axes[:, :COMPONENTS])


def _begin_near(bias: nn.Module | None, window: int) -> None:
    """Let heads begin with what is near, each at a reach of its own, the first at all of the window."""
    if not isinstance(bias, TableBias):
        return
    offset = torch.arange(-(window - 1), window, dtype=torch.float32)
    far = torch.hypot(offset[:, None], offset[None, :]).flatten()
    bias.table.copy_(-far[:, None] * torch.linspace(0, NEAREST, bias.table.shape[1]))


def _round_to_half(model: ContextTransformer) -> None:
    """Weights as a file in half precision gives them back."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())


def _judged(
    config: FitConfig, about: ContextAbout, model: ContextTransformer, told: Told, learned: Learned, slides: tuple[list[Slide], list[Slide]],
    blocks: tuple[TokenBlocks, TokenBlocks], stride_um: float | None,
) -> Judged:  # fmt: skip
    """The context with its numbers, and words on what they hide."""
    train, held = slides
    doubtful = Doubtful()
    classes, labels = _labels(config, [*train, *held], doubtful)
    seen, unseen = (
        read_vectors(model, part, labels[start : start + len(own)], stride_um, MOST_SEEN)
        for part, own, start in ((blocks[0], train, 0), (blocks[1], held, len(train)))
    )
    notes = [*lost_words(told, [slide.id for slide in held]), *doubtful.words()]
    if len(held) < 5:
        notes.append(
            f"{len(held)} {'slides are' if len(held) > 1 else 'slide is'} held out, which is few: on other slides the numbers may be far from these."
        )
    if config.target.annotations and not classes:
        notes.append("No tile has a class by target.annotations.")
    trained_on = {
        "slides": [slide.id for slide in train], "held_out": [slide.id for slide in held], "tokens": blocks[0].tokens, "held_out_tokens": blocks[1].tokens,
        "sources_sha256": digest_of([[slide.id, slide.source.get("fingerprint")] for slide in train]), "passes": learned.passes, "steps": learned.steps,
        "seed": config.split.seed, "hidden": config.target.masked.hidden if config.target.masked else None,
    }  # fmt: skip
    words = (
        f"context of {about.depth} layers, {about.window} x {about.window} windows, width {about.width}, on {train[0].encoder}, learned from {len(train)} slides "
        f"({blocks[0].tokens:,} tokens), judged on {len(held)} others"
    )
    probes = probe(seen, unseen, config.split.seed) if classes else {}
    return Judged(words, told, compare_neighbours(unseen, config.split.seed), probes, learned, trained_on, tuple(notes))


def _labels(config: FitConfig, slides: Sequence[Slide], doubtful: Doubtful) -> tuple[list[str], list[Ints]]:
    """The classes of drawn regions, and (n,) the class of each tile of each slide, -1 where there is none; `doubtful` takes up what labels none."""
    pattern = config.target.annotations
    if pattern is None:
        return [], []
    drawn: list[tuple[list[str], Ints]] = []
    for slide in slides:
        path = annotation_file(pattern, slide.id)
        if path is None:
            drawn.append(([], np.full(slide.layout.tiles, -1)))
        else:
            names, label = draw_tile_classes(slide, path, config.target.min_fraction, config.target.classes, doubtful)
            drawn.append((names, label.astype(np.int64)))
    classes = sorted({name for names, _ in drawn for name in names})
    order = [np.array([classes.index(name) for name in names] + [-1]) for names, _ in drawn]
    return classes, [places[label] for places, (_, label) in zip(order, drawn, strict=True)]
