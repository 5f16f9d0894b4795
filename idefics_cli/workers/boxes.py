"""The two ends of a worker's connection: what it is told, sorted, and what it reports, collected."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from idefics_cli.workers.messages import Assign, Event, Report, Stop, ToWorker, Usage, Verdict, Work


class Inbox:
    """Sorts what a worker is told, in a thread."""

    def __init__(self, receive: Callable[[], ToWorker]) -> None:
        self.verdicts: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._receive = receive
        threading.Thread(target=self._sort, name="inbox", daemon=True).start()

    def works(self) -> Iterator[Work]:
        """Yield work as it comes, until there is no more."""
        while (work := self._works.get()) is not None:
            yield work

    def _sort(self) -> None:
        try:
            while not isinstance(message := self._receive(), Stop):
                if isinstance(message, Verdict):
                    self.verdicts.put(message.is_answered)
                else:
                    assert isinstance(message, Assign)
                    for work in message.works:
                        self._works.put(work)
        except (EOFError, OSError):
            pass  # the parent has gone
        self._works.put(None)


class _Beat:
    """Asks for a report."""


class Outbox:
    """Sends events from a thread, as many at once as there are."""

    def __init__(self, send: Callable[[Report], None]) -> None:
        self.usage: Callable[[], Usage] = Usage
        self.stalled: Callable[[], float] = float
        """See `Report.stalled_s`."""
        self._send = send
        self._events: queue.SimpleQueue[Event | threading.Event | _Beat | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Send an event soon."""
        self._events.put(event)

    def beat(self) -> None:
        """Send a report soon, even if it is empty."""
        self._events.put(_Beat())

    def flush(self) -> None:
        """Wait until all events are sent."""
        sent = threading.Event()
        self._events.put(sent)
        sent.wait()

    def close(self) -> None:
        """Send what is there, and end."""
        self._events.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch = [self._events.get()]
            while not self._events.empty():
                batch.append(self._events.get())
            is_open = None not in batch
            is_beat = any(isinstance(event, _Beat) for event in batch)
            events = tuple(one for one in batch if one is not None and not isinstance(one, threading.Event | _Beat))
            try:
                if events or is_beat:
                    self._send(Report(events, self.usage(), self.stalled() if is_beat else 0.0))
            except OSError:
                pass  # the parent has gone
            for event in batch:
                if isinstance(event, threading.Event):
                    event.set()
