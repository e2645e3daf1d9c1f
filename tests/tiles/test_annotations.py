"""Drawn regions are read in every form that people have, and cover the pixels that geometry says."""

import gzip
import json
import math

import numpy as np
import pytest
import shapely
import shapely.affinity

from tilestream.config.schema import Tissue
from tilestream.errors import InputError
from tilestream.geometry import Size, TileGrid
from tilestream.tiles.annotations import geojson
from tilestream.tiles.annotations.cover import draw_classes, draw_tissue, read_shapes
from tilestream.tiles.annotations.raster import Canvas
from tilestream.tiles.annotations.shapes import Shape
from tilestream.tiles.thumbnail import Thumbnail
from tilestream.tiles.tissue import find_tissue, tile_fractions

RING = [[100, 100], [500, 100], [500, 400], [100, 400], [100, 100]]
HOLE = [[200, 200], [300, 200], [300, 300], [200, 300], [200, 200]]
FAR = [[550, 410], [590, 410], [590, 450], [550, 450], [550, 410]]
SHAPE, DOWNSAMPLE = (47, 61), 10.0


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry, name=None, **properties):
    told = {"classification": {"name": name, "color": [200, 0, 0]}} if name is not None else {}
    return {"type": "Feature", "id": "1", "geometry": geometry, "properties": {"objectType": "annotation", **told, **properties}}


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def centres_in(region, shape=SHAPE, downsample=DOWNSAMPLE):
    """(h, w) bool by shapely: which centres of pixels lie in a region."""
    x, y = ((np.arange(n) + 0.5) * downsample for n in (shape[1], shape[0]))
    return shapely.contains_xy(region, *np.meshgrid(x, y))


def drawn(path, shape=SHAPE, **choices):
    return draw_tissue(path, Tissue(mask=str(path), **choices), shape, DOWNSAMPLE)[0]


