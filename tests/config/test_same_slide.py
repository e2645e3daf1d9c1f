"""Files that are one slide: pydicom and OpenSlide say which, tilestream lists each slide once."""

import shutil
import uuid
from pathlib import Path

import numpy as np
import openslide
import pydicom
import pytest
import tifffile

from tests.support.dicom import write_series
from tests.support.images import make_image, pyramid
from tests.support.runs import embed
from tilestream.config.dicom_series import read_header
from tilestream.config.slide_list import list_slides
from tilestream.errors import ConfigError, InputError
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions

IMAGE = make_image(200, 260)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
def test_headers_say_what_pydicom_says(tmp_path: Path, slides: Path, syntax: str) -> None:
    made = write_series(tmp_path, pyramid(IMAGE, 2), syntax=syntax)
    for path in [*made, *(slides / name for name in ("gcp_jpeg.dcm", "boxes_0.dcm", "boxes_1.dcm"))]:
        header, told = read_header(path), pydicom.dcmread(path)
        assert header is not None
        assert (header.series, header.sop_class, header.photometric) == (
            told.SeriesInstanceUID,
            told.SOPClassUID,
            told.PhotometricInterpretation,
        )
        assert header.image_type == tuple(told.ImageType)
        assert header.area == told.TotalPixelMatrixRows * told.TotalPixelMatrixColumns
        assert header.syntax == told.file_meta.TransferSyntaxUID
    assert read_header(slides / "boxes.tiff") is None


def test_cut_headers_are_no_series(tmp_path: Path) -> None:
    whole = write_series(tmp_path, [IMAGE])[0].read_bytes()
    for length in range(0, 2000, 37):
        (tmp_path / "cut").write_bytes(whole[:length])
        header = read_header(tmp_path / "cut")
        assert header is None or header.sop_class in ("", "1.2.840.10008.5.1.4.1.1.77.1.6")


def test_a_glob_over_a_series_is_one_slide(tmp_path: Path) -> None:
    made = write_series(tmp_path / "case 7", pyramid(IMAGE, 3), overview=True)
    found = list_slides([str(tmp_path / "case 7" / "*.dcm")])
    assert [(ref.id, ref.address) for ref in found] == [("case 7", str(made[0]))]
    assert {openslide.OpenSlide(path).properties["openslide.quickhash-1"] for path in made} == {
        openslide.OpenSlide(found[0].address).properties["openslide.quickhash-1"]
    }


