"""Contexts and pools side by side under names, and stages that a config leaves out when what they were made of changes."""

import json

import numpy as np
import pytest

import tilestream
from tests.support.heads import head_file
from tests.support.images import make_image, write_pyramid
from tests.support.runs import bytes_of, given, opened
from tilestream.cli import main
from tilestream.errors import ConfigError, InputError
from tilestream.runner.reporter import Reporter
from tilestream.store.folder import Folder
from tilestream.store.slide_store import SlideStore

CONTEXT = {"window": 4, "depth": 1, "heads": 3}
WIDE = {"window": 8, "depth": 2, "heads": 3, "as": "wide"}
MAX = {"name": "max", "as": "most"}
GATED = {"name": "gated_attention", "as": "gated"}


@pytest.fixture
def image(tmp_path):
    return write_pyramid(tmp_path / "a.tif", make_image(500, 500, 1), compression="deflate", levels=1, mpp=0.5)


def without_records(folder):
    """What rows, contexts and vectors of a store are, without what says which there are."""
    about = (".tilestream/base.json", ".tilestream/complete.json", "zarr.json", "tables/tiles/obs/zarr.json")
    return {str(path): data for path, data in bytes_of(folder).items() if str(path) not in about}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"context": CONTEXT}, {"context": WIDE}), ({}, {"context": WIDE}), ({}, {"pool": MAX}), ({"pool": "gated_attention"}, {"pool": GATED}),
        ({"pool": "none"}, {"pool": GATED}), ({"context": WIDE}, {"context": CONTEXT}), ({"pool": MAX}, {"pool": "mean"}),
        ({"context": WIDE}, {"context": {**CONTEXT, "as": "near"}, "pool": MAX}),
    ],
)  # fmt: skip
def test_a_second_one_under_a_name_reads_no_pixel_and_leaves_the_first_as_it_is(image, tmp_path, first, second):
    tilestream.run(given(image, tmp_path / "out", **first))
    before = without_records(tmp_path / "out" / "a.zarr")
    image.rename(tmp_path / "away.tif")
    (tmp_path / "a.tif").symlink_to(tmp_path / "away.tif")
    summary = tilestream.run(given(image, tmp_path / "out", **second))
    assert (summary.new_tiles, summary.exit_code) == (0, 0)
    assert not {"compute", "wait", "read"} & summary.slides[0].seconds.keys()
    after = without_records(tmp_path / "out" / "a.zarr")
    # A slide whose vectors all have names has a table without columns, until one without a name comes.
    framed = first in ({"context": WIDE}, {"pool": MAX})
    kept = {path for path in before if not (framed and path.startswith(("tables/slide/var/", "tables/slide/X/")))}
    assert {path: after.get(path) for path in kept} == {path: before[path] for path in kept}
    assert SlideStore(Folder(str(tmp_path / "out" / "a.zarr"))).damage() == []
    # both are what each is alone
    for settings in (first, second):
        tilestream.run(given(image, tmp_path / "alone", **settings), restart=True)
        alone = without_records(tmp_path / "alone" / "a.zarr")
        here = {path for path in alone if "/obsm/" in path or path.startswith("tables/slide/X/")}
        assert {path: after.get(path) for path in here} == {path: alone[path] for path in here}
    again = tilestream.run(given(image, tmp_path / "out", **first))
    assert (again.slides[0].status, without_records(tmp_path / "out" / "a.zarr")) == ("already done", after)


