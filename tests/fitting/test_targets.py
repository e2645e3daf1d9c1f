"""Which slides are learned from, and what of them: tables of STAMP, Patho-Bench and CLAM, lists of slides, drawn regions."""

import json

import numpy as np
import pytest

import tilestream
from tests.support.stores import make_store
from tilestream.config.fit_schema import FitConfig
from tilestream.errors import ConfigError, InputError
from tilestream.fitting.targets import find_cases, refuse_mixed_embeddings
from tilestream.fitting.tile_labels import draw_tile_classes, label_tiles
from tilestream.tiles.annotations.shapes import FLAT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("embeddings")
    for i in range(7):
        make_store(found / f"s{i}.zarr", 2, 3, fingerprint=f"image{i}")
    return found


def slides(folder, count, images=None):
    found = [tilestream.open(folder / f"s{i}.zarr") for i in range(count)]
    for slide, image in zip(found, images or [], strict=False):
        slide.source["fingerprint"] = f"image{image}"
    return found


def config(tmp_path, text=None, *, column="label", kind="slide", split=None, **target):
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
        target |= {"slides": str(tmp_path / "labels.csv")}
    if "slides" in target:
        target["survival" if isinstance(column, dict) else "column"] = column
    model = "mean" if kind == "slide" else "linear"
    return FitConfig(
        embeddings="x",
        target=target,
        head={"name": "h", "kind": kind, "model": model},
        split={"folds": 2, **(split or {})},
        save="h.safetensors",
    )


def rows(header, *lines):
    return "\n".join([header, *lines]) + "\n"


def test_a_table_of_slides_and_patients(folder, tmp_path):
    text = rows("slide,patient,label", "s0,p0,a", "s1,p0,a", "s2,p1,b", "s3,p2,a", "s4,p3,b", "s5,p4,", "zz,p9,a")
    cases = find_cases(config(tmp_path, text), slides(folder, 7))
    assert [slide.id for slide in cases.slides] == ["s0", "s1", "s2", "s3", "s4"]
    assert cases.classes == ("a", "b")
    assert cases.label.tolist() == [0, 0, 1, 0, 1]
    assert cases.by_patient
    assert cases.fold[0] == cases.fold[1]
    assert set(cases.fold[cases.label == 1].tolist()) == {0, 1}
    assert any("s5" in words for words in cases.left_out)
    assert any("s6" in words for words in cases.left_out)


def test_a_table_of_clam(folder, tmp_path):
    text = rows("case_id,slide_id,label", *(f"p{i},s{i},{'tumor' if i % 2 else 'normal'}_tissue" for i in range(4)))
    cases = find_cases(config(tmp_path, text), slides(folder, 4))
    assert cases.patients == ("p0", "p1", "p2", "p3")


def test_a_table_of_patho_bench_with_its_folds(folder, tmp_path):
    lines = [f"p{i}\ts{i}\t{i % 2}\t{'test' if i < 2 else 'train'}" for i in range(6)]
    (tmp_path / "k=all.tsv").write_text(rows("case_id\tslide_id\tgrade\tfold_0", *lines))
    wanted = config(tmp_path, column="grade", split={"column": "fold_0"}, slides=str(tmp_path / "k=all.tsv"))
    assert find_cases(wanted, slides(folder, 6)).fold.tolist() == [0, 0, -1, -1, -1, -1]


def test_two_tables_of_stamp(folder, tmp_path):
    (tmp_path / "slide.csv").write_text(rows("PATIENT,FILENAME", "A,s0.h5", "A,s1.h5", "B,s2.h5", "C,s3.h5", "D,s4.h5"))
    text = rows("PATIENT,isMSIH", "A,MSIH", "B,nonMSIH", "C,MSIH", "D,nonMSIH")
    cases = find_cases(config(tmp_path, text, column="isMSIH", slide_table=str(tmp_path / "slide.csv")), slides(folder, 5))
    assert cases.patients == ("A", "A", "B", "C", "D")
    assert cases.label.tolist() == [0, 0, 1, 0, 1]


