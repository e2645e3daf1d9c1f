"""Where a command speaks to nobody: streams that are closed, full, gone or slow change no work, and no exit code but where words are lost to somebody who waits for them."""

import errno
import os
import threading

import pytest

from tests.support.resuming import ends_equal, write_config
from tests.support.signals import shell
from tilestream.cli.streams import Stream

FULL = "tilestream: stdout cannot be written: No space left on device. Make room, then run the same command again.\n"

NOWHERE = {
    "stdout is closed": (">&-", 0, ""),
    "stderr is closed": ("2>&-", 0, ""),
    "all are closed": ("<&- >&- 2>&-", 0, ""),
    "its disk is full": (">/dev/full", 5, FULL),
    "the disk of stderr is full": ("2>/dev/full", 0, ""),
    "all disks are full": (">/dev/full 2>/dev/full", 5, ""),
    "nobody reads": ("| true; exit ${PIPESTATUS[0]}", 0, ""),
    "one line is read": ("| head -n 1; exit ${PIPESTATUS[0]}", 0, ""),
    "nobody reads either": ("2>&1 | true; exit ${PIPESTATUS[0]}", 0, ""),
}


@pytest.mark.parametrize("way", NOWHERE)
def test_words_to_nobody_go_nowhere(tmp_path, way):
    streams, code, said = NOWHERE[way]
    done = shell(f'"$PYTHON" -m tilestream schema {streams}', tmp_path)
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize("streams", ["", ">&-", "2>&-", "| true; exit ${PIPESTATUS[0]}", "2>&1 | true; exit ${PIPESTATUS[0]}"])
def test_the_exit_code_tells_what_became_of_the_command_whoever_listens(tmp_path, streams):
    (tmp_path / "c.yaml").write_text("slides: a.tif\noutput: out\ntiles: {siez: 224, mpp: 0.5}\nencoder: patch_embed\n")
    done = shell(f'"$PYTHON" -m tilestream plan c.yaml {streams}', tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("way", NOWHERE)
def test_a_run_does_its_work_whoever_listens(tmp_path, undisturbed, way):
    streams, code, said = NOWHERE[way]
    write_config(undisturbed[0], tmp_path, "corners")
    done = shell(f'"$PYTHON" -m tilestream run c.yaml {streams}', tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith(said)
    assert "Traceback" not in done.stderr
    ends_equal(tmp_path / "out", undisturbed[1])


def test_a_closed_descriptor_is_given_to_no_file(tmp_path):
    code = "from tilestream.cli.streams import keep_streams; keep_streams(); print(open('new', 'w').fileno() > 2, file=open('told', 'w'))"
    shell(f'"$PYTHON" -c "{code}" <&- >&- 2>&-', tmp_path)
    assert (tmp_path / "told").read_text() == "True\n"


def test_a_pipe_that_is_not_waited_for_gets_all_words():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    words, got = os.urandom(1 << 20), bytearray()

    def read():
        with os.fdopen(reader, "rb") as end:
            got.extend(end.read())

    thread = threading.Thread(target=read)
    thread.start()
    with Stream(writer, "w") as stream:
        left = memoryview(words)
        while left:
            left = left[stream.write(left) :]
    thread.join()
    assert (bytes(got), stream.lost) == (words, None)


def test_a_reader_that_is_gone_is_missed_by_nobody_and_a_full_disk_is_told():
    reader, writer = os.pipe()
    os.close(reader)
    with Stream(writer, "w") as stream:
        assert (stream.write(b"words"), stream.lost) == (5, None)
    with Stream("/dev/full", "w") as stream:
        assert stream.write(b"words") == 5
        assert stream.lost.errno == errno.ENOSPC
