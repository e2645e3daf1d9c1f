"""Damaged and hostile DICOM files: what is broken fails by itself or is refused by name, and nothing takes memory on a claim."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from benchmarks.fuzzing import mutate
from tests.support.dicom import CODINGS, make_sparse, write_coded, write_series
from tests.support.images import make_image
from tilestream.errors import InputError, ReadError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.dicom.source import DicomSource

IMAGE, AUTO = make_image(150, 200), SourceOptions()
ITEM = b"\xfe\xff\x00\xe0"


def spoil(path: Path, change: Callable[[bytearray], None]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def frames_of(data: bytes) -> list[int]:
    """Bytes at which the frames' item tags stand, as they are walked from the table on."""
    at = data.index(struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF)) + 12
    found = []
    while data[at : at + 4] == ITEM:
        found.append(at)
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    return found[1:]


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_a_damaged_frame_fails_alone(tmp_path: Path, table: str) -> None:
    path = write_coded(tmp_path, [IMAGE], "jpeg 4:2:0", table=table)[0]
    with DicomSource(str(path), AUTO) as source:
        expected = source.read_region(0, Region(0, 0, 64, 64))

    def change(data: bytearray) -> None:
        at = frames_of(data)[5]
        data[at + 8 : at + 300] = bytes(292)

    with DicomSource(str(spoil(path, change)), AUTO) as source:
        with pytest.raises(ReadError, match=r"0\.dcm: level 0, file tile \(1, 1\): not a JPEG: starts with 00 00 00 00"):
            source.read_segment(0, 1, 1)
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 64, 64)), expected)


def test_the_colours_of_other_frames_do_not_hang_on_a_damaged_first_one(tmp_path: Path) -> None:
    path = write_coded(tmp_path, [IMAGE], "jpeg 4:2:0", change=lambda _, data: setattr(data, "PhotometricInterpretation", "RGB"))[0]
    with DicomSource(str(path), AUTO) as source:
        expected = source.read_region(0, Region(0, 64, 64, 64))

    def change(data: bytearray) -> None:
        at = frames_of(data)[0]
        data[at + 8 : at + 40] = bytes(32)

    with DicomSource(str(spoil(path, change)), AUTO) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 64, 64, 64)), expected)
        with pytest.raises(ReadError, match="not a JPEG"):
            source.read_segment(0, 0, 0)


def test_a_file_that_is_cut_off_fails_where_bytes_are_missing(tmp_path: Path) -> None:
    def change(data: bytearray) -> None:
        del data[frames_of(data)[7] + 100 :]

    path = spoil(write_coded(tmp_path, [IMAGE], "jpeg 4:2:0")[0], change)
    with DicomSource(str(path), AUTO) as source:
        assert source.read_segment(0, 1, 2) is not None
        for cell in range(7, 12):
            with pytest.raises(ReadError, match=r"lie beyond the file's|reaches beyond its frame|no frame lies"):
                source.read_segment(0, cell // 4, cell % 4)


def test_uncompressed_frames_beyond_the_end_fail_alone(tmp_path: Path) -> None:
    path = write_series(tmp_path, [IMAGE])[0]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 64 * 64 * 3 - 1)
    with DicomSource(str(path), AUTO) as source:
        assert source.read_segment(0, 2, 1) is not None
        for col in (2, 3):
            with pytest.raises(ReadError, match=r"12288 bytes at .+ lie beyond the file's"):
                source.read_segment(0, 2, col)


def test_a_file_that_is_cut_off_and_has_no_table_is_refused(tmp_path: Path) -> None:
    def change(data: bytearray) -> None:
        del data[frames_of(data)[7] + 100 :]

    path = spoil(write_coded(tmp_path, [IMAGE], "jpeg 4:2:0", table="none")[0], change)
    with pytest.raises(
        InputError, match=r"has no offset table, and its fragments end after 8 at byte \d+; it has 12 frames\. The file is cut off"
    ):
        DicomSource(str(path), AUTO)


