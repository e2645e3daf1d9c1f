"""One training run: batches of views, updates against the clock, checkpoints, and the log."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pretrain.chunks import halve_chunks
from benchmarks.pretrain.colour import ColourConfig, Recolour
from benchmarks.pretrain.export import write_safetensors
from benchmarks.pretrain.geometry import ViewConfig, cut_crops, draw_crops, skip_masks
from benchmarks.pretrain.methods import Batch, MethodConfig, Vicreg, cosine_between
from tilestream.models.vit import VisionTransformer


class CollapseError(RuntimeError):
    """The encoder gives nearly the same features for every picture."""


@dataclass(frozen=True)
class TrainConfig:
    """What a run does; two runs with equal fields and a step limit are the same run."""

    seed: int = 0
    """Of heads and views."""
    batch: int = 512
    """Samples of a step; even."""
    lr: float = 1e-3
    """Largest learning rate, of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    weight_decay: float = 0.05
    """Of matrices alone."""
    warmup: float = 0.08
    """Part of the run over which the learning rate rises; it then falls along a cosine to a thousandth (arXiv:1608.03983)."""
    momentum: tuple[float, float] = (0.994, 0.9995)
    """Of the teacher, first and last; it rises along a cosine (BYOL, arXiv:2006.07733)."""
    clip: float = 3.0
    """Largest norm of the gradient."""
    collapse_after: float = 0.2
    """Part of the run after which a collapse ends it."""
    log_steps: int = 50
    """Steps from one row of the log to the next."""
    views: ViewConfig = field(default_factory=ViewConfig)
    colour: ColourConfig = field(default_factory=ColourConfig)
    losses: MethodConfig = field(default_factory=MethodConfig)


