"""A run that ends in the middle of a shard keeps what it embedded; the next one embeds the rest, and ends with the bytes of one that nobody disturbed."""

import threading

import numpy as np
import pytest
import tifffile

import tilestream
from tests.support.encoders import Corners
from tests.support.images import make_image, write_pyramid
from tests.support.resuming import hurt
from tests.support.runs import bytes_of, given
from tilestream.errors import InterruptedRunError
from tilestream.stages import slide_task
from tilestream.stages.encoding.in_work import ShardRows
from tilestream.store.folder import Folder
from tilestream.store.slide_store import ASIDE, SlideStore

TILES = 8 * 10
BATCH = 4
LOCK = threading.Lock()


class Stopping(Corners):
    """Has the run stopped after some batches, of which it counts the tiles."""

    stop_after, fail_after, seen = None, None, 0

    def forward(self, tiles):
        with LOCK:
            type(self).seen += 1
            seen = self.seen
        if seen == self.stop_after:
            slide_task.STOP.set()
        if seen == self.fail_after:
            raise RuntimeError("no more")
        return super().forward(tiles)


def stopping():
    return Stopping()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """80 tiles, some of which cannot be read."""
    path = write_pyramid(tmp_path_factory.mktemp("image") / "a.tif", make_image(512, 640, 4), tile=128, levels=1, compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        places = [(tiff.pages[0].dataoffsets[k], tiff.pages[0].databytecounts[k]) for k in (3, 11)]
    with path.open("r+b") as file:
        for offset, size in places:
            file.seek(offset)
            file.write(bytes(size))
    return path


def settings(image, output, **output_keys):
    compute = {"shard_tiles": 48, "batch_size": BATCH, "threads": 1}
    return given(
        image, output, output={"path": str(output), **output_keys}, encoder="tests.e2e.test_shards_in_work:stopping", compute=compute
    )


def run(config, stop_after=None):
    """Batches that the encoder saw, the noise by which it is known left out."""
    Stopping.stop_after, Stopping.seen = stop_after, 0
    if stop_after is None:
        summary = tilestream.run(config)
        assert summary.exit_code == 4  # with tiles that cannot be read
        return Stopping.seen - 1, summary
    with pytest.raises(InterruptedRunError, match="stopped"):
        tilestream.run(config)
    return Stopping.seen - 1, None


def rows_of(folder):
    """The files of a store but those that name its run."""
    return {path: data for path, data in bytes_of(folder).items() if not path.name.startswith(("fence", "lock"))}


def test_stopped_twice_it_ends_with_the_same_bytes_and_embeds_no_tile_twice(image, tmp_path):
    whole, _ = run(settings(image, tmp_path / "whole"))
    broken = settings(image, tmp_path / "broken")
    first, _ = run(broken, stop_after=6)
    aside = tmp_path / "broken" / "a.zarr" / ASIDE
    assert sum(int(path.name.split("-")[1]) for path in aside.iterdir()) == BATCH * first
    second, _ = run(broken, stop_after=5)
    third, summary = run(broken)
    assert first > 0
    assert second > 0
    assert first + second + third <= whole + 2  # a batch that was cut off is filled up
    assert summary.new_tiles == TILES - BATCH * (first + second)
    assert summary.tiles == TILES
    assert not aside.exists()
    assert rows_of(tmp_path / "broken" / "a.zarr") == rows_of(tmp_path / "whole" / "a.zarr")


@pytest.mark.parametrize("harm", ["deleted", "cut", "flipped"])
def test_rows_that_were_set_aside_and_are_damaged_are_embedded_again(image, tmp_path, harm):
    config = settings(image, tmp_path / "out")
    run(config, stop_after=6)
    for piece in (tmp_path / "out" / "a.zarr" / ASIDE).iterdir():
        hurt(piece, harm)
    run(config)
    run(settings(image, tmp_path / "whole"))
    assert rows_of(tmp_path / "out" / "a.zarr") == rows_of(tmp_path / "whole" / "a.zarr")


def test_rows_are_set_aside_now_and_then_whatever_ends_the_run(image, tmp_path, monkeypatch):
    monkeypatch.setattr("tilestream.stages.encoding.in_work.KEEP_EVERY", 0.0)
    config = settings(image, tmp_path / "out")
    Stopping.stop_after, Stopping.fail_after, Stopping.seen = None, 8, 0
    assert tilestream.run(config).exit_code == 3
    aside = tmp_path / "out" / "a.zarr" / ASIDE
    kept = sum(int(path.name.split("-")[1]) for path in aside.iterdir())
    committed = sum(sum(entry["counts"].values()) for entry in SlideStore(Folder(str(aside.parents[1]))).ledger().values())
    assert kept > 0
    Stopping.fail_after = None
    assert run(config)[1].new_tiles == TILES - kept - committed


def test_retry_failed_takes_nothing_that_was_set_aside(image, tmp_path):
    config = settings(image, tmp_path / "out")
    run(config, stop_after=6)
    Stopping.stop_after, Stopping.seen = None, 0
    summary = tilestream.run(config, retry_failed=True)
    assert summary.new_tiles == TILES


@pytest.mark.slow
def test_a_network_gives_the_rows_that_it_gives_undisturbed(image, tmp_path, monkeypatch):
    """Batches are composed otherwise after an interrupt; no bit of a row may depend on that."""
    kept, parts = ShardRows.note, []

    def note(self, part):
        kept(self, part)
        parts.append(part)
        if len(parts) == stop_after:
            slide_task.STOP.set()

    monkeypatch.setattr(ShardRows, "note", note)
    stores = []
    for name, stop_after in (("whole", None), ("broken", 7), ("broken", None)):
        parts.clear()
        config = {
            **settings(image, tmp_path / name, dtype="float32"),
            "encoder": {"name": "tilestream-lite", "precision": "fp32", "allow_mismatch": True},
        }
        if stop_after is None:
            assert tilestream.run(config).exit_code == 4
            stores.append(tilestream.open(tmp_path / name / "a.zarr").embeddings[:])
        else:
            with pytest.raises(InterruptedRunError, match="stopped"):
                tilestream.run(config)
    np.testing.assert_array_equal(*stores)
