"""What is to be learned of which slides: labels of slides and patients from tables, of tiles from drawn regions or from the list of slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tilestream.config.fit_schema import FitConfig
from tilestream.config.types import composed
from tilestream.errors import ConfigError, InputError
from tilestream.fitting.labels import check_numbers, check_survival, find_classes, read_event, refuse_alike
from tilestream.fitting.splits import draw_folds, given_folds, join_groups
from tilestream.fitting.tables import PATIENTS, SLIDES, Table, is_missing, match_slides, number, plain_column, read_table, said
from tilestream.runner.recipe import context_sha256
from tilestream.store.slide import Slide
from tilestream.tiles.annotations.cover import GEOJSON, MARKUP

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

Task = Literal["classes", "regression", "survival"]


@dataclass(frozen=True)
class Cases:
    """Slides with what is known of them; n of them, in the order of the embeddings."""

    slides: tuple[Slide, ...]
    patients: tuple[str, ...]
    by_patient: bool
    """Whether patients are known; else each slide stands for one."""
    group: Ints
    """(n,) what is held out together: slides of one patient, of one image and, where they are preserved, of one site."""
    fold: Ints
    """(n,) the fold that each is held out with; -1 where it is learned from only."""
    task: Task
    classes: tuple[str, ...]
    label: Ints
    """(n,) class; -1 where the tiles have classes of their own, or the task has none."""
    value: Floats
    """(n,) number that is predicted, or time; NaN for classes."""
    died: NDArray[np.bool_]
    """(n,) whether the time is that of death."""
    left_out: tuple[str, ...]
    """Slides that were not used and why, in words."""
    told: tuple[str, ...] = ()
    """What else a person should know of the labels."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """(n,) whether a slide has a label of its own; where heads of several columns learn together, it may lack some."""
        found: NDArray[np.bool_] = self.label >= 0 if self.task == "classes" else np.isfinite(self.value)
        return found

    @property
    def patient(self) -> Ints:
        """(n,) number of each slide's patient."""
        return join_groups(self.patients)


@dataclass(frozen=True)
class _Told:
    """What is known of a slide before folds are made."""

    slide: Slide
    patient: str
    site: str
    fold: str
    cell: str
    event: str = ""
    all_cells: tuple[str, ...] = ()
    """Of all columns, where their heads learn together."""


def annotation_file(pattern: str, slide: str) -> Path | None:
    """The file of drawn regions of a slide: by a pattern with `{slide}`, or in a folder; None where there is none."""
    if "{slide}" in pattern:
        path = Path(pattern.replace("{slide}", slide))
        return path if path.is_file() else None
    return next((path for ending in (*GEOJSON, *MARKUP) if (path := Path(pattern) / f"{slide}{ending}").is_file()), None)