def test_survival(folder, tmp_path):
    text = rows("slide,months,died", "s0,1.5,1", "s1,3,no", "s2,4,Dead", "s3,2,0")
    cases = find_cases(config(tmp_path, text, column={"time": "months", "event": "died"}), slides(folder, 4))
    assert cases.task == "survival"
    assert cases.value.tolist() == [1.5, 3, 4, 2]
    assert cases.died.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("text", "how", "error", "words"),
    [
        (rows("slide,label", "s0,a", "s0,b"), {}, ConfigError, "two rows for the slide s0"),
        (rows("slide,label", "s0,a", "s1,a"), {}, InputError, "label of .* is 'a' for all 2 slides, but it takes two classes"),
        (rows("slide,label", "s0,", "s1,NA"), {}, ConfigError, "no slide of .* has a value for 'label'"),
        (rows("slide,label", "s0,a", "s1,b"), {"split": {"folds": 3}}, InputError, "folds: 3, but there are only 2"),
        (
            rows("slide,label", "s0,a", "s1,a", "s2,a", "s3,b"),
            {},
            InputError,
            "the class 'b' has 1 slide, all in one fold.*Label another slide of it",
        ),
        (
            rows("slide,label", "s0,a", "s1,A", "s2,a", "s3,b"),
            {},
            ConfigError,
            "has 'A' and 'a', which differ only in case, in spaces or in how a number is written. Write them alike",
        ),
        (
            rows("slide,label", "s0,0.5", "s1,1", "s2,2,5", "s3,3").replace("2,5", "2.5"),
            {},
            InputError,
            "4 classes for 4 slides.*Then set target.regression",
        ),
        (
            rows("slide,label", "s0,a", "s1,b"),
            {"split": {"folds": 2}, "classes": ["a", "bb"]},
            ConfigError,
            "no slide has 'bb' as label of .*Write it as it stands there",
        ),
        (
            rows("slide,label", "s0,a", "s1,b"),
            {"classes": ["x", "y"]},
            ConfigError,
            "has a value for 'label' that is one of x, y; it has a, b",
        ),
        (rows("slide,label", "s0,1", "s1,1.0", "s2,2", "s3,2"), {}, ConfigError, "has '1' and '1.0', which differ only in case"),
        (
            rows("slide,label", 's0,"1,234"', "s1,5", "s2,7", "s3,9"),
            {"regression": True},
            InputError,
            "s0 is '1,234', which may mean 1234 or 1.234",
        ),
        (
            rows("slide,patient,m,d", "s0,p,1,1", "s1,p,2,1", "s2,q,3,0", "s3,r,4,0"),
            {"column": {"time": "m", "event": "d"}},
            InputError,
            "all who died are in one fold",
        ),
        (rows("name,label", "s0,a"), {}, ConfigError, "neither a column of slides"),
        (rows("patient,label", "p,a"), {}, ConfigError, "has patients only"),
        (
            rows("slide,patient,label,fold", "s0,p,a,1", "s1,p,b,2", "s2,q,a,1", "s3,r,b,2"),
            {"split": {"column": "fold"}},
            InputError,
            "of one patient",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(folder, tmp_path, text, how, error, words):
    with pytest.raises(error, match=words):
        find_cases(config(tmp_path, text, **how), slides(folder, 4))


def test_slides_of_classes_that_are_not_wanted_are_left_out_and_named(folder, tmp_path):
    text = rows("Slide ID,label", "S0.svs,a", "s1,b", "s2,unknown", "s3,b", "s4,a")
    cases = find_cases(config(tmp_path, text, classes=["b", "a"]), slides(folder, 5))
    assert cases.classes == ("b", "a")
    assert cases.label.tolist() == [1, 0, 0, 1]
    assert "s2: label is 'unknown', none of target.classes" in cases.left_out[0]


def test_one_image_under_two_names(folder, tmp_path):
    four = slides(folder, 4, images=[0, 1, 0, 2])
    with pytest.raises(InputError, match="s0 and s2 show the same image, but belong to the patients p and r"):
        find_cases(config(tmp_path, rows("slide,patient,label", "s0,p,a", "s1,q,b", "s2,r,a", "s3,t,b")), four)
    with pytest.raises(InputError, match="s0 and s2 show the same image, but have the labels a and b"):
        find_cases(config(tmp_path, rows("slide,label", "s0,a", "s1,b", "s2,b", "s3,a")), four)


def test_sites_are_held_out_whole(folder, tmp_path):
    text = rows("slide,patient,site,label", *(f"s{i},p{i},{'north' if i < 3 else 'south'},{'ab'[i % 2]}" for i in range(6)))
    cases = find_cases(config(tmp_path, text, split={"site": "site"}), slides(folder, 6))
    assert len(set(cases.fold[:3].tolist())) == len(set(cases.fold[3:].tolist())) == 1


def square(y0, x0, y1, x1, name):
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {"classification": {"name": name}}}


def test_tiles_get_the_class_that_covers_them(tmp_path):
    make_store(tmp_path / "a.zarr", 4, 4, tile=100, fingerprint="a", failed=(0,))
    slide = tilestream.open(tmp_path / "a.zarr")
    shapes = [square(0, 0, 200, 200, "tumour"), square(200, 0, 400, 160, "stroma"), square(100, 100, 200, 400, "stroma")]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": shapes}))
    names, label = draw_tile_classes(slide, tmp_path / "a.geojson", 0.5)
    assert names == ["stroma", "tumour"]
    # Row by row: the tile under both classes has none; of the tiles in stroma's second column 60 % are covered.
    np.testing.assert_array_equal(label.reshape(4, 4), [[1, 1, -1, -1], [1, -1, 0, 0], [0, 0, -1, -1], [0, 0, -1, -1]])
    _, strict = draw_tile_classes(slide, tmp_path / "a.geojson", 0.7)
    np.testing.assert_array_equal(strict.reshape(4, 4)[2:], [[0, -1, -1, -1]] * 2)

    make_store(tmp_path / "b.zarr", 2, 2, tile=100, fingerprint="b")
    both = [slide, tilestream.open(tmp_path / "b.zarr")]
    wanted = config(tmp_path, kind="classify", annotations=str(tmp_path / "{slide}.geojson"))
    cases, labels = label_tiles(wanted, find_cases(wanted, both))
    assert [slide.id for slide in cases.slides] == ["a"]
    assert labels[0].reshape(4, 4)[0].tolist() == [-1, 1, -1, -1]  # the failed tile is not learned from
    assert cases.left_out == ("b: no annotations",)


def test_what_is_drawn_and_labels_nothing_is_told(tmp_path):
    for name in "ab":
        make_store(tmp_path / f"{name}.zarr", 4, 4, tile=100, fingerprint=name)
    line = [[0, 0], [300, 0], [0, 0]]
    sound = [square(0, 0, 200, 200, "tumour"), square(200, 0, 400, 400, "stroma")]
    flat = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [line]}, "properties": {"classification": {"name": "tumour"}}}
    bare = {**square(0, 0, 100, 100, ""), "properties": {}}
    drawn = {"a": [*sound, flat, flat, bare], "b": [*sound, flat, square(900, 900, 999, 999, "fat")]}
    for name, shapes in drawn.items():
        (tmp_path / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": shapes}))
    both = [tilestream.open(tmp_path / f"{name}.zarr") for name in "ab"]
    wanted = config(tmp_path, kind="classify", annotations=str(tmp_path / "{slide}.geojson"), classes=["stroma", "tumour", "fat"])
    cases, _ = label_tiles(wanted, find_cases(wanted, both))
    assert sorted(cases.told) == [
        "Left out of the annotations: all polygons of the class 'fat', which lie outside of the image, 1 on 1 slide (b).",
        f"Left out of the annotations: {FLAT}, 3 on 2 slides (a, b).",
        "Left out of the annotations: polygons without a class, 1 on 1 slide (a).",
    ]
    for name in "ab":
        (tmp_path / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [sound[0], flat]}))
    with pytest.raises(InputError, match=f"It takes two classes with tiles.*Left out of the annotations: {FLAT}, 2 on 2 slides"):
        label_tiles(wanted, find_cases(wanted, both))


