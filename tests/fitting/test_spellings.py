"""One name written in two ways is one: letters with accents as one character or as two, as file systems and programs have them; case and spaces are asked about."""

import json
import unicodedata

import pytest

import tilestream
from tests.fitting.test_targets import config, rows, square
from tests.support.stores import make_store
from tilestream.config.schema import Tissue
from tilestream.errors import ConfigError
from tilestream.fitting.targets import find_cases
from tilestream.fitting.tile_labels import label_tiles
from tilestream.tiles.annotations.cover import draw_tissue

FORMS = ("NFC", "NFD")


def written(text, form):
    found = unicodedata.normalize(form, text)
    assert unicodedata.normalize("NFD" if form == "NFC" else "NFC", text) != found
    return found


def slides(folder, ids, **listed):
    found = []
    for i, name in enumerate(ids):
        make_store(folder / f"{name}.zarr", 2, 3, fingerprint=f"image{i}")
        found.append(tilestream.open(folder / f"{name}.zarr"))
        found[-1].listed = {key: values[i] for key, values in listed.items()}
    return found


@pytest.mark.parametrize("form", FORMS)
def test_accents_of_a_table_are_those_of_the_slides(tmp_path, form):
    other = FORMS[form == "NFC"]
    ids = [written(f"Präparat {i}", form) for i in range(6)]
    lines = [f"{written(f'Präparat {i}', other)},{written('Müller' if i < 2 else f'Jäger {i}', FORMS[i % 2])},{written('bösartig', FORMS[i // 2 % 2]) if i % 2 else 'gut'}"
             for i in range(6)]  # fmt: skip
    text = rows(f"slide,patient,{written('Diagnosé', other)}", *lines)
    wanted = config(tmp_path, text, column=written("Diagnosé", form), classes=["gut", written("bösartig", form)])
    cases = find_cases(wanted, slides(tmp_path, ids))
    assert [slide.id for slide in cases.slides] == ids
    assert cases.label.tolist() == [0, 1, 0, 1, 0, 1]
    assert cases.group[0] == cases.group[1]
    assert cases.fold[0] == cases.fold[1]
    assert len(set(cases.group.tolist())) == 5


def test_accents_of_the_list_of_slides_and_of_drawn_regions_are_one(tmp_path):
    patients = [written("Müller", FORMS[i % 2]) if i < 2 else f"p{i}" for i in range(4)]
    kinds = [written("bösartig", FORMS[i // 2]) if i % 2 else "gut" for i in range(4)]
    found = slides(tmp_path, "abcd", patient=patients, kind=kinds)
    cases = find_cases(config(tmp_path, kind="classify", obs="kind"), found)
    assert (cases.classes, cases.label.tolist(), len(set(cases.group.tolist()))) == (("bösartig", "gut"), [1, 0, 1, 0], 3)
    for i, name in enumerate("abcd"):
        shapes = [square(0, 0, 224, 672, written("Drüse", FORMS[i % 2])), square(224, 0, 448, 672, "fat")]
        (tmp_path / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": shapes}))
    wanted = config(tmp_path, kind="classify", annotations=str(tmp_path / "{slide}.geojson"))
    cases, labels = label_tiles(wanted, find_cases(wanted, found))
    assert cases.classes == ("Drüse", "fat")
    assert [label.tolist() for label in labels] == [[0, 0, 0, 1, 1, 1]] * 4
    for form in FORMS:
        mask, told = draw_tissue(tmp_path / "a.geojson", Tissue(mask="x", exclude=(written("Drüse", form),)), (448, 672), 1.0)
        assert (mask[:224].any(), mask[224:].all(), told) == (False, True, ())


@pytest.mark.parametrize(("one", "other"), [("P1", "p1"), ("Jan  Maas", "Jan Maas"), ("1", "01"), ("7", "7.0")])
def test_patients_whom_people_take_for_one_are_asked_about(tmp_path, one, other):
    text = rows("slide,patient,label", f"a,{one},x", f"b,{other},y", "c,someone,x", "d,else,y")
    with pytest.raises(ConfigError, match=r"patients are .*: as two they may lie on both sides of a fold\. Write them alike"):
        find_cases(config(tmp_path, text), slides(tmp_path, "abcd"))


@pytest.mark.parametrize(("one", "other"), [("Tumour", "tumour"), ("in situ", "In  situ"), ("3", "03")])
def test_classes_that_are_drawn_and_differ_only_in_case_or_spaces_are_asked_about(tmp_path, one, other):
    for name, kind in (("a", one), ("b", other)):
        shapes = [square(0, 0, 224, 672, kind), square(224, 0, 448, 672, "fat")]
        (tmp_path / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": shapes}))
    wanted = config(tmp_path, kind="classify", annotations=str(tmp_path / "{slide}.geojson"))
    with pytest.raises(ConfigError, match=r"target\.annotations has .* which differ only in case, in spaces or in how a number is written"):
        label_tiles(wanted, find_cases(wanted, slides(tmp_path, "ab")))
