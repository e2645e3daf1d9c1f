"""Code that the user brought fails: exit 3, with the code, the slide and the rows named and the user's own traceback last, wherever tasks run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config
from tilestream.errors import CodeError, ConfigError

HERE = "tests/support/encoders.py"

WHERE = [{"scheduler": "inline"}, {"scheduler": "local", "workers": 1}]


@pytest.fixture
def image(tmp_path):
    """9 tiles of 64 px; the sixth alone is dark where it begins."""
    pixels = np.maximum(make_image(192, 192, seed=2), 100)
    pixels[64:66, 128:130] = 0
    return write_pyramid(tmp_path / "a.tif", pixels, compression="deflate", tile=64, levels=1)


def command(tmp_path, image, **sections):
    """Exit code and words of a run in a process of its own."""
    tiles = {"size": 64, "level": 0, "tissue": "none"}
    (tmp_path / "c.json").write_text(json.dumps(config(image, tmp_path / "out", **{"tiles": tiles, **sections})))
    done = subprocess.run(
        [sys.executable, "-m", "tilestream", "run", str(tmp_path / "c.json")], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.slow
def test_an_encoder_that_fails_on_a_tile_refuses_its_slide_by_name(image, tmp_path, where):
    compute = {**where, "batch_size": 2, "threads": 1, "shard_tiles": 4}
    code, words, heard = command(tmp_path, image, encoder="tests.support.encoders:picky", compute=compute)
    assert code == 3
    assert "refused: encoder tests.support.encoders:picky failed on a: rows 4 to 5: KeyError: 'a stain that is not in the table'" in words
    assert "resumes" not in words + heard
    lines = words.rstrip().splitlines()
    assert lines[-1] == "KeyError: 'a stain that is not in the table'"
    frames = [line for line in lines if line.startswith("  File ")]
    assert len(frames) == 1
    assert HERE in frames[0]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    ("factory", "what", "last"),
    [
        ("fussy", "encoder tests.support.encoders:fussy failed on a batch of noise", "nothing suits me"),
        ("no_factory", "encoder.name: tests.support.encoders:no_factory failed on building the encoder", "the licence server is asleep"),
    ],
)
def test_an_encoder_that_fails_on_everything_ends_the_run_at_once(image, tmp_path, where, factory, what, last):
    given = config(image, tmp_path / "out", encoder=f"tests.support.encoders:{factory}", compute=where)
    with pytest.raises(CodeError, match=what) as failed:
        tilestream.run(given)
    assert failed.value.exit_code == 3
    (own,) = failed.value.__notes__
    assert own.splitlines()[-1].endswith(last)
    assert [HERE in line for line in own.splitlines() if line.startswith("  File ")] == [True]


def test_a_tissue_function_that_fails_refuses_its_slide_by_name(image, tmp_path):
    tiles = {"size": 64, "level": 0, "tissue": "tests.support.encoders:no_tissue"}
    summary = tilestream.run(config(image, tmp_path / "out", tiles=tiles))
    assert summary.exit_code == 3
    (slide,) = summary.slides
    assert slide.error == "tiles.tissue.function: tests.support.encoders:no_tissue failed on a: IndexError: no such stain"
    assert slide.traceback.splitlines()[-1] == "IndexError: no such stain"


def script(tmp_path, image, text, **compute):
    """What a script does that says `text` with `given` at hand."""
    given = config(image, tmp_path / "out", tiles={"size": 64}, compute={"scheduler": "local", "device": "cpu", **compute})
    path = tmp_path / "script.py"
    path.write_text(f"import tilestream\ngiven = {given!r}\n{text}\n")
    folder = Path(tilestream.__file__).parents[1]
    return subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, check=False, cwd=folder, env={"PYTHONPATH": str(folder)}
    )


@pytest.mark.parametrize(
    "text", ["tilestream.run(given)", "def main():\n    tilestream.run(given)\nmain()", "if given:\n    tilestream.run(given)"]
)
def test_a_script_without_a_main_guard_is_told_so_before_anything_starts(image, tmp_path, text):
    done = script(tmp_path, image, text, workers=1)
    assert done.returncode == 1
    assert not (tmp_path / "out").exists()
    assert len(done.stderr.splitlines()) < 25
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{ConfigError.__module__}.ConfigError: compute.scheduler: local starts processes")
    assert f"{tmp_path}/script.py, line" in last
    assert 'if __name__ == "__main__":' in last
    assert "compute.scheduler inline" in last


@pytest.mark.slow
def test_a_script_without_a_main_guard_may_read_its_images_in_a_child(image, tmp_path):
    done = script(tmp_path, image, "print(tilestream.run(given).tiles)", isolate=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_a_script_without_a_main_guard_runs_where_no_process_is_started(image, tmp_path):
    done = script(tmp_path, image, "print(tilestream.run(given).tiles)")
    assert (done.stdout.strip(), done.stderr) == ("9", "")


@pytest.mark.slow
def test_a_script_with_a_main_guard_runs(image, tmp_path):
    done = script(
        tmp_path,
        image,
        workers=1,
        text="def main():\n    print(tilestream.run(given).tiles)\nif __name__ == '__main__' and given:\n    main()",
    )
    assert (done.stdout.strip(), done.stderr) == ("9", "")
