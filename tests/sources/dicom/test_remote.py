"""DICOM series in buckets and on web servers: the same pixels as from a disk, in few requests."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tests.support.dicom import write_coded
from tests.support.images import make_image, pyramid
from tests.support.range_server import serving
from tilestream.config.urls.listing import list_urls
from tilestream.errors import ConfigError, InputError, NotThereError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import Source, SourceOptions
from tilestream.sources.dicom import frames, listing
from tilestream.sources.dicom.source import DicomSource
from tilestream.testing.sources import Image

IMAGE, AUTO = make_image(300, 400), SourceOptions()


@pytest.fixture(params=["jpeg 4:2:0", "native", "jpeg 2000"])
def series(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_coded(tmp_path / "series", pyramid(IMAGE, 3), request.param, overview=True)
    return tmp_path / "series"


def read_levels(source: Source) -> list[Image]:
    return [source.read_region(k, Region(0, 0, level.size.height, level.size.width)) for k, level in enumerate(source.info.levels)]


def test_a_prefix_and_each_of_its_files_give_the_pixels_of_the_folder(series: Path) -> None:
    with open_source(str(series), AUTO) as source:
        expected = read_levels(source)
    prints = set()
    for address in (f"file://{series}", f"file://{series}/0.dcm", f"file://{series}/2.dcm", f"file://{series}/3.dcm"):
        with open_source(address, AUTO) as source:
            assert isinstance(source, DicomSource)
            assert source.info.properties["dicom.other_files"] == "3.dcm: OVERVIEW"
            for pixels, same in zip(read_levels(source), expected, strict=True):
                np.testing.assert_array_equal(pixels, same)
            prints.add(source.info.fingerprint)
    assert len(prints) == 1


def test_all_files_of_a_series_are_copied_ahead(series: Path, tmp_path: Path) -> None:
    with open_source(f"file://{series}", AUTO) as source:
        expected, print_ = read_levels(source), source.info.fingerprint
    for number, address in enumerate((f"file://{series}", f"file://{series}/1.dcm")):
        with open_source(address, SourceOptions(stage=str(tmp_path / f"stage{number}"))) as source:
            assert source.info.reason.endswith("frames, of a copy in source.stage")
            assert (source.info.fingerprint, source.fetched) == (print_, False)
            for pixels, same in zip(read_levels(source), expected, strict=True):
                np.testing.assert_array_equal(pixels, same)


def test_frames_that_are_said_ahead_come_in_few_requests(tmp_path: Path) -> None:
    write_coded(tmp_path, [make_image(1024, 1024)], "native")
    places = list(product(range(16), range(16)))
    with serving(tmp_path) as server, open_source(server.url("0.dcm"), AUTO) as source:
        assert any("a web server gives no lists" in words for words in source.info.warnings)
        server.forget()
        with source.ahead(0, places):
            for row, col in places:
                assert source.read_segment(0, row, col) is not None
        assert server.requests <= 8  # the first ones are small
        assert server.bytes_sent <= 1.1 * 1024 * 1024 * 3


@pytest.fixture
def two_series(tmp_path: Path) -> Path:
    write_coded(tmp_path, [IMAGE], "jpeg 4:2:0", prefix="a")
    write_coded(tmp_path, [255 - IMAGE], "jpeg 4:2:0", prefix="b")
    return tmp_path


def test_a_prefix_of_two_series_is_refused_and_a_file_of_one_is_not(two_series: Path) -> None:
    with pytest.raises(InputError, match=r"holds several DICOM series, each a slide\. Name one object of each"):
        open_source(f"file://{two_series}", AUTO)
    with open_source(f"file://{two_series}/b0.dcm", AUTO) as source:
        remote = read_levels(source)[0]
    with open_source(f"{two_series}/b0.dcm", AUTO) as source:
        np.testing.assert_array_equal(read_levels(source)[0], remote)


def test_what_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(NotThereError):
        open_source(f"file://{tmp_path}/nothing", AUTO)


def test_a_large_object_without_a_table_is_not_fetched_to_be_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_coded(tmp_path, [IMAGE], "jpeg 4:2:0", table="none")[0]
    with open_source(f"file://{path}", AUTO) as source:
        remote = read_levels(source)[0]
    with open_source(str(path), AUTO) as source:
        np.testing.assert_array_equal(read_levels(source)[0], remote)
    monkeypatch.setattr(frames, "MOST_FETCHED", 1000)
    monkeypatch.setattr(frames, "_WALKED", frames.Kept(1))
    with pytest.raises(
        InputError, match=r"has no offset table, so that all of its 0 MiB would be fetched .+ set source\.stage to a folder"
    ):
        open_source(f"file://{path}", AUTO)


def test_a_prefix_with_too_many_objects_is_not_looked_through(two_series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_OBJECTS", 1)
    with pytest.raises(InputError, match="2 objects lie right below it, at most 1 are looked through for a DICOM series"):
        open_source(f"file://{two_series}/a0.dcm", AUTO)


def test_a_list_of_slides_takes_a_prefix_of_dicom_for_one(series: Path) -> None:
    assert list_urls(f"file://{series}/") == [f"file://{series}"]
    with pytest.raises(ConfigError, match=r"means 4 DICOM files right below file:///.+/series, .+ Name the series by its prefix"):
        list_urls(f"file://{series}/*.dcm")
