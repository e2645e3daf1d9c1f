"""The command on one image, for tests of faults."""

import json

import pytest

import tilestream
from tests.support.runs import config
from tilestream.cli import main

TILE, SIDE = 96, 640


def run(capsys, tmp_path, slides, **sections):
    """Exit code, words, and the statuses and embeddings of the one slide where there is a store."""
    given = config(
        slides, tmp_path / "out", **{"tiles": {"size": TILE, "level": 0, "tissue": "none"}, "compute": {"shard_tiles": 10}, **sections}
    )
    (tmp_path / "c.yaml").write_text(json.dumps(given))
    with pytest.raises(SystemExit) as left:  # the code is looked at
        main(["run", str(tmp_path / "c.yaml")])
    out, err = capsys.readouterr()
    return left.value.code, out + err


def store(tmp_path, name="a"):
    return tilestream.open(tmp_path / "out" / f"{name}.zarr")


def touched(piece):
    """Tiles that overlap a file tile."""
    row, col = piece // 5 * 128, piece % 5 * 128
    cols = -(-SIDE // TILE)
    return {
        r * cols + c
        for r in range(cols)
        for c in range(cols)
        if r * TILE < row + 128 and r * TILE + TILE > row and c * TILE < col + 128 and c * TILE + TILE > col
    }
