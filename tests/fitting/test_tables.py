"""Tables in the shapes that people have, and slides found by their names."""

import openpyxl
import pytest

from tilestream.errors import ConfigError
from tilestream.fitting.tables import SLIDES, match_slides, plain_name, read_table


def write(path, text, **how):
    path.write_text(text, **how)
    return str(path)


@pytest.mark.parametrize(
    "text",
    ["slide,label\na,x\nb,y\n", "slide;label\na;x\nb;y\n", "slide\tlabel\na\tx\nb\ty\n", "\ufeffslide, label\r\n a ,x\r\n\r\nb,y"],
)
def test_text_with_any_usual_mark(tmp_path, text):
    table = read_table(write(tmp_path / "t.csv", text, encoding="utf-8"), "target.slides")
    assert table.header == ("slide", "label")
    assert table.rows == ({"slide": "a", "label": "x"}, {"slide": "b", "label": "y"})


def test_what_a_file_is_counts_and_not_what_it_is_called(tmp_path):
    text = "slide,label\na,x,\nb,y,,\n"  # cells without a column that hold nothing
    expected = read_table(write(tmp_path / "t.csv", text), "target.slides")
    assert expected.header == ("slide", "label")
    book = openpyxl.Workbook()
    for row in (["slide", "label"], ["a", "x"], ["b", "y"]):
        book.active.append(row)
    book.save(tmp_path / "book.xlsx")
    (tmp_path / "book.xlsx").rename(tmp_path / "book.csv")
    for path in (write(tmp_path / "text.xlsx", text), write(tmp_path / "wide.txt", text, encoding="utf-16"), str(tmp_path / "book.csv")):
        assert read_table(path, "target.slides").rows == expected.rows, path


@pytest.mark.parametrize("name", ["Slide ID", "slide-id", "SLIDE_NAME", "File Name", "WSI", "Image.ID"])
def test_a_column_of_slides_is_found_however_it_is_written(tmp_path, name):
    table = read_table(write(tmp_path / "t.csv", f"number,{name},label\n1,a,x\n"), "target.slides")
    assert table.find(SLIDES) == name


def test_a_sheet(tmp_path):
    book = openpyxl.Workbook()
    for row in (["PATIENT", "isMSIH", None], ["p1", "MSIH", None], ["p2", None, None], [None, None, None], [3, 1.5, None]):
        book.active.append(row)
    book.save(tmp_path / "clini.xlsx")
    table = read_table(str(tmp_path / "clini.xlsx"), "target.slides")
    assert [row["PATIENT"] for row in table.rows] == ["p1", "p2", "3"]
    assert [row["isMSIH"] for row in table.rows] == ["MSIH", "", "1.5"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no header"), ("slide,label\n", "has a header but no rows"), ("a,a\n1,2\n", "two columns named 'a'"),
        ("a,b\n1,2,3\n", "row 2 has 3 cells, but there are 2 columns"), ('a,b\n"1,2\n', "is not a table"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        read_table(write(tmp_path / "t.csv", text), "target.slides")


def test_a_sheet_that_is_none_and_a_file_that_is_not_there(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ConfigError, match="is no XLSX that can be read"):
        read_table(str(tmp_path / "t.xlsx"), "target.slides")
    (tmp_path / "t.xls").write_bytes(b"\xd0\xcf\x11\xe0 old")
    with pytest.raises(ConfigError, match=r"Excel's format of before 2007\. Save it as XLSX or CSV"):
        read_table(str(tmp_path / "t.xls"), "target.slides")
    book = openpyxl.Workbook()
    book.active.title = "Notes"
    book.active.append(["read me"])
    book.create_sheet("labels")
    book.save(tmp_path / "two.xlsx")
    with pytest.raises(ConfigError, match=r"its first sheet, Notes, is no table, and no other is read \(labels\)\. Put the table first"):
        read_table(str(tmp_path / "two.xlsx"), "target.slides")
    with pytest.raises(ConfigError, match="there is no file"):
        read_table(str(tmp_path / "none.csv"), "target.slides")


def test_a_wrong_column_names_the_nearest(tmp_path):
    table = read_table(write(tmp_path / "t.csv", "slide,Diagnosis\na,x\n"), "target.slides")
    assert table.column("diagnosis", "target.column") == "Diagnosis"
    with pytest.raises(
        ConfigError,
        match=r"target\.column: .* has no column 'diagnosys'; did you mean 'Diagnosis'\? Its first row, which names the columns, has slide, Diagnosis",
    ):
        table.column("diagnosys", "target.column")


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("a.svs", "a"),
        ("x/y/a.ome.tiff", "a"),
        (r"c:\x\a.h5", "a"),
        ("a.b.pt", "a.b"),
        ("TCGA-01.uuid.svs", "TCGA-01.uuid"),
        ("a", "a"),
        ("a.zarr", "a"),
    ],
)
def test_names_without_folder_and_ending(written, plain):
    assert plain_name(written) == plain


def test_slides_are_found_by_id_before_anything_else():
    assert match_slides(["a", "a.svs"], ["a", "a.svs"], "t", "k") == {"a": "a", "a.svs": "a.svs"}
    assert match_slides(["A", "a", "B-1"], ["a", "b-1.svs"], "t", "k") == {"a": "a", "b-1.svs": "B-1"}
    assert match_slides(["one", "two"], ["x/two.svs", "three"], "t", "k") == {"x/two.svs": "two"}


@pytest.mark.parametrize(
    ("ids", "names", "words"),
    [
        (["a.svs", "a.tif"], ["a.h5"], "names 'a.h5', which may be a.svs or a.tif"),
        (["a"], ["a.svs", "a.tif"], "names the slide a twice, as 'a.svs' and 'a.tif'"),
        (["a", "b"], ["c", "d"], "no slide of t is in the embeddings. The table has 'c', 'd'; the embeddings have 'a', 'b'"),
    ],
)
def test_names_that_mean_two_or_none_are_refused(ids, names, words):
    with pytest.raises(ConfigError, match=words):
        match_slides(ids, names, "t", "target.slides")
