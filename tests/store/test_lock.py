"""Slides of an output are taken one by one: by whom, until when, and who takes over."""

import json
import os
import subprocess
import sys
import time

import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, opened, same_store
from tilestream.errors import OutputError
from tilestream.store import lock
from tilestream.store.folder import Folder
from tilestream.store.lock import Claims, hold_lock


def test_slides_of_an_output_are_claimed_one_by_one(tmp_path):
    output = Folder(str(tmp_path))
    refused = pytest.raises(OutputError, match=rf"is in use by process {os.getpid()} on")
    with hold_lock(output, "a"), hold_lock(output, "run-0-of-2"), refused, hold_lock(output, "a"):
        pass
    assert output.names() == []


@pytest.mark.parametrize(("beat", "taken"), [(0, True), (1000, False)])
def test_a_claim_of_another_machine_is_taken_over_once_its_heart_has_stopped(tmp_path, beat, taken):
    output, key = Folder(str(tmp_path)), f"{lock.CLAIMS}/a.json"
    owner = {
        "host": "elsewhere",
        "boot": "another",
        "pids": 1,
        "pid": 1,
        "born": "",
        "since": "then",
        "beat": time.time() - lock.LEASE - 500 + beat,
    }
    output.put(key, json.dumps(owner).encode())
    with Claims(output) as claims:
        assert (claims.take("a") == "") == taken


def test_a_claim_of_a_killed_process_is_taken_over_at_once_and_a_living_one_in_another_namespace_is_not(tmp_path):
    hold = (
        "import sys, time; from tilestream.store.folder import Folder; from tilestream.store.lock import Claims;"
        "c = Claims(Folder(sys.argv[1])); print(repr(c.take('a')), flush=True); time.sleep(600)"
    )
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--uts", "--fork", "--kill-child"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        alone = alone[:1] + alone[3:]
        if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
            pytest.skip("namespaces are not permitted here")
    process = subprocess.Popen([*alone, sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "''\n"
    with Claims(Folder(str(tmp_path))) as claims:
        assert claims.take("a").startswith("process ")
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60
        while claims.take("a"):
            assert time.monotonic() < deadline
    process.stdout.close()


def test_a_folder_that_grows_between_jobs_loses_no_slide_and_does_none_twice(tmp_path):
    grown = tmp_path / "grown"
    grown.mkdir()
    for name in ("b", "c", "d", "e"):
        write_pyramid(grown / f"{name}.tif", make_image(200, 200, 3), compression="deflate", levels=1, mpp=0.5)
    settings = config(grown / "*.tif", tmp_path / "out", tiles={"size": 64}, encoder="tests.support.encoders:corners")
    first = tilestream.run(settings, shard=(0, 2))
    write_pyramid(grown / "a.tif", make_image(200, 200, 4), compression="deflate", levels=1, mpp=0.5)
    second = tilestream.run(settings, shard=(1, 2))
    assert [[slide.id for slide in summary.slides] for summary in (first, second)] == [["b", "d"], ["c", "e", "a"]]
    assert all(slide.status == "done" for summary in (first, second) for slide in summary.slides)
    assert not same_store(opened(tmp_path / "out", "a"), opened(tmp_path / "out", "b"))
