"""Objects in the formats of other programs, read by json, pyarrow, sqlite3, csv and shapely."""

import csv
import json
import sqlite3
import uuid
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import zarr

from tests.support.exported import export
from tests.support.made_objects import CLASSES, made_rows, put_objects
from tests.support.qupath import read_qupath
from tests.support.stores import make_store
from tilestream.errors import ConfigError, InputError
from tilestream.interop.exports import export_slides
from tilestream.interop.objects.formats import OBJECT_FORMATS
from tilestream.interop.target import digest
from tilestream.store.heads.palette import class_colours


@pytest.fixture
def groups():
    return [made_rows(60, 0), made_rows(40, 1)]


@pytest.fixture
def truth(groups):
    """Outlines, names of classes, and scores."""
    shapes, classes, scores = (np.concatenate([getattr(rows, name) for rows in groups]) for name in ("shapes", "classes", "scores"))
    return shapes, [CLASSES[k] for k in classes], scores


@pytest.fixture
def output(tmp_path, groups):
    make_store(tmp_path / "a.zarr")
    assert put_objects(tmp_path / "a.zarr", groups) == 100
    return tmp_path


@pytest.mark.parametrize("name", ["o.geojson", "o.geojson.gz"])
def test_geojson_is_what_qupath_reads(output, truth, name):
    _, words = export(output, "geojson", what="nuclei", slide="a", out=str(output / name))
    assert words.startswith("a: 100 objects -> ")
    features = read_qupath(output / name)
    shapes = shapely.from_geojson([json.dumps(feature["geometry"]) for feature in features])
    assert shapely.is_valid(shapes).all()
    assert shapely.equals_exact(shapes, truth[0], 1e-9).all()
    told = [feature["properties"] for feature in features]
    assert [each["classification"]["name"] for each in told] == truth[1]
    assert {tuple(each["classification"]["color"]) for each in told} == set(class_colours(3))
    assert np.allclose([each["measurements"]["score"] for each in told], truth[2], rtol=1e-5)
    assert np.allclose([each["measurements"]["area_um2"] for each in told], shapely.area(truth[0]) / 16, rtol=1e-5)
    assert {each["objectType"] for each in told} == {"detection"}
    assert len({uuid.UUID(feature["id"]) for feature in features}) == 100


def test_csv_says_where_each_object_is(output, truth):
    path, _ = export(output, "csv", what="nuclei")
    rows = list(csv.DictReader(Path(path).read_text().splitlines()))
    assert [row["class"] for row in rows] == truth[1]
    places = np.array([[float(row[name]) for name in ("x", "y", "xmin", "ymin", "xmax", "ymax")] for row in rows])
    wanted = np.concatenate([shapely.get_coordinates(shapely.centroid(truth[0])), shapely.bounds(truth[0])], axis=1)
    assert np.abs(places - wanted).max() < 0.01
    assert [int(row["id"]) for row in rows] == list(range(1, 101))


def test_parquet_is_the_file_of_the_store(output):
    path, _ = export(output, "parquet", what="nuclei")
    assert pq.read_table(path).equals(pq.read_table(output / "a.zarr" / "shapes" / "nuclei.parquet"))


def test_places_on_a_map_are_in_its_crs(tmp_path, groups, truth):
    pytest.importorskip("pyproj")
    make_store(tmp_path / "a.zarr", geo={"transform": [0.5, 0.0, 600000.0, 0.0, -0.5, 5000000.0], "crs": "EPSG:32633"})
    put_objects(tmp_path / "a.zarr", groups)
    table = pq.read_table(export(tmp_path, "parquet", what="nuclei")[0])
    geo = json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]
    assert geo["crs"]["id"] == {"authority": "EPSG", "code": 32633}
    shapes = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    assert np.allclose(shapely.area(shapes), shapely.area(truth[0]) / 4)
    assert np.allclose(shapely.bounds(shapes)[0], [600000 + shapely.bounds(truth[0])[0][0] / 2, 5000000 - shapely.bounds(truth[0])[0][3] / 2, 600000 + shapely.bounds(truth[0])[0][2] / 2, 5000000 - shapely.bounds(truth[0])[0][1] / 2])  # fmt: skip
    (path, _) = export(tmp_path, "geojson", what="nuclei")
    degrees = shapely.from_geojson(
        [json.dumps(json.loads(line.rstrip(","))["geometry"]) for line in Path(path).read_text().splitlines() if '"id"' in line]
    )
    assert len(degrees) == 100
    left, bottom, right, top = shapely.total_bounds(degrees)
    assert 16 < left < right < 16.4
    assert 45 < bottom < top < 45.3


