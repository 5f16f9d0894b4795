"""Trains the tiny Idefics2 on generated pages, from nothing or from a checkpoint, on every GPU; resumable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import torch
import transformers
from torch import Tensor, distributed, nn

from tools.tiny_idefics2.compiled import load_compiled, save_compiled
from tools.tiny_idefics2.data import Batch, Level, Pages, blank_batches
from tools.tiny_idefics2.drawers import drawn_batches, shared_level
from tools.tiny_idefics2.losses import find_losses
from tools.tiny_idefics2.model import Reader
from tools.tiny_idefics2.state import Plan, State

LOG_EVERY = 10.0  # seconds
WATCHED = 700  # number of the first page of the second set that checkpoints are watched with; evidence takes the first


def main(plan: Plan) -> None:
    """Train on every GPU of this machine, or on the CPU where there is none."""
    world = torch.cuda.device_count() or plan.processes
    plan.out.mkdir(parents=True, exist_ok=True)
    plan = replace(plan, began=plan.began or time.time())
    if plan.workers is None:
        plan = replace(plan, workers=max(1, ((os.cpu_count() or 1) - world) // world))
    if world > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29511")
        torch.multiprocessing.spawn(_train, (world, plan), nprocs=world)
    else:
        _train(0, 1, plan)


def _train(rank: int, world: int, plan: Plan) -> None:
    transformers.utils.logging.disable_progress_bar()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
    if world > 1:
        distributed.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=world)
    state = State(plan, device)
    level = shared_level(state.level)
    pages = Pages(plan.seed + 1000 * rank + 7 * state.step, plan.pages, level)
    batches = drawn_batches(pages, plan.workers or 0)  # drawn while the layers are compiled
    if plan.compile:
        load_compiled(plan.start, rank)
        _compile(state.reader, plan, device)
        save_compiled(plan.out, rank)
    log = _Log(state, world, plan.began)
    watch = _Watch(plan)
    recent = torch.zeros(3, device=device)
    last_save = time.monotonic()
    _tell_time(state, world, device)
    while state.share < 1.0:
        begun = time.monotonic()
        batch = next(batches)
        log.waited += time.monotonic() - begun
        log.seen += len(batch.images) * world
        parts = _step(state, batch, world, device)
        log.parts += parts
        recent = 0.95 * recent + parts[[3, 4, 0]]
        if state.step % 10 == 0:  # every GPU goes by the first one's clock, so that all stop at the same step
            _tell_time(state, world, device)
            if state.level < Level.ALL and state.step >= state.climbed_at + 60:
                exact, spelling = recent[0] / recent[1].clamp(min=1), recent[2] / 20
                state.climb(_first(float(exact), world, device), _first(float(spelling), world, device))
                level.value = state.level
        if rank == 0:
            log.write()
            if time.monotonic() - last_save > plan.save_every and state.share < 0.97:
                last_save = time.monotonic()
                state.save()
                watch.look()
    if rank == 0:
        state.save()
        print(json.dumps({"saved": str(plan.out), "seconds": round(time.time() - plan.began)}), flush=True)
        watch.close()
    if world > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def _step(state: State, batch: Batch, world: int, device: torch.device) -> Tensor:
    """Take one step of the optimizer; return the parts of the loss."""
    state.set_rate()
    if state.plan.compile:
        scrap = batch.images.shape[3] < 200
        torch.compiler.set_stance("force_eager" if scrap else "default")
    found = find_losses(state.reader, batch, device, settling=state.settling)
    heads = 1 - 0.5 * state.share if state.level == Level.ALL else 1.0  # towards the end the answers count most
    if state.level > Level.SPELLING:
        loss = found.answers + heads * (0.3 * found.spelling + found.recall)
    else:
        loss = found.spelling
    loss.backward()
    _average_gradients(state.reader, world)
    nn.utils.clip_grad_norm_(state.reader.parameters(), 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.advance()
    return found.parts


class _Log:
    """One line every few seconds: how far, how fast, how well."""

    def __init__(self, state: State, world: int, began: float) -> None:
        self.state, self.world = state, world
        device = next(state.reader.parameters()).device
        self.parts = torch.zeros(5, device=device)
        self.seen, self.waited, self.logged, self.last = 0, 0.0, state.step, time.monotonic()
        self.cuda = device.type == "cuda"
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            print(json.dumps({"ready_s": round(time.time() - began), "step": state.step}), flush=True)

    def write(self) -> None:
        spent = time.monotonic() - self.last
        if spent < LOG_EVERY:
            return
        steps = max(1, self.state.step - self.logged)
        spelling, recall, answers, right, turns = self.parts.tolist()
        line = {
            "step": self.state.step,
            "share": round(self.state.share, 4),
            "rate": f"{self.state.optimizer.param_groups[0]['lr']:.1e}",
            "steps_s": round(steps / spent, 2),
            "pages_s": round(self.seen / spent),
            "waited": round(self.waited / spent, 2),
            "spelling": round(spelling / steps, 4),
            "recall": round(recall / steps, 4),
            "answers": round(answers / steps, 4),
            "exact": round(right / max(1.0, turns), 4),
            "level": self.state.level.name,
            "gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if self.cuda else None,
        }
        print(json.dumps(line), flush=True)
        self.parts.zero_()
        self.seen, self.waited, self.logged, self.last = 0, 0.0, self.state.step, time.monotonic()


class _Watch:
    """Asks the newest checkpoint about some pages, in a process of its own beside training."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.running = plan, list[subprocess.Popen[bytes]]()

    def look(self) -> None:
        if not self.plan.watch or (self.running and self.running[-1].poll() is None):
            return
        pages = str(self.plan.watch)
        command = [sys.executable, "-m", "tools.tiny_idefics2", "evaluate", "--model", str(self.plan.out), "--brief"]
        command += ["--dtypes", "bfloat16" if torch.cuda.is_available() else "float32", "--ways", "always"]
        command += ["--dense", pages, "--large", "0", "--second", pages, "--first", str(WATCHED), "--seed", "90000"]
        self.running = [subprocess.Popen([*command, "--drawers", "4"])]

    def close(self) -> None:
        """End a look that still runs: what comes after it is the last checkpoint."""
        for process in self.running:
            process.terminate()
            process.wait()


def _compile(reader: Reader, plan: Plan, device: torch.device) -> None:
    """Compile one layer of each stack for every shape; the other layers share its code."""
    torch._dynamo.config.recompile_limit = 64
    model = reader.model.model
    for layer in (
        *model.vision_model.encoder.layers,
        model.connector.modality_projection,
        *model.connector.perceiver_resampler.layers,
        *model.text_model.layers,
    ):
        layer.compile(dynamic=False)
    for batch in blank_batches(plan.pages):
        found = find_losses(reader, batch, device)
        (found.spelling + found.answers + found.recall).backward()
        for parameter in reader.parameters():
            parameter.grad = None


def _tell_time(state: State, world: int, device: torch.device) -> None:
    state.seconds = state.earlier + _first(time.time() - state.plan.began, world, device)


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