def test_a_table_that_leads_into_a_frame_gives_no_pixels(tmp_path: Path) -> None:
    def change(data: bytearray) -> None:
        table = frames_of(data)[0] - 48
        data[table + 20 : table + 24] = (int.from_bytes(data[table + 20 : table + 24], "little") + 64).to_bytes(4, "little")

    path = spoil(write_coded(tmp_path, [IMAGE], "jpeg 4:2:0")[0], change)
    with DicomSource(str(path), AUTO) as source:
        for cell in (4, 5):
            with pytest.raises(ReadError, match=r"no frame lies where the offset table says|a fragment reaches beyond its frame"):
                source.read_segment(0, cell // 4, cell % 4)
        assert source.read_segment(0, 1, 2) is not None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "NumberOfFrames",
            13,
            "claims 13 frames in 147456 bytes, which need at least 159744|13 frames, but 3 x 4 tiles|12 fragments, which cannot be told to be its 13 frames",
        ),
        ("NumberOfFrames", 10**9, "claims 1000000000 frames in"),
        ("NumberOfFrames", 5, "7 of the 12 tiles of its level of 150 x 200 px have no frame|cannot be told to be its 5 frames"),
        ("Rows", 0, "Rows is 0, at least 1 belongs there"),
        ("Rows", 65535, "claims 12 frames|12 frames, but"),
        ("TotalPixelMatrixColumns", 2**32 - 1, r"has \d+ tiles, the limit is 16777216"),
        ("TotalPixelMatrixRows", None, "lacks TotalPixelMatrixRows"),
        ("PhotometricInterpretation", "PALETTE COLOR", "colours are PALETTE COLOR with 3 samples a pixel; RGB, .+ are read"),
        ("SamplesPerPixel", 4, "colours are .+ with 4 samples a pixel"),
        ("PixelRepresentation", 1, "samples are signed, 8 of 8 bits; unsigned ones of 8 and 16 bits are read"),
        ("BitsAllocated", 32, "samples are unsigned, 8 of 32 bits"),
        ("DimensionOrganizationType", "3D", "frames are organised as 3D; TILED_FULL and TILED_SPARSE are read"),
    ],
)
@pytest.mark.parametrize("coding", ["native", "jpeg 4:2:0"])
def test_headers_that_cannot_be_are_refused_with_the_value(tmp_path: Path, name: str, value: Any, words: str, coding: str) -> None:
    def change(_: int, data: Dataset) -> None:
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)

    path = write_coded(tmp_path, [IMAGE], coding, change=change)[0]
    with pytest.raises(InputError, match=rf"0\.dcm: .*({words})"):
        open_source(str(path), AUTO)


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    def change(_: int, data: Dataset) -> None:
        data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.0005, 0.00025]

    with pytest.raises(InputError, match=r"pixels are not square: the DICOM pixel spacing state 0\.25 µm/px in x and 0\.5 in y"):
        open_source(str(write_series(tmp_path, [IMAGE], change=change)[0]), AUTO)


def test_a_file_that_is_no_more_than_a_preamble_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00")
    with pytest.raises(InputError, match=r"a\.dcm: no file of its series is a level of a slide .+ there are a\.dcm: unknown"):
        open_source(str(path), AUTO)


def test_whatever_bytes_a_file_holds_reading_ends_with_pixels_or_an_error_of_ours(tmp_path: Path) -> None:
    sound = [
        write_coded(tmp_path / str(n), [IMAGE[:100, :120]], coding, table=("basic", "extended", "none")[n % 3])[0]
        for n, coding in enumerate(CODINGS)
        if CODINGS[coding].encode is None or n % 2
    ]
    sound.append(write_series(tmp_path / "sparse", [IMAGE], change=lambda _, data: make_sparse(data, [0, 3]))[0])
    folder = tmp_path / "mutated"
    folder.mkdir()
    outcomes = set()
    for seed in range(120):
        chance = random.Random(seed)
        path = folder / "a.dcm"
        path.write_bytes(mutate(chance.choice(sound).read_bytes(), chance.choice(sound).read_bytes(), chance))
        try:
            with DicomSource(str(path), AUTO) as source:
                grid = source.segment_grid(0)
                for cell in range(min(16, grid.rows * grid.cols)):
                    try:
                        source.read_segment(0, cell // grid.cols, cell % grid.cols)
                        outcomes.add("read")
                    except ReadError:
                        outcomes.add("failed")
        except InputError:
            outcomes.add("refused")
    assert outcomes == {"read", "failed", "refused"}