def find_cases(config: FitConfig, slides: Sequence[Slide]) -> Cases:
    """The slides that have a label, in folds.

    Raises
    ------
    ConfigError, InputError
        A table or column is not there, nothing matches, a patient or an image lies on both sides, or there is too little to learn from.
    """
    target = config.target
    left_out: list[str] = []
    if target.slides is not None:
        told, left_out = _from_table(config, slides)
    elif target.annotations is not None:
        told = [_from_list(config, slide, None) for slide in slides if annotation_file(target.annotations, slide.id) is not None]
        left_out = [f"{slide.id}: no annotations" for slide in slides if annotation_file(target.annotations, slide.id) is None]
        if not told:
            ids = ", ".join(slide.id for slide in slides[:3])
            raise InputError(f"target.annotations: {target.annotations} has no file for any slide of the embeddings ({ids}, ...).")
    else:
        told, left_out = _from_obs(config, slides, target.obs)
    refuse_alike({case.patient for case in told}, "patients", "as two they may lie on both sides of a fold")
    names = [case.slide.id for case in told]
    same_image = [case.slide.image for case in told]
    keys: list[Sequence[str]] = [[case.patient or case.slide.id for case in told], same_image]
    group = join_groups(*keys, [case.site for case in told]) if config.split.site else join_groups(*keys)
    _refuse_two_patients(told, same_image)
    task: Task = "survival" if target.survival else "regression" if target.regression else "classes"
    where = f"{target.slides}: " if target.slides else ""
    by_tile = target.annotations is not None or (target.obs is not None and target.obs not in told[0].slide.listed)
    by_slide = task == "classes" and not by_tile
    known = np.array([not (target.shared and is_missing(case.cell)) for case in told], np.bool_)
    classes: tuple[str, ...] = ()
    label, value = np.full(len(told), -1), np.full(len(told), np.nan)
    died = np.zeros(len(told), np.bool_)
    if by_slide:
        classes, label[known] = find_classes(config, [case.cell for case, has in zip(told, known, strict=True) if has])
    if task != "classes":
        value[known] = [number(case.cell, f"{where}the value of {case.slide.id}") for case, has in zip(told, known, strict=True) if has]
    if task == "regression":
        check_numbers(value[known], f"{where}{target.column}")
    if task == "survival":
        died = np.array([read_event(case.event, f"{where}the event of {case.slide.id}") for case in told])
        check_survival(value, died, names)
    strata = label - label.min() if task == "classes" else died.astype(np.int64)
    if target.shared:
        strata = join_groups([case.all_cells if task == "classes" else tuple(map(bool, case.all_cells)) for case in told])
    if config.split.column is not None:
        fold = given_folds([case.fold for case in told], group, names)
    elif by_tile and len(set(group.tolist())) == 1:
        fold = np.zeros(len(told), np.int64)  # regions will be held out
    else:
        fold = draw_folds(group, strata, config.split.folds, config.split.seed)
    cases = Cases(
        tuple(case.slide for case in told), tuple(case.patient or case.slide.id for case in told), any(case.patient for case in told),
        group, fold, task, classes, label, value, died, tuple(left_out),
    )  # fmt: skip
    _check_folds(cases)
    return cases


def _from_obs(config: FitConfig, slides: Sequence[Slide], column: str | None) -> tuple[list[_Told], list[str]]:
    """The slides by what the list of slides said of them, and words on those whose class is not wanted."""
    told, classes = [_from_list(config, slide, column) for slide in slides], config.target.classes
    if column not in slides[0].listed:
        return told, []
    empty = [f"{case.slide.id}: {column} is empty in the list of slides" for case in told if is_missing(case.cell)]
    told = [case for case in told if not is_missing(case.cell)]
    if not told:
        raise ConfigError(f"target.obs: no slide has a value for {column!r}.")
    wanted, others = (
        [case for case in told if not classes or case.cell in classes],
        [case for case in told if classes and case.cell not in classes],
    )
    if not wanted:
        raise ConfigError(f"target.classes: {', '.join(classes)}, but {column} is none of these for any slide, e.g. {others[0].cell!r}.")
    return wanted, [*empty, *(f"{case.slide.id}: {column} is {case.cell!r}, none of target.classes" for case in others)]


def _from_list(config: FitConfig, slide: Slide, column: str | None) -> _Told:
    """A slide by what the list of slides said of it."""
    if column is not None and column not in slide.listed and column not in slide.heads:
        there = ", ".join([*slide.listed, *slide.heads]) or "none"
        raise ConfigError(
            f"target.obs: {slide.id} has no column {column!r} from the list of slides, and no head of that name; it has {there}. Add it to the CSV that "
            "`slides` names and run again, or name the labels by target.slides."
        )
    site, cell = (composed(slide.listed.get(name or "", "")) for name in (config.split.site, column))
    return _Told(slide, patient_of(config, slide), site, "", cell)


def patient_of(config: FitConfig, slide: Slide) -> str:
    """The patient that the list of slides gave for a slide; "" where it did not."""
    if config.split.patient is not None:
        return said(slide.listed.get(config.split.patient, ""))
    known = {plain_column(name): value for name, value in slide.listed.items()}
    return said(next((known[name] for name in PATIENTS if name in known), ""))


# -- tables ---------------------------------------------------------------------------------------------------------


