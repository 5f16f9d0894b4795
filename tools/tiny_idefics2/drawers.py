"""Processes that draw batches of pages ahead of training; one that dies is replaced."""

from __future__ import annotations

import faulthandler
import multiprocessing
import queue
import random
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Semaphore

import torch

from tools.tiny_idefics2.data import Batch, Pages

_CONTEXT = multiprocessing.get_context("spawn")  # a forked child of a process that uses CUDA may crash when it collects
_AHEAD = 2  # batches that a process holds drawn
_PINNED = 4  # batches ready for the GPU


def shared_level(level: int) -> Synchronized[int]:
    """A level that drawing processes follow."""
    return _CONTEXT.Value("i", level)


def drawn_batches(pages: Pages, processes: int) -> Iterator[Batch]:
    """Yield batches as they are drawn, endlessly, in memory pinned where there is a GPU."""
    if processes < 1:
        yield from pages
    ready: queue.Queue[Batch] = queue.Queue(_PINNED)
    threading.Thread(target=_collect, args=(pages, processes, ready), daemon=True).start()
    while True:
        yield ready.get()


def _collect(pages: Pages, processes: int, ready: queue.Queue[Batch]) -> None:
    """Take batches from whichever process has one, and start another for one that died."""
    drawers: dict[Connection, Semaphore] = {}
    started = 0
    while True:
        while len(drawers) < processes:
            receiver, room = _start(pages, started)
            drawers[receiver] = room
            started += 1
        receiver = random.choice(wait(list(drawers)))
        try:
            batch = receiver.recv()
        except (EOFError, OSError, RuntimeError):
            print(f"a drawing process died; number {started} is started", flush=True)
            del drawers[receiver]
            receiver.close()
            continue
        drawers[receiver].release()
        ready.put(batch.pin_memory() if torch.cuda.is_available() else batch)


def _start(pages: Pages, number: int) -> tuple[Connection, Semaphore]:
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    room = _CONTEXT.Semaphore(_AHEAD)
    _CONTEXT.Process(target=_draw, args=(pages, number, sender, room), daemon=True).start()
    sender.close()
    return receiver, room


def _draw(pages: Pages, number: int, sender: Connection, room: Semaphore) -> None:
    faulthandler.enable()
    for batch in pages.batches(number):
        room.acquire()
        sender.send(batch)
