"""Uncompressed frames in either order of bytes are the pixels that pydicom reads, and codings that are not read are told by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian

from tests.sources.dicom.test_layouts import read_all, refused
from tests.support.dicom import make_sparse, write_series
from tests.support.images import make_image
from tests.support.range_server import serving
from tilestream.errors import InputError
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.testing.sources import Image

IMAGE = make_image(150, 200)


def write_anew(path: Path, syntax: str, kind: str) -> None:
    """The same file with its elements in another order of bytes; `kind` is the value representation of its pixels."""
    read = pydicom.dcmread(path)
    data, big = Dataset.from_json(read.to_json_dict()), syntax == ExplicitVRBigEndian
    data.file_meta = read.file_meta
    data.file_meta.TransferSyntaxUID = syntax
    samples = np.frombuffer(read.PixelData, "<u2" if read.BitsAllocated == 16 or kind == "OW" else "u1")
    data["PixelData"] = pydicom.DataElement(
        0x7FE00010, kind, samples.astype(samples.dtype.newbyteorder(">") if big else samples.dtype).tobytes()
    )
    pydicom.dcmwrite(path, data, implicit_vr=False, little_endian=not big, enforce_file_format=True)


def judged(path: Path, size: tuple[int, int], tile: int) -> Image:
    """What pydicom reads of a TILED_FULL file, put together."""
    frames = pydicom.dcmread(path).pixel_array
    rows, cols = -(-size[0] // tile), -(-size[1] // tile)
    whole = frames.reshape(rows, cols, tile, tile, *frames.shape[3:]).swapaxes(1, 2)
    return np.asarray(whole.reshape(rows * tile, cols * tile, *frames.shape[3:])[: size[0], : size[1]])


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, ExplicitVRLittleEndian], ids=["big", "little"])
@pytest.mark.parametrize("kind", ["OB", "OW"])
@pytest.mark.parametrize("samples", ["colour", "grey", "planes"])
def test_bytes_and_words_of_8_bit_samples_are_the_pixels(tmp_path: Path, syntax: str, kind: str, samples: str) -> None:
    picture = IMAGE[..., 1] if samples == "grey" else IMAGE

    def planes(_: int, data: Dataset) -> None:
        if samples == "planes":
            pixels = np.frombuffer(data.PixelData, np.uint8).reshape(-1, 64, 64, 3)
            data.PlanarConfiguration, data.PixelData = 1, np.moveaxis(pixels, -1, 1).tobytes()

    path = write_series(tmp_path, [picture], photometric="MONOCHROME2" if samples == "grey" else "RGB", change=planes)[0]
    write_anew(path, syntax, kind)
    wanted = judged(path, (150, 200), 64)
    np.testing.assert_array_equal(wanted, picture)
    np.testing.assert_array_equal(read_all(path), np.broadcast_to(wanted[..., np.newaxis], IMAGE.shape) if samples == "grey" else wanted)


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, ExplicitVRLittleEndian], ids=["big", "little"])
def test_samples_of_16_bits_are_in_the_order_of_the_file(tmp_path: Path, syntax: str) -> None:
    path = write_series(tmp_path, [IMAGE.astype(np.uint16) * 257])[0]
    write_anew(path, syntax, "OW")
    np.testing.assert_array_equal(judged(path, (150, 200), 64), IMAGE.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_all(path, SourceOptions(window=(0, 65535))), IMAGE)


@pytest.mark.parametrize("kind", ["OB", "OW"])
def test_places_of_sparse_frames_are_read_in_the_order_of_the_file(tmp_path: Path, kind: str) -> None:
    path = write_series(tmp_path, [IMAGE], change=lambda _, data: make_sparse(data, [7, 0, 5, 10]))[0]
    before = read_all(path)
    write_anew(path, ExplicitVRBigEndian, kind)
    np.testing.assert_array_equal(read_all(path), before)


def test_frames_that_begin_within_a_word_are_refused(tmp_path: Path) -> None:
    path = write_series(tmp_path, [IMAGE[:140]], tile=35)[0]  # 24 frames of 3675 bytes
    write_anew(path, ExplicitVRBigEndian, "OW")
    refused(path, r"frames of 3675 bytes in words of two, which begin within one \(big-endian OW\). Write it anew: dcmconv")


def test_what_is_deflated_as_a_whole_is_told(tmp_path: Path) -> None:
    path = write_series(tmp_path, [IMAGE])[0]
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(path, data, implicit_vr=False, little_endian=True, enforce_file_format=True)
    words = r"its elements are compressed as a whole \(transfer syntax Deflated.*dcmconv \+te"
    refused(path, words)
    refused(tmp_path, words)
    with serving(tmp_path) as server, pytest.raises(InputError, match=words):
        open_source(server.url("0.dcm"), SourceOptions())


def test_uncompressed_subsampled_colours_are_told_and_not_called_damage(tmp_path: Path) -> None:
    def subsampled(_: int, data: Dataset) -> None:
        data.PhotometricInterpretation, data.PixelData = "YBR_FULL_422", data.PixelData[: len(data.PixelData) // 3 * 2]

    path = write_series(tmp_path, [IMAGE], change=subsampled)[0]
    refused(path, "its frames are uncompressed YBR_FULL_422, which is not read. Convert its colours to RGB, or its frames to JPEG")