def test_slides_of_which_no_image_is_known_are_not_one_image(folder, tmp_path):
    """Features that were imported without an image have no fingerprint."""
    four = slides(folder, 4)
    for slide in four:
        slide.source["fingerprint"] = ""
    cases = find_cases(config(tmp_path, rows("slide,label", "s0,a", "s1,b", "s2,a", "s3,b")), four)
    assert len(set(cases.group.tolist())) == 4


def test_patients_and_sites_that_a_table_leaves_open_are_nobody(folder, tmp_path):
    text = rows("slide,patient,label", "s0,NA,a", "s1,nan,b", "s2,p,a", "s3,p,b", "s4,NA,a", "s5,,b")
    cases = find_cases(config(tmp_path, text), slides(folder, 6))
    assert cases.patients == ("s0", "s1", "p", "p", "s4", "s5")
    assert len(set(cases.group.tolist())) == 5
    text = rows("slide,patient,site,label", *(f"s{i},p{i},{'NA' if i == 2 else 'north'},{'ab'[i % 2]}" for i in range(4)))
    with pytest.raises(ConfigError, match="s2 has no 'site'"):
        find_cases(config(tmp_path, text, split={"site": "site"}), slides(folder, 4))
    listed = slides(folder, 5)
    for slide, patient in zip(listed, ("x", "x", "y", "NA", "na"), strict=True):
        slide.listed = {"patient": patient}
    with pytest.raises(
        InputError, match="the class 'a' has 1 patient, all in one fold"
    ):  # x alone: NA is no patient, though it has two rows
        find_cases(config(tmp_path, rows("patient,label", "x,a", "y,b", "NA,b", "NA,a")), listed)


def test_grades_are_in_the_order_of_their_numbers(folder, tmp_path):
    text = rows("slide,label", "s0,10", "s1,9", "s2,10", "s3,9", "s4,2", "s5,2")
    assert find_cases(config(tmp_path, text), slides(folder, 6)).classes == ("2", "9", "10")


def test_vectors_of_two_contexts_are_not_mixed(folder):
    two = slides(folder, 2)
    for slide, window in zip(two, (4, 8), strict=True):
        slide.recipe = {**slide.recipe, "context": {"window": window}}
        slide.vectors = lambda what: np.zeros((6, 4))
    assert refuse_mixed_embeddings(two, "tiles")["dimensions"] == 4
    with pytest.raises(InputError, match="s0 and s1 have different embeddings: context digest"):
        refuse_mixed_embeddings(two, "context")


def test_slides_whose_cell_in_the_list_of_slides_is_empty_are_no_class(folder, tmp_path):
    six = slides(folder, 6)
    for slide, kind in zip(six, ("a", "", "b", "NA", "a", "b"), strict=True):
        slide.listed = {"kind": kind}
    cases = find_cases(config(tmp_path, kind="classify", obs="kind"), six)
    assert (cases.classes, len(cases.slides)) == (("a", "b"), 4)
    assert [words.split(":")[0] for words in cases.left_out] == ["s1", "s3"]
