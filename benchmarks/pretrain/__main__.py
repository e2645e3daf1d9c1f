"""Command line of the pretraining; see the package."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.pretrain import __doc__ as about
from benchmarks.pretrain.chunks import EXCLUDED, count_sources, find_chunks, load_chunks
from benchmarks.pretrain.colour import ColourConfig
from benchmarks.pretrain.train import Run, TrainConfig, Trainer
from tilestream.models.vit import vit_tiny_patch16_224


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    usual = TrainConfig()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretrain", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the chunks")
    parser.add_argument("--out", type=Path, required=True, help="folder of encoder.safetensors, log.json and checkpoint.pt")
    parser.add_argument("--minutes", type=float, default=7.0, help="of the whole run, preparation and earlier parts counted in")
    parser.add_argument("--max-steps", type=int, help="end after so many steps")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--batch", type=int, default=usual.batch, help="samples of a step")
    parser.add_argument("--lr", type=float, default=usual.lr, help="largest learning rate")
    parser.add_argument("--colour", type=float, default=1.0, help="how far colours are changed, as a part of the usual")
    parser.add_argument("--exclude", nargs="*", default=list(EXCLUDED), help="sources that are left out")
    parser.add_argument("--resume", action="store_true", help="continue from the folder's checkpoint, where there is one")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> Run:
    """Train, write, and return the finished run."""
    started = time.monotonic()
    chosen = _parse(arguments)
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if chosen.device == "auto" else chosen.device
    device = torch.device(wanted)
    torch.set_float32_matmul_precision("high")
    paths = find_chunks(chosen.data, tuple(chosen.exclude))
    chunks = load_chunks(paths, device)
    config = TrainConfig(seed=chosen.seed, batch=chosen.batch, lr=chosen.lr, colour=ColourConfig().scaled(chosen.colour))
    vit = vit_tiny_patch16_224(position="sincos", seed=chosen.seed)
    trainer = Trainer(vit, chunks, config, compiled=device.type == "cuda" and not chosen.no_compile)
    facts = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__, "encoder": "vit_tiny_patch16_224", "sources": count_sources(paths), "excluded": chosen.exclude,
    }  # fmt: skip
    run = Run(trainer, chosen.out, chosen.minutes, max_steps=chosen.max_steps, facts=facts, started=started)
    if chosen.resume and run.resume():
        print(f"continuing at step {trainer.steps}, {run.elapsed:.0f} s", flush=True)
    run.run()
    print(f"{trainer.steps} steps in {run.seconds():.0f} s: {chosen.out / 'encoder.safetensors'}", flush=True)
    return run


if __name__ == "__main__":
    main()