def _from_table(config: FitConfig, slides: Sequence[Slide]) -> tuple[list[_Told], list[str]]:
    """The slides that a table labels, and words on what was left out."""
    target, split, key = config.target, config.split, "target.slides"
    assert target.slides is not None
    table = read_table(target.slides, key)
    survival = target.survival
    column = table.column(survival.time, "target.survival.time") if survival else table.column(str(target.column), "target.column")
    together = [table.column(name, "target.columns") for name in target.columns if target.shared]
    event = table.column(survival.event, "target.survival.event") if survival else None
    fold = table.column(split.column, "split.column") if split.column else None
    rows = _rows_of_slides(config, table, slides)
    told, left_out = [], []
    by_id = {slide.id: slide for slide in slides}
    for name, (row, patient) in rows.items():
        cell, unwanted = row[column], bool(target.classes) and not is_missing(row[column]) and row[column] not in target.classes
        cells = ["" if unwanted else cell, row[event] if event else "1", row[fold] if fold else "1"]
        all_cells = tuple("" if is_missing(row[other]) else row[other] for other in together)
        if any(is_missing(cell) for cell in cells):
            lacking = f"{column if not survival else 'time or event'}{' or fold' if fold else ''} is empty"
            left_out.append(f"{name}: {f'{column} is {cell!r}, none of target.classes' if unwanted else lacking} in {table.path}")
            if not any(all_cells) or is_missing(cells[2]):
                continue
        site = said(row.get(split.site or "", "")) or said(by_id[name].listed.get(split.site or "", ""))
        if split.site and not site:
            raise ConfigError(f"split.site: {name} has no {split.site!r}, neither in {table.path} nor in the list of slides.")
        told.append(_Told(by_id[name], patient, site, row[fold] if fold else "", cells[0], row[event] if event else "", all_cells))
    left_out += [f"{slide.id}: no row in {table.path}" for slide in slides if slide.id not in rows]
    if all(is_missing(case.cell) for case in told):
        there = sorted({row[column] for row, _ in rows.values()} - {""})[:6]
        wanted = f" that is one of {', '.join(target.classes)}; it has {', '.join(there)}" if target.classes and there else ""
        raise ConfigError(f"target.column: no slide of {table.path} has a value for {column!r}{wanted}.")
    order = {slide.id: number for number, slide in enumerate(slides)}
    return sorted(told, key=lambda case: order[case.slide.id]), left_out


def _rows_of_slides(config: FitConfig, table: Table, slides: Sequence[Slide]) -> dict[str, tuple[dict[str, str], str]]:
    """The row and the patient of each slide that a table means, by itself or by its patient."""
    ids, key = [slide.id for slide in slides], "target.slides"
    patients = table.column(config.split.patient, "split.patient") if config.split.patient in table.header else table.find(PATIENTS)
    by_slide = table.find(SLIDES)
    if by_slide is not None and config.target.slide_table is None:
        meant = match_slides(ids, [row[by_slide] for row in table.rows], table.path, key)
        rows: dict[str, tuple[dict[str, str], str]] = {}
        own = {slide.id: patient_of(config, slide) for slide in slides}
        for row in table.rows:
            if (slide := meant.get(row[by_slide])) is None:
                continue
            if slide in rows and rows[slide][0] != row:
                raise ConfigError(f"{key}: {table.path} has two rows for the slide {slide}. Keep one of them.")
            rows[slide] = (row, (said(row[patients]) if patients else "") or own[slide])
        return rows
    if patients is None:
        raise ConfigError(
            f"{key}: {table.path} has neither a column of slides ({', '.join(SLIDES[:3])}) nor of patients ({', '.join(PATIENTS[:3])}). "
            f"{table.columns} Rename one, or name the patients by split.patient."
        )
    of_slide = _patients_of_slides(config, slides)
    known: dict[str, dict[str, str]] = {}
    for row in table.rows:
        if said(row[patients]) and known.setdefault(row[patients], row) != row:
            raise ConfigError(f"{key}: {table.path} has two rows for the patient {row[patients]}. Keep one of them.")
    found = {slide: (known[patient], patient) for slide, patient in of_slide.items() if patient in known}
    if not found:
        raise ConfigError(
            f"{key}: no patient of {table.path} has a slide in the embeddings. The table has {', '.join([*known][:3])}; "
            f"the slides have {', '.join(dict.fromkeys(of_slide.values())) or 'none'}."
        )
    return found


