"""Slides: what paths, globs, CSV files and samples become, and which ids are refused."""

from pathlib import Path

import pytest

from tilestream.config.slide_list import SlideRef, id_from_address, list_slides
from tilestream.errors import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.svs", "a.svs", "c.tif"):
        (tmp_path / name).touch()
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain.svs").mkdir()
    (tmp_path / "z.ome.zarr").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "zarr.json").touch()
    return tmp_path


def csv_of(folder: Path, text: str | bytes) -> list[SlideRef]:
    (folder / "list").mkdir(exist_ok=True)
    path = folder / "list" / "slides.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list_slides([str(path)])


def test_globs_are_sorted_and_leave_plain_folders_out(folder):
    assert list_slides(["*.svs"]) == [SlideRef("a", str(folder / "a.svs")), SlideRef("b", str(folder / "b.svs"))]


def test_a_list_keeps_its_order(folder):
    assert [ref.id for ref in list_slides(["c.tif", "*.svs", "z.ome.zarr", "store", "sample://he?width=64&height=32"])] == [
        "c", "a", "b", "z", "store", "sample_he_64x32_seed0",
    ]  # fmt: skip


def test_a_path_without_a_file_is_kept_for_later(folder):
    assert list_slides(["none.svs"]) == [SlideRef("none", str(folder / "none.svs"))]
    long = f"{'x' * 300}/a.svs"
    assert list_slides([long])[0].id == "a"


def test_a_file_whose_name_looks_like_a_glob_is_that_file(folder):
    (folder / "a[1].svs").touch()
    assert [ref.id for ref in list_slides(["a[1].svs"])] == ["a[1]"]


def test_a_glob_without_match_names_pattern_and_folder(folder):
    with pytest.raises(ConfigError, match=rf"slides: nothing matches '\*\.ndpi' in {folder}"):
        list_slides(["*.ndpi"])


def test_a_folder_without_slides_is_refused_with_a_glob(folder):
    (folder / "plain" / "notes.txt").write_text("no slide")
    with pytest.raises(ConfigError, match=r"slides: the folder 'plain' holds no file .* Give a glob, e\.g\. plain/\*\*/\*\.svs"):
        list_slides(["plain/"])


def test_a_folder_stands_for_the_slides_that_lie_in_it(folder):
    for name in ("b.SVS", "a.ome.tiff", ".hidden.svs", "notes.txt", "c.csv"):
        (folder / "plain" / name).touch()
    (folder / "plain" / "z.dcm").write_bytes(bytes(128) + b"DICM")
    for name, mark in (("store.zarr", "zarr.json"), ("deeper", "d.svs")):
        (folder / "plain" / name).mkdir()
        (folder / "plain" / name / mark).touch()
    assert [ref.id for ref in list_slides(["plain"])] == ["a", "b", "store", "z"]


@pytest.mark.parametrize(
    ("address", "slide_id"),
    [
        ("dir/case 1.svs", "case 1"),
        ("x.ome.zarr", "x"),
        ("x.OME.TIFF", "x"),
        ("x.ome.zarr/", "x"),
        ("a.b.svs", "a.b"),
        ("s3://bucket/dir/x.zarr", "x"),
        ("https://host/x.ome.zarr?v=1", "x"),
        ("sample://he?width=16384&height=12288", "sample_he_16384x12288_seed0"),
        ("sample://he?seed=3&mpp=0.5", "sample_he_seed3_mpp0.5"),
        ("sample://he?width=../..&height=1", "sample_he_..-..x1_seed0"),
    ],
)
def test_ids_are_readable_names(address, slide_id):
    assert id_from_address(address) == slide_id


@pytest.mark.parametrize(
    ("slide_id", "words"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        (".", "means a folder"),
        ("..", "means a folder"),
        ("../x", "has a path separator"),
        ("/x", "has a path separator"),
        ("a\\b", "has a path separator"),
        ("a\0b", "has control characters"),
        ("a\nb", "has control characters"),
        ("a\udcffb", "has bytes that are not UTF-8"),
        ("x" * 201, "is 201 bytes long, more than 200"),
        ("é" * 101, "is 202 bytes long, more than 200"),
    ],
)
def test_an_id_that_is_no_safe_file_name_is_refused(slide_id, words):
    with pytest.raises(ConfigError, match=rf"slides: 'a\.svs' has the id .*, which {words}\. Give it an id in a CSV"):
        SlideRef(slide_id, "a.svs")


