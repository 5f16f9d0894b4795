"""What answers the questions of a shell: a server that has the model loaded, or else this process."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from idefics_cli.config import RunSettings
from idefics_cli.local_socket.client import ServerConnection, ServerLostError, find_server
from idefics_cli.progress import Progress
from idefics_cli.records import Job, Row

if TYPE_CHECKING:
    from idefics_cli.inputs import Inputs
    from idefics_cli.session import Session


class Answers:
    """Answers through a server while there is one; what it leaves undone this process does."""

    def __init__(
        self, settings: RunSettings, say: Callable[[str], None], warn: Callable[[str], None] = lambda _: None
    ) -> None:
        """Find a server, start one if the settings say so, or open the checkpoint here.

        Args:
            settings: of the run.
            say: told which way questions go, and why.
            warn: told that no server is kept, though the settings ask for one.

        Raises:
            IdeficsCliError: as `Session`.

        """
        self.settings, self._say = settings, say
        self._server: ServerConnection | None = None
        self._session: Session | None = None
        if settings.endpoint.url is not None:
            self._local()
        elif settings.server.keep is not None:
            from idefics_cli.local_socket.background import find_or_start

            self._server = find_or_start(settings, settings.server.keep, say)
            if self._server is None:
                warn("--keep: no server answers these questions, and none could be started; --verbose says why")
        elif not settings.server.no_server:
            self._server = find_server(settings, say)
        if self._server is None:
            self._local()

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        if self._session is not None:
            self._session.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """See `EngineInfo.notes`."""
        return self._server.notes if self._server else self._local().engine.info.notes

    @property
    def engine_settings(self) -> Mapping[str, str]:
        """See `EngineInfo.settings`."""
        return self._server.engine_settings if self._server else self._local().engine.info.settings

    @property
    def chat_refusal(self) -> str:
        """See `EngineInfo.chat_refusal`; empty, too, where a server answers: there it is told by the rows."""
        return "" if self._server else self._local().engine.info.chat_refusal

    def start(self) -> None:
        """Begin to load the weights, where they are not."""
        if self._session is not None:
            self._session.engine.start()

    def page_count(self, path: str) -> int:
        """Return how many pages a file has; 1 where it can't be read."""
        return self._server.page_count(path) if self._server else self._local().page_count(path)

    def rows(self, inputs: Inputs, progress: Progress | None = None) -> Generator[Row, None, None]:
        """Yield the rows of inputs; see `Session.rows`."""
        progress = progress if progress is not None else Progress()
        jobs = iter(inputs.jobs)
        delivered = Counter[str]()
        if self._server is not None:
            try:
                yield from self._server.rows(jobs, progress)
                return
            except ServerLostError as error:
                self._say(f"the server at {self._server.path} is lost: {error}; what it left is answered here")
                undone = list(self._server.open_jobs.values())
                self._server.close()
                self._server = None
                jobs = itertools.chain([one.job for one in undone], jobs)
                for one in undone:
                    delivered += one.delivered
        yield from self._rows_here(jobs, inputs, delivered, progress)

    def _rows_here(
        self, jobs: Iterator[Job], inputs: Inputs, delivered: Counter[str], progress: Progress
    ) -> Generator[Row, None, None]:
        def take_delivered(key: str) -> bool:
            if not delivered[key]:
                return False
            delivered[key] -= 1
            return True

        inputs = dataclasses.replace(inputs, jobs=jobs)
        yield from self._local().rows(inputs, take_answered=take_delivered, progress=progress)

    def _local(self) -> Session:
        if self._session is None:
            from idefics_cli.session import Session

            if self.settings.endpoint.url is None:
                self._say("answered here: the model is loaded by this process")
            self._session = Session(settings=self.settings)
        return self._session