class Trainer:
    """Student and teacher, their optimiser and their source of views; `step` is one update.

    Parameters
    ----------
    vit : VisionTransformer
        Trained in place, on its own device.
    chunks : (n, 3, side, side) uint8
        On the device.
    config : TrainConfig
    compiled : bool
        Whether blocks and changes of colour are compiled.
    """

    def __init__(self, vit: VisionTransformer, chunks: Tensor, config: TrainConfig, *, compiled: bool = False) -> None:
        assert config.batch % 2 == 0, "half of the samples are cut at each scale"
        self.config, self.device = config, chunks.device
        self.scales = (chunks, halve_chunks(chunks))
        self.vit = vit
        sides = (config.views.global_px // vit.patch, config.views.local_px // vit.patch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.method = Vicreg(vit.cpu(), sides, config.losses).to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.recolour = Recolour(config.colour).to(self.device)
        self._change: Callable[..., Tensor] = self.recolour.forward
        if compiled:
            self._change = torch.compile(self.recolour.forward, dynamic=False)
            for part in self.method.modules():
                if isinstance(part, VisionTransformer):
                    for block in part.blocks:
                        block.compile(dynamic=False)  # the blocks share their code: it is compiled once for each shape
        self.optimiser = torch.optim.AdamW(self._groups(), betas=(0.9, 0.98), fused=self.device.type == "cuda")
        self.steps = 0
        self._bad_rows = 0
        mean, std = vit.config.mean, vit.config.std
        self._mean = torch.tensor(mean, device=self.device)[:, None, None]
        self._std = torch.tensor(std, device=self.device)[:, None, None]

    def _groups(self) -> list[dict[str, Any]]:
        trained = [(name, p) for name, p in self.method.student.named_parameters() if p.requires_grad]
        matrices = [p for name, p in trained if p.ndim > 1 and not name.endswith("cls_token")]
        others = [p for name, p in trained if p.ndim <= 1 or name.endswith("cls_token")]
        return [{"params": matrices, "weight_decay": self.config.weight_decay}, {"params": others, "weight_decay": 0.0}]

    @torch.no_grad()
    def draw_batch(self) -> Batch:
        """Draw samples and cut and change their views."""
        views, half = self.config.views, self.config.batch // 2
        cut: tuple[list[Tensor], list[Tensor]] = ([], [])
        for chunks in self.scales:
            index = torch.randint(len(chunks), (half,), generator=self.generator, device=self.device)
            maps = draw_crops(half, chunks.shape[-1], views, self.generator)
            pictures = chunks[index].float() / 255
            for found, drawn, px in zip(cut, maps, (views.global_px, views.local_px), strict=True):
                if drawn.shape[1]:
                    found.append(cut_crops(pictures, drawn, px))
        skip_masks(views.global_views * half, views.global_px // self.vit.patch, self.generator)
        local_views = self._finish(cut[1]) if cut[1] else None
        return Batch(self._finish(cut[0]), local_views, self.config.batch)

    def _finish(self, cut: list[Tensor]) -> Tensor:
        """Crops (n / 2, v, 3, px, px) of both scales to normalised views (v * n, 3, px, px), view by view."""
        pictures = torch.cat(cut).transpose(0, 1).flatten(0, 1)
        changes = self.recolour.draw(len(pictures), self.generator)
        noise = torch.randn(pictures.shape, generator=self.generator, device=self.device)
        return (self._change(pictures, changes, noise) - self._mean) / self._std

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")

    def learning_rate(self, progress: float) -> float:
        """Rises linearly from a hundredth, then falls along a cosine; `progress` is the part of the run that is over."""
        config = self.config
        if progress < config.warmup:
            return config.lr * max(progress / config.warmup, 0.01)
        return cosine_between(config.lr, config.lr / 1000, (progress - config.warmup) / (1 - config.warmup))

    def backward(self) -> dict[str, Tensor]:
        """Gradients of one batch, and what to log of it."""
        batch = self.draw_batch()
        with self._autocast():
            loss, logged = self.method.loss(batch)
        loss.backward()
        return {"loss": loss.detach(), **{key: value.detach() for key, value in logged.items()}}

    def warm_up(self) -> None:
        """Compile and allocate with a batch that leaves no trace in weights or random state."""
        state = self.generator.get_state()
        self.backward()
        self.optimiser.zero_grad()
        self.generator.set_state(state)
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def step(self, progress: float) -> dict[str, Tensor]:
        """One update at this part of the run; returns the losses, on the device."""
        logged = self.backward()
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        logged["gradient"] = nn.utils.clip_grad_norm_(parameters, self.config.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(progress)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.method.update_teacher(cosine_between(*self.config.momentum, progress))
        self.steps += 1
        return logged

    def check_collapse(self, row: dict[str, float], progress: float) -> None:
        """Raise where the third row of the log in a row shows a collapse, or one has a loss that is no number."""
        if not all(abs(value) < float("inf") for value in row.values()):
            raise CollapseError(f"step {self.steps}: {row}. Lower --lr.")
        bad = row["spread"] < 1e-4
        self._bad_rows = self._bad_rows + 1 if bad and progress >= self.config.collapse_after else 0
        if self._bad_rows == 3:
            raise CollapseError(f"step {self.steps}: spread {row['spread']:.6f}, three rows long. Lower --lr.")

    def encoder_state(self) -> dict[str, Tensor]:
        """The moving average's weights as float16, under the names of the package's vision transformer."""
        return {key: value.half() for key, value in self.method.teacher["backbone"].vit.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "config": asdict(self.config), "steps": self.steps, "method": self.method.state_dict(),
            "optimiser": self.optimiser.state_dict(), "generator": self.generator.get_state(),
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`.

        Raises
        ------
        ValueError
            Where the state is of a run with another config.
        """
        ours = asdict(self.config)
        if differing := [key for key in ours if ours[key] != state["config"].get(key)]:
            raise ValueError(f"the checkpoint was trained with another {', '.join(differing)}. Use its options, or another --out.")
        self.method.load_state_dict(state["method"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"].cpu())
        self.steps = state["steps"]


@dataclass
class Run:
    """A trainer against the clock, in a folder: `checkpoint.pt` about once a minute, `encoder.safetensors`, `log.json`."""

    trainer: Trainer
    out: Path
    minutes: float
    """Of the whole run, earlier parts and preparation counted in."""
    max_steps: int | None = None
    """Ends the run earlier, and makes its schedule independent of the clock's speed where the clock is generous."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Written to the log as they are."""
    clock: Callable[[], float] = time.monotonic
    started: float | None = None
    """Of the clock, where the budget began before this object was built."""
    save_seconds: float = 60.0
    rows: list[dict[str, float]] = field(default_factory=list)
    progress: float = 0.0
    elapsed: float = 0.0
    """Seconds of earlier parts of the run."""

    def __post_init__(self) -> None:
        if self.started is None:
            self.started = self.clock()

    def seconds(self) -> float:
        """Seconds spent, earlier parts counted in."""
        assert self.started is not None
        return self.elapsed + self.clock() - self.started

    def resume(self) -> bool:
        """Continue from the folder's checkpoint, where there is one."""
        path = self.out / "checkpoint.pt"
        if not path.is_file():
            return False
        state = torch.load(path, map_location=self.trainer.device, weights_only=True)
        self.trainer.load_state(state["trainer"])
        self.rows, self.elapsed = state["rows"], state["seconds"]
        # A run that is given more minutes than before goes back in its schedule.
        self.progress = min(state["progress"], self.elapsed / (60 * self.minutes))
        return True

    def run(self) -> None:
        """Train until time or steps are over, then save.

        Raises
        ------
        CollapseError
            After the log was written.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        self.trainer.warm_up()
        budget, first, begun = 60 * self.minutes, self.progress, self.seconds()
        saved = begun
        while True:
            now = self.seconds()
            # What preparation took is no part of the schedule: the learning rate still starts low.
            of_time = first + (1 - first) * (now - begun) / (budget - begun) if budget > begun else 1.0
            of_steps = self.trainer.steps / self.max_steps if self.max_steps else 0.0
            self.progress = max(of_time, of_steps)
            if self.progress >= 1:
                break
            logged = self.trainer.step(self.progress)
            if self.trainer.steps % self.trainer.config.log_steps == 0 or self.trainer.steps == 1:
                self._log(logged)
            if now - saved > self.save_seconds:
                self.save()
                saved = now
        self.save()

    def _log(self, logged: dict[str, Tensor]) -> None:
        values = torch.stack([value.float() for value in logged.values()]).tolist()
        row = dict(zip(logged, values, strict=True))
        about = {"step": float(self.trainer.steps), "seconds": self.seconds(), "progress": self.progress}
        self.rows.append({**about, "lr": self.trainer.learning_rate(self.progress), **row})
        print(" ".join(f"{key} {value:.4g}" for key, value in self.rows[-1].items()), flush=True)
        try:
            self.trainer.check_collapse(row, self.progress)
        except CollapseError:
            self._write_log()
            raise

    def save(self) -> None:
        """Write checkpoint, encoder and log, each complete or not at all; the checkpoint last."""
        metadata = {"method": "vicreg", "seed": str(self.trainer.config.seed), "steps": str(self.trainer.steps)}
        write_safetensors(self.out / "encoder.safetensors", self.trainer.encoder_state(), metadata)
        self._write_log()
        state = {"trainer": self.trainer.state(), "rows": self.rows, "progress": self.progress, "seconds": self.seconds()}
        unfinished = self.out / "checkpoint.pt.part"
        torch.save(state, unfinished)
        unfinished.replace(self.out / "checkpoint.pt")

    def _write_log(self) -> None:
        told = {
            **self.facts, "config": asdict(self.trainer.config), "steps": self.trainer.steps,
            "seconds": self.seconds(), "minutes": self.minutes, "max_steps": self.max_steps, "rows": self.rows,
        }  # fmt: skip
        (self.out / "log.json").write_text(json.dumps(told, indent=1))
