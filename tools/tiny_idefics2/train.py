"""Trains the tiny Idefics2 on generated pages, from nothing or from a checkpoint, on every GPU; resumable."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from tools.tiny_idefics2.data import IGNORED, Batch, Level, Pages, blank_batches
from tools.tiny_idefics2.model import PATCH, Reader, export, load_checkpoint, make_model


@dataclass(frozen=True, slots=True)
class Plan:
    """What one training run is."""

    out: Path  # the checkpoint folder; the resumable state goes to out/state.pt
    minutes: float = 25.0  # of wall clock, over all resumed runs
    pages: int = 48  # split pages a step and GPU (five times as many unsplit ones)
    rate: float = 1.2e-3
    warm_up: int = 200  # steps
    workers: int | None = None  # page-drawing processes a GPU; None: all processors but a few
    compile: bool = True
    save_every: float = 120.0  # seconds
    seed: int = 1
    start: Path | None = None  # a checkpoint that reads already; None begins from nothing
    settle: int = 150  # steps in which the new heads of a started checkpoint learn alone what it does
    processes: int = 1  # without a GPU: data-parallel processes


def main(plan: Plan) -> None:
    """Train on every GPU of this machine, or on the CPU where there is none."""
    world = torch.cuda.device_count() or plan.processes
    plan.out.mkdir(parents=True, exist_ok=True)
    if plan.workers is None:
        plan = replace(plan, workers=max(1, ((os.cpu_count() or 1) - world) // world))
    if world > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29511")
        torch.multiprocessing.spawn(_train, (world, plan), nprocs=world)
    else:
        _train(0, 1, plan)


def _train(rank: int, world: int, plan: Plan) -> None:
    started = time.monotonic()
    transformers.utils.logging.disable_progress_bar()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
    if world > 1:
        distributed.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=world)
    state = _State(plan, device)
    level = multiprocessing.Value("i", state.level)
    if plan.compile:
        _compile(state.reader, plan, device)
        if rank == 0:
            print(json.dumps({"compiled_s": round(time.monotonic() - started)}), flush=True)
    batches = _batches(plan, rank, level, state.step)
    next(batches)  # the workers' own start counts as start
    state.seconds += _first(time.monotonic() - started, world, device)
    losses, recent = torch.zeros(5, device=device), torch.zeros(3, device=device)
    last_save = last_log = time.monotonic()
    seen, waited, spent_here, logged = 0, 0.0, 0.0, state.step
    while state.share < 1.0:
        begun = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - begun
        seen += len(batch.images)
        rate = state.set_rate()
        scrap = batch.images.shape[3] < 200
        if plan.compile:
            torch.compiler.set_stance("force_eager" if scrap else "default")
        found = _losses(state.reader, batch, device, settling=state.settling)
        answered = state.level > Level.SPELLING
        loss = found.spelling * (0.3 if answered else 1.0) + (found.recall + found.answers) * float(answered)
        loss.backward()
        _average_gradients(state.reader, world)
        nn.utils.clip_grad_norm_(state.reader.parameters(), 1.0)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        losses += torch.stack(
            (found.spelling.detach(), found.recall.detach(), found.answers.detach(), found.right, found.turns)
        )
        recent = 0.95 * recent + torch.stack((found.right, found.turns, found.spelling.detach()))
        state.step += 1
        spent_here += time.monotonic() - begun
        if state.step % 10 == 0:  # every GPU goes by the first one's clock, so that all stop at the same step
            state.seconds += _first(spent_here, world, device)
            spent_here = 0.0
            if state.step >= state.climbed_at + 60:
                exact, spelling = recent[0] / recent[1].clamp(min=1), recent[2] / 20
                state.climb(_first(float(exact), world, device), _first(float(spelling), world, device))
                level.value = state.level
        if rank == 0 and time.monotonic() - last_log > 10:
            count = losses[4].item()
            steps, logged = state.step - logged, state.step
            spent = time.monotonic() - last_log
            print(
                json.dumps(
                    {
                        "step": state.step,
                        "share": round(state.share, 4),
                        "rate": f"{rate:.1e}",
                        "pages_s": round(seen * world / spent),
                        "waited": round(waited / spent, 2),
                        "spelling": round(losses[0].item() / steps, 4),
                        "recall": round(losses[1].item() / steps, 4),
                        "answers": round(losses[2].item() / steps, 4),
                        "exact": round(losses[3].item() / max(1.0, count), 4),
                        "level": state.level.name,
                        "gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if cuda else None,
                    }
                ),
                flush=True,
            )
            losses.zero_()
            seen, waited, last_log = 0, 0.0, time.monotonic()
        if rank == 0 and time.monotonic() - last_save > plan.save_every:
            state.save()
            last_save = time.monotonic()
    if rank == 0:
        state.save()
    if world > 1:
        distributed.barrier()
        distributed.destroy_process_group()


CLIMB_AT = {Level.ONE_FIELD: 0.5, Level.SCRAPS: 0.6, Level.FEW_FIELDS: 0.6, Level.PAGES: 0.5, Level.SPLIT: 0.4}
"""Exact match, over the last twenty steps or so, at which a level is left for the next."""


class _State:
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
        self.step, self.seconds, self.since, self.climbed_at = 0, 0.0, 0, 0
        self.level = Level.SPELLING
        self.settling_until = 0
        if plan.start is not None:
            load_checkpoint(self.reader.model, plan.start)
            self.level, self.settling_until = Level.ALL, plan.settle
        file = plan.out / "state.pt"
        if file.exists():
            saved: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
            self.reader.load_state_dict(saved["reader"])
            if "optimizer" in saved:
                self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.seconds, self.level = saved["step"], saved["seconds"], Level(saved["level"])

    @property
    def settling(self) -> bool:
        """Whether the heads still learn without moving the model."""
        return self.step < self.settling_until

    @property
    def share(self) -> float:
        """How much of the training time is over, 0 to 1."""
        return self.seconds / (60 * self.plan.minutes)

    def climb(self, exact: float, spelling: float) -> None:
        """Go on to the next level once this one is read well enough."""
        enough = exact >= CLIMB_AT.get(self.level, 2.0) if self.level > Level.SPELLING else spelling < 0.3
        if enough:
            self.level = Level(self.level + 1)
            self.climbed_at = self.step

    def set_rate(self) -> float:
        """Warm-up, then a cosine over the training time."""
        self.since += 1
        rate = self.plan.rate * min(1.0, self.since / self.plan.warm_up)
        rate *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.share)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def save(self) -> None:
        """Write the resumable state and the checkpoint, each whole or not at all."""
        fresh = self.plan.out / "state.pt.new"
        torch.save(
            {
                "reader": self.reader.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "level": int(self.level),
            },
            fresh,
        )
        fresh.rename(self.plan.out / "state.pt")
        written = self.plan.out / "new"
        export(self.reader.model, written)
        for file in written.iterdir():
            file.replace(self.plan.out / file.name)
        written.rmdir()


def _compile(reader: Reader, plan: Plan, device: torch.device) -> None:
    """Compile one layer of each stack for every shape; the other layers share its code."""
    torch._dynamo.config.recompile_limit = 64
    model = reader.model.model
    for layer in (
        *model.vision_model.encoder.layers,
        *model.connector.perceiver_resampler.layers,
        *model.text_model.layers,
    ):
        layer.compile(dynamic=False)
    for batch in blank_batches(plan.pages):
        found = _losses(reader, batch, device)
        (found.spelling + found.answers + found.recall).backward()
        for parameter in reader.parameters():
            parameter.grad = None


def _batches(plan: Plan, rank: int, level: Any, start: int) -> Iterator[Batch]:
    pages = Pages(plan.seed + 1000 * rank + 7 * start, plan.pages, level)
    return iter(
        DataLoader(
            pages,
            batch_size=None,
            num_workers=plan.workers,
            prefetch_factor=2 if plan.workers else None,
            pin_memory=torch.cuda.is_available(),
        )
    )


@dataclass(frozen=True, slots=True)
class _Losses:
    spelling: Tensor  # nats a character slot, from patches
    recall: Tensor  # the same, from latents
    answers: Tensor  # nats a character of the answers
    right: Tensor  # turns answered exactly, greedily
    turns: Tensor


def _losses(reader: Reader, batch: Batch, device: torch.device, *, settling: bool = False) -> _Losses:
    count, views, height, width = batch.images.shape
    autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    spelled, tokens, turns, positions, targets = (
        tensor.to(device, non_blocking=True).long()
        for tensor in (batch.spelled, batch.tokens, batch.turns, batch.positions, batch.targets)
    )
    with autocast:
        pixels = _tint(batch.images.to(device, non_blocking=True).flatten(0, 1))
        patches, latents = reader.see(pixels)
        hidden = reader.read(latents.reshape(count, views * latents.shape[1], -1), tokens, turns, positions)
        kept = targets != IGNORED
        logits = reader.model.lm_head(hidden[kept]).float()
        asked = spelled.flatten(0, 1)
        inked = (asked > 0).any(-1)
        sample = torch.rand(asked.shape[:2], device=device) < torch.where(inked, 0.4, 0.04)
        if settling:  # heads that know nothing yet do not move a model that reads
            patches, latents = patches.detach(), latents.detach()
        found = reader.look_up(latents, height // PATCH, width // PATCH)
        names = reader.spell(patches[sample]).float().unflatten(-1, (Reader.CHARACTERS_A_PATCH, -1))
        recalled = reader.recall(found[sample]).float().unflatten(-1, (Reader.CHARACTERS_A_PATCH, -1))
    wanted = asked[sample].flatten()
    with torch.no_grad():
        wrong = logits.argmax(-1) != targets[kept]
        turn = (turns + 10_000 * torch.arange(count, device=device)[:, None])[kept]
        all_ = torch.unique(turn).numel()
        right = all_ - torch.unique(turn[wrong]).numel()
    return _Losses(
        functional.cross_entropy(names.flatten(0, 1), wanted, ignore_index=IGNORED),
        functional.cross_entropy(recalled.flatten(0, 1), wanted, ignore_index=IGNORED),
        functional.cross_entropy(logits, targets[kept]),
        torch.tensor(float(right), device=device),
        torch.tensor(float(all_), device=device),
    )


def _tint(grey: Tensor) -> Tensor:
    """Grey uint8 (n, height, width) to normalized colour (n, 3, height, width); a third of the images get a tint."""
    n = grey.shape[0]
    tinted = (torch.rand(n, 1, device=grey.device) < 0.33).float()
    dark = torch.rand(n, 3, device=grey.device) * 0.35 * tinted
    light = 1 - torch.rand(n, 3, device=grey.device) * 0.2 * tinted
    level = grey[:, None].float() / 255
    return (dark[..., None, None] + (light - dark)[..., None, None] * level) * 2 - 1


def _first(value: float, world: int, device: torch.device) -> float:
    """The value that the first GPU has."""
    if world == 1:
        return value
    shared = torch.tensor([value], device=device)
    distributed.broadcast(shared, 0)
    return float(shared.item())


def _average_gradients(reader: Reader, world: int) -> None:
    if world == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in reader.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= world
    for parameter, part in zip(reader.parameters(), flat.split([g.numel() for g in gradients]), strict=True):
        parameter.grad = part.view_as(parameter)