WITH_HOLE = shapely.Polygon(RING, [HOLE])
BOTH = WITH_HOLE.union(shapely.Polygon(FAR))
MULTI = {"type": "MultiPolygon", "coordinates": [[RING, HOLE], [FAR]]}
FORMS = {
    "collection": (collection(feature(polygon(RING, HOLE))), WITH_HOLE),
    "bare list": ([feature(polygon(RING, HOLE)), feature(polygon(FAR))], BOTH),
    "single feature": (feature(polygon(RING, HOLE)), WITH_HOLE),
    "bare polygon": (polygon(RING, HOLE), WITH_HOLE),
    "bare multipolygon": (MULTI, BOTH),
    "multipolygon": (collection(feature(MULTI)), BOTH),
    "collection of geometries": (
        feature({"type": "GeometryCollection", "geometries": [polygon(RING, HOLE), {"type": "Point", "coordinates": [1, 2]}, polygon(FAR)]}),
        BOTH,
    ),
    "null geometry": (collection(feature(None), feature(polygon(RING, HOLE))), WITH_HOLE),
    "null properties": (collection({**feature(polygon(RING, HOLE)), "properties": None}), WITH_HOLE),
    "points and lines": (
        collection(
            feature({"type": "Point", "coordinates": [3, 3]}), feature({"type": "LineString", "coordinates": RING}), feature(polygon(RING, HOLE))
        ),
        WITH_HOLE,
    ),
    "empty polygon": (collection(feature(polygon()), feature(polygon(RING, HOLE))), WITH_HOLE),
    "heights": (collection(feature(polygon([[*corner, 7] for corner in RING], [[*corner, 7] for corner in HOLE]))), WITH_HOLE),
    "open ring": (collection(feature(polygon(RING[:-1], HOLE[:-1]))), WITH_HOLE),
    "turned the other way": (collection(feature(polygon(RING[::-1], HOLE[::-1]))), WITH_HOLE),
    "overlap counts once": (collection(feature(polygon(RING, HOLE)), feature(polygon(RING, HOLE))), WITH_HOLE),
    "hole filled by another": (collection(feature(polygon(RING, HOLE)), feature(polygon(HOLE))), shapely.Polygon(RING)),
    "type behind features": ({"features": [feature(polygon(RING, HOLE))], "type": "FeatureCollection", "name": "x"}, WITH_HOLE),
    "beyond the image": (collection(feature(polygon([[-900, -900], [300, -900], [300, 9000], [-900, 9000]]))), shapely.box(-900, -900, 300, 9000)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("written", ["plain", "bom", "gz", "utf-16", "indented"])
def test_geojson_in_every_form(tmp_path, form, written):
    document, region = FORMS[form]
    text = json.dumps(document, indent=2 if written == "indented" else None)
    path = tmp_path / ("m.geojson.gz" if written == "gz" else "m.geojson")
    encoded = text.encode({"bom": "utf-8-sig", "utf-16": "utf-16"}.get(written, "utf-8"))
    path.write_bytes(gzip.compress(encoded) if written == "gz" else encoded)
    assert np.array_equal(drawn(path), centres_in(region))


def test_a_ring_that_crosses_itself_fills_both_lobes(tmp_path):
    path = tmp_path / "m.geojson"
    path.write_text(json.dumps(polygon([[100, 100], [500, 400], [500, 100], [100, 400], [100, 100]])))
    lobes = shapely.union(shapely.Polygon([[100, 100], [300, 250], [100, 400]]), shapely.Polygon([[500, 100], [300, 250], [500, 400]]))
    assert np.array_equal(drawn(path), centres_in(lobes))


@pytest.mark.parametrize("chunk", [7, 64, 1000])
def test_chunks_of_any_size_give_the_same_regions(tmp_path, monkeypatch, chunk):
    names = ["a", 'b "quoted" \\ é', "c]}", "{[", ""]
    document = collection(*(feature(polygon([[k, 0.25], [k + 9e0, 1e1], [k, 10]]), name) for k, name in enumerate(names)))
    (tmp_path / "m.json").write_text(json.dumps(document, ensure_ascii=False))
    monkeypatch.setattr(geojson, "CHUNK", chunk)
    monkeypatch.setattr(geojson, "FINISHED", 0 if chunk > 64 else 64)
    shapes = list(read_shapes(tmp_path / "m.json"))
    assert [shape.name for shape in shapes] == names
    assert [shape.polygons[0][0].tolist() for shape in shapes] == [[[k, 0.25], [k + 9, 10], [k, 10]] for k in range(len(names))]


@pytest.mark.parametrize("written", [
    {"classification": {"name": "Tumor: Positive"}}, {"classification": {"names": ["Tumor", "Positive"]}}, {"classification": "Tumor: Positive"},
    {"class": "Tumor: Positive"}, {"label": "Tumor: Positive", "classification": None},
    {"classification": '{ "name": "Tumor: Positive", "color": [ 200, 0, 0 ] }'}, {"classification": '{"names": ["Tumor", "Positive"]}'},
    {"Class": "Tumor: Positive"}, {"LABEL": "Tumor: Positive"}, {"class_name": "Tumor: Positive"}, {"class": None, "label": "Tumor: Positive"},
])  # fmt: skip
def test_a_class_is_found_where_programs_write_it(tmp_path, written):
    (tmp_path / "m.json").write_text(json.dumps([{**feature(polygon(RING)), "properties": written}]))
    assert [shape.name for shape in read_shapes(tmp_path / "m.json")] == ["Tumor: Positive"]


@pytest.mark.parametrize(
    ("written", "name"),
    [({"class": 3}, "3"), ({"class": 3.0}, "3"), ({"class": True}, ""), ({"label": 3}, ""), ({"classification": "{no JSON"}, "{no JSON")],
)
def test_numbers_are_classes_where_they_do_not_count_objects(tmp_path, written, name):
    (tmp_path / "m.json").write_text(json.dumps([{**feature(polygon(RING)), "properties": written}]))
    assert [shape.name for shape in read_shapes(tmp_path / "m.json")] == [name]


LEFT, MIDDLE, RIGHT = ([[x, 0], [x + 200, 0], [x + 200, 470], [x, 470]] for x in (0, 200, 400))


@pytest.mark.parametrize(
    ("choices", "kept"),
    [
        ({}, [LEFT, MIDDLE]),
        ({"include": ["Tumor"]}, [LEFT]),
        ({"include": "tumor*"}, [LEFT]),
        ({"include": ["Tumor", "Artifact"]}, [LEFT, MIDDLE]),
        ({"exclude": ["Art?fact"]}, [LEFT, RIGHT]),
        ({"exclude": []}, [LEFT, MIDDLE, RIGHT]),
        ({"include": ["Ignore*"]}, [RIGHT]),
        ({"include": ["*"], "exclude": ["Tumor"]}, [MIDDLE, RIGHT]),
    ],
)
def test_classes_are_chosen_by_name(tmp_path, choices, kept):
    document = collection(feature(polygon(LEFT), "Tumor"), feature(polygon(MIDDLE), "Artifact"), feature(polygon(RIGHT), "Ignore*"))
    (tmp_path / "m.geojson").write_text(json.dumps(document))
    assert np.array_equal(
        drawn(tmp_path / "m.geojson", **choices), centres_in(shapely.unary_union([shapely.Polygon(ring) for ring in kept]))
    )


@pytest.mark.parametrize(
    ("choices", "properties", "words"),
    [
        ({}, {"class": "Tumor"}, []),
        ({"exclude": ["tum*"], "include": ["Stroma"]}, {"class": "Tumor"}, []),
        (
            {"exclude": ["Artefact", "tum*"]},
            {"class": "Tumor"},
            ["exclude: no polygon has the class Artefact; there are Stroma (1), Tumor (1)."],
        ),
        (
            {"include": ["Stroma", "Tumour"]},
            {"class": "Tumor"},
            ["include: no polygon has the class Tumour; there are Stroma (1), Tumor (1)."],
        ),
        ({"exclude": ["Tumor"]}, {"kind": "Tumor"}, ["exclude: no polygon has the class Tumor; there are Stroma (1), no class (1)."]),
    ],
)
def test_a_class_that_no_polygon_has_is_told(tmp_path, choices, properties, words):
    (tmp_path / "m.geojson").write_text(
        json.dumps([feature(polygon(LEFT), "Stroma"), {**feature(polygon(MIDDLE)), "properties": properties}])
    )
    found = find_tissue(Thumbnail(np.zeros((*SHAPE, 3), np.uint8), DOWNSAMPLE), Tissue(**choices), file=tmp_path / "m.geojson")
    assert found.warnings == tuple(f"tiles.tissue.{each}" for each in words)


def test_polygons_without_any_class_say_where_one_would_stand(tmp_path):
    (tmp_path / "m.geojson").write_text(json.dumps([{**feature(polygon(LEFT)), "properties": {"kind": "Tumor"}}]))
    with pytest.raises(
        InputError, match=r"it has no class \(1\): GeoJSON has one in the property classification, class, label or class_name"
    ):
        drawn(tmp_path / "m.geojson", include=["Tumor"])


def test_an_excluded_class_is_cut_out_of_what_it_lies_over(tmp_path):
    document = [feature(polygon(HOLE), "Ignore*"), feature(polygon(RING), "Tumor"), feature(polygon(RING))]
    (tmp_path / "m.geojson").write_text(json.dumps(document))
    assert np.array_equal(drawn(tmp_path / "m.geojson"), centres_in(WITH_HOLE))


def asap(*annotations):
    body = ""
    for kind, group, corners in annotations:
        places = "".join(f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>' for k, (x, y) in enumerate(corners))
        body += f'<Annotation Name="n" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>{places}</Coordinates></Annotation>'
    groups = '<AnnotationGroups><Group Name="_2" PartOfGroup="None" Color="#0"><Attributes/></Group></AnnotationGroups>'
    return f'<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>{body}</Annotations>{groups}</ASAP_Annotations>'


def scope(*layers):
    body = ""
    for name, regions in layers:
        body += f'<Annotation Id="1" Name="{name}" Visible="1"><Attributes><Attribute Name="Description" Id="0" Value=""/></Attributes><Regions>'
        for kind, negative, corners in regions:
            places = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)
            body += f'<Region Id="1" Type="{kind}" NegativeROA="{negative}" Text=""><Attributes/><Vertices>{places}</Vertices></Region>'
        body += "</Regions><Plots/></Annotation>"
    return f'<Annotations MicronsPerPixel="0.25">{body}</Annotations>'


ELLIPSE = shapely.affinity.scale(shapely.Point(300, 250).buffer(1, quad_segs=512), 200, 150)


@pytest.mark.parametrize(
    ("text", "choices", "region"),
    [
        (asap(("Polygon", "tumor", RING)), {}, shapely.Polygon(RING)),
        (asap(("Polygon", "_0", RING), ("Polygon", "_2", HOLE)), {"exclude": ["_2"]}, WITH_HOLE),
        (asap(("Rectangle", "None", RING[:-1]), ("Dot", "None", FAR[:1]), ("PointSet", "None", FAR)), {}, shapely.Polygon(RING)),
        (asap(("Spline", "a", RING), ("Polygon", "b", FAR)), {"include": ["b"]}, shapely.Polygon(FAR)),
        (scope(("Tumor", [(0, 0, RING), (0, 1, HOLE)])), {}, WITH_HOLE),
        (scope(("Tumor", [(0, 0, RING), (0, 1, HOLE)]), ("Stroma", [(1, 0, HOLE)])), {}, shapely.Polygon(RING)),
        (scope(("Tumor", [(1, 0, RING[:3:2])])), {}, shapely.box(100, 100, 500, 400)),
        (scope(("Tumor", [(2, 0, [[100, 100], [500, 400]]), (3, 0, FAR), (4, 0, FAR[:2])])), {}, ELLIPSE),
        (scope(("", [(0, 0, RING)]), ("Ignore*", [(0, 0, HOLE)])), {}, WITH_HOLE),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_xml_of_asap_and_imagescope(tmp_path, text, choices, region, encoding):
    (tmp_path / "m.xml").write_text(text, encoding=encoding)
    assert (drawn(tmp_path / "m.xml", **choices) ^ centres_in(region)).sum() <= (2 if region is ELLIPSE else 0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "expected {"),
        ("{", "expected a key"),
        ("{}", "an empty object is no GeoJSON"),
        ("[1]", "feature 1: is neither a feature nor a geometry"),
        ('{"type": "FeatureCollection"}', "feature 1: FeatureCollection needs a list features"),
        ('{"type": "FeatureCollection", "features": null}', "feature 1: FeatureCollection needs a list features"),
        ('{"type": "Feature", "features": []}', "type is 'Feature', but features make a FeatureCollection"),
        ('{"type": "Polygon", "coordinates": [[["a", "b"], ["c", "d"], ["e", "f"]]]}', "a ring must be a list of corners"),
        ('{"type": "Polygon", "coordinates": [[["1", "2"], ["3", "4"], ["5", "6"]]]}', "a ring must be a list of corners"),
        ('{"type": "Polygon", "coordinates": [[[1, 2], [3, 4], [5]]]}', "a ring must be a list of corners"),
        ('{"type": "Polygon", "coordinates": [[[1, 2], [3, null], [5, 6]]]}', "a ring must be a list of corners"),
        ('{"type": "Polygon", "coordinates": [[1, 2], [3, 4]]}', "a ring must be a list of corners"),
        ('{"type": "Polygon", "coordinates": [1, 2]}', "a ring must be a list of corners"),
        ('{"type": "Polygon", "coordinates": [[[1, 2], [3, NaN], [5, 6]]]}', "a corner lies at nan"),
        ('{"type": "Polygon", "coordinates": [[[1, 2], [3, 1e300], [5, 6]]]}', r"a corner lies at 1e\+300"),
        ('{"type": "Polygon", "coordinates": {"a": 1}}', "Polygon needs a list coordinates"),
        ('{"type": "MultiPolygon", "coordinates": [1]}', "a MultiPolygon is a list of polygons"),
        ('{"type": "Circle"}', "is neither a feature nor a geometry of GeoJSON .*Circle"),
        ('{"type": "Feature", "geometry": 3}', "is neither a feature nor a geometry"),
        ('[{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": []}, "properties": 3}]', "properties are 3"),
        ('[{"type": "Feature", "geometry": null},]', "letter 3[0-9]: is not JSON"),
        ('[{"type": "Feature", "geometry": null} {}]', "expected , or ]"),
        ('[{"type": "Feature", "geometry": null}] []', r"expected the end of the file, found \["),
        ('[{"type": "Feature", "geometry": null', "is not JSON"),
        ('{"type": "Polygon", "coordinates": ' + "[" * 100_000, "nested deeper"),
        ('[{"type": "Feature", "id": ' + "9" * 5000 + "}]", "no number that can be used"),
        ("\x00\x01", "expected {"),
    ],
)
def test_malformed_geojson_is_refused_with_its_place(tmp_path, content, words):
    (tmp_path / "m.geojson").write_text(content)
    with pytest.raises(InputError, match=rf"m\.geojson.*{words}"):
        drawn(tmp_path / "m.geojson")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.geojson", b'{"type": "\xff"}', "is not UTF-8 text"),
        ("m.geojson.gz", gzip.compress(b"[]" * 99, mtime=0)[:-9], "cannot be read"),
        ("m.geojson.gz", gzip.compress(bytes(99), mtime=0)[:12] + b"????????", "cannot be read"),
        ("m.xml", b"", "line 1.*is not XML"),
        ("m.xml", b"<Annotations><a></Annotations>", "line 1, column [0-9]+.*is not XML"),
        ("m.xml", b"<svg/>", "line 1: the root is <svg>"),
        ("m.xml", b'<!DOCTYPE a [<!ENTITY b "c">]><Annotations>&b;</Annotations>', "a document type is declared"),
        ("m.xml", asap(("Polygon", "a", RING)).replace('X="100"', 'X="far"').encode(), "line 2: a corner needs the numbers X and Y"),
        ("m.xml", asap(("Polygon", "a", RING)).replace('Y="100"', "").encode(), "line 2: a corner needs the numbers X and Y"),
        (
            "m.xml",
            asap(("Polygon", "a", RING[:2])).encode(),
            "has no polygon, but what covers nothing: polygons or rings of fewer than three",
        ),
        ("m.xml", scope(("a", [(0, 0, [[1, 1], ["nan", 1], [2, 2]])])).encode(), "line 1: a corner lies at nan"),
        ("m.xml", b'<?xml version="1.0" encoding="ebcdic-9"?><Annotations/>', "unknown encoding|cannot be read"),
        ("m.png", b"no picture", "cannot be read as a mask"),
    ],
)
def test_malformed_files_are_refused_with_their_place(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}.*({words})"):
        find_tissue(Thumbnail(np.zeros((*SHAPE, 3), np.uint8), DOWNSAMPLE), Tissue(), file=tmp_path / name)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (collection(), "has no polygon. Draw the tissue"),
        (
            collection(feature({"type": "Point", "coordinates": [1, 1]})),
            r"has no polygon, but what covers nothing: Point \(1\). Draw the tissue",
        ),
        (collection(feature(polygon(RING), "Ignore*")), r"no polygon of a class that counts; it has Ignore\* \(1\)"),
        (
            collection(feature(polygon([[x + 1e5, y] for x, y in RING]))),
            r"of its polygons \(1\) none that counts lies inside the image of 610 x 470",
        ),
    ],
)
def test_a_mask_without_polygons_in_the_slide_is_refused(tmp_path, document, words):
    (tmp_path / "m.geojson").write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"m.geojson.* {words}"):
        drawn(tmp_path / "m.geojson")