def _patients_of_slides(config: FitConfig, slides: Sequence[Slide]) -> dict[str, str]:
    """The patient of each slide that has one, from `target.slide_table` or from the list of slides."""
    if config.target.slide_table is None:
        told = {slide.id: patient for slide in slides if (patient := patient_of(config, slide))}
        if not told:
            raise ConfigError(
                f"target.slides: {config.target.slides} has patients only, and the list of slides had no column of them. "
                "Name a table of patients and their slides by target.slide_table."
            )
        return told
    key = "target.slide_table"
    table = read_table(config.target.slide_table, key)
    patients, names = table.find(PATIENTS), table.find(SLIDES)
    if patients is None or names is None:
        raise ConfigError(f"{key}: {table.path} needs a column of patients and one of slides. {table.columns}")
    meant = match_slides([slide.id for slide in slides], [row[names] for row in table.rows], table.path, key)
    return {meant[row[names]]: row[patients] for row in table.rows if row[names] in meant and said(row[patients])}


# -- checks ---------------------------------------------------------------------------------------------------------


def _refuse_two_patients(told: Sequence[_Told], images: Sequence[str]) -> None:
    """Refuse one image under two patients: whichever is right, the other is on the wrong side of some fold."""
    first: dict[str, _Told] = {}
    for case, image in zip(told, images, strict=True):
        other = first.setdefault(image, case)
        if other.patient != case.patient:
            raise InputError(
                f"{other.slide.id} and {case.slide.id} show the same image, but belong to the patients {other.patient or 'unknown'} and "
                f"{case.patient or 'unknown'}. Correct the table, or leave one of them out."
            )
        if other.cell != case.cell:
            raise InputError(f"{other.slide.id} and {case.slide.id} show the same image, but have the labels {other.cell} and {case.cell}.")


def _check_folds(cases: Cases) -> None:
    """Refuse folds without which a class would never be trained, or nobody would have died. Raises InputError."""
    if set(cases.fold[cases.died].tolist()) - {-1} and len(set(cases.fold[cases.died].tolist())) == 1:
        raise InputError(
            "all who died are in one fold: nothing can be learned of survival from the others. Label more patients who died, or share them out."
        )
    for k, name in enumerate(cases.classes):
        folds = set(cases.fold[cases.label == k].tolist())
        if len(folds) < 2 and folds != {-1}:
            people = len(set(cases.group[cases.label == k].tolist()))
            who = "slide" if not cases.by_patient else "patient"
            way = "" if people == 1 else ", or ask for fewer folds"
            raise InputError(
                f"the class {name!r} has {people} {who}{'' if people == 1 else 's'}, all in one fold: what is tested there was never "
                f"trained. Label another {who} of it, leave it out by target.classes{way}."
            )


def refuse_mixed_embeddings(slides: Sequence[Slide], what: str) -> Mapping[str, object]:
    """The encoder and geometry that all slides share, as a head will demand them.

    Raises
    ------
    InputError
        Two slides were embedded by other means; names both values.
    """
    first: dict[str, object] = {}
    for slide in slides:
        facts = {
            "encoder": slide.encoder, "encoder digest": slide.recipe["encoder"].get("weights_sha256"), "tile size": slide.tile,
            "resolution": slide.recipe["tiles"].get("mpp"), "dimensions": slide.vectors(what).shape[1],
            "context digest": context_sha256(slide.recipe) if what == "context" else None,
        }  # fmt: skip
        for name, value in facts.items():
            if first.setdefault(name, value) != value:
                raise InputError(
                    f"{slides[0].id} and {slide.id} have different embeddings: {name} {first[name]} and {value}. Fit on one kind."
                )
    return first
