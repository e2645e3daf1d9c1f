"""Which frame lies where: sparse tiles, concatenations, focal planes, optical paths, and what else lies in the folder of a slide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage, generate_uid

from tests.sources.tiff.test_source import read_openslide
from tests.support.dicom import cut_frames, make_sparse, place_group, write_coded, write_series
from tests.support.images import make_image, pyramid
from tilestream.errors import InputError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.dicom.source import DicomSource
from tilestream.testing.sources import Image

IMAGE, AUTO = make_image(150, 200), SourceOptions()
TILES = 12
"""Tiles of 64 px in it, 3 x 4."""


def read_all(path: Path, options: SourceOptions = AUTO) -> Image:
    with open_source(str(path), options) as source:
        assert isinstance(source, DicomSource)
        size = source.info.size
        return source.read_region(0, Region(0, 0, size.height, size.width))


def refused(path: Path, words: str, options: SourceOptions = AUTO) -> None:
    with pytest.raises(InputError, match=words):
        open_source(str(path), options)


def rewrite(path: Path, change: Callable[[Dataset], None], to: Path | None = None) -> Path:
    data = pydicom.dcmread(path)
    change(data)
    pydicom.dcmwrite(to or path, data, enforce_file_format=True)
    return to or path


# -- sparse tiles -------------------------------------------------------------------------------------------------------


def test_tiles_without_a_frame_are_white_and_are_none(tmp_path: Path) -> None:
    kept = [7, 0, 5, 10]
    path = write_series(tmp_path, [IMAGE], change=lambda _, data: make_sparse(data, kept))[0]
    expected = np.full((192, 256, 3), 255, np.uint8)
    for n in kept:
        expected[n // 4 * 64 :, n % 4 * 64 :][:64, :64] = cut_frames(IMAGE, 64)[n]
    np.testing.assert_array_equal(read_all(path), expected[:150, :200])
    np.testing.assert_array_equal(read_all(path), read_openslide(path, 0, Region(0, 0, 150, 200)))
    with open_source(str(path), AUTO) as source:
        assert source.info.properties["dicom.organization"] == "TILED_SPARSE"
        assert [n for n in range(TILES) if source.read_segment(0, n // 4, n % 4) is not None] == sorted(kept)


def test_frames_say_where_they_lie_though_the_header_names_no_organization(tmp_path: Path) -> None:
    def change(_: int, data: Dataset) -> None:
        make_sparse(data, list(reversed(range(TILES))))
        del data.DimensionOrganizationType

    np.testing.assert_array_equal(read_all(write_series(tmp_path, [IMAGE], change=change)[0]), IMAGE)


def test_a_slide_without_organization_and_places_is_full(tmp_path: Path) -> None:
    path = write_series(tmp_path, [IMAGE], change=lambda _, data: delattr(data, "DimensionOrganizationType"))[0]
    np.testing.assert_array_equal(read_all(path), IMAGE)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((33, 1), r"TILED_SPARSE frames that lie on no grid of 64 x 64 px, which is not read"),
        ((193, 1), "frames lie outside its 150 x 200 px"),
        ((-63, 1), "frames lie outside its 150 x 200 px"),
        ((1, 65), r"places two frames on one tile of the level of 150 x 200 px \(the other is in 0\.dcm\)"),
    ],
)
def test_frames_in_places_that_cannot_be_are_refused(tmp_path: Path, place: tuple[int, int], words: str) -> None:
    def change(_: int, data: Dataset) -> None:
        make_sparse(data, [0, 1])
        data.PerFrameFunctionalGroupsSequence[0] = place_group(*place)

    refused(write_series(tmp_path, [IMAGE], change=change)[0], words)


def test_frames_without_places_are_refused(tmp_path: Path) -> None:
    def change(_: int, data: Dataset) -> None:
        make_sparse(data, [0, 1])
        data.PerFrameFunctionalGroupsSequence.pop()

    refused(write_series(tmp_path, [IMAGE], change=change)[0], "says where 1 frames lie, but has 2")


# -- concatenations -----------------------------------------------------------------------------------------------------


def split(path: Path, starts: list[int]) -> list[Path]:
    """The frames of a file in several ones, each from a start on; the file itself is gone."""
    data = pydicom.dcmread(path)
    size, uid, pixels = 64 * 64 * 3, generate_uid(), data.PixelData
    parts = []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], TILES], strict=True)):
        part = pydicom.dcmread(path)
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        part.ConcatenationUID, part.InConcatenationNumber, part.ConcatenationFrameOffsetNumber = uid, number + 1, start
        part.NumberOfFrames, part.PixelData = end - start, pixels[start * size : end * size]
        parts.append(path.with_name(f"part{number}.dcm"))
        pydicom.dcmwrite(parts[-1], part, enforce_file_format=True)
    path.unlink()
    return parts


def test_parts_of_a_concatenation_are_one_level(tmp_path: Path) -> None:
    parts = split(write_series(tmp_path, pyramid(IMAGE, 2))[0], [0, 5, 6])
    for named in (*parts, tmp_path, tmp_path / "1.dcm"):
        np.testing.assert_array_equal(read_all(named), IMAGE)
    with open_source(str(tmp_path), AUTO) as source:
        assert [level.downsample for level in source.info.levels] == [1, 2]


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts = split(write_series(tmp_path, [IMAGE])[0], [0, 5, 6])
    parts[1].unlink()
    refused(
        parts[0],
        r"part0\.dcm: TILED_FULL, but 1 of the 12 tiles of its level of 150 x 200 px have no frame\. A part of the concatenation is not in",
    )


def test_two_files_with_the_same_tiles_are_refused(tmp_path: Path) -> None:
    path = write_series(tmp_path, [IMAGE])[0]
    rewrite(path, lambda data: None, tmp_path / "again.dcm")
    refused(
        path, r"again\.dcm: places two frames on one tile .+ Are these focal planes, or two scans\? Leave one of them out of the folder"
    )


# -- focal planes and optical paths -------------------------------------------------------------------------------------


def write_stack(folder: Path, images: list[Image], *, planes: int, names: list[str], grey: bool = False) -> Path:
    """TILED_FULL with frames in the standard's order: tiles, then focal planes, then optical paths."""

    def change(_: int, data: Dataset) -> None:
        tiles = [tile for image in images for tile in cut_frames(image, 64)]
        data.NumberOfFrames, data.TotalPixelMatrixFocalPlanes, data.NumberOfOpticalPaths = len(tiles), planes, len(names)
        data.PixelData = b"".join(tile.tobytes() for tile in tiles)
        data["PixelData"].VR = "OB"
        items = []
        for name in names:
            item = Dataset()
            item.OpticalPathIdentifier, item.OpticalPathDescription = name[:2], name
            items.append(item)
        data.OpticalPathSequence = Sequence(items)

    return write_series(folder, images[:1], photometric="MONOCHROME2" if grey else "RGB", change=change)[0]