@pytest.mark.parametrize("batch", [1, 40, 10**6])
def test_many_random_polygons_are_their_union(monkeypatch, batch):
    monkeypatch.setattr("tilestream.tiles.annotations.raster.MOST_EDGES", batch)
    monkeypatch.setattr("tilestream.tiles.annotations.raster.MOST_CROSSINGS", 10 * batch)
    rng = np.random.default_rng(5)
    canvas, regions = Canvas((150, 211), 3.7, corner=(11, -29)), []
    for _ in range(60):
        angle = np.sort(rng.random(rng.integers(3, 30))) * 2 * math.pi
        ring = rng.random(2) * 800 - 50 + (rng.random((len(angle), 1)) * 120 + 5) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        canvas.add(Shape("", ((ring,),)))
        regions.append(shapely.Polygon(ring + np.array([-29, 11])).buffer(0))
    assert np.array_equal(canvas.mask(), centres_in(shapely.unary_union(regions), (150, 211), 3.7))


def test_a_nucleus_smaller_than_a_pixel_marks_it():
    canvas = Canvas((20, 20), 10.0)
    canvas.add(Shape("", ((np.array([[31.0, 52], [33, 52], [33, 53]]),),)))
    assert np.argwhere(canvas.mask()).tolist() == [[5, 3]]


