"""A run without weights: documents, pages, columns and questions are resolved, and nothing is asked or written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from idefics_cli.config import ImageGeometry, RunSettings
from idefics_cli.documents.rasterize import PagePool
from idefics_cli.engine.base import Engine
from idefics_cli.pipeline import Progress, run
from idefics_cli.records import Answer, Job, Request


class SilentEngine:
    """Stands for an engine whose weights are not loaded: answers at once, with nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return self._engine.name

    @property
    def identity(self) -> str:
        """That of the engine, so that keys are those of a real run."""
        return self._engine.identity

    @property
    def geometry(self) -> ImageGeometry:
        """The image sizes that the checkpoint takes."""
        return self._engine.geometry

    @property
    def window(self) -> int:
        """That of the engine."""
        return self._engine.window

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Answer each request with nothing."""
        return (Answer(request.number) for request in requests)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a run would do."""

    rows: int
    """To be asked; those that resume would skip are not among them."""
    skipped: int
    pages: int
    split_pages: int
    failures: Counter[str] = field(default_factory=Counter)
    """Rows that would fail for their input, by `document: error`."""

    @property
    def failed(self) -> int:
        """Rows that would fail for their input alone."""
        return self.failures.total()


def rehearse(
    jobs: Iterable[Job], engine: Engine, pool: PagePool, settings: RunSettings, *, done: Collection[str]
) -> Rehearsal:
    """Prepare every page that a run would ask about, and count what comes of it.

    Args:
        jobs: questions with their documents.
        engine: for its name and sizes; its weights are not loaded.
        pool: prepares the pages.
        settings: of the run.
        done: keys of rows that are there already.

    """
    progress, failures = Progress(), Counter[str]()
    for row in run(jobs, SilentEngine(engine), pool, settings, done=done, progress=progress):
        if row.status == "failed":
            failures[f"{row.document}: {row.error}"] += 1
    return Rehearsal(progress.rows, progress.skipped, progress.pages, progress.split_pages, failures)
