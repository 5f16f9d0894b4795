"""Makes failed rows of work that must not be given to a worker again: an engine whose every answer is a failure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future

from idefics_cli.engine.base import EngineInfo
from idefics_cli.errors import Failure, FailureKind
from idefics_cli.pipeline import Progress
from idefics_cli.records import Answer, Request
from idefics_cli.results.fingerprint import settings_fingerprint
from idefics_cli.session import Session
from idefics_cli.workers.answering import Answering
from idefics_cli.workers.messages import Event, Work


def fail(
    works: Iterable[Work],
    session: Session,
    tell: Callable[[Event], None],
    is_answered: Callable[[int, str], bool],
) -> None:
    """Report the rows of work as failed, with the keys that they would have; see `Answering`."""
    engine = FailingEngine(session.engine.info)
    fingerprint = settings_fingerprint(session.setting_values)
    answering = Answering(session.settings, engine, session.pool, fingerprint, tell, is_answered)
    answering.run(works, Progress())


class FailingEngine:
    """Stands for an engine where documents end the process: every answer is a failure."""

    def __init__(self, info: EngineInfo) -> None:
        self.info = info

    def start(self) -> None:
        """See `Engine`."""

    def submit(self, request: Request) -> Future[Answer]:  # noqa: ARG002 - the signature of `Engine`
        """See `Engine`."""
        answer: Future[Answer] = Future()
        words = "the document's questions have ended three workers in a row, at last by themselves"
        answer.set_result(Answer(failure=Failure(FailureKind.MODEL_ERROR, words)))
        return answer

    def close(self) -> None:
        """See `Engine`."""