def test_they_are_read_exported_and_started_over_by_name(image, tmp_path, capsys):
    tilestream.run(given(image, tmp_path / "out", context=CONTEXT))
    tilestream.run(given(image, tmp_path / "out", context=WIDE, pool=GATED))
    slide = opened(tmp_path / "out", "a")
    assert slide.named_vectors == ["context-wide", "slide-gated"]
    assert not np.array_equal(slide.vectors("context-wide")[:], slide.context[:])
    table = slide.to_anndata()
    np.testing.assert_array_equal(table.obsm["context-wide"], slide.vectors("context-wide")[:])
    assert table.obsm["attention-gated"].shape[0] == 64
    with pytest.raises(InputError, match=r"no context of tiles.*Under names it has context-wide, slide-gated"):
        slide.vectors("context-narrow")
    for what in ("context-wide", "slide-gated"):
        with pytest.raises(SystemExit) as ended:
            main(["export", str(tmp_path / "out"), "--to", "csv", "--what", what])
        assert not ended.value.code
    text = (tmp_path / "out" / "exports" / "csv-slide-gated" / "a.csv").read_text().splitlines()[1].split(",")[1:]
    np.testing.assert_allclose(np.array(text, np.float32), slide.vectors("slide-gated")[0], rtol=1e-6)
    before = bytes_of(tmp_path / "out" / "a.zarr")
    summary = tilestream.run(given(image, tmp_path / "out", context=WIDE, pool=GATED), restart="context")
    assert set(summary.slides[0].seconds) & {"context", "pool", "compute"} == {"context", "pool"}
    assert bytes_of(tmp_path / "out" / "a.zarr") == before


def test_one_of_a_name_with_other_settings_takes_its_place_alone(image, tmp_path):
    tilestream.run(given(image, tmp_path / "out", context=CONTEXT))
    tilestream.run(given(image, tmp_path / "out", context=WIDE))
    unnamed = np.array(opened(tmp_path / "out", "a").context[:])
    before = np.array(opened(tmp_path / "out", "a").vectors("context-wide")[:])
    tilestream.run(given(image, tmp_path / "out", context={**WIDE, "depth": 1}))
    slide = opened(tmp_path / "out", "a")
    np.testing.assert_array_equal(slide.context[:], unnamed)
    assert not np.array_equal(slide.vectors("context-wide")[:], before)
    assert (slide.recipe["context-wide"]["depth"], slide.recipe["context"]["depth"]) == (1, 1)


def test_a_head_reads_the_context_of_its_own_run(image, tmp_path):
    head, _ = head_file(tmp_path / "h.safetensors", read="context")
    heads = {"t": {"kind": "classify", "input": "context", "model": head}}
    tilestream.run(given(image, tmp_path / "out", context=CONTEXT, heads=heads))
    plain = opened(tmp_path / "out", "a").read_head("t")
    named = {"u": heads["t"]}
    tilestream.run(given(image, tmp_path / "out", context=WIDE, heads=named))
    slide = opened(tmp_path / "out", "a")
    np.testing.assert_array_equal(slide.read_head("t"), plain)
    assert not np.array_equal(slide.read_head("u"), plain)
    assert slide.recipe["heads"]["u"]["of"] == "context-wide"


def test_windows_are_of_one_context_and_names_are_plain(image, tmp_path):
    saved = {"output": {"save": ["tiles", "slide", "windows"]}}
    with pytest.raises(ConfigError, match=r"windows are kept of one context only, and context\.as is wide"):
        tilestream.run(given(image, tmp_path / "out", context=WIDE, **saved))
    with pytest.raises(ConfigError, match=r"context\.as"):
        tilestream.run(given(image, tmp_path / "out", context={**WIDE, "as": "Wide Context"}))


@pytest.mark.parametrize("pool", ["mean", {"name": "mean", "as": "plain"}])
def test_what_is_made_of_a_context_goes_with_it_where_the_config_leaves_it_out(image, tmp_path, pool):
    tilestream.run(given(image, tmp_path / "out", context=CONTEXT, pool=pool))
    tilestream.run(given(image, tmp_path / "out", context={**CONTEXT, "depth": 2}, pool="none"))
    slide = opened(tmp_path / "out", "a")
    assert (slide.slide_vector, slide.named_vectors, slide.recipe["context"]["depth"]) == (None, [], 2)
    assert SlideStore(Folder(str(tmp_path / "out" / "a.zarr"))).damage() == []