def test_two_series_in_a_folder_and_one_in_another_are_three_slides(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_series(tmp_path / "both", pyramid(IMAGE, 2), prefix=name)
    write_series(tmp_path / "other", pyramid(IMAGE, 2), prefix="a")
    found = list_slides([str(tmp_path / "*" / "*")])
    assert [(ref.id, Path(ref.address).name) for ref in found] == [("a0", "a0.dcm"), ("b0", "b0.dcm"), ("other", "a0.dcm")]
    assert [Path(ref.address).name for ref in list_slides([str(tmp_path / "both" / "*1.dcm"), str(tmp_path / "both" / "a0.dcm")])] == [
        "a0.dcm",
        "b1.dcm",
    ]


def test_names_without_a_suffix_are_looked_into(tmp_path: Path) -> None:
    for number, path in enumerate(write_series(tmp_path, pyramid(IMAGE, 2))):
        path.rename(tmp_path / f"1.2.826.0.{number}")
    assert len(list_slides([str(tmp_path / "*")])) == 1


def test_a_folder_that_is_one_series_is_a_slide(tmp_path: Path) -> None:
    made = write_series(tmp_path / "cohort" / "x", pyramid(IMAGE, 2), overview=True)
    (found,) = list_slides([str(tmp_path / "cohort" / "*")])
    assert (found.id, found.address) == ("x", str(tmp_path / "cohort" / "x"))
    with open_source(found.address, SourceOptions()) as source:
        reference = np.asarray(openslide.OpenSlide(made[0]).read_region((0, 0), 0, (260, 200)).convert("RGB"))
        assert source.info.size.width == 260
        assert np.array_equal(source.to_dask(0).compute(), reference)
    write_series(tmp_path / "cohort" / "x", [IMAGE], prefix="z")
    with pytest.raises(InputError, match=r"holds 2 DICOM series.* Name one file of each: 0.dcm, z0.dcm"):
        open_source(found.address, SourceOptions())


def test_a_series_is_embedded_once(tmp_path: Path) -> None:
    write_series(tmp_path / "s", pyramid(IMAGE, 2), overview=True)
    summary = embed(str(tmp_path / "s" / "*.dcm"), tmp_path / "out", tiles={"size": 64})
    assert [(slide.id, slide.status) for slide in summary.slides] == [("s", "done")]


def test_a_table_may_name_a_series_once(tmp_path: Path) -> None:
    write_series(tmp_path, pyramid(IMAGE, 2))
    (tmp_path / "one.csv").write_text("path,id\n0.dcm,mine\n1.dcm,\n")
    assert [(ref.id, Path(ref.address).name) for ref in list_slides([str(tmp_path / "one.csv")])] == [("mine", "0.dcm")]
    (tmp_path / "two.csv").write_text("path,id\n0.dcm,mine\n1.dcm,yours\n")
    with pytest.raises(ConfigError, match=r"0.dcm, .*1.dcm belong to one slide, with 2 ids \(mine, yours\). List one"):
        list_slides([str(tmp_path / "two.csv")])


@pytest.mark.parametrize("file", ["x/0.dcm", "x/1.dcm", "x/../x/2.dcm", "link/0.dcm"])
def test_a_table_may_name_a_series_by_its_folder_or_by_a_file(tmp_path: Path, file: str) -> None:
    write_series(tmp_path / "x", pyramid(IMAGE, 2), overview=True)
    (tmp_path / "link").symlink_to(tmp_path / "x")
    table = tmp_path / "slides.csv"
    for rows in ([f"{file},yours", "x,mine"], ["x/,mine", f"{file},yours"]):
        table.write_text("\n".join(["path,id", *rows]))
        with pytest.raises(ConfigError, match=r"belong to one slide, with 2 ids \(mine, yours\). List one of them"):
            list_slides([str(table)])
    for file_id, folder_id, expected in (("", "", "x"), ("same", "same", "same"), ("mine", "", "mine"), ("", "mine", "mine")):
        table.write_text(f"path,id\n{file},{file_id}\nx,{folder_id}\n")
        assert [(ref.id, ref.address) for ref in list_slides([str(table)])] == [(expected, str(tmp_path / "x"))]
    table.write_text(f"path,id,mpp\n{file},,0.5\nx,,0.25\n")
    with pytest.raises(ConfigError, match=r"belong to one slide, with 2 resolutions \(0.25, 0.5\)"):
        list_slides([str(table)])


def test_a_file_in_a_listed_folder_of_several_series_is_a_slide_of_its_own(tmp_path: Path) -> None:
    for prefix in "ab":
        write_series(tmp_path / "x", pyramid(IMAGE, 1), prefix=prefix)
    assert [ref.id for ref in list_slides([str(tmp_path / "x"), str(tmp_path / "x" / "a0.dcm")])] == ["x", "a0"]


@pytest.mark.parametrize("again", ["a.svs", "./a.svs", "sub/../a.svs", "link.svs"])
def test_a_file_listed_twice_is_named(tmp_path: Path, again: str) -> None:
    (tmp_path / "a.svs").write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.svs").symlink_to(tmp_path / "a.svs")
    with pytest.raises(ConfigError, match=r"a.svs is listed twice, as 'a' and as"):
        list_slides([str(tmp_path / "a.svs"), f"{tmp_path}/{again}"])


def test_files_of_one_ome_tiff_are_one_slide(tmp_path: Path) -> None:
    ids = [uuid.uuid4().urn for _ in range(3)]
    data = "".join(
        f'<TiffData FirstC="{k}" IFD="0" PlaneCount="1"><UUID FileName="c{k}.ome.tif">{ids[k]}</UUID></TiffData>' for k in range(3)
    )
    for k in range(3):
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{ids[k]}"><Image ID="Image:0"><Pixels ID="Pixels:0" '
            f'DimensionOrder="XYCZT" Type="uint8" SizeX="260" SizeY="200" SizeC="3" SizeZ="1" SizeT="1">{data}</Pixels></Image></OME>'
        )
        tifffile.imwrite(tmp_path / f"c{k}.ome.tif", IMAGE[..., k].copy(), photometric="minisblack", metadata=None, description=xml)
    shutil.copy(tmp_path / "c0.ome.tif", tmp_path / "another.ome.tif")
    found = list_slides([str(tmp_path / "*.ome.tif")])
    assert [ref.id for ref in found] == ["another", "c0"]


@pytest.mark.parametrize("here", [".", "./", "../case 7"])
def test_the_folder_of_a_series_that_one_is_in_gives_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str) -> None:
    write_series(tmp_path / "case 7", pyramid(IMAGE, 1))
    monkeypatch.chdir(tmp_path / "case 7")
    assert [ref.id for ref in list_slides([here])] == ["case 7"]
