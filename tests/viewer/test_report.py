"""The report: whole in one file, safe with any name and cause, and there for outputs of every kind."""

import json
import re
from collections import Counter
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
import tifffile

from tests.support.images import make_image, write_pyramid
from tests.support.needs import without
from tests.support.runs import embed
from tests.support.stores import make_store
from tests.support.viewing import CHROMIUM
from tilestream.cli import main
from tilestream.errors import ConfigError, InputError
from tilestream.viewer.report import write_report
from tilestream.viewer.reporting.causes import causes_table, group_causes
from tilestream.viewer.reporting.charts import throughput_chart, work_time

EVIL = "<script>alert(1)</script>\"'&"


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.rows = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.addresses += [found[name] for name in ("src", "href") if name in found]
        self.rows += tag == "tr" and "data-text" in found


def report(output, **options):
    write_report(str(output), **options)
    text = (output / "report.html").read_text()
    return text, Page(text)


def test_a_run_with_a_failed_slide_is_reported(tmp_path):
    slide = write_pyramid(tmp_path / "a.tif", make_image(900, 700))
    (tmp_path / "broken.tif").write_bytes(b"no image")
    output = tmp_path / "out"
    embed([slide, tmp_path / "broken.tif"], output, compute={"shard_tiles": 4})
    before = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    text, page = report(output)
    assert page.rows == 2
    assert page.tags.count("img") == 1
    assert ">refused<" in text
    assert "broken.tif" in text
    assert "encoder.name" in text
    assert "tiles/s" in text
    assert all(address.startswith(("data:", "#slide-")) or (output / address).is_file() for address in page.addresses)
    assert "a.zarr/overview.png" in page.addresses
    assert not re.search(r"https?://", text)
    assert {p: p.read_bytes() for p in output.rglob("*") if p.is_file() and p.name != "report.html"} == before


def torn(path):
    """A slide some of whose file tiles are no JPEG, in two ways."""
    write_pyramid(path, make_image(900, 1100), levels=1, compression="jpeg")
    with tifffile.TiffFile(path) as file:
        offsets = file.pages[0].dataoffsets
    with path.open("r+b") as file:
        for k, junk in ((0, bytes(16)), (len(offsets) - 1, b"junk" * 4)):
            file.seek(offsets[k])
            file.write(junk)
    return path


