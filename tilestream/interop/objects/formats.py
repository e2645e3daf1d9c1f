"""The table of formats that objects of detect heads are exported to."""

from __future__ import annotations

from tilestream.interop.objects.annotation_store import write_annotation_store
from tilestream.interop.objects.geojson import write_objects_geojson
from tilestream.interop.objects.spatialdata import write_objects_spatialdata
from tilestream.interop.objects.tables import write_objects_csv, write_objects_parquet

OBJECT_FORMATS = {
    "geojson": (".geojson", write_objects_geojson),
    "parquet": (".parquet", write_objects_parquet),
    "csv": (".csv", write_objects_csv),
    "annotation-store": (".db", write_annotation_store),
    "spatialdata": (".zarr", write_objects_spatialdata),
}
"""By the name of `--to`: suffix of the file, and its writer, to which the head is told."""
