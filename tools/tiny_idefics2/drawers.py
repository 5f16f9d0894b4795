"""Processes that draw batches of pages ahead of training; one that dies is replaced."""

from __future__ import annotations

import faulthandler
import multiprocessing
import queue
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Semaphore

import torch

from tools.tiny_idefics2.data import Batch, Pages

_CONTEXT = multiprocessing.get_context("spawn")  # children forked beside CUDA and its compiling threads crashed
_AHEAD = 2  # batches that a process holds drawn
_PINNED = 4  # batches ready for the GPU
_LOOK_EVERY = 5.0  # seconds in which a process sees that training was killed


def shared_level(level: int) -> Synchronized[int]:
    """A level that drawing processes follow."""
    return _CONTEXT.Value("i", level)


def drawn_batches(pages: Pages, processes: int) -> Iterator[Batch]:
    """Start to draw; return batches as they come, pinned where there is a GPU; closing them ends the processes."""
    if processes < 1:
        return iter(pages)
    drawers = _Drawers(pages, processes)
    threading.Thread(target=drawers.collect, daemon=True).start()
    return drawers.batches()


@dataclass(frozen=True, slots=True)
class _Drawer:
    process: SpawnProcess
    room: Semaphore


class _Drawers:
    """The processes, by the connection that each sends its batches through."""

    def __init__(self, pages: Pages, processes: int) -> None:
        self._ready: queue.Queue[Batch] = queue.Queue(_PINNED)
        self._pages, self._processes = pages, processes
        self._running: dict[Connection, _Drawer] = {}
        self._started = 0
        self._is_closed = False

    def batches(self) -> Iterator[Batch]:
        try:
            while True:
                yield self._ready.get()
        finally:
            self._close()

    def collect(self) -> None:
        """Take batches from whichever process has one, and start another for one that died."""
        while not self._is_closed:
            while len(self._running) < self._processes:
                self._start()
            receiver = random.choice(wait(list(self._running)))
            try:
                batch = receiver.recv()
            except (EOFError, OSError, RuntimeError):
                del self._running[receiver]
                receiver.close()
                continue
            self._running[receiver].room.release()
            self._ready.put(batch.pin_memory() if torch.cuda.is_available() else batch)

    def _close(self) -> None:
        self._is_closed = True
        for drawer in list(self._running.values()):
            drawer.process.terminate()

    def _start(self) -> None:
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        room = _CONTEXT.Semaphore(_AHEAD)
        process = _CONTEXT.Process(target=_draw, args=(self._pages, self._started, sender, room), daemon=True)
        process.start()
        sender.close()
        self._running[receiver] = _Drawer(process, room)
        self._started += 1


def _draw(pages: Pages, number: int, sender: Connection, room: Semaphore) -> None:
    faulthandler.enable()
    parent = multiprocessing.parent_process()
    for batch in pages.batches(number):
        while not room.acquire(timeout=_LOOK_EVERY):
            if parent is None or not parent.is_alive():
                return
        sender.send(batch)
