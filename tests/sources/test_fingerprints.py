"""The digest that tells a file's bytes from others, against the formula."""

import hashlib

import numpy as np
import pytest

from tilestream.sources import files


@pytest.mark.parametrize("size", [1, 4095, 100_000, 100_001, 1_000_003])
def test_it_is_over_the_size_and_the_bytes_of_a_small_file_and_over_samples_of_a_large_one(tmp_path, monkeypatch, size):
    monkeypatch.setattr(files, "WHOLE_BYTES", 100_000)
    monkeypatch.setattr(files, "SAMPLES", 17)
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    (tmp_path / "a").write_bytes(data)
    parts = [data]
    if size > 100_000:
        parts = [data[int(k * (size - 4096) / 16) :][:4096] for k in range(17)]
    expected = hashlib.blake2b(str(size).encode() + b"".join(parts), digest_size=16).hexdigest()
    assert files.fingerprint_file(tmp_path / "a") == expected