def test_what_is_made_of_failed_tiles_does_not_outlast_their_second_try(image, tmp_path, monkeypatch):
    settings = {"encoder": "tests.support.encoders:fails_while_told", "pool": "mean"}
    monkeypatch.setenv("TILESTREAM_TEST_FAIL", "yes")
    tilestream.run(given(image, tmp_path / "out", **settings, context={**CONTEXT, "heads": 1}))
    monkeypatch.delenv("TILESTREAM_TEST_FAIL")
    heard, reporter = [], Reporter()
    reporter.message = lambda text, level="info": heard.append(text)
    tilestream.run(given(image, tmp_path / "out", **{**settings, "pool": "none"}), retry_failed=True, reporter=reporter)
    slide = opened(tmp_path / "out", "a")
    assert (slide.context, slide.slide_vector) == (None, None)
    assert any("context, pool were made of what is another by now" in text for text in heard)
    state = json.loads((tmp_path / "out" / "run.json").read_text())
    assert state["failed_tiles"] == 0


def test_a_list_of_pools_makes_in_one_run_what_each_makes_alone(image, tmp_path):
    pools = ["mean", MAX, "mean+max", "gated_attention"]
    tilestream.run(given(image, tmp_path / "out", pool=pools[:3]))
    before = without_records(tmp_path / "out" / "a.zarr")
    assert opened(tmp_path / "out", "a").named_vectors == ["slide-mean_max", "slide-most"]
    summary = tilestream.run(given(image, tmp_path / "out", pool=pools))
    assert (summary.new_tiles, summary.exit_code) == (0, 0)
    after = without_records(tmp_path / "out" / "a.zarr")
    assert {path: after.get(path) for path in before} == before
    assert SlideStore(Folder(str(tmp_path / "out" / "a.zarr"))).damage() == []
    for pool in ("mean", MAX, {"name": "mean+max", "as": "mean_max"}, {"name": "gated_attention", "as": "gated_attention"}):
        tilestream.run(given(image, tmp_path / "alone", pool=pool))
    alone = without_records(tmp_path / "alone" / "a.zarr")
    assert {path for path in alone if path.startswith("tables/slide/")} == {path for path in after if path.startswith("tables/slide/")}
    assert {path: after.get(path) for path in alone} == alone
    again = tilestream.run(given(image, tmp_path / "out", pool="max"), restart="pool")
    assert again.slides[0].status != "already done"
    assert opened(tmp_path / "out", "a").named_vectors == ["slide-gated_attention", "slide-mean_max", "slide-most"]


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ([], "pool: an empty list"),
        (["mean", "none"], r"pool: none stands among other pools\. Leave it out"),
        (
            ["mean", "max", {"name": "gated_attention", "as": "max"}],
            r"pool: two pools are kept as max\. Give one of them another name by `as`",
        ),
        (["mean", {"nam": "max"}], r"pool\[1\]\.nam: unknown key; did you mean pool\.name\?"),
        (["mean", {"name": "gigapath", "weights": "a.tif"}], r"pool\.name: gigapath takes vectors of 1536 features"),
        (["mean", "maximum"], r"pool\[1\]\.name: 'maximum' is not one of .*did you mean max\?"),
    ],
)
def test_lists_of_pools_that_cannot_be_are_refused(image, tmp_path, pool, words):
    with pytest.raises(ConfigError, match=words):
        tilestream.run(given(image, tmp_path / "out", pool=pool))


def test_a_pool_among_others_is_not_kept_under_the_name_of_the_context(image, tmp_path):
    with pytest.raises(ConfigError, match=r"two pools are kept as wide, the one without a name as context\.as has it"):
        tilestream.run(given(image, tmp_path / "out", context=WIDE, pool=["mean", {"name": "max", "as": "wide"}]))
