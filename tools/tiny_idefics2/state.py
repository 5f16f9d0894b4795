"""A training run: its plan, and the model, optimizer and clock that it can be resumed from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tools.tiny_idefics2.data import Level
from tools.tiny_idefics2.model import Reader, export, load_checkpoint, make_model

CLIMB_AT = {Level.ONE_FIELD: 0.5, Level.SCRAPS: 0.6, Level.FEW_FIELDS: 0.6, Level.PAGES: 0.5, Level.SPLIT: 0.4}
"""Exact match, over the last twenty steps or so, at which a level is left for the next."""
AVERAGED = 0.998  # of the average of the weights, kept at each step
HEADS = "heads.safetensors"  # beside a checkpoint: the two extra heads, to go on with
ENDING = 6.0  # seconds of a run's minutes that are kept for its last checkpoint


@dataclass(frozen=True, slots=True)
class Plan:
    """What one training run is."""

    out: Path  # the checkpoint folder; the resumable state goes to out/state.pt
    minutes: float = 25.0  # of wall clock, start-up included, over all resumed runs
    pages: int = 32  # split pages a step and GPU (five times as many unsplit ones)
    rate: float = 1.2e-3
    warm_up: int = 200  # steps
    cool: float = 0.4  # share of the time, at its end, in which the rate falls to nothing
    workers: int | None = None  # page-drawing processes a GPU; None: all processors but a few
    compile: bool = True
    save_every: float = 120.0  # seconds
    seed: int = 1
    start: Path | None = None  # a checkpoint that reads already; None begins from nothing
    settle: int = 150  # steps in which new heads of a started checkpoint learn alone; none where it has heads
    processes: int = 1  # without a GPU: data-parallel processes
    watch: int = 0  # pages of each set that every checkpoint is asked about beside training
    began: float = 0.0  # when the run was started, seconds of the clock


class State:
    """The model, its optimizer, and how far training is."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan = plan
        self.reader = Reader(make_model(plan.seed)).to(device)
        grouped: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in self.reader.named_parameters():
            grouped[parameter.ndim >= 2 and "embed" not in name and "latents" not in name].append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": grouped[True], "weight_decay": 0.05}, {"params": grouped[False], "weight_decay": 0.0}],
            lr=plan.rate,
            betas=(0.9, 0.98),
            fused=device.type == "cuda",
        )
        self.step, self.earlier, self.seconds, self.since, self.climbed_at = 0, 0.0, 0.0, 0, 0
        self.level = Level.SPELLING
        self.settling_until = 0
        if plan.start is not None:
            load_checkpoint(self.reader.model, plan.start)
            self.level, self.settling_until = Level.ALL, plan.settle
            if (heads := plan.start / HEADS).exists():
                self.reader.load_state_dict(load_file(heads), strict=False)
                self.settling_until = 0
        file = plan.out / "state.pt"
        saved: dict[str, Any] = {}
        if file.exists():
            saved = torch.load(file, map_location=device, weights_only=True)
            self.reader.load_state_dict(saved["reader"])
            if "optimizer" in saved:
                self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.earlier, self.level = saved["step"], saved["seconds"], Level(saved["level"])
            self.seconds = self.earlier
        self.average = [parameter.detach().clone() for parameter in self.reader.parameters()]
        if "average" in saved:
            torch._foreach_copy_(self.average, saved["average"])

    @property
    def settling(self) -> bool:
        """Whether the heads still learn without moving the model."""
        return self.step < self.settling_until

    @property
    def share(self) -> float:
        """How much of the training time is over, 0 to 1."""
        return self.seconds / max(1.0, 60 * self.plan.minutes - ENDING)

    def climb(self, exact: float, spelling: float) -> None:
        """Go on to the next level once this one is read well enough."""
        enough = exact >= CLIMB_AT.get(self.level, 2.0) if self.level > Level.SPELLING else spelling < 0.3
        if enough:
            self.level = Level(self.level + 1)
            self.climbed_at = self.step

    def set_rate(self) -> float:
        """Warm-up, then the full rate, which falls in a line at the end of the training time."""
        self.since += 1
        rate = self.plan.rate * min(1.0, self.since / self.plan.warm_up)
        rate *= max(0.01, min(1.0, (1 - self.share) / self.plan.cool))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    @torch.no_grad()
    def advance(self) -> None:
        """Count a step of the optimizer, and let the average of the weights follow: faster at first."""
        self.step += 1
        kept = min(AVERAGED, self.since / (self.since + 10))
        torch._foreach_lerp_(self.average, list(self.reader.parameters()), 1 - kept)

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the weights and their average."""
        for parameter, average in zip(self.reader.parameters(), self.average, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    def save(self) -> None:
        """Write the resumable state, and the checkpoint and heads of averaged weights, each whole or not at all."""
        fresh = self.plan.out / "state.pt.new"
        torch.save(
            {
                "reader": self.reader.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average,
                "step": self.step,
                "seconds": self.seconds,
                "level": int(self.level),
            },
            fresh,
        )
        fresh.rename(self.plan.out / "state.pt")
        written = self.plan.out / "new"
        self._swap()
        try:
            export(self.reader.model, written)
            save_file(self._heads(), written / HEADS)
        finally:
            self._swap()
        for file in written.iterdir():
            file.replace(self.plan.out / file.name)
        written.rmdir()

    def _heads(self) -> dict[str, Tensor]:
        """The weights that a checkpoint lacks."""
        named = self.reader.named_parameters()
        return {name: value.detach().cpu() for name, value in named if not name.startswith("model.")}
