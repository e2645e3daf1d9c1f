"""Claim: as whole cold commands at equal precision, tilestream embeds a slide faster than the tools that people use.

    python -m benchmarks.bench_rivals [--side 12288] [--mpp 0.5] [--encoder vit_small_patch16_224] [--rounds 3] [--lazyslide PYTHON]
        [--slide2vec PYTHON] [--json]

Each contestant is a fresh process that opens the same made slide, keeps every tile of 224 px, runs timm's model of that name with random
weights in float32 on the processor, and stores the rows. They take turns; medians are printed, processor seconds beside the wall, which
a busy machine stretches, and how many times tilestream's time each one takes for a tile: the tiles that each one stored are counted.
Contestants:

tilestream  the command `run`, in its defaults
plain       OpenSlide, PIL, a DataLoader with as many workers as there are cores, timm
lazyslide   LazySlide, with `--lazyslide PYTHON`: the interpreter of an environment that holds it (pip install lazyslide)
slide2vec   slide2vec, with `--slide2vec PYTHON`, the same. It reads through the backend that it chooses (cuCIM, where that is installed), in
            as many processes as there are cores, and is given a mask that is tissue everywhere, without which it leaves tiles out. It asks
            for CUDA; on a processor: PyTorch's CPU build and torchvision first, then `pip install --no-deps slide2vec hs2p timm cucim-cu13`
            and by name what those import
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import tilestream
from tilestream.sources.made.slide import ensure_sample

TILE = 224

PLAIN = """
import sys
import numpy as np, openslide, timm, torch
path, model, step, out, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
class Tiles(torch.utils.data.Dataset):
    def __init__(self):
        width, height = openslide.OpenSlide(path).dimensions
        self.places, self.slide = [(x, y) for y in range(0, height - step + 1, step) for x in range(0, width - step + 1, step)], None
    def __len__(self):
        return len(self.places)
    def __getitem__(self, index):
        self.slide = self.slide or openslide.OpenSlide(path)
        region = self.slide.read_region(self.places[index], 0, (step, step)).convert("RGB").resize((224, 224))
        return (torch.from_numpy(np.array(region)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5
encoder = timm.create_model(model, num_classes=0).eval()
loader = torch.utils.data.DataLoader(Tiles(), batch_size=32, num_workers=workers)
with torch.inference_mode():
    rows = torch.cat([encoder(batch) for batch in loader])
np.save(out, rows.numpy())
print(len(rows))
"""

LAZYSLIDE = """
import sys
import lazyslide as zs, timm, torch
from wsidata import open_wsi
path, model, step, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
encoder = timm.create_model(model, num_classes=0).eval()
def transform(image):
    pixels = torch.as_tensor(image)
    return ((pixels.permute(2, 0, 1) if pixels.shape[-1] == 3 else pixels).float() / 255 - 0.5) / 0.5
slide = open_wsi(path, store=out)
zs.pp.tile_tissues(slide, 224, mpp=step / 224 * slide.properties.mpp, tissue_key=None)
zs.tl.feature_extraction(slide, encoder, model_name="timm", transform=transform, device="cpu", amp=False, pbar=False)
slide.write()
print(len(slide["tiles"]))
"""

SLIDE2VEC = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np, timm, torch
from hs2p import DEFAULT_MASK_SAMPLING, PreviewConfig, TilingConfig
from PIL import Image
from slide2vec import ExecutionOptions, Model, Pipeline, PreprocessingConfig, TorchTileEncoder, register_encoder
path, model, step, out, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5])
network, mpp = timm.create_model(model, num_classes=0), step / 224 * 0.25
@register_encoder("untrained", encode_dim=network.num_features, input_size=224, supports_variable_input_size=False, supported_spacing_um=mpp)
class Untrained(TorchTileEncoder):
    def __init__(self, *, output_variant=None):
        half = (0.5, 0.5, 0.5)
        super().__init__(network, encode_dim=network.num_features, input_size=224, mean=half, std=half, output_variant=output_variant)
out.mkdir()
mask = out / "everything.png"
Image.fromarray(np.ones((1024, 1024), np.uint8)).save(mask)
preprocessing = PreprocessingConfig(
    tiling=TilingConfig(requested_spacing_um=mpp, requested_tile_size_px=224, tolerance=0.01, overlap=0.0),
    masks=replace(DEFAULT_MASK_SAMPLING, min_coverage={"tissue": 0.95}),  # tiles that hang over the edge are covered by less
    preview=PreviewConfig(),  # no pictures
    num_cucim_workers=1,  # a thread in each process
)
execution = ExecutionOptions(output_dir=out, precision="fp32", num_gpus=1, num_workers_per_gpu=workers)
slide = {"sample_id": "slide", "image_path": path, "mask_path": mask, "spacing_at_level_0": 0.25}
Pipeline(Model(name="untrained", device="cpu"), preprocessing, execution=execution).run([slide])
print(len(torch.load(out / "tile_embeddings" / "slide.pt", weights_only=True)))
"""


def commands(chosen: argparse.Namespace, slide: Path, folder: Path) -> dict[str, list[str]]:
    """What each contestant is started with."""
    step = round(TILE * chosen.mpp / 0.25)  # made slides have 0.25 um/px
    given, cores = [str(slide), chosen.encoder, str(step)], str(len(os.sched_getaffinity(0)))
    config = {
        "slides": str(slide), "output": {"path": str(folder / "tilestream"), "save": ["tiles"]}, "pool": "none",
        "tiles": {"size": TILE, "mpp": chosen.mpp, "tissue": "none", "edge": "drop"},
        "encoder": {"name": chosen.encoder, "precision": "fp32"}, "compute": {"device": "cpu"},
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(config))
    found = {"tilestream": [sys.executable, "-m", "tilestream", "run", str(folder / "config.yaml"), "--restart"]}
    if chosen.plain:
        found["plain"] = [chosen.plain, "-c", PLAIN, *given, str(folder / "plain.npy"), cores]
    if chosen.lazyslide:
        found["lazyslide"] = [chosen.lazyslide, "-c", LAZYSLIDE, *given, str(folder / "lazyslide.zarr")]
    if chosen.slide2vec:
        found["slide2vec"] = [chosen.slide2vec, "-c", SLIDE2VEC, *given, str(folder / "slide2vec"), cores]
    return found


class Taken(NamedTuple):
    """What a command took."""

    wall: float
    """Seconds."""
    processor: float
    """Seconds of processors, those of processes that it started included."""
    said: str
    """Its standard output."""


def follow(command: list[str]) -> Taken:
    """What a fresh process takes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return Taken(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout)


def count_tiles(contestant: str, said: str, folder: Path) -> int:
    """Tiles that a contestant stored: ours are counted in the store, the others' scripts print theirs last."""
    if contestant != "tilestream":
        return int(said.rsplit(maxsplit=1)[-1])
    return len(tilestream.open(folder / "tilestream").obs)


def summarise(contestant: str, found: list[tuple[float, float, int]], ours: list[tuple[float, float, int]]) -> dict[str, float | str]:
    """The row of a contestant out of its rounds and ours: (wall seconds, processor seconds, tiles) of each."""
    pairs = list(zip(found, ours, strict=True))
    return {
        "contestant": contestant,
        "tiles": found[0][2],
        "wall": median(wall for wall, _, _ in found),
        "processor": median(processor for _, processor, _ in found),
        "tiles_per_second": median(tiles / wall for wall, _, tiles in found),
        "wall_ratio": median(theirs[0] / theirs[2] / (own[0] / own[2]) for theirs, own in pairs),
        "processor_ratio": median(theirs[1] / theirs[2] / (own[1] / own[2]) for theirs, own in pairs),
    }


def main(arguments: list[str] | None = None) -> list[dict[str, float | str]]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=12288, help="of the made slide, px")
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--encoder", default="vit_small_patch16_224", help="a name that timm has as well")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", default=sys.executable, help="interpreter of the plain loop; it needs timm; empty: left out")
    parser.add_argument("--lazyslide", help="interpreter of an environment with LazySlide")
    parser.add_argument("--slide2vec", help="interpreter of an environment with slide2vec")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    slide = ensure_sample(f"sample://he?width={chosen.side}&height={chosen.side}")
    taken: dict[str, list[tuple[float, float, int]]] = {}
    for _ in range(chosen.rounds):
        with tempfile.TemporaryDirectory() as name:
            for contestant, command in commands(chosen, Path(slide), Path(name)).items():
                wall, processor, said = follow(command)
                taken.setdefault(contestant, []).append((wall, processor, count_tiles(contestant, said, Path(name))))
    rows = [summarise(contestant, found, taken["tilestream"]) for contestant, found in taken.items()]
    if chosen.json:
        print(json.dumps(rows))
    else:
        print(f"{'contestant':<12}{'tiles':>7}{'wall s':>8}{'cpu s':>8}{'tiles/s':>9}{'/ ours':>8}{'cpu / ours':>12}")
        for row in rows:
            print(
                f"{row['contestant']:<12}{row['tiles']:>7}{row['wall']:>8.1f}{row['processor']:>8.1f}{row['tiles_per_second']:>9.1f}"
                f"{row['wall_ratio']:>8.2f}{row['processor_ratio']:>12.2f}"
            )
    return rows


if __name__ == "__main__":
    main()
