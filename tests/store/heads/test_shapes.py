"""Objects of a slide in GeoParquet: read back by pyarrow alone, by a region, and from an object store."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from tilestream.errors import InputError
from tilestream.store.folder import Folder
from tilestream.store.heads.shapes import SHAPES, ShapeRows, ShapesFile, join_parts, pack_part, shapes_key

CLASSES = ["tumour", "stroma"]


def made(count, seed=0, mpp=0.5):
    rng = np.random.default_rng(seed)
    y, x = rng.integers(0, 1000, (2, count)) + 1000.0 * seed
    shapes = shapely.box(x, y, x + 4, y + 6)
    return ShapeRows.of(shapes, rng.integers(0, 2, count), rng.random(count, np.float32), mpp)


def written(folder, parts):
    with folder.writing(shapes_key("nuclei")) as path:
        return join_parts([io.BytesIO(pack_part(part, CLASSES)) for part in parts], path, {"classes": CLASSES})


def test_parts_become_row_groups_in_their_order_and_pyarrow_reads_them(tmp_path):
    parts = [made(20, 0), made(0), made(30, 1)]
    assert written(Folder(str(tmp_path)), parts) == 50
    file = pq.ParquetFile(tmp_path / SHAPES / "nuclei.parquet")
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [20, 30]
    table = file.read()
    assert table.column_names == ["id", "class", "score", "area_um2", "bbox", "geometry"]
    assert table["id"].to_pylist() == list(range(1, 51))
    assert set(table["area_um2"].to_pylist()) == {4 * 6 * 0.25}
    geometry = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    assert (geometry == np.concatenate([part.shapes for part in parts])).all()
    boxes = np.array([list(box.values()) for box in table["bbox"].to_pylist()])
    assert (boxes == shapely.bounds(geometry)).all()


def test_the_file_says_what_geoparquet_wants(tmp_path):
    several = made(3)
    several.shapes[1] = shapely.multipolygons([several.shapes[1], shapely.box(5000, 5000, 5001, 5001)])
    written(Folder(str(tmp_path)), [several])
    geo = json.loads(pq.read_schema(tmp_path / SHAPES / "nuclei.parquet").metadata[b"geo"])
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    column = geo["columns"]["geometry"]
    assert column["geometry_types"] == ["MultiPolygon", "Polygon"]
    assert column["crs"] is None
    assert column["covering"]["bbox"]["ymax"] == ["bbox", "ymax"]
    assert column["bbox"] == list(shapely.total_bounds(several.shapes))


def test_a_slide_without_a_scale_has_no_areas_and_one_without_objects_a_file(tmp_path):
    folder = Folder(str(tmp_path))
    written(folder, [made(2, mpp=None)])
    assert pq.read_table(tmp_path / SHAPES / "nuclei.parquet")["area_um2"].to_pylist() == [None, None]
    assert written(folder, []) == 0
    assert len(ShapesFile.of(folder, "nuclei")) == 0


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_what_lies_in_a_region_is_found_and_row_groups_elsewhere_are_not_read(tmp_path, kind, monkeypatch):
    folder = Folder(str(tmp_path) if kind == "local" else f"file://{tmp_path}")
    parts = [made(40, seed) for seed in range(3)]
    written(folder, parts)
    file, read = ShapesFile.of(folder, "nuclei"), []
    table = file.table
    monkeypatch.setattr(file, "table", lambda group: read.append(group) or table(group))
    found = list(file.within(1000, 1000, 1500, 1500))
    assert read == [1]
    bounds = shapely.bounds(parts[1].shapes)
    assert sum(map(len, found)) == ((bounds[:, 0] <= 1500) & (bounds[:, 1] <= 1500)).sum()
    rows = np.concatenate([rows.scores for rows in file.rows()])
    assert (rows == np.concatenate([part.scores for part in parts])).all()


def test_the_same_objects_are_the_same_bytes(tmp_path):
    for name in "ab":
        written(Folder(str(tmp_path / name)), [made(20), made(3, 1)])
    files = [(tmp_path / name / shapes_key("nuclei")).read_bytes() for name in "ab"]
    assert files[0] == files[1]


def test_writing_that_fails_leaves_nothing(tmp_path):
    folder = Folder(str(tmp_path))

    def write():
        with folder.writing("shapes/a.parquet") as path:
            path.write_bytes(b"half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power"):
        write()
    assert folder.names() == []


def test_a_head_that_is_not_there_is_told_with_those_that_are(tmp_path):
    folder = Folder(str(tmp_path))
    written(folder, [made(1)])
    with pytest.raises(InputError, match="no objects of 'glands'; it has nuclei"):
        ShapesFile.of(folder, "glands")
