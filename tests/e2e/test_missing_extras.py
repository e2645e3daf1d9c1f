"""What an optional package is needed for says so in one line, where it is not installed."""

import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.images import make_image, write_svs
from tilestream.cli import main
from tilestream.config.load import load_config
from tilestream.runner.driver import run

ROOT = Path(__file__).parents[2]
SLURM = "compute.scheduler={class: dask_jobqueue.SLURMCluster, args: {cores: 1}}"

NEEDS = [
    ("timm", "timm", ["plan", "c.yaml", "--set", "encoder=timm:resnet18"]),
    ("timm", "timm", ["plan", "c.yaml", "--set", "heads={a: {kind: classify, input: pixels, model: timm_model}}"]),
    ("hf", "transformers", ["plan", "c.yaml", "--set", "encoder=hf:owkin/phikon"]),
    ("hf", "transformers", ["plan", "c.yaml", "--set", "heads={a: {kind: segment, input: pixels, model: segformer}}"]),
    ("hf", "huggingface_hub", ["plan", "c.yaml", "--set", "encoder=uni"]),
    ("h5", "h5py", ["export", "out", "--to", "trident-h5"]),
    ("h5", "h5py", ["export", "out", "--to", "clam-h5"]),
    ("h5", "h5py", ["import", "features.h5", "--slide", "a", "--out", "imported"]),
    ("h5", "h5py", ["plan", "c.yaml", "--set", "tiles={size: 224, from: features.h5}"]),
    ("parquet", "pyarrow", ["export", "out", "--to", "parquet"]),
    ("parquet", "pyarrow", ["export", "out", "--to", "spatialdata"]),
    ("parquet", "pyarrow", ["run", "c.yaml", "--set", "output=objects", "--set", "heads={a: {kind: detect, input: pixels, model: 'tilestream.encoders.heads.classical:nuclei'}}"]),
    ("hpc", "dask_jobqueue", ["run", "c.yaml", "--set", "output=new", "--set", SLURM]),
    ("s3", "obstore", ["plan", "c.yaml", "--set", "slides=s3://bucket/a.svs"]),
    ("s3", "obstore", ["plan", "c.yaml", "--set", "slides=https://host.invalid/a.zarr"]),
    ("s3", "obstore", ["plan", "c.yaml", "--set", "slides=s3://bucket/*.svs"]),
    ("s3", "obstore", ["plan", "c.yaml", "--set", "slides=gs://bucket/slides/"]),
    ("s3", "obstore", ["plan", "c.yaml", "--set", "output=s3://bucket/out"]),
    ("s3", "obstore", ["run", "c.yaml", "--set", "output=s3://bucket/out"]),
    ("s3", "obstore", ["fit", "fit.yaml", "--set", "embeddings=s3://bucket/out"]),
    ("s3", "obstore", ["inspect", "s3://bucket/a.svs"]),
    ("s3", "obstore", ["init", "s3://bucket/slides/"]),
    *[("s3", "obstore", [command, "s3://bucket/out", *more]) for command, *more in (("verify",), ("view", "--no-browser"), ("report",), ("export", "--to", "csv"))],
    ("onnx", "onnxruntime", ["plan", "c.yaml", "--set", "heads={a: {kind: segment, input: pixels, model: a.onnx}}"]),
    ("seg", "segmentation_models_pytorch", ["plan", "c.yaml", "--set", "heads={a: {kind: segment, input: pixels, model: unet}}"]),
    ("fit", "openpyxl", ["fit", "fit.yaml"]),
    ("geo", "rasterio", ["export", "out", "--to", "cog"]),
]  # fmt: skip

ELSEWHERE = {
    "dicom": "OpenSlide reads them too, and it is said that it is slower: tests/sources/dicom",
    "plot": "from Python only: tests/store/test_slide.py",
    "gpu": "nothing is asked of it without a device: tests/tiles/test_device_reader.py",
    "view": "empty",
    "test": "for developers",
    "docs": "for developers",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A config, an output and files of each kind."""
    place = tmp_path_factory.mktemp("place")
    write_svs(place / "a.svs", make_image(500, 500, seed=1), mpp=0.5)
    (place / "c.yaml").write_text(
        f"slides: {place}/a.svs\noutput: out\ntiles: {{size: 224, mpp: 0.5, tissue: none}}\n"
        "encoder: {name: tilestream-tiny, precision: fp32}\ncompute: {scheduler: inline, device: cpu}\n"
    )
    (place / "fit.yaml").write_text(
        "embeddings: out\ntarget: {slides: labels.xlsx, column: label}\nhead: {name: t, kind: slide, model: mean}\nsave: t.safetensors\n"
    )
    for folder, config in {
        "timm_model": '{"architecture": "resnet18", "num_classes": 2, "pretrained_cfg": {}}',
        "segformer": '{"architectures": ["SegformerForSemanticSegmentation"], "model_type": "segformer"}',
        "unet": '{"_model_class": "Unet", "encoder_name": "resnet18"}',
    }.items():
        (place / folder).mkdir()
        (place / folder / "config.json").write_text(config)
        (place / folder / "model.safetensors").touch()
    for name in ("a.onnx", "features.h5"):
        (place / name).touch()
    with zipfile.ZipFile(place / "labels.xlsx", "w") as table:
        table.writestr("xl/workbook.xml", "<workbook/>")
    run(load_config(place / "c.yaml", [f"output={place}/out"]))
    return place


@pytest.mark.parametrize(("extra", "package", "command"), NEEDS, ids=[" ".join(command) for *_, command in NEEDS])
def test_it_is_said_in_one_line_what_to_install(extra, package, command, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=r"^[23]$"):
        main(command)
    told = capsys.readouterr()
    lines = [line for line in (told.out + told.err).splitlines() if "pip install" in line]
    assert lines, told
    assert all(f"tilestream[{extra}]" in line for line in lines), lines
    assert "Traceback" not in told.out + told.err


def test_each_extra_is_asked_for_above_or_elsewhere():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) == {extra for extra, *_ in NEEDS} | set(ELSEWHERE)
