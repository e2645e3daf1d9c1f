"""Vectors of patients, each of whom may have several slides."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from tilestream.errors import ConfigError, InputError
from tilestream.fitting.outputs import refuse_other_resolutions
from tilestream.store.cohort import Cohort, some
from tilestream.store.slide import Slide

if TYPE_CHECKING:
    import anndata

LEARNED = ("gated_attention", "queries")


def patient_vectors(
    output: Cohort | str | os.PathLike[str],
    column: str = "patient",
    *,
    what: str = "slide",
    pool: str = "mean",
    weights: str | os.PathLike[str] | None = None,
) -> anndata.AnnData:
    """Make one vector of the slides of each patient.

    Parameters
    ----------
    output : Cohort, path or URL
        What a run wrote.
    column : str
        Column of the list of slides that says whose each slide is.
    what : str
        `slide`, or of pools with names one of a slide's `named_vectors`, such as `slide-gigapath`.
    pool : str
        mean, max or mean+max; or gated_attention or queries, with their `weights`.
    weights : path, optional
        File of weights of a pool that learns.

    Returns
    -------
    vectors : AnnData
        One row a patient, in the order of their names: X (patients, d) float32, NaN where no slide has a vector; obs: `slides`, how many count.
        `uns["slides"]` has one row a slide: patient, slide, and its share in the vector where the pool is a weighted mean.

    Raises
    ------
    InputError
        Slides lack the column or the vector, or their vectors were not made alike.
    ConfigError
        There is no such pool, or its weights do not fit.
    """
    import anndata
    import pandas as pd
    import torch

    from tilestream.encoders.weight_files import load_weights
    from tilestream.models.pooling import SoftmaxPool, make_pool

    cohort = output if isinstance(output, Cohort) else Cohort(output)
    whose = _patients(cohort, column)
    vectors = {slide.id: np.asarray(slide.vectors(what)[0], np.float32) for slide in cohort}
    _refuse_mixed(list(cohort), what)
    if pool in LEARNED and weights is None:
        raise ConfigError(f"pool {pool} learns, and no weights are given. Give weights, or take mean.")
    dim = len(next(iter(vectors.values())))
    rule = make_pool(pool, dim, load_weights(os.fspath(weights)) if weights is not None else None)
    names, rows, counts, table = sorted(set(whose.values())), [], [], []
    for name in names:
        own = [slide for slide, patient in whose.items() if patient == name]
        x = torch.from_numpy(np.stack([vectors[slide] for slide in own])).double()
        there = torch.isfinite(x).all(dim=1)
        state = rule.state(x, there)
        rows.append(rule.result(state).float().numpy())
        counts.append(int(there.sum()))
        if isinstance(rule, SoftmaxPool):
            shares = rule.attention(rule.logits(torch.nan_to_num(x)), state).mean(dim=1)
        else:
            shares = torch.full((len(own),), 1 / max(1, counts[-1]) if pool == "mean" else torch.nan, dtype=torch.float64)
        shares = torch.where(there, shares, 0.0 if pool == "mean" or isinstance(rule, SoftmaxPool) else torch.nan)
        table += [(name, slide, float(share)) for slide, share in zip(own, shares, strict=True)]
    obs = pd.DataFrame({"slides": counts}, index=pd.Index(names, name=column))
    return anndata.AnnData(
        np.stack(rows), obs=obs, uns={"slides": pd.DataFrame(table, columns=["patient", "slide", "share"]), "pool": pool, "of": what}
    )


def _patients(cohort: Cohort, column: str) -> dict[str, str]:
    """Whose each slide is, by its id."""
    lacking = [slide.id for slide in cohort if not slide.listed.get(column)]
    if lacking or not len(cohort):
        raise InputError(
            f"{cohort.path}: {some(lacking) or 'no slide'} {'have' if lacking[1:] else 'has'} no column {column!r}. "
            "Give the run a list of slides as CSV with that column, or name another column."
        )
    return {slide.id: slide.listed[column] for slide in cohort}


def _refuse_mixed(slides: list[Slide], what: str) -> None:
    """Refuse vectors of which some were made in another way: by another pool, of another encoder or other tiles."""
    stage = what.replace("slide", "pool", 1)
    refuse_other_resolutions(slides)
    first = slides[0]
    for slide in slides[1:]:
        for section in ("encoder", "tiles", stage):
            one, other = (_alike(own, section) for own in (first, slide))
            if one != other:
                raise InputError(
                    f"{slide.id} and {first.id} differ in {section}: {other} and {one}. Take slides whose vectors were made alike."
                )


def _alike(slide: Slide, section: str) -> Any:
    """What vectors of slides must have in common; of tiles the mask and what was found are a slide's own."""
    own = slide.recipe.get(section)
    return {key: own[key] for key in ("size", "stride", "mpp", "level")} if section == "tiles" and own is not None else own