def test_tiles_that_failed_alike_are_told_together(tmp_path):
    embed(torn(tmp_path / "a.tif"), tmp_path / "out", tiles={"size": 64})
    (entry,) = json.loads((tmp_path / "out" / "run.json").read_text())["slides"]
    errors = entry["tile_errors"]
    alike = Counter(errors.values())
    assert 1 < len(alike) < len(errors)
    text, _ = report(tmp_path / "out")
    why = re.search(r"<td class=why><ul>(.*?)</ul>", text, re.DOTALL)[1]
    for cause, times in alike.items():
        assert why.count(escape(cause)) == 1
        (told,) = re.findall(rf"<li>tiles? ([\d, ]+?)(?: and (\d+) more)?: {re.escape(escape(cause))}</li>", why)
        rows = told[0].split(", ")
        assert rows == [row for row, each in errors.items() if each == cause][: len(rows)]
        assert len(rows) + int(told[1] or 0) == times


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 800, 360])
def test_the_page_is_as_wide_as_its_window(tmp_path, width):
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        without("no Chromium on the path")
    embed(torn(tmp_path / f"{'long' * 20}.tif"), tmp_path / "out", tiles={"size": 64})
    write_report(str(tmp_path / "out"))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 700})
        page.goto((tmp_path / "out" / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        browser.close()


def test_words_from_outside_are_never_markup(tmp_path):
    make_store(tmp_path / "a <script>b.zarr", failed=[2], address=EVIL)
    told = {
        "id": f"x{EVIL}",
        "address": EVIL,
        "status": "refused",
        "error": EVIL,
        "tile_errors": {"3": EVIL},
        "note": EVIL,
        "seconds": {EVIL: 1.0},
    }
    run = {"slides": [told], "bound": EVIL, "encoder": {"device": EVIL}, "seconds_by_stage": {EVIL: 2.0}, "versions": {EVIL: EVIL}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    text, page = report(tmp_path)
    assert page.tags.count("script") == 1  # our own
    assert page.rows == 2
    assert "alert(1)" in text
    assert "<script>alert" not in text


def test_unfinished_empty_and_failed_slides_are_rows(tmp_path):
    make_store(tmp_path / "part.zarr", finish=False)
    make_store(tmp_path / "none.zarr", keep=np.zeros((4, 5), bool))
    make_store(tmp_path / "bad.zarr", failed=[0, 5])
    (tmp_path / "torn.zarr").mkdir()
    (tmp_path / "run.json").write_text('{"slides": [')  # cut short
    for k, theirs in enumerate(('{"seconds": "fast"}', '{"slides": ["a"]}', '{"slides": 1}', "[1]")):
        (tmp_path / f"run{k}.json").write_text(theirs)
    text, page = report(tmp_path)
    assert page.rows == 4
    assert text.count("<td class=unfinished>") == 2
    assert "no tissue found" in text


def test_the_place_is_checked_and_a_file_is_replaced_whole(tmp_path):
    make_store(tmp_path / "a.zarr")
    with pytest.raises(ConfigError, match="lies in a slide's store"):
        write_report(str(tmp_path), str(tmp_path / "a.zarr" / "r.html"))
    with pytest.raises(ConfigError, match="is one slide's store"):
        write_report(str(tmp_path / "a.zarr"))
    with pytest.raises(InputError, match="no output of tilestream here"):
        write_report(str(tmp_path / "nowhere"))
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(["report", str(tmp_path), "--to", str(tmp_path / "sub" / "r.html")])
        assert ended.value.code == 0
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["r.html"]


def test_many_slides_stay_one_readable_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tilestream.viewer.report.PICTURE_BYTES", 200_000)
    make_store(tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "overview.png").write_bytes((tmp_path / "s.zarr" / "thumbnail.png").read_bytes())
    for k in range(60):
        (tmp_path / f"s{k}.zarr").symlink_to(tmp_path / "s.zarr")
    text, page = report(tmp_path)
    assert page.rows == 61
    assert len(text) < 400_000


def test_one_cause_of_many_slides_is_told_once_with_links_to_them():
    told = [
        ("slide refused", f"s{k}: /data/{k}/s{k}.svs: no backend reads it (code {k})", f"s{k}", f"/data/{k}/s{k}.svs", 0) for k in range(9)
    ]
    told += [("tiles failed", f"/data/x.svs: level 0, file tile ({k}, 5): not a JPEG", "x", "/data/x.svs", 1) for k in range(4)]
    refused, failed = group_causes(told)
    assert (len(refused.slides), refused.tiles, failed.slides, failed.tiles) == (9, 0, ["x"], 4)
    table = Page(causes_table([refused, failed]))
    assert table.addresses == [*(f"#slide-s{k}" for k in range(6)), "#slide-x"]


def test_throughput_leaves_out_the_time_in_which_nothing_ran():
    first = [(1000.0 + 2 * k, 100) for k in range(20)]
    second = [(90_000.0 + 2 * k, 100) for k in range(20)]
    placed, stops = work_time(first + second)
    assert (placed[-1][0], len(stops)) == (2.0 * 39, 1)
    chart = throughput_chart(first + second)
    assert "50 tiles/s on average; work stopped and went on 1 time (dashed)" in chart
    assert throughput_chart(first[:2]) == ""


def test_every_run_is_in_the_history_with_its_own_seconds(tmp_path):
    slide = write_pyramid(tmp_path / "a.tif", make_image(900, 700))
    output = tmp_path / "out"
    embed([slide], output)
    embed([slide], output, pool="mean", output={"save": ["tiles", "slide"]})
    text, _ = report(output)
    assert text.count("1 done</td>") == 2
    assert text.count("<td class=time><div") == 2
    for part in ("starting", "computing", "shutting down"):
        assert re.search(rf'<span><i style="background:#\w+"></i>{part}</span>', text)
    assert "mm² of tissue, 1 slide" in text
