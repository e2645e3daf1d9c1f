"""The made slide is a real one for every reader, the same every time, and its labels tell where each tissue is."""

import hashlib

import numpy as np
import openslide
import pytest

from tilestream.config.schema import Tissue
from tilestream.errors import InputError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.made.histology import KINDS
from tilestream.sources.made.slide import ensure_sample, parse_sample, sample_labels
from tilestream.tiles.thumbnail import read_thumbnail
from tilestream.tiles.tissue import find_tissue

ADDRESS = "sample://he?width=3000&height=2200&seed=1"


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TILESTREAM_SAMPLE_DIR", str(tmp_path_factory.mktemp("samples")))
        yield


def test_openslide_takes_it_for_an_aperio_slide():
    with openslide.OpenSlide(str(ensure_sample(ADDRESS))) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == 0.25
        assert slide.level_dimensions == ((3000, 2200), (750, 550))


def test_ours_reads_what_openslide_reads():
    with open_source(ADDRESS, SourceOptions()) as ours, openslide.OpenSlide(str(ensure_sample(ADDRESS))) as theirs:
        assert (ours.info.backend, ours.info.mpp, len(ours.info.levels)) == ("tiff", 0.25, 2)
        seen = ours.read_region(0, Region(900, 1100, 700, 800))
        assert np.array_equal(seen, np.asarray(theirs.read_region((1100, 900), 0, (800, 700)))[..., :3])


def test_a_level_is_the_area_average_of_the_finer_one():
    with open_source(ADDRESS, SourceOptions()) as source:
        fine = source.read_region(0, Region(0, 0, 2048, 2048)).reshape(512, 4, 512, 4, 3).mean((1, 3))
        assert np.abs(fine - source.read_region(1, Region(0, 0, 512, 512))).mean() < 4


def test_four_kinds_of_tissue_differ_in_colour_where_the_labels_say_so():
    labels, cell = sample_labels(ADDRESS)
    with open_source(ADDRESS, SourceOptions()) as source:
        pixels = source.read_region(0, Region(0, 0, labels.shape[0] * cell, labels.shape[1] * cell))
    cells = pixels.reshape(labels.shape[0], cell, labels.shape[1], cell, 3).mean((1, 3))
    colours = {KINDS[k]: np.median(cells[labels == k], axis=0) for k in np.unique(labels)}
    assert len(colours) >= 5
    assert min(np.abs(a - b).max() for i, a in enumerate(colours.values()) for b in list(colours.values())[:i]) > 5
    assert colours["background"].min() > 230


def test_tissue_is_found_where_the_labels_have_it():
    labels, cell = sample_labels(ADDRESS)
    with open_source(ADDRESS, SourceOptions()) as source:
        thumbnail = read_thumbnail(source)
    mask = find_tissue(thumbnail, Tissue(), 0.25 * thumbnail.downsample).mask
    side = cell / thumbnail.downsample
    y, x = (np.minimum(np.arange(n) / side, m - 1).astype(int) for n, m in zip(mask.shape, labels.shape, strict=True))
    truth = labels[np.ix_(y, x)] > 0
    assert 0.3 < truth.mean() < 0.7
    assert (mask & truth).sum() / truth.sum() > 0.9
    assert (mask & ~truth).sum() / (~truth).sum() < 0.05


def test_the_same_address_gives_the_same_bytes(tmp_path, monkeypatch):
    small = "sample://he?width=700&height=500"
    digests = []
    for name, address in (("a", small), ("b", small), ("c", small + "&seed=2")):
        monkeypatch.setenv("TILESTREAM_SAMPLE_DIR", str(tmp_path / name))
        digests.append(hashlib.sha256(ensure_sample(address).read_bytes()).hexdigest())
        assert len(list((tmp_path / name).iterdir())) == 2
    assert digests[0] == digests[1] != digests[2]


def test_a_sample_is_made_once(monkeypatch):
    path = ensure_sample(ADDRESS)
    before = path.stat().st_mtime_ns
    assert ensure_sample(ADDRESS) == path
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("sample://brain", "the only sample is he"),
        ("sample://he?widht=5", "'widht' is unknown"),
        ("sample://he?width=ten", "width=ten is not a number"),
        ("sample://he?width=0", "width must be 1 to 200000 px, got 0"),
        ("sample://he?mpp=nan", "mpp must be 0.05 to 4 µm/px, got nan"),
        ("sample://he?seed=-1", "seed must be 0 or more, got -1"),
    ],
)
def test_an_impossible_sample_is_refused(address, words):
    with pytest.raises(InputError, match=words):
        parse_sample(address)


def test_a_full_disk_is_seen_beforehand(monkeypatch, tmp_path):
    monkeypatch.setenv("TILESTREAM_SAMPLE_DIR", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    with pytest.raises(InputError, match=r"needs up to 5.0 GB in .*, 0.0 GB are free. Set TILESTREAM_SAMPLE_DIR"):
        ensure_sample("sample://he?width=100000&height=100000")
