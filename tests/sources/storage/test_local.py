"""Local files as byte sources."""

import pytest

from tilestream.errors import ReadError
from tilestream.sources.storage.local import LocalBytes

DATA = bytes(range(256)) * 1000


@pytest.fixture
def source(tmp_path):
    (tmp_path / "a.bin").write_bytes(DATA)
    with LocalBytes(str(tmp_path / "a.bin")) as opened:
        yield opened


def test_ranges_are_the_files_bytes_also_while_others_are_fetched_ahead(source):
    assert source.size == len(DATA)
    with source.ahead([0, 500], [10, 20]):
        assert source.read(500, 20) == DATA[500:520]
    assert source.read(0, 10) == DATA[:10]


def test_a_range_beyond_the_end_is_refused(source):
    with pytest.raises(ReadError, match=r"the file gave 5 of 10 bytes at 255995"):
        source.read(len(DATA) - 5, 10)


def test_libraries_read_it_as_a_file(source):
    with source.open_file() as file:
        file.seek(-7, 2)
        assert file.read() == DATA[-7:]
        file.seek(100)
        assert file.read(5) == DATA[100:105]
