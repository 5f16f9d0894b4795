"""Makes the next item of a stream in a thread while this one is being used."""

from __future__ import annotations

import queue
import threading
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


def ahead(source: Iterable[Item]) -> Iterator[Item]:
    """Yield what a source yields, which works on the next item meanwhile, and on no more than that.

    What the source raises is raised here. When the caller stops early, the source is left where it stands.
    """
    made: queue.SimpleQueue[_Made[Item] | _Ended] = queue.SimpleQueue()
    wanted = threading.Semaphore(1)
    is_over = threading.Event()

    def make() -> None:
        try:
            wanted.acquire()
            for item in source:
                made.put(_Made(item))
                wanted.acquire()
                if is_over.is_set():
                    return
        except BaseException as error:
            made.put(_Ended(error))
        else:
            made.put(_Ended())

    # A daemon: it may be waiting for a line of stdin that never comes.
    threading.Thread(target=make, name="ahead", daemon=True).start()
    try:
        while isinstance(result := made.get(), _Made):
            wanted.release()
            yield result.item
        if result.error is not None:
            raise result.error
    finally:
        is_over.set()
        wanted.release()
