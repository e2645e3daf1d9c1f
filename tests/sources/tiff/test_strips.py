"""Uncompressed strips of any size are read by rows; tifffile is the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.tiff import strips
from tilestream.sources.tiff.source import TiffSource


@pytest.fixture(autouse=True)
def _small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "BAND_BYTES", 3000)


@pytest.mark.parametrize("rows", [203, 100, 40, 7])
@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((203, 150, 3), np.uint8, {"photometric": "rgb"}),
        ((3, 203, 150), np.uint8, {"photometric": "rgb", "planarconfig": "separate"}),
        ((203, 150), np.uint8, {"photometric": "minisblack"}),
        ((203, 150), np.uint8, {"photometric": "miniswhite"}),
        ((203, 150), np.uint16, {"photometric": "minisblack", "byteorder": ">"}),
        ((203, 150), np.float32, {"photometric": "minisblack"}),
        ((203, 150, 4), np.uint8, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    ],
)
def test_rows_of_a_strip_are_pieces(tmp_path: Path, shape: tuple[int, ...], dtype: Any, options: dict[str, Any], rows: int) -> None:
    pixels = (np.random.default_rng(0).random(shape) * 255).astype(dtype)
    options = dict(options)
    with tifffile.TiffWriter(tmp_path / "a.tif", byteorder=options.pop("byteorder", "<")) as tif:
        tif.write(pixels, rowsperstrip=rows, metadata=None, **options)
    expected = tifffile.imread(tmp_path / "a.tif")
    expected = np.moveaxis(expected, 0, -1) if expected.shape[0] == 3 else expected
    if expected.ndim == 3 and expected.shape[-1] == 4:
        alpha = expected[..., 3:].astype(int)
        expected = ((expected[..., :3] * alpha + 127) // 255 + 255 - alpha).astype(np.uint8)
    if options["photometric"] == "miniswhite":
        expected = 255 - expected
    window = None if dtype == np.uint8 else (0, 255)
    with TiffSource(str(tmp_path / "a.tif"), SourceOptions(window=window)) as source:
        grid = source.segment_grid(0)
        row = source.info.size.width * pixels.dtype.itemsize * (shape[-1] if shape[-1] in (3, 4) else 1)
        assert grid.height <= max(1, 3000 // row) or rows == 7
        whole = source.read_region(0, Region(0, 0, 203, 150))
        np.testing.assert_array_equal(
            whole, np.broadcast_to(expected if expected.ndim == 3 else np.rint(expected)[..., np.newaxis], whole.shape)
        )


def test_an_image_that_is_one_strip_of_a_gigabyte_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    memory = tifffile.memmap(tmp_path / "a.tif", shape=(20000, 18000, 3), dtype="u1", photometric="rgb")  # a sparse file: no disk is used
    memory[19_999, 17_990:] = 77
    memory.flush()
    with open_source(str(tmp_path / "a.tif"), SourceOptions()) as source:
        assert source.segment_grid(0).height * 18000 * 3 <= strips.BAND_BYTES
        assert source.read_region(0, Region(19_998, 17_990, 2, 10))[..., 0].tolist() == [[0] * 10, [77] * 10]


def test_a_file_that_is_cut_loses_its_last_rows_only(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (100, 100, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", metadata=None)
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[:-5000])
    with TiffSource(str(tmp_path / "a.tif"), SourceOptions()) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 70, 100)), pixels[:70])
        with pytest.raises(Exception, match=r"lie beyond the file's"):
            source.read_region(0, Region(95, 0, 5, 100))
