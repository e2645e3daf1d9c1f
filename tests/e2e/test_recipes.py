"""The recipes for batch systems in the docs, run as they stand, task by task, by processes in the place of jobs."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml

from tests.support.clusters import ROOT
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, embed, opened, same_store

PAGE = (ROOT / "docs" / "how-to" / "cluster.md").read_text()
SECTIONS = {"tiles": {"size": 96}, "encoder": "tests.support.encoders:corners"}


def slurm_tasks():
    (script,) = re.findall(r"^```bash\n(#SBATCH --array.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    last = int(re.search(r"--array=0-(\d+)", script)[1])
    about = {
        "SLURM_ARRAY_TASK_COUNT": str(last + 1),
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_MAX": str(last),
        "SLURM_ARRAY_JOB_ID": "7",
    }
    return [(["bash", "-c", script], {**about, "SLURM_ARRAY_TASK_ID": str(task)}) for task in range(last + 1)]


def kubernetes_tasks():
    (manifest,) = (yaml.safe_load(text) for text in re.findall(r"^```yml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    assert (manifest["kind"], manifest["spec"]["completionMode"]) == ("Job", "Indexed")
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    return [(container["command"], {"JOB_COMPLETION_INDEX": str(task)}) for task in range(manifest["spec"]["completions"])]


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [slurm_tasks, kubernetes_tasks])
def test_the_tasks_of_a_recipe_do_all_slides_between_them(tmp_path, tasks):
    images = [write_pyramid(tmp_path / f"{name}.tif", make_image(200, 300, seed=seed), levels=1) for seed, name in enumerate("abc")]
    (tmp_path / "config.yaml").write_text(json.dumps(config(images, tmp_path / "out", **SECTIONS)))
    (tmp_path / "tilestream").write_text(f'#!/bin/sh\nexec {sys.executable} -m tilestream "$@"\n')
    (tmp_path / "tilestream").chmod(0o755)
    known = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for command, about in tasks():
        done = subprocess.run(command, cwd=tmp_path, env=known | about, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    embed(images, tmp_path / "alone", **SECTIONS)
    for path in images:
        assert same_store(opened(tmp_path / "out", path.stem), opened(tmp_path / "alone", path.stem))