@pytest.mark.parametrize(("first", "second"), [("x/a.svs", "y/a.svs"), ("x/a.svs", "y/A.tif"), ("x/caf\u00e9.svs", "y/cafe\u0301.svs")])
def test_two_slides_of_one_id_are_both_named(folder, first, second):
    with pytest.raises(ConfigError, match=rf"two slides have the id .*{first} and .*{second}\. Give ids of their own in a CSV"):
        list_slides([first, second])


def test_a_csv_gives_ids_and_resolutions_and_paths_beside_it(folder):
    refs = csv_of(folder, "\ufeffPath, id ,mpp,patient\na.svs,one,0.25,p\n\n/b/c.svs,,,\ns3://b/d.zarr,two\n")
    assert refs == [
        SlideRef("one", str(folder / "list" / "a.svs"), 0.25, extra=(("patient", "p"),)),
        SlideRef("c", "/b/c.svs", extra=(("patient", ""),)),
        SlideRef("two", "s3://b/d.zarr", extra=(("patient", ""),)),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("told", [False, True])
def test_a_list_may_be_saved_as_any_spreadsheet_saves_it(folder, encoding, end, mark, told):
    """Decimals with a comma are what spreadsheets write where semicolons or tabs stand between cells."""
    rows = [["path", "id", "mpp"], ["a.svs", "größe", "0.25" if mark == "," else "0,25"], ["b,c;d.svs", "", ""]]
    quoted = [[f'"{cell}"' if {",", ";"} & set(cell) else cell for cell in row] for row in rows]
    text = (f"sep={mark}{end}" if told else "") + end.join(mark.join(row) for row in quoted) + end
    place = folder / "list"
    assert csv_of(folder, text.encode(encoding)) == [
        SlideRef("größe", str(place / "a.svs"), 0.25),
        SlideRef("b,c;d", str(place / "b,c;d.svs")),
    ]


def test_a_list_of_paths_alone_has_nothing_between_cells(folder):
    assert [ref.address for ref in csv_of(folder, "path\n/a/b;c.svs\n")] == ["/a/b;c.svs"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"slides\.csv has the columns \[\], but it needs one named path"),
        ("slide,id\na,b\n", r"has the columns \['slide', 'id'\], but it needs one named path"),
        ("path|mpp\na|1\n", r"has the columns \['path\|mpp'\].*with commas, semicolons or tabs between"),
        ("path;mpp\na;1,250\n", "row 2: mpp is '1,250', but it must be a number above 0"),
        ("path;mpp\na;1.250,5\n", "row 2: mpp is '1.250,5', but it must be a number above 0"),
        ("path,mpp,mpp\na,1,2\n", r"at most one each named id, mpp and mask"),
        ("path\n", "has a header but no slides"),
        ("path,mpp\na.svs,1\nb.svs,abc\n", "row 3: mpp is 'abc', but it must be a number above 0"),
        ("path,mpp\na.svs,0\n", "row 2: mpp is '0', but it must be a number above 0"),
        ("path,mpp\na.svs,inf\n", "row 2: mpp is 'inf', but it must be a number above 0"),
        ("path,id\n,x\n", "row 2: path is empty"),
        ("id,path\nx\n", "row 2: path is empty"),
        ("path,mpp\na.svs,0,25\n", "row 2: 3 cells, but there are 2 columns"),
        ("path,id\na.svs,../x\n", "has the id '../x', which has a path separator"),
        ("path\n../plain\n", "row 2: .*plain' is a folder, not a slide"),
        ('path\n"a\n', "is not a table"),
        (b"path\n\xff\n", r"is not text in UTF-8 \(byte 5\)\. Save it as CSV UTF-8"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused(folder, text, words):
    with pytest.raises(ConfigError, match=words):
        csv_of(folder, text)


def test_a_missing_csv_is_refused(folder):
    with pytest.raises(ConfigError, match=r"slides: there is no file none\.csv"):
        list_slides(["none.csv"])


def test_other_columns_go_with_the_slides_and_slide_id_is_an_id(tmp_path):
    table = tmp_path / "slides.csv"
    table.write_text("slide_id,Path,patient,MPP,Site\nA,a.svs,p1,0.5,north\nB,b.svs,p2,\n")
    first, second = list_slides([str(table)])
    assert (first.id, first.mpp, first.extra) == ("A", 0.5, (("patient", "p1"), ("Site", "north")))
    assert (second.id, second.mpp, second.extra) == ("B", None, (("patient", "p2"), ("Site", "")))
    table.write_text("slide_id,id,path\nA,B,a.svs\n")
    with pytest.raises(ConfigError, match="no two of one name"):
        list_slides([str(table)])
