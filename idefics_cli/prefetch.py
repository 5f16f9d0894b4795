"""Runs the source of a stream in a thread, a bounded number of items ahead of its reader."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _Made(Generic[Item]):
    item: Item


@dataclass(frozen=True, slots=True)
class _Ended:
    error: BaseException | None = None


def prefetch(source: Iterable[Item], depth: int) -> Iterator[Item]:
    """Yield the items of `source`, up to `depth` of which are made before they are asked for.

    What the source raises, of whatever kind, is raised here after the items before it. When the reader stops early, the
    source is left where it stands.
    """
    items: queue.SimpleQueue[_Made[Item] | _Ended] = queue.SimpleQueue()
    room = threading.Semaphore(depth)
    is_closed = threading.Event()

    def fill() -> None:
        try:
            room.acquire()
            for item in source:
                items.put(_Made(item))
                room.acquire()
                if is_closed.is_set():
                    return
        except BaseException as error:
            traceback.clear_frames(
                error.__traceback__
            )  # what the source itself reads from is let go now, not with the error
            items.put(_Ended(error))
        else:
            items.put(_Ended())

    # A daemon: the source may be waiting for a line of stdin that never comes.
    threading.Thread(target=fill, name="prefetch", daemon=True).start()
    try:
        while isinstance(entry := items.get(), _Made):
            room.release()
            yield entry.item
        if entry.error is not None:
            try:
                raise entry.error
            finally:
                del entry  # which would hold the error, and the error this frame
    finally:
        is_closed.set()
        room.release()
