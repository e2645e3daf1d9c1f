"""The label image of a head as a Cloud Optimized GeoTIFF (extra `geo`): a palette, and overviews of nearest pixels; 0 is no data.

The labels of an image on a map lie where the image does: its CRS, and its affine times the px of the image that are one of the labels.

Source: https://docs.ogc.org/is/21-026/21-026.html and GDAL's driver `COG`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from tilestream.errors import load_needed
from tilestream.interop.objects.label_polygons import l0_step_of, labels_path
from tilestream.interop.on_map import MapPlaces
from tilestream.interop.target import Target, Written
from tilestream.store.heads.palette import class_colours
from tilestream.store.slide import Slide

SIDE = 2048
"""Side of the windows that are copied at once, px; whole tiles of the file."""


def write_label_tiff(slide: Slide, target: Target, *, head: str, **_: Any) -> Written:
    """Write the finest level of a label image, pixel by pixel as it is stored; its tags name the classes.

    Memory bound: a window of `SIDE` px.

    Raises
    ------
    ConfigError
        rasterio is not installed.
    """
    rasterio, shutil = load_needed("--to cog", "geo", "rasterio", "rasterio.shutil")
    labels = slide.array(labels_path(head))
    classes = slide.head_answer(head).classes
    height, width = labels.shape
    on_map = MapPlaces.of(slide)
    profile = {
        "driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint8", "nodata": 0, "tiled": True, "blockxsize": 512,
        "blockysize": 512, "compress": "deflate", "photometric": "palette", "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    if on_map is not None:
        profile |= {"transform": rasterio.Affine(*on_map.scaled(l0_step_of(slide, head)).transform), "crs": on_map.rasterio_crs()}
    computed = 0
    with target.writing() as path, warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # a slide lies on no map
        plain = Path(f"{path}.plain.tif")
        with rasterio.open(plain, "w", **profile) as file:
            file.write_colormap(1, {0: (0, 0, 0, 0)} | {k: (*colour, 255) for k, colour in enumerate(class_colours(len(classes)), 1)})
            file.update_tags(**{f"class_{k}": name for k, name in enumerate(classes, 1)})
            for y in range(0, height, SIDE):
                for x in range(0, width, SIDE):
                    values = np.asarray(labels[y : y + SIDE, x : x + SIDE])
                    if values.any():
                        computed += int((values > 0).sum())
                        file.write(values, 1, window=rasterio.windows.Window(x, y, values.shape[1], values.shape[0]))
        shutil.copy(plain, path, driver="COG", compress="DEFLATE", overview_resampling="NEAREST", blocksize=512)
        plain.unlink()
    return Written(computed, what="px with a class")