def test_a_focal_plane_must_be_chosen(tmp_path: Path) -> None:
    planes = [IMAGE, 255 - IMAGE, IMAGE // 2]
    path = write_stack(tmp_path, planes, planes=3, names=["1"])
    refused(path, r"axis of its focal planes is 3 long\. Choose in the config, for example source: \{z: 0\}")
    refused(path, r"source\.z: 3, but axis of its focal planes has indices 0 to 2", SourceOptions(z=3))
    for z, expected in enumerate(planes):
        np.testing.assert_array_equal(read_all(path, SourceOptions(z=z)), expected)


def test_focal_planes_of_sparse_frames_go_by_depth(tmp_path: Path) -> None:
    def change(_: int, data: Dataset) -> None:
        make_sparse(data, [0, 1, 1])
        data.PerFrameFunctionalGroupsSequence = Sequence([place_group(1, 1, 2.5), place_group(1, 1, -1.5), place_group(1, 65, -1.5)])

    path = write_series(tmp_path, [IMAGE], change=change)[0]
    tiles = cut_frames(IMAGE, 64)
    np.testing.assert_array_equal(read_all(path, SourceOptions(z=0))[:64, :64], tiles[1])
    np.testing.assert_array_equal(read_all(path, SourceOptions(z=0))[:64, 64:128], tiles[1])
    np.testing.assert_array_equal(read_all(path, SourceOptions(z=1))[:64, :64], tiles[0])
    assert (read_all(path, SourceOptions(z=1))[:64, 64:128] == 255).all()


def test_optical_paths_of_colour_are_chosen_one_at_a_time(tmp_path: Path) -> None:
    paths = [IMAGE, 255 - IMAGE]
    path = write_stack(tmp_path, paths, planes=1, names=["brightfield", "polarised"])
    refused(path, r"the list of its optical paths is 2 long \(0: brightfield, 1: polarised\)")
    refused(path, "each of its 2 optical paths has 3 samples a pixel", SourceOptions(channels=(0, 1, 1)))
    np.testing.assert_array_equal(read_all(path, SourceOptions(channels=("polarised",))), paths[1])


def test_three_grey_optical_paths_make_a_picture(tmp_path: Path) -> None:
    path = write_stack(tmp_path, [IMAGE[..., k] for k in range(3)], planes=1, names=["DAPI", "FITC", "Cy5"], grey=True)
    np.testing.assert_array_equal(read_all(path, SourceOptions(channels=("Cy5", "fitc", "DAPI"))), IMAGE[..., ::-1])
    np.testing.assert_array_equal(read_all(path, SourceOptions(channels=(1,))), np.broadcast_to(IMAGE[..., 1:2], IMAGE.shape))
    refused(
        path,
        r"source\.channels: 'DAPL' is none of its channels, which are 0: DAPI, 1: FITC, 2: Cy5\. Did you mean 'DAPI'\?",
        SourceOptions(channels=("DAPL",)),
    )


def test_optical_paths_in_files_of_their_own_are_one_slide(tmp_path: Path) -> None:
    path = write_stack(tmp_path, [IMAGE[..., 0]], planes=1, names=["A"], grey=True)

    def change(data: Dataset) -> None:
        data.OpticalPathSequence[0].OpticalPathIdentifier = data.OpticalPathSequence[0].OpticalPathDescription = "B"
        data.PixelData = b"".join(tile.tobytes() for tile in cut_frames(IMAGE[..., 1], 64))

    rewrite(path, change, tmp_path / "b.dcm")
    np.testing.assert_array_equal(read_all(path, SourceOptions(channels=("B",)))[..., 0], IMAGE[..., 1])
    np.testing.assert_array_equal(read_all(path, SourceOptions(channels=("A",)))[..., 0], IMAGE[..., 0])


# -- what else lies in the folder ---------------------------------------------------------------------------------------


def test_a_series_without_a_level_is_refused_by_name(tmp_path: Path) -> None:
    paths = write_series(tmp_path, [IMAGE], overview=True)
    paths[0].unlink()
    refused(paths[1], r"no file of its series is a level of a slide .+ there are 1\.dcm: OVERVIEW")


@pytest.mark.parametrize("kind", ["LABEL", "THUMBNAIL"])
def test_other_pictures_of_the_slide_are_no_level(tmp_path: Path, kind: str) -> None:
    def change(number: int, data: Dataset) -> None:
        if number == 1:
            data.ImageType = ["DERIVED", "PRIMARY", kind, "NONE"]

    write_series(tmp_path, pyramid(IMAGE, 2), change=change)
    with open_source(str(tmp_path), AUTO) as source:
        assert len(source.info.levels) == 1
        assert source.info.properties["dicom.other_files"] == f"1.dcm: {kind}"


def test_levels_of_another_region_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, [IMAGE, make_image(140, 60)])
    refused(tmp_path, r"1\.dcm is 140 x 60 px, which is no smaller 150 x 200 as 0\.dcm is: the series has images of several regions")