def test_sqlite_reads_the_annotation_store(output, truth):
    path, _ = export(output, "annotation-store", what="nuclei")
    base = sqlite3.connect(path)
    try:
        told = {key: json.loads(value) for key, value in base.execute("SELECT * FROM metadata")}
        assert told == {"version": "1.0.1", "compression": "zlib", "compression_level": 6}
        rows = base.execute("SELECT id, key, objtype, cx, cy, geometry, properties, area FROM annotations ORDER BY id").fetchall()
        shapes = shapely.from_wkb([zlib.decompress(row[5]) for row in rows])
        assert shapely.equals_exact(shapes, truth[0], 0).all()
        assert [json.loads(row[6])["type"] for row in rows] == truth[1]
        assert np.allclose([row[7] for row in rows], shapely.area(truth[0]))
        x0, y0, x1, y1 = 1000, 1000, 3000, 2500
        near = base.execute("SELECT id FROM rtree WHERE min_x <= ? AND max_x >= ? AND min_y <= ? AND max_y >= ?", (x1, x0, y1, y0))
        assert sorted(number for (number,) in near) == (np.flatnonzero(shapely.intersects(shapely.envelope(truth[0]), shapely.box(x0, y0, x1, y1))) + 1).tolist()  # fmt: skip
    finally:
        base.close()


def test_spatialdata_gets_an_element_of_shapes(output, truth):
    path, _ = export(output, "spatialdata", what="nuclei")
    group = zarr.open_group(path, mode="r")["shapes/nuclei"]
    assert group.attrs["encoding-type"] == "ngff:shapes"
    assert group.attrs["spatialdata_attrs"] == {"version": "0.3"}
    table = pq.read_table(f"{path}/shapes/nuclei/shapes.parquet")
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["id"]
    assert table["class"].to_pylist() == truth[1]
    assert (shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False)) == truth[0]).all()


@pytest.mark.parametrize("name", OBJECT_FORMATS)
def test_a_slide_without_objects_is_exported(tmp_path, name):
    make_store(tmp_path / "a.zarr")
    put_objects(tmp_path / "a.zarr", [])
    assert "a: 0 objects" in export(tmp_path, name, what="nuclei")[1]


@pytest.mark.parametrize("name", OBJECT_FORMATS)
def test_the_same_objects_are_the_same_bytes_and_replace_themselves(output, name):
    first, _ = export(output, name, what="nuclei")
    before = digest(Path(first))
    second, _ = export(output, name, what="nuclei")
    assert first == second
    assert digest(Path(first)) == before


def test_files_of_others_stay(output):
    (output / "mine.csv").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        export(output, "csv", what="nuclei", slide="a", out=str(output / "mine.csv"))
    assert (output / "mine.csv").read_text() == "mine"


def test_what_is_not_there_is_told(output):
    with pytest.raises(InputError, match="no objects of 'glands', nor a label image or other answers; it has nuclei"):
        export(output, "csv", what="glands")
    with pytest.raises(ConfigError, match="are for --to geojson, cog, ome-zarr, spatialdata, parquet"):
        list(export_slides(str(output), "pt", what="nuclei"))
    with pytest.raises(ConfigError, match=r"--to annotation-store: is for objects and regions\. Name a head of kind detect or segment"):
        list(export_slides(str(output), "annotation-store"))


def test_colours_of_any_number_of_classes_differ():
    assert len(set(class_colours(30))) == 30