def test_corners_count_from_the_bounds(tmp_path):
    (tmp_path / "m.geojson").write_text(json.dumps(polygon(RING)))
    moved, _ = draw_tissue(tmp_path / "m.geojson", Tissue(), SHAPE, DOWNSAMPLE, corner=(50, -80))
    assert np.array_equal(moved, centres_in(shapely.affinity.translate(shapely.Polygon(RING), -80, 50)))


def test_classes_are_drawn_apart_for_the_tiles_that_they_cover(tmp_path):
    document = collection(feature(polygon(LEFT), "Tumor"), feature(polygon(MIDDLE), "Stroma"), feature(polygon(RING), "Tumor"))
    (tmp_path / "m.geojson").write_text(json.dumps(document))
    masks = draw_classes(tmp_path / "m.geojson", SHAPE, DOWNSAMPLE)
    tumour = shapely.union(shapely.Polygon(LEFT), shapely.Polygon(RING))
    assert list(masks) == ["Tumor", "Stroma"]
    assert np.array_equal(masks["Tumor"], centres_in(tumour))
    grid = TileGrid(Size(470, 610), 100, 100, 1.0)
    row, col = grid.candidates()
    covered = tile_fractions(masks["Tumor"], DOWNSAMPLE, grid, row, col)
    expected = [
        tumour.intersection(shapely.box(c * 100, r * 100, c * 100 + 100, r * 100 + 100)).area / 1e4 for r, c in zip(row, col, strict=True)
    ]
    assert covered == pytest.approx(expected, abs=1e-6)