def test_levels_of_different_samples_are_refused(tmp_path: Path) -> None:
    path = write_series(tmp_path, pyramid(IMAGE, 2))[1]
    grey = write_series(tmp_path / "grey", [pyramid(IMAGE, 2)[1][..., 0]], photometric="MONOCHROME2")[0]
    series = pydicom.dcmread(path).SeriesInstanceUID
    rewrite(grey, lambda data: setattr(data, "SeriesInstanceUID", series), path)
    refused(path, r"1\.dcm: 1 x 8 bits a pixel, but 0\.dcm of the same series has 3 x 8 bits a pixel")


@pytest.mark.parametrize("coding", ["jpeg 4:2:0", "native"])
def test_a_list_of_files_a_folder_and_a_file_are_one_slide(tmp_path: Path, coding: str) -> None:
    write_coded(tmp_path, pyramid(IMAGE, 3), coding)
    prints = set()
    for named in (tmp_path, tmp_path / "0.dcm", tmp_path / "2.dcm"):
        with open_source(str(named), AUTO) as source:
            assert [level.size.width for level in source.info.levels] == [200, 100, 50]
            prints.add(source.info.fingerprint)
    assert len(prints) == 1


def test_an_index_of_files_says_where_they_are(tmp_path: Path) -> None:
    write_series(tmp_path / "disc" / "PT0" / "SE0", [IMAGE])
    index = Dataset()
    index.file_meta = FileMetaDataset()
    index.file_meta.MediaStorageSOPClassUID, index.file_meta.MediaStorageSOPInstanceUID = MediaStorageDirectoryStorage, generate_uid()
    index.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    index.FileSetID, index.DirectoryRecordSequence = "DISC", Sequence([])
    pydicom.dcmwrite(tmp_path / "disc" / "DICOMDIR", index, enforce_file_format=True)
    for named in (tmp_path / "disc", tmp_path / "disc" / "DICOMDIR"):
        with pytest.raises(InputError, match=r"is an index of DICOM files in folders below.*Name the folder that holds those of the slide"):
            open_source(str(named), AUTO)
    np.testing.assert_array_equal(read_all(tmp_path / "disc" / "PT0" / "SE0"), IMAGE)
